"""`kinemae finetune features ENCODER SOURCE OUT`: features of videos in a file or a folder."""

import argparse
import json
import shutil
import sys
from importlib.metadata import version
from typing import Any

from kinemae.data_tools.command import DataError, log, writing_to
from kinemae.data_tools.config import load_config
from kinemae.data_tools.files import atomic_write_text, commit_of_code
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.storage.location import local_out
from kinemae.data_tools.stream.evaluation_clips import EvaluationVideos
from kinemae.data_tools.stream.frame_sampling import sliding_clip_count
from kinemae.data_tools.stream.windows import read_windows
from kinemae.finetune.evaluation.inference import groups_of_views
from kinemae.finetune.features.config import FeatureConfig
from kinemae.finetune.features.detection import aligned, write_detection_folder
from kinemae.finetune.features.extract import WindowRows, extract, own_units, skipped_videos, unit_file
from kinemae.finetune.features.files import Schema, join_npz, join_parquet, read_provenance, schema
from kinemae.finetune.features.job import Job, changes, check_same, is_complete, prepare
from kinemae.finetune.inference.windows import advise, open_source
from kinemae.finetune.probe.encode import LayerEncoder
from kinemae.pretrain.runtime.abort import abort_on_error
from kinemae.pretrain.runtime.processes import Processes, find_processes, init_process_group, share_cores
from kinemae.pretrain.runtime.run_folder import run_lock
from kinemae.pretrain.runtime.settings import TimeoutsConfig

_UNIT_WINDOWS = 4  # forward passes per unit
_PACKAGES = ("kinemae", "torch", "av", "numpy", "pyarrow")


def run_features(arguments: argparse.Namespace) -> None:
    """Run the command."""
    config = load_config(FeatureConfig, None, arguments.overrides)
    processes = find_processes(config.engine.device)
    job = prepare(config, arguments.encoder, arguments.source, local_out(arguments.out), processes)
    if arguments.dry_run:
        sys.stdout.write(json.dumps(job.provenance, indent=1, ensure_ascii=False) + "\n")
        return
    if is_complete(job):
        if processes.is_first:
            shutil.rmtree(job.partial, ignore_errors=True)  # of a command that was killed at its end
    else:
        with (
            abort_on_error(processes),
            writing_to(job.out.parent),
            run_lock(job.partial, processes, TimeoutsConfig()),
        ):
            init_process_group(processes)
            run(job, processes)
    if processes.is_first and arguments.json:
        sys.stdout.write(json.dumps(read_provenance(job.out), ensure_ascii=False) + "\n")


def run(job: Job, processes: Processes) -> None:
    """Collective. Extract the missing units, then write OUT.

    Raises:
        DataError: too many videos are unreadable.
    """
    config = job.config
    workers = share_cores(processes, workers=config.num_workers, cpu_threads=config.cpu_threads)
    if processes.is_first:
        _create(job)
    processes.barrier()
    index, failed = open_source(job.source, job.partial / "source", config, processes, workers=workers)
    if processes.is_first:
        advise(index, job.clip, config)
    if "grid" in job.provenance:
        index = aligned(index, job.clip, job.windows)
    units = units_of(index, job)
    positions = [position for unit in own_units(job.partial, units, processes) for position in units[unit]]
    videos = EvaluationVideos(index, positions, clip=job.clip, temporal_clips=job.windows, spatial_crops=1)
    columns = _columns(job, index)
    extract(
        job.partial,
        units,
        read_windows(videos, workers=workers, timeout_s=config.timeout_s),
        WindowRows(index, config, layer=job.layer, slices=job.description.grid.t),
        columns,
        LayerEncoder(
            encoder=job.encoder.to(processes.device),
            description=job.description,
            layers=[job.layer],
            kind="statistics" if config.kind in ("clip", "pooled") else "tokens",
            is_bf16=job.provenance["precision"] == "bf16",
            clips_per_device=config.clips_per_device,
        ),
        processes,
    )
    processes.barrier()
    if processes.is_first:
        skipped = {**failed, **skipped_videos(job.partial, len(units))}
        _check_readable(job, skipped, len(index) + len(failed))
        _finish(job, index, len(units), skipped)
    processes.barrier()


def _create(job: Job) -> None:
    """Make the folder of unfinished features, or check that an existing one is of this job."""
    file = job.partial / "provenance.json"
    if file.exists():
        stored = json.loads(file.read_text(encoding="utf-8"))
        if not (job.config.rebuild and changes(job, stored)):
            check_same(job, stored, job.partial)
            return
    shutil.rmtree(job.partial / "units", ignore_errors=True)
    (job.partial / "units").mkdir()
    atomic_write_text(file, json.dumps(job.provenance, indent=1, ensure_ascii=False))


def units_of(index: ShardIndex, job: Job) -> list[list[int]]:
    """Divide videos into units of consecutive ones with windows for a few forward passes."""
    clips, positions = job.windows, range(len(index))
    counts = (
        clips if isinstance(clips, int) else sliding_clip_count(index.sample(position), job.clip, clips)
        for position in positions
    )
    return groups_of_views(positions, counts, _UNIT_WINDOWS * job.config.clips_per_device)


def _columns(job: Job, index: ShardIndex, provenance: dict[str, Any] | None = None) -> Schema:
    config, grid, width = job.config, job.description.grid, job.description.shape.width
    shape = (grid.tokens, width) if config.kind == "tokens" else (
        (2 * width,) if config.pool == "statistics" else (width,)
    )  # fmt: skip
    return schema(
        index,
        shape,
        config.dtype,
        has_thumbnails=bool(config.thumbnails),
        provenance=provenance or job.provenance,
    )


def _check_readable(job: Job, skipped: dict[str, str], total: int) -> None:
    limit = job.config.max_bad_fraction
    if len(skipped) > limit * total or len(skipped) == total:
        key, reason = next(iter(skipped.items()))
        raise DataError(
            f"{job.source}: expected at most max_bad_fraction={limit:g} of the videos to be unreadable, "
            f"got {len(skipped)} of {total}, first {key}: {reason}; fix: replace these videos, or raise "
            "max_bad_fraction and repeat the command"
        )


def _finish(job: Job, index: ShardIndex, units: int, skipped: dict[str, str]) -> None:
    """Write OUT from the units and remove them."""
    information = {
        "versions": {name: version(name) for name in _PACKAGES},
        "commit": commit_of_code(),
        "skipped": dict(sorted(skipped.items())),
    }
    provenance = {**job.provenance, **information}
    files = [unit_file(job.partial, unit) for unit in range(units)]
    if "grid" in provenance:
        write_detection_folder(job.out, files, index, skipped, job.config, provenance)
    else:
        join = join_npz if job.out.suffix == ".npz" else join_parquet
        join(job.out, files, _columns(job, index, provenance), skipped)
    shutil.rmtree(job.partial)
    log.info("%s: complete; %d videos skipped", job.out, len(skipped))
