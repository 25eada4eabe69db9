"""Held-out samples: whole groups, a fraction of each class, a function of the seed."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kinemae.data_tools.command import DataError
from kinemae.data_tools.holdout import hold_out
from kinemae.data_tools.index import Sample, Shard, ShardIndex, open_index, write_index

SAMPLE = Sample(
    key="k", shard=0, offset=0, length=1, crc32=0, frames=8, duration_s=1.0, width=8, height=8, codec="h264",
    label=0, name="k.mp4",
)  # fmt: skip


def made(folder: Path, rows: list[tuple[int, str, str, str]]) -> ShardIndex:
    """Write an index with a sample for each (label, group, content, name)."""
    folder.mkdir(exist_ok=True)
    samples = [
        replace(
            SAMPLE, key=f"k{number}", label=label, group=group, content=content, name=name or f"{number}.mp4"
        )
        for number, (label, group, content, name) in enumerate(rows)
    ]
    (folder / "s.tar").write_bytes(b"x")
    write_index(folder, samples, [Shard(name="s.tar", samples=len(rows), bytes=1, sha256="")], ["a", "b"], {})
    return open_index(folder)


def grouped(folder: Path, groups: int, per_group: int) -> ShardIndex:
    return made(folder, [(n % 2, f"g{n % groups}", "", "") for n in range(groups * per_group)])


ROWS = st.lists(
    st.tuples(
        st.integers(0, 1), st.sampled_from(["", *"pqrst"]), st.sampled_from(["", *"012345"]),
        st.sampled_from(["", *"xyz"]),
    ),
    min_size=2,
    max_size=30,
)  # fmt: skip


@given(rows=ROWS, fraction=st.floats(0.05, 0.6), seed=st.integers(0, 5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_groups_copies_and_parts_of_a_file_are_never_divided(tmp_path, rows, fraction, seed):
    index = made(tmp_path, rows)
    try:
        train, held_out = hold_out(index, fraction=fraction, seed=seed, key="data.train=x")
    except DataError:
        return

    assert sorted([*train, *held_out]) == list(range(len(rows))) and len(train) and len(held_out)
    for column in ("group", "content", "name"):
        values = index.column(column)
        assert not (set(values[train]) & set(values[held_out])) - {""}


@pytest.mark.parametrize("fraction, expected", [(0.2, 8), (0.25, 10), (0.5, 20)])
def test_a_fraction_of_each_class_is_held_out(tmp_path, fraction, expected):
    index = made(tmp_path, [(n % 2, f"g{n // 2}", "", "") for n in range(40)])
    train, held_out = hold_out(index, fraction=fraction, seed=0, key="data.train=x")
    assert Counter(index.column("label")[held_out].tolist()) == {0: expected / 2, 1: expected / 2}
    assert len(train) == 40 - expected


def test_other_labels_can_be_balanced(tmp_path):
    index = made(tmp_path, [(-1, "", "", "") for _ in range(40)])
    speed = np.arange(40) // 10
    _, held_out = hold_out(index, fraction=0.2, seed=0, key="data.train=x", labels=speed.tolist())
    assert Counter(speed[held_out].tolist()) == {0: 2, 1: 2, 2: 2, 3: 2}
    _, held_out = hold_out(index, fraction=0.2, seed=0, key="data.train=x")
    assert len(held_out) == 8, "samples without a label are one class"


def test_the_seed_decides(tmp_path):
    index = grouped(tmp_path, groups=20, per_group=2)
    one, same, other = (hold_out(index, fraction=0.3, seed=seed, key="x")[1].tolist() for seed in (0, 0, 1))
    assert one == same != other


def test_windows_of_one_video_stay_together(tmp_path):
    index = grouped(tmp_path, groups=10, per_group=1)
    view = index.view([*range(10), *range(10)], window_s=[(0, 0.5)] * 10 + [(0.5, 1)] * 10)
    train, held_out = hold_out(view, fraction=0.4, seed=0, key="x")
    names = view.column("name")
    assert len(held_out) == 8 and not set(names[train]) & set(names[held_out])


def test_a_single_group_is_an_error(tmp_path):
    index = made(tmp_path, [(n % 2, "cam", "", "") for n in range(6)])
    message = (
        r"data.train=x: expected samples of two or more groups, .* got 6 of one group \('cam'\); fix: give"
    )
    with pytest.raises(DataError, match=message):
        hold_out(index, fraction=0.2, seed=0, key="data.train=x")


def test_classes_of_one_group_each_are_an_error(tmp_path):
    index = made(tmp_path, [(n % 2, f"g{n % 2}", "", "") for n in range(6)])
    with pytest.raises(DataError, match="got one group for each class; fix: give a validation set"):
        hold_out(index, fraction=0.2, seed=0, key="data.train=x")
