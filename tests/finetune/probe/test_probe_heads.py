"""Heads trained together: equal to heads trained alone, and to PyTorch's AdamW."""

import numpy as np
import pytest
import torch

from kinemae.finetune.heads.base import Features as Tokens
from kinemae.finetune.probe.batched_adamw import BatchedAdamW
from kinemae.finetune.probe.config import HeadTraining
from kinemae.finetune.probe.data import BatchOrder, LabelledFeatures
from kinemae.finetune.probe.heads import HeadSettings, HeadTrainer, loss_of_heads
from kinemae.finetune.probe.store import Features, slice_statistics, statistics
from kinemae.finetune.tasks.base import ColumnTargets
from tests.task_models import classification

ROWS = np.arange(60)


def labelled(values_SVX, kind):
    """Features with three classes in turn."""
    samples, views = values_SVX.shape[:2]
    features = Features(
        layers={0: values_SVX},
        kind=kind,
        dtype="float32",
        time_SVT=np.zeros((samples, views, 1)),
        readable=np.arange(samples),
    )
    targets = ColumnTargets({"label": np.arange(samples) % 3})
    return LabelledFeatures(features=features, targets=targets, index=None, key="data.train")


def trainer(width=8):
    return HeadTrainer(
        task=classification(3),
        settings=HeadTraining(min_steps=12, epochs=1, batch=16),
        seed=0,
        width=width,
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize("depth", [0, 1])
def test_heads_of_a_grid_equal_heads_trained_alone(depth):
    width = 32
    draws = np.random.default_rng(0)
    tokens = draws.standard_normal((60, 2, 4, width)).astype(np.float32)
    pooled = tokens.mean(axis=2)
    data = labelled(tokens if depth else pooled, "tokens" if depth else "vectors")
    pool = "" if depth else "mean"
    grid = [
        HeadSettings(lr=lr, weight_decay=decay, layer=0, pool=pool, depth=depth)
        for lr, decay in ((1e-3, 0.1), (1e-2, 0.0))
    ]

    together = trainer(width).train(grid, data, ROWS).outputs(data, ROWS)
    alone = torch.cat([trainer(width).train([each], data, ROWS).outputs(data, ROWS) for each in grid])

    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def of_slices(tokens_SVND, slices):
    """The stored statistics of slices."""
    return np.stack(
        [slice_statistics(torch.from_numpy(tokens_VND), slices).numpy() for tokens_VND in tokens_SVND]
    )


@pytest.mark.parametrize("pool", ["statistics", "slices"])
def test_a_saved_head_computes_the_outputs_of_the_grid(pool):
    tokens = np.random.default_rng(0).standard_normal((60, 1, 4, 8)).astype(np.float32)
    slices = 2 if pool == "slices" else 0
    data = labelled(of_slices(tokens, 2), "slices") if slices else labelled(tokens, "tokens")
    settings = HeadSettings(lr=1e-2, weight_decay=0.0, layer=0, pool=pool, slices=slices)

    trained = trainer().train([settings], data, ROWS)
    head = trained.head(0)

    expected = trained.outputs(data, ROWS)[0, :, 0]
    given = Tokens(torch.from_numpy(tokens[:, 0]), slices=slices)
    torch.testing.assert_close(head(given, None), expected)


def test_statistics_of_tokens_equal_stored_statistics():
    tokens = np.random.default_rng(0).standard_normal((6, 2, 4, 8)).astype(np.float32)
    variance, mean = torch.var_mean(torch.from_numpy(tokens), dim=2, unbiased=False)
    stored = labelled(statistics(mean, variance).numpy(), "statistics").features
    by_slice = labelled(of_slices(tokens, 2), "slices").features
    whole = labelled(tokens, "tokens").features

    for pool in ("mean", "statistics"):
        expected = whole.pooled(0, pool, np.arange(6))
        torch.testing.assert_close(stored.pooled(0, pool, np.arange(6)), expected)
        torch.testing.assert_close(by_slice.pooled(0, pool, np.arange(6)), expected)
    means = torch.from_numpy(tokens).unflatten(2, (2, 2)).mean(dim=3).flatten(2)
    torch.testing.assert_close(by_slice.pooled(0, "slices", np.arange(6)), means)


@pytest.mark.parametrize("args", [{}, {"label_smoothing": 0.1}, {"loss": "focal"}, {"loss": "bce"}])
def test_the_loss_of_all_heads_is_that_of_the_task(args):
    task = classification(3, **args)
    output_HYB = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    targets = {
        "label": torch.tensor([0, 1, 2, 0, -1]) if "loss" not in args else torch.tensor([0, 1, 2, 0, 1])
    }

    found = loss_of_heads(task, output_HYB, targets)

    torch.testing.assert_close(found, torch.stack([task.loss(each.T, targets) for each in output_HYB]))


def test_batched_adamw_equals_adamw():
    draws = torch.Generator().manual_seed(0)
    start_HYX = torch.randn(2, 3, 4, generator=draws)
    gradients = torch.randn(5, 2, 3, 4, generator=draws)
    together = start_HYX.clone().requires_grad_()
    rates, decays = [1e-2, 1e-3], [0.1, 0.0]
    optimizer = BatchedAdamW(
        [together],
        lr_H=torch.tensor(rates),
        weight_decay_H=torch.tensor(decays),
        is_decayed=[True],
        clip_norm=1.0,
    )
    for gradient in gradients:
        together.grad = gradient.clone()
        optimizer.step()

    for number in range(2):
        alone = start_HYX[number].clone().requires_grad_()
        adamw = torch.optim.AdamW([alone], lr=rates[number], weight_decay=decays[number])
        for gradient in gradients:
            alone.grad = gradient[number].clone()
            torch.nn.utils.clip_grad_norm_([alone], 1.0)
            adamw.step()
        torch.testing.assert_close(together[number].detach(), alone.detach())


def test_an_epoch_takes_each_sample_once_and_views_in_turn():
    order = BatchOrder(np.arange(10, 17), views=3, batch=4, seed=0)

    batches = [order.at(step) for step in range(7)]

    samples, views = (np.concatenate([batch[part] for batch in batches]) for part in (1, 2))
    epochs = samples.reshape(4, 7)
    assert all(sorted(epoch) == list(range(10, 17)) for epoch in epochs)
    assert not (epochs[0] == epochs[1]).all()
    seen = {(sample, view) for sample, view in zip(samples[:21], views[:21], strict=True)}
    assert len(seen) == 21  # three epochs, three views
    again = BatchOrder(np.arange(10, 17), views=3, batch=4, seed=0).at(5)
    assert all((one == other).all() for one, other in zip(again, batches[5], strict=True))
