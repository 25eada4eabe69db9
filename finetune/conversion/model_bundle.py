"""A model on its way between our folders and other systems' files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import nn

from kinemae.data_tools.command import CheckpointError, log
from kinemae.data_tools.components import Component
from kinemae.finetune.classifier import Classifier
from kinemae.finetune.conversion.key_rules import Sections, Tensors
from kinemae.finetune.heads.base import Head
from kinemae.finetune.heads.linear import LinearHead
from kinemae.finetune.model_file import DESCRIPTION as HEAD_DESCRIPTION
from kinemae.finetune.model_file import load_model, save_model
from kinemae.pretrain.exported_model import (
    DecoderDescription,
    EncoderDescription,
    build_decoder,
    build_encoder,
    has_decoder,
    load_decoder,
    load_encoder,
    save_decoder,
    save_encoder,
)
from kinemae.pretrain.model.decoder import Decoder
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.pruning.none import NoPruning

Module = TypeVar("Module", bound=nn.Module)

HEAD = Component(name="linear")
"""The head of official fine-tuned models: mean, norm, linear layer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Kin:
    """An encoder, and what stands beside it: a decoder, or a head with its classes, or neither."""

    description: EncoderDescription
    encoder: Encoder
    decoder_description: DecoderDescription | None = None
    decoder: Decoder | None = None
    head: Head | None = None
    classes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """What the folder holds, for people."""
        beside = "a head" if self.head else "a decoder" if self.decoder else ""
        return f"an encoder and {beside}" if beside else "an encoder"

    @property
    def parameters(self) -> int:
        """How many numbers are learned, the decoder's and the head's too."""
        modules = [module for module in (self.encoder, self.decoder, self.head) if module is not None]
        return sum(parameter.numel() for module in modules for parameter in module.parameters())


def load_kin(folder: Path) -> Kin:
    """Read one of our folders: an exported encoder, with its decoder if there is one, or a fine-tuned model.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    if (folder / HEAD_DESCRIPTION).exists():
        model = load_model(folder)
        if model.classifier.encoder.merge_per_block or not isinstance(model.classifier.pruning, NoPruning):
            log.warning("%s prunes or merges tokens; other systems will see all of them", folder)
        return Kin(
            description=model.description,
            encoder=model.classifier.encoder,
            head=model.classifier.head,
            classes=model.classes,
        )
    encoder, description = load_encoder(folder)
    decoder, decoder_description = load_decoder(folder) if has_decoder(folder) else (None, None)
    return Kin(
        description=description,
        encoder=encoder,
        decoder=decoder,
        decoder_description=decoder_description,
    )


def save_kin(folder: Path, kin: Kin) -> None:
    """Write a model as one of our folders, in float32."""
    if kin.head is not None:
        classifier = Classifier(kin.encoder, kin.head)
        save_model(folder, classifier, description=kin.description, head=HEAD, classes=kin.classes)
        return
    save_encoder(folder, kin.encoder, kin.description)
    if kin.decoder is not None and kin.decoder_description is not None:
        save_decoder(folder, kin.decoder, kin.decoder_description)


def build_kin(
    sections: Sections,
    description: EncoderDescription,
    decoder_description: DecoderDescription | None,
    classes: tuple[str, ...],
    *,
    source: object,
) -> Kin:
    """Put tensors that were read into the modules that are described.

    Args:
        classes: the head's, where the file has a head.

    Raises:
        CheckpointError: a tensor has another shape than the description says.
    """
    has_decoder_tensors = bool(sections.decoder) and decoder_description is not None
    width = description.shape.width
    return Kin(
        description=description,
        encoder=_filled(lambda: build_encoder(description), sections.encoder, source),
        decoder_description=decoder_description if has_decoder_tensors else None,
        decoder=_filled(lambda: build_decoder(decoder_description), sections.decoder, source)
        if has_decoder_tensors and decoder_description
        else None,
        head=_filled(lambda: LinearHead(width=width, classes=len(classes)), sections.head, source)
        if sections.head
        else None,
        classes=classes if sections.head else (),
    )


def _filled(build: Callable[[], Module], tensors: Tensors, source: object) -> Module:
    """A module that holds these very tensors."""
    module = build()
    try:
        module.load_state_dict(tensors, assign=True)
    except RuntimeError as error:  # PyTorch's list of mis-shaped tensors
        raise CheckpointError(f"{source} does not fit together: {' '.join(str(error).split())}") from error
    return module
