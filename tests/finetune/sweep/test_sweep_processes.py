"""Processes of a sweep: number at once, devices, exit codes, signals."""

import json
import os
import signal
import sys
import threading
import time

import pytest

from kinemae.data_tools.command import DataError, Stopped, Stuck
from kinemae.finetune.sweep.halving import Trial
from kinemae.finetune.sweep.processes import log_path, run_trials

RECORD = (
    "import json, os, sys, time; from pathlib import Path; begin = time.time(); time.sleep(0.2); "
    "names = ('CUDA_VISIBLE_DEVICES', 'OMP_NUM_THREADS'); "
    "record = {'time': [begin, time.time()], **{name: os.environ.get(name) for name in names}}; "
    "Path(sys.argv[1]).write_text(json.dumps(record))"
)


def make_trials(folder, count):
    return [Trial(number=i, values={}, folder=folder / "trials" / f"{i:03d}") for i in range(count)]


def run(trials, code, *, processes=1, gpus=()):
    run_trials(
        trials,
        lambda trial: [sys.executable, "-c", code, str(trial.folder.with_suffix(".json"))],
        processes=processes,
        gpus=gpus,
    )


def records(trials):
    return [json.loads(trial.folder.with_suffix(".json").read_text()) for trial in trials]


def most_at_once(found):
    return max(
        sum(begin <= other["time"][0] < end for other in found) for begin, end in (r["time"] for r in found)
    )


@pytest.mark.parametrize("processes", [1, 2])
def test_at_most_so_many_trials_run_at_once(tmp_path, processes):
    trials = make_trials(tmp_path, 4)
    run(trials, RECORD, processes=processes)
    assert most_at_once(records(trials)) <= processes


def test_each_process_has_its_gpu_or_its_share_of_the_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    trials = make_trials(tmp_path, 2)
    run(trials, RECORD, processes=2, gpus=["5", "7"])
    assert {record["CUDA_VISIBLE_DEVICES"] for record in records(trials)} <= {"5", "7"}
    run(trials, RECORD, processes=2)
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert {record["OMP_NUM_THREADS"] for record in records(trials)} == {str(share)}


@pytest.mark.parametrize("code", [0, 75])
def test_a_finished_or_paused_trial_is_no_failure(tmp_path, code):
    trials = make_trials(tmp_path, 2)
    run(trials, f"print('said'); raise SystemExit({code})")
    assert not any(trial.failure for trial in trials)
    assert log_path(trials[1]).read_text() == "said\n"


def test_a_diverged_trial_is_recorded_and_the_others_run(tmp_path):
    trials = make_trials(tmp_path, 2)
    run(trials, "import sys; raise SystemExit(6 if '000' in sys.argv[1] else 0)")
    assert [trial.failure for trial in trials] == ["the loss diverged", ""]
    assert make_trials(tmp_path, 2)[0].read_failure() == "the loss diverged"


@pytest.mark.parametrize(
    ("code", "error", "text"),
    [
        (2, ValueError, "trial 0 failed: wrong usage or config; .*000.log has the reason: no such key"),
        (3, DataError, "the data cannot be used"),
        (5, Stuck, "did not respond in time"),
        (1, DataError, "trial 0 failed: crashed"),
        (143, DataError, "trial 0 failed: killed by signal 15"),
    ],
)
def test_another_failure_ends_the_sweep_with_the_trials_reason(tmp_path, code, error, text):
    with pytest.raises(error, match=text):
        run(make_trials(tmp_path, 3), f"print('no such key'); raise SystemExit({code})")
    assert not log_path(make_trials(tmp_path, 3)[1]).exists(), "no further trial was started"


def test_a_signal_stops_the_trials_and_then_the_sweep(tmp_path):
    wait = (
        "import signal, sys, time; from pathlib import Path; "
        "end = lambda *_: (Path(sys.argv[1]).write_text('saved'), sys.exit(75)); "
        "signal.signal(signal.SIGTERM, end); Path(sys.argv[1]).write_text('ready'); time.sleep(60)"
    )
    trials = make_trials(tmp_path, 2)
    files = [trial.folder.with_suffix(".json") for trial in trials]

    def send():
        while not all(file.exists() and file.read_text() == "ready" for file in files):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send, daemon=True).start()
    with pytest.raises(Stopped, match="repeat the command to continue the sweep"):
        run(trials, wait, processes=2)
    assert [file.read_text() for file in files] == ["saved", "saved"]
