"""Command lines: parsing, one-line errors, exit codes."""

import argparse
from pathlib import Path

import pytest

from kinemae.data_tools.command import (
    CheckpointError,
    Command,
    DataError,
    Program,
    Stopped,
    log,
    run_program,
    writing_to,
)

seen: list[argparse.Namespace] = []


def remember(arguments: argparse.Namespace) -> None:
    seen.append(arguments)


def program(run=remember, **more: object) -> Program:  # type: ignore[no-untyped-def]
    command = Command(
        name="make",
        help="make things",
        example="kinemae tool make here size=3",
        run=run,
        positionals=(("out", "folder to make"),),
        options=(("--dry-run", "start nothing"),),
        **more,  # type: ignore[arg-type]
    )
    return Program(name="tool", description="Makes things.", commands=(command,))


def raising(error: BaseException) -> Program:
    def fail(arguments: argparse.Namespace) -> None:
        raise error

    return program(run=fail)


def test_a_command_gets_positionals_options_and_overrides():
    assert run_program(program(), ["make", "here", "a.b=1", "--dry-run", "c=2"]) == 0
    assert (seen[-1].out, seen[-1].dry_run, seen[-1].overrides) == ("here", True, ["a.b=1", "c=2"])


@pytest.mark.parametrize(
    ("word", "page"),
    [
        ("b=2", None),
        ("b=" + "x" * 300, None),
        ("where=a/b == 'https://c'", None),
        ("here", "here"),
        ("./b=2", "./b=2"),
        ("made=1", "made=1"),
        ("s3://bucket/b=2", "s3://bucket/b=2"),
        ("https://host/x?b=2", "https://host/x?b=2"),
    ],
)
def test_an_override_in_place_of_an_optional_positional_is_no_path(
    word: str, page: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("made=1").touch()
    assert run_program(program(optional=("page", "a file")), ["make", "out", word, "a.b=1"]) == 0
    assert (seen[-1].page, seen[-1].overrides) == (page, ["a.b=1"] if page else [word, "a.b=1"])


def test_a_program_of_one_unnamed_command_has_no_subcommand():
    only = Command(name="", help="run", example="x", run=remember, positionals=(("config", "a file"),))
    assert (
        run_program(Program(name="tool", description="Runs.", commands=(only,)), ["demo.yaml", "steps=3"])
        == 0
    )
    assert (seen[-1].config, seen[-1].overrides) == ("demo.yaml", ["steps=3"])


def both(**more: object) -> Program:
    """A program with an unnamed command and a named one."""
    train = Command(name="", help="", example="x", run=remember, positionals=(("config", "a file"),))
    look = Command(
        name="look", help="look first", example="y", run=remember, positionals=(("video", "a file"),),
        value_options=(("--out", "FOLDER", "where to"),),
    )  # fmt: skip
    return Program(name="tool", description="Trains.", commands=(train, look))


def test_a_program_may_have_an_unnamed_and_named_commands():
    assert run_program(both(), ["demo.yaml", "steps=3"]) == 0
    assert (seen[-1].config, seen[-1].overrides) == ("demo.yaml", ["steps=3"])
    assert run_program(both(), ["look", "a.mp4", "steps=3"]) == 0
    assert (seen[-1].video, seen[-1].out, seen[-1].overrides) == ("a.mp4", None, ["steps=3"])


def test_a_file_named_like_a_command_is_given_as_a_path():
    assert run_program(both(), ["./look"]) == 0
    assert seen[-1].config == "./look"


@pytest.mark.parametrize("place", range(1, 4))
def test_an_option_with_a_value_may_come_anywhere_after_its_command(place: int):
    words = ["look", "a.mp4", "steps=3"]
    assert run_program(both(), [*words[:place], "--out", "here", *words[place:]]) == 0
    assert (seen[-1].video, seen[-1].out, seen[-1].overrides) == ("a.mp4", "here", ["steps=3"])


def test_help_of_the_unnamed_command_names_the_others(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        run_program(both(), ["--help"])
    assert caught.value.code == 0
    assert "kinemae tool look --help  look first" in capsys.readouterr().out


def test_a_command_may_take_a_list_in_place_of_overrides():
    assert run_program(program(variadic=("files", "some files")), ["make", "here", "one", "two"]) == 0
    assert (seen[-1].files, seen[-1].overrides) == (["one", "two"], [])


@pytest.mark.parametrize(
    "error, code",
    [
        (ValueError("steps must be above 0"), 2),
        (DataError("no folder of shards"), 3),
        (CheckpointError("a tensor is missing"), 4),
        (KeyboardInterrupt(), 130),
        (Stopped("stopped on a signal"), 75),
    ],
)
def test_an_expected_error_gives_one_line_and_its_exit_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
):
    assert run_program(raising(error), ["make", "here"]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert str(error) in lines[0]


def test_an_unexpected_error_is_raised():
    with pytest.raises(ZeroDivisionError):
        run_program(raising(ZeroDivisionError()), ["make", "here"])


def test_an_override_with_dashes_gets_a_fix(capsys: pytest.CaptureFixture[str]):
    assert run_program(program(), ["make", "here", "--steps=3"]) == 2
    assert "without dashes, got '--steps=3'; fix: write steps=3" in capsys.readouterr().err


def test_a_missing_positional_is_wrong_usage(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        run_program(program(), ["make"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith("the following arguments are required: out\n")


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        run_program(program(), ["make", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "kinemae tool make here size=3" in text and "folder to make" in text


def test_log_lines_have_the_rank_if_there_are_several(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def say(arguments: argparse.Namespace) -> None:
        log.info("hello")

    run_program(program(run=say), ["make", "here"])
    assert "rank" not in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    run_program(program(run=say), ["make", "here"])
    assert " rank 2 INFO hello" in capsys.readouterr().err


def test_a_full_disk_gives_a_one_line_error():
    with (
        pytest.raises(DataError, match="cannot write to out: No space left on device; fix that and run"),
        writing_to(Path("out")),
    ):
        raise OSError(28, "No space left on device")
