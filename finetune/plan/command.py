"""`kinemae finetune plan TRAIN`: propose a fine-tuning for a labelled data set."""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence

from kinemae.data_tools.config import load_config
from kinemae.data_tools.overrides import as_yaml_override
from kinemae.finetune.config import FinetuneConfig
from kinemae.finetune.plan.plan import Plan, make_plan
from kinemae.finetune.plan.rules import FEW
from kinemae.pretrain.advise.rule_table import advice_lines

RECIPES = {True: "own_clips_laptop", False: "own_clips_gpu"}
_WRAP = 76


def run_plan(arguments: argparse.Namespace) -> None:
    """Print the plan as text or JSON, with a command that follows it."""
    required = ["run_dir=runs/planned", "epochs=1"]
    overrides = [as_yaml_override("data.train", arguments.train), *arguments.overrides]
    config = load_config(FinetuneConfig, None, [*required, *overrides])
    plan = make_plan(config, overrides)
    command = command_line(plan, overrides)
    if arguments.json:
        sys.stdout.write(json.dumps({**plan.summary(), "command": command}, ensure_ascii=False) + "\n")
        return
    sys.stdout.write(text_of(plan, arguments.train, command))


def command_line(plan: Plan, overrides: Sequence[str]) -> str:
    """A command that follows the plan, with the user's own overrides."""
    recipe = RECIPES[plan.facts.labelled < FEW]
    given = [*overrides]
    for key, default in (("data.validation", "null"), ("run_dir", "runs/planned")):
        if not any(override.startswith(f"{key}=") for override in given):
            given.append(f"{key}={default}")  # the recipe has another one
    return shlex.join(["kinemae", "finetune", "train", recipe, *given, *plan.overrides()])


def text_of(plan: Plan, folder: str, command: str) -> str:
    """The plan for a reader: facts, settings with reasons, notes, command."""
    lines = [*_facts(plan, folder), "", *advice_lines(plan.advice, plan.fixed)]
    lines += ["", "expect", *(f"  - {note}" for note in plan.notes)]
    lines += ["", "The settings are advice from the named sources, not a guarantee. To follow them:", ""]
    lines += ["  " + line for line in _wrapped(command)]
    return "\n".join(lines) + "\n"


def _facts(plan: Plan, folder: str) -> list[str]:
    facts, description = plan.facts, plan.facts.description
    rows = [("videos", f"{facts.videos:,} in {folder}, {facts.groups or 'no'} groups")]
    if facts.classes is not None:
        classes = facts.classes
        rows.append(
            (
                "classes",
                f"{len(classes.names)}, with {min(classes.videos)} to {max(classes.videos)} videos, median "
                f"{classes.median:g}; {classes.unlabelled} videos without a label",
            )
        )
    span = f"spans {facts.clip_frames:g} frames" if facts.clip_frames else "covers the whole video"
    motion = "unknown, no video could be decoded" if facts.motion is None else f"{facts.motion:g} grey levels"
    rows += [
        ("length", f"median {facts.frames:g} frames, {facts.seconds:.2g} s, {facts.fps:.3g} frames/s"),
        ("clip", f"{description.frames} frames of {description.size}x{description.size}; it {span}"),
        ("motion", f"{motion} between frames; {100 * facts.static:.0f} % of the decoded videos are static"),
        ("encoder", "pretrained" if facts.has_weights else "random weights"),
        ("validation", "none" if facts.validation is None else f"{facts.validation:,} videos"),
    ]
    return [f"{name:11} {value}" for name, value in rows]


def _wrapped(command: str) -> list[str]:
    """A command of several lines with backslashes."""
    lines = [""]
    for word in shlex.split(command):
        quoted = shlex.quote(word)
        if lines[-1] and len(lines[-1]) + len(quoted) > _WRAP:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {quoted}" if lines[-1] else quoted
    return lines
