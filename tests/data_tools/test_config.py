"""A config is what its file and overrides say, and a wrong one is refused with the key's name."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from data_tools.config import MISSING, load_config, parse_override, require, to_yaml
from data_tools.parts import Part


@dataclass(frozen=True, kw_only=True)
class Optim:
    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        require(self.lr > 0, "optim.lr", "be above 0", self.lr)


@dataclass(frozen=True, kw_only=True)
class Settings:
    run_dir: str = MISSING
    steps: int = 10
    precision: Literal["fp32", "bf16"] = "fp32"
    text: str | None = None
    optim: Optim = field(default_factory=Optim)
    masking: Part = field(default_factory=lambda: Part(name="tube"))


def load(*overrides: str, text: str | None = None, tmp_path: Path | None = None) -> Settings:
    path = None
    if text is not None:
        assert tmp_path is not None
        path = tmp_path / "config.yaml"
        path.write_text(text)
    return load_config(Settings, path, ["run_dir=here", *overrides])


def test_overrides_win_over_the_file_and_the_file_over_the_defaults(tmp_path: Path):
    settings = load(
        "optim.lr=3e-4", text="steps: 7\noptim: {lr: 0.2, betas: [0.8, 0.9]}\n", tmp_path=tmp_path
    )
    assert settings == Settings(run_dir="here", steps=7, optim=Optim(lr=0.0003, betas=(0.8, 0.9)))


def test_the_later_override_wins():
    assert load("steps=1", "steps=2").steps == 2


def test_a_part_takes_any_arguments():
    settings = load("masking={name: random, args: {ratio: 0.5}}", "masking.args.seed=3")
    assert settings.masking == Part(name="random", args={"ratio": 0.5, "seed": 3})


def test_written_yaml_reads_back_to_an_equal_config(tmp_path: Path):
    settings = load("masking.args.ratio=0.9", "text='010'", "optim.lr=1e-5")
    (tmp_path / "resolved.yaml").write_text(to_yaml(settings))
    assert load_config(Settings, tmp_path / "resolved.yaml", []) == settings


def test_a_file_may_refer_to_itself(tmp_path: Path):
    assert load(text="steps: 4\ntext: run-${steps}\n", tmp_path=tmp_path).text == "run-4"


@pytest.mark.parametrize(
    "override, message",
    [
        ("stpes=3", "config key stpes: Key 'stpes' not in 'Settings'. Did you mean: 'steps'?"),
        ("optim.rl=3", "config key optim.rl"),
        ("masking.arg={}", "Did you mean: 'args'?"),
        ("steps=many", "config key steps: Value 'many' of type 'str' could not be converted to Integer"),
        ("steps=1.5", "config key steps: Value '1.5'"),
        ("steps=null", "config key steps: Incompatible value 'None'"),
        ("precision=fp8", "config key precision: Invalid value 'fp8', expected one of ['fp32', 'bf16']"),
        ("optim.lr=.nan", "optim.lr must be a finite number, got nan"),
        ("optim.betas=[0.9,.inf]", "optim.betas[1] must be a finite number, got inf"),
        ("masking.args.ratio=.nan", "masking.args.ratio must be a finite number"),
        ("optim.lr=-1", "optim.lr must be above 0, got -1.0"),
        ("steps=010", "steps: YAML reads 010 as another number; quote it if it is text"),
        ("text=12:30:00", "text: YAML reads 12:30:00 as another number"),
        ("masking.args={seed: 010}", "masking.args.seed: YAML reads 010 as another number"),
        ("--steps=3", "an override is written key=value without dashes: 'steps=3', not '--steps=3'"),
        ("steps", "expected an override of the form key=value, got 'steps'"),
        ("=3", "expected an override of the form key=value, got '=3'"),
        ("text=[1", "text: '[1' is not valid YAML"),
        ("text=*.csv", "text: '*.csv' is not valid YAML"),
        ("text=!!python/name:os.system []", "text: '!!python/name:os.system []' is not valid YAML"),
    ],
)
def test_a_wrong_override_is_refused_with_its_key(override: str, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        load(override)


@pytest.mark.parametrize(
    "text, message",
    [
        ("stpes: 3", "Did you mean: 'steps'?"),
        ("steps: 3\nsteps: 4", "config.yaml: line 2: found duplicate key steps"),
        ("optim: {lr: 010}", "optim.lr: YAML reads 010 as another number"),
        ("- 3", "must hold a mapping of keys to values"),
        ("steps: 3\na: [", "cannot read the config file"),
        ("text: !!python/object/apply:os.getcwd []", "cannot read the config file"),
    ],
)
def test_a_wrong_file_is_refused(text: str, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=re.escape(message)):
        load(text=text, tmp_path=tmp_path)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no config file at .*nothing.yaml"):
        load_config(Settings, tmp_path / "nothing.yaml", [])


def test_a_file_that_is_no_text_is_named(tmp_path: Path):
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot read the config file"):
        load_config(Settings, tmp_path / "config.yaml", [])


def test_a_missing_value_is_named():
    with pytest.raises(ValueError, match=r"no value for run_dir: set it in the config or as run_dir=\.\.\."):
        load_config(Settings, None, [])


def test_a_secret_of_the_environment_cannot_get_into_a_config(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOKEN", "canary")
    with pytest.raises(ValueError) as caught:
        load("text=${oc.env:TOKEN}")
    assert "canary" not in str(caught.value)


def test_an_override_in_order_is_returned_unchanged():
    assert parse_override("a.b='010'") == "a.b='010'"


@dataclass(frozen=True, kw_only=True)
class WithPart:
    """A config with one part."""

    mask: Part = field(default_factory=lambda: Part(name="tube"))


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        ([], Part(name="uniform", args={"ratio": 0.5})),
        (["mask.args.ratio=0.6"], Part(name="uniform", args={"ratio": 0.6})),
        (["mask.name=uniform"], Part(name="uniform", args={"ratio": 0.5})),
        (["mask.name=tube"], Part(name="tube")),
        (["mask.args.ratio=0.7", "mask.name=tube"], Part(name="tube", args={"ratio": 0.7})),
        (["mask={name: tube, args: {ratio: 0.8}}"], Part(name="tube", args={"ratio": 0.8})),
        (["mask={name: tube}"], Part(name="tube")),
    ],
)
def test_arguments_of_a_part_do_not_pass_to_another_part(
    tmp_path: Path, overrides: list[str], part: Part
) -> None:
    path = tmp_path / "part.yaml"
    path.write_text("mask: {name: uniform, args: {ratio: 0.5}}")
    assert load_config(WithPart, path, overrides).mask == part
