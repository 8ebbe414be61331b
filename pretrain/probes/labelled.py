"""Labelled training and test images of probes, the same for every encoder.

Shapes: n images of a part.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import BadInput, DataError
from ..images.image_set import ImageSet
from ..images.sources import open_images
from ..order import hold_out

_ADVICE = (
    "labelled sources are folders with a sub-folder for each class, tar shards with a .cls beside each image, and "
    "'procedural'; images with depth are for probes=[depth_linear,depth_dpt]"
)


@dataclass(frozen=True)
class ProbeImages:
    """Sources of the images that probes are trained and tested on."""

    images: Any  # to train on, as for `open_images`
    test: Any = None  # to test on; None splits `images`
    val_images: float = 0.2  # without `test`: images to test on, a share below 1 or a number
    seed: int = 0  # of the split
    cache: Path = Path("runs/cache")  # of the image indexes

    def test_count(self, total: int) -> int:
        """Return how many of `total` images to test on.

        Raises:
            BadInput: if `val_images` is out of range.
        """
        value = self.val_images
        count = round(value * total) if 0 < value < 1 else value
        if count != int(count) or not 1 <= count <= total // 2:
            raise BadInput(
                f"val_images={value:g} of {total} images: give a share up to 0.5 or a whole number up to {total // 2}, "
                "or separate test images: test=..."
            )
        return int(count)


class Part(NamedTuple):
    """Some labelled images of a set."""

    images: ImageSet
    indices: np.ndarray  # (n,) int64, sorted
    labels: np.ndarray  # (n,) int64


class Labelled(NamedTuple):
    """Training and test images."""

    training: Part
    test: Part
    classes: tuple[str, ...]
    fingerprint: str  # of the images


def open_labelled(sources: ProbeImages) -> Labelled:
    """Open images with labels, and split them where there is no `test`.

    Raises:
        DataError: if labels are missing, or test images are of classes that no training image has.
        BadInput: if there are too few classes or images, or `val_images` is out of range.
    """
    images = open_images(sources.images, sources.cache)
    labels = _labels_of(images, f"images={sources.images}")
    if sources.test is None:
        count = sources.test_count(len(images))
        split = hold_out(images, count, sources.seed)
        training = _part(images, labels, np.setdiff1d(np.arange(len(images)), split.val_images), images.classes)
        test = _part(images, labels, split.evaluated, images.classes)
        fingerprint = images.fingerprint
    else:
        others = open_images(sources.test, sources.cache)
        test_labels = _labels_of(others, f"test={sources.test}")
        _require_known(images, others, test_labels)
        training = _part(images, labels, np.arange(len(images)), images.classes)
        test = _part(others, test_labels, np.arange(len(others)), images.classes)
        fingerprint = f"{images.fingerprint} {others.fingerprint}"
    seen = np.unique(training.labels)
    if len(seen) < 2 or not len(test.indices):
        raise BadInput(
            f"{len(training.indices)} labelled training images of {len(seen)} classes and {len(test.indices)} labelled "
            "test images: at least two classes and one test image are needed"
        )
    if len(lacking := np.setdiff1d(test.labels, seen)):
        names = ", ".join(images.classes[label] for label in lacking[:5].tolist())
        raise DataError(
            f"test images are of {len(lacking)} class(es) that no training image has: {names}; give training images "
            "of them, leave these test images out, or test on fewer or others (val_images=, seed=)"
        )
    return Labelled(training, test, images.classes, fingerprint)


def _labels_of(images: ImageSet, what: str) -> np.ndarray:
    """Return the labels of a set, (N,) int32; at least one is known."""
    if images.labels is None or not (images.labels >= 0).any():
        raise DataError(f"the {len(images)} images of {what} have no labels, and these probes need them; {_ADVICE}")
    return images.labels


def _require_known(images: ImageSet, others: ImageSet, labels: np.ndarray) -> None:
    used = [others.classes[label] for label in np.unique(labels[labels >= 0]).tolist()]
    if lacking := [name for name in used if name not in images.classes]:
        raise DataError(
            f"test images are of {len(lacking)} class(es) that no training image has: {', '.join(lacking[:5])}; "
            f"training images are of: {', '.join(images.classes[:10])}. Classes are matched by name"
        )


def _part(images: ImageSet, labels: np.ndarray, indices: np.ndarray, classes: tuple[str, ...]) -> Part:
    labels = np.asarray(labels[indices])
    indices, labels = indices[labels >= 0], labels[labels >= 0]
    numbers = {name: number for number, name in enumerate(classes)}
    ours = np.array([numbers.get(name, -1) for name in images.classes], np.int64)  # -1 for classes without images
    return Part(images, indices, ours[labels])
