"""Memory of a fine-tuning step, for `batch.clips_per_device=auto`."""

import copy
from typing import Any

import torch

from kinemae.data_tools.index import NO_LABEL
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.finetune.config import FinetuneConfig
from kinemae.finetune.evaluation.cost import trainable_on_meta
from kinemae.finetune.task_model import TaskModel
from kinemae.finetune.tasks.base import Targets
from kinemae.pretrain.cost import trace_memory
from kinemae.pretrain.runtime.memory import run_values, state_counts
from kinemae.pretrain.runtime.settings import (
    EngineConfig,
    grad_reduce_dtype_on,
    on_device,
    residual_dtype_on,
)


def memory_cost(
    model: TaskModel,
    config: FinetuneConfig,
    device: torch.device,
    *,
    clip: ClipConfig,
    targets: Targets,
) -> dict[str, Any]:
    """What the memory model needs: "run", "parameters", "plain" and "recomputed" of `pretrain cost`."""
    engine: EngineConfig = on_device(config.engine, device)
    averaged = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)

    def build() -> TaskModel:
        is_meta = torch.get_default_device().type == "meta"
        return trainable_on_meta(model) if is_meta else copy.deepcopy(model)

    return {
        "run": run_values(engine, clip, grad_reduce_dtype=grad_reduce_dtype_on(engine, device)),
        "parameters": state_counts(model, averaged=averaged if config.ema.decay else 0),
        **trace_memory(
            build,
            lambda count: training_clips(count, clip, targets),
            is_bf16=engine.precision == "bf16",
            residual_dtype=residual_dtype_on(engine, device),
            multiple_of=config.mix.group_size(config.data.views_per_video),
        ),
    }


def training_clips(count: int, clip: ClipConfig, targets: Targets) -> ClipBatch:
    """Black clips with targets of 0."""
    time_BT = torch.zeros(count, clip.frames, dtype=torch.float64)
    of_first = targets.of_clips(torch.zeros(count, dtype=torch.int64), time_BT)
    return ClipBatch(
        pixels=torch.zeros(count, 3, clip.frames, clip.size, clip.size, dtype=torch.uint8),
        clip_index_B=torch.arange(count),
        label_B=torch.full((count,), NO_LABEL),
        weight_B=torch.ones(count),
        targets={name: torch.zeros_like(target) for name, target in of_first.items()},
    )
