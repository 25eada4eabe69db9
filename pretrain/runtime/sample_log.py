"""Which clips a run was shown: skipped ones in the log and, where asked for, every clip's key in a file."""

from pathlib import Path

from kinemae.data_tools.command import log
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.pretrain.runtime.jsonl_log import Journal, drop_lines_from
from kinemae.pretrain.runtime.processes import Processes
from kinemae.pretrain.runtime.settings import RunSettings


class SampleLog:
    """Names every skipped clip in the log and, with `log.samples`, every clip's key in a file per process."""

    def __init__(self, settings: RunSettings, processes: Processes, first_step: int):
        self._journal: Journal | None = None
        if not settings.log.samples:
            return
        folder = Path(settings.run_dir) / "samples"
        own = folder / f"rank-{processes.rank:05d}.jsonl"
        self._journal = Journal(own, first_step=first_step, title="keys of samples")
        if processes.is_first:  # what ranks wrote that there were before, and are not now
            for path in folder.glob("rank-*.jsonl"):
                if int(path.stem.removeprefix("rank-")) >= processes.world:
                    drop_lines_from(path, first_step)

    def note(self, step: int, batch: ClipBatch) -> None:
        """Count a micro-batch in."""
        for clip in batch.skipped:
            log.warning("step %d: clip of %s skipped: %s", step, clip.key, clip.reason)
        if self._journal is not None:
            self._journal.write([{"step": step, "keys": batch.keys}])

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
