"""The scored model of a run, and the record of its selection in the result."""

from pathlib import Path
from typing import Any

from kinemae.data_tools.command import CheckpointError, log
from kinemae.data_tools.files import read_jsonl
from kinemae.finetune.config import FinetuneConfig
from kinemae.finetune.model_file import FinetunedModel, load_model
from kinemae.finetune.validation.best_model import BEST_FOLDER, read_line
from kinemae.pretrain.folder_kinds import MODEL_FOLDER
from kinemae.pretrain.runtime.validation import FILE


def load_scored_model(
    config: FinetuneConfig, run_dir: Path, *, frames: int | None = None, size: int | None = None
) -> tuple[FinetunedModel, dict[str, Any]]:
    """Load the best or the last model of a run, chosen by `evaluate.checkpoint`.

    Args:
        frames, size: see `load_model`.

    Returns:
        The model, and the entries "checkpoint" and "selection" of its result.

    Raises:
        CheckpointError: the model is missing or damaged.
    """
    folder = scored_folder(config, run_dir)
    is_best = folder.name == BEST_FOLDER
    finetuned = load_model(folder, token_reduction=config.token_reduction, frames=frames, size=size)
    steps = finetuned.description.trained_by.get("steps")
    checkpoint = {"name": "best" if is_best else "last", "steps": steps}
    return finetuned, {"checkpoint": checkpoint, "selection": _selection(config, run_dir, is_best=is_best)}


def scored_folder(config: FinetuneConfig, run_dir: Path) -> Path:
    """Return the folder of the model that the scores of a run are of.

    Raises:
        CheckpointError: `evaluate.checkpoint=best`, and the run saved no best model.
    """
    line = read_line(run_dir / BEST_FOLDER)
    if config.evaluate.checkpoint == "best" and line is None:
        raise CheckpointError(
            f"{run_dir / BEST_FOLDER}: expected the best model of the run, got none; fix: set "
            "evaluate.checkpoint=last"
        )
    return run_dir / (BEST_FOLDER if config.scores_best and line is not None else MODEL_FOLDER)


def _selection(config: FinetuneConfig, run_dir: Path, *, is_best: bool) -> dict[str, Any] | None:
    """Describe how validations chose the scored model; None if they did not."""
    history = list(read_jsonl(run_dir / FILE))
    stopped = any(line.get("stopped") for line in history)
    if not is_best and not stopped:
        return None
    is_optimistic = config.selection_data == config.scored_data
    if is_optimistic:
        log.warning(
            "the scored data selected the model or the end of the run, so the score is optimistic; for an "
            "unbiased one set data.test, or validate.fraction to select on a part of data.train"
        )
    return {
        "data": config.selection_data,
        "validations": len(history),
        "validation": read_line(run_dir / BEST_FOLDER) if is_best else None,
        "stopped_early": stopped,
        "is_optimistic": is_optimistic,
    }
