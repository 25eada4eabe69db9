"""Models for inference: tokens, embeddings and predictions of clips."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from kinemae.data_tools.config import load_config
from kinemae.data_tools.overrides import as_overrides
from kinemae.finetune.heads.base import Features, pool_tokens
from kinemae.finetune.inference.transform import ClipTransform
from kinemae.finetune.task_model import TaskModel, block_numbers
from kinemae.pretrain.exported_model import EncoderDescription
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.tokens import COLOURS, to_bytes
from kinemae.pretrain.pruning.none import NoPruning

if TYPE_CHECKING:  # these modules import this one
    from kinemae.finetune.predict.config import PredictConfig
    from kinemae.finetune.predict.scores import VideoPrediction
    from kinemae.finetune.predict.stream import WindowPrediction

_TOLERANCE = 1e-4  # of a clip on a scale of 0 to 1, for rounding errors


class VideoModel(nn.Module):
    """An encoder, or a fine-tuned model: an encoder with a head.

    It is in evaluation mode, and its weights need no gradients. Clips are RGB of shape (B, C, T, H, W), uint8
    from 0 to 255, or float from 0 to 1, which is rounded to uint8. The model normalizes them itself.

    Attributes:
        encoder: the vision transformer.
        task_model: encoder, head and task; None for an encoder alone.
        description: description of the encoder and its clips.
        source: folder or hub id of the weights.
        clip: frames, stride or frame rate, and size of a clip.
        transform: converts frames of any size to a clip.
    """

    encoder: Encoder
    task_model: TaskModel | None

    def __init__(
        self,
        encoder: Encoder,
        description: EncoderDescription,
        *,
        task_model: TaskModel | None = None,
        source: str = "",
    ):
        super().__init__()
        self.encoder = encoder
        self.task_model = task_model
        self.description = description
        self.source = source
        self.clip = replace(description.clip, frames=description.frames * self._chunks)
        self.transform = ClipTransform(clip=self.clip, mean=description.mean, std=description.std)
        self.eval().requires_grad_(False)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the task; empty if it has none."""
        return () if self.task_model is None else self.task_model.task.classes

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.encoder.patch_embed.weight.device

    def forward(self, clips: Tensor) -> Tensor:
        """See `features`."""
        return self.features(clips)

    def features(self, clips: Tensor) -> Tensor:
        """Encode clips, as tokens_BND after the final norm, ordered by slice, row and column.

        A pruning that keeps fewer tokens also returns fewer.

        Raises:
            ValueError: other clips than the model's, or a pruning that keeps different numbers of tokens.
        """
        found = self._encode(self.check(clips))
        if found.weight_BN is not None and bool((found.weight_BN == 0).any()):
            raise ValueError(
                f"features: expected clips that keep equally many tokens, got {found.kept_B.int().tolist()} "
                "tokens after pruning; fix: pass one clip at a time, or use embed"
            )
        return found.tokens_BND

    def embed(self, clips: Tensor) -> Tensor:
        """Encode clips and average their tokens, as embedding_BD.

        Raises:
            ValueError: other clips than the model's.
        """
        return pool_tokens(self._encode(self.check(clips)), "mean")

    def intermediate(
        self, clips: Tensor, layers: Sequence[int | float], *, norm: bool = True
    ) -> list[Tensor]:
        """Encode clips, and return tokens_BND after some blocks.

        Args:
            layers: blocks: numbers from 0, or from -1 for the last, or fractions of the depth.
            norm: apply the encoder's final norm to the tokens of each block.

        Raises:
            ValueError: no such block, other clips than the model's, or a model that removes or merges tokens.
        """
        clip_BCTHW = self.check(clips)
        numbers = block_numbers(layers, self.encoder.shape.depth, key="layers")
        if self.encoder.merge_per_block or not isinstance(self._pruning, NoPruning):
            raise ValueError(
                "intermediate: expected a model that keeps all tokens, got one that prunes or merges them; "
                "fix: use features"
            )
        chunks = clip_BCTHW.tensor_split(self._chunks, dim=2)
        found = Features.concatenate([self._encode_chunk(chunk_BCTHW, numbers) for chunk_BCTHW in chunks])
        return [self.encoder.norm(tokens_BND) if norm else tokens_BND for tokens_BND in found.layers]

    def scores(self, clips: Tensor) -> Tensor:
        """Predict the task's values for each clip, for example the probabilities of the classes, in float64.

        Raises:
            ValueError: a model without a head, or other clips than the model's.
        """
        task_model = self.with_head()
        output_B, _ = task_model.output(self.check(clips))
        return task_model.task.predict(output_B.float())

    def predict(self, video: str | Path, **settings: Any) -> "VideoPrediction":
        """Predict a video over time, by the path of `kinemae finetune predict`.

        Args:
            video: a file or a URL.
            settings: keys of that command, such as `overlap=0.5`; see `PredictConfig`.

        Raises:
            DataError: the video cannot be read.
            ValueError: a model without a head, or wrong settings.
        """
        from kinemae.finetune.predict.predict import predict_file

        return predict_file(self, video, _predict_config(settings))

    def predict_stream(
        self, frames: Iterable[np.ndarray | Tensor], *, stream_fps: float, **settings: Any
    ) -> "Iterator[WindowPrediction]":
        """Predict a stream of frames: a window as soon as its last frame has arrived.

        Args:
            frames: uint8 RGB of shape (H, W, 3).
            stream_fps: frames per second of the stream.
            settings: see `predict`.

        Raises:
            ValueError: a model without a head, or whose clip is a whole video, or wrong settings.
        """
        from kinemae.finetune.predict.stream import predict_frames

        return predict_frames(self, frames, fps=stream_fps, config=_predict_config(settings))

    def with_head(self) -> TaskModel:
        """Return the task's model.

        Raises:
            ValueError: the model has no head.
        """
        if self.task_model is None:
            raise ValueError(
                f"{self.source}: expected a fine-tuned model with a head, got an encoder; fix: train one "
                "with `kinemae finetune train`, or use features or embed"
            )
        return self.task_model

    def check(self, clips: Tensor) -> Tensor:
        """Check clips and convert them to uint8 on the model's device.

        Raises:
            ValueError: another shape, channel order, grid, type or scale than the model's.
        """
        _check_shape(clips)
        expected = (self.clip.frames, self.clip.size, self.clip.size)
        if tuple(clips.shape[2:]) != expected:
            frames, height, width = clips.shape[2:]
            raise ValueError(
                f"clips: expected {expected[0]} frames of {expected[1]}x{expected[2]} pixels, got {frames} "
                f"of {height}x{width}; fix: use model.transform, or load the model with frames= and size="
            )
        return _as_bytes(clips).to(self.device)

    @property
    def _chunks(self) -> int:
        return 1 if self.task_model is None else self.task_model.chunks

    @property
    def _pruning(self) -> object:
        return NoPruning() if self.task_model is None else self.task_model.pruning

    def _encode(self, clip_BCTHW: Tensor) -> Features:
        if self.task_model is not None:
            return self.task_model.features(clip_BCTHW)
        return self._encode_chunk(clip_BCTHW, ())

    def _encode_chunk(self, clip_BCTHW: Tensor, layers: Sequence[int]) -> Features:
        description = self.description
        patches_BNP = self.encoder.patches(clip_BCTHW, mean=description.mean, std=description.std)
        x_BND = self.encoder.embed(patches_BNP, None)
        tokens_BND, found = self.encoder.encode_layers(x_BND, None, layers)
        return Features(tokens_BND, slices=self.encoder.grid.t, layers=found)


def _predict_config(settings: Mapping[str, Any]) -> "PredictConfig":
    from kinemae.finetune.predict.config import PredictConfig

    return load_config(PredictConfig, None, as_overrides(settings))


def _check_shape(clips: Tensor) -> None:
    """Check that clips are a batch with the colours in the second dim."""
    if not isinstance(clips, Tensor):
        given = type(cast(Any, clips)).__name__
        raise ValueError(f"clips: expected a torch.Tensor, got {given}; fix: torch.as_tensor(clips)")
    shape = tuple(clips.shape)
    if len(shape) == 5 and shape[1] == COLOURS:
        return
    fix = "use model.transform on the frames of each clip"
    if len(shape) == 4 and shape[0] == COLOURS:
        fix = "add the batch dim, clips[None]"
    elif len(shape) == 5 and shape[2] == COLOURS:
        fix = "clips.transpose(1, 2)"
    elif len(shape) == 5 and shape[4] == COLOURS:
        fix = "clips.permute(0, 4, 1, 2, 3)"
    raise ValueError(f"clips: expected the shape (B, {COLOURS}, T, H, W), got {shape}; fix: {fix}")


def _as_bytes(clips: Tensor) -> Tensor:
    """Convert clips from 0 to 1 to uint8; uint8 clips stay as they are."""
    if clips.dtype == torch.uint8:
        return clips
    if not clips.is_floating_point():
        raise ValueError(
            f"clips: expected uint8 from 0 to 255, or float from 0 to 1, got {clips.dtype}; fix: "
            "clips.to(torch.uint8)"
        )
    low, high = (clips.min().item(), clips.max().item()) if clips.numel() else (0, 1)
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
        fix = "clips / 255" if 0 <= low <= high <= 255 else "pass pixels that are not normalized"
        raise ValueError(
            f"clips: expected float from 0 to 1, got values from {low:.4g} to {high:.4g}; fix: {fix}"
        )
    return to_bytes(clips)
