"""Rules: of which tensors of another system one of ours is made, and how to get those back.

A system's file is described by a list of rules, once; reading and writing it, and which tensors must be in
it, all follow from that list.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kinemae.data_tools.command import CheckpointError, log
from kinemae.pretrain.model.tokens import COLOURS, Patch

Tensors = dict[str, Tensor]

_LISTED = 5
"""How many names of tensors a message lists."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One tensor of ours and those it is made of.

    Attributes:
        read: from their tensors, in order, to ours.
        write: the way back.
    """

    ours: str
    theirs: tuple[str, ...]
    read: Callable[..., Tensor]
    write: Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """All tensors of one kind of file.

    Attributes:
        name: of the kind, for messages.
        encoder, decoder, head: the rules of each; empty where the kind has none.
        left_out: beginnings of names that are known and not read.
    """

    name: str
    encoder: tuple[Rule, ...]
    decoder: tuple[Rule, ...] = ()
    head: tuple[Rule, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sections:
    """Our tensors, sorted by what they belong to; empty where the file has none."""

    encoder: Tensors
    decoder: Tensors
    head: Tensors


def same(ours: str, theirs: str) -> Rule:
    """The same tensor under another name."""
    return Rule(ours=ours, theirs=(theirs,), read=lambda value: value, write=lambda value: (value,))


def same_layer(ours: str, theirs: str) -> tuple[Rule, Rule]:
    """Weight and bias of a linear layer or a norm."""
    return same(f"{ours}.weight", f"{theirs}.weight"), same(f"{ours}.bias", f"{theirs}.bias")


def stacked(ours: str, *theirs: str) -> Rule:
    """Their tensors one below the other, equally many rows each."""
    return Rule(
        ours=ours,
        theirs=theirs,
        read=lambda *values: torch.cat(values),
        write=lambda value: value.chunk(len(theirs)),
    )


def without_key(ours: str, query: str, value: str) -> Rule:
    """The bias of query, key and value, of which they have the first and the last.

    The key's is 0 when it is read. It is dropped when it is written, which changes nothing: it adds the
    same number to all of a query's scores, and softmax takes that away again.
    """
    return Rule(
        ours=ours,
        theirs=(query, value),
        read=lambda query_D, value_D: torch.cat([query_D, torch.zeros_like(query_D), value_D]),
        write=lambda bias: bias.chunk(3)[::2],
    )


def convolution(ours: str, theirs: str, patch: Patch) -> Rule:
    """Their kernel (D, C, frames, height, width) as our layer on (frame, row, column, channel) values."""
    return Rule(
        ours=ours,
        theirs=(theirs,),
        read=lambda kernel: kernel.permute(0, 2, 3, 4, 1).flatten(1),
        write=lambda weight_DP: (weight_DP.unflatten(1, (*patch, COLOURS)).permute(0, 4, 1, 2, 3),),
    )


def give(rules: Iterable[Rule], ours: Tensors) -> Tensors:
    """Write their tensors, each with memory of its own."""
    written = {}
    for rule in rules:
        for name, value in zip(rule.theirs, rule.write(ours[rule.ours]), strict=True):
            written[name] = value.detach().clone(memory_format=torch.contiguous_format)
    return written


def take(layout: Layout, theirs: Tensors, *, source: object, allow_partial: bool) -> Sections:
    """Read our tensors in float32.

    Args:
        source: the file, for messages.
        allow_partial: leave out, with a warning, what the layout does not know, and a decoder or a head that
            is not whole. The encoder must be whole.

    Raises:
        CheckpointError: tensors are missing or unexpected; they are named.
    """
    parts = {"encoder": layout.encoder, "decoder": layout.decoder, "head": layout.head}
    missing = {
        part: [name for rule in rules for name in rule.theirs if name not in theirs]
        for part, rules in parts.items()
    }
    known = {name for rules in parts.values() for rule in rules for name in rule.theirs}
    unexpected = sorted(name for name in theirs.keys() - known if not name.startswith(layout.left_out))
    lacking = [name for names in missing.values() for name in names]
    if missing["encoder"] or ((lacking or unexpected) and not allow_partial):
        raise CheckpointError(
            f"{source} is no {layout.name} file: {_listing(missing=lacking, unexpected=unexpected)}"
            + ("" if missing["encoder"] else "; --allow-partial leaves these out")
        )
    if lacking or unexpected:
        log.warning("%s: left out: %s", source, _listing(missing=lacking, unexpected=unexpected))
    read = {part: {} if missing[part] else _read(rules, theirs, source) for part, rules in parts.items()}
    return Sections(**read)


def _read(rules: Iterable[Rule], theirs: Tensors, source: object) -> Tensors:
    read = {}
    for rule in rules:
        values = [theirs[name] for name in rule.theirs]
        try:
            read[rule.ours] = rule.read(*values).float().contiguous()
        except RuntimeError as error:  # what PyTorch says of shapes that cannot be joined or turned
            shapes = ", ".join(
                f"{name} {tuple(value.shape)}" for name, value in zip(rule.theirs, values, strict=True)
            )
            raise CheckpointError(f"{source} holds tensors of wrong shapes: {shapes}") from error
    return read


def _listing(**names: list[str]) -> str:
    parts = [
        f"{len(found)} {kind} ({', '.join(found[:_LISTED])}{', ...' if len(found) > _LISTED else ''})"
        for kind, found in names.items()
        if found
    ]
    return f"{', '.join(parts)} tensors"
