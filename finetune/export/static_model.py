"""A model as a function of fixed shapes: uint8 clips in, scores or features out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kinemae.data_tools.stream.frame_sampling import ClipConfig
from kinemae.data_tools.synthetic_scenes import MOTIONS, SceneConfig, make_scene
from kinemae.finetune.inference.video_model import VideoModel
from kinemae.pretrain.model.attention.base import AttentionCache
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.token_positions import REGISTER, TokenPositions
from kinemae.pretrain.model.tokens import COLOURS
from kinemae.pretrain.pruning.none import NoPruning

CLIPS = 3
"""Clips of a check."""


class StaticModel(nn.Module):
    """Compute all outputs of a model in one call. Normalization of pixels is included.

    With a head, "scores" (`Task.predict`, such as probabilities) and "output" (of the head, such as logits);
    else "tokens" (B, N, D) and "embedding" (B, D), their mean. Everything is float32.
    """

    def __init__(self, model: VideoModel):
        super().__init__()
        self.model = model.float()
        if model.task_model is None or isinstance(model.task_model.pruning, NoPruning):
            _fix_attention(model.encoder)

    @property
    def output_names(self) -> tuple[str, str]:
        """Names of the outputs, in order."""
        return ("tokens", "embedding") if self.model.task_model is None else ("scores", "output")

    def forward(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the outputs of uint8 clips (B, C, T, H, W)."""
        task_model = self.model.task_model
        if task_model is None:
            tokens_BND = self.model.features(clip)
            return tokens_BND, tokens_BND.mean(dim=1)
        output = task_model.output(clip)[0].float()
        return task_model.task.predict(output).float(), output


def _fix_attention(encoder: Encoder) -> None:
    """Build the attention functions of full clips once: `torch.export` cannot trace how they are built."""
    registers = torch.full((encoder.shape.registers,), REGISTER)
    index_1N = torch.cat([registers, torch.arange(encoder.grid.tokens)])[None] if len(registers) else None
    cache = AttentionCache(TokenPositions(grid=encoder.grid, index_BN=index_1N), torch.device("cpu"))
    fixed = {pattern: cache[pattern] for patterns in encoder.patterns for pattern in patterns}
    encoder.attention_cache = lambda positions, device: fixed


@contextmanager
def tracing() -> Iterator[None]:
    """Trace without gradients, and in float32 where the code uses float64, which many runtimes lack."""
    with torch.no_grad(), _Float32():
        yield


class _Float32(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return args[0] if function is Tensor.double else function(*args, **(kwargs or {}))


def example_clips(clip: ClipConfig, count: int = CLIPS) -> Tensor:
    """Generate moving scenes as uint8 clips (B, C, T, H, W); the same ones in each call."""
    scene = SceneConfig(frames=max(clip.frames, 2), size=max(clip.size + clip.size % 2, 16))
    kinds = list(MOTIONS)
    made = [
        make_scene(kinds[i % len(kinds)], scene, torch.Generator().manual_seed(i))[: clip.frames]
        for i in range(count)
    ]
    frames_BTHWC = torch.stack(made)[:, :, : clip.size, : clip.size]
    assert frames_BTHWC.shape[4] == COLOURS
    return frames_BTHWC.permute(0, 4, 1, 2, 3).contiguous()
