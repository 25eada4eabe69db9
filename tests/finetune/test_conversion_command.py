"""`kinemae finetune import` and `export` on the command line, and models that they reject."""

import json
import os
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import VideoMAEForPreTraining, VideoMAEForVideoClassification, VideoMAEImageProcessor

from kinemae.data_tools.command import CheckpointError, run_program
from kinemae.data_tools.components import Component
from kinemae.data_tools.config import load_config, to_yaml
from kinemae.data_tools.exit_codes import EXIT_CHECKPOINT, EXIT_CONFIG, EXIT_DATA
from kinemae.data_tools.index import open_index
from kinemae.finetune.__main__ import PROGRAM
from kinemae.finetune.build import build_model, describe_encoder
from kinemae.finetune.config import FinetuneConfig
from kinemae.finetune.conversion.huggingface import huggingface_tensors, write_huggingface
from kinemae.finetune.conversion.model_bundle import ModelBundle, load_bundle, save_bundle
from kinemae.finetune.conversion.options import FLAT_SINE
from kinemae.finetune.conversion.videomae import videomae_tensors
from kinemae.finetune.heads.base import build_head
from kinemae.finetune.model_file import FinetunedModel, save_model
from kinemae.pretrain.exported_model import (
    DecoderDescription,
    EncoderDescription,
    build_decoder,
    build_encoder,
)
from kinemae.pretrain.model.sizes import DecoderShape, EncoderShape
from kinemae.pretrain.model.tokens import TokenGrid, normalize, patchify
from tests.conversion import huggingface_classification, huggingface_pretraining, videomae_names
from tests.task_models import classification

SHAPE = EncoderShape(width=24, depth=2, heads=3, mlp_width=48, patch=(2, 8, 8), positions=FLAT_SINE)
GRID = TokenGrid.of(4, 16, SHAPE.patch)
DESCRIPTION = EncoderDescription(shape=SHAPE, grid=GRID, reference=GRID, frames=4, stride=3, size=16)
DECODER = DecoderDescription(
    shape=DecoderShape(width=16, depth=1, heads=2, positions=FLAT_SINE),
    kind="self",
    memory_width=24,
    values=SHAPE.patch_values,
    noise_conditioned=False,
    grid=GRID,
    reference=GRID,
)
TINY_FILE = ["frames=8", "size=24", "heads=3", "decoder_heads=2"]


def command(*arguments: object) -> int:
    return run_program(PROGRAM, [str(argument) for argument in arguments])


def a_bundle(
    description: EncoderDescription = DESCRIPTION, decoder: DecoderDescription | None = None
) -> ModelBundle:
    torch.manual_seed(0)
    bundle = ModelBundle(
        description=description,
        encoder=build_encoder(description),
        decoder_description=decoder,
        decoder=build_decoder(decoder) if decoder else None,
    )
    with torch.no_grad():
        for module in filter(None, (bundle.encoder, bundle.decoder)):
            for name, parameter in module.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(std=0.3)  # the key bias too, which training leaves above 0
    return bundle


def shaped(**changes: object) -> ModelBundle:
    return a_bundle(replace(DESCRIPTION, shape=replace(SHAPE, **changes)))


def headed(*, final_norm: bool = False, **args: object) -> ModelBundle:
    bundle = shaped(final_norm=final_norm)
    return replace(
        bundle, head=build_head(Component(name="linear", args=args), width=24, outputs=2), classes=("a", "b")
    )


def test_a_videomae_round_trip_is_exact(tmp_path, capsys):
    for name, model in (
        ("pretrained", huggingface_pretraining("tiny")),
        ("tuned", huggingface_classification("tiny", 4)),
    ):
        theirs, ours, back = (tmp_path / f"{name}.{kind}" for kind in ("pth", "ours", "back"))
        torch.save({"model": videomae_names(model)}, theirs)

        assert command("import", theirs, ours, *TINY_FILE, "stride=2", "--json") == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["stride"] == 2
        assert command("export", ours, back, "--to", "videomae") == 0

        written = torch.load(back, weights_only=True)["model"]
        assert written.keys() == videomae_names(model).keys()
        assert all(torch.equal(value, written[key]) for key, value in videomae_names(model).items())
        assert load_bundle(ours).description.stride == 2


def test_an_import_that_is_killed_while_writing_is_repeated(tmp_path, monkeypatch):
    theirs = tmp_path / "theirs"
    huggingface_pretraining("tiny").save_pretrained(theirs)
    monkeypatch.setattr("kinemae.finetune.conversion.command._remove", lambda path: None)  # as after a kill
    monkeypatch.setattr(
        "kinemae.finetune.conversion.model_bundle.save_decoder",
        lambda *_: (_ for _ in ()).throw(OSError("full")),
    )
    assert command("import", theirs, tmp_path / "ours") == EXIT_DATA
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours.partial", "theirs"]
    monkeypatch.undo()
    assert command("import", theirs, tmp_path / "ours") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "theirs"]


def test_patches_of_one_frame_are_not_written_to_a_file_that_is_read_as_umt():
    shape = replace(SHAPE, patch=(1, *SHAPE.patch[1:]))
    grid = TokenGrid.of(DESCRIPTION.frames, DESCRIPTION.size, shape.patch)
    one = a_bundle(replace(DESCRIPTION, shape=shape, grid=grid, reference=grid))
    with pytest.raises(CheckpointError, match=f"got patches of 1 frame and {DESCRIPTION.frames} frames"):
        videomae_tensors(one, source="model")


def test_a_dry_run_writes_nothing(tmp_path):
    torch.save(videomae_names(huggingface_pretraining("tiny")), tmp_path / "theirs.pth")
    assert command("import", tmp_path / "theirs.pth", tmp_path / "ours", *TINY_FILE, "--dry-run") == 0
    assert command("import", tmp_path / "theirs.pth", tmp_path / "real", *TINY_FILE) == 0
    assert command("export", tmp_path / "real", tmp_path / "hf", "--to", "huggingface", "--dry-run") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["real", "theirs.pth"]


def test_exit_codes_of_wrong_usage(tmp_path, caplog):
    torch.save(videomae_names(huggingface_pretraining("tiny")), tmp_path / "theirs.pth")
    theirs, ours = tmp_path / "theirs.pth", tmp_path / "ours"
    assert command("import", theirs, ours, *TINY_FILE, "fraems=8") == EXIT_CONFIG
    assert command("import", theirs, ours, *TINY_FILE, "fps=4", "stride=2") == EXIT_CONFIG
    assert command("import", theirs, ours, "frames=7", "size=24", "heads=3") == EXIT_CONFIG
    assert command("import", theirs, ours, *TINY_FILE, "mean=[0.5]") == EXIT_CONFIG
    assert command("import", tmp_path / "nothing", ours) == EXIT_CHECKPOINT
    assert command("import", theirs, tmp_path, *TINY_FILE) == EXIT_DATA
    assert command("export", ours, tmp_path / "out", "--to", "videomae") == EXIT_CHECKPOINT
    assert command("export", ours, tmp_path / "out", "--to", "vjepa") == EXIT_CONFIG
    assert command("export", ours, tmp_path / "out") == EXIT_CONFIG
    assert command("export", ours, tmp_path / "out", "a=b", "--to", "videomae") == EXIT_CONFIG


def test_export_of_a_run_takes_its_model(tmp_path, capsys):
    bundle = headed()
    save_bundle(tmp_path / "run" / "model", bundle)
    config = load_config(
        FinetuneConfig, None, ["run_dir=RUN", "data.train=A", "data.validation=B", "epochs=1"]
    )
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(config))
    assert command("export", tmp_path / "run", tmp_path / "hf", "--to", "huggingface") == 0
    taken = f"{tmp_path / 'run'} is a fine-tuning run: exporting {tmp_path / 'run' / 'model'}"
    assert taken in capsys.readouterr().err


def test_the_error_for_a_run_names_its_encoder(tmp_path):
    save_bundle(tmp_path / "run" / "encoder", a_bundle())
    with pytest.raises(CheckpointError, match=rf"give {tmp_path / 'run' / 'encoder'}$"):
        load_bundle(tmp_path / "run")


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_written_files_follow_the_umask(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        save_bundle(tmp_path / "ours", headed())
        assert command("export", tmp_path / "ours", tmp_path / "hf", "--to", "huggingface") == 0
        assert command("export", tmp_path / "ours", tmp_path / "file.pth", "--to", "videomae") == 0
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 9
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == {
        path.name: oct(mode) for path in files
    }


def test_class_names_are_read_from_a_file_and_exported(tmp_path):
    theirs, names = tmp_path / "theirs.pth", tmp_path / "names.txt"
    torch.save(videomae_names(huggingface_classification("tiny", 3)), theirs)
    names.write_text("run\n\nswim\nclimb stairs\n")

    assert command("import", theirs, tmp_path / "ours", *TINY_FILE, f"classes={names}") == 0
    assert command("export", tmp_path / "ours", tmp_path / "hf", "--to", "huggingface") == 0
    assert command("import", tmp_path / "hf", tmp_path / "back") == 0

    labels = VideoMAEForVideoClassification.from_pretrained(tmp_path / "hf").config.id2label
    assert labels == {0: "run", 1: "swim", 2: "climb stairs"}
    assert load_bundle(tmp_path / "back").classes == ("run", "swim", "climb stairs")
    names.write_text("run\nrun\nswim\n")
    assert command("import", theirs, tmp_path / "more", *TINY_FILE, f"classes={names}") == EXIT_CONFIG


def test_the_normalization_is_in_the_preprocessor_config(tmp_path, caplog):
    bundle = a_bundle(replace(DESCRIPTION, mean=(0.45,) * 3, std=(0.225,) * 3))
    write_huggingface(tmp_path / "hf", bundle, huggingface_tensors(bundle, source="ours"))

    processor = VideoMAEImageProcessor.from_pretrained(tmp_path / "hf")
    assert tuple(processor.image_mean) == (0.45,) * 3 and processor.crop_size["height"] == 16
    assert command("import", tmp_path / "hf", tmp_path / "ours") == 0
    assert load_bundle(tmp_path / "ours").description.std == (0.225,) * 3


def test_dropping_the_key_bias_does_not_change_the_output(tmp_path):
    bundle = a_bundle(decoder=DECODER)
    write_huggingface(tmp_path / "hf", bundle, huggingface_tensors(bundle, source="ours"))
    model = VideoMAEForPreTraining.from_pretrained(tmp_path / "hf").eval()
    clip_BCTHW = torch.randint(0, 256, (2, 3, 4, 16, 16), dtype=torch.uint8)
    patches_BNP = normalize(patchify(clip_BCTHW, SHAPE.patch))
    pixels = normalize(clip_BCTHW.permute(0, 2, 3, 4, 1).flatten(2)).unflatten(2, (16, 16, 3))

    with torch.inference_mode():
        theirs_BND = model.videomae(pixels.permute(0, 1, 4, 2, 3)).last_hidden_state
        torch.testing.assert_close(bundle.encoder(patches_BNP, None), theirs_BND, rtol=0, atol=3e-6)


def test_a_model_fine_tuned_without_final_norm_can_be_exported(tmp_path):
    """`final_norm=false` removes the pretrained encoder's final norm."""
    bundle = a_bundle(decoder=DECODER)
    write_huggingface(tmp_path / "hf", bundle, huggingface_tensors(bundle, source="ours"))
    assert command("import", tmp_path / "hf", tmp_path / "encoder") == 0
    keys = [f"encoder={tmp_path / 'encoder'}", "final_norm=false", "run_dir=r", "epochs=1"]
    config = load_config(FinetuneConfig, None, [*keys, "data.train=t", "data.validation=v"])
    description = describe_encoder(config)
    classifier = build_model(config, description, classification(2))

    assert isinstance(classifier.encoder.norm, nn.Identity) and not description.shape.final_norm
    finetuned = FinetunedModel(model=classifier, description=description)
    save_model(tmp_path / "model", finetuned, head=config.head)
    assert command("export", tmp_path / "model", tmp_path / "tuned", "--to", "huggingface") == 0
    assert VideoMAEForVideoClassification.from_pretrained(tmp_path / "tuned").config.use_mean_pooling


@pytest.mark.parametrize(
    "bundle, message",
    [
        (lambda: shaped(positions=Component(name="sine")), "model.positions=flat_sine, got sine"),
        (lambda: shaped(attention=Component(name="divided")), "model.attention=joint, got divided"),
        (lambda: shaped(registers=2), "model.registers=0, got 2"),
        (lambda: shaped(qk_norm=True), "model.qk_norm=false"),
        (lambda: shaped(norm="rms"), "layer norms, got rms"),
        (lambda: shaped(run_lengths=4), "no embedding of run lengths, got one"),
        (lambda: shaped(scorer=True), "no scorer, got one"),
        (
            lambda: a_bundle(replace(DESCRIPTION, size=32, grid=TokenGrid.of(4, 32, SHAPE.patch))),
            "the grid of the pretraining, got one resampled",
        ),
        (lambda: a_bundle(decoder=replace(DECODER, kind="cross")), "model.decoder=self, got cross"),
        (
            lambda: a_bundle(decoder=replace(DECODER, noise_conditioned=True)),
            "model.noise_conditioning=false",
        ),
        (
            lambda: a_bundle(decoder=replace(DECODER, values=10)),
            "a decoder that predicts 384 pixels, got 10 values",
        ),
        (
            lambda: a_bundle(decoder=replace(DECODER, shape=DecoderShape(width=16, depth=1, heads=2))),
            "a decoder with flat_sine positions, got sine",
        ),
        (lambda: headed(final_norm=True), "final_norm=false in fine-tuning, got true"),
        (lambda: headed(norm="standardize"), "head={name: linear"),
        (lambda: headed(pool="statistics"), "head={name: linear"),
        (
            lambda: replace(
                headed(),
                head=build_head(Component(name="attentive", args={"head_width": 8}), width=24, outputs=2),
            ),
            "head={name: linear",
        ),
    ],
)
def test_unsupported_models_are_rejected(bundle, message):
    model = bundle()
    for write in (videomae_tensors, huggingface_tensors):
        with pytest.raises(CheckpointError, match=f"ours: VideoMAE.* expects .*{message}"):
            write(model, source="ours")


def test_all_unsupported_settings_are_listed():
    with pytest.raises(
        CheckpointError, match=r"registers=0, got 1.*qk_norm=false|qk_norm=false.*registers=0"
    ):
        videomae_tensors(shaped(registers=1, qk_norm=True), source="ours")


def test_an_unusual_number_of_heads_is_logged(tmp_path, caplog, capsys):
    shape = replace(SHAPE, width=384, heads=16, depth=1)  # as some published folders of the small model have
    bundle = a_bundle(replace(DESCRIPTION, shape=shape))
    write_huggingface(tmp_path / "hf", bundle, huggingface_tensors(bundle, source="ours"))

    assert command("import", tmp_path / "hf", tmp_path / "wrong") == 0
    assert "fix: heads=6" in capsys.readouterr().err
    assert command("import", tmp_path / "hf", tmp_path / "right", "heads=6") == 0
    assert load_bundle(tmp_path / "right").description.shape.heads == 6


def test_an_imported_model_can_be_evaluated(tmp_path, synth_shards, capsys):
    validation = synth_shards / "validation"
    index = open_index(validation)
    (tmp_path / "names.txt").write_text("\n".join(index.classes))
    model = huggingface_classification("tiny", len(index.classes))
    torch.save(videomae_names(model), tmp_path / "theirs.pth")
    keys = [*TINY_FILE, "stride=1", f"classes={tmp_path / 'names.txt'}"]
    assert command("import", tmp_path / "theirs.pth", tmp_path / "ours", *keys) == 0
    capsys.readouterr()

    scoring = [
        f"data.validation={validation}",
        "data.num_workers=0",
        "engine.device=cpu",
        "engine.cpu_threads=1",
    ]
    assert command("evaluate", tmp_path / "ours", *scoring, "--json") == 0

    result = json.loads(capsys.readouterr().out)
    assert result["videos"] == len(index) and result["run"]["epochs"] == 0
    assert command("compare", tmp_path / "ours") == 0
    assert command("evaluate", tmp_path / "ours") == EXIT_CONFIG  # no data.validation
