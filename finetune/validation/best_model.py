"""The best model of a run, `RUN/best`, and earlier best models that an older checkpoint may still need.

    RUN/best/                       model files, and validation.json with the line of its validation
    RUN/best-previous/step-N/       the best model of a kept checkpoint before a better one was found

A run may continue from a checkpoint before the best step, after a crash, a damaged checkpoint or a rollback.
Its best model is then the one of that checkpoint. If the checkpoints are in S3, so are copies of all these
models (`stored_models.py`): a run that continues with another run folder downloads its best model.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kinemae.data_tools.command import CheckpointError, log
from kinemae.data_tools.files import atomic_write_text, read_json
from kinemae.data_tools.storage.location import Location
from kinemae.finetune.validation.selection import Selection
from kinemae.finetune.validation.stored_models import StoredModels
from kinemae.pretrain.runtime.checkpoint_storage import CheckpointStorage
from kinemae.pretrain.runtime.file_retries import run_on_first
from kinemae.pretrain.runtime.processes import Processes

BEST_FOLDER = "best"
LINE_FILE = "validation.json"


class BestModel:
    """The best model of a run folder. Every process must make the same calls.

    Args:
        checkpoints: of the run; they decide which earlier best models are kept, and whether copies are in S3.
    """

    def __init__(
        self, run_dir: Path, checkpoints: CheckpointStorage, selection: Selection, processes: Processes
    ):
        self.folder = run_dir / BEST_FOLDER
        self._previous = run_dir / f"{BEST_FOLDER}-previous"
        self._partial = run_dir / f"{BEST_FOLDER}.partial"
        place = checkpoints.place
        self._stored = StoredModels(place / BEST_FOLDER) if isinstance(place, Location) else None
        self._checkpoints = checkpoints
        self._selection = selection
        self._processes = processes

    def restore(self, history: Sequence[dict[str, Any]]) -> None:
        """Collective. Bring the folder to a history: its best model, and none of a later step.

        Raises:
            CheckpointError: the best model of the history is missing.
        """
        line = self._selection.best(history)
        self._on_first("preparing the best model", partial(self._restore, line))

    def save(self, line: dict[str, Any], write: Callable[[Path], None]) -> None:
        """Collective. Replace the best model; the old or the new one is complete at any moment.

        Args:
            line: of the validation.
            write: writes the model to a folder; called on the first process.

        Raises:
            CheckpointError: it could not be written, for example on a full disk; the old one is intact.
        """
        self._on_first("writing the best model", partial(self._save, line, write))

    def _on_first(self, what: str, call: Callable[[], str | None]) -> None:
        try:
            error = run_on_first(self._processes, what, call)
        except OSError as failure:
            raise CheckpointError(
                f"{self.folder}: {failure}; fix: remove the cause and repeat the command"
            ) from failure
        if error:
            raise CheckpointError(error)

    def _restore(self, line: dict[str, Any] | None) -> str | None:
        """Return an error message, None for none."""
        shutil.rmtree(self._partial, ignore_errors=True)
        best = -1 if line is None else line["step"]
        if step_of_best(self.folder) != best:
            earlier = self._find(best)
            if line is not None and step_of_best(earlier) != best:
                place = self.folder if self._stored is None else f"{self.folder} or {self._stored.place}"
                return (
                    f"{place}: expected the best model, of step {best}, got none; fix: restore the folder, "
                    "or start another run"
                )
            if self.folder.exists():
                shutil.rmtree(self.folder)
            if line is not None:
                earlier.rename(self.folder)
        if self._kept(best).exists():
            shutil.rmtree(self._kept(best))
        self._remove(lambda step: step > best)
        if line is not None and self._stored is not None and best not in self._stored.steps():
            self._stored.upload(self.folder, best)  # removed by hand, for example
        return None

    def _find(self, step: int) -> Path:
        """The folder of an earlier best model, downloaded if necessary; absent if there is none."""
        kept = self._kept(step)
        if step_of_best(kept) == step or self._stored is None or step not in self._stored.steps():
            return kept
        self._stored.download(step, self._partial)
        return self._partial

    def _save(self, line: dict[str, Any], write: Callable[[Path], None]) -> None:
        shutil.rmtree(self._partial, ignore_errors=True)
        write(self._partial)
        atomic_write_text(self._partial / LINE_FILE, json.dumps(line, indent=1) + "\n")
        if self._stored is not None:
            self._stored.upload(self._partial, line["step"])
        old = step_of_best(self.folder)
        if old >= 0:
            self._previous.mkdir(exist_ok=True)
            self.folder.rename(self._kept(old))
        elif self.folder.exists():
            shutil.rmtree(self.folder)
        self._partial.rename(self.folder)
        self._remove_unneeded()

    def _remove_unneeded(self) -> None:
        """Remove models that no checkpoint needs, also none that is being written now."""
        try:
            saved = self._checkpoints.complete().values()
            states = [self._checkpoints.read_metadata(checkpoint).state for checkpoint in saved]
            lines = [self._selection.best(state.get("validations", [])) for state in states]
            needed = [-1 if line is None else line["step"] for line in lines]
            self._remove(lambda step: bool(needed) and step not in needed and step < needed[-1])
        except (OSError, ValueError, CheckpointError) as error:
            log.warning("%s: earlier best models are not removed now: %s", self.folder, error)

    def _remove(self, is_unneeded: Callable[[int], bool]) -> None:
        """Remove earlier and stored models."""
        for path in sorted(self._previous.glob("step-*")):
            if is_unneeded(int(path.name.removeprefix("step-"))):
                shutil.rmtree(path)
        if self._stored is not None:
            for step in filter(is_unneeded, self._stored.steps()):
                self._stored.remove(step)

    def _kept(self, step: int) -> Path:
        return self._previous / f"step-{step:08d}"


def read_line(folder: Path) -> dict[str, Any] | None:
    """Return the line of the validation of a best model; None if the folder holds none."""
    try:
        line: dict[str, Any] = read_json(folder / LINE_FILE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return line


def step_of_best(folder: Path) -> int:
    """Return the last step before a best model; -1 if the folder holds none."""
    line = read_line(folder)
    return -1 if line is None else int(line["step"])
