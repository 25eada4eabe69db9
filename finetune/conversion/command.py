"""`kinemae finetune export` and `import`: our folders to other systems' files, and back."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from kinemae.data_tools.command import CheckpointError, DataError, log, writing_to
from kinemae.data_tools.config import load_config
from kinemae.finetune.conversion.huggingface import (
    huggingface_tensors,
    is_huggingface,
    read_huggingface,
    write_huggingface,
)
from kinemae.finetune.conversion.key_rules import Tensors
from kinemae.finetune.conversion.mae_st import is_mae_st, read_mae_st
from kinemae.finetune.conversion.model_bundle import Kin, load_kin, save_kin
from kinemae.finetune.conversion.options import ImportOptions
from kinemae.finetune.conversion.read_weights import Found, read_weights
from kinemae.finetune.conversion.videomae import is_official, read_official, write_official
from kinemae.pretrain.exported_model import DESCRIPTION
from kinemae.pretrain.folder_kinds import exported_in, kind_of_folder

SYSTEMS = ("videomae", "huggingface")
"""What can be written."""

# MAE-ST first: some of its names are VideoMAE's too.
_READERS = (
    (is_mae_st, read_mae_st),
    (is_huggingface, read_huggingface),
    (is_official, read_official),
)


def run_export(arguments: argparse.Namespace) -> None:
    """`kinemae finetune export FOLDER OUT --to videomae|huggingface`."""
    folder, out = Path(arguments.folder), Path(arguments.out)
    if arguments.overrides:
        given = arguments.overrides[0]
        fix = f"; fix: write --to {given.removeprefix('to=')}" if given.startswith("to=") else ""
        raise ValueError(f"export takes no key=value, got {given}{fix}")
    if arguments.to not in SYSTEMS:
        given = "nothing" if arguments.to is None else repr(arguments.to)
        raise ValueError(
            f"expected --to {' or --to '.join(SYSTEMS)}, got {given}; fix: add --to {SYSTEMS[0]}"
        )
    _refuse_existing(out)
    folder = _model_of(folder)
    kin = load_kin(folder)
    is_official_file = arguments.to == "videomae"
    tensors = (write_official if is_official_file else huggingface_tensors)(kin, source=folder)
    if not arguments.dry_run:
        with writing_to(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            if is_official_file:
                _save_official(tensors, out)
            else:
                write_huggingface(out, kin, tensors)
    _report({"from": str(folder), "to": arguments.to, "tensors": len(tensors)}, kin, out, arguments)


def run_import(arguments: argparse.Namespace) -> None:
    """`kinemae finetune import FILE_OR_FOLDER OUT [key=value]`."""
    path, out = Path(arguments.path), Path(arguments.out)
    options = load_config(ImportOptions, None, arguments.overrides)
    _refuse_existing(out)
    found = read_weights(path)
    kin = read_any(found, options, allow_partial=arguments.allow_partial)
    if not arguments.dry_run:
        with writing_to(out):
            save_kin(out, kin)
    layout = kin.description.trained_by["layout"]
    _report({"from": str(found.source), "layout": layout, "tensors": len(found.tensors)}, kin, out, arguments)


def read_any(found: Found, options: ImportOptions, *, allow_partial: bool = False) -> Kin:
    """Read a file of any system that is known; the names of its tensors say which.

    Raises:
        CheckpointError: none is, or the file is not whole.
        ValueError: the options do not fit it.
    """
    for is_its, read in _READERS:
        if is_its(found.tensors):
            return read(found, options, allow_partial=allow_partial)
    names = sorted(found.tensors)
    raise CheckpointError(
        f"{found.source} is of no system that is known here (VideoMAE, transformers' VideoMAE, MAE-ST): its "
        f"{len(names)} tensors are called {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
    )


def _model_of(folder: Path) -> Path:
    """Resolve the folder of a run to its exported model."""
    exported = exported_in(folder)
    if exported is None or (folder / DESCRIPTION).is_file():
        return folder
    log.info("%s is %s: %s is taken", folder, kind_of_folder(folder), exported)
    return exported


def _save_official(tensors: Tensors, out: Path) -> None:
    """A file as the official code saves it: the tensors under "model"."""
    partial = out.with_name(f"{out.name}.partial")
    torch.save({"model": tensors}, partial)
    partial.replace(out)


def _refuse_existing(out: Path) -> None:
    is_taken = any(out.iterdir()) if out.is_dir() else out.exists()
    if is_taken:
        raise DataError(f"{out} exists: name another place, or delete it first")


def _report(more: dict[str, Any], kin: Kin, out: Path, arguments: argparse.Namespace) -> None:
    description = kin.description
    facts = {
        **more,
        "out": str(out),
        "holds": kin.kind,
        "parameters": kin.parameters,
        "width": description.shape.width,
        "depth": description.shape.depth,
        "heads": description.shape.heads,
        "patch": list(description.shape.patch),
        "frames": description.frames,
        "stride": description.stride,
        "fps": description.fps,
        "sampling": description.sampling,
        "size": description.size,
        "mean": list(description.mean),
        "std": list(description.std),
        "classes": len(kin.classes),
    }
    if arguments.json:
        sys.stdout.write(json.dumps(facts, ensure_ascii=False) + "\n")
        return
    for key, value in facts.items():
        if value not in (None, 0):
            sys.stdout.write(f"{key:<12}{value}\n")
    log.info("%s %s", "would write" if arguments.dry_run else "wrote", out)
