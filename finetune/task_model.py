"""The model of a fine-tuning run: an encoder, optionally with token pruning, a head and a task."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kinemae.data_tools.randomness import ClipRandom
from kinemae.data_tools.stream.batch import ClipBatch
from kinemae.data_tools.stream.yuv_to_rgb import to_luma
from kinemae.finetune.adapt.lora import ClipDropout
from kinemae.finetune.heads.base import Features, Head
from kinemae.finetune.mixing import Mixer
from kinemae.finetune.tasks.base import Task
from kinemae.pretrain.model.encoder import Encoder
from kinemae.pretrain.model.packing import Packing, kept_count, top_tokens
from kinemae.pretrain.model.scorer import add_gradient_of
from kinemae.pretrain.model.tokens import MEAN, STD
from kinemae.pretrain.pruning.base import Pruning
from kinemae.pretrain.pruning.none import NoPruning


class TaskModel(nn.Module):
    """Compute the output of a task for clips, or a loss.

    Args:
        pruning: selects the tokens that the encoder processes; None keeps all.
        freeze: train the head only; the encoder runs in evaluation mode without gradients.
        task: loss and predictions, with its state.
        mixer: mixes clips in training (mixup, cutmix); None for none.
        chunks: number of parts of a clip, each with the encoder's frames, whose tokens are concatenated.
        mean, std: normalization of the encoder's pixels, RGB on a scale of 0 to 1.
    """

    def __init__(  # noqa: PLR0913 - keyword-only, except for the modules
        self,
        encoder: Encoder,
        head: Head,
        task: Task,
        *,
        pruning: Pruning | None = None,
        freeze: bool = False,
        mixer: Mixer | None = None,
        chunks: int = 1,
        mean: tuple[float, ...] = MEAN,
        std: tuple[float, ...] = STD,
    ):
        super().__init__()
        self.pruning = pruning or NoPruning()
        _check_task(task, encoder, self.pruning, is_mixed=mixer is not None)
        self.encoder = encoder.requires_grad_(not freeze)
        if encoder.shape.scorer and not self.pruning.is_learned:
            encoder.scorer.requires_grad_(False)  # this pruning does not use its scores
        elif encoder.shape.scorer and self.pruning.keep is None:
            encoder.scorer.threshold.requires_grad_(False)  # only a fixed fraction trains the threshold
        self.head = head
        if head.needs_slices and (encoder.merge_per_block or not isinstance(self.pruning, NoPruning)):
            raise ValueError(
                "head.args.pool: expected mean or statistics with an encoder that removes tokens, got "
                "slices; fix: merge.per_block=0 and pruning.name=none, or head.args.pool=mean"
            )
        self.layers = block_numbers(head.layers, encoder.shape.depth)
        if self.layers and (encoder.merge_per_block or self.pruning.keep is None):
            raise ValueError(
                "head.args.layers: expected an encoder that keeps the same tokens in all blocks and clips, "
                "got merge.per_block above 0, or a pruning that keeps a different number of tokens per clip; "
                "fix: merge.per_block=0, or pruning.args.keep=FRACTION"
            )
        self.task = task
        self.chunks = chunks
        self.freeze = freeze
        self.dropouts: list[ClipDropout] = []  # of adapters
        self.mixer = mixer
        self.mean = mean
        self.std = std
        self.train()

    def train(self, mode: bool = True) -> "TaskModel":
        """Set training or evaluation mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.train(mode and not self.freeze)
        return self

    @property
    def grid_tokens(self) -> int:
        """Number of tokens of a clip without pruning and merging."""
        return self.encoder.grid.tokens * self.chunks

    def forward(self, batch: ClipBatch, draws: ClipRandom) -> dict[str, Tensor]:
        """Compute per-clip values of shape (B,).

        Returns:
            "loss": for mixed clips the weighted loss of both targets. The task's `train_metrics`: for mixed
            clips of the target with the larger weight. "kept_fraction", with pruning: number of tokens that
            the encoder processed, divided by all tokens.
        """
        targets, partner_targets, lam_B = batch.targets, None, None
        clip_BCTHW = batch.clip_BCTHW
        if self.training and self.mixer is not None:
            mixed = self.mixer.mix(batch, draws)
            clip_BCTHW, lam_B = mixed.clip_BCTHW, mixed.lam_B
            partner_targets = {name: target[mixed.partner_B] for name, target in targets.items()}
        features = self.features(clip_BCTHW, draws)
        output = self.head(features, draws).float()
        loss_B = self.task.loss(output, targets)
        if lam_B is not None and partner_targets is not None:
            loss_B = torch.lerp(self.task.loss(output, partner_targets), loss_B, lam_B)
            targets = {name: _chosen(lam_B >= 0.5, targets[name], partner_targets[name]) for name in targets}
        if features.threshold_loss_B is not None:
            loss_B = add_gradient_of(loss_B, features.threshold_loss_B)
        values = {"loss": loss_B, **self.task.train_metrics(output, targets)}
        if not isinstance(self.pruning, NoPruning):
            values["kept_fraction"] = features.kept_B / self.grid_tokens
        return values

    def output(self, clip_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the head's output and the number of kept tokens, kept_B, in evaluation.

        Args:
            clip_BCTHW: uint8 RGB.
        """
        features = self.features(clip_BCTHW)
        return self.head(features, None), features.kept_B

    def features(self, clip_BCTHW: Tensor, draws: ClipRandom | None = None) -> Features:
        """Encode clips, uint8 RGB. `draws` is for drop path and dropout in training.

        A frozen encoder needs the memory of one chunk only.

        Raises:
            ValueError: the clip size differs from the encoder's.
        """
        for dropout in self.dropouts:
            dropout.draws = draws
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            chunks = clip_BCTHW.tensor_split(self.chunks, dim=2)
            return Features.concatenate([self._encode_chunk(chunk_BCTHW, draws) for chunk_BCTHW in chunks])

    def _encode_chunk(self, clip_BCTHW: Tensor, draws: ClipRandom | None) -> Features:
        self.encoder.check_clip(clip_BCTHW)
        if self.pruning.is_learned:
            return self._prune_by_scorer(clip_BCTHW, draws)
        if isinstance(self.pruning, NoPruning):
            x_BND = self._embed_all(clip_BCTHW)
            tokens_BND, layers = self.encoder.encode_layers(x_BND, None, self.layers, draws)
            slices = 0 if self.encoder.merge_per_block else self.encoder.grid.t
            return Features(tokens_BND, slices=slices, layers=layers)
        return self._prune_by_pixels(clip_BCTHW, draws)

    def _prune_by_pixels(self, clip_BCTHW: Tensor, draws: ClipRandom | None) -> Features:
        """Select patches by their pixels, and embed only these."""
        scores = self.pruning.score_tokens(to_luma(clip_BCTHW), self.encoder.shape.patch)
        if self.pruning.keep is None:
            packing = Packing.of(scores.is_kept_BN, scores.score_BN)
            run_1L = None if scores.run_length_BN is None else packing.pack(scores.run_length_BN)
            x_1LD = self._embed(clip_BCTHW, packing.index_1L, run_1L, clip_BK=packing.clip_1L)
            return self._encode_packed(x_1LD, packing, draws)
        index_BK = top_tokens(scores.score_BN, kept_count(scores.score_BN.shape[1], self.pruning.keep))
        run_length_BK = None if scores.run_length_BN is None else scores.run_length_BN.gather(1, index_BK)
        x_BKD = self._embed(clip_BCTHW, index_BK, run_length_BK)
        tokens_BKD, layers = self.encoder.encode_layers(x_BKD, index_BK, self.layers, draws)
        return Features(tokens_BKD, layers=layers)

    def _prune_by_scorer(self, clip_BCTHW: Tensor, draws: ClipRandom | None) -> Features:
        """Embed all patches, then select tokens by the encoder's scorer."""
        scorer, x_BND = self.encoder.scorer, self._embed_all(clip_BCTHW)
        if self.pruning.keep is not None:
            kept = scorer.select(x_BND, self.pruning.keep)
            tokens_BKD, layers = self.encoder.encode_layers(kept.x_BKD, kept.index_BK, self.layers, draws)
            return Features(tokens_BKD, threshold_loss_B=kept.threshold_loss_B, layers=layers)
        score_BN = scorer(x_BND)
        packing = Packing.of(score_BN.detach() > scorer.threshold.detach(), score_BN.detach())
        gated_BND = x_BND * scorer.gate(score_BN, x_BND.dtype)
        return self._encode_packed(packing.pack(gated_BND), packing, draws)

    def _encode_packed(self, x_1LD: Tensor, packing: Packing, draws: ClipRandom | None) -> Features:
        encoded_1LD = self.encoder.encode(x_1LD, packing.index_1L, draws, lengths=packing.lengths)
        return Features(*packing.unpack(encoded_1LD))

    def _embed_all(self, clip_BCTHW: Tensor) -> Tensor:
        return self.encoder.embed(self.encoder.patches(clip_BCTHW, mean=self.mean, std=self.std), None)

    def _embed(
        self,
        clip_BCTHW: Tensor,
        index_BK: Tensor,
        run_length_BK: Tensor | None,
        *,
        clip_BK: Tensor | None = None,
    ) -> Tensor:
        taken_BKP = self.encoder.patches(clip_BCTHW, index_BK, mean=self.mean, std=self.std, clip_BK=clip_BK)
        return self.encoder.embed(taken_BKP, index_BK, run_length_BK)


def _check_task(task: Task, encoder: Encoder, pruning: Pruning, *, is_mixed: bool) -> None:
    """Check that the task supports the token reduction and the mixing of the run."""
    name = type(task).__name__.lower()
    if task.output != "clip" and (encoder.merge_per_block or not isinstance(pruning, NoPruning)):
        key = "merge.per_block: expected 0" if encoder.merge_per_block else "pruning.name: expected none"
        raise ValueError(
            f"{key} for the task {name}, whose head reads all tokens of each time slice, got reduced tokens; "
            "fix: pruning=none merge.per_block=0"
        )
    if is_mixed and not task.mixes:
        raise ValueError(
            f"mix: expected no mixup and no cutmix for the task {name}, whose targets cannot be mixed; "
            "fix: remove mix.mixup and mix.cutmix"
        )


def block_numbers(
    layers: Sequence[int | float], depth: int, *, key: str = "head.args.layers"
) -> tuple[int, ...]:
    """Convert the blocks that a head reads to numbers from 0; see `Head.layers`.

    Raises:
        ValueError: the encoder has no such block.
    """
    numbers = [math.ceil(layer * depth) - 1 if isinstance(layer, float) else layer for layer in layers]
    for number in numbers:
        if not -depth <= number < depth:
            raise ValueError(
                f"{key}: expected blocks from 0 to {depth - 1}, from -{depth} to -1, or fractions "
                f"of the depth, got {number}; fix: choose among these"
            )
    return tuple(number % depth for number in numbers)


def _chosen(is_first_B: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return torch.where(is_first_B.view(-1, *[1] * (first.dim() - 1)), first, second)
