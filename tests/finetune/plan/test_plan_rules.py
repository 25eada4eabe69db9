"""Each rule of a plan applies to some data set, and its settings are valid."""

from dataclasses import replace

import pytest

from kinemae.data_tools.config import load_config
from kinemae.data_tools.overrides import as_yaml_override
from kinemae.finetune.config import FinetuneConfig
from kinemae.finetune.plan.facts import ClassCounts, Facts
from kinemae.finetune.plan.plan import KEYS, notes
from kinemae.finetune.plan.rules import RULES, apply_rules
from kinemae.pretrain.advise.rule_table import settings_of
from kinemae.pretrain.exported_model import EncoderDescription
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import TokenGrid

REQUIRED = ["run_dir=r", "data.train=t", "data.validation=v", "encoder=e"]


def describe(width=768, depth=12, frames=16, stride=4, size=224, **others):
    shape = EncoderShape(width=width, depth=depth, heads=width // 64, mlp_width=4 * width)
    grid = TokenGrid.of(frames, size, shape.patch)
    return EncoderDescription(
        shape=shape, grid=grid, reference=grid, frames=frames, stride=stride, size=size, **others
    )


def make_facts(videos=10_000, **changes):
    names = tuple(f"class {number}" for number in range(10))
    facts = Facts(
        videos=videos,
        classes=ClassCounts(names=names, videos=(videos // 10,) * 10),
        groups=5,
        frames=300.0,
        seconds=10.0,
        fps=30.0,
        aspect=1.5,
        motion=5.0,
        static=0.0,
        validation=1000,
        description=describe(),
        has_weights=True,
    )
    return replace(facts, **changes)


SIDED = ClassCounts(names=("Turn_Left", "leftovers"), videos=(50, 50))
RARE = ClassCounts(names=("a", "b"), videos=(9_500, 500))
SLICES = {"name": "linear", "args": {"pool": "slices", "slices": 4, "norm": "standardize"}}
CASES = {
    "random weights": (make_facts(100, has_weights=False), {"adapt.method": "full"}),
    "few": (
        make_facts(120),
        {"adapt.method": "frozen", "optim.lr": 1e-2, "batch.global_clips": 32, "drop_path": 0.0},
    ),
    "few need many epochs": (make_facts(120), {"epochs": 160}),
    "several": (
        make_facts(1500),
        {"adapt.method": "lora", "optim.lr": 6.25e-4, "batch.global_clips": 64, "adapt.dropout": 0.1},
    ),
    "several, tiny": (
        make_facts(1500, description=describe(width=64, size=32, frames=8)),
        {"optim.lr": 3e-3, "epochs": 50, "augment.min_scale": 0.5},
    ),
    "full, tiny": (make_facts(4000, description=describe(width=64, size=32, frames=8)), {"optim.lr": 1e-3}),
    "as HMDB51": (make_facts(3570), {"adapt.method": "full", "epochs": 50, "optim.layer_decay": 0.7}),
    "as UCF101": (
        make_facts(9_530),
        {"epochs": 100, "optim.lr": 5e-4, "drop_path": 0.2, "augment.min_scale": 0.08, "mix.mixup": 0.8},
    ),
    "as SSv2": (make_facts(168_910), {"epochs": 50, "optim.lr": 1e-3, "drop_path": 0.1}),
    "as K400": (make_facts(240_000), {"epochs": 75, "optim.layer_decay": 0.75, "augment.flip": True}),
    "huge": (make_facts(9000, description=describe(width=1280, depth=32)), {"optim.layer_decay": 0.8}),
    "giant": (make_facts(9000, description=describe(width=1408, depth=40)), {"optim.layer_decay": 0.9}),
    "sides": (make_facts(100, classes=SIDED), {"augment.flip": False}),
    "short": (make_facts(frames=40.0), {"clip.stride": 2, "evaluate.temporal_clips": 1}),
    "very short": (make_facts(frames=10.0), {"clip.sampling": "uniform"}),
    "whole videos": (make_facts(100, description=describe(sampling="uniform")), {"head": SLICES}),
    "whole videos, merged tokens": (
        make_facts(1500, description=describe(sampling="uniform"), keeps_tokens=False),
        {"head": {"name": "linear", "args": {"norm": "standardize"}}},
    ),
    "whole videos with one slice": (
        make_facts(1500, description=describe(frames=2, sampling="uniform")),
        {"head": {"name": "linear", "args": {"norm": "standardize"}}},
    ),
    "long": (make_facts(frames=3000.0), {"evaluate.temporal_clips": 5, "evaluate.spatial_crops": 3}),
    "square": (make_facts(aspect=1.0), {"evaluate.spatial_crops": 1}),
    "imbalanced": (make_facts(classes=RARE), {"task.args.class_weights": "effective"}),
    "warmup": (make_facts(9_530), {"optim.warmup_fraction": 0.05}),
    "no validation": (make_facts(validation=None), {"validate.fraction": 0.2, "validate.patience": 5}),
    "no classes": (make_facts(classes=None), {"drop_path": 0.2, "augment.min_scale": 0.08}),
    "pyramid": (make_facts(500, output="pyramid"), {"adapt.method": "lora"}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_data_set_gets_these_settings(case):
    facts, expected = CASES[case]
    settings = settings_of(apply_rules(facts))
    assert {key: settings.get(key) for key in expected} == expected


@pytest.mark.parametrize("case", CASES)
def test_the_settings_are_a_valid_config_with_known_keys(case):
    settings = settings_of(apply_rules(CASES[case][0]))

    config = load_config(
        FinetuneConfig, None, [*REQUIRED, *(as_yaml_override(*each) for each in settings.items())]
    )

    assert set(settings) <= set(KEYS)
    assert config.adapt.method == settings["adapt.method"]
    assert config.batch.global_clips <= CASES[case][0].labelled


def test_every_rule_applies_to_a_case_and_every_topic_has_one_at_most():
    fired = set()
    for facts, _ in CASES.values():
        advice = apply_rules(facts)
        topics = [each.topic for each in advice]
        assert len(set(topics)) == len(topics)
        assert all(each.why and each.source for each in advice)
        fired |= {(each.topic, each.source) for each in advice}
    assert {(rule.topic, rule.source) for rule in RULES} == fired


def test_tasks_without_classes_get_neither_label_smoothing_nor_mixed_labels():
    settings = settings_of(apply_rules(make_facts(classes=None)))
    assert not {"task.args.label_smoothing", "mix.mixup", "task.args.class_weights"} & settings.keys()


def test_a_head_is_planned_only_for_one_output_per_clip():
    assert "head" not in settings_of(apply_rules(CASES["pyramid"][0]))


def test_the_users_choice_stays_and_the_other_settings_follow_it():
    settings = settings_of(apply_rules(make_facts(120), {"adapt.method": "full", "batch.global_clips": 16}))
    assert "adapt.method" not in settings and "batch.global_clips" not in settings
    assert settings["optim.layer_decay"] == 0.7 and settings["optim.lr"] == pytest.approx(5e-4 / 16, rel=1e-2)


@pytest.mark.parametrize(
    ("facts", "note"),
    [
        (make_facts(), "floors: chance 10.0 %, always the largest class 10.0 %"),
        (make_facts(), "1000 validation videos: the 95 % interval of an accuracy is about 3 points"),
        (make_facts(validation=None), "no validation set"),
        (make_facts(120), "the median class has 12 videos: repeat the run with several seeds"),
        (make_facts(classes=ClassCounts(names=("a", "b"), videos=(9, 0))), "some classes have no training"),
        (
            make_facts(classes=ClassCounts(names=("a", "b"), videos=(9, 9), unlabelled=4)),
            "4 videos have no label",
        ),
        (make_facts(groups=0), "the index has no groups"),
        (make_facts(static=0.75), "75 % of the decoded videos are static"),
        (make_facts(frames=3000.0), "the median video has 3000 frames and a clip spans 61"),
        (make_facts(classes=SIDED), "for example 'Turn_Left'"),
    ],
)
def test_notes_say_what_to_expect(facts, note):
    assert any(note in line for line in notes(facts)), notes(facts)


@pytest.mark.parametrize(
    ("sampling", "frames"), [({}, 61), ({"fps": 10.0}, 46), ({"sampling": "uniform"}, 0)]
)
def test_a_clip_spans_frames_of_the_median_video(sampling, frames):
    assert make_facts(description=describe(**sampling)).clip_frames == frames


def test_parts_of_a_clip_make_it_longer_and_the_micro_batch_smaller():
    facts, parts = make_facts(), make_facts(chunks=2)
    assert (facts.clip_frames, parts.clip_frames) == (61, 125)
    key = "batch.clips_per_device"
    assert settings_of(apply_rules(facts))[key] == 2 * settings_of(apply_rules(parts))[key]
