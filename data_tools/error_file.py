"""Error files: why a process of a job failed, for the program that started it.

The agent of `kinemae launch`, torchrun and Kubeflow set TORCHELASTIC_ERROR_FILE for each process. The format
is that of `torch.distributed.elastic.multiprocessing.errors`, with further keys in "kinemae". Uses the
standard library only.
"""

import json
import os
import time
import traceback
from pathlib import Path
from typing import Any

VARIABLE = "TORCHELASTIC_ERROR_FILE"


def write_error_file(error: BaseException, code: int, *, lost_peer: bool) -> None:
    """Describe an error that ends this process, if a program asked for it. Write errors are ignored.

    Args:
        code: exit code of the process.
        lost_peer: whether the process only lost its connection to another one, which holds the cause.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return
    now_s = time.time()
    text = f"{type(error).__name__}: {error}"
    stack = "".join(traceback.format_exception(error))
    content = {
        "message": {"message": text, "extraInfo": {"py_callstack": stack, "timestamp": str(int(now_s))}},
        "kinemae": {"code": code, "lost_peer": lost_peer, "time_s": now_s},
    }
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(content), encoding="utf-8")
    except OSError:
        pass


def read_error_file(path: Path) -> dict[str, Any] | None:
    """Read `code`, `lost_peer`, `time_s` and `message` of a failed process; None without a whole file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {**content["kinemae"], "message": content["message"]["message"]}
    except (OSError, ValueError, LookupError, TypeError):
        return None
