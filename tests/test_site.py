"""The documentation site builds without a warning; its links hold; it loads nothing from the network."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from kinemae.data_tools.components import component_class, component_names
from tests.browser import browse, complaints, needs_browser

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it in a fresh clone."""
    shutil.rmtree(REPO / "build" / "site-package", ignore_errors=True)
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    ran = subprocess.run(words, cwd=REPO, env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    return folder


class Html(HTMLParser):
    """The targets and the addresses of a page."""

    def __init__(self, page: Path):
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        is_link = tag == "link" and given.get("rel") != "canonical"
        self.loaded |= {
            given[name] for name in ("src", "href") if name in given and (name == "src" or is_link)
        }


def test_every_config_and_every_key_is_in_the_reference() -> None:
    reference = import_from_docs("reference")
    listed = {path.partition(":")[2] for _, _, path in reference.CONFIGS}
    listed |= {"AugmentConfig"}  # part of PretrainConfig
    for package in ("data_tools", "pretrain", "finetune", "launch"):
        for path in (REPO / package).rglob("*.py"):
            source = path.read_text(encoding="utf-8")
            used = set(re.findall(r"(?:load_config|read_cluster)\(\s*([A-Z]\w+)", source))
            assert used <= listed, f"{path}: add {used - listed} to CONFIGS in docs/site/reference.py"
    for _, _, path in reference.CONFIGS:
        assert [key.name for key in reference.keys(reference.load(path)) if not key.meaning] == [], path
    for _, _, folder, base in reference.COMPONENTS:
        for name in component_names(folder):
            found = component_class(folder, name, reference.load(f"{folder}.base:{base}"))
            assert [key.name for key in reference.arguments(found) if not key.meaning] == [], (
                f"{folder}.{name}"
            )


def import_from_docs(name: str) -> Any:
    """Import a module of docs/site, which is not part of the package."""
    spec = importlib.util.spec_from_file_location(name, REPO / "docs" / "site" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_navigation() -> None:
    nav = (REPO / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    folder = REPO / "docs"
    notebooks = [page.with_suffix(".md") for page in folder.glob("notebooks/*.ipynb")]
    for page in [*folder.rglob("*.md"), *notebooks]:
        name = page.relative_to(folder).as_posix()
        is_decision = re.fullmatch(r"decisions/\d+.*", name)  # in the table of decisions/README.md
        assert is_decision or re.search(rf"[ -]{re.escape(name)}$", nav, re.M), name


def test_every_link_holds_and_nothing_is_loaded_from_the_network(site: Path) -> None:
    pages = {path: Html(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 50
    for path, page in pages.items():
        for address in page.links | page.loaded:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                assert address not in page.loaded, f"{path.name} loads {address}"
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), f"{path.name}: {address}"
            if parts.fragment and target in pages:
                known = pages[target].anchors
                assert unquote(parts.fragment) in known | {"__skip"}, f"{path.name}: {address}"


@needs_browser
def test_search_works_in_a_page_that_is_opened_from_a_folder(site: Path, tmp_path: Path) -> None:
    flags = ("--virtual-time-budget=20000", "--dump-dom")
    result = browse(site / "index.html", tmp_path, *flags, query="?q=tube")
    assert complaints(result) == []
    found = re.findall(r'href="([^"]*)" class="md-search-result__link"', result.stdout)
    assert any("reference/components.html" in link and "#masking-tube" in link for link in found)
