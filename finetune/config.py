"""Config of a fine-tuning run: the keys of a YAML file in configs/finetune."""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from kinemae.data_tools.components import Component
from kinemae.data_tools.conditions import Condition, select_rows
from kinemae.data_tools.config import MISSING, require
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.stream.augment import AugmentConfig
from kinemae.data_tools.stream.frame_sampling import ClipConfig, SlidingClips
from kinemae.finetune.adapt.config import AdaptConfig
from kinemae.finetune.mixing import MixConfig
from kinemae.finetune.token_reduction import TokenReduction
from kinemae.finetune.validation.selection import DEFAULT_FRACTION, ValidateConfig
from kinemae.pretrain.runtime.settings import OptimConfig, RunConfig, TrainingData

PRETRAINED_LAYER_DECAY = 0.75


@dataclass(frozen=True, kw_only=True)
class FinetuneData(TrainingData):
    """The labelled data sets.

    Attributes:
        train: folder of labelled shards.
        validation: folder of labelled shards with the same classes, scored during and after training; null:
            a held-out part of `train`, see `ValidateConfig.fraction`.
        test: folder of labelled shards that are scored once, after training; null: none.
        segments: column of segments, see `finetune/labels/segments.py`: each becomes a sample, with its time
            window and with its label in the column "segment"; null: the samples are videos.
        balance: class-balanced sampling: a class of n videos is shown in proportion to n ** (1 - balance). 0
            shows the videos equally often, 1 the classes.
        validation_where, test_where: conditions for `validation` and `test`; `where` is for `train`.
        leaks: "error" rejects data sets that share a group or a file, "warn" logs them.
    """

    train: str = MISSING
    validation: str | None = None
    test: str | None = None
    segments: str | None = None
    balance: float = 0.0
    validation_where: str | None = None
    test_where: str | None = None
    leaks: Literal["error", "warn"] = "error"

    def selected(self, name: str, index: ShardIndex) -> ShardIndex:
        """The samples of "train", "validation" or "test" that match the condition for it."""
        key = "where" if name == "train" else f"{name}_where"
        return select_rows(index, getattr(self, key), key=f"data.{key}")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.balance <= 1, "data.balance", "lie between 0 and 1", self.balance)
        is_one = self.weight is None or self.balance == 0
        require(is_one, "data.balance", "be 0 if data.weight is set", self.balance)
        for name in ("validation", "test"):
            where = getattr(self, f"{name}_where")
            if where is not None:
                Condition(where, key=f"data.{name}_where")
                is_named = getattr(self, name) is not None
                require(is_named, f"data.{name}", f"name a folder if data.{name}_where is set", None)
        require(self.leaks in ("error", "warn"), "data.leaks", "be error or warn", self.leaks)


@dataclass(frozen=True, kw_only=True)
class FinetuneAugment(AugmentConfig):
    """Augmentation of pretraining, with flips that know the classes.

    Attributes:
        flip_pairs: pairs of classes that a flip swaps: a flipped clip of one gets the label of the other.
        flip_except: classes whose videos are never flipped.
    """

    flip_pairs: dict[str, str] = field(default_factory=dict)
    flip_except: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [name for pair in self.flip_pairs.items() for name in pair]
        once = "name each class once"
        require(len(set(names)) == len(names), "augment.flip_pairs", once, self.flip_pairs)
        unset = "be omitted with augment.flip=false"
        require(self.flip or not self.flip_pairs, "augment.flip_pairs", unset, self.flip_pairs)
        require(self.flip or not self.flip_except, "augment.flip_except", unset, self.flip_except)


@dataclass(frozen=True, kw_only=True)
class FinetuneClip:
    """The clip; null takes the encoder's value.

    Attributes:
        frames: frames per clip, a multiple of the patch's. If frames or size differ from the encoder's,
            positions are resampled.
        stride, fps, sampling: selection of frames, see `ClipConfig`.
        size: height and width in pixels, a multiple of the patch's.
        short_video: padding of a video shorter than the clip: "hold" (last frame) or "loop".
        chunks: the clip has this many times `frames`; each part is encoded by itself, and the head gets the
            tokens of all.
    """

    ALTERNATIVES: ClassVar[tuple[str, ...]] = ("stride", "fps", "sampling=uniform")

    frames: int | None = None
    stride: int | None = None
    fps: float | None = None
    sampling: Literal["dense", "uniform"] | None = None
    size: int | None = None
    short_video: Literal["hold", "loop"] = "hold"
    chunks: int = 1

    def __post_init__(self) -> None:
        require(self.chunks >= 1, "clip.chunks", "be at least 1", self.chunks)
        if self.fps is not None:
            require(self.stride is None, "clip.stride", "be null if clip.fps is set", self.stride)
        if self.sampling == "uniform":
            for key, value in (("clip.stride", self.stride), ("clip.fps", self.fps)):
                require(value is None, key, "be null if clip.sampling=uniform", value)


@dataclass(frozen=True, kw_only=True)
class FinetuneModel:
    """The encoder to build from scratch. With `encoder`, every key must be null or equal the encoder's value.

    Attributes:
        size: tiny, small, base, large, huge or giant.
        patch_frames: frames per patch.
        patch_size: height and width of a patch in pixels.
        width: values per token; null: that of the size.
        depth: number of blocks; null: that of the size.
    """

    size: str | None = None
    patch_frames: int | None = None
    patch_size: int | None = None
    width: int | None = None
    depth: int | None = None


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Merging of similar tokens in the encoder (`pretrain/model/merging.py`).

    Attributes:
        per_block: number of tokens merged in each block; 0 for none.
    """

    per_block: int = 0

    def __post_init__(self) -> None:
        require(self.per_block >= 0, "merge.per_block", "be 0 or more", self.per_block)


@dataclass(frozen=True, kw_only=True)
class FinetuneOptim(OptimConfig):
    """The optimizer settings of pretraining with other betas and a layer-wise decay.

    Attributes:
        head_lr_scale: factor on the learning rate of the head.
        layer_decay: learning rate factor from each layer to the one below; 1 for none; null: 0.75 for a
            pretrained encoder, 1 for random weights and for adapters.
    """

    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    head_lr_scale: float = 1.0
    layer_decay: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.head_lr_scale > 0, "optim.head_lr_scale", "be above 0", self.head_lr_scale)
        is_factor = self.layer_decay is None or 0 < self.layer_decay <= 1
        require(is_factor, "optim.layer_decay", "be null or lie in (0, 1]", self.layer_decay)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The scored model, the scored data, and the views of each video, whose predictions are averaged.

    Attributes:
        checkpoint: "best" or "last"; "auto": the best one if it was selected on other data than the scored.
        data: the scored data: "test", "validation" or "held_out" (of data.train); null: the first of them
            that the config has.
        temporal_clips: evenly spaced clips.
        spatial_crops: 1 (the centre) or 3 (both ends and the centre of the longer side).
        sliding: clips at equal steps over the whole video instead of `temporal_clips`, see `SlidingClips`.
        overlap: of sliding clips: fraction of a clip that the next one shows again.
        step_s: of sliding clips: seconds from one clip to the next; replaces `overlap`.
    """

    checkpoint: Literal["auto", "best", "last"] = "auto"
    data: Literal["test", "validation", "held_out"] | None = None
    temporal_clips: int = 1
    spatial_crops: int = 1
    sliding: bool = False
    overlap: float = 0.0
    step_s: float | None = None

    def __post_init__(self) -> None:
        require(self.temporal_clips >= 1, "evaluate.temporal_clips", "be at least 1", self.temporal_clips)
        require(self.spatial_crops in (1, 3), "evaluate.spatial_crops", "be 1 or 3", self.spatial_crops)
        require(0 <= self.overlap < 1, "evaluate.overlap", "lie in [0, 1)", self.overlap)
        if self.step_s is not None:
            require(0 < self.step_s < math.inf, "evaluate.step_s", "be null or above 0", self.step_s)
            require(self.overlap == 0, "evaluate.overlap", "be omitted with evaluate.step_s", self.overlap)
        if self.sliding:
            why = "be 1 with evaluate.sliding, whose clips cover the video"
            require(self.temporal_clips == 1, "evaluate.temporal_clips", why, self.temporal_clips)
        else:
            for key, is_unset in (("overlap", self.overlap == 0), ("step_s", self.step_s is None)):
                why = "be omitted without evaluate.sliding=true"
                require(is_unset, f"evaluate.{key}", why, getattr(self, key))

    def check_clip(self, clip: ClipConfig) -> None:
        """Check that the clips of a run can slide, if they do.

        Raises:
            ValueError: they are sampled from the whole video.
        """
        is_dense = clip.sampling == "dense" or not self.sliding
        require(is_dense, "evaluate.sliding", "be false with clip.sampling=uniform", self.sliding)

    @property
    def clips(self) -> int | SlidingClips:
        """Clips per video, or how they slide."""
        return SlidingClips(overlap=self.overlap, step_s=self.step_s) if self.sliding else self.temporal_clips


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunConfig):
    """Everything a fine-tuning run depends on.

    Attributes:
        encoder: folder of an exported encoder; null trains from scratch, with `model` and `clip`.
        weights: weights of `encoder`: "pretrained", or "random" for the same architecture from scratch.
        task: a component of finetune/tasks: what is learned from which columns.
        head: a component of finetune/heads.
        pruning: a component of pretrain/pruning, which selects the tokens that the encoder processes.
        final_norm: keep the encoder's final norm; false as in VideoMAE's fine-tuning, whose head has a norm.
        adapt: which weights of the encoder are trained.
        auto: take the settings of `kinemae finetune plan` for this data, except those of overrides.
        report: write RUN/report.html after scoring.
        epochs: passes over the training videos; each takes `data.views_per_video` clips per video.
        drop_path: drop path rate of the last block; it increases linearly with depth.
    """

    encoder: str | None = None
    weights: Literal["pretrained", "random"] = "pretrained"
    task: Component = field(default_factory=lambda: Component(name="classification"))
    head: Component = field(default_factory=lambda: Component(name="linear"))
    pruning: Component = field(default_factory=lambda: Component(name="none"))
    final_norm: bool = True
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    auto: bool = False
    report: bool = True
    epochs: float = MISSING
    drop_path: float = 0.0
    save_every_steps: int = 500
    data: FinetuneData = field(default_factory=FinetuneData)
    augment: FinetuneAugment = field(default_factory=FinetuneAugment)
    clip: FinetuneClip = field(default_factory=FinetuneClip)
    mix: MixConfig = field(default_factory=MixConfig)
    model: FinetuneModel = field(default_factory=FinetuneModel)
    merge: MergeConfig = field(default_factory=MergeConfig)
    optim: FinetuneOptim = field(default_factory=FinetuneOptim)
    validate: ValidateConfig = field(default_factory=ValidateConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    @property
    def from_scratch(self) -> bool:
        """True if the encoder's initial weights are random."""
        return self.encoder is None or self.weights == "random"

    @property
    def token_reduction(self) -> TokenReduction:
        """Settings of pruning and merging."""
        return TokenReduction(pruning=self.pruning, merge_per_block=self.merge.per_block)

    @property
    def held_out_fraction(self) -> float:
        """Fraction of data.train that is held out for validation."""
        if self.validate.fraction is not None:
            return self.validate.fraction
        return DEFAULT_FRACTION if self.data.validation is None else 0.0

    @property
    def selection_data(self) -> str:
        """The data of the validations during training: "held_out" or "validation"."""
        return "held_out" if self.held_out_fraction else "validation"

    @property
    def scored_data(self) -> str:
        """The data of the result: "test", "validation" or "held_out"."""
        if self.evaluate.data is not None:
            return self.evaluate.data
        if self.data.test is not None:
            return "test"
        return "held_out" if self.data.validation is None else "validation"

    @property
    def scores_best(self) -> bool:
        """True if the best model is scored, false for the last one."""
        if self.evaluate.checkpoint != "auto":
            return self.evaluate.checkpoint == "best"
        return self.validate.is_on and self.scored_data != self.selection_data

    def __post_init__(self) -> None:
        super().__post_init__()
        has_validation = self.data.validation is not None or self.held_out_fraction > 0
        require(has_validation, "validate.fraction", "be above 0 without data.validation", 0)
        has_best = self.validate.is_on or self.evaluate.checkpoint != "best"
        is_single = self.validate.temporal_clips == 1 or not self.evaluate.sliding
        why = "be 1 with evaluate.sliding, which validations use too"
        require(is_single, "validate.temporal_clips", why, self.validate.temporal_clips)
        why = "be auto or last with validate.every_epochs=0, which selects no best model"
        require(has_best, "evaluate.checkpoint", why, self.evaluate.checkpoint)
        given = {
            "test": self.data.test,
            "validation": self.data.validation,
            "held_out": self.held_out_fraction,
        }
        fix = "validate.fraction" if self.scored_data == "held_out" else f"data.{self.scored_data}"
        why = f"name data that the config has; {fix} is not set"
        require(bool(given[self.scored_data]), "evaluate.data", why, self.evaluate.data)
        require(self.encoder != "", "encoder", "name a folder, or be null for from scratch", self.encoder)
        require(self.epochs > 0, "epochs", "be above 0", self.epochs)
        require(0 <= self.drop_path < 1, "drop_path", "lie in [0, 1)", self.drop_path)
        is_full = self.optim.optimizer == "adamw" or not self.adapt.has_adapters
        why = f"be adamw with adapt.method={self.adapt.method}: Muon is for whole matrices"
        require(is_full, "optim.optimizer", why, self.optim.optimizer)


def resolve_layer_decay(config: FinetuneConfig) -> FinetuneConfig:
    """Set `optim.layer_decay` if it is null."""
    if config.optim.layer_decay is not None:
        return config
    is_new = config.from_scratch or config.adapt.has_adapters
    decay = 1.0 if is_new else PRETRAINED_LAYER_DECAY
    return replace(config, optim=replace(config.optim, layer_decay=decay))


def total_steps(config: FinetuneConfig, samples: int) -> int:
    """Return the number of optimizer steps of the configured epochs, rounded up."""
    clips = config.epochs * samples * config.data.views_per_video
    # Floating-point rounding: 0.1 * 30 > 3.
    return max(1, math.ceil(round(clips / config.batch.global_clips, 9)))
