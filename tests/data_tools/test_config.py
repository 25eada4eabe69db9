"""A config is built from its file and overrides; errors name the key."""

import logging
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from kinemae.data_tools.components import Component
from kinemae.data_tools.config import MISSING, load_config, parse_override, require, to_yaml
from kinemae.data_tools.overrides import as_override


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
    masking: Component = field(default_factory=lambda: Component(name="tube"))


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


def test_a_component_takes_any_arguments():
    settings = load("masking={name: random, args: {ratio: 0.5}}", "masking.args.seed=3")
    assert settings.masking == Component(name="random", args={"ratio": 0.5, "seed": 3})


def test_written_yaml_reads_back_to_an_equal_config(tmp_path: Path):
    settings = load("masking.args.ratio=0.9", "text='010'", "optim.lr=1e-5")
    (tmp_path / "resolved.yaml").write_text(to_yaml(settings))
    assert load_config(Settings, tmp_path / "resolved.yaml", []) == settings


def test_a_file_may_refer_to_itself(tmp_path: Path):
    assert load(text="steps: 4\ntext: run-${steps}\n", tmp_path=tmp_path).text == "run-4"


@pytest.mark.parametrize(
    "override, message",
    [
        ("stpes=3", "config key stpes: unknown key; did you mean steps?"),
        ("optim.rl=3", "config key optim.rl"),
        ("masking.arg={}", "config key masking.arg: unknown key; did you mean masking.args?"),
        ("steps=many", "config key steps: expected a whole number, got 'many'"),
        ("steps=1.5", "config key steps: expected a whole number, got '1.5'"),
        ("steps=", "config key steps: expected a whole number, got no value"),
        ("steps=null", "config key steps: expected a whole number, got no value"),
        ("precision=fp8", "config key precision: Invalid value 'fp8', expected one of ['fp32', 'bf16']"),
        ("optim.lr=50%", "config key optim.lr: expected a number, got '50%'"),
        ("masking.args=~/a", "fix: write masking.args=/"),
        ("optim.lr=.nan", "optim.lr must be a finite number, got nan"),
        ("optim.betas=[0.9,.inf]", "optim.betas[1] must be a finite number, got inf"),
        ("masking.args.ratio=.nan", "masking.args.ratio must be a finite number"),
        ("optim.lr=-1", "optim.lr must be above 0, got -1.0"),
        ("steps=010", "steps: YAML reads 010 as another number; fix: quote it if it is text"),
        ("text=12:30:00", "text: YAML reads 12:30:00 as another number"),
        ("masking.args={seed: 010}", "masking.args.seed: YAML reads 010 as another number"),
        ("--steps=3", "expected an override without dashes, got '--steps=3'; fix: write steps=3"),
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
        ("stpes: 3", "config key stpes: unknown key; did you mean steps?"),
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


def test_a_config_that_is_no_utf8_is_named(tmp_path: Path):
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot read the config file"):
        load_config(Settings, tmp_path / "config.yaml", [])


def test_a_missing_value_is_named():
    with pytest.raises(ValueError, match=r"no value for run_dir: set it in the config or as run_dir=\.\.\."):
        load_config(Settings, None, [])


def test_a_config_cannot_read_environment_variables(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOKEN", "canary")
    with pytest.raises(ValueError) as caught:
        load("text=${oc.env:TOKEN}")
    assert "canary" not in str(caught.value)


def test_a_valid_override_is_returned_unchanged():
    assert parse_override("a.b='010'") == "a.b='010'"


@dataclass(frozen=True, kw_only=True)
class WithComponent:
    """A config with one component."""

    mask: Component = field(default_factory=lambda: Component(name="tube"))


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        ([], Component(name="uniform", args={"ratio": 0.5})),
        (["mask.args.ratio=0.6"], Component(name="uniform", args={"ratio": 0.6})),
        (["mask.name=uniform"], Component(name="uniform", args={"ratio": 0.5})),
        (["mask.name=tube"], Component(name="tube")),
        (["mask.args.ratio=0.7", "mask.name=tube"], Component(name="tube", args={"ratio": 0.7})),
        (["mask={name: tube, args: {ratio: 0.8}}"], Component(name="tube", args={"ratio": 0.8})),
        (["mask={name: tube}"], Component(name="tube")),
    ],
)
def test_arguments_of_a_component_do_not_apply_to_another_one(
    tmp_path: Path, overrides: list[str], part: Component
) -> None:
    path = tmp_path / "part.yaml"
    path.write_text("mask: {name: uniform, args: {ratio: 0.5}}")
    assert load_config(WithComponent, path, overrides).mask == part


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["mask=tube"], Component(name="tube")),
        (["mask=uniform"], Component(name="uniform")),
        (["mask=uniform", "mask.args.ratio=0.6"], Component(name="uniform", args={"ratio": 0.6})),
        (["mask.args.ratio=0.6", "mask=tube"], Component(name="tube", args={"ratio": 0.6})),
    ],
)
def test_a_bare_name_is_a_component_with_default_arguments(
    tmp_path: Path, overrides: list[str], part: Component
) -> None:
    path = tmp_path / "part.yaml"
    path.write_text("mask: {name: uniform, args: {ratio: 0.5}}")
    assert load_config(WithComponent, path, overrides).mask == part
    path.write_text("mask: uniform")
    assert load_config(WithComponent, path, []).mask == Component(name="uniform")


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (
            ["mask={name: tube, args: {ratio: 0.8}}", "mask={name: block, args: {size: 2}}"],
            Component(name="block", args={"size": 2}),
        ),
        (["mask={name: tube, args: {ratio: 0.8}}", "mask=block"], Component(name="block")),
        (["mask.name=tube", "mask.args.ratio=0.8", "mask.name=block"], Component(name="block")),
        (
            ["mask={name: tube, args: {ratio: 0.8}}", "mask={name: tube, args: {size: 2}}"],
            Component(name="tube", args={"ratio": 0.8, "size": 2}),
        ),
    ],
)
def test_a_later_override_replaces_another_component_with_its_arguments(
    overrides: list[str], part: Component
) -> None:
    assert load_config(WithComponent, None, overrides).mask == part


def test_whole_floats_are_integers(tmp_path: Path) -> None:
    assert load("steps=1e3").steps == 1000
    assert load(text="steps: 2.0\n", tmp_path=tmp_path).steps == 2


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Three mutually exclusive keys."""

    ALTERNATIVES: ClassVar[tuple[str, ...]] = ("stride", "fps", "sampling=uniform")

    stride: int = 4
    fps: float | None = None
    sampling: Literal["dense", "uniform"] = "dense"


@dataclass(frozen=True, kw_only=True)
class WithClip:
    """A config with alternatives."""

    clip: Clip = field(default_factory=Clip)


@pytest.mark.parametrize(
    ("text", "overrides", "clip", "logged"),
    [
        ("stride: 2", ["clip.fps=8"], Clip(fps=8), ["clip.fps=8: clip.stride=2 of the config is dropped"]),
        (
            "stride: 2",
            ["clip={fps: 8}"],
            Clip(fps=8),
            ["clip.fps=8: clip.stride=2 of the config is dropped"],
        ),
        (
            "stride: 2, fps: 8",
            ["clip.sampling=uniform"],
            Clip(sampling="uniform"),
            [
                "clip.sampling=uniform: clip.fps=8.0 of the config is dropped",
                "clip.sampling=uniform: clip.stride=2 of the config is dropped",
            ],
        ),
        (
            "sampling: uniform",
            ["clip.stride=3"],
            Clip(stride=3),
            ["clip.stride=3: clip.sampling=uniform of the config is dropped"],
        ),
        ("sampling: uniform", ["clip.sampling=dense"], Clip(), []),
        (
            "stride: 2",
            ["clip.stride=null", "clip.fps=8"],
            Clip(fps=8),
            ["clip.fps=8: clip.stride=2 of the config is dropped"],
        ),
        ("stride: null, fps: 8", [], Clip(fps=8), []),
        ("fps: 8", ["clip.stride=null"], Clip(fps=8), []),
        (
            "stride: 2",
            ["clip.stride=3", "clip.fps=8"],
            Clip(stride=3, fps=8),
            [],
        ),  # rejected by the class itself
    ],
)
def test_selecting_an_alternative_unsets_the_others(
    tmp_path: Path,
    text: str,
    overrides: list[str],
    clip: Clip,
    logged: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "clip.yaml"
    path.write_text(f"clip: {{{text}}}")
    logging.getLogger("kinemae").propagate = True
    caplog.set_level(logging.INFO)
    assert load_config(WithClip, path, overrides).clip == clip
    assert caplog.messages == logged


def test_an_alternative_cannot_be_null_without_another_one() -> None:
    message = r"clip.stride: expected a value, or clip.fps or clip.sampling=uniform instead, got null"
    with pytest.raises(ValueError, match=message):
        load_config(WithClip, None, ["clip.stride=null"])


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            ["masking={name:", "tube,", "args:", "{ratio:", "0.9}}"],
            "masking: expected a whole mapping or list, got '{name:': the shell has split it at its spaces; "
            "fix: put the whole override in single quotes, 'masking={name: tube, args: {ratio: 0.9}}', "
            "or write masking.name=tube masking.args.ratio=0.9",
        ),
        (["optim.betas=[0.9,", "0.95]"], "in single quotes, 'optim.betas=[0.9, 0.95]'"),
        (["masking={name:", "tube"], "close its brackets, with the whole override in single quotes"),
        (
            ["masking={name:tube}"],
            "masking: expected a space after the colon of 'name:tube'; fix: write {name: tube}",
        ),
        (["optimizer.lr=3"], "config key optimizer.lr: unknown key; did you mean optim.lr?"),
        (["masking=name:tube"], "fix: write 'masking={name: tube}'"),
        (["masking=3"], "config key masking: expected a name, or a mapping {name: ..., args: {...}}, got 3"),
        (["optim=3"], "config key optim: expected a mapping of its keys (lr, betas), got 3"),
        (["optim={rl: 3}"], "config key optim.rl: unknown key; did you mean optim.lr?"),
        (["optim. lr=3"], "its key holds a space"),
        (["optim.lr", "=", "3"], "got 'optim.lr'; fix: write it without spaces, optim.lr=3"),
        (["optim.lr", "=3"], "fix: write it without spaces, optim.lr=3"),
        (["optim.lr:3"], "got 'optim.lr:3'; fix: write optim.lr=3"),
        (["--lr"], "without dashes, got '--lr'; fix: write lr=..."),
        (
            ["optim.betas=0.9,0.95"],
            "config key optim.betas: expected a list, as in 'optim.betas=[A, B]', got '0.9,0.95'",
        ),
        (["steps=[2, 2]"], "config key steps: expected a whole number, got [2, 2]"),
        (["optim=null"], "config key optim: expected a mapping of its keys (lr, betas), got null"),
        (["text={a"], """quote it if it is text, as in 'text="{a"'"""),
    ],
)
def test_a_quoting_error_is_named_with_its_fix(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        load(*overrides)


def test_a_missing_space_in_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"masking: expected a space after the colon of 'name:tube'"):
        load(text="masking: {name:tube}\n", tmp_path=tmp_path)
    with pytest.raises(ValueError, match=r"line 3: could not find expected ':'; is a space missing after"):
        load(text="seed: 1\nsteps:5\ntext: a\n", tmp_path=tmp_path)
    with pytest.raises(ValueError, match=r"mapping values are not allowed here; is a space missing after"):
        load(text="steps:5\nseed: 1\n", tmp_path=tmp_path)


@pytest.mark.parametrize(
    "text", ["/runs/a", "/runs/s 2 \u00fc/it's", "010", "a: b", "#1", "[x", "null", "a$b"]
)
def test_a_suggested_override_can_be_pasted_into_a_shell(text: str) -> None:
    (pasted,) = shlex.split(as_override("text", text))
    assert load(pasted).text == text


def test_a_suggested_quoted_override_is_text() -> None:
    assert load('text="{a"').text == "{a"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps:\n\t- 1", "line 2: .*; indent with spaces, not with tabs"),
        ("steps: 3\n  text: a", "line 2: .*; is a space missing after a colon, or a line indented too far"),
        ("optim:\n    lr: 1\n   betas: 2", "line 3: .*; is a line indented differently from its neighbours"),
        ("optim:\n  betas: [1, 2\nsteps: 3", "; is a bracket not closed"),
        (
            "optim: {lr:/a}",
            "settings.yaml: optim: expected a space after the colon of 'lr:/a'; fix: write {lr: /a}",
        ),
        ("stpes: 3", "settings.yaml: config key stpes: unknown key; did you mean steps"),
    ],
)
def test_a_wrong_file_is_named_with_a_possible_fix(tmp_path: Path, text: str, message: str):
    (tmp_path / "settings.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(Settings, tmp_path / "settings.yaml", [])
