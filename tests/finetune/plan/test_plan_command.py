"""`finetune plan` and `auto=true` on encoded videos."""

import json
import shlex

import pytest
import yaml

from kinemae.data_tools.command import run_program
from kinemae.data_tools.config import load_config
from kinemae.finetune.__main__ import PROGRAM
from kinemae.finetune.config import FinetuneConfig
from kinemae.finetune.plan.plan import follow_plan
from tests.finetune.test_finetune_run import encoder  # noqa: F401

pytestmark = pytest.mark.slow


def finetune(*arguments):
    return run_program(PROGRAM, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def auto(common, encoder):  # noqa: F811
    """Arguments of a run without the keys that a plan sets."""
    return [*common[:4], "engine.device=cpu", f"encoder={encoder}", "auto=true"]


def planned_config(capsys, *arguments):
    assert finetune("train", *arguments, "--dry-run") == 0
    text = capsys.readouterr().out
    return yaml.safe_load(text[: text.rindex("\n{")])


def test_the_plan_has_facts_settings_sources_and_a_command(synth_shards, encoder, capsys):  # noqa: F811
    assert finetune("plan", synth_shards / "train", f"encoder={encoder}", "--json") == 0
    plan = json.loads(capsys.readouterr().out)

    assert plan["facts"]["labelled"] == 32 and plan["facts"]["classes"] == 8
    assert plan["facts"]["motion"] > 1 and plan["facts"]["floors"]["chance"] == 0.125
    assert plan["settings"]["adapt.method"] == "frozen" and plan["settings"]["augment.flip"] is False
    assert all(each["why"] and each["source"] for each in plan["advice"])
    assert plan["command"].startswith("kinemae finetune train own_clips_laptop data.train=")
    assert any("no validation set" in note for note in plan["notes"])


def test_the_text_shows_the_same_and_the_users_choice(synth_shards, encoder, capsys):  # noqa: F811
    folder = synth_shards / "train"
    given = [f"encoder={encoder}", f"data.validation={synth_shards / 'validation'}", "adapt.method=full"]
    assert finetune("plan", folder, *given) == 0
    text = capsys.readouterr().out

    assert f"videos      32 in {folder}" in text and "\nclasses     8, with 4 to 4 videos" in text
    assert "your choice\n  adapt.method=full\n" in text
    assert "24 validation videos: the 95 % interval of an accuracy is about" in text
    assert "optim.layer_decay=0.7" in text and "kinemae finetune train own_clips_laptop" in text


def test_a_folder_without_labels_is_refused(synth_shards, encoder, capsys):  # noqa: F811
    assert finetune("plan", synth_shards / "unlabelled", f"encoder={encoder}") == 3
    assert "expected labelled videos, got no labels" in capsys.readouterr().err


def test_the_command_of_a_plan_is_accepted(synth_shards, encoder, capsys, tmp_path):  # noqa: F811
    given = [f"encoder={encoder}", f"data.validation={synth_shards / 'validation'}"]
    assert finetune("plan", synth_shards / "train", *given, f"run_dir={tmp_path / 'run'}", "--json") == 0
    plan = json.loads(capsys.readouterr().out)

    words = shlex.split(plan["command"])
    config = planned_config(capsys, *words[3:], "engine.device=cpu")
    assert config["adapt"]["method"] == "frozen" and config["epochs"] == plan["settings"]["epochs"]


def test_auto_follows_the_plan_and_overrides_win(auto, capsys, tmp_path):
    config = planned_config(capsys, *auto, f"run_dir={tmp_path / 'run'}", "optim.lr=0.5", "head=attentive")

    assert config["adapt"]["method"] == "frozen" and config["augment"]["flip"] is False
    assert config["optim"]["lr"] == 0.5 and config["optim"]["weight_decay"] == 0.05
    assert config["head"] == {"name": "attentive", "args": {}}
    assert config["auto"] is True


@pytest.mark.parametrize(
    ("given", "planned"),
    [
        ("augment.flip_pairs={move_left: move_right}", "augment.flip"),
        ("clip.fps=4", "clip.stride"),
        ("head.args.norm=layer", "head"),
        ("task.args={label: label}", "task.args.label_smoothing"),
    ],
)
def test_a_choice_that_excludes_a_planned_key_is_kept(given, planned, synth_shards, encoder, capsys):  # noqa: F811
    assert finetune("plan", synth_shards / "train", f"encoder={encoder}", given, "--json") == 0
    assert planned not in json.loads(capsys.readouterr().out)["settings"]


def test_a_continued_run_keeps_its_plan(auto, capsys, tmp_path):
    run_dir = tmp_path / "run"
    planned = planned_config(capsys, *auto, f"run_dir={run_dir}")
    run_dir.mkdir()
    planned["epochs"] = 77  # as if the rules had been others
    (run_dir / "config.yaml").write_text(yaml.safe_dump(planned))
    overrides = [*map(str, auto[1:]), f"run_dir={run_dir}"]

    config = follow_plan(load_config(FinetuneConfig, auto[0], overrides), auto[0], overrides)

    assert config.epochs == 77 and config.adapt.method == "frozen"
