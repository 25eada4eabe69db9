"""Search: neighbours and near duplicates equal those of plain formulas, and wrong input is one line."""

import json

import numpy as np
import pytest

from kinemae.finetune.features.files import FeatureTable
from kinemae.finetune.features.search import SearchConfig, find_duplicates, find_nearest, read_query
from tests.finetune.probe.conftest import finetune, make_features, write_encoder


def table(vectors_RD, **columns):
    keys = [f"key-{row}" for row in range(len(vectors_RD))]
    return FeatureTable(features=np.asarray(vectors_RD, np.float32), columns={"key": keys, **columns})


def cosines(vectors_RD):
    """Cosines of all pairs of standardized rows in float64."""
    x_RD = (vectors_RD - vectors_RD.mean(axis=0)) / vectors_RD.std(axis=0)
    x_RD = x_RD / np.linalg.norm(x_RD, axis=1, keepdims=True)
    return x_RD @ x_RD.T


def test_neighbours_are_those_of_the_formula():
    vectors_RD = np.random.default_rng(0).standard_normal((40, 8))
    rows = table(vectors_RD)

    [found] = find_nearest(rows, read_query(rows, "key-7", SearchConfig()), SearchConfig(k=5))

    cosine_R = cosines(vectors_RD)[7]
    expected = [row for row in np.argsort(-cosine_R) if row != 7][:5]
    assert [each["key"] for each in found["neighbours"]] == [f"key-{row}" for row in expected]
    assert [each["cosine"] for each in found["neighbours"]] == pytest.approx(cosine_R[expected], abs=1e-5)


def test_windows_of_a_query_count_as_one_and_other_videos_appear_once(monkeypatch):
    monkeypatch.setattr("kinemae.finetune.features.search._COSINES_AT_ONCE", 60)  # blocks of two windows
    vectors_RD = np.random.default_rng(1).standard_normal((30, 8))
    times = {"start_s": [float(row % 3) for row in range(30)], "end_s": [row % 3 + 1.0 for row in range(30)]}
    rows = table(vectors_RD, video=[f"video-{row // 3}" for row in range(30)], **times)

    [found] = find_nearest(rows, read_query(rows, "video-2", SearchConfig()), SearchConfig(k=100))

    best_R = cosines(vectors_RD)[6:9].max(axis=0)
    best_V = best_R.reshape(10, 3).max(axis=1)
    expected = [f"video-{video}" for video in np.argsort(-best_V) if video != 2]
    assert [each["video"] for each in found["neighbours"]] == expected
    first = found["neighbours"][0]
    row = int(first["key"].removeprefix("key-"))
    assert first["query_start_s"] == cosines(vectors_RD)[6:9, row].argmax()

    [found] = find_nearest(rows, read_query(rows, "key-6", SearchConfig()), SearchConfig(k=100, per="row"))
    assert {"key-7", "key-8"} <= {each["key"] for each in found["neighbours"]}


def test_duplicates_are_all_pairs_above_the_threshold(monkeypatch):
    monkeypatch.setattr("kinemae.finetune.features.search._COSINES_AT_ONCE", 1 << 21)  # 3 blocks of rows
    draws = np.random.default_rng(2)
    vectors_RD = draws.standard_normal((2500, 16))
    vectors_RD[2400] = vectors_RD[3] + 0.01 * draws.standard_normal(16)
    vectors_RD[1200] = vectors_RD[2400]
    vectors_RD[1024] = vectors_RD[1023]

    found = find_duplicates(table(vectors_RD), SearchConfig(threshold=0.97))

    is_pair = np.triu(cosines(vectors_RD) >= 0.97, 1)
    expected = {(f"key-{one}", f"key-{other}") for one, other in zip(*np.nonzero(is_pair), strict=True)}
    assert {(each["first"]["key"], each["second"]["key"]) for each in found["pairs"]} == expected
    assert {tuple(group) for group in found["groups"]} >= {
        ("key-3", "key-1200", "key-2400"),
        ("key-1023", "key-1024"),
    }
    assert found["groups"][0] == ["key-3", "key-1200", "key-2400"] and found["pair_count"] == len(expected)


def test_removed_rows_are_similar_to_a_kept_one():
    angle_R = np.deg2rad([0, 10, 20, 90])  # a chain: 0 and 20 are too far
    vectors_RD = np.stack([np.cos(angle_R), np.sin(angle_R)], axis=1)
    found = find_duplicates(table(vectors_RD), SearchConfig(threshold=0.98, standardize=False))
    assert found["groups"] == [["key-0", "key-1", "key-2"]] and found["remove"] == ["key-1"]


def test_equal_rows_are_duplicates_even_if_all_are_equal():
    for standardize in (True, False):
        found = find_duplicates(table(np.ones((3, 4))), SearchConfig(standardize=standardize))
        assert found["groups"] == [["key-0", "key-1", "key-2"]]
    assert find_duplicates(table(np.zeros((2, 4))), SearchConfig())["pair_count"] == 1


def test_a_video_finds_itself(clips, videos, encoder, capsys):
    assert finetune("search", clips, videos / "b.mp4", "k=2", "device=cpu", "--json") == 0

    [query] = json.loads(capsys.readouterr().out)["queries"]
    first, second = query["neighbours"]
    assert (query["query"], first["video"], first["cosine"]) == ("b.mp4", "b.mp4", 1.0)
    assert first["start_s"] == first["query_start_s"] and second["video"] != "b.mp4"


def test_a_file_of_features_is_a_query_of_each_of_its_videos(clips, capsys):
    assert finetune("search", clips, clips, "k=1", "--json") == 0

    queries = json.loads(capsys.readouterr().out)["queries"]
    assert [each["query"] for each in queries] == ["a.mp4", "b.mp4", "more/a.mp4"]
    assert all(each["neighbours"][0]["video"] == each["query"] for each in queries)
    assert finetune("search", clips, clips, "k=1", "threshold=0.999") == 0
    assert "3 of 3 queries have a neighbour with a cosine of at least 0.999" in capsys.readouterr().out


def test_copies_of_a_video_are_near_duplicates(clips, tmp_path, capsys):
    assert finetune("search", clips, "--duplicates", "threshold=-1", f"keys={tmp_path / 'keys.txt'}") == 0
    assert (tmp_path / "keys.txt").read_text() == "b.mp4\nmore/a.mp4\n"
    assert capsys.readouterr().out.startswith("3 pairs with a cosine of at least -1\n")


def test_wrong_searches_are_one_line(clips, encoder, videos, tmp_path, capsys):
    def fails(code, message, *words):
        assert finetune("search", *words) == code
        assert message in capsys.readouterr().err.splitlines()[-1]

    np.savez(tmp_path / "foreign.npz", **make_features())
    bad = make_features()
    bad["features"][3, 2] = np.nan
    np.savez(tmp_path / "bad.npz", **bad)
    other = write_encoder(tmp_path / "other", seed=1)
    fails(2, "expected QUERY or --duplicates, got neither", clips)
    fails(2, "expected QUERY or --duplicates, got both", clips, "b.mp4", "--duplicates")
    fails(2, "keys: expected no file with a QUERY", clips, "b.mp4", "keys=keys.txt")
    fails(2, "k must be at least 1, got 0", clips, "b.mp4", "k=0")
    fails(3, "QUERY b.mp3: expected a key of FEATURES", clips, "b.mp3")
    fails(3, "did you mean b.mp4?", clips, "b.mp3")
    fails(3, "expected a file of features, got no file", tmp_path / "absent.npz", "x")
    fails(3, "got NaN or infinity in train-3", tmp_path / "bad.npz", "train-0")
    fails(3, "expected vectors of 32 values as in FEATURES, got 8", clips, tmp_path / "foreign.npz")
    fails(3, "since FEATURES is of other software", tmp_path / "foreign.npz", encoder)
    fails(4, "expected the encoder of FEATURES", clips, videos, f"encoder={other}", "device=cpu")
