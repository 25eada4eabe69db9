"""`kinemae pretrain advise SHARDS`: propose a pretraining run for a data set, and write its config."""

import argparse
import json
import math
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from kinemae.data_tools.command import writing_to
from kinemae.data_tools.conditions import select_rows
from kinemae.data_tools.config import component_keys, load_config, require
from kinemae.data_tools.index import open_index
from kinemae.data_tools.overrides import as_yaml_override
from kinemae.data_tools.progress import duration
from kinemae.data_tools.storage.location import local_out
from kinemae.data_tools.unread import check_is_read
from kinemae.pretrain.advise.advice import Advice, Request, advise
from kinemae.pretrain.advise.budget import Budget, Speed, measure_speed
from kinemae.pretrain.advise.facts import Facts
from kinemae.pretrain.advise.rule_table import Settings, advice_lines, wrapped
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.runtime.processes import find_processes
from kinemae.pretrain.training import make_plan

OUT = "advised.yaml"
_RUN_DIR = "runs/advised"
_FIRST = (
    "run_dir",
    "seed",
    "steps",
    "data",
    "clip",
    "augment",
    "batch",
    "model",
    "masking",
    "target",
    "optim",
)


def run_advise(arguments: argparse.Namespace) -> None:
    """Run the command."""
    request = read_request(arguments)
    out = local_out(arguments.out or OUT)
    require(not out.exists(), "--out", "name a file that does not exist", str(out))
    config = request.config({})
    index = open_index(arguments.shards, cache=config.data.cache, outage_s=config.data.outage_s)
    check_is_read(index, "advise")
    index = select_rows(index, config.data.where)
    advice = advise(index, request)
    make_plan(advice.config, is_run=False)
    command = shlex.join(["kinemae", "pretrain", str(out)])
    with writing_to(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(config_text(advice, command), encoding="utf-8")
    if arguments.json:
        content = {**advice.summary(), "config": str(out), "command": command}
        sys.stdout.write(json.dumps(content, ensure_ascii=False) + "\n")
        return
    sys.stdout.write(text_of(advice, arguments.shards, out, command))


def read_request(arguments: argparse.Namespace) -> Request:
    """Check the options.

    Raises:
        ValueError: a wrong option or override.
    """
    hours, given_speed = (_number(arguments, name) for name in ("hours", "clips_per_s"))
    own = [as_yaml_override("data.shards", arguments.shards)]
    keys = [override.partition("=")[0] for override in arguments.overrides]
    wrong = [key for key in keys if key in ("data.shards", "data.mixture", "data.concatenate", "data")]
    require(not wrong, wrong[0] if wrong else "", "be omitted, since SHARDS names the data set", "a value")
    if "run_dir" not in keys:
        own.append(f"run_dir={_RUN_DIR}")
    if arguments.device is not None:
        own.append(as_yaml_override("engine.device", arguments.device))
    overrides = [*own, *arguments.overrides]
    config = load_config(PretrainConfig, None, ["steps=1", *overrides])
    device = find_processes(config.engine.device).device

    def speed(config: PretrainConfig, clip_flops: int) -> Speed:
        if given_speed is not None:
            return Speed(clips_per_s=given_speed, is_measured=False)
        return measure_speed(config, clip_flops, device=device.type)

    return Request(overrides=overrides, device=device, hours=hours, speed=speed)


def _number(arguments: argparse.Namespace, name: str) -> float | None:
    """An option as a number above 0; None if it is not given."""
    text, option = getattr(arguments, name), f"--{name.replace('_', '-')}"
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    require(0 < value < math.inf, option, "be a number above 0", text)
    return value


def text_of(advice: Advice, shards: str, out: Path, command: str) -> str:
    """The advice for a reader: facts, settings with reasons, cost, warnings, command."""
    lines = [*fact_lines(advice.facts, shards), "", *advice_lines(advice.reasons, advice.fixed)]
    lines += ["", *cost_lines(advice.budget)]
    lines += ["", "warnings" if advice.warnings else "no warnings"]
    for text in advice.warnings.values():
        first, *rest = wrapped(text, "    ")
        lines += [f"  - {first.strip()}", *rest]
    lines += ["", "The settings are advice from the named sources, not a guarantee. They are in"]
    lines += [f"{out}. To train:", "", f"  {command}"]
    return "\n".join(lines) + "\n"


def fact_lines(facts: Facts, shards: str) -> list[str]:
    """The data set as lines of text. Ranges are the 5th to the 95th percentile."""
    hours = float(facts.seconds_R.sum()) / 3600
    width, height = (facts.percentiles(values_R)[1] for values_R in (facts.width_R, facts.height_R))
    overview = facts.overview
    rows = [
        ("videos", f"{facts.videos:,} in {shards}, {hours:.3g} hours, {facts.groups or 'no'} groups"),
        ("length", f"{_range(facts, facts.frames_R)} frames; {_range(facts, facts.seconds_R)} s"),
        (
            "size",
            f"median {width:g}x{height:g}; short side {_range(facts, facts.short_side_R)} pixels",
        ),
        ("frame rate", f"{_range(facts, facts.fps_R)} frames/s"),
        (
            "sample",
            f"{overview.videos} videos: {_percent(overview.unreadable)} unreadable, "
            f"{_percent(overview.static)} static, {_percent(overview.blank)} blank, "
            f"{_percent(overview.near_duplicates)} similar to another one",
        ),
    ]
    if facts.clip is not None:
        clip = facts.clip
        rows += [
            ("motion", f"{clip.motion:.1f} grey levels between the frames of a clip; "
             f"{_percent(clip.static_tokens)} of the tokens repeat the one before them"),
            ("redundancy", f"a token correlates by {clip.temporal:.2f} with the next one in time and by "
             f"{clip.spatial:.2f} with its neighbour in the frame (1: equal, 0: unrelated)"),
        ]  # fmt: skip
    return [f"{name:11} {value}" for name, value in [*rows, *_floor_rows(facts)]]


def _floor_rows(facts: Facts) -> list[tuple[str, str]]:
    floors = facts.floors
    if floors is None:
        return [
            (
                "labels",
                f"{len(facts.classes)} classes, too few videos for floors" if facts.classes else "none",
            )
        ]
    scores = ", ".join(f"{name} {100 * score:.0f} %" for name, score in floors.scores.items())
    folds = "groups kept apart" if floors.has_groups else "random folds, since the index has no groups"
    return [
        (
            "labels",
            f"{len(facts.classes)} classes; the largest has {_percent(floors.largest_class)} of the videos",
        ),
        ("floors", f"{scores}: accuracy of logistic regressions, {folds}"),
    ]


def cost_lines(budget: Budget) -> list[str]:
    """Time and FLOPs as lines of text."""
    origin = "measured here in a few steps, beside all other programs" if budget.is_measured else "as given"
    waits = f", of which {_percent(budget.data_wait)} waits for videos" if budget.data_wait > 0.05 else ""
    rows = [
        ("time", f"{duration(3600 * budget.hours)}{waits}"),
        ("speed", f"{budget.clips_per_s:.3g} clips/s, {origin}"),
        ("clips", f"{budget.steps:,} steps of {budget.clips_per_step} clips, {budget.epochs:,.3g} epochs"),
        ("FLOPs", f"{budget.clip_flops:.3g} for a clip, {budget.flops:.3g} in total"),
    ]
    return ["cost", *(f"  {name:9} {value}" for name, value in rows)]


def _range(facts: Facts, values_R: np.ndarray) -> str:
    low, middle, high = (f"{value:.3g}" for value in facts.percentiles(values_R))
    return low if low == high else f"{low} to {high}, median {middle}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"


def config_text(advice: Advice, command: str) -> str:
    """The config file: a header, then the advised and the given keys with their reasons."""
    facts, budget = advice.facts, advice.budget
    header = [
        f"Advised by `kinemae pretrain advise` for {facts.videos:,} videos.",
        "",
        f"command   {command}",
        f"hardware  {facts.device}",
        f"time      {duration(3600 * budget.hours)} at {budget.clips_per_s:.3g} clips/s",
        "score     not run",
        *(f"warning   {text}" for text in advice.warnings.values()),
    ]
    lines = [f"# {line}".rstrip() for line in header]
    for section, value in shown_keys(advice.config, advice.settings).items():
        for each in advice.reasons:
            if any(key.partition(".")[0] == section for key in each.settings):
                lines.append(f"# {', '.join(each.settings)}: {each.why} [{each.source}]")
        lines.append(as_yaml_override(section, value).replace("=", ": ", 1))
    return "\n".join(lines) + "\n"


def shown_keys(config: PretrainConfig, settings: Settings) -> dict[str, Any]:
    """The keys of a config that are advised or differ from the defaults, as a tree."""
    default = asdict(load_config(PretrainConfig, None, ["run_dir=.", "steps=1", "data.shards=."]))
    components = component_keys(PretrainConfig)

    def changed(value: Any, usual: Any, key: str) -> Any:
        if not isinstance(value, dict) or key in components:
            return value if value != usual or key in settings else None
        inner = {
            name: changed(child, usual.get(name), f"{key}.{name}" if key else name)
            for name, child in value.items()
        }
        return {name: child for name, child in inner.items() if child is not None} or None

    tree: dict[str, Any] = changed(asdict(config), default, "")
    return {name: tree[name] for name in sorted(tree, key=lambda name: (name not in _FIRST, _order(name)))}


def _order(name: str) -> int:
    return _FIRST.index(name) if name in _FIRST else 0
