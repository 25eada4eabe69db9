"""Conversion of MAE-ST checkpoints (arXiv 2205.09113) from mae_st and PySlowFast; import only.

The class token becomes a register token, since it has no position in the grid and does not reach the decoder.
The decoder is skipped, because MAE-ST's decoder has a class token of its own.
"""

from kinemae.data_tools.command import CheckpointError
from kinemae.data_tools.components import Component
from kinemae.data_tools.stream.loader import ClipConfig
from kinemae.finetune.conversion.key_rules import (
    TIMM_LAYERS,
    CheckpointFormat,
    Rule,
    Tensors,
    add_first_positions,
    block_rules,
    concatenate,
    infer_sizes,
    patch_embedding,
    read_tensors,
    rename,
    rename_layer,
)
from kinemae.finetune.conversion.model_bundle import ModelBundle, build_bundle
from kinemae.finetune.conversion.options import ImportOptions
from kinemae.finetune.conversion.read_weights import LoadedCheckpoint
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import COLOURS

# MAE-ST's normalization of pixels on a scale of 0 to 1.
MEAN = (0.45,) * COLOURS
STD = (0.225,) * COLOURS

_REASON = "KineMAE does not support the decoder's class token"
_DECODER = {prefix: _REASON for prefix in ("decoder_", "mask_token", "pred_head.")}


def is_mae_st(tensors: Tensors) -> bool:
    """Check for MAE-ST's tensor names."""
    return "pos_embed_class" in tensors or "pos_embed_spatial" in tensors


def read_mae_st(loaded: LoadedCheckpoint, options: ImportOptions, *, allow_partial: bool) -> ModelBundle:
    """Convert the encoder of a pretraining checkpoint.

    Raises:
        CheckpointError: another or an incomplete checkpoint.
        ValueError: the options do not fit it.
    """
    tensors, source = loaded.tensors, loaded.source
    sizes = infer_sizes(
        tensors, kernel="patch_embed.proj.weight", blocks="blocks", fc1="mlp.fc1", source=source
    )
    heads = options.num_heads(sizes["width"])
    shape = EncoderShape(**sizes, heads=heads, positions=Component(name="learned"), registers=1)
    layout = _format(shape)
    converted = read_tensors(layout, tensors, source=source, allow_partial=allow_partial)
    slices, places = (tensors[f"pos_embed_{axis}"].shape[1] for axis in ("temporal", "spatial"))
    side = round(places**0.5)
    if side * side != places:
        raise CheckpointError(f"{source}: expected a square number of spatial positions, got {places}")
    description = options.describe(
        shape,
        known_clip=ClipConfig(frames=slices * shape.patch[0], size=side * shape.patch[1]),
        mean=MEAN,
        std=STD,
        trained_by={"imported_from": str(source), "format": layout.name},
    )
    return build_bundle(converted, description, options, source=source)


def _format(shape: EncoderShape) -> CheckpointFormat:
    return CheckpointFormat(
        name="MAE-ST pretraining",
        encoder=(
            *patch_embedding("patch_embed.proj", shape.patch),
            add_first_positions("reg_token", ["cls_token"], "pos_embed_class", 1),
            rename("pos_embed.temporal", "pos_embed_temporal"),
            rename("pos_embed.spatial", "pos_embed_spatial"),
            *block_rules(shape.depth, "blocks", TIMM_LAYERS, _qkv),
            *rename_layer("norm", "norm"),
        ),
        ignored=_DECODER,
    )


def _qkv(ours: str, block: str) -> list[Rule]:
    return [
        concatenate(f"{ours}.{leaf}", [f"{block}.attn.{part}.{leaf}" for part in "qkv"])
        for leaf in ("weight", "bias")
    ]
