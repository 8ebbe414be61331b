"""What frozen features are good for, read without training.

Shapes: F features of a bank, Q queries, D width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def knn_accuracy(
    bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor, neighbours: int = 20, temperature: float = 0.07
) -> float:
    """Return the share of queries whose weighted nearest neighbours vote for their label.

    Votes weigh exp(cosine / temperature) (Wu et al. 2018, with DINO's values).

    Args:
        bank: (F, D), compared by cosine.
        bank_labels: (F,) int64, from 0.
        queries: (Q, D).
        labels: (Q,) int64.
        neighbours: how many vote; at most F.
    """
    similarity = F.normalize(queries.float(), dim=1) @ F.normalize(bank.float(), dim=1).T
    weights, rows = similarity.topk(min(neighbours, len(bank)), dim=1)
    classes = int(torch.maximum(bank_labels.max(), labels.max())) + 1
    votes = torch.zeros(len(queries), classes, device=queries.device)
    votes.scatter_add_(1, bank_labels[rows], (weights / temperature).exp())
    return float((votes.argmax(dim=1) == labels).float().mean())
