"""No forward pass waits for the device: counted for each component on a simulated CUDA device.

The simulated device has shapes and no values, so a read of a value is an error. The backward pass and the
optimizer are counted in `runtime/test_engine_steps.py`.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.data_tools.stream.yuv_to_rgb import YuvClips
from kinemae.pretrain.model import tokens
from kinemae.pretrain.model.attention import base as attention
from tests.component_combinations import CLIPS, axes, make_batch, prepare
from tests.pretrain.runtime.device_waits import DeviceWaits
from tests.pretrain.test_combinations import PLAIN

CUDA = torch.device("cuda", 0)
NEEDS = {"target": {"noise": {"noise": "gaussian"}}}
CASES = [
    {**PLAIN, axis: name, **NEEDS.get(axis, {}).get(name, {}), "decoder": decoder}
    for axis, names in axes().items()
    for name in names
    for decoder in (("self",) if axis in ("attention", "positions") else (PLAIN["decoder"],))
] + [{**PLAIN, "attention": kind, "target": "features"} for kind in ("divided", "windowed")]


@pytest.fixture(scope="module")
def simulated() -> Iterator[FakeTensorMode]:
    """A simulated CUDA device; constants that the code keeps for it are dropped."""
    caches = (tokens._colour_line, attention._full_clip_batches_on)
    for cache in caches:
        cache.cache_clear()
    yield FakeTensorMode(allow_non_fake_inputs=True)
    for cache in caches:
        cache.cache_clear()


def move_to_cuda(model: nn.Module) -> None:
    """Replace all weights and buffers by simulated ones."""
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    moved = torch.empty(tensor.shape, dtype=tensor.dtype, device=CUDA)
                    held[name] = nn.Parameter(moved) if held is module._parameters else moved
        if hasattr(module, "_teacher"):
            move_to_cuda(module._teacher[0])


def as_planes(batch: ClipBatch) -> ClipBatch:
    """The batch as a loader gives it."""
    clips, _, frames, size, _ = batch.pixels.shape
    return replace(batch, pixels=YuvClips.empty(clips, frames, size))


@pytest.mark.parametrize("combination", CASES, ids=lambda combination: "-".join(combination.values()))
def test_a_forward_pass_on_a_cuda_device_does_not_wait(
    simulated: FakeTensorMode, combination: dict[str, str]
) -> None:
    model, split = prepare(combination)
    batch = as_planes(make_batch(split, range(CLIPS)))
    model.train()
    model(batch, ClipRandom(0, batch.clip_index_B))  # fills the caches on the host
    with simulated:
        move_to_cuda(model)
        for _ in range(2):
            with DeviceWaits("cuda") as counted:
                moved = batch.to(CUDA)
                loss_B = model(moved, ClipRandom(0, moved.clip_index_B))["loss"]
    assert loss_B.device == CUDA
    assert counted.waits == []
    assert counted.copies == 9 + len(batch.tokens)  # the tensors of a batch
