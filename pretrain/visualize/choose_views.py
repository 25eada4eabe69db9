"""Choose and build the views that a model has."""

from collections.abc import Callable, Mapping

from kinemae.data_tools.components import Component, build_component, component_names, named_components
from kinemae.data_tools.config import require
from kinemae.pretrain.model.sizes import check_merging
from kinemae.pretrain.pruning.base import Pruning
from kinemae.pretrain.pruning.none import NoPruning
from kinemae.pretrain.visualize.attention import AttentionMaps
from kinemae.pretrain.visualize.features import PrincipalComponents, Similarity
from kinemae.pretrain.visualize.settings import VIEWS, VisualizeConfig
from kinemae.pretrain.visualize.tokens import MergedGroups, PrunedTokens
from kinemae.pretrain.visualize.views import Subject, View

_PRUNING = "kinemae.pretrain.pruning"
_KEEP = 0.5
_LEFT = 0.25

Build = Callable[[float], View]
"""Builds a view of a video; the argument is the time in seconds in the middle of the video."""


def choose_views(
    subject: Subject,
    settings: VisualizeConfig,
    *,
    own: Mapping[str, View | str],
    own_pruning: Pruning | None = None,
) -> tuple[dict[str, Build], dict[str, str]]:
    """The chosen views by name, and the reasons why others are not drawn.

    Args:
        own: views that depend on the kind of model, or the reason why it has none.
        own_pruning: the pruning of the model itself.

    Raises:
        ValueError: a setting that the model does not support, or a view that it does not have.
    """
    depth, shape = len(subject.encoder.blocks), subject.encoder.shape
    blocks, heads = settings.block_numbers(depth), settings.head_numbers(shape.heads)
    point = None if settings.point is None else settings.place
    found: dict[str, Build | str] = {
        "attention": lambda middle_s: AttentionMaps(blocks, heads, point),
        "similarity": lambda middle_s: Similarity(
            blocks, settings.place, middle_s if settings.point_s is None else settings.point_s
        ),
        "pca": lambda middle_s: PrincipalComponents(blocks),
    }
    strategies = _strategies(subject, settings, own_pruning)
    found["pruning"] = lambda middle_s: PrunedTokens(strategies)
    found["merging"] = _merging(subject, settings, blocks)
    for name, view in own.items():
        found[name] = view if isinstance(view, str) else _constant(view)
    chosen = settings.views or [name for name in VIEWS if not isinstance(found[name], str)]
    builds: dict[str, Build] = {}
    for name in VIEWS:
        build = found[name]
        if name in chosen and isinstance(build, str):
            raise ValueError(f"views: expected views that the model has, got {name}: {build}; fix: remove it")
        if name in chosen and not isinstance(build, str):
            builds[name] = build
    return builds, {name: why for name, why in found.items() if isinstance(why, str)}


def _constant(view: View) -> Build:
    return lambda middle_s: view


def _strategies(subject: Subject, settings: VisualizeConfig, own: Pruning | None) -> dict[str, Pruning]:
    """The pruning strategies by title; by default all with usual arguments, and the model's own."""
    if settings.pruning is None:
        given = {"motion": {"keep": _KEEP}, "run_length": {}}
        given |= {"learned": {"keep": _KEEP}} if subject.encoder.shape.scorer else {}
    else:
        given = named_components(settings.pruning, "pruning", "pruning strategy")
    found: dict[str, Pruning] = {}
    if own is not None and not isinstance(own, NoPruning):
        found["the model's own"] = own
    for name, args in given.items():
        require(isinstance(args, dict), f"pruning.{name}", "be a mapping of arguments", args)
        strategy = build_component(_PRUNING, Component(name=name, args=args), Pruning)
        if strategy.is_learned and not subject.encoder.shape.scorer:
            others = ", ".join(each for each in component_names(_PRUNING) if each not in ("none", name))
            raise ValueError(
                f"pruning.{name}: expected an encoder with a scorer, got one without; fix: name some of "
                f"{others}, or give a model that was trained with pruning={name}"
            )
        found[" ".join([name, *(f"{key}={value}" for key, value in args.items())])] = strategy
    return found


def _merging(subject: Subject, settings: VisualizeConfig, blocks: list[int]) -> Build | str:
    """The view of token merging, or the reason why there is none."""
    encoder = subject.encoder
    per_block = settings.merge_per_block
    if per_block is None:
        tokens = encoder.grid.tokens
        per_block = encoder.merge_per_block or max(1, round((1 - _LEFT) * tokens / len(encoder.blocks)))
    try:
        check_merging(per_block, encoder.shape.attention, key="merge_per_block")
    except ValueError as error:
        if settings.merge_per_block is not None:
            raise
        return str(error)
    return lambda middle_s: MergedGroups(blocks, per_block)
