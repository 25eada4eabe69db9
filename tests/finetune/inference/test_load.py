"""`kinemae.load` finds a model in every folder and file that holds one, or says what to give instead."""

import shutil
import sys

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

import kinemae
from kinemae.data_tools.command import CheckpointError
from kinemae.data_tools.config import load_config, to_yaml
from kinemae.finetune.config import FinetuneConfig
from kinemae.finetune.inference import hub
from tests.conversion import huggingface_classification
from tests.finetune.test_model_file import saved

COMMIT = "0" * 40
CLIPS = torch.randint(0, 256, (2, 3, 4, 16, 16), dtype=torch.uint8)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A cache of huggingface_hub without a network; returns the snapshot of a repository."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def snapshot(name):
        repository = cache / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(COMMIT)
        return repository / "snapshots" / COMMIT

    return snapshot


def test_a_run_gives_the_model_that_its_scores_are_of(tmp_path):
    run_dir = tmp_path / "run"
    last, best = (saved(run_dir / name).output(CLIPS)[0] for name in ("model", "best"))
    (run_dir / "best" / "validation.json").write_text('{"step": 3}')
    overrides = ["data.train=train", "epochs=1", f"run_dir={run_dir}"]
    for chosen, expected in (("best", best), ("last", last)):
        config = load_config(FinetuneConfig, None, [*overrides, f"evaluate.checkpoint={chosen}"])
        (run_dir / "config.yaml").write_text(to_yaml(config))
        assert kinemae.load(run_dir).scores(CLIPS).equal(expected.double().softmax(dim=1))
    assert not best.equal(last)


def test_a_pretraining_run_gives_its_encoder(tmp_path):
    saved(tmp_path / "encoder")
    (tmp_path / "config.yaml").write_text("masking: {name: tube}")
    (tmp_path / "encoder" / "head.json").unlink()
    model = kinemae.load(tmp_path)
    assert model.task_model is None and model(CLIPS).equal(kinemae.load(tmp_path / "encoder")(CLIPS))


def test_a_folder_of_transformers_is_converted(tmp_path, hub_cache):
    reference = huggingface_classification("tiny", 3).eval()
    reference.save_pretrained(tmp_path / "model")
    clips = torch.randint(0, 256, (2, 3, 8, 24, 24), dtype=torch.uint8)
    model = kinemae.load(tmp_path / "model")
    mean, std = (torch.tensor(each).view(3, 1, 1, 1) for each in (model.transform.mean, model.transform.std))
    with torch.no_grad():
        logits = reference(((clips / 255 - mean) / std).transpose(1, 2)).logits
    assert torch.allclose(model.scores(clips), logits.double().softmax(dim=1), atol=3e-6)
    assert model.classes == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert kinemae.load(tmp_path / "model" / "model.safetensors").encoder.shape.width == 24
    reference.save_pretrained(hub_cache("someone/videomae"))
    assert kinemae.load("someone/videomae").scores(clips).equal(model.scores(clips))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames": 0}, "a clip of 0 frames at 16x16 cannot be cut into patches"),
        ({"size": 17}, "a clip of 4 frames at 17x17 cannot be cut"),
        ({"device": "gpu"}, r"device: expected a device of this machine, got 'gpu' \(.*\); fix: device="),
        ({"dtype": "float16"}, "dtype: expected a floating-point type, got 'float16'; fix: dtype="),
        ({"dtype": torch.int8}, "dtype: expected a floating-point type, got torch.int8"),
    ],
)
def test_wrong_settings_are_errors(tmp_path, settings, message):
    saved(tmp_path)
    with pytest.raises(ValueError, match=message):
        kinemae.load(tmp_path, **settings)


def test_a_model_of_the_hub_is_the_folder_that_was_uploaded(tmp_path, hub_cache, monkeypatch):
    saved(tmp_path / "model")
    shutil.copytree(tmp_path / "model", hub_cache("someone/walks"))
    scores = kinemae.load(tmp_path / "model").scores(CLIPS)
    assert kinemae.load("someone/walks", revision="main").scores(CLIPS).equal(scores)
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "someone" / "walks")  # a local folder has priority
    assert not kinemae.load("someone/walks").scores(CLIPS).equal(scores)
    with pytest.raises(ValueError, match="revision: expected none for the path someone/walks, got 'main'"):
        kinemae.load("someone/walks", revision="main")


def test_a_name_without_a_model_is_an_error(tmp_path, hub_cache, monkeypatch):
    with pytest.raises(CheckpointError, match=r"^no/model: expected a local folder, or a .* hub"):
        kinemae.load("no/model")
    hub_cache("someone/words").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"someone/words: expected encoder.safetensors or .* on the"):
        kinemae.load("someone/words")
    with pytest.raises(CheckpointError, match="got no such path; fix: correct it"):
        kinemae.load(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"expected encoder.json .*, got an empty folder"):
        (tmp_path / "empty").mkdir()
        kinemae.load(tmp_path / "empty")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"fix: correct the path, or pip install 'kinemae\[hub\]'"):
        kinemae.load("someone/walks")


def test_only_files_of_models_are_downloaded(monkeypatch, tmp_path):
    asked = []

    def snapshot_download(hub_id, revision, allow_patterns):
        asked.append((hub_id, revision, allow_patterns))
        (tmp_path / "pytorch_model.bin").touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert hub.download("someone/videomae", revision="v2") == tmp_path
    assert [(hub_id, revision) for hub_id, revision, _ in asked] == [("someone/videomae", "v2")] * 2
    assert "pytorch_model.bin" not in asked[0][2]  # only without safetensors
    assert not any(name.endswith(".py") or "*" in name for _, _, names in asked for name in names)
