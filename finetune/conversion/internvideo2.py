"""Conversion of InternVideo2's video encoders (arXiv 2403.15377); import only.

Files of the pretraining, the distilled models and the fine-tuned models have the same encoder: RMSNorm, norms
of queries and keys, LayerScale, a class token and learned positions, 13 tensors per block. The class token
becomes a register token. The attention pooling after the encoder and what follows it are skipped.
"""

from collections.abc import Iterator

from kinemae.data_tools.components import Component
from kinemae.data_tools.stream.loader import ClipConfig
from kinemae.finetune.conversion.key_rules import (
    CheckpointFormat,
    Rule,
    Tensors,
    add_first_positions,
    block_rules,
    infer_sizes,
    no_bias,
    patch_embedding,
    read_tensors,
    rename,
    skip_first_positions,
)
from kinemae.finetune.conversion.model_bundle import ModelBundle, build_bundle
from kinemae.finetune.conversion.options import ImportOptions
from kinemae.finetune.conversion.read_weights import LoadedCheckpoint
from kinemae.pretrain.model.sizes import EncoderShape

_HEADS = {3200: 25}
_LAYERS = {name: name for name in ("attn.proj", "mlp.fc1", "mlp.fc2")}
_POOLING = "it belongs to the attention pooling after the encoder, which no head of KineMAE equals"
_TEACHERS = "it predicts features of a teacher"


def is_internvideo2(tensors: Tensors) -> bool:
    """Check for InternVideo2's tensor names."""
    return "cls_token" in tensors and "clip_projector.cross_attn.q.weight" in tensors


def read_internvideo2(
    loaded: LoadedCheckpoint, options: ImportOptions, *, allow_partial: bool
) -> ModelBundle:
    """Convert the encoder of any file of InternVideo2's single-modality models.

    Raises:
        CheckpointError: another or an incomplete checkpoint.
        ValueError: the options do not fit it.
    """
    tensors, source = loaded.tensors, loaded.source
    sizes = infer_sizes(
        tensors, kernel="patch_embed.proj.weight", blocks="blocks", fc1="mlp.fc1", source=source
    )
    is_separable = "pos_embed_spatial" in tensors
    shape = EncoderShape(
        **sizes,
        heads=options.num_heads(sizes["width"], known=_HEADS.get(sizes["width"])),
        positions=Component(name="learned" if is_separable else "learned_joint"),
        qk_norm=True,
        layer_scale=1.0,  # the initial value is not used
        registers=1,
        final_norm=False,
        norm="rms",
    )
    layout = _format(shape, is_separable=is_separable)
    converted = read_tensors(layout, tensors, source=source, allow_partial=allow_partial)
    description = options.describe(
        shape,
        known_clip=_clip(shape, converted.encoder, options, source),
        trained_by={"imported_from": str(source), "format": layout.name},
    )
    return build_bundle(converted, description, options, source=source)


def _clip(shape: EncoderShape, encoder: Tensors, options: ImportOptions, source: object) -> ClipConfig:
    """The clip of the position tables."""
    if "pos_embed.table" in encoder:
        return options.table_clip(encoder["pos_embed.table"].shape[1], shape.patch, source)
    slices, places = (encoder[f"pos_embed.{axis}"].shape[1] for axis in ("temporal", "spatial"))
    frames, size = slices * shape.patch[0], round(places**0.5) * shape.patch[1]
    return ClipConfig(frames=frames, size=size, sampling="uniform")


def _format(shape: EncoderShape, *, is_separable: bool) -> CheckpointFormat:
    if is_separable:
        positions = [rename(f"pos_embed.{axis}", f"pos_embed_{axis}") for axis in ("temporal", "spatial")]
        register = add_first_positions("reg_token", ["cls_token"], "pos_embed_cls", 1)
    else:
        positions = [skip_first_positions("pos_embed.table", "pos_embed", 1)]
        register = add_first_positions("reg_token", ["cls_token"], "pos_embed", 1)
    return CheckpointFormat(
        name="InternVideo2",
        encoder=(
            *patch_embedding("patch_embed.proj", shape.patch),
            register,
            *positions,
            *block_rules(shape.depth, "blocks", _LAYERS, lambda ours, block: _rest(ours, block, shape.width)),
        ),
        ignored={
            **{prefix: _POOLING for prefix in ("clip_projector.", "fc_norm.", "head.")},
            **{f"{name}_decoder.": _TEACHERS for name in ("clip", "final_clip", "mae")},
            **{f"{name}_pos_embed": _TEACHERS for name in ("clip", "mae")},
        },
    )


def _rest(ours: str, block: str, width: int) -> Iterator[Rule]:
    yield rename(f"{ours}.weight", f"{block}.attn.qkv.weight")
    yield no_bias(f"{ours}.bias", 3 * width)
    own = ours.removesuffix(".attn.qkv")
    for name in ("norm1.weight", "attn.q_norm.weight", "attn.k_norm.weight", "norm2.weight"):
        yield rename(f"{own}.{name}", f"{block}.{name}")
    for name in ("ls1.gamma", "ls2.gamma"):
        yield rename(f"{own}.{name}", f"{block}.{name}")
