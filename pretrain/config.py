"""The config of a pretraining run: `kinemae pretrain CONFIG [a.b=c]`."""

from dataclasses import dataclass, field
from typing import ClassVar

from kinemae.data_tools.components import Component
from kinemae.data_tools.config import MISSING, require
from kinemae.data_tools.stream.loader import ClipConfig
from kinemae.data_tools.stream.streamed_clips import BUFFER
from kinemae.pretrain.model.sizes import ModelConfig
from kinemae.pretrain.representation_monitor import MonitorConfig
from kinemae.pretrain.runtime.settings import RunConfig, TrainingData


@dataclass(frozen=True, kw_only=True)
class DataConfig(TrainingData):
    """The training data: one data set or several.

    Attributes:
        shards: a folder of shards, made by `kinemae data shard`; or a tar, or a pattern of tars such as
            s3://bucket/x-{0000..0999}.tar, which are read in sequence without an index.
        mixture: several such folders instead, each with its weight: its fraction of the clips.
        concatenate: several such folders instead, read as one: each sample once per epoch.
        shuffle_buffer: for tars without an index: samples from which each loader worker draws.
    """

    ALTERNATIVES: ClassVar[tuple[str, ...]] = ("shards", "mixture", "concatenate")

    shards: str | None = None
    mixture: dict[str, float] | None = None
    concatenate: list[str] | None = None
    shuffle_buffer: int = BUFFER

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.shuffle_buffer >= 1, "data.shuffle_buffer", "be at least 1", self.shuffle_buffer)
        given = [f"data.{name}" for name in self.ALTERNATIVES if getattr(self, name) is not None]
        if len(given) > 1:
            require(False, given[0], f"be null if {given[1]} is set", getattr(self, given[0][5:]))
        if self.mixture is not None:
            require(len(self.mixture) > 0, "data.mixture", "name at least one folder: {FOLDER: weight}", {})
            for folder, weight in self.mixture.items():
                require(weight > 0, f"the weight of {folder} in data.mixture", "be above 0", weight)
        if self.concatenate is not None:
            is_set = len(set(self.concatenate)) == len(self.concatenate) > 0
            require(is_set, "data.concatenate", "name one or more folders, each once", self.concatenate)

    @property
    def sources(self) -> tuple[str, str | list[str] | dict[str, float]] | None:
        """The key that names the data, and its value."""
        given = [(name, getattr(self, name)) for name in self.ALTERNATIVES]
        return next(((f"data.{name}", value) for name, value in given if value is not None), None)


@dataclass(frozen=True, kw_only=True)
class PicturesConfig:
    """Pictures of the model's input and prediction, in TensorBoard and in `RUN/pictures`.

    Attributes:
        every_steps: steps between pictures; the last step has some too; 0 for none.
        clips: number of clips, from the start of the run.
    """

    every_steps: int = 1000
    clips: int = 4

    def __post_init__(self) -> None:
        require(self.every_steps >= 0, "pictures.every_steps", "be 0 (never) or more", self.every_steps)
        require(self.clips >= 1, "pictures.clips", "be at least 1", self.clips)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """The config of a run. A config file overrides these defaults, and the command line overrides the file.

    Attributes:
        steps: optimizer steps.
        init_from: folder of an exported encoder with the initial weights; null for random ones.
        masking: the tokens that are hidden, a component of `pretrain/masking`.
        masks_per_clip: independent masks of each decoded clip; the loss of a clip is their mean.
        pruning: the tokens that are dropped, a component of `pretrain/pruning`.
        noise: noise on the encoder's input, a component of `pretrain/noise`.
        target: the values that are predicted, a component of `pretrain/targets`.
    """

    steps: int = MISSING
    init_from: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    # Without arguments: an override of the name alone would keep default arguments.
    masking: Component = field(default_factory=lambda: Component(name="tube"))
    masks_per_clip: int = 1
    pruning: Component = field(default_factory=lambda: Component(name="none"))
    noise: Component = field(default_factory=lambda: Component(name="none"))
    target: Component = field(default_factory=lambda: Component(name="pixels"))
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.sources is None:
            raise ValueError(
                "data.shards: expected a folder, got null; fix: set data.shards=FOLDER, or "
                "data.mixture={FOLDER: weight, ...} or data.concatenate=[FOLDER, ...] for several folders"
            )
        require(self.steps >= 1, "steps", "be at least 1", self.steps)
        require(self.masks_per_clip >= 1, "masks_per_clip", "be at least 1", self.masks_per_clip)
        require(self.init_from != "", "init_from", "name a folder, or be null", self.init_from)
