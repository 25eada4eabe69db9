"""Grids of heads trained together: one pass over the features trains every head."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from kinemae.data_tools.components import Component
from kinemae.data_tools.randomness import derived_seed
from kinemae.finetune.heads.base import Features, Head, build_head
from kinemae.finetune.heads.linear import LinearHead
from kinemae.finetune.probe.batched_adamw import BatchedAdamW
from kinemae.finetune.probe.config import HeadTraining, ProbeConfig
from kinemae.finetune.probe.data import BatchOrder, LabelledFeatures
from kinemae.finetune.tasks.base import Task
from kinemae.finetune.tasks.classification import Classification
from kinemae.pretrain.runtime.optimizer import learning_rate, parameter_groups
from kinemae.pretrain.runtime.settings import OptimConfig

_CALIBRATION_SAMPLES = 256
_SCORED_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """One head of a grid; `pool` is "" for attentive heads, `depth` 0 for linear ones.

    Attributes:
        slices: number of slices for the pooling "slices", else 0.
    """

    lr: float
    weight_decay: float
    layer: int
    pool: str = ""
    depth: int = 0
    slices: int = 0

    def component(self) -> Component:
        """The head's config in a fine-tuned model."""
        if self.depth:
            more = {} if self.depth == 1 else {"depth": self.depth}
            return Component(name="attentive", args={"norm": "standardize", **more})
        more = {"slices": self.slices} if self.slices else {}
        return Component(name="linear", args={"norm": "standardize", "pool": self.pool, **more})

    def record(self) -> dict[str, Any]:
        """The settings as JSON, without those of the other kind of head."""
        others = ("pool" if self.depth else "depth", "slices")
        return {name: value for name, value in asdict(self).items() if name not in others}


def head_grid(config: ProbeConfig, layers: Sequence[int], *, slices: int = 0) -> list[HeadSettings]:
    """Every combination of the grid.

    Args:
        slices: number of time slices of a clip in features of the kind "slices".
    """
    grid, is_attentive = config.grid, config.method == "attentive"
    name, values = ("depth", grid.depth) if is_attentive else ("pool", grid.pool)
    shapes: list[dict[str, Any]] = [
        {name: value, "slices": slices if value == "slices" else 0} for value in values
    ]
    return [
        HeadSettings(layer=layer, **shape, lr=lr, weight_decay=decay)
        for layer, shape, lr, decay in product(layers, shapes, grid.lr, grid.weight_decay)
    ]


class TrainedHeads(Protocol):
    """Heads after training, in the order of their settings."""

    def outputs(self, data: LabelledFeatures, sample_R: np.ndarray) -> Tensor:
        """Compute output_HRVY of all heads for all views of some samples, on the CPU."""

    def head(self, number: int) -> Head:
        """One head as a module for the encoder's tokens."""


@dataclass(frozen=True, kw_only=True)
class HeadTrainer:
    """Trains heads on features.

    Attributes:
        width: values per token of the encoder.
    """

    task: Task
    settings: HeadTraining
    seed: int
    width: int
    device: torch.device

    def train(
        self, heads: Sequence[HeadSettings], data: LabelledFeatures, sample_R: np.ndarray
    ) -> TrainedHeads:
        """Train heads of one kind on some samples; all heads get the same batches."""
        trained: LinearHeads | AttentiveHeads
        if heads[0].depth:
            trained = AttentiveHeads(heads, self, data, sample_R)
        else:
            trained = LinearHeads(heads, self, data, sample_R)
        order = BatchOrder(sample_R, views=data.features.views, batch=self.settings.batch, seed=self.seed)
        steps = self.steps(len(sample_R))
        schedule = OptimConfig(lr=1.0, final_lr=0.0, warmup_fraction=self.settings.warmup_fraction)
        for step in range(steps):
            row_B, sample_B, view_B = order.at(step)
            targets = {
                name: value.to(self.device) for name, value in data.targets_of(sample_B, view_B).items()
            }
            trained.update(row_B, sample_B, view_B, targets, factor=learning_rate(step, steps, schedule))
        trained.release()
        return trained

    def steps(self, samples: int) -> int:
        """Number of steps of a training."""
        batch = min(self.settings.batch, samples)
        return max(self.settings.min_steps, -(-round(self.settings.epochs * samples) // batch))


class LinearHeads:
    """Linear heads on pooled features. Heads of one layer and pooling are one matrix product.

    Features are standardized with the mean and deviation of the training samples.
    """

    def __init__(
        self,
        heads: Sequence[HeadSettings],
        trainer: HeadTrainer,
        data: LabelledFeatures,
        sample_R: np.ndarray,
    ):
        self.settings = list(heads)
        self.trainer = trainer
        keys = dict.fromkeys((each.layer, each.pool) for each in heads)
        self.banks = [
            LinearBank(
                [number for number, each in enumerate(heads) if (each.layer, each.pool) == key],
                self.settings,
                trainer,
                data.features.pooled(*key, sample_R),
            )
            for key in keys
        ]

    def update(
        self,
        row_B: np.ndarray,
        sample_B: np.ndarray,
        view_B: np.ndarray,
        targets: dict[str, Tensor],
        *,
        factor: float,
    ) -> None:
        """Train all heads on one batch."""
        for bank in self.banks:
            bank.update(row_B, view_B, targets, factor)

    def release(self) -> None:
        """Drop the training features."""
        for bank in self.banks:
            bank.standard_RVX = torch.empty(0)

    @torch.inference_mode()
    def outputs(self, data: LabelledFeatures, sample_R: np.ndarray) -> Tensor:
        """See `TrainedHeads`."""
        found: list[Tensor] = [torch.empty(0)] * len(self.settings)
        for bank in self.banks:
            first = self.settings[bank.numbers[0]]
            output_HRVY = bank.outputs(data.features.pooled(first.layer, first.pool, sample_R))
            for number, output_RVY in zip(bank.numbers, output_HRVY, strict=True):
                found[number] = output_RVY
        return torch.stack(found)

    def head(self, number: int) -> Head:
        """See `TrainedHeads`."""
        bank = next(bank for bank in self.banks if number in bank.numbers)
        return bank.head(bank.numbers.index(number), self.settings[number])


class LinearBank:
    """Linear heads that read the same features."""

    def __init__(
        self, numbers: list[int], settings: Sequence[HeadSettings], trainer: HeadTrainer, pooled_RVX: Tensor
    ):
        self.numbers = numbers
        self.trainer = trainer
        heads, width = len(numbers), pooled_RVX.shape[-1]
        device, outputs = trainer.device, trainer.task.outputs
        deviation_X, mean_X = torch.std_mean(pooled_RVX.flatten(0, 1), dim=0, unbiased=False)
        self.mean_X = mean_X.to(device)
        self.deviation_X = torch.where(deviation_X > 1e-6, deviation_X, 1.0).to(device)
        self.standard_RVX = self._standardize(pooled_RVX)
        # Zeros, as small initial weights of a linear layer under cross entropy change nothing but the start.
        self.weight_HYX = torch.zeros(heads, outputs, width, device=device, requires_grad=True)
        self.bias_HY = torch.zeros(heads, outputs, device=device, requires_grad=True)
        self.optimizer = BatchedAdamW(
            [self.weight_HYX, self.bias_HY],
            lr_H=torch.tensor([settings[number].lr for number in numbers], device=device),
            weight_decay_H=torch.tensor([settings[number].weight_decay for number in numbers], device=device),
            is_decayed=[True, False],
            clip_norm=trainer.settings.clip_norm,
        )

    def update(
        self, row_B: np.ndarray, view_B: np.ndarray, targets: dict[str, Tensor], factor: float
    ) -> None:
        """Train on one batch."""
        rows, views, width = self.standard_RVX.shape
        index_B = torch.from_numpy(row_B * views + view_B).to(self.standard_RVX.device)
        standard_BX = self.standard_RVX.view(rows * views, width).index_select(0, index_B)
        loss_HB = loss_of_heads(self.trainer.task, self._outputs(standard_BX), targets)
        loss_HB.mean(dim=1).sum().backward()
        self.optimizer.step(factor)

    def outputs(self, pooled_RVX: Tensor) -> Tensor:
        """Compute output_HRVY on the CPU."""
        rows, views, _ = pooled_RVX.shape
        output_HYB = self._outputs(self._standardize(pooled_RVX).flatten(0, 1))
        return output_HYB.transpose(1, 2).reshape(len(self.numbers), rows, views, -1).cpu()

    def head(self, place: int, settings: HeadSettings) -> Head:
        """One head as a module."""
        component = settings.component()
        head = build_head(component, width=self.trainer.width, outputs=self.trainer.task.outputs)
        assert isinstance(head, LinearHead)
        state = {
            "norm.mean_D": self.mean_X,
            "norm.deviation_D": self.deviation_X,
            "linear.weight": self.weight_HYX[place].detach(),
            "linear.bias": self.bias_HY[place].detach(),
        }
        head.load_state_dict({name: value.cpu() for name, value in state.items()})
        return head

    def _outputs(self, standard_BX: Tensor) -> Tensor:
        """Compute output_HYB by one matrix product."""
        heads, outputs, width = self.weight_HYX.shape
        output_ZB = torch.addmm(
            self.bias_HY.view(-1, 1), self.weight_HYX.view(heads * outputs, width), standard_BX.T
        )
        return output_ZB.view(heads, outputs, -1)

    def _standardize(self, pooled_RVX: Tensor) -> Tensor:
        return (pooled_RVX.to(self.mean_X.device) - self.mean_X) / self.deviation_X


def loss_of_heads(task: Task, output_HYB: Tensor, targets: dict[str, Tensor]) -> Tensor:
    """Compute loss_HB of all heads on the same clips."""
    heads = len(output_HYB)
    if isinstance(task, Classification) and task.loss_name == "cross_entropy":
        # PyTorch's cross entropy over the middle dim is four times as fast as over a short last one.
        return task.loss(output_HYB, {"label": targets["label"].expand(heads, -1)})
    repeated = {name: value.repeat(heads, *[1] * (value.dim() - 1)) for name, value in targets.items()}
    return task.loss(output_HYB.transpose(1, 2).flatten(0, 1), repeated).view(heads, -1)


class AttentiveHeads:
    """Attentive heads on all tokens. Each batch of tokens is read once for all heads."""

    def __init__(
        self,
        heads: Sequence[HeadSettings],
        trainer: HeadTrainer,
        data: LabelledFeatures,
        sample_R: np.ndarray,
    ):
        self.settings = list(heads)
        self.trainer = trainer
        self.data = data
        self.modules = [self._build(each) for each in heads]
        some_R = sample_R[:_CALIBRATION_SAMPLES]
        for layer, numbers in self._by_layer().items():
            tokens_BND = data.features.tokens(layer, some_R, np.zeros(len(some_R), dtype=np.int64))
            for number in numbers:
                self.modules[number].calibrate(Features(tokens_BND.to(trainer.device)))
        groups = [
            {**group, "lr": each.lr, "peak_lr": each.lr}
            for each, head in zip(heads, self.modules, strict=True)
            for group in parameter_groups(head, each.weight_decay)
        ]
        self.optimizer = torch.optim.AdamW(groups, fused=True)

    def update(
        self,
        row_B: np.ndarray,
        sample_B: np.ndarray,
        view_B: np.ndarray,
        targets: dict[str, Tensor],
        *,
        factor: float,
    ) -> None:
        """Train all heads on one batch; one head at a time keeps the activations of one head in memory."""
        for layer, numbers in self._by_layer().items():
            features = Features(self.data.features.tokens(layer, sample_B, view_B).to(self.trainer.device))
            for number in numbers:
                head = self.modules[number]
                self.trainer.task.loss(head(features, None).float(), targets).mean().backward()
                if self.trainer.settings.clip_norm:
                    nn.utils.clip_grad_norm_(head.parameters(), self.trainer.settings.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad()

    def release(self) -> None:
        """Set evaluation mode."""
        for head in self.modules:
            head.eval().requires_grad_(False)

    @torch.inference_mode()
    def outputs(self, data: LabelledFeatures, sample_R: np.ndarray) -> Tensor:
        """See `TrainedHeads`."""
        views, found = data.features.views, [[] for _ in self.modules]  # type: ignore[var-annotated]
        sample_X = np.repeat(sample_R, views)
        view_X = np.tile(np.arange(views), len(sample_R))
        for first in range(0, len(sample_X), _SCORED_AT_ONCE):
            part = slice(first, first + _SCORED_AT_ONCE)
            for layer, numbers in self._by_layer().items():
                tokens_BND = data.features.tokens(layer, sample_X[part], view_X[part])
                features = Features(tokens_BND.to(self.trainer.device))
                for number in numbers:
                    found[number].append(self.modules[number](features, None).float().cpu())
        return torch.stack([torch.cat(parts).view(len(sample_R), views, -1) for parts in found])

    def head(self, number: int) -> Head:
        """See `TrainedHeads`."""
        return self.modules[number].cpu()

    def _by_layer(self) -> dict[int, list[int]]:
        layers = dict.fromkeys(each.layer for each in self.settings)
        return {
            layer: [number for number, each in enumerate(self.settings) if each.layer == layer]
            for layer in layers
        }

    def _build(self, settings: HeadSettings) -> Head:
        """A new head; heads of one depth have equal initial weights."""
        torch.manual_seed(derived_seed(self.trainer.seed, purpose="probe_head"))
        task, component = self.trainer.task, settings.component()
        head = build_head(
            component, width=self.trainer.width, outputs=task.outputs, groups=task.output_groups
        )
        return head.to(self.trainer.device)
