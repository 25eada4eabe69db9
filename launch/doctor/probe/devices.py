"""Output of nvidia-smi on a node; `checks/devices.py` evaluates it."""

import shutil
import subprocess
from typing import Any

GPU_FIELDS = (
    *("index", "uuid", "name", "driver_version", "memory.total", "memory.used"),
    *("ecc.errors.uncorrected.volatile.total", "clocks_event_reasons.active", "temperature.gpu"),
)
# Names of fields in drivers before 535.
_OLD_NAMES = {"clocks_event_reasons.active": "clocks_throttle_reasons.active"}
ROW_FIELDS = ("gpu_uuid", "remapped_rows.pending", "remapped_rows.failure")
PROCESS_FIELDS = ("gpu_uuid", "pid", "process_name", "used_memory")
_LIMIT_S = 15


def devices() -> dict[str, Any]:
    """The output of nvidia-smi; empty without nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return {}
    gpus = _smi("--query-gpu", GPU_FIELDS)
    if "valid field" in gpus.get("failed", ""):
        gpus = _smi("--query-gpu", tuple(_OLD_NAMES.get(name, name) for name in GPU_FIELDS))
    return {
        "gpus": gpus,
        "rows": _smi("--query-remapped-rows", ROW_FIELDS),
        "processes": _smi("--query-compute-apps", PROCESS_FIELDS),
    }


def _smi(query: str, fields: tuple[str, ...]) -> dict[str, str]:
    """`text`, or `failed` with the reason, such as a hanging nvidia-smi."""
    command = ["nvidia-smi", f"{query}={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"no reply within {_LIMIT_S} s"}
    except OSError as error:
        return {"failed": str(error)}
    if ran.returncode != 0:
        return {"failed": (ran.stdout + ran.stderr).strip()[-200:] or f"exit code {ran.returncode}"}
    return {"text": ran.stdout}
