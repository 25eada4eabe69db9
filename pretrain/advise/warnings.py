"""Warnings of the advice: reasons for which pretraining may not pay, each with numbers and a fix."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kinemae.pretrain.advise.budget import Budget
from kinemae.pretrain.advise.facts import Facts
from kinemae.pretrain.advise.rule_table import Settings
from kinemae.pretrain.advise.rules import FEW_VIDEOS, FEWEST_STEPS, MOST_EPOCHS

_SOME = 0.1  # of the videos
_EXCESS = 0.05  # accuracy above the largest class
_CEILING = 0.95
_WAIT = 0.2  # of the time
_MIN_CORRELATION = 0.4  # below it, successive frames have little in common


@dataclass(frozen=True, kw_only=True)
class Case:
    """The input of a warning."""

    facts: Facts
    given: Settings
    budget: Budget


@dataclass(frozen=True, kw_only=True)
class Check:
    """A possible warning; `text` is called only if it applies."""

    name: str
    applies: Callable[[Case], bool]
    text: Callable[[Case], str]


def warnings_of(case: Case) -> dict[str, str]:
    """The texts of the warnings that apply, by name."""
    return {each.name: each.text(case) for each in WARNINGS if each.applies(case)}


def clip_span(facts: Facts, given: Settings) -> float:
    """Frames of the median video that a clip spans; for uniform sampling, the frames of a clip."""
    frames: int = given["clip.frames"]
    if given.get("clip.sampling") == "uniform":
        return frames
    fps = given.get("clip.fps")
    stride = given.get("clip.stride") or 1
    step = stride if fps is None else max(1.0, float(np.median(facts.fps_R)) / fps)
    return (frames - 1) * step + 1


def _short(case: Case) -> float:
    return float(np.mean(case.facts.frames_R < clip_span(case.facts, case.given)))


def _small(case: Case) -> float:
    return float(np.mean(case.facts.short_side_R < case.given["clip.size"]))


def _stored_side(case: Case) -> int:
    """Short side of stored videos that allows for crops, as the 80 pixels for clips of 64 in results.md."""
    side: int = case.given["clip.size"] * 5 // 4
    return side


def _excess(case: Case, name: str) -> float:
    return 0.0 if case.facts.floors is None else case.facts.floors.excess(name)


def _floor_text(case: Case, name: str) -> str:
    floors = case.facts.floors
    assert floors is not None
    return f"{100 * floors.scores[name]:.0f} % (always the largest class: {100 * floors.largest_class:.0f} %)"


def _best_floor(case: Case) -> tuple[str, float]:
    floors = case.facts.floors
    if floors is None:
        return "", 0.0
    return max(floors.scores.items(), key=lambda item: item[1])


WARNINGS = (
    Check(
        name="few_videos",
        applies=lambda case: case.facts.videos < FEW_VIDEOS,
        text=lambda case: (
            f"{case.facts.videos:,} videos are few: pretraining on 300 videos showed no gain, on 1,500 a "
            "clear one (docs/results.md); fix: add unlabelled videos, or start from published weights "
            "(docs/which-checkpoint.md)"
        ),
    ),
    Check(
        name="unreadable",
        applies=lambda case: case.facts.overview.unreadable > 0.01,
        text=lambda case: (
            f"{100 * case.facts.overview.unreadable:.0f} % of {case.facts.overview.videos} sampled videos "
            "cannot be decoded, and a run stops at 1 % (data.max_bad_fraction); fix: `kinemae data verify`"
        ),
    ),
    Check(
        name="static",
        applies=lambda case: (
            case.facts.overview.static > _SOME
            or (case.facts.clip is not None and case.facts.clip.static_tokens > 0.5)
        ),
        text=lambda case: (
            f"{100 * case.facts.overview.static:.0f} % of the videos are static"
            + (f", {100 * case.facts.clip.static_tokens:.0f} % of the tokens repeat the one before them"
               if case.facts.clip else "")
            + ": copying solves most of the task, and little about motion is learned; fix: remove static "
            "videos or crop to what moves, or drop such tokens, pruning={name: run_length, args: {keep: 0.7}}"
        ),
    ),
    Check(
        name="blank",
        applies=lambda case: case.facts.overview.blank > 0.02,
        text=lambda case: (
            f"{100 * case.facts.overview.blank:.0f} % of the videos are blank; fix: remove them, "
            "`kinemae data report` lists them"
        ),
    ),
    Check(
        name="fast",
        applies=lambda case: case.facts.clip is not None and case.facts.clip.temporal < _MIN_CORRELATION,
        text=lambda case: (
            f"tokens correlate with the next ones in time by only "
            f"{case.facts.clip.temporal if case.facts.clip else 0:.2f}: motion this fast was not learned in "
            "docs/results.md (speeds); fix: a smaller clip.stride, a higher clip.fps, or sharding with more "
            "frames per second"
        ),
    ),
    Check(
        name="short_videos",
        applies=lambda case: _short(case) > _SOME,
        text=lambda case: (
            f"{100 * _short(case):.0f} % of the videos are shorter than the "
            f"{clip_span(case.facts, case.given):g} frames of a clip and repeat frames; fix: fewer "
            "clip.frames, a shorter stride, or longer videos"
        ),
    ),
    Check(
        name="duplicates",
        applies=lambda case: max(case.facts.overview.near_duplicates, case.facts.exact_duplicates) > _SOME,
        text=lambda case: (
            f"{100 * case.facts.overview.near_duplicates:.0f} % of the sampled videos are similar to another "
            f"one, {100 * case.facts.exact_duplicates:.0f} % of all are exact copies: there are fewer "
            "different videos than it seems; fix: remove copies, `kinemae data report` lists them"
        ),
    ),
    Check(
        name="upscaled",
        applies=lambda case: _small(case) > _SOME,
        text=lambda case: (
            f"{100 * _small(case):.0f} % of the videos have a short side below clip.size="
            f"{case.given['clip.size']} and are enlarged; fix: a smaller clip.size"
        ),
    ),
    Check(
        name="metadata_floor",
        applies=lambda case: _excess(case, "metadata") > _EXCESS,
        text=lambda case: (
            f"width, height, frame rate and number of frames alone name the class of "
            f"{_floor_text(case, 'metadata')}: scores on these labels say little about the videos' content; "
            "fix: collect all classes from the same sources, or judge the encoder on other labels"
        ),
    ),
    Check(
        name="first_frame_floor",
        applies=lambda case: _excess(case, "first frame") > 2 * _EXCESS,
        text=lambda case: (
            f"the first frame at 16x16 pixels names the class of {_floor_text(case, 'first frame')}: the "
            "label does not need motion; fix: compare with an image encoder (docs/which-checkpoint.md)"
        ),
    ),
    Check(
        name="ceiling",
        applies=lambda case: _best_floor(case)[1] >= _CEILING,
        text=lambda case: (
            f"a linear classifier on the {_best_floor(case)[0]} names {100 * _best_floor(case)[1]:.0f} % of "
            "the classes: these labels cannot show a gain from pretraining; fix: use that classifier, or "
            "harder labels"
        ),
    ),
    Check(
        name="few_steps",
        applies=lambda case: case.given["steps"] < FEWEST_STEPS,
        text=lambda case: (
            f"{case.given['steps']:,} steps are few: the shortest runs in docs/results.md, learning per "
            f"compute, have {FEWEST_STEPS:,}, which take "
            f"{case.budget.hours_of(FEWEST_STEPS):.2g} hours; fix: more --hours, or a smaller clip.size"
        ),
    ),
    Check(
        name="slow_reading",
        applies=lambda case: case.budget.data_wait > _WAIT,
        text=lambda case: (
            f"the measured steps waited for videos in {100 * case.budget.data_wait:.0f} % of the time; fix: "
            "shard smaller videos, `kinemae data shard SOURCE OUT 'layout={name: h264, args: "
            f"{{short_side: {_stored_side(case)}}}}}'`, or more data.num_workers or data.views_per_video"
        ),
    ),
    Check(
        name="long",
        applies=lambda case: case.budget.unused_hours > 0,
        text=lambda case: (
            f"{case.budget.unused_hours:.2g} of the hours are not used: {MOST_EPOCHS:,} epochs are the most "
            "that was published (VideoMAE on UCF101); fix: add videos, or choose a larger model.size"
        ),
    ),
)  # fmt: skip
