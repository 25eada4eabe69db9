"""MAE-ST's files (arXiv 2205.09113), as mae_st and PySlowFast write them: read, not written.

The class token never meets a decoder of ours and stands for no place: it is a register. The decoder is
left out, because MAE-ST's has a class token of its own.
"""

from kinemae.data_tools.command import CheckpointError, log
from kinemae.data_tools.components import Component
from kinemae.finetune.conversion.key_rules import (
    Layout,
    Rule,
    Tensors,
    convolution,
    same,
    same_layer,
    stacked,
    take,
)
from kinemae.finetune.conversion.model_bundle import Kin, build_kin
from kinemae.finetune.conversion.options import ImportOptions, measure
from kinemae.finetune.conversion.read_weights import Found
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import COLOURS

MEAN = (0.45,) * COLOURS
STD = (0.225,) * COLOURS
"""What MAE-ST normalises pixels by, on a scale of 0 to 1."""

_DECODER = ("decoder_", "mask_token", "pred_head.")


def is_mae_st(tensors: Tensors) -> bool:
    """Whether a file's names are MAE-ST's."""
    return "pos_embed_spatial" in tensors


def read_mae_st(found: Found, options: ImportOptions, *, allow_partial: bool) -> Kin:
    """Read the encoder of a pretraining file.

    Raises:
        CheckpointError: it is none, or not whole.
        ValueError: the options do not fit it.
    """
    tensors, source = found.tensors, found.source
    sizes = measure(
        tensors, kernel="patch_embed.proj.weight", blocks="blocks.", expand="mlp.fc1.weight", source=source
    )
    shape = EncoderShape(
        **sizes,
        heads=options.head_count(sizes["width"]),
        positions=Component(name="learned"),
        registers=1,
    )
    layout = _layout(shape)
    sections = take(layout, tensors, source=source, allow_partial=allow_partial)
    if any(name.startswith(_DECODER) for name in tensors):
        log.info("%s: its decoder is not read: it has a class token, which ours have not", source)
    description = options.describe(
        shape,
        known_clip=_clip(tensors, sizes["patch"], source),
        mean=MEAN,
        std=STD,
        trained_by={"imported_from": str(source), "layout": layout.name},
    )
    return build_kin(sections, description, None, (), source=source)


def _clip(tensors: Tensors, patch: tuple[int, int, int], source: object) -> tuple[int, int]:
    """Frames and size of the clip, which the tables of positions tell."""
    slices, places = (tensors[f"pos_embed_{axis}"].shape[1] for axis in ("temporal", "spatial"))
    side = round(places**0.5)
    if side * side != places:
        raise CheckpointError(f"{source}: its positions must be of a square of places, got {places} of them")
    return slices * patch[0], side * patch[1]


def _layout(shape: EncoderShape) -> Layout:
    return Layout(
        name="MAE-ST pretraining",
        encoder=(
            convolution("patch_embed.weight", "patch_embed.proj.weight", shape.patch),
            same("patch_embed.bias", "patch_embed.proj.bias"),
            _register(),
            same("pos_embed.temporal", "pos_embed_temporal"),
            same("pos_embed.spatial", "pos_embed_spatial"),
            *_blocks(shape.depth),
            *same_layer("norm", "norm"),
        ),
        left_out=_DECODER,
    )


def _register() -> Rule:
    """The class token and its position, which are always added, as one; nobody can take them apart again."""
    return Rule(
        ours="reg_token",
        theirs=("cls_token", "pos_embed_class"),
        read=lambda token, position: token + position,
        write=lambda register: (),
    )


def _blocks(depth: int) -> list[Rule]:
    rules: list[Rule] = []
    for i in range(depth):
        ours, theirs = f"blocks.{i}", f"blocks.{i}"
        rules += same_layer(f"{ours}.norm1", f"{theirs}.norm1")
        for leaf in ("weight", "bias"):
            parts = [f"{theirs}.attn.{part}.{leaf}" for part in "qkv"]
            rules.append(stacked(f"{ours}.attn.qkv.{leaf}", *parts))
        rules += same_layer(f"{ours}.attn.proj", f"{theirs}.attn.proj")
        rules += same_layer(f"{ours}.norm2", f"{theirs}.norm2")
        rules += same_layer(f"{ours}.mlp.fc1", f"{theirs}.mlp.fc1")
        rules += same_layer(f"{ours}.mlp.fc2", f"{theirs}.mlp.fc2")
    return rules
