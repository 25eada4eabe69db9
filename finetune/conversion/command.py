"""Command `kinemae finetune import`: conversion of checkpoints of other systems."""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kinemae.data_tools.command import CheckpointError, DataError, log, writing_to
from kinemae.data_tools.config import load_config
from kinemae.data_tools.storage.location import local_out
from kinemae.finetune.conversion.huggingface import is_huggingface, read_huggingface
from kinemae.finetune.conversion.image_vit import is_image_vit, read_image_vit
from kinemae.finetune.conversion.internvideo2 import is_internvideo2, read_internvideo2
from kinemae.finetune.conversion.mae_st import is_mae_st, read_mae_st
from kinemae.finetune.conversion.model_bundle import ModelBundle, save_bundle
from kinemae.finetune.conversion.options import ImportOptions
from kinemae.finetune.conversion.read_weights import LoadedCheckpoint, load_checkpoint
from kinemae.finetune.conversion.videomae import is_videomae, read_videomae
from kinemae.finetune.conversion.vjepa import (
    is_vjepa,
    is_vjepa_huggingface,
    read_vjepa,
    read_vjepa_huggingface,
)
from kinemae.pretrain.exported_model import EncoderDescription

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


def run_import(arguments: argparse.Namespace) -> None:
    """Run `kinemae finetune import FILE_OR_FOLDER OUT [key=value]`."""
    out = local_out(arguments.out)
    options = load_config(ImportOptions, None, arguments.overrides)
    check_free(out)
    loaded = load_checkpoint(Path(arguments.path), key=options.key)
    bundle = convert(loaded, options, allow_partial=arguments.allow_partial)
    if not arguments.dry_run:
        with new_path(out) as partial:
            save_bundle(partial, bundle)
    name = bundle.description.trained_by["format"]
    report = {"from": str(loaded.source), "format": name, "tensors": len(loaded.tensors)}
    report |= {"contents": bundle.contents, "parameters": bundle.parameters}
    print_report(report, bundle.description, out, arguments, classes=len(bundle.classes))


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


def check_free(out: Path) -> None:
    """Reject a path that exists, other than an empty folder."""
    if any(out.iterdir()) if out.is_dir() else out.exists():
        raise DataError(f"{out}: expected a new path, got an existing one; fix: choose another, or delete it")


@contextmanager
def new_path(out: Path) -> Iterator[Path]:
    """Yield a path beside `out`, which is renamed to `out` at the end. After an error nothing is left.

    A process that is killed leaves only the path beside, and a repeated command deletes it.

    Raises:
        DataError: it cannot be written.
    """
    out = out.absolute()
    partial = out.with_name(f"{out.name}.partial")
    with writing_to(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)
        try:
            yield partial
            if out.is_dir():
                out.rmdir()  # it is empty, and a file does not replace a folder
            partial.replace(out)
        finally:
            _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def print_report(
    report: dict[str, Any],
    description: EncoderDescription,
    out: Path,
    arguments: argparse.Namespace,
    *,
    classes: int,
) -> None:
    """Print what was converted, as text or JSON."""
    report |= {
        "out": str(out),
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
        "classes": classes,
    }
    if arguments.json:
        sys.stdout.write(json.dumps(report, ensure_ascii=False) + "\n")
        return
    for key, value in report.items():
        if value is not None and (type(value) is not int or value):
            sys.stdout.write(f"{key:<16}{value}\n")
    log.info("%s %s", "would write" if arguments.dry_run else "wrote", out)
