"""Import of image models as the start of a video encoder: MAE, DINOv2, and vision transformers of timm.

A patch of t frames gets the image's patch embedding divided by t in each frame, so the embedding of a still
clip is that of the image. All time slices have the same positions at first: the temporal table is zero and
learns the time. Class and register tokens become registers, one set per clip. The tokens of a clip of one
slice are those of the image. In a longer still clip, the class token has less weight in attention; without
class and register tokens, all slices have the tokens of the image.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

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
    infer_sizes,
    no_bias,
    patch_embedding,
    read_tensors,
    rename,
    rename_layer,
    skip_first_positions,
)
from kinemae.finetune.conversion.model_bundle import ModelBundle, build_bundle
from kinemae.finetune.conversion.options import FRAMES, ImportOptions
from kinemae.finetune.conversion.read_weights import LoadedCheckpoint
from kinemae.pretrain.model.sizes import EncoderShape

_KERNEL = "patch_embed.proj.weight"
_HEADS = {192: 3, 1152: 16, 1536: 24}
_REGISTERS = ("reg_token", "register_tokens")
_PATCH_FRAMES = 2
_IGNORED = {
    "decoder_": "the decoder of images",
    "mask_token": "it replaces hidden patches in the image model's training",
    "head.": "the classes of images",
    "fc_norm.": "it belongs to the head",
}


def is_image_vit(tensors: Tensors) -> bool:
    """Check for timm's tensor names of a vision transformer for images."""
    return _KERNEL in tensors and tensors[_KERNEL].dim() == 4 and "blocks.0.attn.qkv.weight" in tensors


def read_image_vit(loaded: LoadedCheckpoint, options: ImportOptions, *, allow_partial: bool) -> ModelBundle:
    """Convert the encoder of an image model to one of clips.

    Raises:
        CheckpointError: another, an incomplete or an unsupported model.
        ValueError: the options do not fit it.
    """
    source = loaded.source
    tensors = {**loaded.tensors, _KERNEL: _inflated(loaded.tensors[_KERNEL], options)}
    sizes = infer_sizes(tensors, kernel=_KERNEL, blocks="blocks", fc1="mlp.fc1", source=source)
    tokens = [name for name in ("cls_token", *_REGISTERS) if name in tensors]
    registers = sum(tensors[name].shape[1] for name in tokens)
    positioned, side = _positions(tensors, registers, source)
    shape = EncoderShape(
        **sizes,
        heads=options.num_heads(sizes["width"], known=_HEADS.get(sizes["width"])),
        positions=Component(name="learned"),
        qk_norm="blocks.0.attn.q_norm.weight" in tensors,
        layer_scale=1.0 if "blocks.0.ls1.gamma" in tensors else None,  # the initial value is not used
        registers=registers,
        final_norm="norm.weight" in tensors,
    )
    frames = options.frames or FRAMES
    layout = _format(shape, tensors, tokens, positioned, slices=frames // shape.patch[0])
    converted = read_tensors(layout, tensors, source=source, allow_partial=allow_partial)
    description = options.describe(
        shape,
        known_clip=ClipConfig(frames=frames, size=side * shape.patch[1]),
        **loaded.normalization(),
        trained_by={"imported_from": str(source), "format": layout.name},
    )
    return build_bundle(converted, description, options, source=source)


def _inflated(kernel_DChw: Tensor, options: ImportOptions) -> Tensor:
    frames = options.patch_frames or _PATCH_FRAMES
    return kernel_DChw.float()[:, :, None].expand(-1, -1, frames, -1, -1) / frames


def _positions(tensors: Tensors, registers: int, source: object) -> tuple[int, int]:
    """The number of class and register tokens with a position, and the side of the grid of patches."""
    if "pos_embed" not in tensors:
        raise CheckpointError(f"{source}: expected the tensor pos_embed of an image model, got none")
    count = tensors["pos_embed"].shape[1]
    classes = tensors["cls_token"].shape[1] if "cls_token" in tensors else 0
    for positioned in (0, classes, registers):
        side = round(max(0, count - positioned) ** 0.5)
        if side * side == count - positioned:
            return positioned, side
    raise CheckpointError(f"{source}: expected pos_embed of a square grid, got {count} positions")


def _format(
    shape: EncoderShape, tensors: Mapping[str, Tensor], tokens: list[str], positioned: int, *, slices: int
) -> CheckpointFormat:
    zeros = torch.zeros(1, slices, shape.width)
    temporal = Rule(ours="pos_embed.temporal", theirs=(), read=lambda: zeros, write=lambda table: ())
    has_bias = "blocks.0.attn.qkv.bias" in tensors

    def rest(ours: str, block: str) -> Iterator[Rule]:
        own = ours.removesuffix(".attn.qkv")
        yield rename(f"{ours}.weight", f"{block}.attn.qkv.weight")
        bias = f"{ours}.bias"
        yield rename(bias, f"{block}.attn.qkv.bias") if has_bias else no_bias(bias, 3 * shape.width)
        for layer in ("attn.q_norm", "attn.k_norm") if shape.qk_norm else ():
            yield from rename_layer(f"{own}.{layer}", f"{block}.{layer}")
        for name in ("ls1.gamma", "ls2.gamma") if shape.layer_scale else ():
            yield rename(f"{own}.{name}", f"{block}.{name}")

    return CheckpointFormat(
        name="image ViT",
        encoder=(
            *patch_embedding("patch_embed.proj", shape.patch),
            *([add_first_positions("reg_token", tokens, "pos_embed", positioned)] if tokens else ()),
            temporal,
            skip_first_positions("pos_embed.spatial", "pos_embed", positioned),
            *block_rules(shape.depth, "blocks", TIMM_LAYERS, rest),
            *(rename_layer("norm", "norm") if shape.final_norm else ()),
        ),
        ignored=_IGNORED,
    )
