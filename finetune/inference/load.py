"""Load models for inference from runs, exported folders, files of other systems and the Hugging Face hub."""

from pathlib import Path
from typing import Any

import torch

from kinemae.data_tools.command import CheckpointError
from kinemae.data_tools.config import load_config
from kinemae.data_tools.overrides import first_line
from kinemae.finetune.config import FinetuneConfig
from kinemae.finetune.conversion.command import convert
from kinemae.finetune.conversion.model_bundle import ModelBundle
from kinemae.finetune.conversion.options import ImportOptions
from kinemae.finetune.conversion.read_weights import load_checkpoint
from kinemae.finetune.inference.hub import download, is_hub_id
from kinemae.finetune.inference.video_model import VideoModel
from kinemae.finetune.model_file import DESCRIPTION as HEAD_DESCRIPTION
from kinemae.finetune.model_file import FinetunedModel, load_model
from kinemae.finetune.validation.scored_model import load_scored_model
from kinemae.pretrain.checkpoint_encoder import (
    describe_checkpoint_encoder,
    is_checkpoint,
    load_checkpoint_encoder,
)
from kinemae.pretrain.exported_model import DESCRIPTION, load_description, load_encoder, with_clip
from kinemae.pretrain.folder_kinds import EXTERNAL, FINETUNING, exported_in, kind_of_folder, kind_of_run


def load(
    path_or_hub_id: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    frames: int | None = None,
    size: int | None = None,
    revision: str | None = None,
) -> VideoModel:
    """Load a model in evaluation mode.

    Args:
        path_or_hub_id: a run; a folder of an encoder or a fine-tuned model, such as RUN/encoder, RUN/model or
            RUN/best; a checkpoint such as RUN/checkpoints/step-00001000; a file or folder of another system
            that `kinemae finetune import` reads; or "owner/name" on the Hugging Face hub. Of a fine-tuning
            run, the model is the one that its scores are of.
        device: device of the weights.
        dtype: type of the weights and the features.
        frames, size: of the clips; positions are resampled. None: those of the model.
        revision: branch, tag or commit on the hub.

    Raises:
        CheckpointError: no model, or one that cannot be read.
        ValueError: clips that are not a whole number of patches; no such device or type of weights.
    """
    _check_placement(device, dtype)
    given = str(path_or_hub_id)
    path = Path(path_or_hub_id).expanduser()
    if not path.exists() and isinstance(path_or_hub_id, str) and is_hub_id(given):
        path = download(given, revision=revision)
    elif revision is not None:
        raise ValueError(f"revision: expected none for the path {path}, got {revision!r}; fix: remove it")
    model = _load(path, given, {"frames": frames, "size": size})
    return model.to(device=device, dtype=dtype)


def _check_placement(device: str | torch.device, dtype: torch.dtype) -> None:
    """Check device and type before weights are read."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype: expected a floating-point type, got {dtype!r}; fix: dtype=torch.bfloat16")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device: expected a device of this machine, got {str(device)!r} ({first_line(error)}); fix: "
            'device="cpu"'
        ) from error


def _load(path: Path, source: str, clip: dict[str, Any]) -> VideoModel:
    """Load a model in float32 on the CPU."""
    if kind_of_run(path) == FINETUNING:
        config = load_config(FinetuneConfig, path / "config.yaml", [])
        return _finetuned(load_scored_model(config, path, **clip)[0], source)
    if is_checkpoint(path):
        description = with_clip(describe_checkpoint_encoder(path), **clip)
        encoder, _ = load_checkpoint_encoder(path, grid=description.grid)
        return VideoModel(encoder, description, source=source)
    folder = path if (path / DESCRIPTION).is_file() else exported_in(path) or path
    if (folder / HEAD_DESCRIPTION).is_file():
        return _finetuned(load_model(folder, **clip), source)
    if not (folder / DESCRIPTION).is_file() and (path.is_file() or kind_of_folder(path) == EXTERNAL):
        return _of_other_system(path, source, clip)
    if not path.exists():
        raise CheckpointError(
            f"{source}: expected the folder of a run or a model, a file of weights, or OWNER/NAME on the "
            "Hugging Face hub, got no such path; fix: correct it"
        )
    description = with_clip(load_description(folder), **clip)
    encoder, _ = load_encoder(folder, grid=description.grid)
    return VideoModel(encoder, description, source=source)


def _finetuned(finetuned: FinetunedModel, source: str) -> VideoModel:
    model = finetuned.model
    return VideoModel(model.encoder, finetuned.description, task_model=model, source=source)


def _of_other_system(path: Path, source: str, clip: dict[str, Any]) -> VideoModel:
    """Convert a checkpoint of another system, as `kinemae finetune import` does."""
    return from_bundle(convert(load_checkpoint(path), ImportOptions(**clip)), source=source)


def from_bundle(bundle: ModelBundle, *, source: str) -> VideoModel:
    """Return the encoder of a bundle with its head; the decoder is left out."""
    return VideoModel(bundle.encoder, bundle.description, task_model=bundle.task_model, source=source)
