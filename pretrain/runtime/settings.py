"""Config sections that pretraining and fine-tuning share."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from kinemae.data_tools.components import Component
from kinemae.data_tools.conditions import Condition
from kinemae.data_tools.config import MISSING, require
from kinemae.data_tools.storage.cache import Cache
from kinemae.data_tools.stream.loader import READ_AHEAD, AugmentConfig

_CLIPS_PER_DEVICE = 64
_LONGEST_TIMEOUT_S = 1e8  # three years; clocks of the system overflow at larger ones
_MOST_TRACED = 100  # steps of a trace; larger ones cannot be opened


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Settings of video reading; each command adds its data sets.

    Attributes:
        num_workers: loader processes for each training process; -1 uses the remaining cores.
        views_per_video: clips cut from one decoded video; they are neighbours in a batch.
        max_bad_fraction: the run stops if a larger fraction of clips is unreadable.
        timeout_s: limit without progress; then a loader worker is replaced and its sample skipped.
        outage_s: longest wait for a storage that is down; then the run stops and can be restarted.
        cache_dir: local folder that caches remote shards; null for none.
        cache_gb: its largest size.
        read_ahead: samples that each loader process reads ahead of the one it decodes; 0 for none.
    """

    num_workers: int = -1
    views_per_video: int = 1
    max_bad_fraction: float = 0.01
    timeout_s: float = 120.0
    outage_s: float = 300.0
    cache_dir: str | None = None
    cache_gb: float = 100.0
    read_ahead: int = READ_AHEAD

    def __post_init__(self) -> None:
        require(
            self.num_workers >= -1, "data.num_workers", "be 0 or more, or -1 (automatic)", self.num_workers
        )
        require(self.views_per_video >= 1, "data.views_per_video", "be at least 1", self.views_per_video)
        is_fraction = 0 <= self.max_bad_fraction <= 1
        require(is_fraction, "data.max_bad_fraction", "lie between 0 and 1", self.max_bad_fraction)
        require(self.timeout_s > 0, "data.timeout_s", "be above 0", self.timeout_s)
        require(self.outage_s >= 0, "data.outage_s", "be 0 or more", self.outage_s)
        require(self.cache_gb > 0, "data.cache_gb", "be above 0", self.cache_gb)
        require(0 <= self.read_ahead <= 256, "data.read_ahead", "lie between 0 and 256", self.read_ahead)

    @property
    def cache(self) -> Cache | None:
        """The cache of remote shards."""
        if self.cache_dir is None:
            return None
        return Cache(folder=Path(self.cache_dir).absolute(), size=round(self.cache_gb * 1e9))


@dataclass(frozen=True, kw_only=True)
class TrainingData(StreamConfig):
    """Settings of training data.

    Attributes:
        where: condition over columns, see `data_tools/conditions.py`: training leaves other samples out.
        weight: column of weights: training samples come in proportion to it.
        order: the order of the training samples, a component of `data_tools/orders`.
    """

    where: str | None = None
    weight: str | None = None
    order: Component = field(default_factory=lambda: Component(name="random"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.where is not None:
            Condition(self.where, key="data.where")


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """The global batch; micro-batch and accumulation follow from the number of processes.

    Attributes:
        global_clips: clips in one optimizer step, over all processes.
        clips_per_device: largest micro-batch of one process; "auto" takes the largest that fits the memory
            of every device, see `micro_batch.py`.
    """

    global_clips: int = 256
    clips_per_device: int | Literal["auto"] = _CLIPS_PER_DEVICE

    def __post_init__(self) -> None:
        require(self.global_clips >= 1, "batch.global_clips", "be at least 1", self.global_clips)
        clips = self.clips_per_device
        is_good = clips == "auto" or clips >= 1
        require(is_good, "batch.clips_per_device", "be at least 1, or auto", clips)

    @property
    def is_auto(self) -> bool:
        """Whether the memory of the devices decides the micro-batch."""
        return self.clips_per_device == "auto"

    @property
    def limit(self) -> int | None:
        """`clips_per_device`; None with `auto`, before the memory is known."""
        return None if self.clips_per_device == "auto" else self.clips_per_device

    @property
    def fixed_clips(self) -> int:
        """`clips_per_device`; with `auto` its default, where no memory is measured: costs and scores."""
        return self.limit or _CLIPS_PER_DEVICE


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its schedules, which are functions of the step.

    Attributes:
        optimizer: "adamw", or "muon" for Muon on the matrices of encoder and decoder blocks and AdamW on
            other weights; see `muon.py`.
        muon_lr_scale: factor on the learning rate of Muon; at 1 its updates have the size of AdamW's.
        lr: the peak learning rate; it is not scaled by the batch.
        final_lr: the value to which the learning rate falls.
        schedule: after the linear warm-up. "cosine": half a cosine from `lr` to `final_lr`. "constant": `lr`,
            then a cool-down to `final_lr`; a run can be prolonged before its cool-down.
        cooldown_fraction: length of the cool-down of the constant schedule, as a fraction of all steps; 0 for
            none.
        warmup_fraction: length of the warm-up, as a fraction of all steps.
        warmup_steps: length of the warm-up in steps; null: `warmup_fraction` of all steps.
        betas: AdamW's two decay rates.
        weight_decay: AdamW's weight decay; norms, biases, learned tokens and position tables have none.
        final_weight_decay: the last value of a half cosine from `weight_decay`; null: a constant decay.
        clip_norm: gradient clipping: largest norm of the gradient; 0 for no clipping.
    """

    optimizer: Literal["adamw", "muon"] = "adamw"
    muon_lr_scale: float = 10.0
    lr: float = 3e-4
    final_lr: float = 1e-6
    schedule: Literal["cosine", "constant"] = "cosine"
    cooldown_fraction: float = 0.2
    warmup_fraction: float = 0.05
    warmup_steps: int | None = None
    weight_decay: float = 0.05
    final_weight_decay: float | None = None
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        require(self.lr > 0, "optim.lr", "be above 0", self.lr)
        require(0 <= self.final_lr <= self.lr, "optim.final_lr", "lie between 0 and optim.lr", self.final_lr)
        require(0 <= self.warmup_fraction < 1, "optim.warmup_fraction", "lie in [0, 1)", self.warmup_fraction)
        is_length = self.warmup_steps is None or self.warmup_steps >= 0
        require(is_length, "optim.warmup_steps", "be null, or 0 or more", self.warmup_steps)
        self._check_cooldown()
        require(self.weight_decay >= 0, "optim.weight_decay", "be 0 or more", self.weight_decay)
        final = self.final_weight_decay
        is_decay = final is None or (final >= 0 and self.weight_decay > 0)
        require(
            is_decay,
            "optim.final_weight_decay",
            "be null, or 0 or more with optim.weight_decay above 0",
            final,
        )
        good_betas = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(good_betas, "optim.betas", "be two numbers in [0, 1)", self.betas)
        require(self.clip_norm >= 0, "optim.clip_norm", "be 0 (off) or more", self.clip_norm)
        require(self.muon_lr_scale > 0, "optim.muon_lr_scale", "be above 0", self.muon_lr_scale)

    @property
    def muon_scale(self) -> float | None:
        """The factor of Muon; None for AdamW."""
        return self.muon_lr_scale if self.optimizer == "muon" else None

    def _check_cooldown(self) -> None:
        fraction = self.cooldown_fraction
        require(0 <= fraction <= 1, "optim.cooldown_fraction", "lie between 0 and 1", fraction)
        has_effect = self.schedule == "constant" or fraction == OptimConfig.cooldown_fraction
        require(has_effect, "optim.cooldown_fraction", "be omitted unless optim.schedule=constant", fraction)


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """The moving average of the weights, see `weight_average.py`.

    Attributes:
        decay: weight of the old average at each update; 0 for no average.
    """

    decay: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.decay < 1, "ema.decay", "lie in [0, 1), 0 is off", self.decay)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Settings of DeepSpeed.

    Attributes:
        zero_stage: 0 shards nothing; 1 shards the optimizer's state; 2 the gradients too; 3 the weights too.
        precision: "bf16" for mixed precision (fp32 weights, bf16 autocast), "fp32", or "auto": bf16 on CUDA
            devices that support it, fp32 elsewhere.
        residual_dtype: dtype of the residual stream between blocks: "fp32", or "bf16" in bf16 runs: a tenth
            less memory traffic in compiled blocks (predicted), 8 bits of mantissa in the sum of all blocks.
        device: "auto" uses CUDA if it is available.
        grad_reduce_dtype: "fp32", or "bf16" to reduce gradients in half the bytes, with 8 bits of mantissa;
            "auto": bf16 for bf16 runs on CUDA, fp32 elsewhere.
        overlap_comm: exchange gradients during the backward pass.
        bucket_mb: size of the gradient buckets, counted in float32.
        activation_checkpointing: keep only each block's input and recompute the rest in the backward pass:
            equal results, less memory, a third more compute.
        compile: "true": compile each block with torch.compile; "auto": on CUDA, unless a setting of the model
            or of the engine does not support it.
        cpu_threads: threads of one process on the CPU; 0 uses OMP_NUM_THREADS if that is set, otherwise the
            process's cores less the loader's workers.
    """

    zero_stage: int = 0
    precision: str = "auto"
    residual_dtype: Literal["fp32", "bf16"] = "fp32"
    device: str = "auto"
    grad_reduce_dtype: str = "auto"
    overlap_comm: bool = True
    bucket_mb: int = 50
    activation_checkpointing: bool = False
    compile: Literal["auto", "true", "false"] = "auto"
    cpu_threads: int = 0

    def __post_init__(self) -> None:
        require(self.zero_stage in (0, 1, 2, 3), "engine.zero_stage", "be 0, 1, 2 or 3", self.zero_stage)
        is_known = self.precision in ("auto", "fp32", "bf16")
        require(is_known, "engine.precision", "be auto, fp32 or bf16", self.precision)
        is_known = self.residual_dtype in ("fp32", "bf16")
        require(is_known, "engine.residual_dtype", "be fp32 or bf16", self.residual_dtype)
        is_precise = self.residual_dtype == "fp32" or self.precision != "fp32"
        require(is_precise, "engine.residual_dtype", "be fp32 at engine.precision=fp32", self.residual_dtype)
        require(self.device in ("auto", "cpu", "cuda"), "engine.device", "be auto, cpu or cuda", self.device)
        is_known = self.grad_reduce_dtype in ("auto", "fp32", "bf16")
        require(is_known, "engine.grad_reduce_dtype", "be auto, fp32 or bf16", self.grad_reduce_dtype)
        is_known = self.compile in ("auto", "true", "false")
        require(is_known, "engine.compile", "be auto, true or false", self.compile)
        require(self.bucket_mb >= 1, "engine.bucket_mb", "be at least 1", self.bucket_mb)
        require(self.cpu_threads >= 0, "engine.cpu_threads", "be 0 (automatic) or more", self.cpu_threads)


def precision_on(engine: EngineConfig, device: torch.device) -> str:
    """The precision of a run on a device: "fp32" or "bf16"."""
    if engine.precision != "auto":
        return engine.precision
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "fp32"


def residual_dtype_on(engine: EngineConfig, device: torch.device) -> torch.dtype:
    """The dtype of the residual stream of a run on a device.

    Raises:
        ValueError: bf16 in a run that is fp32 on this device.
    """
    if engine.residual_dtype == "fp32":
        return torch.float32
    if precision_on(engine, device) == "fp32":
        raise ValueError(
            f"engine.residual_dtype: expected fp32 with engine.precision=auto on {device.type}, where runs "
            "are fp32, got bf16; fix: set engine.precision=bf16, or engine.residual_dtype=fp32"
        )
    return torch.bfloat16


def grad_reduce_dtype_on(engine: EngineConfig, device: torch.device) -> str:
    """The dtype of the gradient reduction on a device: "fp32" or "bf16"."""
    if engine.grad_reduce_dtype != "auto":
        return engine.grad_reduce_dtype
    return precision_on(engine, device) if device.type == "cuda" else "fp32"


def on_device(engine: EngineConfig, device: torch.device) -> EngineConfig:
    """The settings with the device and precision that `auto` stands for on this device."""
    return replace(engine, device=device.type, precision=precision_on(engine, device))


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Metrics and sample keys.

    Attributes:
        every_steps: steps between two fetches of the metrics; each step has a line.
        samples: also write every clip's key, per step, to `samples/rank-00000.jsonl`.
    """

    every_steps: int = 10
    samples: bool = False

    def __post_init__(self) -> None:
        require(self.every_steps >= 1, "log.every_steps", "be at least 1", self.every_steps)


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """A trace for Perfetto, see `profiling.py`.

    Attributes:
        steps: the first step to record, and the step after the last one; null for no trace.
    """

    steps: list[int] | None = None

    def __post_init__(self) -> None:
        steps = self.steps
        is_range = steps is None or (len(steps) == 2 and 0 <= steps[0] < steps[1] <= steps[0] + _MOST_TRACED)
        expected = f"be null or [A, B] with 0 <= A < B, at most {_MOST_TRACED} steps"
        require(is_range, "profile.steps", expected, steps)


@dataclass(frozen=True, kw_only=True)
class TimeoutsConfig:
    """Time limits of a run.

    Attributes:
        start_s: for the rendezvous of all processes; then for building the engine and loading a checkpoint.
        step_s: for one step with its report.
        first_step_s: for the first step after a start, which may compile, and for a step after callbacks,
            which the first process runs while the others wait.
        save_s: for one checkpoint.
        validate_s: for a validation: between two batches of videos, and until all processes are done.
        straggler_ratio: a process whose local time exceeds the median by this factor is named in the log.
        lock_wait_s: longest wait for another run in the same folder to end.
    """

    start_s: float = 600.0
    step_s: float = 600.0
    first_step_s: float = 1800.0
    save_s: float = 1800.0
    validate_s: float = 1800.0
    straggler_ratio: float = 1.5
    lock_wait_s: float = 60.0

    def __post_init__(self) -> None:
        for key in ("start_s", "step_s", "first_step_s", "save_s", "validate_s"):
            value = getattr(self, key)
            require(value > 0, f"timeouts.{key}", "be above 0", value)
            most = f"be at most {_LONGEST_TIMEOUT_S:g}"
            require(value <= _LONGEST_TIMEOUT_S, f"timeouts.{key}", most, value)
        require(
            self.first_step_s >= self.step_s,
            "timeouts.first_step_s",
            f"be at least timeouts.step_s={self.step_s:g}",
            self.first_step_s,
        )
        require(self.straggler_ratio > 1, "timeouts.straggler_ratio", "be above 1", self.straggler_ratio)
        require(self.lock_wait_s >= 0, "timeouts.lock_wait_s", "be 0 or more", self.lock_wait_s)

    @property
    def longest_s(self) -> float:
        """The longest limit."""
        return max(self.start_s, self.first_step_s, self.save_s, self.validate_s)


@dataclass(frozen=True, kw_only=True)
class LossGuardConfig:
    """Limits of the loss guard, see `loss_guard.py`.

    Attributes:
        spike_sigmas: a step is a spike if its loss or gradient norm exceeds the mean of the last steps by
            this number of standard deviations; 0 turns rollbacks off.
        window: number of last applied steps; before that many, no step is a spike.
        max_rollbacks: in the whole run; the next incident stops it.
        max_skipped: consecutive steps without a finite gradient before the run rolls back or, with the guard
            off, stops.
    """

    spike_sigmas: float = 0.0
    window: int = 128
    max_rollbacks: int = 10
    max_skipped: int = 10

    def __post_init__(self) -> None:
        require(self.spike_sigmas >= 0, "loss_guard.spike_sigmas", "be 0 (off) or more", self.spike_sigmas)
        require(self.window >= 2, "loss_guard.window", "be at least 2", self.window)
        require(self.max_rollbacks >= 0, "loss_guard.max_rollbacks", "be 0 or more", self.max_rollbacks)
        require(self.max_skipped >= 1, "loss_guard.max_skipped", "be at least 1", self.max_skipped)

    @property
    def is_on(self) -> bool:
        return self.spike_sigmas > 0


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Config keys of pretraining and fine-tuning. The training loop needs these and the number of steps.

    Attributes:
        run_dir: the run's folder; the same command again continues the run in it.
        seed: of weights, order of clips, crops, masks, noise and drop path.
        save_every_steps: optimizer steps between checkpoints.
        save_to: prefix in S3 for the checkpoints and the best model of fine-tuning, such as
            s3://bucket/runs/a; null for `RUN/checkpoints`.
        keep_checkpoints: number of newest checkpoints to keep.
        keep_every_steps: also keep checkpoints at multiples of this; 0 for none.
        save_in_background: whether training continues while a checkpoint is written; needs host memory for a
            copy.
    """

    run_dir: str = MISSING
    seed: int = 0
    save_every_steps: int = 1000
    save_to: str | None = None
    keep_checkpoints: int = 2
    keep_every_steps: int = 0
    save_in_background: bool = True
    data: StreamConfig = field(default_factory=StreamConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    log: LogConfig = field(default_factory=LogConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    timeouts: TimeoutsConfig = field(default_factory=TimeoutsConfig)
    loss_guard: LossGuardConfig = field(default_factory=LossGuardConfig)

    def __post_init__(self) -> None:
        require(self.run_dir != "", "run_dir", "name a folder", self.run_dir)
        is_on_s3 = self.save_to is None or re.match(r"s3://[^/]+/.", self.save_to) is not None
        require(is_on_s3, "save_to", "be null or s3://bucket/prefix", self.save_to)
        require(self.save_every_steps >= 1, "save_every_steps", "be at least 1", self.save_every_steps)
        require(self.keep_checkpoints >= 1, "keep_checkpoints", "be at least 1", self.keep_checkpoints)
        is_saved = self.keep_every_steps >= 0 and self.keep_every_steps % self.save_every_steps == 0
        multiple = f"be 0 (none) or a multiple of save_every_steps={self.save_every_steps}"
        require(is_saved, "keep_every_steps", multiple, self.keep_every_steps)
        is_whole = self.optim.optimizer == "adamw" or self.engine.zero_stage == 0
        why = "be 0 with optim.optimizer=muon, which needs whole matrices"
        require(is_whole, "engine.zero_stage", why, self.engine.zero_stage)
