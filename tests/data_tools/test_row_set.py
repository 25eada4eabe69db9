"""Sets of rows against boolean masks."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinemae.data_tools import row_set
from kinemae.data_tools.row_set import RowSet


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(row_set, "_CHUNK_BYTES", 128)


@settings(max_examples=60, deadline=None)
@given(
    total=st.integers(0, 5000), share=st.sampled_from([0.0, 0.01, 0.5, 0.99, 1.0]), seed=st.integers(0, 99)
)
def test_a_set_is_its_mask(total, share, seed):
    draw = np.random.default_rng(seed)
    is_in_R = draw.random(total) < share
    expected = np.flatnonzero(is_in_R)
    for rows in (RowSet.from_mask(is_in_R), RowSet.without(np.flatnonzero(~is_in_R), total)):
        assert len(rows) == len(expected) and (rows.mask() == is_in_R).all()
        assert rows.removed().tolist() == np.flatnonzero(~is_in_R).tolist()
        position_R = draw.integers(0, len(expected), 50) if len(expected) else np.empty(0, np.int64)
        assert rows.rows(position_R).tolist() == expected[position_R].tolist()
        assert [rows.row(position) for position in position_R] == expected[position_R].tolist()
        begin = int(draw.integers(0, total + 1))
        assert rows.mask(begin, total).tolist() == is_in_R[begin:].tolist()
        is_kept_R = draw.random(len(expected)) < 0.5
        assert np.flatnonzero(rows.subset(is_kept_R).mask()).tolist() == expected[is_kept_R].tolist()
        assert pickle.loads(pickle.dumps(rows)).digest == RowSet.from_mask(is_in_R).digest


def test_sets_have_digests_of_their_own():
    assert len({RowSet.without(rows, 100).digest for rows in ([], [0], [1], [0, 99])}) == 4
