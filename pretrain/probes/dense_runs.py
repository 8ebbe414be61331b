"""Dense probes: a trained head's errors with intervals, baselines, the head's file and an image.

Shapes: n test images, U units that are resampled, C classes, H x W pixels.
"""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ...depth.estimator import DepthEstimator, DepthHead, save_depth
from ...encoders.load import Backbone
from ...errors import BadInput, DataError, UnknownName, closest
from .dense import depth_errors
from .dense_data import IGNORED, DenseSet, open_dense, split_dense, thinned
from .dense_images import draw_dense
from .dense_training import HeadTraining, blocks_of, encode_dense, nearest, predict, train_head
from .features import Compute
from .labelled import ProbeImages
from .rows import Row

log = logging.getLogger(__name__)

DENSE_PROBES = {  # kind of data, kind of head
    "depth_linear": ("depth", "linear"),
    "depth_dpt": ("depth", "dpt"),
    "segmentation_linear": ("segmentation", "linear"),
    "segmentation_dpt": ("segmentation", "dpt"),
}
_RESAMPLES = 1000
_LONGEST = 256  # side of the baselines' maps [px]


class DenseSplit(NamedTuple):
    """Training and test images of one kind."""

    kind: str
    training: DenseSet
    test: DenseSet
    fingerprint: str  # of the images


def open_dense_split(sources: ProbeImages, kind: str) -> DenseSplit:
    """Open images with depth or labels for every pixel, and split them where there is no `test`.

    Raises:
        BadInput: for a list of sources, or if `val_images` is out of range.
        DataError: if nothing of that kind is there.
    """
    for name, source in (("images", sources.images), ("test", sources.test)):
        if not isinstance(source, str | None):
            raise BadInput(f"{name}={source}: probes of {kind} take one source, a file or a folder, not a list")
    images = open_dense(sources.images, kind)
    if sources.test is None:
        share = sources.test_count(len(images)) / len(images)
        return DenseSplit(kind, *split_dense(images, share, sources.seed), images.fingerprint)
    test = open_dense(sources.test, kind)
    return DenseSplit(kind, images, test, f"{images.fingerprint} {test.fingerprint}")


def dense_rows(
    backbone: Backbone,
    probe: str,
    train: DenseSet,
    test: DenseSet,
    settings: HeadTraining,
    out: Path | None = None,
    compute: Compute = Compute(),
    seed: int = 0,
) -> list[Row]:
    """Train a head on a frozen encoder and return its errors on the test images.

    Intervals are 95 % percentile bootstraps over test images or sequences, see `unit`.

    Args:
        backbone: the encoder; moved to the device of `compute`.
        probe: a name of `DENSE_PROBES`.
        train, test: of one kind, no sequence in both, as from `split_dense`.
        settings: of the training.
        out: folder for ``heads/PROBE-ENCODER.safetensors`` (depth) and ``images/PROBE-ENCODER.png``.
        compute: device of encoder and head, and precision of the encoder.
        seed: of the head, the order and the resampling.

    Raises:
        UnknownName: for another probe.
        BadInput: if the sets are of another kind, or the encoder has no blocks for a DPT head.
        DataError: if no pixel of the training or of the test images is known.
    """
    device, precision = compute
    kind, head = _kinds(probe, train, test)
    train, test = thinned(train, settings.train_images), thinned(test, settings.test_images)
    blocks = blocks_of(backbone, head)
    backbone.to(device)
    grid, size = backbone.token_shape.grid, backbone.preprocessing.size
    features, questions = (
        encode_dense(backbone, images, blocks, train=images is train, precision=precision) for images in (train, test)
    )
    classes = _classes(train, test) if kind == "segmentation" else 0
    trained = train_head(features, head, grid, settings, classes, device, seed)
    predictions = predict(trained, questions, grid, size, device)
    truths = _in_range(questions.whole, settings) if kind == "depth" else questions.whole
    measured = _measure(kind, predictions, truths, test.groups, classes, seed)
    depth = len(getattr(backbone.network, "blocks", ()))
    layer = depth - 1 if depth else -1
    about = (backbone.name, backbone.weights, probe, layer, "patches")
    rows = [Row(*about, *each) for each in measured]
    if out is not None:
        name = f"{probe}-{slug(backbone.name)}"
        if kind == "depth":
            design = DepthHead(head, backbone.token_shape.dim, settings.widths, blocks, list(size), trained.max_depth)
            metrics = {row.metric: row.value for row in rows}
            estimator = DepthEstimator(backbone, trained.head, design, asdict(settings) | {"seed": seed}, metrics)
            save_depth(estimator, out / "heads" / f"{name}.safetensors")
        draw_dense(test, predictions, kind, f"{probe}, {backbone.name}", out / "images" / f"{name}.png")
    return rows


def baseline_rows(kind: str, train: DenseSet, test: DenseSet, settings: HeadTraining, seed: int = 0) -> list[Row]:
    """Return the errors of two predictions without an encoder: the training median, and the median of each pixel.

    For segmentation they are the most frequent classes. With a fixed camera the map of each pixel is a strong baseline.

    Args:
        kind: "depth" or "segmentation".
        train, test, settings, seed: as for `dense_rows`; the same images are used.
    """
    _kinds(f"{kind}_linear", train, test)
    train, test = thinned(train, settings.train_images), thinned(test, settings.test_images)
    truths = [test.read(index).target for index in range(len(test))]
    shape = truths[0].shape
    scale = min(1.0, _LONGEST / max(shape))
    size = (max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale)))
    targets = torch.stack([nearest(train.read(index).target, size) for index in range(len(train))]).numpy()
    classes = _classes(train, test) if kind == "segmentation" else 0
    single: float
    if classes:
        counts = np.stack([(targets == each).sum(0) for each in range(classes)])
        single, every = int(counts.sum((1, 2)).argmax()), counts.argmax(0)
        every = np.where(counts.max(0) > 0, every, single)
        names = ("most frequent class", "most frequent class of each pixel")
    else:
        truths = _in_range(truths, settings)
        targets = np.where(targets <= (settings.max_depth or np.inf), targets, 0)
        if not (targets > 0).any():
            raise DataError(f"not one of the {len(targets)} training images has a pixel whose depth is known")
        unknown = np.ma.masked_equal(targets, 0)
        single = float(np.median(targets[targets > 0]))
        every = np.ma.median(unknown, axis=0).filled(single).astype(np.float32)
        names = ("training median", "median of each pixel")
    rows = []
    for name, values in zip(names, (np.full(size, single, every.dtype), every), strict=True):
        predictions = [nearest(values, (truth.shape[0], truth.shape[1])).numpy() for truth in truths]
        measured = _measure(kind, predictions, truths, test.groups, classes, seed)
        rows += [Row(name, "none", f"{kind}_baseline", -1, "none", *each) for each in measured]
    return rows


def unit(test: DenseSet) -> str:
    """Return the resampled unit of intervals: "sequences" where there are several, else "images"."""
    return "sequences" if test.groups is not None and len(test.groups) > 2 else "images"


def slug(name: str) -> str:
    """Return a file name for an encoder's name.

    >>> slug("runs/x/encoder.safetensors"), slug("random:ti:1")
    ('runs-x-encoder', 'random-ti-1')
    """
    return re.sub(r"[^A-Za-z0-9]+", "-", name.removesuffix(".safetensors").removesuffix(".pth")).strip("-")[-80:]


def confusion(prediction: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Count pixels by true and predicted class, (C, C) int64, without ignored pixels."""
    counted = truth != IGNORED
    pairs = truth[counted].astype(np.int64) * classes + prediction[counted].astype(np.int64)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def class_ious(matrix: np.ndarray) -> np.ndarray:
    """Return intersection over union of each class from a confusion matrix (..., C, C); NaN where it never occurs."""
    both = np.diagonal(matrix, axis1=-2, axis2=-1).astype(np.float64)
    either = matrix.sum(-1) + matrix.sum(-2) - both
    return np.divide(both, either, out=np.full_like(both, np.nan), where=either > 0)


def interval(parts: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], seed: int) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a statistic of summed parts.

    Args:
        parts: (U, ...), one for each unit.
        statistic: of sums (R, ...), one number each.
        seed: of the resampling.
    """
    generator, count = np.random.default_rng(seed), len(parts)
    draws = generator.multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)  # how often each unit is drawn
    values = statistic((draws @ parts.reshape(count, -1)).reshape(_RESAMPLES, *parts.shape[1:]))
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


_Measured = list[tuple[str, float, float, float, int]]  # metric, value, low, high, test images


def _measure(
    kind: str,
    predictions: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    groups: np.ndarray | None,
    classes: int,
    seed: int,
) -> _Measured:
    units = _units(len(truths), groups)
    if kind == "depth":
        return _depth_measured(predictions, truths, units, seed)
    each = np.stack([confusion(p, t, classes) for p, t in zip(predictions, truths, strict=True)])
    if not each.any():
        raise DataError(f"not one of the {len(truths)} test images has a labelled pixel")
    parts = np.add.reduceat(each, units, axis=0)

    def mean_iou(matrices: np.ndarray) -> np.ndarray:
        return np.nanmean(class_ious(matrices), axis=-1)

    whole = each.sum(0)
    measured: _Measured = [("mIoU", float(mean_iou(whole)), *interval(parts, mean_iou, seed), len(truths))]
    for number, value in enumerate(class_ious(whole)):
        if np.isfinite(value):
            bounds = interval(parts, lambda matrices, number=number: class_ious(matrices)[:, number], seed)  # type: ignore[misc]
            measured.append((f"IoU class {number}", float(value), *bounds, len(truths)))
    return measured


def _depth_measured(
    predictions: Sequence[np.ndarray], truths: Sequence[np.ndarray], units: np.ndarray, seed: int
) -> _Measured:
    each = [
        depth_errors(torch.from_numpy(np.asarray(p, np.float32))[None], torch.from_numpy(t)[None])
        for p, t in zip(predictions, truths, strict=True)
    ]
    names = ("rmse [m]", "abs_rel", "delta1")
    values = np.array([[float(error[0]) for error in errors] for errors in each])  # (n, 3), NaN where nothing is known
    known = np.isfinite(values[:, 0])
    if not known.any():
        raise DataError(f"not one of the {len(truths)} test images has a pixel whose depth is known")
    sums = np.concatenate([np.where(known[:, None], values, 0), known[:, None]], axis=1)
    parts = np.add.reduceat(sums, units, axis=0)
    parts = parts[parts[:, 3] > 0]
    return [
        (
            name,
            float(values[known, column].mean()),
            *interval(parts, lambda drawn, column=column: drawn[:, column] / drawn[:, 3], seed),  # type: ignore[misc]
            int(known.sum()),
        )
        for column, name in enumerate(names)
    ]


def _units(count: int, groups: np.ndarray | None) -> np.ndarray:
    """Return the index of the first image of each resampled unit."""
    return np.arange(count) if groups is None or len(groups) <= 2 else groups[:-1]


def _in_range(truths: Sequence[np.ndarray], settings: HeadTraining) -> list[np.ndarray]:
    most = settings.max_depth or np.inf
    return [np.where(truth <= most, truth, 0).astype(np.float32) for truth in truths]


def _kinds(probe: str, train: DenseSet, test: DenseSet) -> tuple[str, str]:
    if probe not in DENSE_PROBES:
        raise UnknownName(
            f"no dense probe {probe!r}; there are: {', '.join(DENSE_PROBES)}{closest(probe, DENSE_PROBES)}"
        )
    kind, head = DENSE_PROBES[probe]
    if {train.kind, test.kind} != {kind}:
        raise BadInput(f"{probe} needs images with {kind}; these are for {train.kind} and {test.kind}")
    if not len(train) or not len(test):
        raise BadInput(f"{probe} needs training and test images; there are {len(train)} and {len(test)}")
    return kind, head


def _classes(train: DenseSet, test: DenseSet) -> int:
    most = -1
    for images in (train, test):
        for index in range(len(images)):
            labels = images.read(index).target
            most = max(most, int(labels[labels != IGNORED].max(initial=0)) if (labels != IGNORED).any() else -1)
    if most < 0:
        raise DataError("not one pixel of the images is labelled; 255 means ignored")
    return max(2, most + 1)
