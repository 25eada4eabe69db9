"""Save and load a fine-tuned model: an exported encoder with a head.

    FOLDER/encoder.safetensors, encoder.json    as `kinemae.pretrain.exported_model` writes them
    FOLDER/head.safetensors                     the head's weights
    FOLDER/head.json                            format, config of head, pruning and merging, class names;
                                                written last

The folder can also be the `encoder` of another fine-tuning.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from kinemae.data_tools.command import CheckpointError
from kinemae.data_tools.components import Component
from kinemae.data_tools.files import atomic_write_text
from kinemae.finetune.classifier import Classifier
from kinemae.finetune.heads.base import Head, build_head
from kinemae.finetune.token_reduction import TokenReduction
from kinemae.pretrain.exported_model import EncoderDescription, load_encoder, save_encoder
from kinemae.pretrain.serialization import check_format, read_record, save_weights

FORMAT = 2
WEIGHTS = "head.safetensors"
DESCRIPTION = "head.json"
_RETRAIN = "fix: repeat `kinemae finetune train`"


@dataclass(frozen=True, kw_only=True)
class FinetunedModel:
    """A classifier with the description of its clips and the names of its classes."""

    classifier: Classifier
    description: EncoderDescription
    classes: tuple[str, ...]


def save_model(
    folder: Path,
    classifier: Classifier,
    *,
    description: EncoderDescription,
    head: Component,
    classes: Sequence[str],
    token_reduction: TokenReduction | None = None,
) -> None:
    """Write encoder, head and classes in float32. `head.json` marks the model as complete."""
    (folder / DESCRIPTION).unlink(missing_ok=True)
    save_encoder(folder, classifier.encoder, description)
    save_weights(classifier.head, folder / WEIGHTS)
    content = {
        "format": FORMAT,
        "head": asdict(head),
        "token_reduction": asdict(token_reduction or TokenReduction()),
        "classes": list(classes),
    }
    atomic_write_text(folder / DESCRIPTION, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def load_model(folder: Path, *, token_reduction: TokenReduction | None = None) -> FinetunedModel:
    """Load a fine-tuned model in evaluation mode.

    Args:
        token_reduction: replaces the one of the training; None keeps it.

    Raises:
        CheckpointError: a file is missing, damaged, of another format, or does not match the others.
        ValueError: the encoder does not support the given token reduction.
    """
    content = _read_description(folder / DESCRIPTION)
    encoder, description = load_encoder(folder)
    try:
        classes = tuple(map(str, content["classes"]))
        component = read_record(Component, content["head"], "head")
        head = build_head(component, width=description.shape.width, classes=len(classes))
        trained = read_record(TokenReduction, content.get("token_reduction", {}), "token_reduction")
        trained.build_pruning(description.shape, may_learn=False)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / DESCRIPTION}: expected a valid head and token reduction, got an error: {error}"
        ) from error
    _load_weights(head, folder / WEIGHTS)
    token_reduction = token_reduction or trained
    pruning = token_reduction.build_pruning(description.shape, may_learn=False)
    classifier = Classifier(
        token_reduction.apply(encoder, pruning),
        head,
        pruning=pruning,
        freeze=True,
        mean=description.mean,
        std=description.std,
    )
    description = replace(description, shape=classifier.encoder.shape)
    return FinetunedModel(classifier=classifier.eval(), description=description, classes=classes)


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
