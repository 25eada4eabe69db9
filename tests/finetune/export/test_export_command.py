"""`kinemae finetune export`: each format has the outputs of the model in its own runtime, or is refused."""

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor
from transformers import AutoModel, AutoModelForVideoClassification, AutoVideoProcessor

import kinemae
from kinemae.data_tools.command import run_program
from kinemae.data_tools.components import Component
from kinemae.data_tools.exit_codes import EXIT_CHECKPOINT, EXIT_CONFIG, EXIT_DATA
from kinemae.finetune.__main__ import PROGRAM
from kinemae.finetune.export.static_model import example_clips
from kinemae.finetune.heads.base import build_head
from kinemae.finetune.model_file import FinetunedModel, save_model
from kinemae.finetune.task_model import TaskModel
from kinemae.finetune.tasks.base import build_task
from kinemae.finetune.token_reduction import TokenReduction
from kinemae.pretrain.exported_model import EncoderDescription, build_encoder, save_encoder
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import TokenGrid, normalize
from tests.conversion import without_onednn
from tests.task_models import classification

SHAPE = EncoderShape(width=36, depth=2, heads=2, mlp_width=48, patch=(2, 8, 8))
LINEAR = Component(name="linear", args={"init_std": 0.5})
TRAINED_BY = {
    "task": "finetune",
    "steps": 30,
    "config": {
        "batch": {"global_clips": 8},
        "data": {"train": "/secret/place/train"},
        "weights": "pretrained",
    },
    "encoder_trained_by": {"imported_from": "/secret/vit_b.pth", "format": "VideoMAE pretraining"},
}
RESULT = {"metric": "top1", "top1": 0.75, "top1_ci95": [0.5, 0.875], "floor": {"top1": 0.25}, "videos": 40}


def export(*arguments: object) -> int:
    return run_program(PROGRAM, ["export", *map(str, arguments)])


def describe(shape: EncoderShape = SHAPE, **changes: object) -> EncoderDescription:
    grid = TokenGrid.of(4, 24, shape.patch)
    description = EncoderDescription(shape=shape, grid=grid, reference=grid, frames=4, stride=3, size=24)
    return replace(description, **changes)


def save_tuned(
    folder: Path,
    description: EncoderDescription,
    *,
    head: Component = LINEAR,
    reduction: TokenReduction | None = None,
    chunks: int = 1,
) -> Path:
    torch.manual_seed(0)
    reduction = reduction or TokenReduction()
    pruning = reduction.build_pruning(description.shape)
    encoder = reduction.apply(build_encoder(description), pruning)
    task = classification(5)
    built = build_head(head, width=description.shape.width, outputs=5)
    model = TaskModel(encoder, built, task, pruning=pruning, freeze=True, chunks=chunks)
    save_model(
        folder, FinetunedModel(model=model, description=description), head=head, token_reduction=reduction
    )
    return folder


def save_pretrained(folder: Path, description: EncoderDescription) -> Path:
    torch.manual_seed(0)
    save_encoder(folder, build_encoder(description), description)
    return folder


def clips_of(folder: Path, count: int = 2) -> Tensor:
    return example_clips(kinemae.load(folder).clip, count)


def run_onnx(folder: Path, clips: Tensor) -> dict[str, Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx")
    names = json.loads((folder / "model.json").read_text())["outputs"]
    return dict(zip(names, map(torch.from_numpy, session.run(names, {"clip": clips.numpy()})), strict=True))


def front_matter(folder: Path) -> dict[str, object]:
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


@pytest.mark.slow
def test_onnx_files_have_the_probabilities_of_the_model_at_any_batch_size(tmp_path, capsys):
    run = tmp_path / "run"
    tuned = save_tuned(run / "model", describe(trained_by=TRAINED_BY))
    (run / "result.json").write_text(json.dumps(RESULT))

    assert export(tuned, tmp_path / "onnx", "--to", "onnx", "--json", "license=mit") == 0
    report = json.loads(capsys.readouterr().out)
    assert export(tuned, tmp_path / "int8", "--to", "onnx-int8", "--json") == 0
    int8 = json.loads(capsys.readouterr().out)

    clips = clips_of(tuned, 5)
    for count in (1, 2, 5):
        expected = kinemae.load(tuned).scores(clips[:count]).float()
        scores = run_onnx(tmp_path / "onnx", clips[:count])["scores"]
        assert expected.std() > 0.05
        assert (scores - expected).abs().max() < 1e-5
        assert 0 < (run_onnx(tmp_path / "int8", clips[:count])["scores"] - expected).abs().max() < 0.05
    assert report["opset"] == 20 and 0 < report["difference"] < 1e-4 and report["batch_sizes"] == [1, 3]
    assert int8["bytes"] < 0.7 * report["bytes"]
    described = json.loads((tmp_path / "onnx" / "model.json").read_text())
    assert described["classes"] == ["0", "1", "2", "3", "4"] and described["clip"]["stride"] == 3
    assert front_matter(tmp_path / "onnx")["license"] == "mit"
    check_card((tmp_path / "onnx" / "README.md").read_text())


def check_card(card: str) -> None:
    """Facts of the run are in the card, paths of the machine are not, and what is missing is unknown."""
    assert "| top1 | 0.75 | 0.5 to 0.875 | 0.25 |" in card
    assert "CC BY-NC 4.0, not commercial" in card and "vit_b.pth" in card and "| clips seen | 240 |" in card
    assert "FLOPs of the training | unknown" in card
    assert "secret" not in card and "| None" not in card
    code = re.search(r"```python\n(.*?)```", card, re.S)
    assert code is not None and "onnxruntime" in code[1]


@pytest.mark.nightly
@pytest.mark.slow
def test_a_program_of_torch_export_is_equal_and_its_number_of_clips_may_be_fixed(tmp_path, capsys):
    shape = replace(SHAPE, registers=1, qk_norm=True, positions=Component(name="rotary"))
    encoder = save_pretrained(tmp_path / "encoder", describe(shape))
    assert export(encoder, tmp_path / "any", "--to", "torch-export", "frames=8", "--json") == 0
    assert json.loads(capsys.readouterr().out)["difference"] <= 1e-6
    assert export(encoder, tmp_path / "fixed", "--to", "torch-export", "batch=2", "head=false") == 0

    model = kinemae.load(encoder, frames=8)
    clips = example_clips(model.clip, 4)
    program = torch.export.load(tmp_path / "any" / "model.pt2").module()
    for count in (1, 4):
        tokens, embedding = program(clips[:count])
        assert (tokens - model.features(clips[:count])).abs().max() <= 1e-6
        assert (embedding - model.embed(clips[:count])).abs().max() <= 1e-6
    fixed = torch.export.load(tmp_path / "fixed" / "model.pt2").module()
    with pytest.raises(Exception, match=r"shape|size|Guard"):
        fixed(clips[:3, :, :4])


@pytest.mark.nightly
@pytest.mark.slow
def test_attention_patterns_are_constants_in_onnx(tmp_path):
    windowed = Component(name="windowed", args={"window": [2, 2, 2]})
    learned = Component(name="learned")
    shape = replace(SHAPE, attention=windowed, registers=1, positions=learned, standardize=True)
    encoder = save_pretrained(tmp_path / "encoder", describe(shape))
    assert export(encoder, tmp_path / "onnx", "--to", "onnx", "size=32") == 0
    model = kinemae.load(encoder, size=32)
    clips = example_clips(model.clip, 2)
    assert (run_onnx(tmp_path / "onnx", clips)["tokens"] - model.features(clips)).abs().max() < 1e-4


@pytest.mark.slow
def test_a_detector_of_segments_is_exported(tmp_path):
    torch.manual_seed(0)
    component, head = (
        Component(name="localization", args={"segments": "segments.csv"}),
        Component(name="pyramid", args={"levels": 2}),
    )
    task = build_task(component)
    task.load_state({"classes": ["a", "b"], "majority": 0})
    built = build_head(head, width=36, outputs=task.outputs, output=task.output)
    model = TaskModel(build_encoder(describe()), built, task, freeze=True)
    tuned = tmp_path / "tuned"
    save_model(tuned, FinetunedModel(model=model, description=describe(), task=component), head=head)

    assert export(tuned, tmp_path / "onnx", "--to", "onnx", "batch=2") == 0

    clips = clips_of(tuned, 2)
    scores = run_onnx(tmp_path / "onnx", clips)["scores"]
    assert scores.shape == (2, 3, 6)  # two slices and one position of level 1; classes and geometry
    assert (scores - kinemae.load(tuned).scores(clips)).abs().max() < 1e-5


@pytest.mark.nightly
@pytest.mark.slow
def test_a_model_that_prunes_and_merges_keeps_a_fixed_number_of_tokens_in_onnx(tmp_path, capsys):
    pruned = TokenReduction(pruning=Component(name="motion", args={"threshold": 4.0}))
    tuned = save_tuned(tmp_path / "tuned", describe(), reduction=pruned)
    assert export(tuned, tmp_path / "onnx", "--to", "onnx") == EXIT_CONFIG
    assert "keep=0.5" in capsys.readouterr().err
    half = TokenReduction(pruning=Component(name="motion", args={"keep": 0.5}), merge_per_block=2)
    same = save_tuned(tmp_path / "half", describe(), reduction=half)
    other = TokenReduction(pruning=Component(name="motion", args={"keep": 0.9}), merge_per_block=2)
    tuned = save_tuned(tmp_path / "other", describe(), reduction=other)
    assert export(tuned, tmp_path / "onnx", "--to", "onnx", "keep=0.5") == 0
    clips = clips_of(same, 2)
    expected = kinemae.load(same).scores(clips)
    assert (run_onnx(tmp_path / "onnx", clips)["scores"] - expected).abs().max() < 1e-5


def test_the_own_folder_is_a_copy_with_a_card(tmp_path, capsys):
    tuned = save_tuned(tmp_path / "tuned", describe())
    assert export(tuned, tmp_path / "own", "--to", "kinemae", "--json") == 0
    assert json.loads(capsys.readouterr().out)["difference"] == 0
    assert export(tuned, tmp_path / "alone", "--to", "kinemae", "head=false") == 0

    for file in tuned.iterdir():
        assert (tmp_path / "own" / file.name).read_bytes() == file.read_bytes()
    clips = clips_of(tuned)
    assert torch.equal(kinemae.load(tmp_path / "own").scores(clips), kinemae.load(tuned).scores(clips))
    assert kinemae.load(tmp_path / "alone").task_model is None
    assert "Scores: unknown." in (tmp_path / "own" / "README.md").read_text()


def in_transformers(folder: Path, clips: Tensor, *, has_head: bool) -> Tensor:
    """Run a folder in transformers; its image processor makes the pixels."""
    model = (AutoModelForVideoClassification if has_head else AutoModel).from_pretrained(folder).eval()
    pixels = (
        normalize(clips.permute(0, 2, 3, 4, 1).flatten(2)).unflatten(2, (24, 24, 3)).permute(0, 1, 4, 2, 3)
    )
    skip = {"skip_predictor": True} if model.config.model_type == "vjepa2" and not has_head else {}
    if has_head and model.config.model_type == "videomae":
        model.fc_norm.eps = 1e-6  # not configurable in transformers, which has 1e-5
    with torch.no_grad(), without_onednn():
        output = model(**{model.main_input_name: pixels}, **skip)
    return output.logits if has_head else output.last_hidden_state


@pytest.mark.parametrize("positions", ["flat_sine", "vjepa"])
def test_a_folder_of_transformers_loads_by_its_auto_classes(positions, tmp_path, capsys):
    is_vjepa = positions == "vjepa"
    shape = replace(SHAPE, positions=Component(name=positions), final_norm=is_vjepa)
    args = {"plain": True, "depth": 2, "head_width": 18}
    head = Component(name="attentive", args=args) if is_vjepa else LINEAR
    tuned = save_tuned(tmp_path / "tuned", describe(shape), head=head)
    clips = clips_of(tuned)
    model = kinemae.load(tuned)

    assert export(tuned, tmp_path / "hf", "--to", "huggingface", "--json") == 0
    assert json.loads(capsys.readouterr().out)["difference"] <= (3e-6 if is_vjepa else 1e-5)
    assert export(tuned, tmp_path / "alone", "--to", "huggingface", "head=false") == 0

    tokens = in_transformers(tmp_path / "alone", clips, has_head=False)
    expected = model.features(clips)
    assert (tokens - expected).abs().max() <= 3e-6 * expected.abs().max().clamp(min=1)
    expected = model.task_model.output(clips)[0]
    logits = in_transformers(tmp_path / "hf", clips, has_head=True)
    assert (logits - expected).abs().max() <= 3e-6 * expected.abs().max().clamp(min=1)
    assert (kinemae.load(tmp_path / "hf").scores(clips) - model.scores(clips)).abs().max() <= 3e-6
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert "auto_map" not in config and config["id2label"]["1"] == "1"
    assert front_matter(tmp_path / "hf")["library_name"] == "transformers"
    if is_vjepa:
        assert AutoVideoProcessor.from_pretrained(tmp_path / "hf")


def test_a_model_with_several_parts_per_clip_is_not_written_for_other_systems(tmp_path, capsys):
    tuned = save_tuned(tmp_path / "tuned", describe(), chunks=2)
    assert export(tuned, tmp_path / "out", "--to", "huggingface") == EXIT_CHECKPOINT
    assert "expected clip.chunks=1" in capsys.readouterr().err


def test_an_export_past_its_tolerance_leaves_nothing(tmp_path, capsys):
    encoder = save_pretrained(
        tmp_path / "encoder", describe(replace(SHAPE, positions=Component(name="flat_sine")))
    )
    assert export(encoder, tmp_path / "hf", "--to", "huggingface", "tolerance=0") == EXIT_CHECKPOINT
    assert "hf: expected outputs within 0 of KineMAE's" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--to", "tflite"], EXIT_CONFIG, "--to: expected one of kinemae, videomae, huggingface, onnx"),
        (
            ["--to", "onnx", "batch=0"],
            EXIT_CONFIG,
            "batch must be null or",
        ),
        (["--to", "onnx", "size=20"], EXIT_CONFIG, "cannot be cut into patches"),
        (["--to", "onnx", "keep=0.5"], EXIT_CONFIG, "has no pruning"),
        (["--to", "huggingface", "frames=8"], EXIT_CONFIG, "frames must be null for --to huggingface"),
        (["--to", "huggingface"], EXIT_CHECKPOINT, "model.positions=flat_sine, got sine"),
        (["--to", "onnx", "tolerence=1"], EXIT_CONFIG, "did you mean tolerance"),
    ],
)
def test_wrong_usage_is_one_line_and_writes_nothing(words, code, message, tmp_path, capsys):
    encoder = save_pretrained(tmp_path / "encoder", describe())
    assert export(encoder, tmp_path / "out", *words) == code
    error = capsys.readouterr().err
    assert re.search(message, error) and len(error.strip().splitlines()) == 1, error
    assert not (tmp_path / "out").exists()


def test_a_missing_runtime_is_named_with_its_command(tmp_path, capsys, monkeypatch):
    encoder = save_pretrained(
        tmp_path / "encoder", describe(replace(SHAPE, positions=Component(name="flat_sine")))
    )
    found = importlib.util.find_spec
    missing = ("onnxruntime", "transformers")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else found(name))
    for name, install in (("onnx", "'kinemae[export]'"), ("huggingface", "'kinemae[huggingface]'")):
        assert export(encoder, tmp_path / "out", "--to", name) == EXIT_CONFIG
        assert f"fix: pip install {install} (or check=false)" in capsys.readouterr().err
    assert export(encoder, tmp_path / "out", "--to", "huggingface", "check=false") == 0
    assert "was not run" in (tmp_path / "out" / "README.md").read_text()
    assert export(encoder, tmp_path / "out", "--to", "huggingface", "check=false") == EXIT_DATA
