"""Conversion of VideoMAE checkpoints of transformers.

A checkpoint is a folder with `config.json`, `model.safetensors` and `preprocessor_config.json`.

transformers 5 names the biases of query and value `query.bias` and `value.bias` in memory, and writes the
older `q_bias` and `v_bias`, which every version reads. Both are read here; the older names are written.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kinemae.data_tools.command import log
from kinemae.data_tools.files import atomic_write_text, set_default_mode
from kinemae.data_tools.stream.loader import ClipConfig
from kinemae.finetune.conversion.key_rules import (
    CheckpointFormat,
    Rule,
    Tensors,
    block_rules,
    concatenate,
    count_blocks,
    infer_sizes,
    patch_embedding,
    qkv_bias,
    read_tensors,
    rename_layer,
)
from kinemae.finetune.conversion.model_bundle import (
    ModelBundle,
    build_bundle,
    check_exportable,
    export_tensors,
)
from kinemae.finetune.conversion.options import FLAT_SINE, FRAMES, PUBLISHED_HEADS, SIZE, ImportOptions
from kinemae.finetune.conversion.read_weights import CONFIG, PREPROCESSOR, LoadedCheckpoint
from kinemae.finetune.conversion.videomae import decoder_rules
from kinemae.pretrain.model.blocks import NORM_EPS
from kinemae.pretrain.model.decoder import MLP_RATIO
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import COLOURS
from kinemae.pretrain.serialization import save_tensors

WEIGHTS = "model.safetensors"
_MODEL = "videomae."
_PATCH_EMBEDDING = "embeddings.patch_embeddings.projection"
_LAYERS = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def is_huggingface(tensors: Tensors) -> bool:
    """Check for the tensor names of VideoMAE in transformers."""
    return bool({f"{_MODEL}{_PATCH_EMBEDDING}.weight", f"{_PATCH_EMBEDDING}.weight"} & tensors.keys())


def read_huggingface(loaded: LoadedCheckpoint, options: ImportOptions, *, allow_partial: bool) -> ModelBundle:
    """Convert a VideoMAEForPreTraining, VideoMAEForVideoClassification or VideoMAEModel.

    Raises:
        CheckpointError: another, an incomplete or an unsupported model.
        ValueError: the options do not fit it.
    """
    source, config = loaded.source, loaded.config
    loaded.check_config({"hidden_act": "gelu", "qkv_bias": True})
    if config.get("layer_norm_eps", NORM_EPS) > NORM_EPS:  # published folders have 1e-12 or 1e-6
        loaded.check_config({"layer_norm_eps": NORM_EPS})
    frames, size = loaded.whole_number("num_frames", FRAMES), loaded.whole_number("image_size", SIZE)
    tensors = {_canonical_name(name): value for name, value in loaded.tensors.items()}
    sizes = infer_sizes(
        tensors,
        kernel=f"{_MODEL}{_PATCH_EMBEDDING}.weight",
        blocks=f"{_MODEL}encoder.layer",
        fc1="intermediate.dense",
        source=source,
    )
    loaded.check_sizes(sizes)
    shape = EncoderShape(
        **sizes,
        heads=_num_heads(options, sizes["width"], loaded),
        positions=FLAT_SINE,
        final_norm=f"{_MODEL}layernorm.weight" in tensors,
    )
    decoder_depth = count_blocks(tensors, "decoder.decoder_layers") or None
    layout = _format(shape, decoder_depth, has_head="classifier.weight" in tensors)
    converted = read_tensors(layout, tensors, source=source, allow_partial=allow_partial)
    description = options.describe(
        shape,
        known_clip=ClipConfig(frames=frames, size=size) if config else None,
        **loaded.normalization(),
        trained_by={"imported_from": str(source), "format": layout.name},
    )
    return build_bundle(
        converted,
        description,
        options,
        source=source,
        decoder_heads=loaded.whole_number("decoder_num_attention_heads", 0),
        classes=loaded.class_names(len(converted.head.get("linear.weight", ()))),
    )


def write_huggingface(
    folder: Path, bundle: ModelBundle, tensors: Tensors, config: dict[str, Any] | None = None
) -> None:
    """Write a folder for `from_pretrained`; `config.json` is written last.

    Args:
        tensors: the output of `huggingface_tensors`.
        config: `config.json`; by default that of VideoMAE.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    set_default_mode(folder / WEIGHTS)  # safetensors writes files that only the owner can read
    config = (config or huggingface_config(bundle)) | _class_names(bundle.classes)
    for name, content in ((PREPROCESSOR, _preprocessor(bundle)), (CONFIG, config)):
        atomic_write_text(folder / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def huggingface_tensors(bundle: ModelBundle, *, source: object) -> Tensors:
    """Convert a model to the tensors of VideoMAE in transformers.

    Raises:
        CheckpointError: transformers' VideoMAE does not support the model.
    """
    check_exportable(bundle, "VideoMAE in transformers", source=source)
    depth = None if bundle.decoder is None else bundle.decoder.shape.depth
    layout = _format(bundle.description.shape, depth, has_head=bundle.head is not None)
    return export_tensors(layout, bundle)


def huggingface_config(bundle: ModelBundle) -> dict[str, Any]:
    """Return `config.json`. Its epsilon is that of the blocks; transformers fixes two other norms to 1e-5."""
    shape, kind = bundle.description.shape, "Model"
    if bundle.head or bundle.decoder:
        kind = "ForVideoClassification" if bundle.head else "ForPreTraining"
    config = {
        "architectures": [f"VideoMAE{kind}"],
        "model_type": "videomae",
        "image_size": bundle.description.size,
        "patch_size": shape.patch[1],
        "num_channels": COLOURS,
        "num_frames": bundle.description.frames,
        "tubelet_size": shape.patch[0],
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.mlp_width,
        "hidden_act": "gelu",
        "layer_norm_eps": NORM_EPS,
        "qkv_bias": True,
        "use_mean_pooling": not shape.final_norm,
        "norm_pix_loss": True,
    }
    if bundle.decoder is not None:
        decoder = bundle.decoder.shape
        config |= {
            "decoder_hidden_size": decoder.width,
            "decoder_num_hidden_layers": decoder.depth,
            "decoder_num_attention_heads": decoder.heads,
            "decoder_intermediate_size": MLP_RATIO * decoder.width,
        }
    return config


def _class_names(classes: Sequence[str]) -> dict[str, Any]:
    names = dict(enumerate(classes))
    return {"id2label": names, "label2id": {name: i for i, name in names.items()}} if names else {}


def _preprocessor(bundle: ModelBundle) -> dict[str, Any]:
    """Return `preprocessor_config.json`: resize the short side, crop the centre, normalize."""
    size = bundle.description.size
    return {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(bundle.description.mean),
        "image_std": list(bundle.description.std),
    }


def _canonical_name(name: str) -> str:
    """Add the prefix that a VideoMAEModel lacks, and use the older names of the biases."""
    if name.startswith(("embeddings.", "encoder.", "layernorm.")):
        name = f"{_MODEL}{name}"
    for part in ("query", "value"):
        name = name.replace(f".attention.{part}.bias", f".attention.{part[0]}_bias")
    return name


def _num_heads(options: ImportOptions, width: int, loaded: LoadedCheckpoint) -> int:
    heads = options.num_heads(width, known=loaded.whole_number("num_attention_heads", 0))
    published = PUBLISHED_HEADS.get(width)
    if published not in (None, heads):
        log.warning(
            "%s: expected %d attention heads as in published encoders of width %d, got %d; some folders were "
            "converted with a wrong number; fix: heads=%d",
            *(loaded.source, published, width, heads, published),
        )
    return heads


def _format(shape: EncoderShape, decoder_depth: int | None, *, has_head: bool) -> CheckpointFormat:
    name = "classification" if has_head else "pretraining" if decoder_depth else "encoder"
    head = (*rename_layer("norm", "fc_norm"), *rename_layer("linear", "classifier"))
    encoder = [
        *patch_embedding(f"{_MODEL}{_PATCH_EMBEDDING}", shape.patch),
        *block_rules(shape.depth, f"{_MODEL}encoder.layer", _LAYERS, _qkv),
        *(rename_layer("norm", f"{_MODEL}layernorm") if shape.final_norm else ()),
    ]
    decoder = block_rules(decoder_depth or 0, "decoder.decoder_layers", _LAYERS, _qkv)
    return CheckpointFormat(
        name=f"transformers VideoMAE {name}",
        encoder=encoder,
        decoder=decoder_rules(decoder) if decoder_depth else (),
        head=head if has_head else (),
    )


def _qkv(ours: str, block: str) -> tuple[Rule, Rule]:
    attention = f"{block}.attention.attention"
    weights = [f"{attention}.{part}.weight" for part in ("query", "key", "value")]
    return (
        concatenate(f"{ours}.weight", weights),
        qkv_bias(f"{ours}.bias", f"{attention}.q_bias", f"{attention}.v_bias"),
    )
