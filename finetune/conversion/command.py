"""Commands `kinemae finetune import` and `export`: checkpoint conversion from and to other systems."""

import argparse
import json
import sys
from pathlib import Path

import torch

from kinemae.data_tools.command import CheckpointError, DataError, log, writing_to
from kinemae.data_tools.config import load_config
from kinemae.finetune.conversion.huggingface import (
    huggingface_tensors,
    is_huggingface,
    read_huggingface,
    write_huggingface,
)
from kinemae.finetune.conversion.image_vit import is_image_vit, read_image_vit
from kinemae.finetune.conversion.internvideo2 import is_internvideo2, read_internvideo2
from kinemae.finetune.conversion.mae_st import is_mae_st, read_mae_st
from kinemae.finetune.conversion.model_bundle import ModelBundle, load_bundle, save_bundle
from kinemae.finetune.conversion.options import ImportOptions
from kinemae.finetune.conversion.read_weights import LoadedCheckpoint, load_checkpoint
from kinemae.finetune.conversion.videomae import is_videomae, read_videomae, videomae_tensors
from kinemae.finetune.conversion.vjepa import (
    is_vjepa,
    is_vjepa_huggingface,
    read_vjepa,
    read_vjepa_huggingface,
)
from kinemae.pretrain.exported_model import DESCRIPTION
from kinemae.pretrain.folder_kinds import exported_in, kind_of_folder

EXPORT_FORMATS = ("videomae", "huggingface")

# The first that fits: InternVideo2 has some of MAE-ST's tensor names, and other systems some of VideoMAE's.
_READERS = (
    (is_image_vit, read_image_vit),
    (is_internvideo2, read_internvideo2),
    (is_mae_st, read_mae_st),
    (is_vjepa_huggingface, read_vjepa_huggingface),
    (is_vjepa, read_vjepa),
    (is_huggingface, read_huggingface),
    (is_videomae, read_videomae),
)
_SYSTEMS = "VideoMAE, UMT, MAE-ST, V-JEPA 2, InternVideo2, or an image ViT with timm's names"


def run_export(arguments: argparse.Namespace) -> None:
    """Run `kinemae finetune export FOLDER OUT --to videomae|huggingface`."""
    folder, out = Path(arguments.folder), Path(arguments.out)
    if arguments.overrides:
        given = arguments.overrides[0]
        fix = f"; fix: write --to {given.removeprefix('to=')}" if given.startswith("to=") else ""
        raise ValueError(f"export takes no key=value, got {given}{fix}")
    if arguments.to not in EXPORT_FORMATS:
        given = "nothing" if arguments.to is None else repr(arguments.to)
        expected = " or ".join(f"--to {name}" for name in EXPORT_FORMATS)
        raise ValueError(f"expected {expected}, got {given}; fix: add --to {EXPORT_FORMATS[0]}")
    _check_free(out)
    exported = exported_in(folder)
    if exported is not None and not (folder / DESCRIPTION).is_file():
        log.info("%s is %s: exporting %s", folder, kind_of_folder(folder), exported)
        folder = exported
    bundle = load_bundle(folder)
    is_file = arguments.to == "videomae"
    tensors = (videomae_tensors if is_file else huggingface_tensors)(bundle, source=folder)
    if not arguments.dry_run:
        with writing_to(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            if is_file:
                partial = out.with_name(f"{out.name}.partial")
                torch.save({"model": tensors}, partial)  # VideoMAE's code expects the tensors under "model"
                partial.replace(out)
            else:
                write_huggingface(out, bundle, tensors)
    report = {"from": str(folder), "to": arguments.to, "tensors": len(tensors)}
    _print_report(report, bundle, out, arguments)


def run_import(arguments: argparse.Namespace) -> None:
    """Run `kinemae finetune import FILE_OR_FOLDER OUT [key=value]`."""
    out = Path(arguments.out)
    options = load_config(ImportOptions, None, arguments.overrides)
    _check_free(out)
    loaded = load_checkpoint(Path(arguments.path), key=options.key)
    bundle = convert(loaded, options, allow_partial=arguments.allow_partial)
    if not arguments.dry_run:
        with writing_to(out):
            save_bundle(out, bundle)
    name = bundle.description.trained_by["format"]
    report = {"from": str(loaded.source), "format": name, "tensors": len(loaded.tensors)}
    _print_report(report, bundle, out, arguments)


def convert(loaded: LoadedCheckpoint, options: ImportOptions, *, allow_partial: bool = False) -> ModelBundle:
    """Convert a checkpoint of any known system, which is detected by its tensor names.

    Raises:
        CheckpointError: unknown system, or incomplete checkpoint.
        ValueError: the options do not fit it.
    """
    for is_format, read in _READERS:
        if is_format(loaded.tensors):
            if options.patch_frames is not None and read is not read_image_vit:
                raise ValueError(
                    f"patch_frames: expected null, since {loaded.source} is no image model, got "
                    f"{options.patch_frames}; fix: remove it"
                )
            return read(loaded, options, allow_partial=allow_partial)
    names = sorted(loaded.tensors)
    raise CheckpointError(
        f"{loaded.source}: expected a checkpoint of {_SYSTEMS}, got {len(names)} "
        f"other tensors ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
    )


def _check_free(out: Path) -> None:
    if any(out.iterdir()) if out.is_dir() else out.exists():
        raise DataError(f"{out}: expected a new path, got an existing one; fix: choose another, or delete it")


def _print_report(
    report: dict[str, object], bundle: ModelBundle, out: Path, arguments: argparse.Namespace
) -> None:
    description = bundle.description
    report |= {
        "out": str(out),
        "contents": bundle.contents,
        "parameters": bundle.parameters,
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
        "classes": len(bundle.classes),
    }
    if arguments.json:
        sys.stdout.write(json.dumps(report, ensure_ascii=False) + "\n")
        return
    for key, value in report.items():
        if value not in (None, 0):
            sys.stdout.write(f"{key:<12}{value}\n")
    log.info("%s %s", "would write" if arguments.dry_run else "wrote", out)
