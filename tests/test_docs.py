"""Documents are correct: keys and defaults, files and links, examples."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kinemae.data_tools.components import Component
from kinemae.data_tools.randomness import generator
from kinemae.finetune.config import FinetuneConfig
from kinemae.finetune.export.options import ExportOptions
from kinemae.finetune.features.config import FeatureConfig
from kinemae.finetune.features.map import MapConfig
from kinemae.finetune.features.search import SearchConfig
from kinemae.finetune.predict.config import PredictConfig
from kinemae.finetune.probe.config import ProbeConfig
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.masking.base import Masking
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.runtime.config_changes import ALLOWED_CHANGES

REPO = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*REPO.glob("*.md"), *REPO.glob("docs/**/*.md")])
SHARED = (  # docs/finetuning.md refers to the other page
    "batch.", "augment.", "engine.", "log.", "profile.", "optim.", "timeouts.", "loss_guard.",
)  # fmt: skip


def keys(schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key of a config with its default; a component is one key, its name."""
    for entry in dataclasses.fields(schema):
        has_factory = entry.default is dataclasses.MISSING
        default = entry.default_factory() if has_factory else entry.default  # type: ignore[misc]
        if isinstance(default, Component):
            yield prefix + entry.name, default.name
        elif dataclasses.is_dataclass(default):
            yield from keys(type(default), f"{prefix}{entry.name}.")
        else:
            yield prefix + entry.name, default


def table(document: str) -> dict[str, Any]:
    """Read the keys of a document's config tables with their defaults, as YAML."""
    rows = re.findall(r"^\| `([\w.]+)` \| (?:`([^`]+)`|(required)) \|", (REPO / document).read_text(), re.M)
    return {key: "???" if required else yaml.safe_load(default) for key, default, required in rows}


def is_same(documented: Any, default: Any) -> bool:
    return documented == default or (isinstance(default, float) and float(documented) == default)


def test_every_key_of_pretraining_is_documented_with_its_default() -> None:
    documented, real = table("docs/pretraining.md"), dict(keys(PretrainConfig))
    assert documented.keys() == real.keys()
    assert [key for key in real if not is_same(documented[key], real[key])] == []


def test_every_key_of_fine_tuning_is_documented_with_its_default() -> None:
    own = table("docs/finetuning.md")
    documented = {**table("docs/pretraining.md"), **own}
    for key, default in keys(FinetuneConfig):
        assert key in own or key.startswith(SHARED), key
        assert is_same(documented[key], default), key


def test_every_key_of_a_probe_is_documented_with_its_default() -> None:
    shared, own = table("docs/pretraining.md"), table("docs/probing.md")
    for key, default in keys(ProbeConfig):
        assert key in own or key.startswith(("augment.", "engine.", "timeouts.")), key
        assert is_same(own.get(key, shared.get(key)), default), key
    assert own.keys() <= dict(keys(ProbeConfig)).keys() | {"linear", "attentive", "knn", "logistic"}


def test_every_key_of_features_search_and_maps_is_documented_with_its_default() -> None:
    documented = table("docs/features.md")
    real = {
        key: default for schema in (FeatureConfig, SearchConfig, MapConfig) for key, default in keys(schema)
    }
    assert documented.keys() == real.keys()
    assert [key for key in real if not is_same(documented[key], real[key])] == []


def test_every_key_of_predictions_is_documented_with_its_default() -> None:
    documented, real = table("docs/predicting.md"), dict(keys(PredictConfig))
    assert documented.keys() == real.keys()
    assert [key for key in real if not is_same(documented[key], real[key])] == []


def test_every_key_of_exports_is_documented_with_its_default() -> None:
    assert table("docs/exporting.md") == dict(keys(ExportOptions))


def test_keys_that_may_change_in_a_resumed_run_are_documented() -> None:
    text = (REPO / "docs/pretraining.md").read_text()
    may_differ = text[text.index("These keys may change") : text.index("All other changes are")]
    named = set(re.findall(r"`([\w.]+)`", may_differ))
    of_fine_tuning = {"evaluate", "data.test", "data.test_where", "report"} | {
        f"validate.{name}" for name in ("patience", "min_delta", "pause_after")
    }
    assert named == set(ALLOWED_CHANGES) - of_fine_tuning


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPO)))
def test_links_and_named_files_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for link, heading in re.findall(r"\]\(([^)#:]*)(?:#([\w-]+))?\)", text):
        target = document.parent / link if link else document
        assert target.exists(), link
        assert not heading or heading in anchors(target), f"{link}#{heading}"
    for name in re.findall(r"`((?:data_tools|pretrain|finetune|launch|configs|tests)/[\w/.]+)`", text):
        is_example = "NAME" in name or name == "pretrain/masking/rows.py"
        assert is_example or (REPO / name).exists(), name
    folders = ("data_tools", "pretrain", "finetune", "launch", "kinemae", "tests", "docs")
    paths = [*REPO.glob("*.py"), *(path for folder in folders for path in (REPO / folder).rglob("*.py"))]
    modules = [f"/{path.relative_to(REPO)}" for path in paths]
    for name in re.findall(r"`((?:\w+/)*\w+\.py)`", text):
        is_example = name in ("pretrain/masking/rows.py", "finetune.py", "launch.py") or "NAME" in name
        assert is_example or any(path.endswith(f"/{name}") for path in modules), name


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_architecture_is_short() -> None:
    lines = (REPO / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200 and max(map(len, lines)) <= 100


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPO)))
def test_text_wraps_at_100_columns(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    for line in text.splitlines():
        is_free = line.lstrip().startswith(("|", "#")) or line.startswith("    ") or "](" in line
        assert is_free or len(line) <= 100, line


def test_readme_is_short() -> None:
    assert len((REPO / "README.md").read_text(encoding="utf-8").splitlines()) <= 60


def test_every_page_and_decision_is_in_an_index() -> None:
    for folder in (REPO / "docs", REPO / "docs" / "decisions"):
        index = (folder / "README.md").read_text(encoding="utf-8")
        for page in folder.glob("*.md"):
            assert f"({page.name})" in index or page.name == "README.md", page.name


def test_the_example_mask_of_the_architecture_satisfies_the_contract() -> None:
    source = re.search(r"```python\n(.*?)```", (REPO / "ARCHITECTURE.md").read_text(), re.S)
    assert source is not None
    found: dict[str, Any] = {}
    exec(source[1], found)
    grid = TokenGrid(4, 6, 5)
    masking: Masking = found["RowMasking"](ratio=0.5)
    visible_K, hidden_M = masking.split(grid, generator(7, purpose="masking"))
    assert (len(visible_K), len(hidden_M)) == masking.counts(grid) == (60, 60)
    assert torch.equal(torch.cat([visible_K, hidden_M]).sort().values, torch.arange(grid.tokens))
    assert (visible_K.diff() > 0).all() and not (hidden_M.diff() > 0).all()


def test_commands_name_configs_that_exist() -> None:
    """Names, not paths of the repository: an installed package has no folder `configs/`."""
    for path in [*DOCUMENTS, *REPO.glob("configs/*/*.yaml")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"kinemae [^`\n]*configs/\w+/\w+\.yaml", text), path
        found = re.findall(r"kinemae (pretrain|finetune) (?:(?:train|preview|cost) )?(\w+_\w+|demo)\b", text)
        for kind, name in found:
            assert (REPO / "configs" / kind / f"{name}.yaml").exists(), f"{path}: {name}"


# The standard terms are conversion, worker pool, fix, buffer, package or command.
NON_STANDARD = re.compile(
    r"\b(kinship|crews?|mend(s|ed|ing)?|parcels?|whoever|has no say|told_noise|rooms?)\b", re.IGNORECASE
)
OLD_NAMES_ALLOWED = {"CHANGELOG.md", "tests/test_docs.py"}


def test_names_and_texts_use_standard_terms() -> None:
    folders = (
        "data_tools",
        "pretrain",
        "finetune",
        "launch",
        "kinemae",
        "configs",
        "docs",
        "tests",
        ".github",
    )
    files = [*REPO.glob("*.md"), *(path for folder in folders for path in (REPO / folder).rglob("*"))]
    for path in files:
        name = str(path.relative_to(REPO))
        if path.suffix in (".py", ".yaml", ".yml", ".md", ".html") and name not in OLD_NAMES_ALLOWED:
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
                assert not NON_STANDARD.search(line), f"{name}:{number}: {line.strip()}"
