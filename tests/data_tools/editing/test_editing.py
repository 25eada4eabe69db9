"""Changes of data sets: add, merge, remove, compact, subset, reshard."""

import io
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from kinemae.data_tools.data_set_files import DataSetChange
from kinemae.data_tools.exit_codes import EXIT_CONFIG, EXIT_DATA
from kinemae.data_tools.index import ShardIndex, open_index
from kinemae.data_tools.storage.location import location
from kinemae.data_tools.verify.command import verify
from tests.data_tools.editing.conftest import Run
from tests.label_index import label_index
from tests.sharding import contents, encoded, moving, shard, video_bytes


@pytest.fixture
def whole(synth_shards: Path, tmp_path: Path, run: Run) -> Path:
    """A data set of 32 samples in four shards."""
    run("reshard", synth_shards / "train", tmp_path / "whole", "samples_per_shard=8")
    return tmp_path / "whole"


def keys_of(index: ShardIndex) -> list[str]:
    return index.column("key").tolist()


def tars(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar"))


def faults(folder: Path) -> list[str]:
    return [str(fault) for fault in verify({"": open_index(folder)}, full=False, workers=1)]


def rows_of(index: ShardIndex) -> dict[str, tuple[object, ...]]:
    """Rows by key, without the place of the video, and with the name of the class."""
    names = ["frames", "duration_s", "codec", "name", "group", "content", "crc32", *index.extra]
    columns = [index.arrow_column(name).to_pylist() for name in names]
    labels = [index.classes[label] if label >= 0 else None for label in index.column("label")]
    return dict(zip(keys_of(index), zip(labels, *columns, strict=True), strict=True))


def test_shards_of_another_size_hold_the_same_samples_and_equal_limits_give_equal_bytes(
    synth_shards: Path, whole: Path, tmp_path: Path, run: Run
) -> None:
    original, resharded = open_index(synth_shards / "train"), open_index(whole)
    assert len(resharded.shards) == 4 and faults(whole) == []
    assert video_bytes(resharded) == video_bytes(original) and rows_of(resharded) == rows_of(original)
    run("reshard", whole, tmp_path / "again", "samples_per_shard=16")
    assert [tar.read_bytes() for tar in tars(tmp_path / "again")] == [
        tar.read_bytes() for tar in tars(synth_shards / "train")
    ]
    assert "expected a new folder" in run("reshard", whole, tmp_path / "again", code=EXIT_DATA)


def test_every_member_of_a_sample_moves_with_it(tmp_path: Path, synth_shards: Path, run: Run) -> None:
    videos = video_bytes(open_index(synth_shards / "train"))
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "a.tar", "w") as tar:
        for number, video in enumerate(list(videos.values())[:4]):
            for name, data in ((f"d/{number}.txt", b"caption %d" % number), (f"d/{number}.mp4", video)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    run("index", tmp_path / "tars", "workers=1")
    run("reshard", tmp_path / "tars", tmp_path / "out", "samples_per_shard=2")
    with tarfile.open(tars(tmp_path / "out")[1]) as tar:
        names = tar.getnames()
        assert [tar.extractfile(name).read() for name in names[::2]] == [b"caption 2", b"caption 3"]  # type: ignore[union-attr]
    assert names == ["d/2.txt", "d/2.mp4", "d/3.txt", "d/3.mp4"]
    assert video_bytes(open_index(tmp_path / "out")) == video_bytes(open_index(tmp_path / "tars"))


def test_removed_samples_are_not_read_and_who_has_the_old_state_open_reads_on(
    whole: Path, tmp_path: Path, run: Run
) -> None:
    before = open_index(whole)
    copy = pickle.dumps(before)
    all_keys, videos = keys_of(before), video_bytes(before)
    (tmp_path / "my keys.txt").write_text("\n".join([all_keys[3], all_keys[20], all_keys[3], ""]))
    log = run("remove", whole, tmp_path / "my keys.txt")
    after = open_index(whole)
    assert "2 of 32 samples removed" in log and "kinemae data compact" in log
    assert keys_of(after) == [key for key in all_keys if key not in (all_keys[3], all_keys[20])]
    assert [after.sample(place).key for place in range(30)] == keys_of(after)
    assert after.identity != before.identity and after.fingerprint != before.fingerprint
    assert keys_of(before) == all_keys == keys_of(pickle.loads(copy)) and video_bytes(before) == videos
    assert faults(whole) == []
    assert "0 of 30 samples removed, 2 more were removed before" in run(
        "remove", whole, tmp_path / "my keys.txt"
    )
    run("remove", whole, "where=label == 'move_left'")
    assert "move_left" not in {after.classes[label] for label in open_index(whole).column("label")}


def test_compact_deletes_the_bytes_of_removed_samples_and_old_tars_with_the_next_change(
    whole: Path, tmp_path: Path, run: Run
) -> None:
    before = open_index(whole)
    all_keys, videos, rows = keys_of(before), video_bytes(before), rows_of(before)
    gone = [all_keys[3], *all_keys[8:16], all_keys[31]]  # the second shard as a whole
    (tmp_path / "keys.txt").write_text("\n".join(gone))
    run("remove", whole, tmp_path / "keys.txt")
    removed = open_index(whole)
    old = {name for name in contents(whole) if name.endswith(".tar")}
    log = run("compact", whole)
    assert "10 removed samples are in no shard any more; 3 old tars stay until the next change" in log
    after = open_index(whole)
    left = {key: video for key, video in videos.items() if key not in gone}
    assert video_bytes(after) == left == video_bytes(removed) and keys_of(after) == list(left)
    assert rows_of(after) == {key: rows[key] for key in left}
    assert not len(after.removed_R) and faults(whole) == [] and len(after.shards) == 3
    assert old <= set(contents(whole))
    (tmp_path / "more.txt").write_text(all_keys[0])
    run("remove", whole, tmp_path / "more.txt")
    run("compact", whole, "previous=delete")
    left_tars = {tar.name: tar.read_bytes() for tar in tars(whole)}
    assert set(left_tars) == {shard.name for shard in open_index(whole).shards}
    assert not any(videos[key] in content for key in (*gone, all_keys[0]) for content in left_tars.values())
    assert faults(whole) == []
    assert not any(all_keys[0].encode() in content for content in contents(whole).values())
    assert "no sample was removed" in run("compact", whole)
    run("remove", whole, f"where=key == '{all_keys[1]}'")
    run("compact", whole)
    run("compact", whole, "previous=delete")  # those that the first one kept
    assert not any(all_keys[1].encode() in content for content in contents(whole).values())


@pytest.mark.parametrize("videos", ["reference", "copy"])
def test_added_samples_follow_the_present_ones_whose_removed_rows_stay_removed(
    whole: Path, synth_shards: Path, tmp_path: Path, run: Run, videos: str
) -> None:
    before = open_index(whole)
    first = keys_of(before)[0]
    run("remove", whole, f"where=key == '{first}'")
    new = open_index(synth_shards / "validation")
    run("add", whole, synth_shards / "validation", f"videos={videos}")
    after = open_index(whole)
    assert keys_of(after) == [*keys_of(before)[1:], *keys_of(new)]
    assert rows_of(after) == {
        key: row for key, row in {**rows_of(before), **rows_of(new)}.items() if key != first
    }
    assert {key: video_bytes(after)[key] for key in keys_of(new)} == video_bytes(new)
    assert after.made_by["config"] == before.made_by["config"] and faults(whole) == []
    assert "were added before" in run("add", whole, synth_shards / "validation")
    run("compact", whole, "previous=delete")
    assert keys_of(open_index(whole)) == keys_of(after) and faults(whole) == []
    copied = [name for name in contents(whole) if name.endswith(".tar")]
    assert len(copied) == (6 if videos == "copy" else 4)


@pytest.mark.parametrize("gone, left", [("a", "bc"), ("b", "ac"), ("ab", "c")])
def test_hard_links_keep_no_member_of_a_removed_sample(
    synth_shards: Path, tmp_path: Path, run: Run, gone: str, left: str
) -> None:
    first, second, *_ = video_bytes(open_index(synth_shards / "train")).values()
    folder = tmp_path / "tars"
    folder.mkdir()
    with tarfile.open(folder / "x.tar", "w") as tar:
        for name, data in (
            ("a.mp4", first),
            ("a.txt", b"a"),
            ("b.mp4", b""),
            ("b.txt", b"b"),
            ("c.mp4", second),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if not data:
                info.type, info.linkname = tarfile.LNKTYPE, "a.mp4"
            tar.addfile(info, io.BytesIO(data))
    run("index", folder, "workers=1")
    before = video_bytes(open_index(folder))
    run("reshard", folder, tmp_path / "out")
    assert video_bytes(open_index(tmp_path / "out")) == before
    with tarfile.open(next((tmp_path / "out").glob("*.tar"))) as tar:
        assert tar.getnames() == ["a.mp4", "a.txt", "b.mp4", "b.txt", "c.mp4"]
    run("remove", folder, f"where=key in {list(gone)}")
    run("compact", folder, "previous=delete")
    [path] = folder.glob("*.tar")
    with tarfile.open(path) as tar:
        names = tar.getnames()
    assert names == [name for name in ("a.mp4", "a.txt", "b.mp4", "b.txt", "c.mp4") if name[0] in left]
    assert video_bytes(open_index(folder)) == {key: before[key] for key in left}
    assert (first in path.read_bytes()) == (left != "c")


def test_compact_keeps_a_tar_that_restored_samples_use(whole: Path, tmp_path: Path, run: Run) -> None:
    before = open_index(whole)
    videos, keys = video_bytes(before), keys_of(before)
    run("subset", whole, tmp_path / "some", f"where=key in {keys[:3]}")
    run("remove", whole, f"where=key in {keys[:4]}")
    run("add", whole, tmp_path / "some")
    for options in (("previous=delete",), ()):
        run("compact", whole, *options)
        assert video_bytes(open_index(whole)) == {key: videos[key] for key in keys if key != keys[3]}
    assert faults(whole) == []


def test_splits_are_merged_one_by_one_and_tars_inside_out_have_relative_names(
    synth_shards: Path, tmp_path: Path, run: Run
) -> None:
    shutil.copytree(synth_shards, tmp_path / "out" / "parts" / "1")
    run("subset", synth_shards, tmp_path / "2", "where=('left' in name)", "videos=copy")
    run("remove", tmp_path / "out/parts/1/train", "where=('left' in name)")
    run("remove", tmp_path / "out/parts/1/validation", "where=('left' in name)")
    sources = (tmp_path / "out/parts/1/train", tmp_path / "2/train")
    run("merge", *sources, tmp_path / "out")
    merged = open_index(tmp_path / "out")
    assert rows_of(merged) == rows_of(open_index(synth_shards / "train"))
    assert video_bytes(merged) == video_bytes(open_index(synth_shards / "train"))
    assert merged.shards[0].name.startswith("parts/1/train/") and faults(tmp_path / "out") == []
    assert "complete already" in run("merge", *sources, tmp_path / "out")
    assert "fix: give another OUT, or use `kinemae data add`" in run(
        "merge", *reversed(sources), tmp_path / "out", code=EXIT_DATA
    )


def test_classes_are_joined_by_name_and_columns_by_type(tmp_path: Path, run: Run) -> None:
    one = label_index(tmp_path / "1", labels=[0, 1, -1], classes=("a", "b"), extra={"x": [1, 2, 3]})
    label_index(tmp_path / "2", labels=[0, 1], classes=("c", "b"), extra={"x": [0.5, 1.5], "y": ["p", "q"]})
    sources = (tmp_path / "1", tmp_path / "2", tmp_path / "out")
    wrong = run("merge", *sources, code=EXIT_DATA)
    assert (
        "expected the 2 classes of " in wrong
        and "only one has 'a', 'c'; fix: shard it with classes=" in wrong
    )
    assert "expected unique keys, got 2 that occur twice, first 'key-0'" in run(
        "merge", *sources, "classes=union", code=EXIT_DATA
    )
    assert not (tmp_path / "out").exists()
    run("merge", *sources, "classes=union", "duplicates=skip")
    out = open_index(tmp_path / "out")
    assert keys_of(out) == keys_of(one) and out.classes == ("a", "b", "c")
    assert out.column("x").tolist() == [1.0, 2.0, 3.0] and out.arrow_column("y").to_pylist() == [None] * 3
    everything = out.with_removed()
    assert everything.column("label").tolist() == [0, 1, -1, 2, 1]
    assert everything.arrow_column("y").to_pylist() == [None, None, None, "p", "q"]
    label_index(tmp_path / "4", labels=[0, 1], classes=("a", "b"), extra={"x": [2**53 + 1, 2]})
    assert "expected values of the column 'x' that are exact as double, got others: Integer value" in run(
        "merge",
        tmp_path / "4",
        tmp_path / "2",
        tmp_path / "o",
        "classes=union",
        "duplicates=skip",
        code=EXIT_DATA,
    )
    label_index(tmp_path / "3", labels=[0], classes=("a", "b"), extra={"x": ["text"]})
    assert "expected 'x' to be int64" in run(
        "merge", tmp_path / "1", tmp_path / "3", tmp_path / "o", code=EXIT_DATA
    )


def test_splits_that_share_a_group_after_a_change_are_an_error(tmp_path: Path, run: Run) -> None:
    for part, groups in (("1", ["a", "b"]), ("2", ["c", "a"])):
        for split, group in zip(("train", "validation"), groups, strict=True):
            made = label_index(tmp_path / part / split, labels=[0], groups=[group])
            assert len(made) == 1
    sources = (tmp_path / "1", tmp_path / "2")
    message = "train and validation: expected different groups, got 1 in both, first 'a'; fix: remove"
    assert message in run("merge", *sources, tmp_path / "out", code=EXIT_DATA)
    assert message in run("add", *sources, code=EXIT_DATA)
    one_split = (tmp_path / "1/validation", tmp_path / "2/validation")
    assert message in run("add", *one_split, code=EXIT_DATA)  # of 1/train
    run("subset", tmp_path / "1/train", tmp_path / "out/train", "where=True")
    assert message in run("merge", *one_split, tmp_path / "out/validation", code=EXIT_DATA)
    shutil.rmtree(tmp_path / "out")
    assert "got 1 in both" in run("merge", *sources, tmp_path / "out", "leaks=warn", "duplicates=skip")


@pytest.mark.parametrize("videos", ["reference", "copy"])
def test_a_subset_holds_the_chosen_samples(whole: Path, tmp_path: Path, run: Run, videos: str) -> None:
    index = open_index(whole)
    chosen = keys_of(index)[2:11]
    (tmp_path / "keys").write_text("\n".join(reversed(chosen)))
    run("remove", whole, f"where=key == '{chosen[0]}'")
    words = ("subset", whole, tmp_path / "part", f"keys={tmp_path / 'keys'}", "where=frames > 1")
    assert "1 of the chosen samples were removed" in run(*words, f"videos={videos}")
    part = open_index(tmp_path / "part")
    assert keys_of(part) == chosen[1:] and video_bytes(part) == {
        key: video for key, video in video_bytes(index).items() if key in chosen[1:]
    }
    assert rows_of(part).items() <= rows_of(index).items() and faults(tmp_path / "part") == []
    assert len(tars(tmp_path / "part")) == (videos == "copy")


@pytest.mark.parametrize(
    "words, code, message",
    [
        (["remove", "W", "K"], EXIT_DATA, "got 1 of 2 keys that no sample has, first nobody; nothing was"),
        (["remove", "W", "none.txt"], EXIT_CONFIG, "keys=none.txt: expected a file with one key per line"),
        (["remove", "W"], EXIT_CONFIG, "keys: expected a file of keys, or a condition, got none"),
        (["remove", "W", "where=True"], EXIT_DATA, "expected samples that stay, got a choice of all 32"),
        (["remove", "W", "where=moton > 1"], EXIT_CONFIG, "where: expected columns of "),
        (["remove", "W", "where=key >"], EXIT_CONFIG, "where: expected a condition over columns"),
        (["subset", "W", "O"], EXIT_CONFIG, "where: expected a condition, or keys=FILE, got none"),
        (["subset", "W", "W", "where=True"], EXIT_DATA, "expected a new folder, got a data set"),
        (["merge", "W"], EXIT_CONFIG, "expected SOURCE ... OUT, got "),
        (["add", "W", "nowhere"], EXIT_DATA, "no folder of shards at nowhere"),
        (["add", "W", "P"], EXIT_DATA, "expected data sets, or folders with splits, got one of each"),
        (["reshard", "W", "O", "samples_per_shard=0"], EXIT_CONFIG, "samples_per_shard must be 1 or more"),
        (["compact", "W", "previous=no"], EXIT_CONFIG, "previous"),
    ],
)  # fmt: skip
def test_a_wrong_change_is_named_and_changes_nothing(  # noqa: PLR0913
    whole: Path, synth_shards: Path, tmp_path: Path, run: Run, words: list[str], code: int, message: str
) -> None:
    first = keys_of(open_index(whole))[0]
    (tmp_path / "K").write_text(f"{first}\nnobody\n")
    before = contents(whole)
    places = {"W": whole, "K": tmp_path / "K", "O": tmp_path / "o", "P": synth_shards}
    assert message in run(*(places.get(word, word) for word in words), code=code)
    assert contents(whole) == before and not (tmp_path / "o").exists()


def test_one_of_two_writers_is_refused(whole: Path, run: Run) -> None:
    index = open_index(whole)
    with DataSetChange(location(whole), index.state):
        log = run("remove", whole, "where=key.endswith('0')", code=EXIT_DATA)
    assert "got another process that writes to this data set; fix: wait for it" in log
    assert len(open_index(whole)) == 32


def test_a_change_that_breaks_off_leaves_the_old_state_and_can_be_repeated(
    whole: Path, synth_shards: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = video_bytes(open_index(whole))

    def killed(*given: object) -> None:
        raise KeyboardInterrupt

    run("remove", whole, "where=key.endswith('0')")
    there = keys_of(open_index(whole))
    for words in (("compact", whole), ("add", whole, synth_shards / "validation", "videos=copy")):
        with monkeypatch.context() as patch:
            patch.setattr(DataSetChange, "commit", killed)
            run(*words, code=130)
        assert keys_of(open_index(whole)) == there
        assert video_bytes(open_index(whole)) == {key: videos[key] for key in there}
        run(*words)
    assert len(open_index(whole)) == len(there) + len(open_index(synth_shards / "validation"))
    assert np.all(open_index(whole).column("length") > 0)


def test_a_data_set_in_an_object_store_is_changed_and_refers_to_local_tars_only_as_copies(
    synth_shards: Path, tmp_path: Path, run: Run, bucket: str
) -> None:
    store = location(f"{bucket}/set")
    source = synth_shards / "validation"
    assert "fix: videos=copy" in run("merge", source, synth_shards / "train", store.url, code=EXIT_DATA)
    run("merge", source, synth_shards / "train", store.url, "videos=copy")
    original = video_bytes(open_index(source)) | video_bytes(open_index(synth_shards / "train"))
    assert video_bytes(open_index(store)) == original
    gone = keys_of(open_index(store))[:3]
    run("remove", store.url, f"where=key in {gone}")
    run("compact", store.url, "previous=delete")
    left = {key: video for key, video in original.items() if key not in gone}
    assert video_bytes(open_index(store)) == left
    assert {name for name in store.list(".tar")} == {shard.name for shard in open_index(store).shards}
    run("subset", store.url, tmp_path / "part", "where=key.endswith('1')")
    assert video_bytes(open_index(tmp_path / "part")).items() <= left.items()
    assert open_index(tmp_path / "part").shards[0].name.startswith(store.url)


def test_shard_does_not_undo_a_later_change(tmp_path: Path, run: Run) -> None:
    good = encoded(moving(5))
    videos = {"a": good, "b": encoded(moving(6)), "c": bytes(len(good))}
    for name, video in videos.items():
        location(tmp_path / "videos" / f"{name}.mp4").write(video)
    words = (tmp_path / "videos", tmp_path / "out", "validation_fraction=0", "max_bad_fraction=1")
    assert shard(*words) == 0
    run("remove", tmp_path / "out", "where=key == 'a'")
    location(tmp_path / "videos" / "c.mp4").write(good)
    assert shard(*words, "retry_rejected=true") == EXIT_DATA
    assert keys_of(open_index(tmp_path / "out" / "train")) == ["b"]


def test_keys_come_from_standard_input_and_unknown_ones_may_be_ignored(
    whole: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = keys_of(open_index(whole))[5]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{key}\nnobody\n"))
    log = run("remove", whole, "-", "missing=ignore")
    assert "1 of 2 keys that no sample has, first nobody" in log and "1 of 32 samples removed" in log
    assert key not in keys_of(open_index(whole))


def test_a_dry_run_counts_and_writes_nothing(
    synth_shards: Path, whole: Path, tmp_path: Path, run: Run
) -> None:
    run("remove", whole, "where=label == 'move_left'")
    keys = keys_of(open_index(whole))
    (tmp_path / "keys.txt").write_text(f"{keys[0]}\n{keys[1]}\n")
    run("subset", synth_shards / "train", tmp_path / "new", "where=label == 'move_left'", "videos=copy")
    before = contents(tmp_path)
    assert "dry run: 2 of 28 samples would be removed" in run(
        "remove", whole, tmp_path / "keys.txt", "--dry-run"
    )
    assert "dry run: 4 removed samples with 0.0 MB would be deleted, and 3 of 4 shards" in run(
        "compact", whole, "--dry-run"
    )
    for words, expected in (
        (("add", whole, tmp_path / "new"), f"it would have {len(keys) + 4} samples; 1 shards with"),
        (("merge", whole, tmp_path / "new", tmp_path / "out"), "would be referred to"),
        (
            ("merge", whole, tmp_path / "new", tmp_path / "out", "videos=copy"),
            "would be copied",
        ),
        (("subset", whole, tmp_path / "out", "where=label == 'move_right'"), "4 samples with"),
        (("reshard", whole, tmp_path / "out"), f"{len(keys)} samples with"),
    ):
        assert expected in run(*words, "--dry-run")
    assert contents(tmp_path) == before
    assert "expected unique keys" in run("add", whole, synth_shards / "train", "--dry-run", code=EXIT_DATA)
