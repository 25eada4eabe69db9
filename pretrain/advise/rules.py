"""Rules of the advice for a pretraining run, each with its reason and its source; warnings.

`CLIP_RULES` choose the clip from the index. `RULES` choose the method; they also see measurements of such
clips. The steps follow from the measured speed, see `budget`.
"""

from collections.abc import Callable

import numpy as np

from kinemae.pretrain.advise.facts import Facts
from kinemae.pretrain.advise.rule_table import Rule, Settings, always, as_fixed, said, sided_classes

RESULTS = "docs/results.md"
DEMO = f"{RESULTS}, the demo"
MOUTHS = f"{RESULTS}, ways to use an encoder on real clips"
FIRST = "docs/recipes.md, first figures"
LEARNING = f"{RESULTS}, learning per compute"
VIDEOMAE = "VideoMAE, arXiv 2203.12602, and its scripts"

KEYS = (
    *("clip.frames", "clip.sampling", "clip.stride", "clip.fps", "clip.size", "model.patch_size"),
    *("model.patch_frames", "model.size", "model.decoder", "model.decoder_width", "model.decoder_depth"),
    *("model.decoder_heads", "model.predict_ratio", "model.standardize", "masking", "target"),
    *("augment.min_scale", "augment.max_scale", "augment.flip"),
    *("batch.global_clips", "batch.clips_per_device", "data.views_per_video"),
    *("optim.optimizer", "optim.lr", "optim.warmup_fraction", "steps", "engine.zero_stage"),
)
"""Every key that a rule can set or reads."""

_FRAMES = ("clip.stride", "clip.fps", "clip.sampling")
EXCLUDING = {key: _FRAMES for key in _FRAMES}
"""Keys whose choice by the user prevents a rule from setting a key, besides the key itself."""

SIDES = {"cpu": (32, 48, 64), "cuda": (32, 48, 64, 80, 96, 112, 128, 160, 192, 224)}
SIZES = ("tiny", "small", "base", "large")
FEW_VIDEOS = 500
FEWEST_STEPS = 1500  # of the shortest runs in the table of learning per compute
MOST_EPOCHS = 3200  # VideoMAE on UCF101
DEFAULT_EPOCHS = 128  # of the mouths in docs/results.md
FEWEST_CLIPS = 96_000  # of the demo
MIN_CORRELATION = 0.7  # of successive frames of a clip
PIXELS_AND_MOTION = {"pixels": {"args": {"normalize": "none"}}, "motion": {"args": {"normalize": "clip"}}}


def grid_tokens(given: Settings) -> int:
    """Number of tokens of the chosen clip."""
    per_side = given["clip.size"] // given["model.patch_size"]
    slices: int = given["clip.frames"] // given["model.patch_frames"]
    return slices * per_side**2


def _fitting_stride(facts: Facts, given: Settings) -> int:
    """The largest stride at which the clip fits the median video and successive frames are similar."""
    median, frames = float(np.median(facts.frames_R)), given["clip.frames"]
    fitting = [
        stride
        for stride, correlation in facts.by_stride.items()
        if (frames - 1) * stride + 1 <= median and correlation >= MIN_CORRELATION
    ]
    return max(fitting, default=min(facts.by_stride, default=1))


def _has_mixed_rates(facts: Facts) -> bool:
    low, _, high = facts.percentiles(facts.fps_R)
    return high > 1.3 * low


def _clip_fps(facts: Facts, given: Settings) -> Settings:
    fps = float(np.median(facts.fps_R)) / _fitting_stride(facts, given)
    return {"clip.fps": float(f"{fps:.3g}")}


def _clip_size(facts: Facts, given: Settings) -> Settings:
    side = float(np.median(facts.short_side_R))
    sizes = SIDES[facts.device]
    return {"clip.size": max((size for size in sizes if size <= side), default=sizes[0])}


def _patch_size(side: int) -> int:
    """The size nearest to 8, from 4 to 16, that divides a side; 8 if none does."""
    return min((size for size in range(4, 17) if side % size == 0), key=lambda size: abs(size - 8), default=8)


def _is_up_to(tokens: int) -> Callable[[Facts, Settings], bool]:
    return lambda facts, given: grid_tokens(given) <= tokens


def _is_moving(facts: Facts, given: Settings) -> bool:
    return facts.clip is not None and facts.clip.temporal < MIN_CORRELATION


def _of_size(size: str) -> Callable[[Facts, Settings], bool]:
    return lambda facts, given: given["model.size"] == size


def _batch(clips: int) -> Callable[[Facts, Settings], Settings]:
    """The largest power of two up to `clips` that is not above half of the videos."""

    def sets(facts: Facts, given: Settings) -> Settings:
        batch = clips
        while batch > max(facts.videos // 2, 1):
            batch //= 2
        return {"batch.global_clips": batch}

    return sets


CLIP_RULES: tuple[Rule[Facts], ...] = (
    Rule(
        topic="encoder",
        when=lambda facts, given: facts.smaller is not None,
        sets=lambda facts, given: {"model.size": facts.smaller},
        why=lambda facts, given: (
            f"the next larger size trains less than {FEWEST_STEPS:,} steps in {facts.hours:g} hours"
        ),
        source=LEARNING,
    ),
    Rule(
        topic="frames",
        when=lambda facts, given: facts.device == "cpu" or float(np.median(facts.frames_R)) < 32,
        sets=as_fixed({"clip.frames": 8}),
        why=said("8 frames, as in the measured runs on a CPU and on short videos"),
        source=MOUTHS,
    ),
    Rule(
        topic="frames",
        when=always,
        sets=as_fixed({"clip.frames": 16}),
        why=said("16 frames"),
        source=VIDEOMAE,
    ),
    Rule(
        topic="sampling",
        when=lambda facts, given: float(np.median(facts.frames_R)) < 2 * given["clip.frames"],
        sets=as_fixed({"clip.sampling": "uniform"}),
        why=lambda facts, given: (
            f"the median video has {np.median(facts.frames_R):g} frames: spread the {given['clip.frames']} "
            "frames of a clip over the whole video"
        ),
        source=MOUTHS,
    ),
    Rule(
        topic="sampling",
        when=lambda facts, given: _has_mixed_rates(facts),
        sets=_clip_fps,
        why=lambda facts, given: (
            "the videos have different frame rates, "
            "{:.3g} to {:.3g} frames/s; clips of one rate show equal motion equally".format(
                *facts.percentiles(facts.fps_R)[::2]
            )
        ),
        source=f"{DEMO}, conditions for learning motion: speeds",
    ),
    Rule(
        topic="sampling",
        when=always,
        sets=lambda facts, given: {"clip.stride": _fitting_stride(facts, given)},
        why=lambda facts, given: (
            f"of the strides {', '.join(map(str, facts.by_stride or [1]))}, the largest one at which a clip "
            "fits the median video of "
            f"{np.median(facts.frames_R):g} frames and successive frames correlate by {MIN_CORRELATION:g} "
            "or more: larger motion was not learned"
        ),
        source=f"{DEMO}, conditions for learning motion: speeds",
    ),
    Rule(
        topic="size",
        when=always,
        sets=_clip_size,
        why=lambda facts, given: (
            f"the short side of the median video has {np.median(facts.short_side_R):g} pixels; at most "
            f"{SIDES[facts.device][-1]} on {facts.device}, and more pixels than the video has cost time "
            "without detail"
        ),
        source="our choice",
    ),
    Rule(
        topic="patch",
        when=lambda facts, given: given["clip.size"] < 160 or given["clip.size"] % 16 > 0,
        sets=lambda facts, given: {"model.patch_size": _patch_size(given["clip.size"])},
        why=lambda facts, given: (
            f"patches of {given['model.patch_size']} pixels divide the clip; 16 leave too few tokens on "
            "small clips"
        ),
        source=f"{RESULTS}: all runs at 32 and 64 pixels",
    ),
    Rule(
        topic="patch",
        when=always,
        sets=as_fixed({"model.patch_size": 16}),
        why=said("patches of 16 pixels"),
        source=VIDEOMAE,
    ),
    Rule(
        topic="tubelet",
        when=lambda facts, given: given["clip.frames"] <= 8 or given["clip.frames"] % 2 == 1,
        sets=as_fixed({"model.patch_frames": 1}),
        why=said("one frame in a token: few frames keep their order, and an odd number has no pairs"),
        source=FIRST,
    ),
    Rule(
        topic="tubelet",
        when=always,
        sets=as_fixed({"model.patch_frames": 2}),
        why=said("two frames in a token"),
        source=VIDEOMAE,
    ),
)

RULES: tuple[Rule[Facts], ...] = (
    Rule(
        topic="encoder",
        when=lambda facts, given: facts.device == "cpu",
        sets=as_fixed({"model.size": "tiny"}),
        why=said("the size of all measured runs on a CPU"),
        source=RESULTS,
    ),
    Rule(
        topic="encoder",
        when=lambda facts, given: facts.videos < 3_000,
        sets=as_fixed({"model.size": "tiny"}),
        why=lambda facts, given: f"{facts.videos:,} videos are few; the measured runs used this size",
        source=f"{RESULTS}: 1,500 videos",
    ),
    Rule(
        topic="encoder",
        when=lambda facts, given: facts.videos < 30_000,
        sets=as_fixed({"model.size": "small"}),
        why=lambda facts, given: f"{facts.videos:,} videos: base needs 3,200 epochs at this number",
        source=f"{VIDEOMAE}: UCF101, 9,537 videos, ViT-B",
    ),
    Rule(
        topic="encoder",
        when=lambda facts, given: facts.videos < 500_000,
        sets=as_fixed({"model.size": "base"}),
        why=lambda facts, given: f"{facts.videos:,} videos suffice for ViT-B",
        source=f"{VIDEOMAE}: Kinetics-400 and Something-Something v2",
    ),
    Rule(
        topic="encoder",
        when=always,
        sets=as_fixed({"model.size": "large"}),
        why=lambda facts, given: f"{facts.videos:,} videos suffice for ViT-L",
        source="VideoMAE V2, arXiv 2303.16727",
    ),
    Rule(
        topic="mask",
        when=_is_up_to(150),
        sets=as_fixed({"masking": {"name": "uniform", "args": {"ratio": 0.5}}}),
        why=lambda facts, given: f"a clip has {grid_tokens(given)} tokens: hide half of them",
        source=f"{DEMO}: ratio 0.5 with 64 tokens",
    ),
    Rule(
        topic="mask",
        when=lambda facts, given: _is_moving(facts, given) or facts.clip is None,
        sets=as_fixed({"masking": {"name": "uniform", "args": {"ratio": 0.75}}}),
        why=lambda facts, given: (
            f"successive tokens correlate by less than {MIN_CORRELATION:g}: hide less, since a token cannot "
            "be inferred from few others"
            if facts.clip
            else "no clip could be measured: a medium ratio"
        ),
        source=f"{MOUTHS}: ratio 0.75",
    ),
    Rule(
        topic="mask",
        when=_is_up_to(1000),
        sets=as_fixed({"masking": {"name": "uniform", "args": {"ratio": 0.85}}}),
        why=lambda facts, given: (
            f"successive tokens correlate by {facts.clip.temporal if facts.clip else 1:.2f}: hide more, so "
            "that tokens cannot be copied from their neighbours"
        ),
        source=FIRST,
    ),
    Rule(
        topic="mask",
        when=always,
        sets=as_fixed({"masking": {"name": "uniform", "args": {"ratio": 0.9}}}),
        why=lambda facts, given: f"a clip has {grid_tokens(given):,} tokens, which repeat each other",
        source="VideoMAE, arXiv 2203.12602, and MAE-ST, arXiv 2205.09113: ratio 0.9",
    ),
    Rule(
        topic="target",
        when=_of_size("tiny"),
        sets=as_fixed({"target": {"name": "weighted", "args": {"parts": PIXELS_AND_MOTION}}}),
        why=said("pixels, and the differences of successive frames: more motion in the features"),
        source=LEARNING,
    ),
    Rule(
        topic="target",
        when=always,
        sets=as_fixed({"target": {"name": "pixels"}}),
        why=said("pixels: no other target exceeds them outside the spread"),
        source=f"{RESULTS}, model components",
    ),
    Rule(
        topic="decoder",
        when=_of_size("tiny"),
        sets=as_fixed(
            {
                "model.decoder": "self",
                "model.decoder_width": 48,
                "model.decoder_depth": 2,
                "model.decoder_heads": 2,
                "model.predict_ratio": 0.25,
            }
        ),
        why=said("a small self-attention decoder that predicts a quarter of the hidden tokens"),
        source=f"{FIRST}: the best trial",
    ),
    Rule(
        topic="decoder",
        when=always,
        sets=as_fixed({"model.decoder": "cross", "model.predict_ratio": 0.5}),
        why=said("a cross-attention decoder that predicts half of the hidden tokens: half the time"),
        source="docs/performance.md, a pretraining step",
    ),
    Rule(
        topic="brightness",
        when=_of_size("tiny"),
        sets=as_fixed({"model.standardize": True}),
        why=said("equal mean and deviation in each clip; this would undo a jitter of brightness or contrast"),
        source=f"{FIRST}: the best trial",
    ),
    Rule(
        topic="crop",
        when=always,
        sets=as_fixed({"augment.min_scale": 0.6, "augment.max_scale": 1.0}),
        why=said("crops of at least 0.6 of the picture"),
        source=MOUTHS,
    ),
    Rule(
        topic="flip",
        when=lambda facts, given: bool(sided_classes(facts.classes)),
        sets=as_fixed({"augment.flip": False}),
        why=lambda facts, given: (
            f"a flip would change the class {sided_classes(facts.classes)[0]!r}: mirrored clips are not "
            "trained on"
        ),
        source=f"{VIDEOMAE}: no flip on Something-Something v2",
    ),
    Rule(
        topic="flip",
        when=always,
        sets=as_fixed({"augment.flip": True}),
        why=lambda facts, given: (
            ("no class name has a side" if facts.classes else "the videos have no labels")
            + "; set augment.flip=false if left and right matter"
        ),
        source=VIDEOMAE,
    ),
    Rule(
        topic="batch",
        when=_of_size("tiny"),
        sets=_batch(16),
        why=said("16 clips, or half of the videos: in equal time as good as 32, with more steps"),
        source="docs/recipes.md, batches",
    ),
    Rule(
        topic="batch",
        when=always,
        sets=_batch(256),
        why=said("256 clips, or half of the videos"),
        source=f"{VIDEOMAE}: UCF101, 192 clips",
    ),
    Rule(
        topic="optimizer",
        when=lambda facts, given: _of_size("tiny")(facts, given) and not given.get("engine.zero_stage"),
        sets=as_fixed({"optim.optimizer": "muon"}),
        why=said("Muon for the hidden matrices: fewer steps to the same features"),
        source=LEARNING,
    ),
    Rule(
        topic="rate",
        when=_of_size("tiny"),
        sets=as_fixed({"optim.lr": 1e-3, "optim.warmup_fraction": 0.05}),
        why=said("the rate of the measured runs"),
        source=RESULTS,
    ),
    Rule(
        topic="rate",
        when=always,
        sets=lambda facts, given: {
            "optim.lr": float(f"{3e-4 * given['batch.global_clips'] / 256:.3g}"),
            "optim.warmup_fraction": 0.05,
        },
        why=said("3e-4 at a batch of 256, scaled linearly"),
        source=f"{VIDEOMAE}: UCF101",
    ),
    Rule(
        topic="views",
        when=lambda facts, given: facts.device == "cuda" and given["batch.global_clips"] % 4 == 0,
        sets=as_fixed({"data.views_per_video": 4}),
        why=said("4 clips of each decoded video: one core reads 2.6 times as many, so the GPU waits less"),
        source="docs/performance.md, loading; MAE-ST, arXiv 2205.09113: repeated sampling of 4",
    ),
    Rule(
        topic="views",
        when=lambda facts, given: (
            float(np.median(facts.short_side_R)) >= 2 * given["clip.size"]
            and given["batch.global_clips"] % 2 == 0
        ),
        sets=as_fixed({"data.views_per_video": 2}),
        why=said("2 clips of each decoded video: the videos are much larger than the clips"),
        source="docs/performance.md, loading; MAE-ST, arXiv 2205.09113: repeated sampling of 4",
    ),
    Rule(
        topic="views",
        when=always,
        sets=as_fixed({"data.views_per_video": 1}),
        why=said("1 clip of each decoded video: small videos decode fast"),
        source=RESULTS,
    ),
)
