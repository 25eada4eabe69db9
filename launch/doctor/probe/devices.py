"""Output of nvidia-smi and the kernel's log about a node's GPUs; `checks/devices.py` interprets it."""

import shutil
import subprocess
from typing import Any

GPU_FIELDS = (
    "index",
    "uuid",
    "name",
    "driver_version",
    "memory.total",
    "memory.used",
    "ecc.errors.uncorrected.volatile.total",
    "clocks_event_reasons.active",
    "temperature.gpu",
)
# What drivers before 535 call it.
_FORMERLY = {"clocks_event_reasons.active": "clocks_throttle_reasons.active"}
ROW_FIELDS = ("gpu_uuid", "remapped_rows.pending", "remapped_rows.failure")
PROCESS_FIELDS = ("gpu_uuid", "pid", "process_name", "used_memory")
_LIMIT_S = 15


def devices() -> dict[str, Any]:
    """The raw answers, empty on a machine without nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return {}
    return {
        "gpus": _gpus(),
        "rows": _smi("--query-remapped-rows", ROW_FIELDS),
        "processes": _smi("--query-compute-apps", PROCESS_FIELDS),
        "kernel": [line for line in _said("dmesg").get("text", "").splitlines() if "Xid" in line][-50:],
    }


def _gpus() -> dict[str, str]:
    answer = _smi("--query-gpu", GPU_FIELDS)
    if "valid field" in answer.get("failed", ""):
        return _smi("--query-gpu", tuple(_FORMERLY.get(name, name) for name in GPU_FIELDS))
    return answer


def _smi(query: str, fields: tuple[str, ...]) -> dict[str, str]:
    return _said("nvidia-smi", f"{query}={','.join(fields)}", "--format=csv,noheader,nounits")


def _said(*command: str) -> dict[str, str]:
    """`text` of a command, or `failed` with the reason: an nvidia-smi that hangs is itself a finding."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"no answer within {_LIMIT_S} s"}
    except OSError as error:
        return {"failed": str(error)}
    if ran.returncode != 0:
        return {"failed": (ran.stdout + ran.stderr).strip()[-200:] or f"exit code {ran.returncode}"}
    return {"text": ran.stdout}
