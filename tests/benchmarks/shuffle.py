"""Benchmark orders by simulation: how well they mix, and which part of a node's reads its cache serves.

    python tests/benchmarks/shuffle.py            # about a minute on one core, reads no data

The data set is sorted by class, the worst case for orders that read neighbours together. Every order but
`random` holds the same number of samples at a time. The peers are implemented from their documentation:
webdataset shuffles shards, splits them by worker, and draws from a buffer in each worker; MosaicML's py1e
shuffles shards and spreads the samples of each over a range of positions.

`distance` is the mean distance in the data set of two samples of a step, and `same class` the share of pairs
of one class in a step, both divided by those of a random permutation. `classes` is the number of classes in a
step of 256 samples. A hit is a sample that an earlier epoch left in the cache of the node that reads it.
"""

import argparse
from collections import OrderedDict
from collections.abc import Callable, Iterator

import numpy as np

from kinemae.data_tools.orders.base import Order, OrderFacts
from kinemae.data_tools.orders.blocks import BlockOrder
from kinemae.data_tools.orders.random import RandomOrder

SHARD, BLOCK, WINDOW, STEP, CLASSES, WORKERS = 1024, 64, 4096, 256, 400, 8
STEPS, CACHED = 128, 32_768  # steps of the first table; samples of the second one
NODES = (1, 2, 4, 8, 16, 32, 64, 128)
EPOCHS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=262_144, help="of the data set for the first table")
    samples = parser.parse_args().samples
    print(f"{'order':44} distance  same class  classes")
    baseline = quality(some_steps(RandomOrder(), samples), samples)
    for name, make in orders(samples).items():
        distance, same, classes = quality(make(), samples)
        print(f"{name:44} {distance / baseline[0]:8.2f} {same / baseline[1]:11.1f} {classes:8.0f}")
    print("\nshare of hits in epoch 4; each node has a cache for a part of its share of the data")
    print(f"{'order, policy, cache':44} " + " ".join(f"{nodes:4}" for nodes in NODES) + " nodes")
    for name, rates in hit_rates(CACHED).items():
        print(f"{name:44} " + " ".join(f"{rate:4.2f}" for rate in rates))


def orders(samples: int) -> dict[str, Callable[[], np.ndarray]]:
    """Some steps in the middle of an epoch, by the name of the order."""
    buffer, begin = WINDOW // WORKERS, samples // 2 // STEP * STEP
    middle = slice(begin, begin + STEPS * STEP)
    return {
        "random": lambda: some_steps(RandomOrder(), samples),
        "blocks": lambda: some_steps(block_order(), samples),
        "blocks, one partition": lambda: some_steps(block_order(partitions=1), samples),
        "webdataset, 8 workers with a buffer of 512": lambda: webdataset_order(samples, buffer)[middle],
        "webdataset, 8 workers with a buffer of 4096": lambda: webdataset_order(samples, WINDOW)[middle],
        "MosaicML py1e, range of 4096": lambda: py1e_order(samples, WINDOW)[middle],
        "shards in random order, without a buffer": lambda: webdataset_order(samples, 1)[middle],
    }


def block_order(partitions: int | None = None, window: int = WINDOW // BLOCK) -> BlockOrder:
    """Block order of samples of one megabyte."""
    return BlockOrder(block_mb=BLOCK, window=window, partitions=partitions)


def some_steps(order: Order, samples: int) -> np.ndarray:
    """Positions of some steps in the middle of an epoch."""
    begin = samples // 2 // STEP * STEP
    return positions(order, samples, 0, range(begin, begin + STEPS * STEP))


def positions(order: Order, samples: int, epoch: int, places: range) -> np.ndarray:
    """Positions in the data set at some places of an epoch."""
    facts = OrderFacts(samples=samples, bytes_per_sample=1e6, videos_per_step=STEP)
    return np.array([order.position(0, epoch, i, facts) for i in places])


def webdataset_order(samples: int, buffer: int) -> np.ndarray:
    """Shuffled shards, split by worker; each worker draws from a buffer; batches take workers in turn."""
    chance = np.random.default_rng(0)
    shards = chance.permutation(-(-samples // SHARD))
    workers = []
    for worker in range(WORKERS):
        own = [
            np.arange(shard * SHARD, min((shard + 1) * SHARD, samples)) for shard in shards[worker::WORKERS]
        ]
        workers.append(list(buffered(np.concatenate(own), buffer, chance)))
    rounds = max(map(len, workers))
    return np.array([stream[i] for i in range(rounds) for stream in workers if i < len(stream)])


def buffered(stream: np.ndarray, size: int, chance: np.random.Generator) -> Iterator[int]:
    """Draw from a buffer that is filled from a stream."""
    held: list[int] = []
    for sample in stream.tolist():
        held.append(sample)
        if len(held) >= size:
            at = int(chance.integers(len(held)))
            held[at], held[-1] = held[-1], held[at]
            yield held.pop()
    yield from chance.permutation(held).tolist()


def py1e_order(samples: int, block: int) -> np.ndarray:
    """Shuffled shards; each sample moves by a random distance, so that a shard covers `block` positions."""
    chance = np.random.default_rng(0)
    shards = [np.arange(begin, min(begin + SHARD, samples)) for begin in range(0, samples, SHARD)]
    sequence = np.concatenate(
        [chance.permutation(shards[shard]) for shard in chance.permutation(len(shards))]
    )
    reach = max(block - SHARD, 0) / 2
    return sequence[np.argsort(np.arange(samples) + chance.uniform(-reach, reach, samples), kind="stable")]


def quality(order_N: np.ndarray, samples: int) -> tuple[float, float, float]:
    """Mean distance of two samples of a step, share of pairs of one class, classes in a step."""
    chance = np.random.default_rng(0)
    pairs_SG = chance.permuted(order_N.reshape(-1, STEP), axis=1)
    class_SG = pairs_SG * CLASSES // samples
    distance = float(np.abs(np.diff(pairs_SG)).mean())
    same = np.mean([np.sum(np.bincount(step) ** 2) - STEP for step in class_SG]) / (STEP * (STEP - 1))
    return distance, float(same), float(np.mean([len(np.unique(step)) for step in class_SG]))


def hit_rates(samples: int) -> dict[str, list[float]]:
    """Share of hits in the last epoch by order, policy and size of the cache, for each number of nodes."""
    stable = block_order(partitions=max(NODES), window=2 * max(NODES))
    read = {
        "random": [positions(RandomOrder(), samples, epoch, range(samples)) for epoch in range(EPOCHS)],
        "blocks": [positions(stable, samples, epoch, range(samples)) for epoch in range(EPOCHS)],
    }
    found = {}
    for fraction in (1.0, 0.5, 0.25):
        for order, keeps in (("random", False), ("random", True), ("blocks", True)):
            policy = "keep" if keeps else "least recently used"
            rates = [hit_rate(read[order], nodes, fraction, keeps=keeps) for nodes in NODES]
            found[f"{order}, {policy}, {fraction:.0%}"] = rates
    return found


def hit_rate(epochs: list[np.ndarray], nodes: int, fraction: float, *, keeps: bool) -> float:
    """Share of hits in the last epoch.

    Args:
        fraction: size of a node's cache, in parts of the samples that it reads in an epoch.
        keeps: a full cache keeps its samples; else the least recently used one is evicted.
    """
    samples = len(epochs[0])
    size, hits = round(fraction * samples / nodes), 0
    caches: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(nodes)]
    for epoch, order_N in enumerate(epochs):
        hits = 0
        slot_N = (epoch * samples + np.arange(samples)) % STEP
        for sample, node in zip(order_N.tolist(), (slot_N * nodes // STEP).tolist(), strict=True):
            cache = caches[node]
            if sample in cache:
                hits += 1
                cache.move_to_end(sample)
            elif len(cache) < size or not keeps:
                cache[sample] = None
                if len(cache) > size:
                    cache.popitem(last=False)
    return hits / samples


if __name__ == "__main__":
    main()
