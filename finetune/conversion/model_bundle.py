"""A model between KineMAE's folders and other checkpoint formats: an encoder with a decoder or a head."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import nn

from kinemae.data_tools.command import CheckpointError, log
from kinemae.data_tools.components import Component
from kinemae.finetune.conversion.key_rules import CheckpointFormat, ModelTensors, Tensors, write_tensors
from kinemae.finetune.conversion.options import ImportOptions
from kinemae.finetune.heads.base import Head, build_head
from kinemae.finetune.heads.linear import LinearHead
from kinemae.finetune.model_file import DESCRIPTION as HEAD_DESCRIPTION
from kinemae.finetune.model_file import FinetunedModel, load_model, save_model
from kinemae.finetune.task_model import TaskModel
from kinemae.finetune.tasks.classification import Classification
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
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import MEAN, STD
from kinemae.pretrain.pruning.none import NoPruning

Module = TypeVar("Module", bound=nn.Module)

LINEAR = Component(name="linear")


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelBundle:
    """An encoder, optionally with a decoder, or with a head and its classes."""

    description: EncoderDescription
    encoder: Encoder
    decoder_description: DecoderDescription | None = None
    decoder: Decoder | None = None
    head: Head | None = None
    head_config: Component = LINEAR
    classes: tuple[str, ...] = ()

    @property
    def contents(self) -> str:
        """The modules in the bundle, as a phrase."""
        return "encoder and head" if self.head else "encoder and decoder" if self.decoder else "encoder"

    @property
    def parameters(self) -> int:
        """Number of parameters of all modules."""
        modules = [module for module in (self.encoder, self.decoder, self.head) if module is not None]
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    @property
    def task_model(self) -> TaskModel | None:
        """The classifier, whose encoder is frozen; None without a head."""
        if self.head is None:
            return None
        task = Classification()
        task.load_state({"classes": self.classes})
        mean, std = self.description.mean, self.description.std
        return TaskModel(self.encoder, self.head, task, freeze=True, mean=mean, std=std)


def load_bundle(folder: Path, *, has_head: bool = True) -> ModelBundle:
    """Load an exported encoder, with its decoder if it has one, or a fine-tuned model.

    Args:
        has_head: false loads the encoder of a fine-tuned model alone.

    Raises:
        CheckpointError: no model, or one that cannot be read.
    """
    if has_head and (folder / HEAD_DESCRIPTION).exists():
        finetuned = load_model(folder)
        model = finetuned.model
        if not isinstance(model.task, Classification):
            raise CheckpointError(
                f"{folder}: expected a classification model, since other formats store no other task, got "
                f"{finetuned.task.name}; fix: head=false exports the encoder alone"
            )
        if model.chunks != 1:
            raise CheckpointError(
                f"{folder}: expected clip.chunks=1, since other formats have one part per clip, got "
                f"{model.chunks}; fix: --to onnx, or head=false for the encoder alone"
            )
        if model.encoder.merge_per_block or not isinstance(model.pruning, NoPruning):
            log.warning("%s: pruning and merging of tokens are not exported", folder)
        return ModelBundle(
            description=finetuned.description,
            encoder=model.encoder,
            head=model.head,
            classes=finetuned.classes,
        )
    encoder, description = load_encoder(folder)
    decoder, decoder_description = load_decoder(folder) if has_decoder(folder) else (None, None)
    return ModelBundle(
        description=description, encoder=encoder, decoder=decoder, decoder_description=decoder_description
    )


def save_bundle(folder: Path, bundle: ModelBundle) -> None:
    """Save an exported encoder or a fine-tuned model in float32."""
    model = bundle.task_model
    if model is not None:
        finetuned = FinetunedModel(model=model, description=bundle.description)
        save_model(folder, finetuned, head=bundle.head_config)
        return
    save_encoder(folder, bundle.encoder, bundle.description)
    if bundle.decoder is not None and bundle.decoder_description is not None:
        save_decoder(folder, bundle.decoder, bundle.decoder_description)


def build_bundle(  # noqa: PLR0913 - all but the first three by name
    tensors: ModelTensors,
    description: EncoderDescription,
    options: ImportOptions,
    *,
    source: object,
    decoder_heads: int | None = None,
    head_config: Component = LINEAR,
    classes: tuple[str, ...] = (),
) -> ModelBundle:
    """Build the modules of converted tensors.

    Args:
        decoder_heads: attention heads of the decoder in the checkpoint's config.
        head_config: the head that fits the checkpoint's.
        classes: class names in the checkpoint's config.

    Raises:
        CheckpointError: a tensor's shape differs from the description.
        ValueError: the options do not fit the decoder or the head.
    """
    decoder = decoder_description = head = None
    names: tuple[str, ...] = ()
    if tensors.decoder:
        decoder_description = options.describe_decoder(tensors.decoder, description, heads=decoder_heads)
        decoder = _load(lambda: build_decoder(decoder_description), tensors.decoder, source)
    if tensors.head:
        names = options.class_names(len(tensors.head["linear.weight"]), known=classes)
        width = description.shape.width
        head = _load(lambda: build_head(head_config, width=width, outputs=len(names)), tensors.head, source)
    return ModelBundle(
        description=description,
        encoder=_load(lambda: build_encoder(description), tensors.encoder, source),
        decoder_description=decoder_description,
        decoder=decoder,
        head=head,
        head_config=head_config,
        classes=names,
    )


def export_tensors(layout: CheckpointFormat, bundle: ModelBundle) -> Tensors:
    """Convert all modules of a bundle to the tensors of another format."""
    pairs = ((bundle.encoder, layout.encoder), (bundle.decoder, layout.decoder), (bundle.head, layout.head))
    tensors: Tensors = {}
    for module, rules in pairs:
        if module is not None:
            tensors |= write_tensors(rules, module.state_dict())
    return tensors


def check_exportable(
    bundle: ModelBundle, system: str, *, source: object, supports_layer_scale: bool = False
) -> None:
    """Reject a model that VideoMAE's formats do not support.

    Args:
        system: name of the format, for messages.
        source: folder of the model, for messages.
        supports_layer_scale: whether the format can store `layer_scale`.

    Raises:
        CheckpointError: lists all unsupported settings.
    """
    shape, description = bundle.description.shape, bundle.description
    supported = {
        f"model.positions=flat_sine, got {shape.positions.name}": shape.positions.name == "flat_sine",
        **supported_encoder(shape, supports_layer_scale=supports_layer_scale),
        f"the grid of the pretraining, got one resampled from {description.reference}": (
            description.grid == description.reference
        ),
        **_supported_decoder(bundle),
        **_supported_head(bundle),
    }
    reject_unsupported(supported, system, source=source)
    if (description.mean, description.std) != (MEAN, STD):
        log.warning(
            "%s: pixels are normalized by mean %s and std %s; %s uses ImageNet's unless configured",
            *(source, description.mean, description.std, system),
        )


def reject_unsupported(supported: dict[str, bool], system: str, *, source: object) -> None:
    """Reject a model if a value is false; the keys say what the system expects, and what the model has.

    Raises:
        CheckpointError: lists all unsupported settings.
    """
    unsupported = [text for text, is_supported in supported.items() if not is_supported]
    if unsupported:
        expected = "; ".join(unsupported)
        raise CheckpointError(
            f"{source}: {system} expects {expected}; fix: --to onnx, torch-export or kinemae"
        )


def supported_encoder(shape: EncoderShape, *, supports_layer_scale: bool = False) -> dict[str, bool]:
    """Return the settings of a plain vision transformer, besides its positions; see `reject_unsupported`."""
    return {
        f"model.attention=joint, got {shape.attention.name}": shape.attention.name == "joint",
        "model.qk_norm=false, got true": not shape.qk_norm,
        f"model.layer_scale=null, got {shape.layer_scale}": shape.layer_scale is None or supports_layer_scale,
        "model.standardize=false, got true": not shape.standardize,
        f"model.registers=0, got {shape.registers}": shape.registers == 0,
        "no embedding of run lengths, got one (pruning)": shape.run_lengths == 0,
        "no scorer, got one (pruning)": not shape.scorer,
        f"layer norms, got {shape.norm}": shape.norm == "layer",
    }


def _supported_decoder(bundle: ModelBundle) -> dict[str, bool]:
    decoder = bundle.decoder_description
    if decoder is None:
        return {}
    shape, values = decoder.shape, bundle.description.shape.patch_values
    return {
        f"model.decoder=self, got {decoder.kind}": decoder.kind == "self",
        f"model.decoder_attention=joint, got {shape.attention.name}": shape.attention.name == "joint",
        f"a decoder with flat_sine positions, got {shape.positions.name}": shape.positions.name
        == "flat_sine",
        "model.noise_conditioning=false, got true": not decoder.noise_conditioned,
        f"a decoder that predicts {values} pixels, got {decoder.values} values": decoder.values == values,
        "an encoder with a final norm before the decoder, got none": bundle.description.shape.final_norm,
    }


def _supported_head(bundle: ModelBundle) -> dict[str, bool]:
    head = bundle.head
    if head is None:
        return {}
    is_mean = isinstance(head, LinearHead) and head.pool == "mean" and isinstance(head.norm, nn.LayerNorm)
    return {
        "head={name: linear, args: {pool: mean, norm: layer}}, got another head": is_mean,
        "final_norm=false in fine-tuning, got true": not bundle.description.shape.final_norm,
    }


def _load(build: Callable[[], Module], tensors: Tensors, source: object) -> Module:
    module = build()
    try:
        module.load_state_dict(tensors, assign=True)
    except RuntimeError as error:  # PyTorch lists the mis-shaped tensors
        message = " ".join(str(error).split())
        raise CheckpointError(f"{source}: expected tensors of matching shapes, got {message}") from error
    return module
