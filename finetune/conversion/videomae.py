"""Conversion of VideoMAE V1 and V2 and UMT checkpoints: pretraining and fine-tuning (encoder, head).

VideoMAE's pretraining files contain the decoder. UMT (arXiv 2303.16058) has patches of one frame. It predicts
features of a teacher by linear layers, which are skipped.

A pretrained ViT-B with a decoder of four blocks has 218 tensors, a fine-tuned one 162. The fine-tuned model
normalizes the mean of the tokens instead of each token, so its encoder has no final norm. The positional
embedding is computed and not stored.
"""

from dataclasses import replace

from kinemae.data_tools.components import Component
from kinemae.data_tools.stream.loader import ClipConfig
from kinemae.finetune.conversion.key_rules import (
    TIMM_LAYERS,
    CheckpointFormat,
    Rule,
    Tensors,
    block_rules,
    count_blocks,
    infer_sizes,
    patch_embedding,
    qkv_bias,
    read_tensors,
    rename,
    rename_layer,
)
from kinemae.finetune.conversion.model_bundle import (
    ModelBundle,
    build_bundle,
    check_exportable,
    export_tensors,
    reject_unsupported,
)
from kinemae.finetune.conversion.options import FLAT_SINE, ImportOptions
from kinemae.finetune.conversion.read_weights import LoadedCheckpoint
from kinemae.pretrain.model.sizes import EncoderShape

LEARNED = Component(name="learned_joint")

# The clip of UMT's fixed positions. Fine-tuned files of another clip contain their table.
_UMT_CLIP = ClipConfig(frames=8, size=224, sampling="uniform")


def is_videomae(tensors: Tensors) -> bool:
    """Check for VideoMAE's tensor names."""
    return bool({"encoder.patch_embed.proj.weight", "patch_embed.proj.weight"} & tensors.keys())


def read_videomae(loaded: LoadedCheckpoint, options: ImportOptions, *, allow_partial: bool) -> ModelBundle:
    """Convert a pretraining or a fine-tuning checkpoint.

    Raises:
        CheckpointError: another or an incomplete checkpoint.
        ValueError: the options do not fit it.
    """
    tensors, source = loaded.tensors, loaded.source
    is_pretrained = "encoder.patch_embed.proj.weight" in tensors
    prefix = "encoder." if is_pretrained else ""
    sizes = infer_sizes(
        tensors,
        kernel=f"{prefix}patch_embed.proj.weight",
        blocks=f"{prefix}blocks",
        fc1="mlp.fc1",
        source=source,
    )
    shape = EncoderShape(
        **sizes,
        heads=options.num_heads(sizes["width"]),
        positions=FLAT_SINE,
        layer_scale=1.0 if f"{prefix}blocks.0.gamma_1" in tensors else None,  # the initial value is not used
        final_norm=is_pretrained,
    )
    decoder_depth = count_blocks(tensors, "decoder.blocks") or None
    is_umt = _is_umt(shape, decoder_depth)
    if is_umt:
        shape = replace(
            shape,
            positions=LEARNED if "pos_embed" in tensors else FLAT_SINE,
            final_norm="encoder.norm.weight" in tensors,
        )
    if is_pretrained:
        layout = pretraining_format(shape, decoder_depth)
    else:
        layout = finetuning_format(shape, has_head="head.weight" in tensors)
    converted = read_tensors(layout, tensors, source=source, allow_partial=allow_partial)
    known_clip = _UMT_CLIP if is_umt else None
    if is_umt and "pos_embed" in tensors:
        known_clip = options.table_clip(tensors["pos_embed"].shape[1], shape.patch, source)
    trained_by = {"imported_from": str(source), "format": layout.name}
    description = options.describe(shape, known_clip=known_clip, trained_by=trained_by)
    return build_bundle(converted, description, options, source=source)


def videomae_tensors(bundle: ModelBundle, *, source: object) -> Tensors:
    """Convert a model to the tensors of a VideoMAE checkpoint.

    Raises:
        CheckpointError: VideoMAE does not support the model.
    """
    check_exportable(bundle, "VideoMAE", source=source, supports_layer_scale=bundle.decoder is None)
    shape, description = bundle.description.shape, bundle.description
    decoder_depth = None if bundle.decoder is None else bundle.decoder.shape.depth
    is_umt_clip = (description.frames, description.size) == (_UMT_CLIP.frames, _UMT_CLIP.size)
    text = (
        "patches of 2 frames or more, or UMT's clip of 8 frames of 224 px, since the file does not contain "
        f"the clip, got patches of 1 frame and {description.frames} frames of {description.size} px"
    )
    is_clear = is_umt_clip or not _is_umt(shape, decoder_depth)
    reject_unsupported({text: is_clear}, "VideoMAE", source=source)
    if bundle.head is not None or not shape.final_norm:
        return export_tensors(finetuning_format(shape, has_head=bundle.head is not None), bundle)
    return export_tensors(pretraining_format(shape, decoder_depth), bundle)


def pretraining_format(shape: EncoderShape, decoder_depth: int | None) -> CheckpointFormat:
    """Describe a pretraining checkpoint; `decoder_depth` is None without a decoder."""
    blocks = () if decoder_depth is None else block_rules(decoder_depth, "decoder.blocks", TIMM_LAYERS, _qkv)
    norm = rename_layer("norm", "encoder.norm") if shape.final_norm else ()
    is_umt = _is_umt(shape, decoder_depth)
    return CheckpointFormat(
        name="UMT pretraining" if is_umt else "VideoMAE pretraining",
        encoder=(*_encoder_rules(shape, "encoder."), *norm),
        decoder=decoder_rules(blocks) if blocks else (),
        ignored={"clip_decoder.": "it predicts features of a teacher"} if is_umt else {},
    )


def finetuning_format(shape: EncoderShape, *, has_head: bool) -> CheckpointFormat:
    """Describe a fine-tuning checkpoint."""
    head = (*rename_layer("norm", "fc_norm"), *rename_layer("linear", "head"))
    return CheckpointFormat(
        name="UMT fine-tuning" if _is_umt(shape, None) else "VideoMAE fine-tuning",
        encoder=_encoder_rules(shape, ""),
        head=head if has_head else (),
        ignored={} if has_head else {"fc_norm.": "it belongs to the head, which the checkpoint lacks"},
    )


def decoder_rules(blocks: list[Rule]) -> list[Rule]:
    """Add the rules of the decoder's other layers, which have the same names in transformers."""
    return [
        rename("embed.weight", "encoder_to_decoder.weight"),
        rename("mask_token", "mask_token"),
        *blocks,
        *rename_layer("norm", "decoder.norm"),
        *rename_layer("head", "decoder.head"),
    ]


def _is_umt(shape: EncoderShape, decoder_depth: int | None) -> bool:
    return shape.patch[0] == 1 and decoder_depth is None


def _encoder_rules(shape: EncoderShape, prefix: str) -> list[Rule]:
    table = [rename("pos_embed.table", f"{prefix}pos_embed")] if shape.positions == LEARNED else []
    scales = [(i, j) for i in range(shape.depth) for j in (1, 2) if shape.layer_scale is not None]
    return [
        *patch_embedding(f"{prefix}patch_embed.proj", shape.patch),
        *table,
        *block_rules(shape.depth, f"{prefix}blocks", TIMM_LAYERS, _qkv),
        *(rename(f"blocks.{i}.ls{j}.gamma", f"{prefix}blocks.{i}.gamma_{j}") for i, j in scales),
    ]


def _qkv(ours: str, block: str) -> tuple[Rule, Rule]:
    return (
        rename(f"{ours}.weight", f"{block}.attn.qkv.weight"),
        qkv_bias(f"{ours}.bias", f"{block}.attn.q_bias", f"{block}.attn.v_bias"),
    )
