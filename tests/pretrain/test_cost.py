"""The cost of a run, computed from shapes, equals the FLOPs and memory of a real pass of the model."""

import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kinemae.data_tools.command import run_program
from kinemae.data_tools.components import Component, build_component, component_names
from kinemae.data_tools.config import load_config
from kinemae.data_tools.randomness import ClipRandom
from kinemae.pretrain.__main__ import PROGRAM
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.cost import measure_cost, step_flops, training_flops
from kinemae.pretrain.model.autoencoder import MaskedAutoencoder, build_autoencoder
from kinemae.pretrain.model.cost_tracer import Trace, trace_step
from kinemae.pretrain.model.sizes import ModelConfig
from kinemae.pretrain.model.tokens import TokenGrid
from kinemae.pretrain.noise.none import NoNoise
from kinemae.pretrain.runtime.settings import OptimConfig
from kinemae.pretrain.targets.base import Target
from tests.benchmarks.learning.random_weights import draw_encoder
from tests.pretrain.test_flops import clips

GRID = TokenGrid(2, 6, 6)
TINY = """
run_dir: /no/run
steps: 200
data: {shards: /no/shards, num_workers: 0}
clip: {frames: 4, size: 32}
batch: {global_clips: 8}
model: {size: tiny, patch_size: 8, width: 24, depth: 2, decoder_width: 24, decoder_depth: 1}
masking: {name: uniform, args: {ratio: 0.5}}
"""


def builder(target: str = "pixels", **changes: object) -> Callable[[], MaskedAutoencoder]:
    model = ModelConfig(size="tiny", patch_size=8, **changes)  # type: ignore[arg-type]
    part = build_component("kinemae.pretrain.targets", Component(name=target), Target)
    return lambda: build_autoencoder(model, GRID, target=part, noise=NoNoise())


def trace(build: Callable[[], MaskedAutoencoder], **options: bool) -> Trace:
    batch = clips(GRID, visible=18, wanted=30, patch=8, count=3)
    return trace_step(build, batch, **{"is_bf16": False, **options})


def really_held(model: MaskedAutoencoder, *, is_bf16: bool) -> int:
    """Bytes that autograd saves in a real pass, each storage once and without weights."""
    batch = clips(GRID, visible=18, wanted=30, patch=8, count=3)
    own = [*model.parameters(), *model.buffers(), batch.pixels, *batch.tokens.values()]
    weights = {tensor.untyped_storage().data_ptr() for tensor in own if isinstance(tensor, torch.Tensor)}
    saved: dict[int, torch.Tensor] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16) if is_bf16 else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), autocast:
        loss = model(batch, ClipRandom(0, batch.clip_index_B))["loss"].mean()
    assert loss.requires_grad
    return sum(tensor.untyped_storage().nbytes() for place, tensor in saved.items() if place not in weights)


@pytest.mark.parametrize("is_bf16", [False, True])
@pytest.mark.parametrize("decoder", ["cross", "self"])
def test_the_traced_bytes_equal_those_that_autograd_saves(decoder: str, is_bf16: bool) -> None:
    build = builder(decoder=decoder)
    held = trace(build, is_bf16=is_bf16).held
    assert held == pytest.approx(really_held(build(), is_bf16=is_bf16), rel=0.03)


@pytest.mark.slow
def test_recomputing_blocks_holds_less() -> None:
    for is_bf16 in (False, True):
        plain, again = (
            trace(builder(depth=6), is_bf16=is_bf16, recomputes=recomputes) for recomputes in (False, True)
        )
        assert again.held < 0.4 * plain.held and again.peak < plain.peak


def test_a_backward_pass_costs_two_forward_passes(tmp_path: Path) -> None:
    cost = cost_of(tmp_path)
    assert cost["flops"]["forward"] * 3 == cost["flops"]["training"] == 1.5 * cost["flops"]["backward"]


@pytest.mark.parametrize("kind", component_names("kinemae.pretrain.model.attention"))
def test_every_kind_of_attention_has_its_cost(kind: str) -> None:
    assert trace(builder(attention=Component(name=kind))).held > 0


@pytest.mark.parametrize("target", ["pixels", "features", "hog"])
@pytest.mark.parametrize("decay", [0, 0.9])
def test_moving_averages_hold_nothing_and_count_as_not_trained(
    target: str, decay: float, tmp_path: Path
) -> None:
    cost = cost_of(tmp_path, f"target.name={target}", f"ema.decay={decay}")
    parameters = cost["parameters"]
    frozen = parameters["all"] - parameters["trainable"]
    of_teacher = parameters["encoder"] if target == "features" else 0
    assert frozen == parameters["averaged"] == of_teacher + (parameters["trainable"] if decay else 0)
    assert cost["flops"]["update"] == 16 * parameters["trainable"] + 3 * frozen


def test_the_iterations_of_muon_count_as_part_of_the_update(tmp_path: Path) -> None:
    """A block of width 36: queries, keys, values and the projection are 36 x 36, the MLP 36 x 144."""
    adamw, muon = (
        cost_of(tmp_path, "model.width=36", "model.depth=1", "target=noise", "noise=gaussian", override)
        for override in ("optim.optimizer=adamw", "optim.optimizer=muon")
    )
    square, rectangle = 5 * 2 * 36**2 * (2 * 36 + 36), 5 * 2 * 36**2 * (2 * 144 + 36)
    assert muon["flops"]["update"] - adamw["flops"]["update"] == 4 * square + 2 * rectangle
    config = load_config(PretrainConfig, tmp_path / "tiny.yaml", ["model.width=36", "optim.optimizer=muon"])
    of_clips = config.batch.global_clips * training_flops(config)
    assert step_flops(config) > of_clips == step_flops(replace(config, optim=OptimConfig()))


def cost_of(folder: Path, *overrides: str) -> dict[str, Any]:
    (folder / "tiny.yaml").write_text(TINY)
    return measure_cost(load_config(PretrainConfig, folder / "tiny.yaml", list(overrides)))


@pytest.mark.slow
def test_memory_is_that_of_the_most_expensive_step_if_the_mask_ratio_changes(tmp_path: Path) -> None:
    jitter = "masking={name: jitter, args: {of: uniform, min_ratio: 0.25, max_ratio: 0.75}}"
    light, heavy, changing = (
        cost_of(tmp_path, override, "model.predict_ratio=0.2")
        for override in ("masking.args.ratio=0.75", "masking.args.ratio=0.25", jitter)
    )
    assert light["tokens"]["visible"] < heavy["tokens"]["visible"] == changing["tokens"]["visible"]
    assert changing["plain"]["held"] == heavy["plain"]["held"]


def test_the_flops_of_a_mixture_are_the_mean_over_its_steps(tmp_path: Path) -> None:
    def flops(masking: str) -> int:
        (tmp_path / "tiny.yaml").write_text(TINY)
        overrides = ["steps=1", f"masking={{name: {masking}}}"]
        return training_flops(load_config(PretrainConfig, tmp_path / "tiny.yaml", overrides))

    uniform, tube = "uniform, args: {ratio: 0.5}", "tube, args: {ratio: 0.9}"
    parts = "{uniform: {weight: 3, args: {ratio: 0.5}}, tube: {args: {ratio: 0.9}}}"
    expected = 0.75 * flops(uniform) + 0.25 * flops(tube)
    assert flops(f"mixture, args: {{parts: {parts}}}") == pytest.approx(expected, rel=0.03)
    assert flops(uniform) > 1.5 * flops(tube)


def test_the_command_needs_no_shards_and_prints_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    assert run_program(PROGRAM, ["cost", str(tmp_path / "tiny.yaml"), "--json", "model.depth=1"]) == 0
    cost = json.loads(capsys.readouterr().out)
    assert cost["data"] is None and cost["tokens"] == {
        "grid": 32,
        "masks": 1,
        "visible": 16,
        "encoded": 16,
        "predicted": 8,
    }


def test_the_command_prints_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    assert run_program(PROGRAM, ["cost", str(tmp_path / "tiny.yaml"), "model.depth=1"]) == 0
    page = capsys.readouterr().out
    ledger = cost_of(tmp_path, "model.depth=1")["ledger"]
    counts = f"{ledger['eager']['all']['operations']} > {ledger['compiled']['all']['operations']}"
    assert re.search(rf"\n  all +{counts} ", page)
    assert "tokens       32 per clip: 16 visible, 8 predicted" in page and "not measured" in page


def test_the_size_of_local_videos_is_reported(tmp_path: Path, synth_shards: Path) -> None:
    data = cost_of(tmp_path, f"data.shards={synth_shards / 'unlabelled'}")["data"]
    assert data["videos"] == 40 and 1000 < data["bytes_per_video"] < 20_000


def test_a_config_that_cannot_be_run_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    assert run_program(PROGRAM, ["cost", str(tmp_path / "tiny.yaml"), "masking.name=tubes"]) == 2
    assert "did you mean 'tube'?" in capsys.readouterr().err


def test_a_frozen_teacher_is_counted_without_loading_its_weights(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """A copy into parameters of the meta device would warn once for each of them."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    config = load_config(PretrainConfig, tmp_path / "tiny.yaml", [])
    draw_encoder(config, tmp_path / "teacher")
    taught = load_config(
        PretrainConfig, tmp_path / "tiny.yaml", ["target=teacher", f"target.args.encoder={tmp_path}/teacher"]
    )
    assert training_flops(taught) > training_flops(config)
    assert not [str(warning.message) for warning in recwarn]
