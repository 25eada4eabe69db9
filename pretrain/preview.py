"""`kinemae pretrain preview CONFIG [a.b=c]`: draw the model's input, and count tokens, parameters and FLOPs.

    OUT/preview.gif    a row for each clip, the columns side by side
    OUT/preview.png    the first, middle and last frame of each clip

Columns, if they apply:

    clip             the input clip
    with noise       the whole clip with noise
    encoder input    the visible patches with noise
    pruned           red: visible by the mask, but pruned; blue: hidden, and not predicted because pruned
    to predict       unchanged: target tokens; violet: hidden tokens that are not predicted; grey: visible

The preview does not train, start a process group or read weights.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from kinemae.data_tools.command import log, writing_to
from kinemae.data_tools.config import load_config, require
from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.storage.location import local_out
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.data_tools.text_table import with_unit
from kinemae.pretrain.clip_grid import (
    FPS,
    HIDDEN,
    NOT_PREDICTED,
    PRUNED,
    PRUNED_HIDDEN,
    Colour,
    Column,
    draw_frames,
    draw_grid,
    gray_out,
    replace_tokens,
    tint,
    token_mask,
)
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.cost import parameter_counts
from kinemae.pretrain.model.flops import count_flops
from kinemae.pretrain.model.tokens import denormalize, patchify, to_bytes, unpatchify
from kinemae.pretrain.pruning.none import NoPruning
from kinemae.pretrain.runtime.metrics import gif_bytes
from kinemae.pretrain.runtime.run_folder import PREVIEW_FOLDER
from kinemae.pretrain.token_selection import TokenSelection, kept_count
from kinemae.pretrain.training import Plan, clips_of_pictures, make_plan, training_clips

_MODULES = ("encoder", "decoder", "target")


def run_preview(arguments: argparse.Namespace) -> None:
    """Run the command."""
    config = load_config(PretrainConfig, arguments.config, arguments.overrides)
    plan = make_plan(config, is_run=False)
    step = _step(arguments.step, config.steps)
    folder = local_out(arguments.out or str(Path(config.run_dir) / PREVIEW_FOLDER))
    batch = read_clips(plan, step)
    columns = preview_columns(plan, batch)
    frames = config.clip.frames
    files = {kind: folder / f"preview.{kind}" for kind in ("png", "gif")}
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_frames(columns, sorted({0, frames // 2, frames - 1}))).save(files["png"])
        files["gif"].write_bytes(gif_bytes(draw_grid(columns), fps=FPS))
    counts = {**count(plan, step), "files": [str(path) for path in files.values()]}
    sys.stdout.write((json.dumps(counts) if arguments.json else as_text(counts)) + "\n")


def read_clips(plan: Plan, step: int) -> ClipBatch:
    """Read `pictures.clips` clips of a step, of different videos, each with the lists of `PreviewMasks`."""
    config = plan.config
    clips = clips_of_pictures(config, step * config.batch.global_clips)
    batch = training_clips(plan, PreviewMasks(split=plan.split)).batch(clips)
    for clip in batch.skipped:
        log.warning("%s cannot be read and is drawn black: %s", clip.key, clip.reason)
    return batch


@dataclass(frozen=True, kw_only=True)
class PreviewMasks:
    """Annotate clips with the token lists of their first mask, and those before pruning and subsampling.

    "unpruned" and "hidden" are the visible and the hidden tokens without pruning. "predictable" are the
    hidden tokens that pruning keeps; the target tokens are a subset of them.
    """

    split: TokenSelection

    def __call__(self, luma_THW: Tensor | None, clip_index: int) -> dict[str, Tensor]:
        """See `kinemae.data_tools.stream.training_clips.Annotate`."""
        first = replace(self.split, masks=1)
        unpruned = replace(first, pruning=NoPruning(), predict_ratio=1.0)(luma_THW, clip_index)
        all_predicted = replace(first, predict_ratio=1.0)
        return {
            **first(luma_THW, clip_index),
            "unpruned": unpruned["visible"],
            "hidden": unpruned["target"],
            "predictable": all_predicted(luma_THW, clip_index)["target"],
        }


def preview_columns(plan: Plan, batch: ClipBatch) -> list[Column]:
    """The columns listed at the top of this file."""
    model, grid = plan.model, plan.split.grid
    patch = model.encoder.shape.patch
    batch = model.standardized(batch.to(torch.device("cpu")))
    draws = ClipRandom(plan.config.seed, batch.clip_index_B)
    is_visible_BN, is_target_BN, is_unpruned_BN, is_hidden_BN, is_predictable_BN = (
        token_mask(batch.tokens[name], grid.tokens)
        for name in ("visible", "target", "unpruned", "hidden", "predictable")
    )
    clean_BNP = patchify(batch.clip_BCTHW, patch)
    every_BN = torch.arange(grid.tokens).expand(len(clean_BNP), -1)
    whole = replace(batch, tokens={"visible": every_BN})
    noisy_BNP, seen_BKP = (
        to_bytes(denormalize(model.encoder_inputs(given, draws).patches_BKP, model.mean, model.std))
        for given in (whole, batch)
    )
    noisy_BNP = replace_tokens(
        noisy_BNP, batch.tokens["visible"], seen_BKP
    )  # visible patches have the noise of training
    input_BNP = replace_tokens(torch.full_like(clean_BNP, HIDDEN[0]), batch.tokens["visible"], seen_BKP)
    is_pruned_BN = is_unpruned_BN & ~is_visible_BN
    is_pruned_hidden_BN = is_hidden_BN & ~is_predictable_BN

    def column(title: str, patches_BNP: Tensor, *legend: tuple[str, Colour]) -> Column:
        return Column(title=title, clip_BCTHW=unpatchify(patches_BNP, grid, patch), legend=legend)

    columns = [column("clip", clean_BNP)]
    if not torch.equal(noisy_BNP, clean_BNP):
        columns.append(column("with noise", noisy_BNP))
    columns.append(column("encoder input", input_BNP, ("hidden", HIDDEN)))
    if is_pruned_BN.any() or is_pruned_hidden_BN.any():
        tinted_BNP = tint(tint(clean_BNP, is_pruned_BN, PRUNED), is_pruned_hidden_BN, PRUNED_HIDDEN)
        columns.append(column("pruned", tinted_BNP, ("visible", PRUNED), ("hidden", PRUNED_HIDDEN)))
    if model.decoder is not None:
        legend = (("visible", HIDDEN), ("not predicted", NOT_PREDICTED))
        shown_BNP = tint(clean_BNP, ~is_visible_BN & ~is_target_BN, NOT_PREDICTED)
        columns.append(column("to predict", gray_out(shown_BNP, is_visible_BN), *legend))
    return columns


def count(plan: Plan, step: int) -> dict[str, Any]:
    """Count tokens of a mask, parameters, and FLOPs of a clip with all its masks, for `--json`."""
    model, grid = plan.model, plan.split.grid
    first = step * plan.config.batch.global_clips
    clip = range(first, first + 1)
    batch = training_clips(plan, PreviewMasks(split=plan.split)).batch(clip)
    sizes = {name: index_BK.shape[1] for name, index_BK in batch.tokens.items()}
    flops = count_flops(model, training_clips(plan, plan.split).batch(clip))
    parameters = parameter_counts(model)
    return {
        "step": step,
        "tokens": {
            "grid": grid.tokens,
            "slices": grid.t,
            "rows": grid.h,
            "columns": grid.w,
            "masks": plan.split.masks,
            "visible": sizes["visible"],
            "encoded": kept_count(sizes["visible"], 1.0 if model.keep is None else model.keep),
            "predicted": sizes["target"] if model.decoder is not None else 0,
            "pruned_visible": sizes["unpruned"] - sizes["visible"],
            "pruned_hidden": sizes["hidden"] - sizes["predictable"],
        },
        "parameters": {name: parameters[name] for name in (*_MODULES, "all")},
        "flops": {**asdict(flops), "training": flops.training},
    }


def as_text(counts: dict[str, Any]) -> str:
    """Format the counts as a table, without zero lines."""
    tokens, parameters, flops = counts["tokens"], counts["parameters"], counts["flops"]
    grid = f"{tokens['slices']} slices of {tokens['rows']} x {tokens['columns']}"
    if tokens["masks"] > 1:
        grid = f"{grid}, {tokens['masks']} masks of each:"
    lines = [
        f"tokens of a clip     {tokens['grid']:8d}    {grid}",
        *(
            f"  {name.replace('_', ' '):18s} {tokens[name]:8d}    {tokens[name] / tokens['grid']:.1%}"
            for name in ("visible", "encoded", "pruned_visible", "predicted", "pruned_hidden")
            if tokens[name] and not (name == "encoded" and tokens["encoded"] == tokens["visible"])
        ),
        f"parameters           {_short(parameters['all'])}",
        *(f"  {name:18s} {_short(parameters[name])}" for name in _MODULES if parameters[name]),
        "FLOPs of a clip",
        *(f"  {name:18s} {_short(flops[name])}  forward" for name in _MODULES if flops[name]),
        f"  {'training':18s} {_short(flops['training'])}  forward and backward",
        *counts["files"],
    ]
    return "\n".join(lines)


def _step(given: str | None, steps: int) -> int:
    step = 0 if given is None else int(given) if given.isdecimal() else -1
    require(0 <= step < steps, "--step", f"be a step of the run, 0 to {steps - 1}", given)
    return step


def _short(count: float) -> str:
    """Format a large number in ten characters, as in `   86.23 M`."""
    value, unit = with_unit(count)
    return f"{value:8.2f} {unit or ' '}"
