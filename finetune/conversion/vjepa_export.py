"""Export of V-JEPA 2 to transformers: VJEPA2Model, or VJEPA2ForVideoClassification with the attentive pooler.

transformers' module has a predictor, which KineMAE does not have. It is written with no layers and zero
weights, so that the folder loads without missing tensors.
"""

from typing import Any

import torch
from torch import nn

from kinemae.finetune.conversion.key_rules import Tensors
from kinemae.finetune.conversion.model_bundle import (
    ModelBundle,
    export_tensors,
    reject_unsupported,
    supported_encoder,
)
from kinemae.finetune.conversion.vjepa import huggingface_format
from kinemae.finetune.heads.attentive import AttentiveHead
from kinemae.pretrain.model.blocks import NORM_EPS
from kinemae.pretrain.model.tokens import COLOURS

_PREDICTOR_WIDTH = 8
_SYSTEM = "V-JEPA 2 in transformers"


def vjepa_tensors(bundle: ModelBundle, *, source: object) -> Tensors:
    """Convert a model to the tensors of V-JEPA 2 in transformers.

    Raises:
        CheckpointError: transformers' V-JEPA 2 does not support the model.
    """
    shape, head = bundle.description.shape, bundle.head
    positions = shape.positions
    is_version_2 = positions.args.get("tiled", True) and positions.args.get("side") is None
    supported = {
        "model.positions=vjepa of V-JEPA 2, got those of V-JEPA 2.1": is_version_2,
        f"square patches, got {shape.patch}": shape.patch[1] == shape.patch[2],
        "an encoder with a final norm, got none": shape.final_norm,
        **supported_encoder(shape),
        "no decoder, got one": bundle.decoder is None,
        "head={name: attentive, args: {plain: true, head_width: WIDTH / HEADS}}, got another": (
            head is None or _is_pooler(head, bundle)
        ),
    }
    reject_unsupported(supported, _SYSTEM, source=source)
    depth = len(head.blocks) if isinstance(head, AttentiveHead) else None
    prefix = "" if head is None else "vjepa2."
    return export_tensors(huggingface_format(shape, depth), bundle) | _predictor(shape.width, prefix)


def vjepa_config(bundle: ModelBundle) -> dict[str, Any]:
    """Return `config.json`."""
    shape, head = bundle.description.shape, bundle.head
    return {
        "architectures": ["VJEPA2Model" if head is None else "VJEPA2ForVideoClassification"],
        "model_type": "vjepa2",
        "crop_size": bundle.description.size,
        "frames_per_clip": bundle.description.frames,
        "patch_size": shape.patch[1],
        "tubelet_size": shape.patch[0],
        "in_chans": COLOURS,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "mlp_ratio": (shape.mlp_width + 0.25) / shape.width,  # transformers rounds the product down
        "qkv_bias": True,
        "hidden_act": "gelu",
        "layer_norm_eps": NORM_EPS,
        "num_pooler_layers": len(head.blocks) if isinstance(head, AttentiveHead) else 0,
        "pred_hidden_size": _PREDICTOR_WIDTH,
        "pred_num_attention_heads": 1,
        "pred_num_hidden_layers": 0,
        "pred_num_mask_tokens": 1,
    }


def _is_pooler(head: nn.Module, bundle: ModelBundle) -> bool:
    shape = bundle.description.shape
    return (
        isinstance(head, AttentiveHead)
        and isinstance(head.norm, nn.Identity)
        and not (head.groups or head.query_blocks)
        and len(head.query_QD) == 1
        and len(head.blocks) > 0
        and head.pool.head_width * shape.heads == shape.width
        and bool(head.pool.mlp[0].out_features == 4 * shape.width)
    )


def _predictor(width: int, prefix: str) -> Tensors:
    inner = _PREDICTOR_WIDTH
    shapes = {
        "embeddings.mask_tokens": (1, 1, 1, inner),
        "embeddings.predictor_embeddings.weight": (inner, width),
        "embeddings.predictor_embeddings.bias": (inner,),
        "layernorm.weight": (inner,),
        "layernorm.bias": (inner,),
        "proj.weight": (width, inner),
        "proj.bias": (width,),
    }
    return {f"{prefix}predictor.{name}": torch.zeros(shape) for name, shape in shapes.items()}
