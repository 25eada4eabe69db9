"""Hugging Face's VideoMAE folders: `config.json`, `model.safetensors`, `preprocessor_config.json`.

transformers 5 calls the biases of query and value `query.bias` and `value.bias` in memory and still writes
the older `q_bias` and `v_bias`, which every version reads, and which some read alone. Both are read here;
the older are written.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from kinemae.data_tools.command import CheckpointError, log
from kinemae.data_tools.files import atomic_write_text, set_default_mode
from kinemae.finetune.conversion.key_rules import (
    Layout,
    Rule,
    Tensors,
    convolution,
    give,
    same,
    same_layer,
    stacked,
    take,
    without_key,
)
from kinemae.finetune.conversion.model_bundle import Kin, build_kin
from kinemae.finetune.conversion.options import (
    FLAT_SINE,
    FRAMES,
    SIZE,
    ImportOptions,
    depth_of,
    measure,
    usual_heads,
)
from kinemae.finetune.conversion.read_weights import CONFIG, PREPROCESSOR, Found
from kinemae.finetune.conversion.unsupported import refuse_inexpressible
from kinemae.pretrain.model.blocks import NORM_EPS
from kinemae.pretrain.model.decoder import MLP_RATIO
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import COLOURS, MEAN, STD

WEIGHTS = "model.safetensors"
_MODEL = "videomae."
_KERNEL = "embeddings.patch_embeddings.projection.weight"
_NEW_NAMES = {".attention.query.bias": ".attention.q_bias", ".attention.value.bias": ".attention.v_bias"}


def is_huggingface(tensors: Tensors) -> bool:
    """Whether a file's names are those of transformers' VideoMAE."""
    return bool({f"{_MODEL}{_KERNEL}", _KERNEL} & tensors.keys())


def read_huggingface(found: Found, options: ImportOptions, *, allow_partial: bool) -> Kin:
    """Read a folder of VideoMAEForPreTraining, VideoMAEForVideoClassification or VideoMAEModel.

    Raises:
        CheckpointError: it is none of these, not whole, or a variant that ours cannot be.
        ValueError: the options do not fit it.
    """
    source, config = found.source, found.config
    _refuse_variants(config, source)
    tensors = {_old_name(name): value for name, value in found.tensors.items()}
    sizes = measure(
        tensors,
        kernel=f"{_MODEL}{_KERNEL}",
        blocks=f"{_MODEL}encoder.layer.",
        expand="intermediate.dense.weight",
        source=source,
    )
    shape = EncoderShape(
        **sizes,
        heads=_heads(options, sizes["width"], config, source),
        positions=FLAT_SINE,
        final_norm=f"{_MODEL}layernorm.weight" in tensors,
    )
    layout = _layout(shape, *_beside(tensors))
    sections = take(layout, tensors, source=source, allow_partial=allow_partial)
    description = options.describe(
        shape,
        known_clip=(config.get("num_frames", FRAMES), config.get("image_size", SIZE)) if config else None,
        mean=tuple(found.preprocessor.get("image_mean", MEAN)),
        std=tuple(found.preprocessor.get("image_std", STD)),
        trained_by={"imported_from": str(source), "layout": layout.name},
    )
    decoder_heads = config.get("decoder_num_attention_heads")
    decoder = (
        options.describe_decoder(sections.decoder, description, heads=decoder_heads)
        if sections.decoder
        else None
    )
    classes = _classes(options, config, sections.head)
    return build_kin(sections, description, decoder, classes, source=source)


def write_huggingface(folder: Path, kin: Kin, tensors: Tensors) -> None:
    """Write a folder that `from_pretrained` reads; the description comes last.

    Args:
        tensors: what `huggingface_tensors` makes of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    set_default_mode(folder / WEIGHTS)  # safetensors writes files that only the owner can read
    for name, content in ((PREPROCESSOR, _preprocessor(kin)), (CONFIG, huggingface_config(kin))):
        atomic_write_text(folder / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def huggingface_tensors(kin: Kin, *, source: object) -> Tensors:
    """The tensors under transformers' names.

    Raises:
        CheckpointError: transformers' VideoMAE cannot be such a model.
    """
    refuse_inexpressible(kin, "transformers' VideoMAE", source=source)
    depth = None if kin.decoder is None else kin.decoder.shape.depth
    layout = _layout(kin.description.shape, depth, kin.head is not None)
    tensors = give(layout.encoder, kin.encoder.state_dict())
    if kin.decoder is not None:
        tensors |= give(layout.decoder, kin.decoder.state_dict())
    if kin.head is not None:
        tensors |= give(layout.head, kin.head.state_dict())
    return tensors


def huggingface_config(kin: Kin) -> dict[str, Any]:
    """What stands in `config.json`. Its one epsilon is that of the blocks; two norms have PyTorch's 1e-5."""
    shape = kin.description.shape
    kind = "ForVideoClassification" if kin.head else "ForPreTraining" if kin.decoder else "Model"
    config = {
        "architectures": [f"VideoMAE{kind}"],
        "model_type": "videomae",
        "image_size": kin.description.size,
        "patch_size": shape.patch[1],
        "num_channels": COLOURS,
        "num_frames": kin.description.frames,
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
    if kin.decoder is not None:
        decoder = kin.decoder.shape
        config |= {
            "decoder_hidden_size": decoder.width,
            "decoder_num_hidden_layers": decoder.depth,
            "decoder_num_attention_heads": decoder.heads,
            "decoder_intermediate_size": MLP_RATIO * decoder.width,
        }
    if kin.classes:
        config["id2label"] = {str(number): name for number, name in enumerate(kin.classes)}
        config["label2id"] = {name: number for number, name in enumerate(kin.classes)}
    return config


def _preprocessor(kin: Kin) -> dict[str, Any]:
    """How transformers makes clips from frames: the short side resized, the centre cut out, normalised."""
    size = kin.description.size
    return {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(kin.description.mean),
        "image_std": list(kin.description.std),
    }


def _refuse_variants(config: dict[str, Any], source: object) -> None:
    """Refuse what transformers can be told to do otherwise than VideoMAE does."""
    needed: dict[str, Callable[[Any], bool]] = {
        "hidden_act": lambda value: value == "gelu",
        "image_size": lambda value: isinstance(value, int),
        "patch_size": lambda value: isinstance(value, int),
    }
    for key, is_met in needed.items():
        if key in config and not is_met(config[key]):
            raise CheckpointError(f"{source}: its config has {key}={config[key]!r}, which ours cannot be")


def _old_name(name: str) -> str:
    """The name as official folders have it: with `videomae.` before the encoder, and the older biases."""
    if name.startswith(("embeddings.", "encoder.", "layernorm.")):  # of a VideoMAEModel alone
        name = f"{_MODEL}{name}"
    for new, old in _NEW_NAMES.items():
        name = name.replace(new, old)
    return name


def _heads(options: ImportOptions, width: int, config: dict[str, Any], source: object) -> int:
    heads, usual = options.head_count(width, known=config.get("num_attention_heads")), usual_heads(width)
    if usual is not None and usual != heads:
        log.warning(
            "%s: taken with %d attention heads, where published encoders of width %d have %d; some folders "
            "were converted with a wrong number, which heads=%d corrects",
            source,
            heads,
            width,
            usual,
            usual,
        )
    return heads


def _classes(options: ImportOptions, config: dict[str, Any], head: Tensors) -> tuple[str, ...]:
    if not head:
        return ()
    count = len(head["linear.weight"])
    labels = config.get("id2label", {})
    known = tuple(str(labels.get(str(number), number)) for number in range(count))
    return options.class_names(count, known=known)


def _beside(tensors: Tensors) -> tuple[int | None, bool]:
    """The decoder's depth, None without one, and whether there is a head."""
    has_decoder = any(name.startswith("decoder.") for name in tensors)
    depth = depth_of(tensors, "decoder.decoder_layers.") if has_decoder else None
    return depth, "classifier.weight" in tensors


def _layout(shape: EncoderShape, decoder_depth: int | None, has_head: bool) -> Layout:
    name = "classification" if has_head else "pretraining" if decoder_depth is not None else "encoder"
    return Layout(
        name=f"transformers VideoMAE {name}",
        encoder=(
            convolution("patch_embed.weight", f"{_MODEL}{_KERNEL}", shape.patch),
            same("patch_embed.bias", f"{_MODEL}{_KERNEL.replace('weight', 'bias')}"),
            *_blocks(shape.depth, f"{_MODEL}encoder.layer"),
            *(same_layer("norm", f"{_MODEL}layernorm") if shape.final_norm else ()),
        ),
        decoder=() if decoder_depth is None else _decoder(decoder_depth),
        head=(*same_layer("norm", "fc_norm"), *same_layer("linear", "classifier")) if has_head else (),
    )


def _decoder(depth: int) -> tuple[Rule, ...]:
    return (
        same("embed.weight", "encoder_to_decoder.weight"),
        same("mask_token", "mask_token"),
        *_blocks(depth, "decoder.decoder_layers"),
        *same_layer("norm", "decoder.norm"),
        *same_layer("head", "decoder.head"),
    )


def _blocks(depth: int, prefix: str) -> list[Rule]:
    rules: list[Rule] = []
    for i in range(depth):
        ours, theirs = f"blocks.{i}", f"{prefix}.{i}"
        attention, inner = f"{ours}.attn", f"{theirs}.attention.attention"
        rules += same_layer(f"{ours}.norm1", f"{theirs}.layernorm_before")
        parts = [f"{inner}.{part}.weight" for part in ("query", "key", "value")]
        rules.append(stacked(f"{attention}.qkv.weight", *parts))
        rules.append(without_key(f"{attention}.qkv.bias", f"{inner}.q_bias", f"{inner}.v_bias"))
        rules += same_layer(f"{attention}.proj", f"{theirs}.attention.output.dense")
        rules += same_layer(f"{ours}.norm2", f"{theirs}.layernorm_after")
        rules += same_layer(f"{ours}.mlp.fc1", f"{theirs}.intermediate.dense")
        rules += same_layer(f"{ours}.mlp.fc2", f"{theirs}.output.dense")
    return rules
