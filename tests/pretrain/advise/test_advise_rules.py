"""Rules and warnings of the advice on made-up facts."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kinemae.data_tools.config import load_config
from kinemae.data_tools.overrides import as_yaml_override
from kinemae.pretrain.advise import advice
from kinemae.pretrain.advise.advice import Request
from kinemae.pretrain.advise.budget import Budget, Speed, plan_budget
from kinemae.pretrain.advise.clip_statistics import ClipStatistics
from kinemae.pretrain.advise.facts import Facts
from kinemae.pretrain.advise.floors import Floors
from kinemae.pretrain.advise.overview import Overview
from kinemae.pretrain.advise.rule_table import apply_table, settings_of
from kinemae.pretrain.advise.rules import CLIP_RULES, EXCLUDING, KEYS, PIXELS_AND_MOTION, RULES
from kinemae.pretrain.advise.warnings import WARNINGS, Case, warnings_of
from kinemae.pretrain.builders import build_components
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.model.tokens import TokenGrid

CLIP = ClipStatistics(clips=64, motion=5.0, static_tokens=0.2, temporal=0.9, spatial=0.6)
SLOW = {1: 0.98, 2: 0.95, 4: 0.9}
FAST = {1: 0.8, 2: 0.72, 4: 0.5}


def make_facts(videos=10_000, *, frames=300, fps=30.0, side=256, **changes):
    frames_R = np.broadcast_to(np.asarray(frames), videos)
    facts = Facts(
        frames_R=frames_R,
        seconds_R=frames_R / np.broadcast_to(np.asarray(fps), videos),
        width_R=np.full(videos, 2 * side),
        height_R=np.full(videos, side),
        groups=5,
        by_stride=SLOW,
        clip=CLIP,
    )
    return replace(facts, **changes)


def advised(facts, fixed=None):
    given = {**(fixed or {}), **settings_of(apply_table(CLIP_RULES, facts, fixed))}
    return {**given, **settings_of(apply_table(RULES, facts, given))}


GPU = {"device": "cuda", "memory_gb": 80.0}
MIXED_FPS = np.linspace(10, 60, 10_000)
CASES = {
    "mouths": (
        make_facts(1500, frames=10, fps=15.0, side=64),
        {
            "clip.frames": 8,
            "clip.sampling": "uniform",
            "clip.size": 64,
            "model.patch_frames": 1,
            "masking": {"name": "uniform", "args": {"ratio": 0.85}},
            "model.size": "tiny",
            "model.decoder": "self",
            "model.standardize": True,
            "batch.global_clips": 16,
            "optim.optimizer": "muon",
            "target": {"name": "weighted", "args": {"parts": PIXELS_AND_MOTION}},
        },
    ),
    "demo": (
        make_facts(1500, frames=16, side=32, by_stride=FAST, classes=("move_left", "zoom_in")),
        {
            "clip.stride": 2,
            "clip.size": 32,
            "masking": {"name": "uniform", "args": {"ratio": 0.5}},
            "augment.flip": False,
            "augment.min_scale": 0.6,
            "data.views_per_video": 1,
        },
    ),
    "fast": (
        make_facts(by_stride={1: 0.6, 2: 0.3, 4: 0.1}, clip=replace(CLIP, temporal=0.6)),
        {"clip.stride": 1, "masking": {"name": "uniform", "args": {"ratio": 0.75}}},
    ),
    "large pictures on a CPU": (make_facts(), {"clip.size": 64, "data.views_per_video": 2}),
    "mixed rates": (make_facts(fps=MIXED_FPS), {"clip.fps": 8.75}),
    "small pictures": (make_facts(side=20), {"clip.size": 32}),
    "nothing readable": (make_facts(clip=None, by_stride={}), {"clip.stride": 1}),
    "as HMDB51": (
        make_facts(2_900, **GPU),
        {"model.size": "tiny", "clip.frames": 16, "clip.stride": 4, "clip.size": 224},
    ),
    "as UCF101": (
        make_facts(9_537, **GPU),
        {"model.size": "small", "optim.lr": 3e-4, "data.views_per_video": 4, "model.patch_size": 16},
    ),
    "as K400": (
        make_facts(240_000, **GPU),
        {"model.size": "base", "masking": {"name": "uniform", "args": {"ratio": 0.9}}},
    ),
    "huge": (make_facts(2_000_000, **GPU), {"model.size": "large"}),
    "too few hours": (make_facts(hours=1.0, smaller="small", **GPU), {"model.size": "small"}),
    "a GPU and short videos": (make_facts(frames=20, **GPU), {"clip.frames": 8, "clip.stride": 2}),
    "very few": (make_facts(10), {"batch.global_clips": 4}),
}


def test_few_hours_get_a_smaller_encoder(monkeypatch):
    facts = make_facts(5000, side=32, hours=1.0, **GPU)
    monkeypatch.setattr(advice, "gather", lambda *given: facts)
    sizes = []

    def speed(config, clip_flops):
        sizes.append((config.model.size, config.batch.global_clips))
        return Speed(clips_per_s=1.0, is_measured=False)

    overrides = ["data.shards=shards", "run_dir=run"]
    request = Request(overrides=overrides, device=torch.device("cpu"), hours=1.0, speed=speed)

    found = advice.advise(None, request)

    assert sizes == [("small", 256), ("tiny", 16)]
    assert found.config.model.size == found.settings["model.size"] == "tiny"
    assert "few_steps" in found.warnings


@pytest.mark.parametrize("case", CASES)
def test_a_data_set_gets_these_settings(case):
    facts, expected = CASES[case]
    settings = advised(facts)
    assert {key: settings.get(key) for key in expected} == expected


@pytest.mark.parametrize("case", CASES)
def test_the_settings_are_a_valid_config_with_known_keys(case):
    settings = advised(CASES[case][0])
    planned = [as_yaml_override(key, value) for key, value in settings.items()]

    config = load_config(PretrainConfig, None, ["run_dir=r", "data.shards=s", "steps=1", *planned])

    assert set(settings) <= set(KEYS)
    build_components(
        config, TokenGrid.of(config.clip.frames, config.clip.size, config.model.shape().encoder.patch)
    )


def test_every_rule_applies_to_a_case_with_a_reason_and_a_source():
    fired = set()
    for facts, _ in CASES.values():
        clip = apply_table(CLIP_RULES, facts)
        for each in [*clip, *apply_table(RULES, facts, settings_of(clip))]:
            assert each.why and each.source
            fired.add((each.topic, each.source, tuple(each.settings)))
    for rule in (*CLIP_RULES, *RULES):
        assert any(rule.topic == topic and rule.source == source for topic, source, _ in fired), rule


@pytest.mark.parametrize(("frames", "size", "patch"), [(9, 100, 10), (16, 98, 7), (8, 64, 8), (16, 224, 16)])
def test_patches_divide_the_users_clip(frames, size, patch):
    settings = advised(make_facts(), {"clip.frames": frames, "clip.size": size})
    assert settings["model.patch_size"] == patch and frames % settings["model.patch_frames"] == 0


@pytest.mark.parametrize(("stage", "optimizer"), [(0, "muon"), (1, None), (3, None)])
def test_muon_is_advised_only_where_matrices_are_whole(stage, optimizer):
    assert advised(make_facts(), {"engine.zero_stage": stage}).get("optim.optimizer") == optimizer


def test_the_users_choice_stays_and_the_other_settings_follow_it():
    settings = advised(make_facts(), {"clip.size": 224, "model.size": "base", "batch.global_clips": 64})
    assert settings["model.patch_size"] == 16 and settings["optim.lr"] == 7.5e-5
    rate = {"clip.stride": 4, "clip.fps": 5.0, "clip.sampling": "dense"}  # as `fixed_values` of clip.fps=5
    assert advised(make_facts(), rate).items() >= rate.items() and rate.keys() == EXCLUDING.keys()


SPEED = Speed(clips_per_s=100.0, is_measured=False)
CONFIG = load_config(PretrainConfig, None, ["run_dir=r", "data.shards=s", "steps=1", "batch.global_clips=32"])


@pytest.mark.parametrize(
    ("videos", "hours", "given", "steps"),
    [
        (1500, None, None, 6000),  # the mouths of docs/results.md: 128 epochs
        (100, None, None, 3000),  # the demo: 96,000 clips
        (1500, 1.0, None, 11_250),
        (100, 10.0, None, 10_000),  # 3,200 epochs
        (1500, 1.0, 70, 70),
    ],
)
def test_the_steps_fill_the_hours_up_to_a_number_of_epochs(videos, hours, given, steps):
    facts = make_facts(videos, hours=hours)
    budget, reason = plan_budget(CONFIG, facts, SPEED, 10**9, given)

    assert budget.steps == reason.settings["steps"] == steps
    assert budget.hours == pytest.approx(steps * 32 / 100 / 3600)
    assert budget.flops == steps * 32e9
    assert (budget.unused_hours > 0) == (steps == 10_000)


FLOORS = Floors(
    videos=300,
    classes=2,
    has_groups=False,
    largest_class=0.5,
    scores={"metadata": 0.52, "first frame": 0.5, "frame differences": 0.6},
    deviations={"metadata": 0.01, "first frame": 0.01, "frame differences": 0.01},
)


def with_floors(**scores):
    names = {name.replace("_", " "): score for name, score in scores.items()}
    return make_facts(floors=replace(FLOORS, scores={**FLOORS.scores, **names}))


GIVEN = {"clip.frames": 16, "clip.stride": 4, "clip.size": 64, "steps": 6000}
WARNED = {
    "few_videos": (make_facts(300), GIVEN, "300 videos are few"),
    "unreadable": (make_facts(overview=Overview(videos=50, unreadable=0.04)), GIVEN, "4 % of 50 sampled"),
    "static": (make_facts(overview=Overview(static=0.3)), GIVEN, "30 % of the videos are static, 20 % of"),
    "static tokens": (make_facts(clip=replace(CLIP, static_tokens=0.6)), GIVEN, "60 % of the tokens repeat"),
    "blank": (make_facts(overview=Overview(blank=0.1)), GIVEN, "10 % of the videos are blank"),
    "fast": (make_facts(clip=replace(CLIP, temporal=0.2)), GIVEN, "by only 0.20"),
    "short_videos": (make_facts(frames=50), GIVEN, "100 % of the videos are shorter than the 61 frames"),
    "duplicates": (make_facts(exact_duplicates=0.2), GIVEN, "20 % of all are exact copies"),
    "upscaled": (make_facts(side=48), GIVEN, "100 % of the videos have a short side below clip.size=64"),
    "metadata_floor": (with_floors(metadata=0.65), GIVEN, "name the class of 65 %"),
    "first_frame_floor": (with_floors(first_frame=0.8), GIVEN, "the label does not need motion"),
    "ceiling": (with_floors(frame_differences=0.97), GIVEN, "on the frame differences names 97 % of"),
    "few_steps": (make_facts(), {**GIVEN, "steps": 900}, "900 steps are few"),
}
BUDGET = Budget(
    clips_per_s=100.0,
    is_measured=True,
    data_wait=0.0,
    clips_per_step=32,
    steps=6000,
    epochs=1.0,
    hours=1.0,
    clip_flops=10**9,
    flops=1e14,
)


@pytest.mark.parametrize("name", WARNED)
def test_a_warning_applies_alone_and_names_numbers_and_a_fix(name):
    facts, given, text = WARNED[name]
    found = warnings_of(Case(facts=facts, given=given, budget=BUDGET))

    assert list(found) == ["static" if name == "static tokens" else name]
    [warning] = found.values()
    assert text in warning and "; fix: " in warning


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("long", {"unused_hours": 2.0}, "2 of the hours are not used"),
        ("slow_reading", {"data_wait": 0.5}, "in 50 % of the time; fix: shard smaller videos"),
    ],
)
def test_the_cost_of_a_run_has_warnings(name, change, text):
    found = warnings_of(Case(facts=make_facts(), given=GIVEN, budget=replace(BUDGET, **change)))
    assert list(found) == [name] and text in found[name]
    assert "short_side: 80}}'" in found[name] or name == "long"


def test_a_sound_data_set_has_no_warning_and_every_warning_is_tested():
    assert warnings_of(Case(facts=make_facts(), given=GIVEN, budget=BUDGET)) == {}
    assert {check.name for check in WARNINGS} == {*WARNED, "long", "slow_reading"} - {"static tokens"}


def test_a_score_within_the_spread_of_its_folds_is_no_floor():
    noisy = replace(FLOORS, scores={"metadata": 0.6}, deviations={"metadata": 0.15})
    assert noisy.excess("metadata") == 0.0
    assert replace(noisy, deviations={"metadata": 0.05}).excess("metadata") == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("given", "span"),
    [({"clip.sampling": "uniform"}, "16 frames"), ({"clip.fps": 15.0}, "31 frames")],
)
def test_the_span_of_a_clip_follows_its_sampling(given, span):
    facts = make_facts(frames=12)
    found = warnings_of(Case(facts=facts, given={**GIVEN, **given}, budget=BUDGET))
    assert span in found["short_videos"]
