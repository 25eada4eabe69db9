"""Batches: a function of the seed and the clip's position, for any workers."""

import gc
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from kinemae.data_tools import control_groups
from kinemae.data_tools.index import ShardIndex, open_index
from kinemae.data_tools.stream import worker_setup as workers_module
from kinemae.data_tools.stream.evaluation_clips import EvaluationVideos
from kinemae.data_tools.stream.loader import (
    AugmentConfig,
    ClipConfig,
    TrainingClips,
    evaluation_loader,
    training_loader,
)
from kinemae.data_tools.stream.order import plan_batch, sample_at
from kinemae.data_tools.stream.worker_pool import WorkerPool
from kinemae.data_tools.stream.worker_setup import (
    CoreLimits,
    available_cores,
    cores_per_process,
    resolve_num_workers,
)
from kinemae.data_tools.stream.yuv_to_rgb import to_luma
from tests.forked import run_forked

CLIP = ClipConfig(frames=4, stride=2, size=24)


def row_numbers(luma_THW, clip_index):
    """An `annotate` that returns its clip and a value of its luma."""
    return {"seen": torch.tensor([clip_index, int(luma_THW.long().sum())])}


def failing_annotate(luma_THW, clip_index):
    raise OSError("the disk is on fire")


def process_state(luma_THW, clip_index):
    lines = Path("/proc/self/status").read_text().splitlines()
    blocked = next(line for line in lines if line.startswith("SigBlk"))
    return {
        "blocked": torch.tensor(int(blocked.split()[1], 16)),
        "threads": torch.tensor(torch.get_num_threads()),
        "collects": torch.tensor([gc.isenabled(), gc.get_freeze_count() > 100_000]),
    }


def clips_of(folder, *, views=2, seed=5, annotate=row_numbers, augment=None):
    index = open_index(folder)
    augment = augment or AugmentConfig()
    return TrainingClips(index, clip=CLIP, augment=augment, seed=seed, views=views, annotate=annotate)


def load(clips, plan, **coordinates):
    defaults = {"rank": 0, "first_step": 0, "last_step": 4, "workers": 0, "pin": False, "timeout_s": 60.0}
    return list(training_loader(clips, plan, **{**defaults, **coordinates}))


def assert_same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys == other.keys and one.skipped == other.skipped
        for name in ("clip_BCTHW", "clip_index_B", "label_B", "weight_B"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert one.tokens.keys() == other.tokens.keys()
        assert all(torch.equal(one.tokens[name], other.tokens[name]) for name in one.tokens)


@pytest.fixture
def damaged(synth_shards, tmp_path):
    """A copy of the train part whose sample 2 has a flipped bit, and that sample's key."""
    folder = shutil.copytree(synth_shards / "train", tmp_path / "damaged")
    index = open_index(folder)
    sample = index.sample(2)
    with index.shard_location(sample).path.open("r+b") as file:
        file.seek(sample.offset + 100)
        value = file.read(1)[0]
        file.seek(sample.offset + 100)
        file.write(bytes([value ^ 16]))
    return folder, sample.key


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_batches(synth_shards, workers):
    plan = plan_batch(8, 4, 1, 2)
    assert_same(
        load(clips_of(synth_shards / "train"), plan, workers=workers),
        load(clips_of(synth_shards / "train"), plan),
    )


@pytest.mark.parametrize("world, clips_per_device", [(1, 2), (2, 4), (2, 2), (4, 8)])
def test_processes_share_the_same_clips_of_every_step(synth_shards, world, clips_per_device):
    clips = clips_of(synth_shards / "train")
    whole = load(clips, plan_batch(8, 8, 1, 2))
    plan = plan_batch(8, clips_per_device, world, 2)
    ranks = [load(clips, plan, rank=rank) for rank in range(world)]
    for step, expected in enumerate(whole):
        begin = step * plan.accumulation
        parts = [part for rank in ranks for part in rank[begin : begin + plan.accumulation]]
        rows = torch.cat([part.clip_index_B for part in parts]).argsort()
        for name in ("clip_BCTHW", "clip_index_B", "label_B"):
            assert torch.equal(
                torch.cat([getattr(part, name) for part in parts])[rows], getattr(expected, name)
            )


def test_a_run_that_starts_later_continues_the_uninterrupted_one(synth_shards):
    clips, plan = clips_of(synth_shards / "train"), plan_batch(8, 4, 1, 2)
    assert_same(load(clips, plan, first_step=2), load(clips, plan)[2 * plan.accumulation :])


def test_an_epoch_shows_every_sample_once_with_its_label(synth_shards):
    clips = clips_of(synth_shards / "train", views=1)
    samples = len(clips.index)
    batch = clips.batch(range(samples, 2 * samples))
    labels = {
        clips.index.sample(position).key: clips.index.sample(position).label for position in range(samples)
    }
    assert sorted(batch.keys) == sorted(labels)
    assert batch.label_B.tolist() == [labels[key] for key in batch.keys]
    epoch, i = 1, 3
    assert batch.keys[3] == clips.index.sample(sample_at(5, epoch, i, samples)).key


def test_views_of_a_video_share_their_frames_and_differ_in_crop(synth_shards):
    whole = AugmentConfig(min_scale=1.0, min_aspect=1.0, max_aspect=1.0, flip=False)
    same = clips_of(synth_shards / "train", views=3, augment=whole).batch(range(6)).clip_BCTHW
    assert (
        torch.equal(same[0], same[1]) and torch.equal(same[0], same[2]) and not torch.equal(same[0], same[3])
    )
    cropped = clips_of(synth_shards / "train", views=3).batch(range(6))
    assert not torch.equal(cropped.clip_BCTHW[0], cropped.clip_BCTHW[1])
    assert cropped.keys[0] == cropped.keys[2] != cropped.keys[3]


def test_a_video_gives_other_clips_in_the_next_epoch_and_with_another_seed(synth_shards):
    clips = clips_of(synth_shards / "train", views=1)
    samples = len(clips.index)
    batch = clips.batch(range(2 * samples))
    first, second = [row for row, key in enumerate(batch.keys) if key == batch.keys[0]]
    assert not torch.equal(batch.clip_BCTHW[first], batch.clip_BCTHW[second])
    assert (
        clips_of(synth_shards / "train", views=1, seed=6).batch(range(samples)).keys != batch.keys[:samples]
    )


def test_annotations_belong_to_their_clips(synth_shards):
    batch = clips_of(synth_shards / "train").batch(range(6, 10))
    sums = to_luma(batch.pixels).flatten(1).long().sum(dim=1)
    assert torch.equal(batch.tokens["seen"], torch.stack([batch.clip_index_B, sums], dim=1))
    assert clips_of(synth_shards / "train", annotate=None).batch(range(2)).tokens == {}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_video_is_skipped_with_its_key_and_weight_0(synth_shards, damaged, workers):
    folder, key = damaged
    plan = plan_batch(32, 32, 1, 2)
    good = load(clips_of(synth_shards / "train"), plan, last_step=2)
    bad = load(clips_of(folder), plan, last_step=2, workers=workers)
    rows = [
        (step, row) for step, batch in enumerate(bad) for row, name in enumerate(batch.keys) if name == key
    ]
    assert len(rows) == 2 and sum((batch.weight_B == 0).sum() for batch in bad) == 2
    for step, row in rows:
        assert not bad[step].clip_BCTHW[row].any() and bad[step].tokens["seen"][row, 1] == 0
    reasons = [skipped for batch in bad for skipped in batch.skipped]
    assert [skipped.key for skipped in reasons] == [key, key] and "checksum differs" in reasons[0].reason
    for with_bad, without in zip(bad, good, strict=True):
        kept = with_bad.weight_B == 1
        assert torch.equal(with_bad.clip_BCTHW[kept], without.clip_BCTHW[kept])


@dataclass(frozen=True)
class Deadly:
    """An `annotate` that kills or blocks its worker at some positions, unless the clip is skipped."""

    deeds: dict[int, Callable[[], None]]

    def __call__(self, luma_THW, clip_index):
        if luma_THW.any():
            self.deeds.get(clip_index, int)()
        return {"place": torch.tensor(clip_index)}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    time.sleep(600)


@pytest.mark.nightly
@pytest.mark.slow
def test_samples_that_kill_or_block_a_worker_are_skipped_and_all_others_are_unchanged(synth_shards):
    folder, plan = synth_shards / "train", plan_batch(8, 8, 1, 2)
    good = load(clips_of(folder, annotate=Deadly({})), plan, last_step=6)
    deadly = clips_of(folder, annotate=Deadly({11: die, 28: hang}))
    bad = load(deadly, plan, last_step=6, workers=2, timeout_s=5.0)
    lost = [row for batch in bad for row in batch.clip_index_B[batch.weight_B == 0].tolist()]
    assert lost == [10, 11, 28, 29]  # both views of either video
    for with_bad, without in zip(bad, good, strict=True):
        kept = with_bad.weight_B == 1
        assert torch.equal(with_bad.clip_BCTHW[kept], without.clip_BCTHW[kept])
        assert with_bad.keys == without.keys
        assert not with_bad.pixels.luma_BTHW[~kept].any()
    skipped = [clip for batch in bad for clip in batch.skipped]
    assert [clip.key for clip in skipped] == [good[1].keys[3]] * 2 + [good[3].keys[4]] * 2
    assert "killed by SIGKILL while it read the sample" in skipped[0].reason
    assert "did nothing for data.timeout_s=5 seconds while it read the sample" in skipped[2].reason


def test_a_sample_that_killed_a_worker_is_skipped_in_later_epochs_too(synth_shards):
    folder = synth_shards / "validation"
    samples = len(open_index(folder))
    deadly = clips_of(folder, views=1, annotate=Deadly({3: die}))
    batches = load(deadly, plan_batch(samples, samples, 1, 1), last_step=3, workers=1)
    bad = batches[0].keys[3]
    assert [clip.key for batch in batches for clip in batch.skipped] == [bad] * 3


@pytest.mark.parametrize("workers", [2])
@pytest.mark.slow
def test_one_shard_serves_more_processes_and_workers_than_there_are_shards(synth_shards, workers):
    folder, world = synth_shards / "validation", 4
    index = open_index(folder)
    samples = len(index)
    assert len(index.shards) < world * workers and samples % world == 0
    plan = plan_batch(samples, 2, world, 1)
    clips = clips_of(folder, views=1)
    ranks = [load(clips, plan, rank=rank, last_step=2, workers=workers) for rank in range(world)]
    for epoch in range(2):
        part = slice(epoch * plan.accumulation, (epoch + 1) * plan.accumulation)
        keys = [key for rank in ranks for batch in rank[part] for key in batch.keys]
        assert sorted(keys) == sorted(index.sample(position).key for position in range(samples))


SMALL_SHM = """
mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"
"""


@pytest.mark.nightly
@pytest.mark.processes
def test_a_container_with_little_shared_memory_works(synth_shards, repo, tmp_path):
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody make a /dev/shm of his own")
    program = tmp_path / "program.py"
    program.write_text(
        f"""
import os
from tests.data_tools.stream.test_loader import clips_of, load, plan_batch

if __name__ == "__main__":
    statistics = os.statvfs("/dev/shm")
    assert statistics.f_blocks * statistics.f_frsize <= 65536
    batches = load(clips_of({str(synth_shards / "train")!r}), plan_batch(16, 16, 1, 2), workers=2)
    assert sum(batch.pixels.luma_BTHW.nbytes for batch in batches) > 2 * 65536
    print(sum(len(batch.keys) for batch in batches))
"""
    )
    command = ["unshare", "-rm", "sh", "-c", SMALL_SHM, "sh", sys.executable, str(program)]
    environment = {**os.environ, "PYTHONPATH": str(repo)}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "64\n", "")


FAILED = """
import os
from multiprocessing import forkserver
from kinemae.data_tools.stream.loader import prepare_training_loader
from kinemae.data_tools.stream.worker_setup import server_ended_on_error

if __name__ == "__main__":
    try:
        with server_ended_on_error():
            prepare_training_loader(None, workers=1)
            raise ValueError
    except ValueError:
        print(os.waitstatus_to_exitcode(os.waitpid(forkserver._forkserver._forkserver_pid, 0)[1]))
"""


def test_the_server_ends_with_a_failure_before_its_workers_start(tmp_path):
    script = tmp_path / "failed.py"
    script.write_text(FAILED)
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "-9\n", "")


PREPARED = """
import signal
from multiprocessing import forkserver
from pathlib import Path
from kinemae.data_tools.stream.loader import prepare_training_loader
from tests.data_tools.stream.test_loader import clips_of, load, plan_batch

if __name__ == "__main__":
    clips, server = clips_of({folder!r}), forkserver._forkserver
    prepare_training_loader(clips.annotate, workers=0)
    assert server._forkserver_pid is None
    prepare_training_loader(clips.annotate, workers=1)
    prepared = server._forkserver_pid
    status = Path(f"/proc/{{prepared}}/status").read_text().split()
    blocked = int(status[status.index("SigBlk:") + 1], 16)
    assert blocked >> signal.SIGTERM - 1 & 1 and blocked >> signal.SIGUSR1 - 1 & 1
    assert len(load(clips, plan_batch(4, 4, 1, 2), workers=1)) == 4
    assert server._forkserver_pid == prepared
"""


def test_the_server_of_the_workers_starts_before_they_are_needed(synth_shards, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PREPARED.format(folder=str(synth_shards / "train")))
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    ran = subprocess.run(
        [sys.executable, program], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (ran.returncode, ran.stderr) == (0, "")


class BrokenIndex(ShardIndex):
    """An index with wrong rows, as only a bug could produce."""

    def __init__(self, index):
        self.index, self.folder, self.shards = index, index.folder, ()

    def __len__(self):
        return len(self.index)

    def sample(self, position):
        return self.index.sample(position)


def test_an_error_that_no_video_causes_stops_the_run_and_names_the_sample(synth_shards):
    clips = clips_of(synth_shards / "train")
    clips.index = BrokenIndex(clips.index)
    key = clips.index.sample(sample_at(5, 0, 0, len(clips.index))).key
    with pytest.raises(RuntimeError, match=f"sample {key} .* cannot be read: IndexError"):
        clips.batch(range(2))


def test_an_error_in_a_worker_reaches_the_main_process(synth_shards):
    clips = clips_of(synth_shards / "train", annotate=failing_annotate)
    with pytest.raises(OSError, match="the disk is on fire"):
        load(clips, plan_batch(4, 4, 1, 2), last_step=1, workers=1)


def test_workers_block_stop_signals_use_one_thread_and_collect_garbage(synth_shards):
    clips = clips_of(synth_shards / "train", annotate=process_state)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    [batch] = load(clips, plan_batch(2, 2, 1, 2), last_step=1, workers=1)
    blocked = batch.tokens["blocked"][0].item()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        assert blocked & 1 << (number - 1)
    assert batch.tokens["threads"][0] == 1
    assert batch.tokens["collects"].all()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


@pytest.mark.processes
def test_a_program_that_fails_ends_its_workers(synth_shards):
    program = f"""
from kinemae.data_tools.index import open_index
from kinemae.data_tools.stream.loader import AugmentConfig, ClipConfig, TrainingClips, training_loader
from kinemae.data_tools.stream.order import plan_batch

clips = TrainingClips(
    open_index({str(synth_shards / "train")!r}),
    clip=ClipConfig(frames=2, size=16),
    augment=AugmentConfig(),
    seed=0,
)
batches = training_loader(
    clips, plan_batch(2, 2, 1, 1), rank=0, first_step=0, last_step=50, workers=1, pin=False
)
next(batches)
raise RuntimeError("as planned")
"""
    done = run_forked("-c", program, check=False)
    assert done.returncode == 1 and "as planned" in done.stderr


def test_a_pickled_stream_contains_no_index(synth_shards):
    clips = clips_of(synth_shards / "train")
    pickled = pickle.dumps(clips)
    assert len(pickled) < 4000
    assert_same([pickle.loads(pickled).batch(range(4))], [clips.batch(range(4))])


def test_views_below_one_are_refused(synth_shards):
    with pytest.raises(ValueError, match=r"data.views_per_video must be at least 1, got 0"):
        clips_of(synth_shards / "train", views=0)


def evaluate(folder, *, rank=0, world=1, workers=0, samples=None, crops=3):
    return list(
        evaluation_loader(
            open_index(folder), clip=CLIP, temporal_clips=2, spatial_crops=crops,
            rank=rank, world=world, workers=workers, samples=samples,
        )
    )  # fmt: skip


@pytest.mark.parametrize("world, workers", [(1, 1), (3, 0), (100, 0)])
def test_evaluation_shows_every_video_once(synth_shards, world, workers):
    folder = synth_shards / "validation"
    items = [
        item for rank in range(world) for item in evaluate(folder, rank=rank, world=world, workers=workers)
    ]
    items.sort(key=lambda item: item.position)
    alone = evaluate(folder)
    assert [item.position for item in items] == list(range(len(open_index(folder))))
    for item, expected in zip(items, alone, strict=True):
        assert item.pixels.rgb().shape == (6, 3, 4, 24, 24)
        assert torch.equal(item.pixels.rgb(), expected.pixels.rgb())
        assert (item.key, item.label) == (expected.key, expected.label)


def test_evaluation_can_use_some_of_the_videos(synth_shards):
    items = evaluate(synth_shards / "validation", samples=[5, 1], crops=1)
    assert [item.position for item in items] == [5, 1] and len(items[0].pixels) == 2


def test_evaluation_reports_a_bad_video(damaged):
    folder, key = damaged
    [bad] = [item for item in evaluate(folder) if item.skipped]
    assert (bad.key, bad.skipped.key, bad.position) == (key, key, 2) and not bad.pixels.rgb().any()


@pytest.mark.parametrize("clips, crops", [(0, 1), (1, 2)])
def test_wrong_views_are_refused(synth_shards, clips, crops):
    index = open_index(synth_shards / "validation")
    with pytest.raises(ValueError, match=f"1 or 3 spatial crops, got {clips} and {crops}"):
        evaluation_loader(
            index, clip=CLIP, temporal_clips=clips, spatial_crops=crops, rank=0, world=1, workers=0
        )


def test_automatic_workers_never_oversubscribe_the_cores_and_explicit_numbers_are_used(caplog, monkeypatch):
    assert [resolve_num_workers(-1, cores) for cores in (1, 2, 12)] == [0, 1, 11]
    assert resolve_num_workers(0, 4) == 0 and resolve_num_workers(1, 1) == 1
    monkeypatch.setattr(workers_module.log, "propagate", True)
    assert resolve_num_workers(12, 12) == 12 and caplog.text == ""
    assert resolve_num_workers(20, 12) == 20
    assert "data.num_workers=20 is more than the 12 cores of this process" in caplog.text
    with pytest.raises(ValueError, match=r"data.num_workers must be -1 .* got -2"):
        resolve_num_workers(-2, 1)


def limits(cores, machine="a", quotas=None):
    """Return the core limits of one process."""
    return CoreLimits(machine, frozenset(cores), quotas or {})


def test_cores_are_divided_only_among_processes_that_share_them():
    bound = [limits(range(12 * task, 12 * task + 12), machine) for machine in "ab" for task in range(8)]
    assert {cores_per_process(own, bound) for own in bound} == {12}, "8 tasks of 12 CPUs, bound by Slurm"
    free = [limits(range(96), machine) for machine in "ab" for _ in range(8)]
    assert {cores_per_process(own, free) for own in free} == {12}
    halves = [limits(range(8)), limits(range(8)), limits(range(8, 16))]
    assert [cores_per_process(own, halves) for own in halves] == [4, 4, 8]
    mixed = [limits(range(4)), limits(range(2))]
    assert [cores_per_process(own, mixed) for own in mixed] == [3, 1]
    crowd = [limits(range(2)) for _ in range(5)]
    assert cores_per_process(crowd[0], crowd) == 1, "never none"


def test_a_quota_is_divided_only_within_its_control_group():
    pods = [limits(range(64), quotas={group: 8.0}) for group in ("one", "one", "two")]
    assert [cores_per_process(own, pods) for own in pods] == [4, 4, 8]
    nested = [limits(range(64), quotas={"job": 8.0, f"task {task}": 6.5}) for task in range(2)]
    assert cores_per_process(nested[0], nested) == 4
    assert cores_per_process(nested[0], nested[:1]) == 6


@pytest.mark.parametrize(
    "files, cores",
    [
        ({"cpu.max": "150000 100000"}, 1),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": ""}, None),
        ({"job/cpu.max": "100000 100000"}, 1),
        ({"cpu,cpuacct/job/cpu.cfs_quota_us": "100000", "cpu,cpuacct/job/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu,cpuacct/job/cpu.cfs_quota_us": "-1", "cpu,cpuacct/job/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_a_containers_quota_counts_in_both_versions_of_control_groups(monkeypatch, tmp_path, files, cores):
    for name, text in {"own": "3:cpuset:/\n2:cpu,cpuacct:/job\n0::/job\n", **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(control_groups, "_GROUPS", tmp_path)
    monkeypatch.setattr(control_groups, "_OWN_GROUPS", tmp_path / "own")
    assert available_cores() == (cores or len(os.sched_getaffinity(0)))


class DeadlyVideos(EvaluationVideos):
    """Evaluation videos; one of them kills the worker that reads it."""

    def _views(self, sample, *clips):
        if sample.label == 3:
            die()
        return super()._views(sample, *clips)


@pytest.mark.slow
def test_a_video_that_kills_a_worker_in_evaluation_is_reported_and_all_others_are_read(synth_shards):
    index = open_index(synth_shards / "validation")
    deadly = [place for place in range(len(index)) if index.sample(place).label == 3]
    videos = DeadlyVideos(index, range(len(index)), clip=CLIP, temporal_clips=1, spatial_crops=1)
    items = list(WorkerPool(videos, workers=2, timeout_s=60.0, preload=[__name__]))
    assert [item.position for item in items] == list(range(len(index)))
    assert [item.position for item in items if item.skipped] == deadly and len(deadly) == 3
    assert "killed by SIGKILL while it read the sample" in items[deadly[0]].skipped.reason


def flips_of(folder, *, may_flip_R=None, flip=True, views=2, count=24):
    """Read clips with crops of the whole frame."""
    augment = AugmentConfig(min_scale=1.0, min_aspect=1.0, max_aspect=1.0, flip=flip)
    clips = TrainingClips(
        open_index(folder), clip=CLIP, augment=augment, seed=5, views=views, may_flip_R=may_flip_R
    )
    return clips.batch(range(count))


def test_a_batch_tells_which_clips_were_flipped(synth_shards):
    plain, batch = (flips_of(synth_shards / "train", flip=flip) for flip in (False, True))

    assert not plain.flipped_B.any()
    assert 4 < int(batch.flipped_B.sum()) < 20
    expected = torch.where(batch.flipped_B.view(-1, 1, 1, 1, 1), plain.clip_BCTHW.flip(-1), plain.clip_BCTHW)
    assert torch.equal(batch.clip_BCTHW, expected)


def test_some_samples_can_be_excluded_from_flips(synth_shards):
    may_flip_R = torch.arange(32).numpy() % 2 == 0
    every, some = (flips_of(synth_shards / "train", may_flip_R=given) for given in (None, may_flip_R))

    may_flip_B = torch.from_numpy(may_flip_R)[some.sample_B]
    assert torch.equal(some.flipped_B, every.flipped_B & may_flip_B)
    assert torch.equal(some.clip_BCTHW[may_flip_B], every.clip_BCTHW[may_flip_B]), "no other draw changes"


def test_a_skipped_clip_counts_as_not_flipped(damaged):
    folder, key = damaged
    batch = flips_of(folder, views=1, count=32)
    is_bad = [one == key for one in batch.keys]
    assert any(is_bad) and not batch.flipped_B[torch.tensor(is_bad)].any()
