"""k-NN classification on frozen features.

Shapes: F features of a bank, Q queries, D width, M numbers of neighbours.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_MOST = 2**26  # similarities at once


def knn_predict(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, neighbours: Sequence[int], temperature: float = 0.07
) -> Tensor:
    """Return the labels by weighted votes of the nearest neighbours, (M, Q) int64.

    Votes weigh exp(cosine / temperature) (Wu et al. 2018, with DINO's values).

    Args:
        bank: (F, D), compared by cosine.
        bank_labels: (F,) int64, from 0.
        queries: (Q, D).
        neighbours: M numbers of voters, each at most F.
    """
    bank, classes = F.normalize(bank.float(), dim=1), int(bank_labels.max()) + 1
    parts = []
    for part in queries.split(max(1, _MOST // len(bank))):
        similarity = F.normalize(part.float(), dim=1) @ bank.T
        weights, rows = similarity.topk(min(max(neighbours), len(bank)), dim=1)  # nearest first
        weights, labels = (weights / temperature).exp(), bank_labels[rows]
        votes = [
            torch.zeros(len(part), classes, device=part.device).scatter_add_(1, labels[:, :count], weights[:, :count])
            for count in neighbours
        ]
        parts.append(torch.stack(votes).argmax(dim=2))
    return torch.cat(parts, dim=1)


def knn_accuracy(bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor, neighbours: int = 20) -> float:
    """Return the share of queries (Q, D) whose nearest neighbours vote for their label, (Q,) int64."""
    return float((knn_predict(bank, bank_labels, queries, [neighbours])[0] == labels).float().mean())
