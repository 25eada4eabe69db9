"""Gather facts, apply the rules, measure the speed: the advice for one data set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from kinemae.data_tools.command import DataError
from kinemae.data_tools.config import load_config
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.overrides import as_yaml_override
from kinemae.pretrain.advise.budget import Budget, Speed, micro_batch, plan_budget
from kinemae.pretrain.advise.clip_statistics import correlations_by_stride, measure_clips
from kinemae.pretrain.advise.facts import Facts, index_columns
from kinemae.pretrain.advise.floors import measure_floors
from kinemae.pretrain.advise.overview import SAMPLED_VIDEOS, draw_positions, read_overview
from kinemae.pretrain.advise.rule_table import Advice as Reason
from kinemae.pretrain.advise.rule_table import Settings, apply_table, fixed_values, settings_of
from kinemae.pretrain.advise.rules import CLIP_RULES, EXCLUDING, FEWEST_STEPS, KEYS, RULES, SIZES
from kinemae.pretrain.advise.warnings import Case, warnings_of
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.cost import step_flops

MEASURED_CLIPS = 64


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Facts, settings and cost.

    Attributes:
        config: the config of the advised run.
        reasons: the settings with reason and source.
        fixed: settings of the table that the user has chosen.
        warnings: texts by name.
    """

    config: PretrainConfig
    facts: Facts
    reasons: Sequence[Reason]
    fixed: Settings
    budget: Budget
    warnings: dict[str, str]

    @property
    def settings(self) -> Settings:
        """The advised values by config key."""
        return settings_of(self.reasons)

    def summary(self) -> dict[str, Any]:
        """Return the advice as JSON."""
        return {
            "facts": self.facts.summary(),
            "settings": self.settings,
            "advice": [vars(each) for each in self.reasons],
            "chosen_by_the_user": self.fixed,
            "cost": self.budget.summary(),
            "warnings": self.warnings,
        }


@dataclass(frozen=True, kw_only=True)
class Request:
    """The user's input.

    Attributes:
        overrides: of the advised config, with `data.shards` and `run_dir`.
        hours: time for the training; None for no limit.
        speed: measures the speed of a config, from its FLOPs of a clip; or returns a given one.
    """

    overrides: Sequence[str]
    device: torch.device
    hours: float | None
    speed: Callable[[PretrainConfig, int], Speed]

    def config(self, settings: Settings) -> PretrainConfig:
        """The config of some settings, with 1 step unless they are given; the overrides take precedence."""
        planned = [as_yaml_override(key, value) for key, value in settings.items()]
        return load_config(PretrainConfig, None, ["steps=1", *planned, *self.overrides])


def advise(index: ShardIndex, request: Request) -> Advice:
    """Measure a data set and advise a pretraining run.

    Raises:
        ValueError: the overrides and the advised values make no valid config.
        DataError: no video can be decoded, or the measured steps failed.
    """
    chosen = request.config({})
    fixed = fixed_values(chosen, request.overrides, KEYS, EXCLUDING)
    facts = gather(index, request, chosen, fixed)
    while True:
        reasons = apply_table((*CLIP_RULES, *RULES), facts, fixed)
        config, budget, last = _budget(reasons, fixed, facts, request)
        reduced = _reduced(facts, config, budget, fixed)
        if reduced is None:
            break
        facts = reduced
    reasons += [each for each in last if each.settings.keys() - fixed.keys()]
    case = Case(facts=facts, given={**fixed, **settings_of(reasons)}, budget=budget)
    return Advice(
        config=config,
        facts=facts,
        reasons=reasons,
        fixed=fixed_values(chosen, request.overrides, KEYS, {}),
        budget=budget,
        warnings=warnings_of(case),
    )


def gather(index: ShardIndex, request: Request, chosen: PretrainConfig, fixed: Settings) -> Facts:
    """Measure videos, choose the clip, and measure such clips."""
    seed, is_cuda = chosen.seed, request.device.type == "cuda"
    positions = draw_positions(index, SAMPLED_VIDEOS, seed)
    some = draw_positions(index, MEASURED_CLIPS, seed)
    overview, grey = read_overview(index, positions)
    if not grey:
        raise DataError(
            f"{index.folder}: expected videos that can be decoded, got none among {len(positions)}; fix: "
            f"`kinemae data verify {index.folder}` names the reasons"
        )
    facts = Facts(
        **index_columns(index),
        device=request.device.type,
        memory_gb=torch.cuda.mem_get_info(request.device)[1] / 1e9 if is_cuda else None,
        hours=request.hours,
        overview=overview,
        by_stride=correlations_by_stride(index, some),
        floors=measure_floors(index, grey, seed=seed),
    )
    config = request.config(settings_of(apply_table(CLIP_RULES, facts, fixed)))
    patch = config.model.shape().encoder.patch
    return replace(facts, clip=measure_clips(index, some, config.clip, patch))


def _budget(
    reasons: Sequence[Reason], fixed: Settings, facts: Facts, request: Request
) -> tuple[PretrainConfig, Budget, list[Reason]]:
    """The config with micro-batch and steps, its cost, and the reasons of both."""
    settings = settings_of(reasons)
    micro = micro_batch(request.config(settings), facts)
    config = request.config({**settings, "batch.clips_per_device": micro})
    clip_flops = step_flops(config) // config.batch.global_clips
    # With `auto`, a run would choose such a micro-batch.
    measured = replace(config.batch, clips_per_device=micro) if config.batch.is_auto else config.batch
    speed = request.speed(replace(config, batch=measured), clip_flops)
    budget, length = plan_budget(config, facts, speed, clip_flops, fixed.get("steps"))
    why = "all clips of a step at once" if facts.memory_gb is None else "the most that fit into the memory"
    at_once = Reason(
        topic="micro-batch",
        settings={"batch.clips_per_device": micro},
        why=why,
        source="kinemae pretrain cost",
    )
    return replace(config, steps=budget.steps), budget, [at_once, length]


def _reduced(facts: Facts, config: PretrainConfig, budget: Budget, fixed: Settings) -> Facts | None:
    """Ask for a smaller encoder if the hours allow too few steps; None if not."""
    if facts.hours is None or budget.steps >= FEWEST_STEPS or not {"steps", "model.size"}.isdisjoint(fixed):
        return None
    size = config.model.size
    return None if size == SIZES[0] else replace(facts, smaller=SIZES[SIZES.index(size) - 1])
