"""Cluster files and overrides: the config reader of all commands, with other launchers' names for keys."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kinemae.data_tools.command import parse_arguments
from kinemae.launch.__main__ import PROGRAM
from kinemae.launch.cluster import read_cluster


@dataclass(frozen=True, kw_only=True)
class Image:
    name: str
    mounts: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    nodes: int = 1
    time: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    hosts: dict[str, int] = field(default_factory=dict)
    image: Image | None = None


def read(tmp_path: Path, text: str, *overrides: str) -> Cluster:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return read_cluster(Cluster, path, list(overrides))


def test_file_and_overrides_become_typed_values(tmp_path: Path) -> None:
    text = "nodes: 4\nimage: {name: a.sif, mounts: [/data, /runs]}\nenvironment: {A: 1, B: true}"
    cluster = read(tmp_path, text, "nodes=2", "image.name=b c.sif", "hosts={a: 8}")
    image = Image(name="b c.sif", mounts=["/data", "/runs"])
    assert cluster == Cluster(nodes=2, image=image, hosts={"a": 8}, environment={"A": "1", "B": "true"})


@pytest.mark.parametrize(
    "text", ["on", "No", "True", "1e3", "1e400", "1.50", ".5", "0x10", "1_000", "+1", "08"]
)
def test_texts_stay_as_they_are_written(tmp_path: Path, text: str) -> None:
    in_file = (
        f"environment:\n  A: {text}\n  {text}: ''\nimage: {{name: {text}, mounts: [{text}]}}\ntime: {text}"
    )
    image = Image(name=text, mounts=[text])
    expected = Cluster(environment={"A": text, text: ""}, image=image, time=text)
    assert read(tmp_path, in_file) == expected
    overrides = [f"environment.A={text}", f"image={{name: {text}, mounts: [{text}]}}", f"time={text}"]
    assert read(tmp_path, f"environment: {{{text}: ''}}", *overrides) == expected


def test_no_value_is_an_empty_text_in_the_environment(tmp_path: Path) -> None:
    expected = Cluster(environment={"A": "", "B": ""}, time=None)
    assert read(tmp_path, "environment:\n  A:\ntime:", "environment.B=") == expected


def test_merged_mappings_keep_their_texts(tmp_path: Path) -> None:
    in_file = "nodes: &n 4\nenvironment: {<<: &e {A: on}, B: *n}"
    assert read(tmp_path, in_file) == Cluster(nodes=4, environment={"A": "on", "B": "4"})


def test_the_names_of_a_mapping_may_contain_dots_and_add_to_the_file(tmp_path: Path) -> None:
    cluster = read(tmp_path, "hosts: {a: 1, b: 2}", "hosts.10.0.0.1=8", "hosts.b=4")
    assert cluster.hosts == {"a": 1, "b": 4, "10.0.0.1": 8}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["node=4"], "config key node: unknown key; did you mean nodes"),
        (["hosts=[a]"], "hosts: expected a mapping, as in 'hosts={a: b}', got"),
        (["hosts={a: many}"], "hosts.a: expected a whole number, got 'many'"),
        (["hosts={a:8}"], "hosts: expected a space after the colon of 'a:8'; fix: write {a: 8}"),
        (["hosts={a: {b: [1]}}"], r"hosts.a: expected a whole number, got {'b': \[1\]}"),
        (["environment.A=a: b"], r"environment.A: expected a text, got {'a': 'b'}"),
        (["environment.A=a #b"], "environment.A: YAML reads 'a #b' as 'a'; fix: quote it"),
        (["environment.A=null"], "environment.A: expected a value, got null; fix: quote it if it is text"),
        (["nnodes=2"], "config key nnodes: unknown key; did you mean nodes"),
        (["time=12:30:00"], "time: YAML reads 12:30:00 as another number; fix: quote it if it is text"),
    ],
)
def test_a_wrong_cluster_is_refused_by_key(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_cluster(Cluster, None, overrides)


def test_the_file_comes_first_and_is_optional() -> None:
    for words, file in ((["a.yaml", "b=c"], "a.yaml"), (["b=c"], None)):
        arguments = parse_arguments(PROGRAM, ["local", *words, "--", "pretrain", "demo", "x=1"])
        assert (arguments.cluster, arguments.overrides) == (file, ["b=c"])
        assert arguments.job == ["pretrain", "demo", "x=1"]
    for words in (["b=c", "pretrain", "CONFIG"], ["pretrain", "demo"]):
        with pytest.raises(ValueError, match=r"or a job after --, got .*; fix: write -- before the job"):
            parse_arguments(PROGRAM, ["local", *words])


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (["hosts={a:", "8,", "b:", "8}"], "'hosts={a: 8, b: 8}'"),
        (["c.yaml", "ssh=[-p,", "2222]", "x=1"], "'ssh=[-p, 2222]'"),
    ],
)
def test_an_override_that_a_shell_has_split_is_shown_with_quotes(words: list[str], fix: str) -> None:
    with pytest.raises(ValueError, match="put the whole override in single quotes") as caught:
        parse_arguments(PROGRAM, ["ssh", *words])
    assert fix in str(caught.value)
