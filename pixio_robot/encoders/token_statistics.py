"""Statistics of an encoder's tokens: similarity of class tokens, effective rank of features.

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
    """Return the effective rank of features: the exponential of the entropy of their normalised singular values.

    Roy and Vetterli 2007. It is 1 if all features lie on a line, and at most the smaller of F - 1 and D.

    Args:
        features: (F, D); their mean is subtracted.
    """
    values = np.linalg.svd(features.astype(np.float64) - features.mean(axis=0), compute_uv=False)
    shares = values / max(values.sum(), 1e-12)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))
