"""Settings that pretraining and fine-tuning share: batch, optimiser, engine, logging."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from kinemae.data_tools.config import require
from kinemae.data_tools.storage.cache import Cache
from kinemae.pretrain.runtime.loss_guard import LossGuardConfig
from kinemae.pretrain.runtime.watchdog import TimeoutsConfig


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """How videos are read; each room adds which ones.

    Attributes:
        num_workers: loader processes for each training process; -1 takes the cores that training leaves over.
        views_per_video: clips cut from one decoded video; they stand side by side in a batch.
        max_bad_fraction: the share of clips that may be unreadable before the run stops.
        timeout_s: limit without progress; then a loader worker is replaced and its sample skipped.
        outage_s: how long to wait for a storage that is down; then the run stops and can be started again.
        cache_dir: a folder of this machine that keeps what is read from remote shards; null for none.
        cache_gb: the most it may hold.
    """

    num_workers: int = -1
    views_per_video: int = 1
    max_bad_fraction: float = 0.01
    timeout_s: float = 120.0
    outage_s: float = 300.0
    cache_dir: str | None = None
    cache_gb: float = 100.0

    def __post_init__(self) -> None:
        require(
            self.num_workers >= -1, "data.num_workers", "be 0 or more, or -1 (automatic)", self.num_workers
        )
        require(self.views_per_video >= 1, "data.views_per_video", "be at least 1", self.views_per_video)
        is_share = 0 <= self.max_bad_fraction <= 1
        require(is_share, "data.max_bad_fraction", "lie between 0 and 1", self.max_bad_fraction)
        require(self.timeout_s > 0, "data.timeout_s", "be above 0", self.timeout_s)
        require(self.outage_s >= 0, "data.outage_s", "be 0 or more", self.outage_s)
        require(self.cache_gb > 0, "data.cache_gb", "be above 0", self.cache_gb)

    @property
    def cache(self) -> Cache | None:
        """What to open remote shards with."""
        if self.cache_dir is None:
            return None
        return Cache(folder=Path(self.cache_dir).absolute(), size=round(self.cache_gb * 1e9))


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """The batch is global: the micro-batch and the accumulation follow from the number of processes.

    Attributes:
        global_clips: clips in one optimiser step, over all processes.
        clips_per_device: the most clips that one process holds at once.
    """

    global_clips: int = 256
    clips_per_device: int = 64

    def __post_init__(self) -> None:
        require(self.global_clips >= 1, "batch.global_clips", "be at least 1", self.global_clips)
        require(self.clips_per_device >= 1, "batch.clips_per_device", "be at least 1", self.clips_per_device)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with a linear warm-up and a cosine decay, both functions of the step.

    Attributes:
        lr: the peak learning rate itself, not one to be scaled by the batch.
        final_lr: where the cosine ends.
        warmup_fraction: share of all steps that the warm-up takes.
        betas: AdamW's two decay rates.
        clip_norm: largest norm of the gradient; 0 for no clipping.
    """

    lr: float = 3e-4
    final_lr: float = 1e-6
    warmup_fraction: float = 0.05
    weight_decay: float = 0.05
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        require(self.lr > 0, "optim.lr", "be above 0", self.lr)
        require(0 <= self.final_lr <= self.lr, "optim.final_lr", "lie between 0 and optim.lr", self.final_lr)
        require(0 <= self.warmup_fraction < 1, "optim.warmup_fraction", "lie in [0, 1)", self.warmup_fraction)
        require(self.weight_decay >= 0, "optim.weight_decay", "be 0 or more", self.weight_decay)
        good_betas = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(good_betas, "optim.betas", "be two numbers in [0, 1)", self.betas)
        require(self.clip_norm >= 0, "optim.clip_norm", "be 0 (off) or more", self.clip_norm)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How DeepSpeed runs.

    Attributes:
        zero_stage: 0 keeps everything on every process; 1 shards the optimiser's state; 2 the gradients too;
            3 the weights too.
        precision: "bf16" for fp32 weights with bf16 compute where that is safe (autocast), "fp32", or "auto":
            bf16 on CUDA devices that support it, fp32 elsewhere.
        device: "auto" takes CUDA where there is one.
        grad_reduce_dtype: "fp32", or "bf16" to reduce gradients in half the bytes, with 8 bits of mantissa.
        bucket_mb: size of the buckets in which gradients are exchanged, counted in float32.
        activation_checkpointing: keep each block's input alone and compute the rest again in the backward
            pass: the same numbers, less memory, a third more computing.
        compile: compile each block with torch.compile.
        cpu_threads: threads of one process on the CPU; 0 takes OMP_NUM_THREADS where that is set, and else
            shares the cores out, less the loader's workers.
    """

    zero_stage: int = 0
    precision: str = "auto"
    device: str = "auto"
    grad_reduce_dtype: str = "fp32"
    bucket_mb: int = 200
    activation_checkpointing: bool = False
    compile: bool = False
    cpu_threads: int = 0

    def __post_init__(self) -> None:
        require(self.zero_stage in (0, 1, 2, 3), "engine.zero_stage", "be 0, 1, 2 or 3", self.zero_stage)
        is_known = self.precision in ("auto", "fp32", "bf16")
        require(is_known, "engine.precision", "be auto, fp32 or bf16", self.precision)
        require(self.device in ("auto", "cpu", "cuda"), "engine.device", "be auto, cpu or cuda", self.device)
        is_known = self.grad_reduce_dtype in ("fp32", "bf16")
        require(is_known, "engine.grad_reduce_dtype", "be fp32 or bf16", self.grad_reduce_dtype)
        can_compile = not self.compile or self.zero_stage < 3
        why = "be false at engine.zero_stage=3, where weights come and go inside a block"
        require(can_compile, "engine.compile", why, self.compile)
        require(self.bucket_mb >= 1, "engine.bucket_mb", "be at least 1", self.bucket_mb)
        require(self.cpu_threads >= 0, "engine.cpu_threads", "be 0 (automatic) or more", self.cpu_threads)


def precision_on(engine: EngineConfig, device: torch.device) -> str:
    """The precision of a run on a device: "fp32" or "bf16"."""
    if engine.precision != "auto":
        return engine.precision
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "fp32"


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What the run writes besides checkpoints.

    Attributes:
        every_steps: how often the metrics of all steps since the last time are fetched and written.
        samples: also write every clip's key, per step, to `samples/rank-00000.jsonl`.
    """

    every_steps: int = 10
    samples: bool = False

    def __post_init__(self) -> None:
        require(self.every_steps >= 1, "log.every_steps", "be at least 1", self.every_steps)


def check_saving(save_every_steps: int, keep_checkpoints: int, keep_every_steps: int) -> None:
    """Check what a config says of checkpoints.

    Raises:
        ValueError: naming the key.
    """
    require(save_every_steps >= 1, "save_every_steps", "be at least 1", save_every_steps)
    require(keep_checkpoints >= 1, "keep_checkpoints", "be at least 1", keep_checkpoints)
    is_saved = keep_every_steps >= 0 and keep_every_steps % save_every_steps == 0
    multiple = f"be 0 (none) or a multiple of save_every_steps={save_every_steps}"
    require(is_saved, "keep_every_steps", multiple, keep_every_steps)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What the loop needs to know of a run, whichever room it comes from."""

    run_dir: str
    seed: int
    steps: int
    save_every_steps: int
    keep_checkpoints: int
    keep_every_steps: int
    save_in_background: bool
    num_workers: int
    max_bad_fraction: float
    timeout_s: float
    optim: OptimConfig
    engine: EngineConfig
    log: LogConfig
    timeouts: TimeoutsConfig
    loss_guard: LossGuardConfig
