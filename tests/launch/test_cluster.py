"""Cluster files and overrides become the dataclass of their kind, or say what to mend."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from kinemae.launch.cluster import UsageError, read_cluster, split_words


@dataclass(frozen=True, kw_only=True)
class Image:
    name: str
    mounts: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    nodes: int = 1
    time: str | None = None
    share: float = 1.0
    requeue: bool = True
    way: Literal["array", "requeue"] = "array"
    environment: dict[str, str] = field(default_factory=dict)
    hosts: dict[str, int] = field(default_factory=dict)
    image: Image | None = None


def read(tmp_path: Path, text: str, *overrides: str) -> Cluster:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return read_cluster(Cluster, path, list(overrides))


def test_file_and_overrides_become_typed_values(tmp_path: Path) -> None:
    text = "nodes: 4\nshare: 0.5\nrequeue: false\nway: requeue\nimage: {name: a.sif, mounts: [/data, /runs]}"
    read_there = read(tmp_path, text, "nodes=2", "image.name=b c.sif", "hosts={a: 8}")
    image = Image(name="b c.sif", mounts=["/data", "/runs"])
    assert read_there == Cluster(
        nodes=2, share=0.5, requeue=False, way="requeue", image=image, hosts={"a": 8}
    )


@pytest.mark.parametrize("written", ["12:30:00", "010", "yes", "1e3", "2026-01-01", "0x10", "0o7"])
def test_text_stays_as_it_was_written(tmp_path: Path, written: str) -> None:
    there = read(tmp_path, f"time: {written}\nenvironment: {{A: {written}}}")
    assert there.time == there.environment["A"] == written
    assert read_cluster(Cluster, None, [f"time={written}"]).time == written


@pytest.mark.parametrize("hostile", ["a: b", "it's", '"', "$(touch x)", "-x", "a=b", "[", "#", "ü\nz", " "])
def test_an_override_of_text_is_taken_as_it_is(hostile: str) -> None:
    assert read_cluster(Cluster, None, [f"environment.X={hostile}"]).environment == {"X": hostile}


def test_what_follows_a_mapping_is_one_key_and_adds_to_the_file(tmp_path: Path) -> None:
    there = read(tmp_path, "hosts: {a: 1, b: 2}", "hosts.10.0.0.1=8", "hosts.b=4")
    assert there.hosts == {"a": 1, "b": 4, "10.0.0.1": 8}


def test_null_is_none_where_a_value_may_be_missing(tmp_path: Path) -> None:
    assert read(tmp_path, "time: 1:00\nimage: {name: a}", "time=null", "image=null") == Cluster()


def test_an_empty_file_holds_the_defaults(tmp_path: Path) -> None:
    assert read(tmp_path, "# nothing\n") == Cluster()


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("node: 4", [], "no key 'node'; did you mean 'nodes'"),
        ("image: {nam: a}", [], "no key 'image.nam'; did you mean 'name'"),
        ("", ["image.nmae=a"], "no key 'image.nmae'; did you mean 'name'"),
        ("", ["xyz=a"], "no key 'xyz'; there are nodes, time"),
        ("nodes: two", [], "nodes must be a whole number, got 'two'"),
        ("", ["nodes=1.5"], "nodes must be a whole number, got '1.5'"),
        ("requeue: yes", [], "requeue must be true or false, got 'yes'"),
        ("share: .nan", [], "share must be a number, got '.nan'"),
        ("share: nan", [], "share must be a finite number, got 'nan'"),
        ("way: arrays", [], "way must be one of array, requeue, got 'arrays'"),
        ("hosts: [a]", [], "hosts must be a mapping of whole numbers, as in '{a: 8, b: 8}', got \\['a'\\]"),
        ("hosts: {a: many}", [], "hosts.a must be a whole number, got 'many'"),
        ("nodes: 1\nnodes: 2", [], "the key nodes stands twice"),
        ("nodes: [", [], "cannot read the cluster file .*: line 1"),
        ("- a", [], "must hold a mapping of keys to values"),
        ("", ["hosts={a: "], "hosts: '{a: ' is not valid YAML"),
        ("", ["hosts={a:8}"], "hosts: expected a space after the colon of 'a:8'; fix: write {a: 8}"),
        ("", ["nnodes=2"], "no key 'nnodes'; did you mean 'nodes'"),
        ("", ["nodes.a=1"], "nodes.a: nodes is a whole number, it has no a"),
        ("image: {mounts: []}", [], "no value for image.name: set it in the cluster file or as image.name="),
        (
            "masking: tube",
            [],
            "cluster.yaml: no key 'masking'; .* it is a training's config; fix: put .* after --",
        ),
        ("image: a.sif", [], "image must be a mapping of keys to values, got 'a.sif'"),
    ],
)
def test_a_wrong_cluster_says_what_to_mend(
    tmp_path: Path, text: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read(tmp_path, text, *overrides)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"no cluster file at {tmp_path / 'none.yaml'}"):
        read_cluster(Cluster, tmp_path / "none.yaml", [])


def test_the_file_comes_first_and_may_be_left_out() -> None:
    assert split_words(["a.yaml", "b=c"]) == (Path("a.yaml"), ["b=c"])
    assert split_words(["b=c"]) == (None, ["b=c"])
    with pytest.raises(UsageError, match=r"expected an override of the form key=value, got 'pretrain'"):
        split_words(["b=c", "pretrain"])


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (["hosts={a:", "8,", "b:", "8}"], "'hosts={a: 8, b: 8}'"),
        (["c.yaml", "ssh=[-p,", "2222]", "x=1"], "'ssh=[-p, 2222]'"),
    ],
)
def test_an_override_that_a_shell_has_split_is_named_with_its_quotes(words: list[str], fix: str) -> None:
    with pytest.raises(UsageError) as caught:
        split_words(words)
    expected = f"the shell has split it at its spaces; fix: put the whole override in single quotes, {fix}"
    assert str(caught.value).endswith(expected)
