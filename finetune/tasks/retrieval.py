"""Retrieval: embeddings in which samples of one class are near each other."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from kinemae.data_tools.command import DataError
from kinemae.data_tools.config import require
from kinemae.data_tools.index import ShardIndex
from kinemae.data_tools.randomness import generator
from kinemae.finetune.labels.columns import class_names, class_numbers, classes_of
from kinemae.finetune.labels.target_flips import TargetFlip, swapped_classes
from kinemae.finetune.metrics.retrieval import Embeddings, retrieval_metrics
from kinemae.finetune.tasks.base import ColumnTargets, NothingToScore, SamplePrediction, Targets, Task

_RECALLS = (1, 5, 10)


class Retrieval(Task):
    """Normalized softmax over one learned proxy per class (arXiv 1811.12649).

    The loss of a clip needs the proxies and no other clip. It is therefore the same for any number of
    processes and any micro-batch; a supervised contrastive loss compares the clips of one process.

    Args:
        label: the column of classes, as in the task classification. An evaluation may have other classes.
        dimensions: values of the embedding.
        temperature: divides the cosine similarities in the softmax.
        margin: subtracted from the similarity to the own class in training (arXiv 1801.09414, CosFace).
        exclude_group: leave samples of the query's group out of its ranking.
    """

    metric = "r_at_1"

    def __init__(
        self,
        *,
        label: str = "label",
        dimensions: int = 128,
        temperature: float = 0.05,
        margin: float = 0.0,
        exclude_group: bool = False,
    ):
        super().__init__()
        require(dimensions >= 2, "task.args.dimensions", "be at least 2", dimensions)
        require(temperature > 0, "task.args.temperature", "be above 0", temperature)
        require(margin >= 0, "task.args.margin", "be 0 or more", margin)
        self.label = label
        self.dimensions = dimensions
        self.temperature = temperature
        self.margin = margin
        self.exclude_group = exclude_group
        self.classes: tuple[str, ...] = ()
        self.proxies: Proxies | None = None

    def fit(self, train: ShardIndex, *, key: str) -> None:
        self.load_state({"classes": classes_of(train, self.label, key=key)})
        if len(self.classes) < 2:
            raise DataError(
                f"{key}: expected at least two classes in the column {self.label}, got {self.classes[0]}; "
                "fix: choose another column"
            )

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        self.proxies = Proxies(len(self.classes), self.dimensions)

    @property
    def outputs(self) -> int:
        return self.dimensions

    def read(self, index: ShardIndex, *, key: str) -> ColumnTargets:
        own = classes_of(index, self.label, key=key)
        own_R = class_numbers(index, self.label, own, key=key)
        if np.bincount(own_R).max() < 2:
            raise DataError(
                f"{key}: expected two videos of a class in the column {self.label}, got one of each; "
                "fix: choose another column"
            )
        number_of = {name: number for number, name in enumerate(self.classes)}
        names = class_names(index, self.label, key=key)
        label_R = np.array([number_of.get(str(name), -1) for name in names], dtype=np.int64)
        groups, group_R = np.unique(index.arrow_column("group").to_pylist(), return_inverse=True)
        group_R = np.where(groups[group_R] == "", -1, group_R)
        return ColumnTargets({"label": label_R, "own_label": own_R, "group": group_R})

    def loss(self, output: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        assert self.proxies is not None, "fit or load_state comes first"
        label_B = targets["label"]
        cosine_BY = self.proxies(output)
        own_BY = functional.one_hot(label_B.clamp(min=0), len(self.classes))
        logits_BY = (cosine_BY - self.margin * own_BY) / self.temperature
        return functional.cross_entropy(logits_BY, label_B, ignore_index=-1, reduction="none")

    def has_target(self, targets: Mapping[str, Tensor]) -> Tensor:
        return targets["label"] >= 0

    def sample_classes(self, targets: Targets) -> np.ndarray | None:
        assert isinstance(targets, ColumnTargets)
        return targets.columns["label"]

    def target_flip(self, pairs: Sequence[Sequence[str]]) -> TargetFlip:
        return TargetFlip(renumber={"label": swapped_classes(self.classes, pairs)})

    def train_metrics(self, output: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert self.proxies is not None, "fit or load_state comes first"
        return {"accuracy": (self.proxies(output).argmax(dim=1) == targets["label"]).float()}

    def predict(self, output: Tensor) -> Tensor:
        """Return embeddings of length 1."""
        return functional.normalize(output.double(), dim=1)

    def score(self, predictions: Sequence[SamplePrediction], targets: Targets) -> dict[str, Any]:
        true = [targets.of_sample(each.position) for each in predictions]
        embedding_RD = np.stack([each.values["prediction"] for each in predictions if each.values])
        label_R = np.array([each["own_label"] for each in true])
        group_R = np.array([each["group"] for each in true]) if self.exclude_group else None
        scores = retrieval_metrics(Embeddings(embedding_RD, label_R, group_R), ks=_RECALLS)
        if not scores["queries"]:
            raise NothingToScore(
                f"expected two readable videos of a class in the column {self.label}, got one of each; "
                "fix: label more of the validation videos, or set task.args.exclude_group=false"
            )
        draws_RD = torch.randn(len(label_R), self.dimensions, generator=generator(0, purpose="chance"))
        floor = retrieval_metrics(Embeddings(draws_RD, label_R, group_R), ks=_RECALLS)
        return {**scores, "floor": {name: floor[name] for name in ("r_at_1", "r_at_5", "r_at_10", "map")}}


class Proxies(nn.Module):
    """Learned directions of the classes.

    The initial values are the same in all runs: they only need to differ between classes.
    """

    def __init__(self, classes: int, dimensions: int):
        super().__init__()
        draws = generator(0, purpose="proxies")
        self.direction_YD = nn.Parameter(torch.randn(classes, dimensions, generator=draws))

    def forward(self, embedding_BD: Tensor) -> Tensor:
        """Compute the cosine similarity to every class, cosine_BY."""
        return functional.normalize(embedding_BD, dim=1) @ functional.normalize(self.direction_YD, dim=1).T
