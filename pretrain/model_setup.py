"""Set up the blocks of a model as the engine's settings require, in pretraining and fine-tuning."""

from torch import nn

from kinemae.pretrain.model.blocks import set_up_blocks
from kinemae.pretrain.runtime.engine import BlockSettings, compiles
from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.settings import EngineConfig, residual_dtype_on


def set_up_model(
    model: nn.Module, engine: EngineConfig, processes: Processes, settings: BlockSettings
) -> bool:
    """Set up activation checkpointing, compilation and the residual stream; return whether it compiles."""
    compiled = compiles(engine, processes, settings)
    set_up_blocks(
        model,
        recompute=engine.activation_checkpointing,
        compiled=compiled,
        residual_dtype=residual_dtype_on(engine, processes.device),
    )
    return compiled
