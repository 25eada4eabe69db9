"""Rules of a plan: settings for a labelled data set, each with its reason and its source.

The rules are advice from published recipes and from measurements in docs/results.md. For each topic the first
rule that applies is taken, in the order of `RULES`. Later topics see the settings of earlier ones.
"""

import math
from collections.abc import Callable

from kinemae.finetune.plan.facts import Facts
from kinemae.pretrain.advise.rule_table import (
    Advice,
    Rule,
    Settings,
    always,
    apply_table,
    as_fixed,
    said,
    sided_classes,
)

VIDEOMAE = "VideoMAE, arXiv 2203.12602, and its scripts"
OVERFITS = "VideoMAE#129: 120 clips and 3,000 clips overfit at once"
MEASURED = "docs/results.md, the demo"
FEW, SEVERAL, MANY = 300, 3_000, 20_000
_CHECKED_STEPS = 600


def apply_rules(facts: Facts, fixed: Settings | None = None) -> list[Advice]:
    """Apply the first matching rule of each topic.

    Args:
        fixed: values that the user has chosen; no rule changes them.
    """
    return apply_table(RULES, facts, fixed)


def _is(method: str) -> Callable[[Facts, Settings], bool]:
    return lambda facts, given: given.get("adapt.method") == method


def _batch(facts: Facts, given: Settings) -> Settings:
    """The largest power of two from 32 to 256 with 16 steps in an epoch; less for less than 64 videos."""
    clips = max(1, facts.labelled // 16)
    batch = min(256, max(32, 1 << clips.bit_length() - 1))
    while batch > max(1, facts.labelled // 2):
        batch //= 2
    tokens_at_once = 8 * 1568  # 8 clips of 16 x 224 x 224
    at_once = max(1, tokens_at_once // (facts.description.grid.tokens * facts.chunks))
    return {
        "batch.global_clips": max(1, batch),
        "batch.clips_per_device": max(1, min(batch, 1 << at_once.bit_length() - 1)),
    }


def _epochs(fewest: int, *, steps: int = 0, most: int = 200) -> Callable[[Facts, Settings], Settings]:
    """At least `fewest` epochs, and enough for `steps` steps up to `most` epochs."""

    def sets(facts: Facts, given: Settings) -> Settings:
        needed = math.ceil(steps * given["batch.global_clips"] / max(1, facts.labelled))
        return {"epochs": max(fewest, min(most, needed))}

    return sets


def _scaled_rate(base: float) -> Callable[[Facts, Settings], Settings]:
    """The rate of a batch of 256 clips, scaled linearly to the batch."""
    return lambda facts, given: {"optim.lr": float(f"{base * given['batch.global_clips'] / 256:.3g}")}


def _warmup(facts: Facts, given: Settings) -> Settings:
    return {"optim.warmup_fraction": round(min(0.1, 5 / given["epochs"]), 4)}


def _is_short(facts: Facts, given: Settings) -> bool:
    return 1 < facts.frames < facts.clip_frames


def _stride(facts: Facts, given: Settings) -> Settings:
    frames = facts.description.frames * facts.chunks
    if facts.frames < frames:
        return {"clip.sampling": "uniform"}
    return {"clip.stride": max(1, int((facts.frames - 1) // (frames - 1)))}


def _views(facts: Facts, given: Settings) -> Settings:
    is_whole = "clip.stride" in given or "clip.sampling" in given or not facts.clip_frames
    clips = 1 if is_whole else min(5, max(1, math.ceil(facts.frames / facts.clip_frames)))
    return {
        "evaluate.temporal_clips": clips,
        "evaluate.spatial_crops": 1 if 0.95 < facts.aspect < 1.05 else 3,
    }


def _parts(facts: Facts) -> int:
    """Number of equal parts of a clip's time, at most 4."""
    return math.gcd(4, facts.description.grid.t * facts.chunks)


def _is_whole_video(facts: Facts, given: Settings) -> bool:
    """Whether a clip spans the whole video, whatever its length, and has parts for a head to tell apart."""
    has_parts = facts.keeps_tokens and _parts(facts) > 1
    return facts.has_weights and facts.output == "clip" and facts.clip_frames == 0 and has_parts


def directed_classes(facts: Facts) -> list[str]:
    """Classes whose names have a side or a sense of rotation, which a flip would change."""
    return [] if facts.classes is None else sided_classes(facts.classes.names)


RULES: tuple[Rule[Facts], ...] = (
    Rule(
        topic="adaptation",
        when=lambda facts, given: not facts.has_weights,
        sets=as_fixed({"adapt.method": "full"}),
        why=said("the encoder has random weights: there is nothing to keep"),
        source="no choice",
    ),
    Rule(
        topic="adaptation",
        when=lambda facts, given: facts.labelled < FEW,
        sets=as_fixed({"adapt.method": "frozen"}),
        why=lambda facts, given: f"{facts.labelled} labelled videos are below {FEW}: train only the head",
        source=f"{OVERFITS}; {MEASURED}: with 64 videos a probe equals fine-tuning",
    ),
    Rule(
        topic="adaptation",
        when=lambda facts, given: facts.labelled < SEVERAL,
        sets=as_fixed({"adapt.method": "lora", "adapt.rank": 16}),
        why=lambda facts, given: (
            f"{facts.labelled} labelled videos are below {SEVERAL:,}: adapters have few "
            "weights to overfit with"
        ),
        source=f"{OVERFITS}; VideoGLUE, arXiv 2307.03166, has LoRA among its four adaptations",
    ),
    Rule(
        topic="adaptation",
        when=always,
        sets=as_fixed({"adapt.method": "full"}),
        why=lambda facts, given: f"{facts.labelled:,} labelled videos suffice for all weights",
        source=f"{VIDEOMAE}: HMDB51 has 3,570 training videos",
    ),
    Rule(
        topic="head",
        when=_is_whole_video,
        sets=lambda facts, given: {
            "head": {
                "name": "linear",
                "args": {"pool": "slices", "slices": _parts(facts), "norm": "standardize"},
            }
        },
        why=said("a clip spans the whole video: means of its parts, standardized, keep the order of events"),
        source="docs/results.md, learning per compute: 60 % frozen against 53 and 43 %",
    ),
    Rule(
        topic="head",
        when=lambda facts, given: given.get("adapt.method") == "frozen" and facts.output == "clip",
        sets=as_fixed({"head": {"name": "linear", "args": {"pool": "statistics", "norm": "standardize"}}}),
        why=said("mean and standard deviation of the tokens, standardized"),
        source=f"{MEASURED}: 50 to 59 % against 28 to 34 % with the mean alone",
    ),
    Rule(
        topic="head",
        when=lambda facts, given: facts.has_weights and facts.output == "clip",
        sets=as_fixed({"head": {"name": "linear", "args": {"norm": "standardize"}}}),
        why=said("the mean token of a pretrained encoder differs little between clips: standardize it"),
        source="docs/results.md, conditions for learning motion",
    ),
    Rule(
        topic="batch",
        when=always,
        sets=_batch,
        why=said(
            "at least 16 steps in an epoch where the data allow it; about 8 clips of 16x224x224 at once"
        ),
        source="our choice",
    ),
    Rule(
        topic="epochs",
        when=_is("frozen"),
        sets=_epochs(20, steps=_CHECKED_STEPS),
        why=said(f"about {_CHECKED_STEPS} steps: heads with fewer stayed at chance"),
        source="docs/results.md, model components: 225 steps 15 %, 600 steps 42 %",
    ),
    Rule(
        topic="epochs",
        when=lambda facts, given: facts.labelled < 5_000,
        sets=_epochs(50, steps=_CHECKED_STEPS),
        why=said("50 epochs, more for very small sets"),
        source=f"{VIDEOMAE}: HMDB51, 50 epochs",
    ),
    Rule(
        topic="epochs",
        when=lambda facts, given: facts.labelled < MANY,
        sets=as_fixed({"epochs": 100}),
        why=said("100 epochs for a set like UCF101"),
        source=f"{VIDEOMAE}: UCF101, 9,537 videos, 100 epochs",
    ),
    Rule(
        topic="epochs",
        when=always,
        sets=lambda facts, given: {"epochs": 75 if facts.labelled >= 200_000 else 50},
        why=said("as the recipes of large sets"),
        source=f"{VIDEOMAE}: Kinetics-400 75 epochs, Something-Something v2 30 to 50",
    ),
    Rule(
        topic="rate",
        when=_is("frozen"),
        sets=as_fixed({"optim.lr": 1e-2, "optim.weight_decay": 0.05}),
        why=said("the best rate of a standardized linear head"),
        source=f"{MEASURED}, choice of the learning rates",
    ),
    Rule(
        topic="rate",
        when=lambda facts, given: given.get("adapt.method") == "lora" and facts.description.shape.width < 384,
        sets=as_fixed({"optim.lr": 3e-3}),
        why=said("three times the rate of full fine-tuning of a tiny encoder"),
        source="our choice",
    ),
    Rule(
        topic="rate",
        when=_is("lora"),
        sets=_scaled_rate(2.5e-3),
        why=said("2.5e-3 at a batch of 256: adapters need a higher rate than all weights"),
        source="our choice, five times the rate of full fine-tuning",
    ),
    Rule(
        topic="rate",
        when=lambda facts, given: facts.description.shape.width < 384,
        sets=as_fixed({"optim.lr": 1e-3}),
        why=said("the rate of the demo's tiny encoder"),
        source=f"{MEASURED}, choice of the learning rates",
    ),
    Rule(
        topic="rate",
        when=lambda facts, given: facts.labelled < MANY,
        sets=_scaled_rate(5e-4),
        why=said("5e-4 at a batch of 256, scaled linearly"),
        source=f"{VIDEOMAE}: UCF101",
    ),
    Rule(
        topic="rate",
        when=always,
        sets=_scaled_rate(1e-3),
        why=said("1e-3 at a batch of 256, scaled linearly"),
        source=f"{VIDEOMAE}: Kinetics-400, ViT-B",
    ),
    Rule(
        topic="warmup",
        when=always,
        sets=_warmup,
        why=said("5 epochs, at most a tenth of the run"),
        source=VIDEOMAE,
    ),
    Rule(
        topic="layer decay",
        when=lambda facts, given: given.get("adapt.method") == "full" and facts.has_weights,
        sets=lambda facts, given: {"optim.layer_decay": _layer_decay(facts)},
        why=said("lower layers change less; deeper encoders and larger sets decay less"),
        source=f"{VIDEOMAE} and V2: 0.7 on UCF101, 0.75 on Kinetics, 0.8 for ViT-H, 0.9 for ViT-g",
    ),
    Rule(
        topic="regularization",
        when=_is("frozen"),
        sets=as_fixed({"drop_path": 0.0}),
        why=said("a frozen encoder runs without drop path"),
        source="no choice",
    ),
    Rule(
        topic="regularization",
        when=_is("lora"),
        sets=lambda facts, given: {"drop_path": 0.0, "adapt.dropout": 0.1, **_smoothing(facts)},
        why=said("dropout of the adapters and label smoothing"),
        source="adapters of peft's guide for image classification: dropout 0.1",
    ),
    Rule(
        topic="regularization",
        when=always,
        sets=lambda facts, given: {"drop_path": 0.2 if facts.labelled < MANY else 0.1, **_smoothing(facts)},
        why=said("drop path 0.2 for small sets, 0.1 for large ones; label smoothing"),
        source=f"{VIDEOMAE}: UCF101 and HMDB51 0.2, Kinetics-400 0.1",
    ),
    Rule(
        topic="crop",
        when=lambda facts, given: given.get("adapt.method") == "full" and facts.labelled >= SEVERAL,
        sets=lambda facts, given: {
            "augment.min_scale": 0.08,
            "augment.max_scale": 1.0,
            "augment.rand_augment.operations": 4,
            "augment.erase.probability": 0.25,
            **({"mix.mixup": 0.8, "mix.cutmix": 1.0} if facts.classes else {}),
        },
        why=said("strong crops, RandAugment, erasing, mixup and cutmix"),
        source=VIDEOMAE,
    ),
    Rule(
        topic="crop",
        when=always,
        sets=as_fixed({"augment.min_scale": 0.5, "augment.max_scale": 1.0}),
        why=said("crops of at least half the picture: smaller ones can lose the subject"),
        source="VideoMAE#129: random crops removed the person",
    ),
    Rule(
        topic="flip",
        when=lambda facts, given: bool(directed_classes(facts)),
        sets=as_fixed({"augment.flip": False}),
        why=lambda facts, given: (
            f"a flip would change the class {directed_classes(facts)[0]!r}; pairs of "
            "classes can be given as augment.flip_pairs instead"
        ),
        source=f"{VIDEOMAE}: no flip on Something-Something v2",
    ),
    Rule(
        topic="flip",
        when=always,
        sets=as_fixed({"augment.flip": True}),
        why=said("no class name has a side; set augment.flip=false if direction matters"),
        source=VIDEOMAE,
    ),
    Rule(
        topic="clip",
        when=_is_short,
        sets=_stride,
        why=lambda facts, given: (
            f"the median video has {facts.frames:g} frames, the encoder's clip spans "
            f"{facts.clip_frames:g}: otherwise the last frame is repeated"
        ),
        source="VideoMAE: uniform sampling on Something-Something v2",
    ),
    Rule(
        topic="views",
        when=always,
        sets=_views,
        why=said("enough clips to cover the median video, at most 5; 3 crops unless videos are square"),
        source=f"{VIDEOMAE}: 5 x 3 views on Kinetics-400",
    ),
    Rule(
        topic="selection",
        when=lambda facts, given: facts.validation is None,
        sets=as_fixed({"validate.fraction": 0.2, "validate.patience": 5}),
        why=said("hold out a fifth of the training videos; stop after 5 validations without an improvement"),
        source="our choice",
    ),
    Rule(
        topic="balance",
        when=lambda facts, given: facts.classes is not None and facts.classes.imbalance >= 10,
        sets=as_fixed({"task.args.class_weights": "effective"}),
        why=lambda facts, given: (
            f"the largest class has {_times(facts)} the videos of the smallest: weigh "
            "rare classes more; look at the mean class accuracy"
        ),
        source="effective number of samples, arXiv 1901.05555",
    ),
)


def _layer_decay(facts: Facts) -> float:
    depth = facts.description.shape.depth
    if depth >= 32:
        return 0.9 if depth >= 40 else 0.8
    return 0.7 if facts.labelled < MANY else 0.75


def _smoothing(facts: Facts) -> Settings:
    return {} if facts.classes is None else {"task.args.label_smoothing": 0.1}


def _times(facts: Facts) -> str:
    imbalance = facts.classes.imbalance if facts.classes else 1.0
    return f"{imbalance:.0f} times" if math.isfinite(imbalance) else "many times"
