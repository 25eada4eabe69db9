"""`kinemae finetune export` and `import` from the command line, and what they refuse."""

import json
import os
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import VideoMAEForPreTraining, VideoMAEForVideoClassification, VideoMAEImageProcessor

from kinemae.data_tools.command import CheckpointError, run_program
from kinemae.data_tools.components import Component
from kinemae.data_tools.config import load_config
from kinemae.data_tools.exit_codes import EXIT_CHECKPOINT, EXIT_CONFIG, EXIT_DATA
from kinemae.data_tools.index import open_index
from kinemae.finetune.__main__ import PROGRAM
from kinemae.finetune.build import build_classifier, describe_encoder
from kinemae.finetune.config import FinetuneConfig
from kinemae.finetune.conversion.huggingface import huggingface_tensors, write_huggingface
from kinemae.finetune.conversion.model_bundle import Kin, load_kin, save_kin
from kinemae.finetune.conversion.options import FLAT_SINE
from kinemae.finetune.conversion.videomae import write_official
from kinemae.finetune.heads.base import build_head
from kinemae.finetune.model_file import save_model
from kinemae.pretrain.exported_model import (
    DecoderDescription,
    EncoderDescription,
    build_decoder,
    build_encoder,
)
from kinemae.pretrain.model.sizes import DecoderShape, EncoderShape
from kinemae.pretrain.model.tokens import TokenGrid, normalise, patchify
from tests.conversion import huggingface_classification, huggingface_pretraining, official_names

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


def a_kin(description: EncoderDescription = DESCRIPTION, decoder: DecoderDescription | None = None) -> Kin:
    torch.manual_seed(0)
    kin = Kin(
        description=description,
        encoder=build_encoder(description),
        decoder_description=decoder,
        decoder=build_decoder(decoder) if decoder else None,
    )
    with torch.no_grad():
        for module in filter(None, (kin.encoder, kin.decoder)):
            for name, parameter in module.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(std=0.3)  # the key's too: what training leaves of it is not 0
    return kin


def shaped(**changes: object) -> Kin:
    return a_kin(replace(DESCRIPTION, shape=replace(SHAPE, **changes)))


def headed(*, final_norm: bool = False, **args: object) -> Kin:
    kin = shaped(final_norm=final_norm)
    return replace(
        kin, head=build_head(Component(name="linear", args=args), width=24, classes=2), classes=("a", "b")
    )


def test_an_official_file_becomes_folders_and_comes_back(tmp_path, capsys):
    for name, model in (
        ("pretrained", huggingface_pretraining("tiny")),
        ("tuned", huggingface_classification("tiny", 4)),
    ):
        theirs, ours, back = (tmp_path / f"{name}.{kind}" for kind in ("pth", "ours", "back"))
        torch.save({"model": official_names(model)}, theirs)

        assert command("import", theirs, ours, *TINY_FILE, "stride=2", "--json") == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["stride"] == 2
        assert command("export", ours, back, "--to", "videomae") == 0

        written = torch.load(back, weights_only=True)["model"]
        assert written.keys() == official_names(model).keys()
        assert all(torch.equal(value, written[key]) for key, value in official_names(model).items())
        assert load_kin(ours).description.stride == 2


def test_a_dry_run_writes_nothing(tmp_path):
    torch.save(official_names(huggingface_pretraining("tiny")), tmp_path / "theirs.pth")
    assert command("import", tmp_path / "theirs.pth", tmp_path / "ours", *TINY_FILE, "--dry-run") == 0
    assert command("import", tmp_path / "theirs.pth", tmp_path / "real", *TINY_FILE) == 0
    assert command("export", tmp_path / "real", tmp_path / "hf", "--to", "huggingface", "--dry-run") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["real", "theirs.pth"]


def test_wrong_use_has_its_exit_codes(tmp_path, caplog):
    torch.save(official_names(huggingface_pretraining("tiny")), tmp_path / "theirs.pth")
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


def test_what_is_no_checkpoint_is_named(tmp_path, capsys):
    for name, content in (("bad.pth", b"e\n" * 99), ("bad.safetensors", b"xy" * 99), ("empty.pth", b"")):
        (tmp_path / name).write_bytes(content)
        assert command("import", tmp_path / name, tmp_path / "ours") == EXIT_CHECKPOINT
        expected = f"cannot read {tmp_path / name}: expected a checkpoint file of PyTorch or safetensors, got"
        assert expected in capsys.readouterr().err


def test_the_folder_of_a_run_stands_for_the_model_in_it(tmp_path, capsys):
    kin = headed()
    save_kin(tmp_path / "run" / "model", kin)
    (tmp_path / "run" / "config.yaml").write_text("head: {name: linear}")
    assert command("export", tmp_path / "run", tmp_path / "hf", "--to", "huggingface") == 0
    taken = f"{tmp_path / 'run'} is a fine-tuning run: {tmp_path / 'run' / 'model'} is taken"
    assert taken in capsys.readouterr().err


def test_a_run_in_place_of_its_encoder_is_answered_with_the_encoder(tmp_path):
    save_kin(tmp_path / "run" / "encoder", a_kin())
    with pytest.raises(CheckpointError, match=rf"give {tmp_path / 'run' / 'encoder'}$"):
        load_kin(tmp_path / "run")


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_the_umask_decides_who_may_read_what_is_written(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        save_kin(tmp_path / "ours", headed())
        assert command("export", tmp_path / "ours", tmp_path / "hf", "--to", "huggingface") == 0
        assert command("export", tmp_path / "ours", tmp_path / "file.pth", "--to", "videomae") == 0
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 8
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == {
        path.name: oct(mode) for path in files
    }


def test_classes_come_from_a_file_and_travel_with_the_folder(tmp_path):
    theirs, names = tmp_path / "theirs.pth", tmp_path / "names.txt"
    torch.save(official_names(huggingface_classification("tiny", 3)), theirs)
    names.write_text("run\n\nswim\nclimb stairs\n")

    assert command("import", theirs, tmp_path / "ours", *TINY_FILE, f"classes={names}") == 0
    assert command("export", tmp_path / "ours", tmp_path / "hf", "--to", "huggingface") == 0
    assert command("import", tmp_path / "hf", tmp_path / "back") == 0

    labels = VideoMAEForVideoClassification.from_pretrained(tmp_path / "hf").config.id2label
    assert labels == {0: "run", 1: "swim", 2: "climb stairs"}
    assert load_kin(tmp_path / "back").classes == ("run", "swim", "climb stairs")
    names.write_text("run\nrun\nswim\n")
    assert command("import", theirs, tmp_path / "more", *TINY_FILE, f"classes={names}") == EXIT_CONFIG


def test_the_colours_travel_in_the_preprocessors_config(tmp_path, caplog):
    kin = a_kin(replace(DESCRIPTION, mean=(0.45,) * 3, std=(0.225,) * 3))
    write_huggingface(tmp_path / "hf", kin, huggingface_tensors(kin, source="ours"))

    processor = VideoMAEImageProcessor.from_pretrained(tmp_path / "hf")
    assert tuple(processor.image_mean) == (0.45,) * 3 and processor.crop_size["height"] == 16
    assert command("import", tmp_path / "hf", tmp_path / "ours") == 0
    assert load_kin(tmp_path / "ours").description.std == (0.225,) * 3


def test_a_key_bias_that_training_left_is_dropped_without_a_trace(tmp_path):
    kin = a_kin(decoder=DECODER)
    write_huggingface(tmp_path / "hf", kin, huggingface_tensors(kin, source="ours"))
    model = VideoMAEForPreTraining.from_pretrained(tmp_path / "hf").eval()
    clip_BCTHW = torch.randint(0, 256, (2, 3, 4, 16, 16), dtype=torch.uint8)
    patches_BNP = normalise(patchify(clip_BCTHW, SHAPE.patch))
    pixels = normalise(clip_BCTHW.permute(0, 2, 3, 4, 1).flatten(2)).unflatten(2, (16, 16, 3))

    with torch.inference_mode():
        theirs_BND = model.videomae(pixels.permute(0, 1, 4, 2, 3)).last_hidden_state
        torch.testing.assert_close(kin.encoder(patches_BNP, None), theirs_BND, rtol=0, atol=3e-6)


def test_a_model_that_was_tuned_as_videomae_is_can_be_exported(tmp_path):
    """Our own fine-tuning drops the pretrained encoder's last norm with `final_norm=false`."""
    kin = a_kin(decoder=DECODER)
    write_huggingface(tmp_path / "hf", kin, huggingface_tensors(kin, source="ours"))
    assert command("import", tmp_path / "hf", tmp_path / "encoder") == 0
    keys = [f"encoder={tmp_path / 'encoder'}", "final_norm=false", "run_dir=r", "epochs=1"]
    config = load_config(FinetuneConfig, None, [*keys, "data.train=t", "data.validation=v"])
    description = describe_encoder(config)
    classifier = build_classifier(config, description, classes=2)

    assert isinstance(classifier.encoder.norm, nn.Identity) and not description.shape.final_norm
    save_model(tmp_path / "model", classifier, description=description, head=config.head, classes=("a", "b"))
    assert command("export", tmp_path / "model", tmp_path / "tuned", "--to", "huggingface") == 0
    assert VideoMAEForVideoClassification.from_pretrained(tmp_path / "tuned").config.use_mean_pooling


@pytest.mark.parametrize(
    "kin, message",
    [
        (lambda: shaped(positions=Component(name="sine")), "model.positions=flat_sine, not sine"),
        (lambda: shaped(attention=Component(name="divided")), "model.attention=joint, not divided"),
        (lambda: shaped(registers=2), "model.registers=0, not 2"),
        (lambda: shaped(qk_norm=True), "model.qk_norm=false"),
        (lambda: shaped(run_lengths=4), "without run lengths"),
        (lambda: shaped(scorer=True), "without a scorer"),
        (
            lambda: a_kin(replace(DESCRIPTION, size=32, grid=TokenGrid.of(4, 32, SHAPE.patch))),
            "the clip of its pretraining",
        ),
        (lambda: a_kin(decoder=replace(DECODER, kind="cross")), "model.decoder=self, not cross"),
        (lambda: a_kin(decoder=replace(DECODER, noise_conditioned=True)), "model.noise_conditioning=false"),
        (lambda: a_kin(decoder=replace(DECODER, values=10)), "384 pixels, not of 10 values"),
        (
            lambda: a_kin(decoder=replace(DECODER, shape=DecoderShape(width=16, depth=1, heads=2))),
            "the decoder's positions to be flat_sine, not sine",
        ),
        (lambda: headed(final_norm=True), "without a last norm .*final_norm=false"),
        (lambda: headed(norm="standardize"), "head={name: linear"),
        (lambda: headed(pool="statistics"), "head={name: linear"),
        (
            lambda: replace(
                headed(),
                head=build_head(Component(name="attentive", args={"head_width": 8}), width=24, classes=2),
            ),
            "head={name: linear",
        ),
    ],
)
def test_what_the_peers_cannot_be_is_refused_with_what_it_needs(kin, message):
    found = kin()
    for write in (write_official, huggingface_tensors):
        with pytest.raises(CheckpointError, match=f"ours cannot be written as .*{message}"):
            write(found, source="ours")


def test_all_that_stands_in_the_way_is_said_at_once():
    with pytest.raises(
        CheckpointError, match=r"registers=0, not 1.*qk_norm=false|qk_norm=false.*registers=0"
    ):
        write_official(shaped(registers=1, qk_norm=True), source="ours")


def test_a_wrong_number_of_heads_in_a_folder_is_pointed_out(tmp_path, caplog, capsys):
    shape = replace(SHAPE, width=384, heads=16, depth=1)  # as a converter once wrote for the small model
    kin = a_kin(replace(DESCRIPTION, shape=shape))
    write_huggingface(tmp_path / "hf", kin, huggingface_tensors(kin, source="ours"))

    assert command("import", tmp_path / "hf", tmp_path / "wrong") == 0
    assert "heads=6 corrects" in capsys.readouterr().err
    assert command("import", tmp_path / "hf", tmp_path / "right", "heads=6") == 0
    assert load_kin(tmp_path / "right").description.shape.heads == 6


def test_an_imported_model_is_scored_where_it_stands(tmp_path, synth_shards, capsys):
    validation = synth_shards / "validation"
    index = open_index(validation)
    (tmp_path / "names.txt").write_text("\n".join(index.classes))
    model = huggingface_classification("tiny", len(index.classes))
    torch.save(official_names(model), tmp_path / "theirs.pth")
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
