"""`ShardTable` and `coverage_sums`: packing is exact, and the sums detect gaps."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinemae.pretrain.runtime.tensor_shards import (
    MOMENTS,
    ShardRange,
    ShardTable,
    coverage_sums,
    equal_range,
    is_covered,
    pack_ranges,
    value_counts,
)
from tests.seeds import examples

SHAPES = {"bias": (), "empty": (0,), "frozen": (7,), "table": (40, 11)}
UPDATES = {"bias": 3, "table": 3}
COUNTS = value_counts(SHAPES, UPDATES)


def zero_3(rank: int, world: int) -> list[ShardRange]:
    """Ranges of a process if each parameter is split equally; empty ranges are not written."""
    spans = [ShardRange(f"f{rank}", *key, *equal_range(count, rank, world)) for key, count in COUNTS.items()]
    return [span for span in spans if span.start < span.stop]


def table_of(files: list[list[ShardRange]]) -> ShardTable:
    """Table of the ranges, packed by each process and gathered in any order."""
    packed = [
        pack_ranges(spans, COUNTS, file=f"f{number}", number=number, files=len(files))
        for number, spans in enumerate(files)
    ]
    return ShardTable(packed=packed[::-1], counts=COUNTS)


def is_tiled(files: list[list[ShardRange]], updates: dict[str, int] = UPDATES) -> bool:
    """Check the coverage by the sums over all processes."""
    return is_covered(sum(coverage_sums(spans, COUNTS) for spans in files), COUNTS, updates)  # type: ignore[arg-type]


@pytest.mark.parametrize("world", [1, 2, 3, 8, 100])
def test_equal_ranges_take_one_bit_and_are_complete(world: int) -> None:
    files = [zero_3(rank, world) for rank in range(world)]
    table = table_of(files)
    assert table.find_fault(SHAPES, UPDATES) is None
    assert is_tiled(files)
    for key in COUNTS:
        runs = [span for spans in files for span in spans if (span.kind, span.name) == key]
        assert table.runs(*key) == runs
    packed = pack_ranges(files[0], COUNTS, file="f0", number=0, files=world)
    assert packed.others == [] and len(packed.equal) == 1 + (len(COUNTS) - 1) // 8


def test_messages_of_a_thousand_processes_are_small() -> None:
    shapes = {f"encoder.blocks.{number}.attention.projection.weight": (600_000,) for number in range(500)}
    counts = value_counts(shapes, dict.fromkeys(shapes, 5))
    spans = [ShardRange("f3", *key, *equal_range(count, 3, 1024)) for key, count in counts.items()]
    assert len(pickle.dumps(pack_ranges(spans, counts, file="f3", number=3, files=1024))) < 1000
    assert coverage_sums(spans, counts).numel() == len(counts) + 1


@examples(60)
@given(
    edges=st.sets(st.integers(1, 439)).map(sorted),
    lost=st.none() | st.integers(0, 500),
    run=st.tuples(st.integers(0, 440), st.integers(0, 440)).map(sorted),
)
def test_any_ranges_are_found_and_gaps_and_duplicates_are_detected(
    edges: list[int], lost: int | None, run: list[int]
) -> None:
    cuts = zip([0, *edges], [*edges, 440], strict=True)
    spans = [ShardRange(f"f{number % 3}", "weight", "table", *cut) for number, cut in enumerate(cuts)]
    rest = [span for span in zero_3(0, 1) if (span.kind, span.name) != ("weight", "table")]
    files = [[span for span in spans if span.file == f"f{number}"] for number in range(3)]
    files[0] += [span._replace(file="f0") for span in rest]
    if lost is not None:
        gone = spans[lost % len(spans)]
        number = int(gone.file[1:])
        if lost % 2:
            files[number].remove(gone)
        else:
            files[number].append(gone)
    table = table_of(files)
    assert is_tiled(files) == (table.find_fault(SHAPES, UPDATES) is None) == (lost is None)
    if lost is None:
        touched = [span for span in spans if span.start < run[1] and span.stop > run[0]]
        found = table.runs("weight", "table", *run)
        assert [span for span in found if span.start < run[1] and span.stop > run[0]] == touched


def test_moments_may_be_absent_before_the_first_update_and_unknown_ranges_are_detected() -> None:
    weights = [span for span in zero_3(0, 1) if span.kind not in MOMENTS]
    assert is_tiled([weights], {"bias": 0, "table": 0})
    assert not is_tiled([weights])
    assert not is_tiled([[*zero_3(0, 1), ShardRange("f0", "weight", "other", 0, 2)]])
    fault = table_of([[*zero_3(0, 1), ShardRange("f0", "weight", "other", 0, 2)]]).find_fault(SHAPES, UPDATES)
    assert fault == "expected only the parameters of parameters.json, got weight of other too"
