"""One process of a job that runs several fine-tuning commands, the last of which may die in a validation.

    RANK=.. WORLD_SIZE=.. python -m tests.finetune.validation.validation_job COMMANDS

COMMANDS is a JSON file. Each entry has the "arguments" of a command, and "dies": null, or the moment at which
rank 1 gets SIGKILL. Several commands share a process and its process group, since a start costs seconds.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from kinemae.data_tools.command import run_program
from kinemae.finetune.__main__ import PROGRAM
from kinemae.finetune.validation import validator
from kinemae.finetune.validation.validator import TaskValidator
from kinemae.pretrain.runtime import abort

SECOND_RANK = "1"


def die() -> None:
    """Kill this process, unless it is the first rank."""
    if os.environ["RANK"] == SECOND_RANK:
        os.kill(os.getpid(), signal.SIGKILL)


def die_at(moment: str) -> None:
    """Set the moment: "scoring N" is after the first batch of validation N, "validated N" after it."""
    what, number = moment.split()
    calls: list[int] = []
    predict, validate = validator.predict_samples, TaskValidator.validate

    def predict_or_die(*arguments: Any, on_progress: Any, **settings: Any) -> Any:
        calls.append(0)
        on_progress = die if len(calls) == int(number) else on_progress
        return predict(*arguments, on_progress=on_progress, **settings)

    def validate_and_die(*arguments: Any) -> dict[str, Any]:
        calls.append(0)
        line = validate(*arguments)
        if len(calls) == int(number):
            die()
        return line

    if what == "scoring":
        validator.predict_samples = predict_or_die
    else:
        TaskValidator.validate = validate_and_die  # type: ignore[method-assign]


def main(commands: str) -> int:
    abort.destroy_process_group = lambda: None  # DeepSpeed cannot start a second one in a process
    linear = torch.nn.functional.linear
    for command in json.loads(Path(commands).read_text()):
        torch.nn.functional.linear = linear  # DeepSpeed replaces it at ZeRO 3
        if command["dies"]:
            die_at(command["dies"])
        code = run_program(PROGRAM, command["arguments"])
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
