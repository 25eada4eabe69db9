"""What the machine or the model cannot do of what `engine` asks for: refused before processes meet."""

import importlib.util
import os
import shutil

import torch

from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.settings import EngineConfig

_CPU_COMPILERS = ("g++", "clang++", "c++")


def check_engine(engine: EngineConfig, processes: Processes, *, merges: bool, packs: bool = False) -> None:
    """Refuse to compile where that cannot work.

    Args:
        merges: whether the model merges tokens.
        packs: whether clips with different numbers of tokens are packed into one row.

    Raises:
        ValueError: says what is lacking.
    """
    if not engine.compile:
        return
    if merges:
        raise ValueError(
            "engine.compile=true compiles whole blocks, and token merging runs them in halves: turn one of "
            "the two off"
        )
    if packs:
        raise ValueError(
            "engine.compile=true compiles once for each number of tokens, and with pruning.args.keep=null "
            "each step has another number; fix: set keep to a share, or engine.compile=false"
        )
    lacking = _lacking_to_compile(processes.device)
    if lacking is not None:
        raise ValueError(f"engine.compile=true needs {lacking}: install it, or set engine.compile=false")


def _lacking_to_compile(device: torch.device) -> str | None:
    """What torch.compile needs on this device and does not find; None where nothing is lacking."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "the package triton on a GPU"
    wanted = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ((wanted,) if wanted else _CPU_COMPILERS)):
        return f"a C++ compiler on the CPU ({wanted or ', '.join(_CPU_COMPILERS)})"
    return None
