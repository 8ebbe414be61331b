"""What the tokens of many images say about an encoder: how alike class tokens are, how many directions features use.

Shapes: F images, K class tokens, D width.
"""

import numpy as np


def class_token_cosine(cls: np.ndarray) -> np.ndarray:
    """Return the mean cosine between the class tokens of an image, (K, K).

    Args:
        cls: (F, K, D).
    """
    tokens = cls.astype(np.float32)
    tokens = tokens / np.maximum(np.linalg.norm(tokens, axis=-1, keepdims=True), 1e-12)
    return np.einsum("fkd,fld->kl", tokens, tokens / len(tokens))


def mean_off_diagonal(matrix: np.ndarray) -> float:
    """Return the mean of a square matrix without its diagonal; NaN for a single row."""
    count = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (count * (count - 1))) if count > 1 else float("nan")


def effective_rank(features: np.ndarray) -> float:
    """Return how many directions features use: the exponential of the entropy of their normalised singular values.

    Roy and Vetterli 2007. 1 means all features lie on a line; the greatest value is the smaller of F - 1 and D.

    Args:
        features: (F, D); their mean is taken off.
    """
    values = np.linalg.svd(features.astype(np.float64) - features.mean(axis=0), compute_uv=False)
    shares = values / max(values.sum(), 1e-12)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))
