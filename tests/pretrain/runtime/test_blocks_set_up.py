"""Activation checkpointing, compilation and residual stream of blocks: equal results, or an error."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kinemae.data_tools.components import Component
from kinemae.data_tools.randomness import ClipRandom
from kinemae.finetune.token_reduction import TokenReduction
from kinemae.pretrain.config import PretrainConfig
from kinemae.pretrain.model.blocks import Block, set_up_blocks
from kinemae.pretrain.runtime.engine import BlockSettings, check_engine, compiles
from kinemae.pretrain.runtime.metrics import read_metrics
from kinemae.pretrain.runtime.processes import Processes, find_processes
from kinemae.pretrain.runtime.settings import EngineConfig
from kinemae.pretrain.training import make_plan, training_clips
from tests.forked import run_forked
from tests.pretrain.runtime.test_engine_equals_a_plain_loop import plain_losses

SmallConfig = Callable[..., PretrainConfig]
CROSS = ["model.decoder=cross", "model.layer_scale=0.5", "target.name=features"]
SELF = ["model.decoder=self", "model.positions.name=rotary", "model.attention.name=divided"]
MERGING = ["model.merge_per_block=2", "model.depth=3", "model.registers=2"]


def trained_once(config: PretrainConfig, *, recompute: bool) -> tuple[Tensor, dict[str, Tensor], int]:
    """Losses of a batch, all gradients, and the bytes saved for the backward pass."""
    plan = make_plan(config)
    set_up_blocks(plan.model, recompute=recompute, compiled=False)
    batch = training_clips(plan, plan.split).batch(range(config.batch.global_clips))
    kept_bytes = 0

    def measure(kept: Tensor) -> Tensor:
        nonlocal kept_bytes
        kept_bytes += kept.numel() * kept.element_size()
        return kept

    with torch.autograd.graph.saved_tensors_hooks(measure, lambda kept: kept):
        loss_B = plan.model(batch, ClipRandom(config.seed, batch.clip_index_B))["loss"]
    loss_B.mean().backward()
    gradients = {name: p.grad for name, p in plan.model.named_parameters() if p.grad is not None}
    return loss_B.detach(), gradients, kept_bytes


@pytest.mark.parametrize("parts", [CROSS, SELF, MERGING], ids=["cross", "self", "merging"])
def test_activation_checkpointing_gives_bitwise_equal_gradients_and_saves_memory(
    small_config: SmallConfig, parts: list[str]
) -> None:
    config = small_config("model.drop_path=0.3", *parts)
    loss_B, gradients, kept_bytes = trained_once(config, recompute=False)
    again_B, gradients_again, kept_again_bytes = trained_once(config, recompute=True)
    assert torch.equal(loss_B, again_B)
    assert gradients.keys() == gradients_again.keys() and len(gradients) > 20
    assert all(torch.equal(gradient, gradients_again[name]) for name, gradient in gradients.items())
    assert kept_again_bytes < 0.6 * kept_bytes


@pytest.mark.slow
@pytest.mark.processes
def test_a_run_applies_activation_checkpointing_and_compilation(
    small_run: Path, small_config: SmallConfig
) -> None:
    """With a target of visible tokens there is no decoder, so only one kind of block to compile."""
    parts = ["target.name=noise", "model.depth=1", "steps=2", "monitor.every_steps=1", "monitor.clips=2"]
    config = small_config(*parts, "run_dir=plain")
    requested = ["engine.compile=true", "engine.activation_checkpointing=true"]
    run_forked("-m", "pretrain", str(small_run), *parts, *requested)
    lines = read_metrics(Path(small_config().run_dir) / "metrics.jsonl")
    assert [line["loss"] for line in lines] == pytest.approx(plain_losses(config), rel=1e-5)


def test_the_residual_stream_has_its_dtype_in_all_blocks(small_config: SmallConfig) -> None:
    parts = ["model.decoder=self", "model.positions.name=rotary", "model.layer_scale=0.5"]
    config = small_config(*parts, "model.drop_path=0.3", "model.registers=2")
    plan = make_plan(config)
    batch = training_clips(plan, plan.split).batch(range(config.batch.global_clips))
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        set_up_blocks(plan.model, recompute=False, compiled=False, residual_dtype=dtype)
        found: set[torch.dtype] = set()
        handles = [
            block.register_forward_hook(lambda block, inputs, output, found=found: found.add(output.dtype))
            for block in plan.model.modules()
            if isinstance(block, Block)
        ]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            losses.append(plan.model(batch, ClipRandom(config.seed, batch.clip_index_B))["loss"])
        assert len(handles) > 1 and found == {dtype}
        for handle in handles:
            handle.remove()
    assert not torch.equal(*losses)
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0)


@pytest.mark.slow
@pytest.mark.processes
def test_a_run_with_a_bf16_residual_stream_has_nearly_the_losses_of_fp32(
    small_run: Path, small_config: SmallConfig
) -> None:
    """The monitor and the pictures run the model in float32."""
    parts = ["engine.precision=bf16", "engine.residual_dtype=bf16", "steps=4", "monitor.clips=2"]
    run_forked("-m", "pretrain", str(small_run), *parts)
    lines = read_metrics(Path(small_config().run_dir) / "metrics.jsonl")
    plain = plain_losses(small_config("steps=4", "run_dir=plain"))
    assert [line["loss"] for line in lines] == pytest.approx(plain, rel=0.02)


def test_unsupported_settings_are_refused(small_config: SmallConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"expected auto or false at engine.zero_stage=3, .* got true"):
        make_plan(small_config("engine.compile=true", "engine.zero_stage=3"))
    with pytest.raises(ValueError, match=r"engine.compile: expected auto or false with token merging"):
        make_plan(small_config("engine.compile=true", "model.merge_per_block=2"))
    assert TokenReduction(pruning=Component(name="run_length")).is_packed
    assert not TokenReduction(pruning=Component(name="run_length", args={"keep": 0.5})).is_packed
    with pytest.raises(ValueError, match=r"expected fp32 with engine.precision=auto on cpu, .* got bf16"):
        make_plan(small_config("engine.residual_dtype=bf16"))
    compiling, processes = EngineConfig(compile="true", device="cpu"), find_processes("cpu")
    with pytest.raises(ValueError, match=r"expected auto or false with pruning.args.keep=null, .* got true"):
        check_engine(compiling, processes, BlockSettings(merges=False, packs=True))
    with pytest.raises(ValueError, match=r"expected auto or false with adapt.dropout above 0, .* got true"):
        check_engine(compiling, processes, BlockSettings(merges=False, drops=True))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        ValueError,
        match=r"without a C\+\+ compiler on the CPU \(no-such-compiler\), got true; fix: .* or install it",
    ):
        make_plan(small_config("engine.compile=true"))
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match=r"on the CPU \(g\+\+, clang\+\+, c\+\+\)"):
        make_plan(small_config("engine.compile=true"))


@pytest.mark.parametrize(
    ("blocks", "reason"),
    [
        (BlockSettings(merges=False), None),
        (BlockSettings(merges=True), "with token merging, which runs halves of blocks"),
        (BlockSettings(merges=False, packs=True), "with pruning.args.keep=null"),
        (BlockSettings(merges=False, drops=True), "with adapt.dropout above 0"),
    ],
)
def test_compilation_is_automatic_on_cuda_and_off_where_it_is_not_supported(
    blocks: BlockSettings,
    reason: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("kinemae.pretrain.runtime.engine._missing_compiler", lambda device: None)
    on_cuda = Processes(rank=0, world=1, device=torch.device("cuda", 0))
    check_engine(EngineConfig(), on_cuda, blocks)
    assert compiles(EngineConfig(), on_cuda, blocks) == (reason is None)
    assert not compiles(EngineConfig(compile="false"), on_cuda, blocks)
    assert not compiles(EngineConfig(), find_processes("cpu"), blocks)
    messages = [f"engine.compile=auto: nothing is compiled {reason}"] if reason else []
    assert [found[: len(wanted)] for found, wanted in zip(caplog.messages, messages, strict=True)] == messages


def test_automatic_compilation_is_off_at_zero_3_and_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_cuda = Processes(rank=0, world=1, device=torch.device("cuda", 0))
    monkeypatch.setattr("kinemae.pretrain.runtime.engine._missing_compiler", lambda device: "triton")
    plain = BlockSettings(merges=False)
    assert not compiles(EngineConfig(), on_cuda, plain)
    monkeypatch.setattr("kinemae.pretrain.runtime.engine._missing_compiler", lambda device: None)
    assert compiles(EngineConfig(), on_cuda, plain)
    assert not compiles(EngineConfig(zero_stage=3), on_cuda, plain)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"compile": True}, "engine.compile must be auto, true or false, got True"),
        ({"zero_stage": 4}, "engine.zero_stage must be 0, 1, 2 or 3, got 4"),
        ({"residual_dtype": "fp16"}, "engine.residual_dtype must be fp32 or bf16, got 'fp16'"),
        (
            {"residual_dtype": "bf16", "precision": "fp32"},
            "engine.residual_dtype must be fp32 at engine.precision=fp32, got 'bf16'",
        ),
        ({"grad_reduce_dtype": "fp16"}, "engine.grad_reduce_dtype must be auto, fp32 or bf16, got 'fp16'"),
    ],
)
def test_a_wrong_value_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineConfig(**arguments)  # type: ignore[arg-type]
