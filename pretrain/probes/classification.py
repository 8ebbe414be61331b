"""Probes of labelled images, and the features that each reads.

Shapes: F training and Q test images.
"""

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from ...errors import DataError
from ...metrics import success_rate
from .features import Features
from .knn import knn_predict
from .linear import linear_probe
from .rows import Row

NEIGHBOURS = (10, 20, 100, 200)  # the first is the headline


class Subject(NamedTuple):
    """What is probed."""

    encoder: str
    weights: str
    layer: int  # the last block; -1 where blocks have no number
    token: str = "mean"  # input of the headline


class Measured(NamedTuple):
    """Results of one probe on one subject."""

    rows: list[Row]  # the headline first
    right: Tensor  # (Q,) bool: which test images the headline gets right


def knn_rows(subject: Subject, training: Features, test: Features, seed: int) -> Measured:
    """Vote among nearest neighbours on the mean of the raw class tokens."""
    counts = [k for k in NEIGHBOURS if k <= len(training.raw)] or [len(training.raw)]
    right = knn_predict(training.raw, training.labels, test.raw, counts) == test.labels
    rows = [_row(subject, "knn", f"accuracy@{k}", each) for k, each in zip(counts, right, strict=True)]
    return Measured(rows, right[0])


def linear_rows(subject: Subject, training: Features, test: Features, seed: int) -> Measured:
    """Fit a linear probe on every kind of token, then on every block."""
    rows, first = [], None
    readings = zip(_readings(subject, training), _readings(subject, test), strict=True)
    for (layer, token, features), (_, _, queries) in readings:
        right = linear_probe(features, training.labels, queries, seed=seed).predictions == test.labels
        rows.append(_row(subject._replace(layer=layer, token=token), "linear", "accuracy", right))
        first = right if first is None else first
    if first is None:
        raise DataError(f"{subject.encoder} has no features to probe")
    return Measured(rows, first)


PROBES = {"knn": knn_rows, "linear": linear_rows}


def _readings(subject: Subject, features: Features) -> Iterable[tuple[int, str, Tensor]]:
    last, tokens = subject.layer, features.cls.shape[1]
    yield last, subject.token, features.cls.mean(1)
    if tokens > 1:
        yield from ((last, str(token), features.cls[:, token]) for token in range(tokens))
        yield last, "concat", features.cls.flatten(1)
    if features.patches.shape[1]:
        yield last, "patches", features.patches
    for layer in range(features.layers.shape[1] - 1):  # the last block is the headline
        yield layer, subject.token, features.layers[:, layer]


def _row(subject: Subject, probe: str, metric: str, right: Tensor) -> Row:
    rate = success_rate(right.tolist())
    return Row(
        subject.encoder,
        subject.weights,
        probe,
        subject.layer,
        subject.token,
        metric,
        rate.value,
        rate.low,
        rate.high,
        rate.trials,
    )
