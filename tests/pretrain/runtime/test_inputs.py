"""A run continues if its data or encoders have moved; other content at the same path is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kinemae.data_tools.command import DataError
from kinemae.data_tools.config import load_config
from kinemae.data_tools.stream.mixture import Mixture, locate_sample
from kinemae.finetune.config import FinetuneConfig
from kinemae.finetune.train import prepare
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.runtime.inputs import encoder_inputs, read_inputs
from kinemae.pretrain.runtime.run_folder import open_run_dir
from kinemae.pretrain.training import Plan, make_plan

Build = Callable[..., PretrainConfig]


def begin(config: PretrainConfig) -> Plan:
    """Record the first start of a run."""
    plan = make_plan(config)
    assert not plan.continues
    open_run_dir(Path(config.run_dir), config, plan.inputs)
    return plan


@pytest.fixture
def data(tmp_path: Path, synth_shards: Path) -> Path:
    """A copy of a data set, to be moved and changed."""
    return Path(shutil.copytree(synth_shards / "unlabelled", tmp_path / "data"))


def test_a_run_continues_with_moved_data_and_another_spelling_of_the_path(
    small_config: Build, tmp_path: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begin(small_config(f"data.shards={data}"))
    assert make_plan(small_config(f"data.shards={data}//")).continues
    data.rename(tmp_path / "elsewhere")
    with caplog.at_level("INFO", logger="kinemae"):
        assert make_plan(small_config(f"data.shards={tmp_path / 'elsewhere'}")).continues
    assert "the same content, elsewhere" in caplog.text
    with pytest.raises(ValueError, match=r"\(seed: run 3, config 4\)"):
        make_plan(small_config(f"data.shards={tmp_path / 'elsewhere'}", "seed=4"))


def test_the_loader_is_prepared_before_the_data_are_opened(
    small_config: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[int] = []
    monkeypatch.setattr(
        "kinemae.pretrain.training.prepare_training_loader", lambda split, workers: prepared.append(workers)
    )
    config = small_config(f"data.shards={tmp_path / 'absent'}", "data.num_workers=2")
    with pytest.raises(DataError, match="absent"):
        make_plan(config)
    assert prepared == []
    with pytest.raises(DataError, match="absent"):
        make_plan(config, prepares_loader=True)
    assert prepared == [2]


def test_other_data_is_refused_at_any_path(small_config: Build, data: Path, synth_shards: Path) -> None:
    begin(small_config(f"data.shards={data}"))
    with pytest.raises(ValueError, match=r"\(data\.shards: run .*data', config .*train'\)"):
        make_plan(small_config(f"data.shards={synth_shards / 'train'}"))
    shutil.rmtree(data)
    shutil.copytree(synth_shards / "train", data)
    with pytest.raises(
        ValueError, match=r"\(data\.shards: .*data with fingerprint \w+-\w+', config .* with fing"
    ):
        make_plan(small_config(f"data.shards={data}"))


def test_without_recorded_inputs_paths_are_compared(small_config: Build, data: Path) -> None:
    begin(small_config(f"data.shards={data}"))
    (Path(small_config().run_dir) / "inputs.json").unlink()
    assert make_plan(small_config(f"data.shards={data}")).continues
    with pytest.raises(ValueError, match=r"\(data\.shards: "):
        make_plan(small_config(f"data.shards={data}/"))


@pytest.mark.parametrize("text", ["", "{", '[{"key": "data.shards", "of_a_later_version": 1}]', "[1]"])
def test_an_unreadable_record_of_inputs_is_named_with_a_fix(
    small_config: Build, data: Path, text: str
) -> None:
    config = small_config(f"data.shards={data}")
    begin(config)
    path = Path(config.run_dir) / "inputs.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"inputs\.json: expected the inputs of the run .*; fix: .* remove it"
    ):
        make_plan(config)
    path.unlink()
    assert make_plan(config).continues


def test_moved_sets_of_a_mixture_keep_their_clips(
    small_config: Build, tmp_path: Path, data: Path, synth_shards: Path
) -> None:
    def mixed(first: Path, second: Path, *weights: float) -> PretrainConfig:
        mixture = json.dumps({str(first): weights[0], str(second): weights[1]})
        return small_config("data.shards=null", f"data.mixture={mixture}")

    shutil.copytree(synth_shards / "train", tmp_path / "first")
    before = begin(mixed(tmp_path / "first", data, 1, 3))
    (tmp_path / "first").rename(tmp_path / "xyz")  # comes after the other now
    after = make_plan(mixed(tmp_path / "xyz", data, 1, 3))
    assert after.continues
    clips = [
        [locate_sample(plan.index, seed=3, position=i).key for i in range(300)] for plan in (before, after)
    ]
    assert clips[0] == clips[1]
    assert isinstance(after.index, Mixture)
    assert str(after.index.sets[str(tmp_path / "first")].folder) == str(tmp_path / "xyz")
    with pytest.raises(ValueError, match=r"data\.mixture\..*xyz: run None, config 3"):
        make_plan(mixed(tmp_path / "xyz", data, 3, 1))
    shutil.rmtree(tmp_path / "xyz")
    shutil.copytree(synth_shards / "validation", tmp_path / "first")
    with pytest.raises(ValueError, match=r"\(data\.mixture: .*first with fingerprint"):
        make_plan(mixed(tmp_path / "first", data, 1, 3))


def test_moved_sets_of_a_concatenation_keep_their_clips_and_a_condition_belongs_to_the_run(
    small_config: Build, tmp_path: Path, data: Path, synth_shards: Path
) -> None:
    def joined(first: Path, *overrides: str) -> PretrainConfig:
        return small_config("data.shards=null", f"data.concatenate=[{first}, {data}]", *overrides)

    where = "data.where=frames > 1"
    shutil.copytree(synth_shards / "train", tmp_path / "first")
    before = begin(joined(tmp_path / "first", where))
    (tmp_path / "first").rename(tmp_path / "xyz")  # comes after the other now
    after = make_plan(joined(tmp_path / "xyz", where))
    assert after.continues
    clips = [
        [locate_sample(plan.index, seed=3, position=i).key for i in range(99)] for plan in (before, after)
    ]
    assert clips[0] == clips[1]
    for override in ("data.where=null", "data.weight=frames"):
        with pytest.raises(ValueError, match=override.partition("=")[0]):
            make_plan(joined(tmp_path / "xyz", where, override))


def test_encoders_are_identified_by_their_weights_at_every_config_key(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("same", 1.0), ("other", 2.0)):
        (tmp_path / name).mkdir()
        save_file({"w": torch.full((100_000,), value)}, tmp_path / name / "encoder.safetensors")
    one, same, other = (
        encoder_inputs("init_from", str(tmp_path / name))[0] for name in ("a", "same", "other")
    )
    assert one.fingerprint == same.fingerprint != other.fingerprint
    nested = {"name": "weighted", "args": {"parts": {"teacher": {"args": {"encoder": str(tmp_path / "a")}}}}}
    (found,) = encoder_inputs("target", nested)
    assert found.key == "target.args.parts.teacher.args.encoder" and found.fingerprint == one.fingerprint
    assert encoder_inputs("init_from", None) == [] == encoder_inputs("encoder", str(tmp_path / "none"))


def test_a_fine_tuning_continues_with_moved_shards_and_encoder(
    tmp_path: Path, synth_shards: Path, repo: Path
) -> None:
    def config(*places: Path) -> FinetuneConfig:
        names = ("encoder", "data.train", "data.validation", "run_dir")
        keys = [f"{name}={place}" for name, place in zip(names, (*places, tmp_path / "run"), strict=True)]
        return load_config(
            FinetuneConfig,
            repo / "configs/finetune/demo.yaml",
            [*keys, "engine.device=cpu", "epochs=1", "data.leaks=warn"],
        )

    encoder = Path(shutil.copytree(repo / "tests" / "data" / "exported", tmp_path / "encoder"))
    first = config(encoder, synth_shards / "train", synth_shards / "validation")
    open_run_dir(tmp_path / "run", first, prepare(first).inputs)
    assert [entry.key for entry in read_inputs(tmp_path / "run")] == [
        "data.train",
        "data.validation",
        "encoder",
    ]
    moved = [shutil.copytree(synth_shards / name, tmp_path / name) for name in ("train", "validation")]
    shutil.move(encoder, tmp_path / "moved")
    assert prepare(config(tmp_path / "moved", *map(Path, moved))).continues
    with pytest.raises(ValueError, match=r"\(data\.validation: "):
        prepare(config(tmp_path / "moved", Path(moved[0]), Path(moved[0])))


@pytest.mark.parametrize("program", ["pretrain", "finetune"])
def test_only_the_first_process_of_a_run_checks_the_shards(  # noqa: PLR0913 - fixtures
    small_config: Build,
    data: Path,
    tmp_path: Path,
    repo: Path,
    synth_shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
) -> None:
    def check() -> None:
        if program == "pretrain":
            make_plan(small_config(f"data.shards={data}"))
            return
        validation = shutil.copytree(synth_shards / "validation", tmp_path / "validation", dirs_exist_ok=True)
        (validation / "shard-000000.tar").unlink()
        keys = {"encoder": repo / "tests" / "data" / "exported", "data.train": synth_shards / "train"}
        keys |= {"data.validation": validation, "run_dir": tmp_path / "run"}
        given = [*(f"{name}={value}" for name, value in keys.items()), "engine.device=cpu", "data.leaks=warn"]
        prepare(load_config(FinetuneConfig, repo / "configs/finetune/demo.yaml", given))

    (data / "shard-000000.tar").unlink()
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RANK", "1")
    check()
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(DataError, match=r"lacks 1 of its shards, first shard-000000.tar"):
        check()
