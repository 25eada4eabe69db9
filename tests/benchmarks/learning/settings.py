"""The methods, budgets and folds of a scoreboard."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kinemae.data_tools.config import load_config
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.cost import step_flops
from tests.benchmarks.learning.peer import PeerRecipe, peer_flops
from tests.benchmarks.learning.random_weights import draw_encoder
from tests.benchmarks.real_clips import group_of

METHODS = Path(__file__).with_name("methods.yaml")
PEER = "transformers"
RANDOM = "random"
TEACHER = "{teacher}"
"""Stands for the folder of the teacher's encoder in overrides."""

COUNTED_STEPS = 100
"""Steps whose FLOPs are counted, if they differ."""

OURS = "kinemae"


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method of the table.

    Attributes:
        kind: "kinemae", "transformers" or "random".
        overrides: of the base config.
        recipe: of transformers' model.
        teacher: the method that trains a teacher first, for overrides with `TEACHER`; "" for none.
        teacher_fraction: fraction of the budget for the teacher.
        revision: number of a change in the code of a method.
    """

    name: str
    kind: str = OURS
    overrides: tuple[str, ...] = ()
    recipe: dict[str, Any] = field(default_factory=dict)
    revision: int = 0
    teacher: str = ""
    teacher_fraction: float = 0.25

    @property
    def student_fraction(self) -> float:
        """The fraction of the budget for the method itself."""
        return 1.0 - self.teacher_fraction if self.teacher else 1.0


@dataclass(frozen=True, kw_only=True)
class Board:
    """Everything that the results depend on.

    Attributes:
        tree: the content of `methods.yaml`.
        folds: for each fold, the groups that are held out.
        fingerprint: of the sharded clips.
    """

    work: Path
    tree: dict[str, Any]
    folds: list[list[str]]
    fingerprint: str

    @property
    def shards(self) -> Path:
        """All clips."""
        return self.work / "all" / "train"

    def fold_shards(self, fold: Sequence[str]) -> Path:
        """The clips of a fold, in train and validation, for fine-tuning."""
        return self.work / fold_name(fold)

    @property
    def base_file(self) -> Path:
        """The base config, as a file for `kinemae pretrain`; another base does not replace it."""
        text = json.dumps(self.tree["base"], sort_keys=True)
        return self.work / f"base-{hashlib.sha256(text.encode()).hexdigest()[:10]}.yaml"

    def method(self, name: str) -> Method:
        """Look up a method.

        Raises:
            ValueError: unknown name or kind.
        """
        known = self.tree["methods"]
        if name not in known:
            raise ValueError(
                f"--methods: expected names of {METHODS.name} ({', '.join(known)}), got {name}; fix: choose "
                "one of these, or add it to the file"
            )
        entry = known[name]
        if isinstance(entry, list):
            return Method(name=name, overrides=tuple(entry))
        entry = dict(entry)
        extended = entry.pop("extends", None)
        overrides = (*(self.method(extended).overrides if extended else ()), *entry.pop("overrides", ()))
        kind = entry.pop("kind", OURS)
        more = {key: entry.pop(key) for key in ("revision", "teacher", "teacher_fraction") if key in entry}
        is_right = kind == PEER or (kind in (OURS, RANDOM) and not entry)
        if not is_right:
            raise ValueError(
                f"{METHODS.name}: methods.{name}: expected kind kinemae, random or transformers, and recipe "
                f"keys for transformers only, got kind {kind} with {sorted(entry)}; fix: correct the entry"
            )
        recipe = self.tree["transformers"] | entry if kind == PEER else {}
        return Method(name=name, kind=kind, overrides=overrides, recipe=recipe, **more)

    def config(self, method: Method, **keys: object) -> PretrainConfig:
        """The pretraining config of a method."""
        return load_config(PretrainConfig, self.base_file, self.arguments(method, **keys))

    def arguments(self, method: Method, **keys: object) -> list[str]:
        """The overrides of `kinemae pretrain` for a method."""
        given = {"data.shards": self.shards, "steps": COUNTED_STEPS, "run_dir": "unused"} | keys
        overrides = self._with_teacher(method) if method.teacher else method.overrides
        return [*overrides, *(f"{key}={value}" for key, value in given.items())]

    def _with_teacher(self, method: Method) -> list[str]:
        """The overrides with an untrained teacher, for its FLOPs."""
        folder = self.work / "teachers" / method.teacher
        if not (folder / "encoder.json").exists():
            draw_encoder(self.config(self.method(method.teacher)), folder)
        return [override.replace(TEACHER, str(folder)) for override in method.overrides]

    def step_flops(self, method: Method) -> int:
        """The training FLOPs of one step of a method."""
        config = self.config(method)
        if method.kind == PEER:
            return config.batch.global_clips * peer_flops(config, PeerRecipe.of(method.recipe))
        return step_flops(config)


def fold_name(fold: Sequence[str]) -> str:
    """The folder of a fold's shards."""
    return f"fold-{'-'.join(fold)}"


def open_tree(path: Path = METHODS) -> dict[str, Any]:
    """Read a file of methods."""
    tree: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return tree


def parse_folds(given: str, videos: Path) -> list[list[str]]:
    """Parse `--folds`: a number of folds of whole groups, or the groups that each fold holds out.

    Raises:
        ValueError: an unknown group, or fewer groups than folds.
    """
    groups = sorted({group_of(path) for path in videos.glob("*/*")})
    if given.isdigit():
        count = int(given)
        if not 2 <= count <= len(groups):
            raise ValueError(
                f"--folds: expected 2 to {len(groups)} folds of the groups of {videos}, got {count}; fix: "
                "lower it; the group of a clip is its file name up to the first _"
            )
        return [groups[fold::count] for fold in range(count)]
    folds = [part.split() for part in given.split(",")]
    unknown = sorted({name for fold in folds for name in fold} - set(groups))
    if unknown or not all(folds):
        raise ValueError(
            f"--folds: expected groups of {videos} ({' '.join(groups)}), got "
            f"{' '.join(unknown) or 'an empty fold'}; fix: correct the names"
        )
    return folds


def parse_numbers(given: str, kind: type[Any], option: str) -> Sequence[Any]:
    """Parse a list of numbers with commas.

    Raises:
        ValueError: another text.
    """
    try:
        return [kind(part) for part in given.split(",")]
    except ValueError as error:
        raise ValueError(f"{option}: expected numbers with commas, got {given}; fix: correct it") from error
