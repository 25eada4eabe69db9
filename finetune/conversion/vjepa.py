"""Conversion of V-JEPA 2 (official files, and VJEPA2 of transformers) and V-JEPA 2.1 (official files).

An official ViT-L has 292 tensors, one of transformers 388, since it separates query, key and value. The two
versions have different rotary positions; see `VJepaPositions`. The predictor is not converted.
"""

import torch

from kinemae.data_tools.command import CheckpointError
from kinemae.data_tools.components import Component
from kinemae.data_tools.stream.loader import ClipConfig
from kinemae.finetune.conversion.key_rules import (
    TIMM_LAYERS,
    CheckpointFormat,
    Rule,
    Tensors,
    block_rules,
    concatenate,
    count_blocks,
    infer_sizes,
    patch_embedding,
    read_tensors,
    rename_layer,
)
from kinemae.finetune.conversion.model_bundle import ModelBundle, build_bundle
from kinemae.finetune.conversion.options import ImportOptions
from kinemae.finetune.conversion.read_weights import LoadedCheckpoint
from kinemae.pretrain.model.blocks import NORM_EPS
from kinemae.pretrain.model.sizes import EncoderShape

POSITIONS = Component(name="vjepa")
"""Positions of V-JEPA 2."""
POSITIONS_2_1 = Component(name="vjepa", args={"tiled": False, "side": 16})

FRAMES, FPS = 64, 4.0
"""Clips of the last stage of the training; official files do not state them."""
SIZE, SIZE_2_1 = 256, 384

_HEADS = {768: 12, 1024: 16, 1280: 16, 1408: 22, 1664: 26}
_V1_POSITIONS = (8 * 14 * 14, 8 * 24 * 24)
_LAYERS = {name: name.replace("attn.", "attention.") for name in TIMM_LAYERS}
_PREDICTOR = {"predictor.": "KineMAE has no such decoder"}


def is_vjepa(tensors: Tensors) -> bool:
    """Check for the tensor names of an official file: a video encoder with a bias of query, key and value."""
    kernel = tensors.get("patch_embed.proj.weight")
    is_video = kernel is not None and kernel.dim() == 5
    return is_video and "cls_token" not in tensors and "blocks.0.attn.qkv.bias" in tensors


def read_vjepa(loaded: LoadedCheckpoint, options: ImportOptions, *, allow_partial: bool) -> ModelBundle:
    """Convert the encoder of an official file of V-JEPA 2 or 2.1.

    Raises:
        CheckpointError: another or an incomplete checkpoint.
        ValueError: the options do not fit it.
    """
    tensors, source = loaded.tensors, loaded.source
    if "pos_embed" in tensors and tensors["pos_embed"].shape[1] in _V1_POSITIONS:
        raise CheckpointError(
            f"{source}: expected V-JEPA 2 or 2.1, got a table of {tensors['pos_embed'].shape[1]} positions, "
            "as in V-JEPA 1, which is not supported; fix: choose a file of V-JEPA 2"
        )
    is_2_1 = "norms_block.0.weight" in tensors
    sizes = infer_sizes(
        tensors, kernel="patch_embed.proj.weight", blocks="blocks", fc1="mlp.fc1", source=source
    )
    shape = EncoderShape(
        **sizes,
        heads=options.num_heads(sizes["width"], known=_HEADS.get(sizes["width"])),
        positions=POSITIONS_2_1 if is_2_1 else POSITIONS,
    )
    layout = official_2_1_format(shape) if is_2_1 else official_format(shape)
    converted = read_tensors(layout, tensors, source=source, allow_partial=allow_partial)
    description = options.describe(
        shape,
        known_clip=ClipConfig(frames=FRAMES, size=SIZE_2_1 if is_2_1 else SIZE, fps=FPS),
        trained_by={"imported_from": str(source), "format": layout.name},
    )
    return build_bundle(converted, description, options, source=source)


def official_format(shape: EncoderShape) -> CheckpointFormat:
    """Describe the encoder of an official file of V-JEPA 2."""
    return CheckpointFormat(
        name="V-JEPA 2",
        encoder=(
            *patch_embedding("patch_embed.proj", shape.patch),
            *block_rules(shape.depth, "blocks", TIMM_LAYERS, _fused_qkv),
            *rename_layer("norm", "norm"),
        ),
        ignored={"pos_embed": "not used, V-JEPA 2 has rotary positions"},
    )


def official_2_1_format(shape: EncoderShape) -> CheckpointFormat:
    """Describe the encoder of an official file of V-JEPA 2.1."""
    kernel, _ = patch_embedding("patch_embed.proj", shape.patch)
    bias = Rule(
        ours="patch_embed.bias",
        theirs=("patch_embed.proj.bias", "video_mod_embed"),
        read=lambda bias_D, video_11D: bias_D.float() + video_11D.float().flatten(),
        write=lambda bias_D: (bias_D, torch.zeros_like(bias_D)[None, None]),
    )
    return CheckpointFormat(
        name="V-JEPA 2.1",
        encoder=(
            kernel,
            bias,
            *block_rules(shape.depth, "blocks", TIMM_LAYERS, _fused_qkv),
            *rename_layer("norm", "norms_block.3"),
        ),
        ignored={
            "patch_embed_img.": "the patch embedding of images, an encoder of KineMAE has one for clips",
            "img_mod_embed": "it marks images",
            **{f"norms_block.{i}.": "the norm of an inner block's output" for i in range(3)},
        },
    )


def is_vjepa_huggingface(tensors: Tensors) -> bool:
    """Check for the tensor names of V-JEPA 2 in transformers."""
    kernel = "encoder.embeddings.patch_embeddings.proj.weight"
    return bool({kernel, f"vjepa2.{kernel}"} & tensors.keys())


def read_vjepa_huggingface(
    loaded: LoadedCheckpoint, options: ImportOptions, *, allow_partial: bool
) -> ModelBundle:
    """Convert a VJEPA2Model, or a VJEPA2ForVideoClassification with its attentive pooler.

    Raises:
        CheckpointError: another, an incomplete or an unsupported model.
        ValueError: the options do not fit it.
    """
    tensors, source = loaded.tensors, loaded.source
    loaded.check_config({"hidden_act": "gelu", "qkv_bias": True, "layer_norm_eps": NORM_EPS})
    prefix = "vjepa2." if "pooler.query_tokens" in tensors else ""
    sizes = infer_sizes(
        tensors,
        kernel=f"{prefix}encoder.embeddings.patch_embeddings.proj.weight",
        blocks=f"{prefix}encoder.layer",
        fc1="mlp.fc1",
        source=source,
    )
    loaded.check_sizes(sizes)
    known = loaded.whole_number("num_attention_heads", _HEADS.get(sizes["width"], 0))
    shape = EncoderShape(**sizes, heads=options.num_heads(sizes["width"], known=known), positions=POSITIONS)
    pooler_depth = count_blocks(tensors, "pooler.self_attention_layers") if prefix else None
    layout = huggingface_format(shape, pooler_depth)
    converted = read_tensors(layout, tensors, source=source, allow_partial=allow_partial)
    description = options.describe(
        shape,
        known_clip=ClipConfig(
            frames=loaded.whole_number("frames_per_clip", FRAMES),
            size=loaded.whole_number("crop_size", SIZE),
            fps=FPS,
        ),
        **loaded.normalization(),
        trained_by={"imported_from": str(source), "format": layout.name},
    )
    return build_bundle(
        converted,
        description,
        options,
        source=source,
        head_config=pooler_head(shape, pooler_depth or 0),
        classes=loaded.class_names(len(converted.head.get("linear.weight", ()))),
    )


def pooler_head(shape: EncoderShape, depth: int) -> Component:
    """Return the config of the head that equals V-JEPA 2's pooler with `depth` self-attention layers."""
    args = {"plain": True, "depth": depth + 1, "head_width": shape.width // shape.heads}
    return Component(name="attentive", args=args)


def huggingface_format(shape: EncoderShape, pooler_depth: int | None) -> CheckpointFormat:
    """Describe a model of transformers; `pooler_depth` is None without a classifier."""
    prefix = "" if pooler_depth is None else "vjepa2."
    return CheckpointFormat(
        name=f"transformers V-JEPA 2 {'encoder' if pooler_depth is None else 'classification'}",
        encoder=(
            *patch_embedding(f"{prefix}encoder.embeddings.patch_embeddings.proj", shape.patch),
            *block_rules(shape.depth, f"{prefix}encoder.layer", _LAYERS, _separate_qkv),
            *rename_layer("norm", f"{prefix}encoder.layernorm"),
        ),
        head=() if pooler_depth is None else _pooler_rules(pooler_depth),
        ignored={f"{prefix}{name}": reason for name, reason in _PREDICTOR.items()},
    )


def _pooler_rules(depth: int) -> list[Rule]:
    cross = "pooler.cross_attention_layer"
    layers = {
        "norm1": "layer_norm1",
        "attn.proj": "self_attn.out_proj",
        "norm2": "layer_norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    keys_and_values = [
        concatenate(f"pool.kv.{leaf}", [f"{cross}.cross_attn.{part}_proj.{leaf}" for part in "kv"])
        for leaf in ("weight", "bias")
    ]
    query = Rule(
        ours="query_QD",
        theirs=("pooler.query_tokens",),
        read=lambda query_1QD: query_1QD[0],
        write=lambda query_QD: (query_QD[None],),
    )
    return [
        query,
        *block_rules(depth, "pooler.self_attention_layers", layers, _pooler_qkv),
        *rename_layer("memory_norm", f"{cross}.layer_norm1"),
        *rename_layer("pool.q", f"{cross}.cross_attn.q_proj"),
        *keys_and_values,
        *rename_layer("pool.norm2", f"{cross}.layer_norm2"),
        *rename_layer("pool.mlp.0", f"{cross}.mlp.fc1"),
        *rename_layer("pool.mlp.2", f"{cross}.mlp.fc2"),
        *rename_layer("linear", "classifier"),
    ]


def _fused_qkv(ours: str, block: str) -> tuple[Rule, Rule]:
    return rename_layer(ours, f"{block}.attn.qkv")


def _separate_qkv(ours: str, block: str) -> list[Rule]:
    return _concatenated(ours, [f"{block}.attention.{part}" for part in ("query", "key", "value")])


def _pooler_qkv(ours: str, block: str) -> list[Rule]:
    return _concatenated(ours, [f"{block}.self_attn.{part}_proj" for part in "qkv"])


def _concatenated(ours: str, layers: list[str]) -> list[Rule]:
    return [
        concatenate(f"{ours}.{leaf}", [f"{layer}.{leaf}" for layer in layers]) for leaf in ("weight", "bias")
    ]
