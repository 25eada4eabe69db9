"""Import of InternVideo2 and UMT: equal to plain implementations, and trainable in every way."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kinemae.data_tools.command import CheckpointError
from kinemae.data_tools.components import Component
from kinemae.data_tools.randomness import ClipRandom
from kinemae.finetune.conversion.model_bundle import ModelBundle, load_bundle, save_bundle
from kinemae.finetune.conversion.options import FLAT_SINE, ImportOptions
from kinemae.finetune.heads.base import build_head
from kinemae.finetune.task_model import TaskModel
from kinemae.finetune.token_reduction import TokenReduction
from kinemae.pretrain.model.positions.flat_sine import _sinusoid
from kinemae.pretrain.model.tokens import patchify
from tests.conversion import imported
from tests.task_models import classification

WIDTH, DEPTH, HEADS, MLP = 24, 3, 3, 80
SLICES, SIZE, PATCH = 8, 224, (1, 56, 56)
OPTIONS = ImportOptions(heads=HEADS)


def random_tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def shared_shapes(prefix: str = "", biases: tuple[str, ...] = ("attn.proj", "mlp.fc1", "mlp.fc2")):
    shapes = {
        f"{prefix}patch_embed.proj.weight": (WIDTH, 3, *PATCH),
        f"{prefix}patch_embed.proj.bias": (WIDTH,),
    }
    linear = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH)}
    linear |= {"mlp.fc1": (MLP, WIDTH), "mlp.fc2": (WIDTH, MLP), "norm1": (WIDTH,), "norm2": (WIDTH,)}
    for i in range(DEPTH):
        shapes |= {f"{prefix}blocks.{i}.{name}.weight": shape for name, shape in linear.items()}
        shapes |= {f"{prefix}blocks.{i}.{name}.bias": linear[name][:1] for name in biases}
    return shapes


def internvideo2(*, is_separable: bool = False) -> dict[str, Tensor]:
    """A distilled model: its encoder, pooling and decoder."""
    shapes = shared_shapes() | {"cls_token": (1, 1, WIDTH)}
    if is_separable:
        shapes |= {"pos_embed_spatial": (1, 16, WIDTH), "pos_embed_temporal": (1, SLICES, WIDTH)}
        shapes |= {"pos_embed_cls": (1, 1, WIDTH)}
    else:
        shapes |= {"pos_embed": (1, SLICES * 16 + 1, WIDTH), "clip_pos_embed": (1, 3, WIDTH)}
    for i in range(DEPTH):
        names = ("attn.q_norm.weight", "attn.k_norm.weight", "ls1.gamma", "ls2.gamma")
        shapes |= {f"blocks.{i}.{name}": (WIDTH,) for name in names}
    others = (
        "clip_projector.cross_attn.q.weight",
        "clip_decoder.0.head.weight",
        "final_clip_decoder.norm.bias",
    )
    return random_tensors(shapes | {name: (4,) for name in (*others, "fc_norm.weight", "head.bias")})


def umt(**others: tuple[int, ...]) -> dict[str, Tensor]:
    shapes = shared_shapes("encoder.", ("attn.proj", "mlp.fc1", "mlp.fc2", "norm1", "norm2"))
    for i in range(DEPTH):
        shapes |= {f"encoder.blocks.{i}.attn.{part}_bias": (WIDTH,) for part in "qv"}
    return random_tensors(shapes | {"clip_decoder.0.head.weight": (4, 4)} | others)


def plain(tensors: dict[str, Tensor], clip_BCTHW: Tensor, table_ND: Tensor, *, is_rms: bool) -> Tensor:
    """Tokens in float64; the first row of `table_ND` is the class token's if there is one."""
    tensors = {name.removeprefix("encoder."): value.double() for name, value in tensors.items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    def rms(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt() * tensors[f"{name}.weight"]

    def norm(x: Tensor, name: str) -> Tensor:
        if is_rms:
            return rms(x, name)
        return F.layer_norm(x, (WIDTH,), tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps=1e-6)

    kernel, bias = tensors["patch_embed.proj.weight"], tensors["patch_embed.proj.bias"]
    x = F.conv3d(clip_BCTHW.double(), kernel, bias, stride=PATCH).flatten(2).mT
    x = torch.cat([tensors["cls_token"].expand(len(x), -1, -1), x], dim=1) if is_rms else x
    x = x + table_ND.double()
    one = torch.ones(WIDTH)
    for i in range(DEPTH):
        query, key, value = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv").chunk(3, dim=2)
        if is_rms:
            query, key = (rms(part, f"blocks.{i}.attn.{n}_norm") for n, part in (("q", query), ("k", key)))
        else:
            query, value = (
                part + tensors[f"blocks.{i}.attn.{n}_bias"] for n, part in (("q", query), ("v", value))
            )
        heads = [part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in (query, key, value)]
        mixed = (heads[0] @ heads[1].mT / (WIDTH // HEADS) ** 0.5).softmax(dim=-1) @ heads[2]
        y = linear(mixed.transpose(1, 2).flatten(2), f"blocks.{i}.attn.proj")
        x = x + tensors.get(f"blocks.{i}.ls1.gamma", one) * y
        y = linear(F.gelu(linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")), f"blocks.{i}.mlp.fc2")
        x = x + tensors.get(f"blocks.{i}.ls2.gamma", one) * y
    return x[:, 1:] if is_rms else x


def tokens(bundle: ModelBundle, clip_BCTHW: Tensor) -> Tensor:
    with torch.inference_mode():
        return bundle.encoder.double()(patchify(clip_BCTHW, PATCH).double(), None)


def a_clip(frames: int = SLICES) -> Tensor:
    return torch.randn(2, 3, frames, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) / 30


def saved(path, tensors: dict[str, Tensor], key: str = "module"):
    torch.save({key: tensors}, path)
    return path


@pytest.mark.parametrize("is_separable", [False, True], ids=["joint", "separable"])
def test_internvideo2_equals_a_plain_implementation(is_separable, tmp_path, capsys):
    tensors = internvideo2(is_separable=is_separable)
    save_bundle(tmp_path / "ours", imported(saved(tmp_path / "s14.bin", tensors), OPTIONS))
    bundle = load_bundle(tmp_path / "ours")
    table_ND = (
        torch.cat(
            [
                tensors["pos_embed_cls"][0],
                tensors["pos_embed_spatial"][0].repeat(SLICES, 1)
                + tensors["pos_embed_temporal"][0].repeat_interleave(16, dim=0),
            ]
        )
        if is_separable
        else tensors["pos_embed"][0]
    )

    expected_BND = plain(tensors, a_clip(), table_ND, is_rms=True)

    torch.testing.assert_close(tokens(bundle, a_clip()), expected_BND, rtol=0, atol=1e-5)
    description = bundle.description
    assert (description.frames, description.size, description.sampling) == (SLICES, SIZE, "uniform")


@pytest.mark.parametrize("frames", [8, 16])
def test_umt_equals_a_plain_implementation_and_its_positions_are_interpolated_in_time(frames, tmp_path):
    tensors = umt()
    path = saved(tmp_path / "b16.pth", tensors, "model")
    bundle = imported(path, ImportOptions(heads=HEADS, frames=frames))
    table_ND = _sinusoid(8 * 16, WIDTH)
    if frames != 8:
        by_place = table_ND.unflatten(0, (8, 16)).permute(1, 2, 0)
        table_ND = F.interpolate(by_place, size=frames, mode="linear").permute(2, 0, 1).flatten(0, 1)

    expected_BND = plain(tensors, a_clip(frames), table_ND, is_rms=False)

    torch.testing.assert_close(tokens(bundle, a_clip(frames)), expected_BND, rtol=0, atol=1e-5)
    assert bundle.description.shape.positions == FLAT_SINE and not bundle.description.shape.final_norm
    assert bundle.description.trained_by["format"] == "UMT pretraining"


def test_a_table_in_a_fine_tuned_umt_file_is_used(tmp_path):
    tensors = {name.removeprefix("encoder."): value for name, value in umt().items()}
    del tensors["clip_decoder.0.head.weight"]
    shapes = {"pos_embed": (1, 16 * 16, WIDTH), "fc_norm.weight": (WIDTH,), "fc_norm.bias": (WIDTH,)}
    tensors |= random_tensors(shapes | {"head.weight": (4, WIDTH), "head.bias": (4,)})

    bundle = imported(saved(tmp_path / "ft.pth", tensors, "model"), OPTIONS)

    assert bundle.description.frames == 16 and len(bundle.classes) == 4
    assert torch.equal(bundle.encoder.pos_embed(None), tensors["pos_embed"][0])
    assert bundle.description.trained_by["format"] == "UMT fine-tuning"


REDUCTIONS = {
    "all tokens": TokenReduction(),
    "merged": TokenReduction(merge_per_block=8),
    "pruned": TokenReduction(pruning=Component(name="motion", args={"keep": 0.5})),
    "packed": TokenReduction(pruning=Component(name="run_length")),
    "learned": TokenReduction(pruning=Component(name="learned", args={"keep": 0.5})),
}


@pytest.mark.parametrize("reduction", REDUCTIONS.values(), ids=REDUCTIONS)
def test_a_fine_tuning_step_reaches_every_weight(reduction, tmp_path):
    bundle = imported(saved(tmp_path / "s14.bin", internvideo2()), OPTIONS)
    pruning = reduction.build_pruning(bundle.description.shape)
    head = build_head(Component(name="linear"), width=WIDTH, outputs=2)
    encoder = reduction.apply(bundle.encoder, pruning)
    model = TaskModel(encoder, head, classification(2), pruning=pruning).train()
    clip_BCTHW = torch.randint(0, 256, (2, 3, SLICES, SIZE, SIZE), dtype=torch.uint8)

    features = model.features(clip_BCTHW, ClipRandom(0, torch.arange(2)))
    model.head(features, None)[:, 0].sum().backward()

    assert features.tokens_BND.isfinite().all()
    names = {name for name in dict(bundle.encoder.named_parameters())}
    silent = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert not names.intersection(silent)


@pytest.mark.parametrize(
    "change, options, message",
    [
        (lambda t: t.pop("blocks.2.ls2.gamma"), OPTIONS, r"1 missing \(blocks\.2\.ls2\.gamma\)"),
        (
            lambda t: t.update({"patch_embed.norm_before.weight": torch.ones(4)}),
            OPTIONS,
            r"1 unexpected \(patch_embed\.norm_before\.weight\)",
        ),
        (
            lambda t: t.update({"pos_embed": torch.ones(1, 12, WIDTH)}),
            OPTIONS,
            "expected the positions of .* got 11; fix: frames= and size=",
        ),
    ],
)
def test_another_internvideo2_file_is_rejected_by_name(change, options, message, tmp_path):
    tensors = internvideo2()
    change(tensors)
    with pytest.raises(CheckpointError, match=message):
        imported(saved(tmp_path / "s14.bin", tensors), options)


def test_patch_frames_is_for_image_models_only(tmp_path):
    path = saved(tmp_path / "s14.bin", internvideo2())
    with pytest.raises(ValueError, match=r"patch_frames: expected null, since .* is no image model, got 2"):
        imported(path, replace(OPTIONS, patch_frames=2))
