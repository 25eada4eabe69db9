"""Rules of checkpoint conversion: map tensor names and shapes between KineMAE and other formats, both ways.

A list of rules describes a format. It determines how a checkpoint is read and written, and which tensors it
must contain.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from kinemae.data_tools.command import CheckpointError, log
from kinemae.pretrain.model.tokens import COLOURS, Patch

Tensors = dict[str, Tensor]

TIMM_LAYERS = {name: name for name in ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")}
"""Layers of a block that have the same names in KineMAE, timm, VideoMAE and MAE-ST."""

_LISTED = 5  # names of tensors that a message lists


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Conversion of one KineMAE tensor.

    Attributes:
        ours: its name in KineMAE.
        theirs: the names of the tensors that it is made of in the other format.
        read: converts their tensors, in order, to ours.
        write: converts our tensor to theirs.
    """

    ours: str
    theirs: tuple[str, ...]
    read: Callable[..., Tensor]
    write: Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True, kw_only=True)
class CheckpointFormat:
    """All tensors of one kind of checkpoint.

    Attributes:
        name: for messages.
        encoder, decoder, head: the rules of each module; empty if the checkpoint has none.
        ignored: prefixes of known tensors that are not converted, each with the reason.
    """

    name: str
    encoder: Sequence[Rule]
    decoder: Sequence[Rule] = ()
    head: Sequence[Rule] = ()
    ignored: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ModelTensors:
    """Converted tensors of each module; empty if the checkpoint has none."""

    encoder: Tensors
    decoder: Tensors
    head: Tensors


def rename(ours: str, theirs: str) -> Rule:
    """The same tensor under another name."""
    return Rule(ours=ours, theirs=(theirs,), read=lambda value: value, write=lambda value: (value,))


def rename_layer(ours: str, theirs: str) -> tuple[Rule, Rule]:
    """Weight and bias of a linear layer or a norm."""
    return rename(f"{ours}.weight", f"{theirs}.weight"), rename(f"{ours}.bias", f"{theirs}.bias")


def concatenate(ours: str, theirs: Sequence[str]) -> Rule:
    """Their tensors, of equal size, concatenated along the first dimension."""
    return Rule(
        ours=ours,
        theirs=tuple(theirs),
        read=lambda *values: torch.cat(values),
        write=lambda value: value.chunk(len(theirs)),
    )


def qkv_bias(ours: str, query: str, value: str) -> Rule:
    """The bias of query, key and value, from a format without a key bias.

    Reading sets the key bias to 0. Writing drops it, which does not change the output: it adds the same
    number to all scores of a query, and softmax is invariant to that.
    """
    return Rule(
        ours=ours,
        theirs=(query, value),
        read=lambda query_D, value_D: torch.cat([query_D, torch.zeros_like(query_D), value_D]),
        write=lambda bias: bias.chunk(3)[::2],
    )


def no_bias(ours: str, length: int) -> Rule:
    """A bias of zeros, for a format whose layer has none. Not written."""
    return Rule(ours=ours, theirs=(), read=lambda: torch.zeros(length), write=lambda bias: ())


def add_first_positions(ours: str, tokens: Sequence[str], table: str, count: int) -> Rule:
    """Class and register tokens (1, n, D), the first `count` of them with the first positions of a table.

    Not written, since the sum cannot be separated.
    """

    def read(*values: Tensor) -> Tensor:
        token_1ND = torch.cat([value.float() for value in values[: len(tokens)]], dim=1)
        position_1ND = values[-1][:, :count].float()
        return torch.cat([token_1ND[:, :count] + position_1ND, token_1ND[:, count:]], dim=1)

    return Rule(ours=ours, theirs=(*tokens, table), read=read, write=lambda token: ())


def skip_first_positions(ours: str, table: str, count: int) -> Rule:
    """A position table (1, N, D) without its first `count` positions. Not written."""
    return Rule(ours=ours, theirs=(table,), read=lambda table: table[:, count:], write=lambda table: ())


def patch_embedding(theirs: str, patch: Patch) -> tuple[Rule, Rule]:
    """A 3-D convolution (D, C, frames, height, width), in KineMAE a linear layer on flattened patches."""
    kernel = Rule(
        ours="patch_embed.weight",
        theirs=(f"{theirs}.weight",),
        read=lambda kernel: kernel.permute(0, 2, 3, 4, 1).flatten(1),
        write=lambda weight_DP: (weight_DP.unflatten(1, (*patch, COLOURS)).permute(0, 4, 1, 2, 3),),
    )
    return kernel, rename("patch_embed.bias", f"{theirs}.bias")


def block_rules(
    depth: int, theirs: str, layers: Mapping[str, str], qkv: Callable[[str, str], Iterable[Rule]]
) -> list[Rule]:
    """Rules of all transformer blocks.

    Args:
        depth: number of blocks.
        theirs: prefix of their blocks, before the number.
        layers: maps our layer names within a block to theirs.
        qkv: makes the rules of query, key and value from our layer's name and their block's name.
    """
    rules: list[Rule] = []
    for i in range(depth):
        rules += qkv(f"blocks.{i}.attn.qkv", f"{theirs}.{i}")
        for our_layer, their_layer in layers.items():
            rules += rename_layer(f"blocks.{i}.{our_layer}", f"{theirs}.{i}.{their_layer}")
    return rules


def count_blocks(tensors: Tensors, prefix: str) -> int:
    """Count the blocks whose names begin with a prefix and a number."""
    numbered = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return len({match.group(1) for match in map(numbered.match, tensors) if match})


def infer_sizes(tensors: Tensors, *, kernel: str, blocks: str, fc1: str, source: object) -> dict[str, Any]:
    """Infer width, depth, mlp_width and patch of an encoder from its tensors.

    Args:
        kernel: name of the patch embedding's weight.
        blocks: prefix of the blocks, before the number.
        fc1: name of the first MLP layer within a block.

    Raises:
        CheckpointError: these tensors are missing or of other dimensions.
    """
    expand = f"{blocks}.0.{fc1}.weight"
    missing = [name for name in (kernel, expand) if name not in tensors]
    if missing:
        raise CheckpointError(f"{source}: expected a complete model, got none of {', '.join(missing)}")
    shape = tuple(tensors[kernel].shape)
    if len(shape) != 5 or shape[1] != COLOURS:
        expected = f"(width, {COLOURS}, frames, height, width)"
        raise CheckpointError(f"{source}: expected {kernel} of shape {expected}, got {shape}")
    return {
        "width": shape[0],
        "depth": count_blocks(tensors, blocks),
        "mlp_width": len(tensors[expand]),
        "patch": shape[2:],
    }


def write_tensors(rules: Iterable[Rule], ours: Tensors) -> Tensors:
    """Convert KineMAE's tensors to the other format; each result has its own memory."""
    written = {}
    for rule in rules:
        for name, value in zip(rule.theirs, rule.write(ours[rule.ours]), strict=True):
            written[name] = value.detach().clone(memory_format=torch.contiguous_format)
    return written


def read_tensors(
    layout: CheckpointFormat, theirs: Tensors, *, source: object, allow_partial: bool
) -> ModelTensors:
    """Convert a checkpoint's tensors to KineMAE's, in float32.

    Args:
        source: the file, for messages.
        allow_partial: skip unknown tensors and an incomplete decoder or head, with a warning. The encoder
            must be complete.

    Raises:
        CheckpointError: names missing and unexpected tensors.
    """
    modules = {"encoder": layout.encoder, "decoder": layout.decoder, "head": layout.head}
    missing = {
        module: [name for rule in rules for name in rule.theirs if name not in theirs]
        for module, rules in modules.items()
    }
    known = {name for rules in modules.values() for rule in rules for name in rule.theirs}
    others = theirs.keys() - known
    unexpected = sorted(name for name in others if not name.startswith(tuple(layout.ignored)))
    problems = []
    for kind, names in (
        ("missing", [name for each in missing.values() for name in each]),
        ("unexpected", unexpected),
    ):
        if names:
            listed = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
            problems.append(f"{len(names)} {kind} ({listed})")
    if missing["encoder"] or (problems and not allow_partial):
        fix = "" if missing["encoder"] else "; fix: --allow-partial skips them"
        raise CheckpointError(
            f"{source}: expected the tensors of {layout.name}, got {', '.join(problems)}{fix}"
        )
    if problems:
        log.warning("%s: skipped tensors: %s", source, ", ".join(problems))
    _log_ignored(layout, others, source)
    return ModelTensors(
        **{
            module: {} if missing[module] else {rule.ours: _read(rule, theirs, source) for rule in rules}
            for module, rules in modules.items()
        }
    )


def _log_ignored(layout: CheckpointFormat, names: set[str], source: object) -> None:
    for prefix, reason in layout.ignored.items():
        count = sum(name.startswith(prefix) for name in names)
        if count:
            log.info("%s: skipped %s (%d tensors): %s", source, prefix.rstrip("."), count, reason)


def _read(rule: Rule, theirs: Tensors, source: object) -> Tensor:
    values = [theirs[name] for name in rule.theirs]
    for name, value in zip(rule.theirs, values, strict=True):
        if not value.is_floating_point() or not value.float().isfinite().all():
            got = value.dtype if not value.is_floating_point() else "infinity or NaN"
            raise CheckpointError(
                f"{source}: expected finite floating-point values in {name}, got {got}; "
                "fix: choose another checkpoint"
            )
    try:
        return rule.read(*values).float().contiguous()
    except RuntimeError as error:  # PyTorch cannot concatenate or reshape them
        pairs = zip(rule.theirs, values, strict=True)
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in pairs)
        raise CheckpointError(f"{source}: expected tensors of matching shapes, got {shapes}") from error
