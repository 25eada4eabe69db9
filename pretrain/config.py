"""The config of a pretraining run: `kinemae pretrain CONFIG [a.b=c]`."""

from dataclasses import dataclass, field
from typing import ClassVar

from kinemae.data_tools.components import Component
from kinemae.data_tools.config import MISSING, require
from kinemae.data_tools.stream.loader import AugmentConfig, ClipConfig
from kinemae.pretrain.model.sizes import ModelConfig
from kinemae.pretrain.representation_monitor import MonitorConfig
from kinemae.pretrain.runtime.loss_guard import LossGuardConfig
from kinemae.pretrain.runtime.settings import (
    BatchConfig,
    EngineConfig,
    LogConfig,
    OptimConfig,
    RunSettings,
    StreamConfig,
    check_saving,
)
from kinemae.pretrain.runtime.watchdog import TimeoutsConfig


@dataclass(frozen=True, kw_only=True)
class DataConfig(StreamConfig):
    """What to stream: one data set or several.

    Attributes:
        shards: a folder that `data_tools shard` made.
        mixture: in its place several such folders, each with its weight: the share of the clips that it gets.
    """

    ALTERNATIVES: ClassVar[tuple[str, ...]] = ("shards", "mixture")

    shards: str | None = None
    mixture: dict[str, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mixture is None:
            return
        require(self.shards is None, "data.shards", "be null where data.mixture is given", self.shards)
        require(len(self.mixture) > 0, "data.mixture", "name at least one folder: {FOLDER: weight}", {})
        for folder, weight in self.mixture.items():
            require(weight > 0, f"the weight of {folder} in data.mixture", "be above 0", weight)


@dataclass(frozen=True, kw_only=True)
class PicturesConfig:
    """Pictures of what the model sees and predicts, in TensorBoard and in `RUN/pictures`.

    Attributes:
        every_steps: how often they are drawn, besides the last step; 0 for never.
        clips: how many clips, the first of the run's order.
    """

    every_steps: int = 1000
    clips: int = 4

    def __post_init__(self) -> None:
        require(self.every_steps >= 0, "pictures.every_steps", "be 0 (never) or more", self.every_steps)
        require(self.clips >= 1, "pictures.clips", "be at least 1", self.clips)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Everything that fixes a run. The file's keys come over these defaults, overrides over the file's."""

    run_dir: str = MISSING
    seed: int = 0
    steps: int = MISSING
    # Folder of an exported encoder, whose weights a new run begins with; null for random ones.
    init_from: str | None = None
    save_every_steps: int = 1000
    keep_checkpoints: int = 2
    keep_every_steps: int = 0
    save_in_background: bool = True
    data: DataConfig = field(default_factory=DataConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    # No default arguments: they would stay behind when only the name is overridden.
    masking: Component = field(default_factory=lambda: Component(name="tube"))
    pruning: Component = field(default_factory=lambda: Component(name="none"))
    noise: Component = field(default_factory=lambda: Component(name="none"))
    target: Component = field(default_factory=lambda: Component(name="pixels"))
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    log: LogConfig = field(default_factory=LogConfig)
    timeouts: TimeoutsConfig = field(default_factory=TimeoutsConfig)
    loss_guard: LossGuardConfig = field(default_factory=LossGuardConfig)
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)

    def __post_init__(self) -> None:
        if self.data.shards is None and self.data.mixture is None:
            raise ValueError(
                "no data: set data.shards=FOLDER, or data.mixture={FOLDER: weight, ...} for several folders"
            )
        require(self.steps >= 1, "steps", "be at least 1", self.steps)
        require(self.init_from != "", "init_from", "name a folder, or be null", self.init_from)
        check_saving(self.save_every_steps, self.keep_checkpoints, self.keep_every_steps)

    def run_settings(self, num_workers: int) -> RunSettings:
        """What the loop needs; `num_workers` is the resolved number."""
        return RunSettings(
            run_dir=self.run_dir,
            seed=self.seed,
            steps=self.steps,
            save_every_steps=self.save_every_steps,
            keep_checkpoints=self.keep_checkpoints,
            keep_every_steps=self.keep_every_steps,
            save_in_background=self.save_in_background,
            num_workers=num_workers,
            max_bad_fraction=self.data.max_bad_fraction,
            timeout_s=self.data.timeout_s,
            optim=self.optim,
            engine=self.engine,
            log=self.log,
            timeouts=self.timeouts,
            loss_guard=self.loss_guard,
        )
