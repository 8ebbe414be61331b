"""Multinomial logistic regression on frozen features; weight decay is chosen on a part of the training features.

Shapes: F training features, Q test features, D width, C classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)  # times the squared weights, beside the mean cross-entropy


class LinearProbe(NamedTuple):
    """Predictions for the test features."""

    predictions: Tensor  # (Q,) int64
    decay: float  # chosen weight decay


def linear_probe(
    features: Tensor, labels: Tensor, queries: Tensor, *, seed: int, decays: Sequence[float] = DECAYS, steps: int = 100
) -> LinearProbe:
    """Fit on training features and predict the labels of test features, which are not used for any choice.

    Args:
        features: (F, D); standardised by their own mean and deviation.
        labels: (F,) int64, from 0.
        queries: (Q, D).
        seed: selects the fifth of the training features that the weight decay is chosen on.
        steps: maximum number of L-BFGS iterations.
    """
    mean, std = features.mean(0), features.std(0).clamp(min=1e-6)
    features, queries = (features - mean) / std, (queries - mean) / std
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(features)))
    chosen, rest = order[: max(1, len(order) // 5)], order[max(1, len(order) // 5) :]
    classes = int(labels.max()) + 1

    def right(decay: float) -> int:
        scores = _fit(features[rest], labels[rest], classes, decay, steps)(features[chosen])
        return int((scores.argmax(1) == labels[chosen]).sum())

    decay = max(decays, key=right)
    return LinearProbe(_fit(features, labels, classes, decay, steps)(queries).argmax(1), decay)


def _fit(features: Tensor, labels: Tensor, classes: int, decay: float, steps: int) -> torch.nn.Linear:
    layer = torch.nn.Linear(features.shape[1], classes, device=features.device).requires_grad_(True)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(layer(features), labels) + decay * layer.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return layer.requires_grad_(False)
