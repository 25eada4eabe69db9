"""Random inputs of metrics."""

import numpy as np
from hypothesis import strategies as st

SEEDS = st.integers(0, 2**32 - 1)


def names(probability_RY):
    """Class names for the columns."""
    return [f"class-{number}" for number in range(np.shape(probability_RY)[1])]


def probabilities(draw, samples, classes):
    """Rows that sum to 1, with many ties, zeros and ones among them."""
    random = np.random.default_rng(draw(SEEDS))
    if draw(st.booleans()):
        return random.dirichlet(np.ones(classes), size=samples)
    weight_RY = random.integers(0, 3, size=(samples, classes)).astype(float)
    weight_RY[weight_RY.sum(axis=1) == 0, 0] = 1
    return weight_RY / weight_RY.sum(axis=1, keepdims=True)
