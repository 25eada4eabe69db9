"""Import of V-JEPA 2 and 2.1: equal to transformers' modules, and to the formulas of both RoPE forms."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import VJEPA2Config, VJEPA2ForVideoClassification, VJEPA2Model

from kinemae.data_tools.command import CheckpointError, run_program
from kinemae.finetune.__main__ import PROGRAM
from kinemae.finetune.conversion.model_bundle import ModelBundle, export_tensors, load_bundle, save_bundle
from kinemae.finetune.conversion.options import ImportOptions
from kinemae.finetune.conversion.vjepa import huggingface_format, official_2_1_format, official_format
from kinemae.finetune.heads.base import Features
from kinemae.pretrain.model.sizes import EncoderShape
from kinemae.pretrain.model.tokens import normalize, patchify
from tests.conversion import imported, randomised, without_onednn

pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration")
WIDTH, DEPTH, HEADS, FRAMES, SIZE, PATCH = 48, 3, 2, 6, 40, 8
OPTIONS = ImportOptions(heads=HEADS, frames=FRAMES, size=SIZE)


def config(**changes: object) -> VJEPA2Config:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
    clip = {"frames_per_clip": FRAMES, "crop_size": SIZE, "patch_size": PATCH, "mlp_ratio": 3.5}
    predictor = {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    return VJEPA2Config(**sizes, **clip, **predictor, num_pooler_layers=2, **changes)


@pytest.fixture(scope="module")
def peer() -> VJEPA2Model:
    torch.manual_seed(0)
    return sharp(randomised(VJEPA2Model(config())))


def sharp(model):
    """Make attention depend on positions: the initial weights attend to all tokens almost alike."""
    for name, parameter in model.named_parameters():
        if name.endswith(("query.weight", "key.weight")):
            parameter.data *= 20
    return model


def clip() -> Tensor:
    shape = (2, 3, FRAMES, SIZE, SIZE)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def pixels(clip_BCTHW: Tensor) -> Tensor:
    """The clip as transformers takes it: normalized, (B, T, C, H, W)."""
    values = normalize(clip_BCTHW.permute(0, 2, 3, 4, 1).flatten(2))
    return values.unflatten(2, (SIZE, SIZE, 3)).permute(0, 1, 4, 2, 3)


def tokens(bundle: ModelBundle, clip_BCTHW: Tensor) -> Tensor:
    patch = bundle.description.shape.patch
    with torch.inference_mode():
        return bundle.encoder(normalize(patchify(clip_BCTHW, patch)), None)


def official(model: VJEPA2Model) -> dict[str, Tensor]:
    """The tensors of a transformers model by the names of an official file."""
    state = dict(model.encoder.state_dict())
    found = {}
    for name, value in state.items():
        if ".attention.key." in name or ".attention.value." in name:
            continue
        parts = [state[name.replace("query", part)] for part in ("query", "key", "value")]
        name = name.replace("embeddings.patch_embeddings", "patch_embed").replace("layernorm", "norm")
        name = name.replace("layer.", "blocks.").replace("attention.query", "attn.qkv")
        found[name.replace("attention.", "attn.")] = torch.cat(parts) if "qkv" in name else value
    return {f"module.backbone.{name}": value.clone() for name, value in found.items()}


def save(path, tensors: dict[str, Tensor], **others: object):
    torch.save({"target_encoder": tensors, "epoch": 1, **others}, path)
    return path


def test_the_features_of_a_transformers_model_are_kept(peer, tmp_path):
    peer.save_pretrained(tmp_path / "hf")
    bundle = imported(tmp_path / "hf")
    save_bundle(tmp_path / "ours", bundle)

    with torch.inference_mode(), without_onednn():
        theirs_BND = peer.get_vision_features(pixels(clip()))

    assert (bundle.description.frames, bundle.description.size, bundle.description.fps) == (FRAMES, SIZE, 4)
    found_BND = tokens(load_bundle(tmp_path / "ours"), clip())
    assert (found_BND - theirs_BND).abs().max() <= 3e-6 * theirs_BND.abs().max()


def test_an_official_file_gives_the_same_encoder_and_both_formats_round_trip(peer, tmp_path, capsys):
    peer.save_pretrained(tmp_path / "hf")
    other = {name: value + 1 for name, value in official(peer).items()}
    extra = {"module.backbone.pos_embed": torch.zeros(1, 75, WIDTH)}
    path = save(tmp_path / "vitl.pt", official(peer) | extra, encoder=other, predictor={}, opt={"state": {}})

    first, second = imported(tmp_path / "hf"), imported(path, OPTIONS)
    assert first.description.shape == second.description.shape
    ours, theirs = first.encoder.state_dict(), second.encoder.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    third = imported(path, ImportOptions(key="encoder", heads=HEADS, frames=FRAMES, size=SIZE))
    assert torch.equal(third.encoder.norm.bias, second.encoder.norm.bias + 1)

    shape = first.description.shape
    back = {f"module.backbone.{name}": v for name, v in export_tensors(official_format(shape), first).items()}
    assert back.keys() == official(peer).keys()
    assert all(torch.equal(value, official(peer)[name]) for name, value in back.items())
    peers = {name: value for name, value in peer.state_dict().items() if name.startswith("encoder.")}
    back = export_tensors(huggingface_format(shape, None), first)
    assert back.keys() == peers.keys()
    assert all(torch.equal(value, peers[name]) for name, value in back.items())


def test_the_formats_have_the_published_numbers_of_tensors():
    shape = EncoderShape(width=1024, depth=24, heads=16, mlp_width=4096)
    counts = {"V-JEPA 2": 292, "transformers V-JEPA 2 encoder": 388, "V-JEPA 2.1": 302 - 9}
    # Skipped of 2.1: the patch embedding of images, their mark, and three norms of inner blocks.
    for layout in (official_format(shape), huggingface_format(shape, None), official_2_1_format(shape)):
        assert len({name for rule in layout.encoder for name in rule.theirs}) == counts[layout.name]


def test_a_classifier_keeps_its_logits_and_class_names(tmp_path):
    torch.manual_seed(0)
    labels = {0: "run", 1: "swim", 2: "climb"}
    model = sharp(randomised(VJEPA2ForVideoClassification(config(id2label=labels))))
    model.pooler.query_tokens.data.normal_()
    model.save_pretrained(tmp_path / "hf")
    save_bundle(tmp_path / "ours", imported(tmp_path / "hf"))
    bundle = load_bundle(tmp_path / "ours")

    with torch.inference_mode(), without_onednn():
        theirs_BY = model(pixels(clip())).logits
        found_BY = bundle.head(Features(tokens(bundle, clip())), None)

    assert bundle.classes == ("run", "swim", "climb")
    assert (found_BY - theirs_BY).abs().max() <= 3e-6 * theirs_BY.abs().max()
    back = export_tensors(huggingface_format(bundle.description.shape, 2), bundle)
    kept = {n: v for n, v in model.state_dict().items() if not n.startswith("vjepa2.predictor.")}
    assert back.keys() == kept.keys()
    assert all(torch.equal(value, kept[name]) for name, value in back.items())


def rotated(x_XF: Tensor, place: tuple[float, float, float], *, tiled: bool) -> Tensor:
    """Queries or keys of a token by the formula, channel by channel."""
    each = x_XF.shape[-1] // 6
    result = x_XF.clone()
    for axis, position in enumerate(place):
        for channel in range(2 * each):
            power = (channel % each if tiled else channel // 2) / each
            angle = position * 10000.0**-power
            at, sign = axis * 2 * each + channel, -1 if channel % 2 == 0 else 1
            partner = x_XF[..., at - sign]
            result[..., at] = x_XF[..., at] * math.cos(angle) + sign * partner * math.sin(angle)
    return result


def reference(tensors: dict[str, Tensor], clip_BCTHW: Tensor, *, is_2_1: bool) -> Tensor:
    """V-JEPA's encoder in float64, token by token."""
    tensors = {name.removeprefix("module.backbone."): value.double() for name, value in tensors.items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps=1e-6)

    kernel, bias = tensors["patch_embed.proj.weight"], tensors["patch_embed.proj.bias"]
    x = F.conv3d(clip_BCTHW.double(), kernel, bias, stride=tuple(kernel.shape[2:])).flatten(2).mT
    side = SIZE // PATCH
    scale = 15 / (side - 1) if is_2_1 else 1
    places = [(n // side**2, n // side % side * scale, n % side * scale) for n in range(x.shape[1])]
    x = x + tensors["video_mod_embed"] if is_2_1 else x
    for i in range(DEPTH):
        qkv = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv").chunk(3, dim=2)
        query, key, value = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in qkv)
        for part in (query, key):
            for n, place in enumerate(places):
                part[:, :, n] = rotated(part[:, :, n].clone(), place, tiled=not is_2_1)
        weights = (query @ key.mT / (WIDTH // HEADS) ** 0.5).softmax(dim=-1)
        x = x + linear((weights @ value).transpose(1, 2).flatten(2), f"blocks.{i}.attn.proj")
        y = F.gelu(linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1"))
        x = x + linear(y, f"blocks.{i}.mlp.fc2")
    return norm(x, "norms_block.3" if is_2_1 else "norm")


def as_2_1(model: VJEPA2Model) -> dict[str, Tensor]:
    """A file of V-JEPA 2.1 with the same weights and the tensors that only 2.1 has."""
    found = {n: v for n, v in official(model).items() if not n.startswith("module.backbone.norm.")}
    generator = torch.Generator().manual_seed(2)
    made = {"img_mod_embed": (1, 1, WIDTH), "video_mod_embed": (1, 1, WIDTH)}
    made |= {
        "patch_embed_img.proj.weight": (WIDTH, 3, 1, PATCH, PATCH),
        "patch_embed_img.proj.bias": (WIDTH,),
    }
    made |= {f"norms_block.{i}.{leaf}": (WIDTH,) for i in range(4) for leaf in ("weight", "bias")}
    tensors = {f"module.backbone.{n}": torch.randn(s, generator=generator) for n, s in made.items()}
    return found | tensors


def test_the_two_rope_forms_equal_their_formulas_and_differ(peer, tmp_path):
    """2 tiles the frequencies over the channels; 2.1 repeats each, and scales rows and columns to 0..15."""
    patches = patchify(clip()[:1, :, :4], (2, PATCH, PATCH))
    clip_BCTHW = normalize(clip()[:1, :, :4].permute(0, 2, 3, 4, 1).flatten(2))
    clip_BCTHW = clip_BCTHW.unflatten(2, (SIZE, SIZE, 3)).permute(0, 4, 1, 2, 3)
    for is_2_1, tensors in ((False, official(peer)), (True, as_2_1(peer))):
        path = save(tmp_path / f"{is_2_1}.pt", tensors)
        bundle = imported(path, ImportOptions(heads=HEADS, frames=4, size=SIZE))
        with torch.inference_mode():
            found_BND = bundle.encoder.double()(normalize(patches).double(), None)
            expected_BND = reference(tensors, clip_BCTHW, is_2_1=is_2_1)
        torch.testing.assert_close(found_BND, expected_BND, rtol=0, atol=3e-6)
        if is_2_1:
            bundle.encoder.pos_embed = imported(
                tmp_path / "False.pt", ImportOptions(heads=HEADS, frames=4, size=SIZE)
            ).encoder.pos_embed
            with torch.inference_mode():
                other_BND = bundle.encoder(normalize(patches).double(), None)
            assert (other_BND - expected_BND).abs().max() > 1e-3, "the same weights need the right form"
    assert bundle.description.shape.positions.args == {"tiled": False, "side": 16}


def test_every_skipped_tensor_is_listed_with_its_reason(peer, tmp_path, capsys):
    path = save(tmp_path / "2_1.pt", as_2_1(peer), ema_encoder=as_2_1(peer))
    keys = [f"heads={HEADS}", f"frames={FRAMES}", f"size={SIZE}", "--json"]
    assert run_program(PROGRAM, ["import", str(path), str(tmp_path / "ours"), *keys]) == 0

    said = capsys.readouterr()
    assert json.loads(said.out.splitlines()[-1])["format"] == "V-JEPA 2.1"
    assert "reading ema_encoder of ema_encoder, target_encoder; key= chooses another" in said.err
    for skipped in ("patch_embed_img (2 tensors)", "img_mod_embed (1 tensors)", "norms_block.1 (2 tensors)"):
        assert f"skipped {skipped}: " in said.err


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("module.backbone.blocks.1.attn.qkv.bias"), r"1 missing \(blocks.1.attn.qkv.bias\)"),
        (lambda t: t.update({"module.backbone.gate": torch.ones(2)}), r"1 unexpected \(gate\)"),
        (
            lambda t: t.update({"module.backbone.norm.weight": torch.ones(5)}),
            r"matching shapes, got .*norm\.weight",
        ),
        (
            lambda t: t.update({"module.backbone.pos_embed": torch.ones(1, 1568, WIDTH)}),
            "a table of 1568 positions, as in V-JEPA 1",
        ),
    ],
)
def test_another_file_is_rejected_by_name(peer, change, message, tmp_path):
    tensors = official(peer)
    change(tensors)
    with pytest.raises(CheckpointError, match=message):
        imported(save(tmp_path / "vitl.pt", tensors), OPTIONS)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config", {"hidden_act": "silu"}, "expected hidden_act='gelu', got 'silu'"),
        ("config", {"crop_size": [40, 40]}, r"a whole number for crop_size, got \[40, 40\]"),
        ("config", {"frames_per_clip": None}, "a whole number for frames_per_clip, got None"),
        ("config", {"num_hidden_layers": 4}, "num_hidden_layers=4 of config.json, got those for 3"),
        ("preprocessor_config", {"image_mean": 0.5}, "expected 3 numbers for the mean of the pixels"),
    ],
)
def test_an_unsupported_config_is_rejected(name, change, message, peer, tmp_path):
    peer.save_pretrained(tmp_path / "hf")
    file = tmp_path / "hf" / f"{name}.json"
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | change))
    with pytest.raises(CheckpointError, match=message):
        imported(tmp_path / "hf")


@pytest.mark.parametrize(
    ("change", "message"), [(lambda v: v.to(torch.int8), "int8"), (lambda v: v / 0, "infinity or NaN")]
)
def test_weights_that_are_no_finite_floats_are_rejected(change, message, peer, tmp_path):
    tensors = official(peer)
    name = next(each for each in tensors if each.endswith("norm.bias"))
    path = save(tmp_path / "vitl.pt", tensors | {name: change(tensors[name])})
    with pytest.raises(CheckpointError, match=f"finite floating-point values in norm.bias, got .*{message}"):
        imported(path, OPTIONS)


def test_a_missing_entry_is_rejected(peer, tmp_path):
    path = save(tmp_path / "vitl.pt", official(peer))
    with pytest.raises(CheckpointError, match="expected an entry encoder, got target_encoder; fix: choose"):
        imported(path, ImportOptions(key="encoder"))
