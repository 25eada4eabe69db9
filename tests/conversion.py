"""Models of transformers and their tensors by VideoMAE's names, for the tests of import and export."""

import functools
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEForVideoClassification
from transformers.models.videomae import modeling_videomae

from kinemae.finetune.conversion.command import convert
from kinemae.finetune.conversion.model_bundle import ModelBundle
from kinemae.finetune.conversion.options import ImportOptions
from kinemae.finetune.conversion.read_weights import load_checkpoint

# transformers computes its positional embedding in Python, which takes seconds at base: cache it.
modeling_videomae.get_sinusoid_encoding_table = functools.cache(modeling_videomae.get_sinusoid_encoding_table)

SIZES: dict[str, dict[str, Any]] = {
    # The published models, 16 x 224 x 224.
    "base": {},
    "small": {
        "hidden_size": 384,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
        "decoder_hidden_size": 192,
        "decoder_num_attention_heads": 3,
        "decoder_intermediate_size": 768,
    },
    # Small, with different values for all sizes.
    "tiny": {
        "image_size": 24,
        "patch_size": 8,
        "num_frames": 8,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 80,
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 64,
    },
}
TINY = ImportOptions(frames=8, size=24, heads=3, decoder_heads=2)
"""Options for the tiny model that its VideoMAE checkpoint does not contain."""


def without_onednn() -> AbstractContextManager[None]:
    """Use PyTorch's own kernels instead of oneDNN's."""
    return torch.backends.mkldnn.flags(enabled=False)


def huggingface_pretraining(size: str) -> VideoMAEForPreTraining:
    """Make a pretraining model with random weights and biases and VideoMAE's epsilon."""
    torch.manual_seed(0)
    config = VideoMAEConfig(**SIZES[size], layer_norm_eps=1e-6, use_mean_pooling=False)
    model = randomised(VideoMAEForPreTraining(config))
    model.decoder.norm.eps = 1e-6  # not in the config: transformers leaves PyTorch's 1e-5
    return model


def huggingface_classification(size: str, classes: int) -> VideoMAEForVideoClassification:
    """Make a classification model with random weights and biases and VideoMAE's epsilon."""
    torch.manual_seed(0)
    config = VideoMAEConfig(**SIZES[size], layer_norm_eps=1e-6, num_labels=classes)
    model = randomised(VideoMAEForVideoClassification(config))
    model.fc_norm.eps = 1e-6
    return model


def randomised(model: Any) -> Any:
    """Set biases and norms to random values, and keep the other weights."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = 0.1 * torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + noise)
            elif name.endswith("bias") or name == "mask_token":
                parameter.copy_(noise)
    return model.eval()


def videomae_names(model: Any) -> dict[str, Tensor]:
    """Return the tensors of a transformers model by VideoMAE's names."""
    is_pretraining = isinstance(model, VideoMAEForPreTraining)
    encoder = "encoder." if is_pretraining else ""
    state = dict(model.state_dict())
    videomae = {}
    for name in list(state):
        if ".attention.attention." in name:
            layer = name.split(".attention.attention.")[0]
            attention = f"{layer}.attention.attention"
            where = _renamed(layer, encoder)
            if name.endswith("query.weight"):
                rows = [state[f"{attention}.{part}.weight"] for part in ("query", "key", "value")]
                videomae[f"{where}.attn.qkv.weight"] = torch.cat(rows)
                videomae[f"{where}.attn.q_bias"] = state[f"{attention}.query.bias"]
                videomae[f"{where}.attn.v_bias"] = state[f"{attention}.value.bias"]
        else:
            videomae[_renamed(name, encoder)] = state[name]
    return {name: value.clone() for name, value in videomae.items()}


def _renamed(name: str, encoder: str) -> str:
    for theirs, videomae in (
        ("videomae.embeddings.patch_embeddings.projection", f"{encoder}patch_embed.proj"),
        ("videomae.encoder.layer", f"{encoder}blocks"),
        ("videomae.layernorm", "encoder.norm"),
        ("decoder.decoder_layers", "decoder.blocks"),
        (".attention.output.dense", ".attn.proj"),
        (".layernorm_before", ".norm1"),
        (".layernorm_after", ".norm2"),
        (".intermediate.dense", ".mlp.fc1"),
        (".output.dense", ".mlp.fc2"),
        ("classifier", "head"),
    ):
        name = name.replace(theirs, videomae)
    return name


def imported(path: Path, options: ImportOptions | None = None, *, allow_partial: bool = False) -> ModelBundle:
    """Import a checkpoint as the command does."""
    options = options or ImportOptions()
    bundle = convert(load_checkpoint(path, key=options.key), options, allow_partial=allow_partial)
    bundle.encoder.eval()
    return bundle
