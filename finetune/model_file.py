"""Save and load a fine-tuned model: an exported encoder with a head.

    FOLDER/encoder.safetensors, encoder.json    as `kinemae.pretrain.exported_model` writes them
    FOLDER/head.safetensors                     the head's weights
    FOLDER/head.json                            format, config and state of the task, config of head, pruning
                                                and merging, chunks per clip; written last
    FOLDER/adapter/                             the adapter in peft's format, with `adapt.save_adapter`

The folder can also be the `encoder` of another fine-tuning.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from kinemae.data_tools.command import CheckpointError
from kinemae.data_tools.components import Component
from kinemae.data_tools.files import atomic_write_text
from kinemae.finetune.adapt.lora import merged_encoder, save_adapter
from kinemae.finetune.heads.base import Head, build_head
from kinemae.finetune.task_model import TaskModel
from kinemae.finetune.tasks.base import Task, build_task
from kinemae.finetune.tasks.classification import Classification
from kinemae.finetune.token_reduction import TokenReduction
from kinemae.pretrain.exported_model import (
    EncoderDescription,
    load_description,
    load_encoder,
    save_encoder,
    with_clip,
)
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.serialization import check_format, read_record, save_weights

FORMAT = 3
WEIGHTS = "head.safetensors"
DESCRIPTION = "head.json"
_RETRAIN = "fix: repeat `kinemae finetune train`"


@dataclass(frozen=True, kw_only=True)
class FinetunedModel:
    """A model with the description of its clips and the config of its task."""

    model: TaskModel
    description: EncoderDescription
    task: Component = field(default_factory=lambda: Component(name="classification"))

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names of a classification; empty for other tasks."""
        task = self.model.task
        return task.classes if isinstance(task, Classification) else ()


def save_model(
    folder: Path,
    finetuned: FinetunedModel,
    *,
    head: Component,
    save_peft: bool = False,
    token_reduction: TokenReduction | None = None,
) -> None:
    """Write encoder, head and task in float32. `head.json` marks the model as complete.

    Adapters are merged into the encoder's weights.

    Args:
        save_peft: also write the adapter in peft's format.
    """
    (folder / DESCRIPTION).unlink(missing_ok=True)
    save_encoder(folder, merged_encoder(finetuned.model.encoder), finetuned.description)
    if save_peft:
        save_adapter(finetuned.model.encoder, folder / "adapter")
    save_weights(finetuned.model.head, folder / WEIGHTS)
    content = {
        "format": FORMAT,
        "task": {**asdict(finetuned.task), "state": finetuned.model.task.state()},
        "head": asdict(head),
        "chunks": finetuned.model.chunks,
        "token_reduction": asdict(token_reduction or TokenReduction()),
    }
    atomic_write_text(folder / DESCRIPTION, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def load_model(
    folder: Path,
    *,
    token_reduction: TokenReduction | None = None,
    frames: int | None = None,
    size: int | None = None,
) -> FinetunedModel:
    """Load a fine-tuned model in evaluation mode.

    Args:
        token_reduction: replaces the one of the training; None keeps it.
        frames, size: of other clips, to which positions are resampled; None for those of the model. With
            several chunks per clip, `frames` is that of all chunks.

    Raises:
        CheckpointError: a file is missing, damaged, of another format, or does not match the others.
        ValueError: the encoder does not support the given token reduction or clips.
    """
    content = _read_description(folder / DESCRIPTION)
    encoder, description = _load_encoder(folder, content, frames, size)
    task_component, task, head, trained = _read_parts(folder, content, description)
    token_reduction = token_reduction or trained
    pruning = token_reduction.build_pruning(description.shape, may_learn=False)
    model = TaskModel(
        token_reduction.apply(encoder, pruning),
        head,
        task,
        pruning=pruning,
        freeze=True,
        chunks=_chunks(content),
        mean=description.mean,
        std=description.std,
    )
    description = replace(description, shape=model.encoder.shape)
    return FinetunedModel(model=model.eval(), description=description, task=task_component)


def _read_parts(
    folder: Path, content: dict[str, Any], description: EncoderDescription
) -> tuple[Component, Task, Head, TokenReduction]:
    """Build the config of the task, the task, the head with its weights, and the token reduction."""
    try:
        task_component, task = _read_task(content["task"])
        component = read_record(Component, content["head"], "head")
        head = build_head(
            component,
            width=description.shape.width,
            outputs=task.outputs,
            output=task.output,
            groups=task.output_groups,
        )
        _chunks(content)
        trained = _read_reduction(content)
        trained.build_pruning(description.shape, may_learn=False)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / DESCRIPTION}: expected a valid task, head and token reduction, got an error: {error}"
        ) from error
    _load_weights(head, folder / WEIGHTS)
    return task_component, task, head, trained


def _load_encoder(
    folder: Path, content: dict[str, Any], frames: int | None, size: int | None
) -> tuple[Encoder, EncoderDescription]:
    """Load the encoder for clips of another size; `frames` are those of all chunks."""
    chunks = 1 if frames is None else _chunks(content)
    if frames is not None and frames % chunks:
        raise ValueError(f"frames: expected a multiple of the model's {chunks} chunks per clip, got {frames}")
    chunk_frames = None if frames is None else frames // chunks
    description = with_clip(load_description(folder), frames=chunk_frames, size=size)
    encoder, _ = load_encoder(folder, grid=description.grid)
    return encoder, description


def _chunks(content: dict[str, Any]) -> int:
    return int(content.get("chunks", 1))


def _read_reduction(content: dict[str, Any]) -> TokenReduction:
    return read_record(TokenReduction, content.get("token_reduction", {}), "token_reduction")


def load_settings(folder: Path) -> tuple[int, TokenReduction]:
    """Load the number of chunks per clip and the token reduction of a fine-tuned model, without the weights.

    Raises:
        CheckpointError: `head.json` is missing, damaged or of another format.
    """
    content = _read_description(folder / DESCRIPTION)
    try:
        return _chunks(content), _read_reduction(content)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / DESCRIPTION}: expected valid chunks and token reduction, got an error: {error}"
        ) from error


def load_task(folder: Path) -> Task:
    """Load the task of a fine-tuned model with its state, without the weights.

    Raises:
        CheckpointError: `head.json` is missing, damaged or of another format.
    """
    try:
        return _read_task(_read_description(folder / DESCRIPTION)["task"])[1]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / DESCRIPTION}: expected a valid task, got an error: {error}"
        ) from error


def _read_task(content: dict[str, Any]) -> tuple[Component, Task]:
    settings = {name: value for name, value in content.items() if name != "state"}
    component = read_record(Component, settings, "task")
    task = build_task(component)
    task.load_state(content["state"])
    return component, task


def _read_description(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent}: expected a fine-tuned model, got a folder without {path.name}; "
            "fix: finish its `kinemae finetune train`"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: expected JSON, got an error: {error}; {_RETRAIN}") from error
    check_format(content, range(FORMAT, FORMAT + 1), path)
    return content


def _load_weights(head: Head, path: Path) -> None:
    try:
        head.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: expected safetensors, got an error: {error}; {_RETRAIN}") from error
    except RuntimeError as error:  # PyTorch lists missing, unexpected and mis-shaped tensors
        message = " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: expected the weights of {DESCRIPTION}, got others: {message}"
        ) from error
