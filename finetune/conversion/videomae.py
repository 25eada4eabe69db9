"""The official VideoMAE's files, of V1 and V2: pretraining (encoder and decoder) and fine-tuning.

Layouts: 218 tensors for a pretrained ViT-B with a decoder of four blocks, 162 for a fine-tuned one. The
fine-tuned model norms the mean of the tokens and not the tokens, so its encoder has no last norm. Positions
are in neither; they are computed.
"""

from kinemae.data_tools.command import log
from kinemae.finetune.conversion.key_rules import (
    Layout,
    Rule,
    Tensors,
    convolution,
    give,
    same,
    same_layer,
    take,
    without_key,
)
from kinemae.finetune.conversion.model_bundle import Kin, build_kin
from kinemae.finetune.conversion.options import FLAT_SINE, ImportOptions, depth_of, measure
from kinemae.finetune.conversion.read_weights import Found
from kinemae.finetune.conversion.unsupported import refuse_inexpressible
from kinemae.pretrain.model.sizes import EncoderShape


def is_official(tensors: Tensors) -> bool:
    """Whether a file's names are VideoMAE's own."""
    return bool({"encoder.patch_embed.proj.weight", "patch_embed.proj.weight"} & tensors.keys())


def read_official(found: Found, options: ImportOptions, *, allow_partial: bool) -> Kin:
    """Read a pretraining or a fine-tuning file.

    Raises:
        CheckpointError: it is not one, or not whole.
        ValueError: the options do not fit it.
    """
    tensors, source = found.tensors, found.source
    is_pretrained = "encoder.patch_embed.proj.weight" in tensors
    prefix = "encoder." if is_pretrained else ""
    sizes = measure(
        tensors,
        kernel=f"{prefix}patch_embed.proj.weight",
        blocks=f"{prefix}blocks.",
        expand="mlp.fc1.weight",
        source=source,
    )
    shape = EncoderShape(
        **sizes,
        heads=options.head_count(sizes["width"]),
        positions=FLAT_SINE,
        # The weights are read; what stands here is where fresh ones would begin.
        layer_scale=1.0 if f"{prefix}blocks.0.gamma_1" in tensors else None,
        final_norm=is_pretrained,
    )
    if is_pretrained:
        has_decoder = any(name.startswith("decoder.") for name in tensors)
        layout = pretrained_layout(shape, depth_of(tensors, "decoder.blocks.") if has_decoder else None)
    else:
        layout = finetuned_layout(shape, has_head="head.weight" in tensors)
    sections = take(layout, tensors, source=source, allow_partial=allow_partial)
    if not is_pretrained and not sections.head:
        log.warning("%s has no head, so its fc_norm, which belongs to one, is left out", source)
    description = options.describe(shape, trained_by={"imported_from": str(source), "layout": layout.name})
    decoder = options.describe_decoder(sections.decoder, description) if sections.decoder else None
    classes = options.class_names(len(sections.head["linear.weight"])) if sections.head else ()
    return build_kin(sections, description, decoder, classes, source=source)


def write_official(kin: Kin, *, source: object) -> Tensors:
    """The tensors of the official file that holds the same model.

    Raises:
        CheckpointError: the official VideoMAE cannot be such a model.
    """
    shape = kin.description.shape
    refuse_inexpressible(kin, "VideoMAE", source=source, may_scale=kin.decoder is None)
    if kin.head is not None:
        layout = finetuned_layout(shape, has_head=True)
        return {**give(layout.encoder, kin.encoder.state_dict()), **give(layout.head, kin.head.state_dict())}
    layout = pretrained_layout(shape, None if kin.decoder is None else kin.decoder.shape.depth)
    decoder = {} if kin.decoder is None else give(layout.decoder, kin.decoder.state_dict())
    return {**decoder, **give(layout.encoder, kin.encoder.state_dict())}


def pretrained_layout(shape: EncoderShape, decoder_depth: int | None) -> Layout:
    """A pretraining file's tensors; `decoder_depth` is None where it has no decoder."""
    return Layout(
        name="VideoMAE pretraining",
        encoder=(*_encoder(shape, "encoder."), *same_layer("norm", "encoder.norm")),
        decoder=() if decoder_depth is None else _decoder(decoder_depth),
    )


def finetuned_layout(shape: EncoderShape, *, has_head: bool) -> Layout:
    """A fine-tuning file's tensors."""
    head = (*same_layer("norm", "fc_norm"), *same_layer("linear", "head"))
    return Layout(
        name="VideoMAE fine-tuning",
        encoder=_encoder(shape, ""),
        head=head if has_head else (),
        left_out=() if has_head else ("fc_norm.",),
    )


def _encoder(shape: EncoderShape, prefix: str) -> tuple[Rule, ...]:
    return (
        convolution("patch_embed.weight", f"{prefix}patch_embed.proj.weight", shape.patch),
        same("patch_embed.bias", f"{prefix}patch_embed.proj.bias"),
        *_blocks(shape.depth, f"{prefix}blocks", is_scaled=shape.layer_scale is not None),
    )


def _decoder(depth: int) -> tuple[Rule, ...]:
    return (
        same("embed.weight", "encoder_to_decoder.weight"),
        same("mask_token", "mask_token"),
        *_blocks(depth, "decoder.blocks", is_scaled=False),
        *same_layer("norm", "decoder.norm"),
        *same_layer("head", "decoder.head"),
    )


def _blocks(depth: int, prefix: str, *, is_scaled: bool) -> list[Rule]:
    rules: list[Rule] = []
    for i in range(depth):
        ours, theirs = f"blocks.{i}", f"{prefix}.{i}"
        attention = f"{ours}.attn"
        rules += same_layer(f"{ours}.norm1", f"{theirs}.norm1")
        rules.append(same(f"{attention}.qkv.weight", f"{theirs}.attn.qkv.weight"))
        rules.append(without_key(f"{attention}.qkv.bias", f"{theirs}.attn.q_bias", f"{theirs}.attn.v_bias"))
        rules += same_layer(f"{attention}.proj", f"{theirs}.attn.proj")
        rules += same_layer(f"{ours}.norm2", f"{theirs}.norm2")
        rules += same_layer(f"{ours}.mlp.fc1", f"{theirs}.mlp.fc1")
        rules += same_layer(f"{ours}.mlp.fc2", f"{theirs}.mlp.fc2")
        if is_scaled:
            rules += [same(f"{ours}.ls{j}.gamma", f"{theirs}.gamma_{j}") for j in (1, 2)]
    return rules
