"""Check that a folder is a finished fine-tuning run, without importing torch."""

import shlex
from pathlib import Path

from kinemae.data_tools.command import CheckpointError
from kinemae.data_tools.overrides import as_override
from kinemae.pretrain.folder_kinds import (
    ENCODER,
    FINETUNING,
    FOREIGN,
    MODEL,
    PRETRAINING,
    exported_in,
    kind_of_folder,
)


def check_finished_run(run_dir: Path) -> None:
    """Reject a folder that `finetune evaluate` cannot score.

    Raises:
        CheckpointError: it is neither a finished fine-tuning run nor a fine-tuned model; states the fix.
    """
    kind = kind_of_folder(run_dir)
    if kind == MODEL or (kind == FINETUNING and exported_in(run_dir) is not None):
        return
    if kind == FINETUNING:
        fix = "repeat its `finetune train`, which goes on to its end"
        kind = "a fine-tuning run that has no model yet"
    elif kind in (PRETRAINING, ENCODER):
        encoder = run_dir / "encoder" if kind == PRETRAINING else run_dir
        fix = f"fine-tune it first, kinemae finetune train CONFIG {as_override('encoder', encoder)}"
    elif kind == FOREIGN:
        fix = f"import it first, kinemae finetune import {shlex.quote(str(run_dir))} OUT"
    else:
        fix = "give the run_dir of a `finetune train`"
    raise CheckpointError(f"{run_dir}: expected a fine-tuning run, got {kind}; fix: {fix}")
