"""A fine-tuned model on disk: an exported encoder like any other, and the head beside it.

    FOLDER/encoder.safetensors, encoder.json    what `kinemae.pretrain.encoder_file` writes
    FOLDER/head.safetensors                     the head's weights
    FOLDER/head.json                            format, config of head, pruning and merging, the classes;
                                                written last

Since the encoder keeps its own two files, the folder also serves as `encoder` of a further fine-tuning.
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
from kinemae.data_tools.files import write_whole
from kinemae.finetune.classifier import Classifier
from kinemae.finetune.heads.base import Head, build_head
from kinemae.finetune.token_reduction import TokenReduction
from kinemae.pretrain.encoder_file import EncoderDescription, load_encoder, save_encoder
from kinemae.pretrain.serialization import check_format, read_record, save_weights

FORMAT = 2
READABLE = range(2, FORMAT + 1)
WEIGHTS = "head.safetensors"
DESCRIPTION = "head.json"


@dataclass(frozen=True, kw_only=True)
class FinetunedModel:
    """A model that can score clips: the classifier, the clips it wants, and the names of its classes."""

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
    """Write encoder, head and classes in float32. `head.json` comes last and says that all is there."""
    (folder / DESCRIPTION).unlink(missing_ok=True)
    save_encoder(folder, classifier.encoder, description)
    save_weights(classifier.head, folder / WEIGHTS)
    content = {
        "format": FORMAT,
        "head": asdict(head),
        "token_reduction": asdict(token_reduction or TokenReduction()),
        "classes": list(classes),
    }
    write_whole(folder / DESCRIPTION, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def load_model(folder: Path, *, token_reduction: TokenReduction | None = None) -> FinetunedModel:
    """Rebuild a fine-tuned model for scoring.

    Args:
        token_reduction: another than it was trained with; None: the same.

    Raises:
        CheckpointError: a file is missing, damaged, of another format, or does not fit the others.
        ValueError: the given pruning or merging is not one that this encoder can do.
    """
    content = _read_description(folder / DESCRIPTION)
    encoder, description = load_encoder(folder)
    try:
        classes = tuple(map(str, content["classes"]))
        head = build_head(
            read_record(Component, content["head"], "head"),
            width=description.shape.width,
            classes=len(classes),
        )
        own = read_record(TokenReduction, content.get("token_reduction", {}), "token_reduction")
        own.build(description.shape, may_learn=False)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / DESCRIPTION} describes no head and pruning that can be built: {error}"
        ) from error
    _load_weights(head, folder / WEIGHTS)
    token_reduction = token_reduction or own
    pruning = token_reduction.build(description.shape, may_learn=False)
    classifier = Classifier(
        token_reduction.apply(encoder, pruning),
        head,
        pruning=pruning,
        freeze=True,
        mean=description.mean,
        std=description.std,
    )
    return FinetunedModel(
        classifier=classifier.eval(),
        description=replace(description, shape=classifier.encoder.shape),
        classes=classes,
    )


def _read_description(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no fine-tuned model in {path.parent} (it lacks {path.name}): let `finetune train` end first"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; repeat `kinemae finetune train`") from error
    check_format(content, READABLE, path)
    return content


def _load_weights(head: Head, path: Path) -> None:
    try:
        head.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; repeat `kinemae finetune train`") from error
    except RuntimeError as error:  # PyTorch's list of missing, unexpected and mis-shaped tensors
        raise CheckpointError(f"{path} does not fit {DESCRIPTION}: {' '.join(str(error).split())}") from error
