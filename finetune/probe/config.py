"""Config of `kinemae finetune probe` and `kinemae finetune knn`."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from kinemae.data_tools.components import Component
from kinemae.data_tools.config import MISSING, require
from kinemae.data_tools.stream.loader import AugmentConfig
from kinemae.finetune.config import FinetuneClip, FinetuneData
from kinemae.pretrain.runtime.settings import EngineConfig, StreamConfig, TimeoutsConfig

EXTERNAL_SUFFIXES = (".npz", ".parquet")
METHODS = ("linear", "attentive", "logistic", "knn")


@dataclass(frozen=True, kw_only=True)
class ProbeData(StreamConfig):
    """The labelled data sets, or files of features.

    Attributes:
        train: folder of labelled shards, or a file of features.
        validation: the same for the scored data.
        segments, leaks: see `FinetuneData`.
    """

    train: str = MISSING
    validation: str = MISSING
    segments: str | None = None
    leaks: Literal["error", "warn"] = "error"

    @property
    def labelled(self) -> FinetuneData:
        """The data of a fine-tuning run."""
        return FinetuneData(**asdict(self))


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """Fixed views per video, whose predictions are averaged.

    Attributes:
        temporal_clips: evenly spaced clips.
        spatial_crops: 1 (the centre) or 3 (both ends and the centre of the longer side).
    """

    temporal_clips: int = 1
    spatial_crops: int = 1

    def __post_init__(self) -> None:
        require(self.temporal_clips >= 1, "evaluate.temporal_clips", "be at least 1", self.temporal_clips)
        require(self.spatial_crops in (1, 3), "evaluate.spatial_crops", "be 1 or 3", self.spatial_crops)


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """The feature store.

    Attributes:
        kind: "statistics" stores mean and standard deviation of the tokens; "slices" those of each time
            slice; "tokens" stores all tokens; null: tokens for attentive heads, slices for `grid.pool` with
            slices, statistics otherwise.
        layers: blocks whose output is stored, from 0; negative numbers count from the last block. The final
            norm is applied to each.
        dtype: of the stored values.
        train_views: random views per training video, augmented as in training; 0: the fixed views of
            `evaluate`.
        folder: folder of the store; null: `RUN/features`.
        rebuild: replace a store of another encoder, data set or views.
    """

    kind: Literal["statistics", "slices", "tokens"] | None = None
    layers: list[int] = field(default_factory=lambda: [-1])
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    train_views: int = 0
    folder: str | None = None
    rebuild: bool = False

    def __post_init__(self) -> None:
        is_list = bool(self.layers) and len(set(self.layers)) == len(self.layers)
        require(is_list, "features.layers", "name at least one block, each once", self.layers)
        require(self.train_views >= 0, "features.train_views", "be 0 (fixed views) or more", self.train_views)


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """The grid of heads: every combination is trained.

    Attributes:
        lr: peak learning rates of AdamW.
        weight_decay: weight decays.
        depth: number of blocks of attentive heads.
        pool: of linear heads, logistic regression and knn: "mean", "statistics" (mean and standard deviation
            of the tokens) or "slices" (the mean of each time slice, concatenated).
    """

    lr: list[float] = field(default_factory=lambda: [1e-4, 3e-4, 1e-3, 3e-3, 1e-2])
    weight_decay: list[float] = field(default_factory=lambda: [0.0, 0.001, 0.01, 0.1])
    depth: list[int] = field(default_factory=lambda: [1])
    pool: list[str] = field(default_factory=lambda: ["statistics"])

    def __post_init__(self) -> None:
        for key in ("lr", "weight_decay", "depth", "pool"):
            values = getattr(self, key)
            is_list = bool(values) and len(set(values)) == len(values)
            require(is_list, f"grid.{key}", "hold at least one value, each once", values)
        require(min(self.lr) > 0, "grid.lr", "hold numbers above 0", self.lr)
        require(
            min(self.weight_decay) >= 0, "grid.weight_decay", "hold numbers of 0 or more", self.weight_decay
        )
        require(min(self.depth) >= 1, "grid.depth", "hold numbers of at least 1", self.depth)
        is_known = set(self.pool) <= {"mean", "statistics", "slices"}
        require(is_known, "grid.pool", "hold mean, statistics or slices", self.pool)


@dataclass(frozen=True, kw_only=True)
class HeadTraining:
    """Training of the heads: AdamW, linear warmup, cosine decay to 0.

    Attributes:
        epochs: passes over the training samples; each takes one view per sample.
        min_steps: smallest number of steps; raises the number of epochs of a small data set.
        batch: samples per step.
        warmup_fraction: length of the warmup, as a fraction of all steps.
        clip_norm: largest norm of each head's gradient; 0 for no clipping.
    """

    epochs: float = 20.0
    min_steps: int = 500
    batch: int = 64
    warmup_fraction: float = 0.1
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        require(self.epochs > 0, "train.epochs", "be above 0", self.epochs)
        require(self.min_steps >= 1, "train.min_steps", "be at least 1", self.min_steps)
        require(self.batch >= 1, "train.batch", "be at least 1", self.batch)
        require(0 <= self.warmup_fraction < 1, "train.warmup_fraction", "lie in [0, 1)", self.warmup_fraction)
        require(self.clip_norm >= 0, "train.clip_norm", "be 0 (off) or more", self.clip_norm)


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """Selection of a head, on a part of the training data.

    Attributes:
        fraction: of the training samples; whole groups are held out.
        refit: train the chosen head again on all training samples before it is evaluated.
        folds: of the grouped cross-validation of logistic regression.
    """

    fraction: float = 0.2
    refit: bool = True
    folds: int = 5

    def __post_init__(self) -> None:
        require(0 < self.fraction < 1, "select.fraction", "lie strictly between 0 and 1", self.fraction)
        require(self.folds >= 2, "select.folds", "be at least 2", self.folds)


@dataclass(frozen=True, kw_only=True)
class KnnConfig:
    """Weighted nearest neighbours by cosine.

    Attributes:
        k: numbers of neighbours; null: those of 10, 20, 100 and 200 that the training data has.
        temperature: a neighbour has the weight exp(cosine / temperature).
    """

    k: list[int] | None = None
    temperature: list[float] = field(default_factory=lambda: [0.07])

    def __post_init__(self) -> None:
        is_list = self.k is None or (bool(self.k) and min(self.k) >= 1 and len(set(self.k)) == len(self.k))
        require(is_list, "knn.k", "be null or hold numbers of at least 1, each once", self.k)
        is_list = bool(self.temperature) and min(self.temperature) > 0
        require(is_list, "knn.temperature", "hold numbers above 0", self.temperature)


@dataclass(frozen=True, kw_only=True)
class LogisticConfig:
    """Logistic regression of scikit-learn on standardized features.

    Attributes:
        c: inverse strengths of the L2 penalty.
        max_iter: largest number of iterations of L-BFGS.
    """

    c: list[float] = field(default_factory=lambda: [1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0])
    max_iter: int = 1000

    def __post_init__(self) -> None:
        is_list = bool(self.c) and min(self.c) > 0 and len(set(self.c)) == len(self.c)
        require(is_list, "logistic.c", "hold numbers above 0, each once", self.c)
        require(self.max_iter >= 1, "logistic.max_iter", "be at least 1", self.max_iter)


@dataclass(frozen=True, kw_only=True)
class FewShotConfig:
    """Scores with few labels, by knn or logistic regression.

    Attributes:
        per_class: numbers of training samples per class; empty for none.
        fractions: fractions of the training samples of each class; empty for none.
        tries: number of random draws of each.
        c: inverse strength of the L2 penalty of logistic regression: too few labels to choose it.
    """

    per_class: list[int] = field(default_factory=list)
    fractions: list[float] = field(default_factory=list)
    tries: int = 5
    c: float = 0.1

    def __post_init__(self) -> None:
        require(
            min(self.per_class, default=1) >= 1,
            "few_shot.per_class",
            "hold numbers of at least 1",
            self.per_class,
        )
        is_fraction = all(0 < fraction <= 1 for fraction in self.fractions)
        require(is_fraction, "few_shot.fractions", "hold numbers above 0 and at most 1", self.fractions)
        require(self.tries >= 1, "few_shot.tries", "be at least 1", self.tries)
        require(self.c > 0, "few_shot.c", "be above 0", self.c)

    @property
    def is_on(self) -> bool:
        return bool(self.per_class or self.fractions)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Everything a probe depends on.

    Attributes:
        run_dir: folder of features and results.
        seed: for head weights, order, random views, held-out part and few-shot draws.
        encoder: folder of an exported encoder, of a pretraining checkpoint or of all checkpoints of a run; a
            pattern such as RUN/checkpoints/step-*; or a list of these. Null: `data` names feature files.
        weights: weights of `encoder`: "pretrained", or "random" for the same architecture.
        method: linear, attentive, logistic or knn.
        task: a component of finetune/tasks with one output per clip.
        data: folders of labelled shards, or files of features (npz, parquet).
        clip: the clip; null takes the encoder's value.
        evaluate: fixed views, of validation and, with `features.train_views=0`, of training.
        augment: of random training views.
        clips_per_device: views per forward pass of the encoder.
        save_model: save the chosen linear or attentive head with its encoder as a fine-tuned model.
    """

    run_dir: str = MISSING
    seed: int = 0
    encoder: Any = None
    weights: Literal["pretrained", "random"] = "pretrained"
    method: Literal["linear", "attentive", "logistic", "knn"] = "linear"
    task: Component = field(default_factory=lambda: Component(name="classification"))
    save_model: bool = True
    clips_per_device: int = 16
    data: ProbeData = field(default_factory=ProbeData)
    clip: FinetuneClip = field(default_factory=FinetuneClip)
    evaluate: ViewsConfig = field(default_factory=ViewsConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    grid: GridConfig = field(default_factory=GridConfig)
    train: HeadTraining = field(default_factory=HeadTraining)
    select: SelectConfig = field(default_factory=SelectConfig)
    knn: KnnConfig = field(default_factory=KnnConfig)
    logistic: LogisticConfig = field(default_factory=LogisticConfig)
    few_shot: FewShotConfig = field(default_factory=FewShotConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    timeouts: TimeoutsConfig = field(default_factory=TimeoutsConfig)

    @property
    def encoders(self) -> list[str]:
        """The configured encoders as a list."""
        return (
            [] if self.encoder is None else [self.encoder] if isinstance(self.encoder, str) else self.encoder
        )

    @property
    def is_external(self) -> bool:
        """True if `data` names files of features instead of videos."""
        return self.encoder is None

    def __post_init__(self) -> None:
        require(self.run_dir != "", "run_dir", "name a folder", self.run_dir)
        require(self.clips_per_device >= 1, "clips_per_device", "be at least 1", self.clips_per_device)
        names = self.encoders
        is_list = isinstance(names, list) and all(isinstance(name, str) and name for name in names)
        require(
            is_list and (self.encoder is None or bool(names)),
            "encoder",
            "be null, a folder or a list of folders",
            self.encoder,
        )
        for key in ("train", "validation"):
            value = getattr(self.data, key)
            is_file = value.endswith(EXTERNAL_SUFFIXES)
            if self.is_external and not is_file:
                raise ValueError(
                    f"encoder: expected a folder, or null with data.{key} as a file of features (npz or "
                    "parquet), "
                    f"got null and data.{key}={value}; fix: set encoder"
                )
            if not self.is_external and is_file:
                raise ValueError(
                    f"data.{key}: expected a folder of shards with encoder={self.encoder}, got {value}; "
                    "fix: set "
                    "encoder=null to use files of features"
                )
        chunks = self.clip.chunks
        require(chunks == 1, "clip.chunks", "be 1: evaluate.temporal_clips averages several clips", chunks)
        views = self.data.views_per_video
        require(views == 1, "data.views_per_video", "be 1: features.train_views sets the views", views)
        self._check_method()

    def _check_method(self) -> None:
        if self.method == "attentive":
            is_kept = self.features.kind in (None, "tokens")
            require(is_kept, "method", "not be attentive with pooled features: use tokens", self.method)
        elif "slices" in self.grid.pool:
            is_kept = self.features.kind in (None, "slices") and not self.is_external
            needed = "not hold slices without features.kind=slices of an encoder"
            require(is_kept, "grid.pool", needed, self.grid.pool)
        if self.few_shot.is_on:
            is_fast = self.method in ("knn", "logistic")
            require(is_fast, "method", "be knn or logistic with few_shot", self.method)
        if self.is_external:
            require(self.weights == "pretrained", "weights", "be pretrained without an encoder", self.weights)

    @property
    def store_kind(self) -> str:
        """Content of the feature store: "statistics", "slices" or "tokens"."""
        if self.method == "attentive":
            return "tokens"
        return self.features.kind or ("slices" if "slices" in self.grid.pool else "statistics")
