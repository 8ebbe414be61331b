"""Batches for training: the samples of step k depend on the seed and k only, not on workers, ranks or restarts.

One counter, the position, numbers a run's samples from 0. The image of a position, its crop and its mask noise are
functions of seed and position, so one integer is enough to resume a run.

Shapes: B batch, H height, W width, M mask blocks.
"""

import json
import logging
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import BadInput, DataError, PixioError, Unreadable
from ..files import replacing
from .images.crops import Cropping, center_crop, random_crop
from .images.image_set import ImageSet
from .order import ImageOrder, Split

log = logging.getLogger(__name__)

_ATTEMPTS = 16  # images tried for one sample before the set counts as broken
_CROP, _MASK, _VALIDATION_MASK, _REPLACEMENT = 1, 2, 3, 4  # random streams of one sample
_SHOWN = 5  # unreadable images that are logged one by one


class Batch(NamedTuple):
    """A micro-batch of one rank."""

    images: Tensor  # (B, H, W, 3) uint8, cropped
    mask_noise: Tensor  # (B, M) float32 in [0, 1)
    indices: Tensor  # (B,) int64, the images that were used
    unreadable: list[tuple[str, str]]  # name and reason of images that could not be read


@dataclass(frozen=True)
class Batching:
    """How samples are cut into batches, and how they are read."""

    batch: int  # samples of an optimiser step, over all ranks
    micro_batch: int | None = None  # samples of a yielded batch; None is a rank's whole share of a step
    workers: int = 0  # processes that read and crop; 0 does it in the calling process
    cropping: Cropping = Cropping()  # range of random crops


class SampleShape(NamedTuple):
    """Sizes of one sample."""

    size: tuple[int, int]  # height and width of the crop [px]
    mask_blocks: int  # M, numbers of mask noise


def train_batches(
    images: ImageSet,
    split: Split,
    order: ImageOrder,
    batching: Batching,
    shape: SampleShape,
    *,
    seed: int,
    start: int = 0,
    ranks: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Yield micro-batches of one rank without end.

    Args:
        images: the set.
        split: which of them are trained on.
        order: in which order; of length `split.training`.
        seed: of crops and masks.
        start: position of the first sample; a run that made k steps resumes at ``k * batch``.
        ranks: rank of this process and number of ranks; each yields its own slice of every step.

    Raises:
        BadInput: if ranks or micro-batches do not divide the batch, or the order does not fit the split.
        DataError: if 16 images in a row cannot be read for one sample.
    """
    (rank, world), batch = ranks, batching.batch
    share = batch // world
    micro = share if batching.micro_batch is None else batching.micro_batch
    if batch < 1 or batch % world or micro < 1 or share % micro or not 0 <= rank < world or start < 0:
        raise BadInput(
            f"a batch of {batch} cannot be cut into {world} ranks' micro-batches of {micro} (rank {rank}, start "
            f"{start}); the batch must be a multiple of ranks x micro-batch"
        )
    if order.length != split.training:
        raise BadInput(f"the order is of {order.length} images, the split trains on {split.training}")
    samples = _Samples(images, split, order, seed % 2**63, shape, batching.cropping)
    return _batches(samples, _positions(start, batch, share, micro, rank), batching.workers)


def _batches(samples: "_Samples", positions: Iterable[np.ndarray], workers: int) -> Iterator[Batch]:
    loader: DataLoader[Any] = DataLoader(
        samples,
        batch_size=None,  # an item is a whole micro-batch
        sampler=positions,
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=_begin_worker if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
    for item in loader:
        if isinstance(item, PixioError):  # torch would wrap it in a traceback
            raise item
        yield item._replace(
            unreadable=[(name, reason) for name, reason in item.unreadable]
        )  # pinning makes lists of it


def _positions(start: int, batch: int, share: int, micro: int, rank: int) -> Iterator[np.ndarray]:
    for step in count():
        begin = start + step * batch + rank * share
        for first in range(begin, begin + share, micro):
            yield np.arange(first, first + micro)


def _unchanged(item: Any) -> Any:
    return item


def _begin_worker(number: int) -> None:
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(each, signal.SIG_IGN)  # the parent handles signals that go to all processes
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


@dataclass(frozen=True)
class _Samples(Dataset[Batch | PixioError]):
    """Makes the samples of positions."""

    _images: ImageSet
    _split: Split
    _order: ImageOrder
    _seed: int
    _shape: SampleShape
    _cropping: Cropping

    def __getitem__(self, positions: np.ndarray) -> Batch | PixioError:
        crops = np.empty((len(positions), *self._shape.size, 3), np.uint8)
        noise = np.empty((len(positions), self._shape.mask_blocks), np.float32)
        indices = self._split.index(self._order.at(positions))
        unreadable: list[tuple[str, str]] = []
        try:
            for row, position in enumerate(positions.tolist()):
                crops[row], indices[row] = self._crop(position, int(indices[row]), unreadable)
                noise[row] = self._generator(_MASK, position).random(self._shape.mask_blocks, np.float32)
        except PixioError as error:
            return error
        return Batch(torch.from_numpy(crops), torch.from_numpy(noise), torch.from_numpy(indices), unreadable)

    def _crop(self, position: int, index: int, unreadable: list[tuple[str, str]]) -> tuple[np.ndarray, int]:
        for attempt in range(_ATTEMPTS):
            try:
                generator = self._generator(_CROP, position)
                return random_crop(self._images.read(index), self._shape.size, generator, self._cropping), index
            except (Unreadable, OSError) as error:
                unreadable.append((self._images.name(index), str(error)))
            other = self._generator(_REPLACEMENT, position, attempt).integers(round(self._order.epoch_length), size=1)
            index = int(self._split.index(self._order.at(other))[0])
        last = "; ".join(f"{name}: {reason}" for name, reason in unreadable[-3:])
        raise DataError(f"{_ATTEMPTS} images in a row cannot be read; the last: {last}. Check the images' disk")

    def _generator(self, stream: int, *parts: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, stream, *parts])


def validation_batch(images: ImageSet, split: Split, shape: SampleShape, *, seed: int) -> Batch:
    """Return all images of the validation loss: central crops, each with its own fixed mask noise.

    Args:
        images: the set.
        split: which of them are evaluated; those that cannot be read are left out and named.
        seed: of the masks.

    Raises:
        DataError: if none can be read.
    """
    crops, noise, indices = [], [], []
    unreadable: list[tuple[str, str]] = []
    for index in split.evaluated.tolist():
        try:
            crops.append(center_crop(images.read(index), shape.size))
        except (Unreadable, OSError) as error:
            unreadable.append((images.name(index), str(error)))
            continue
        generator = np.random.default_rng([seed % 2**63, _VALIDATION_MASK, index])
        noise.append(generator.random(shape.mask_blocks, np.float32))
        indices.append(index)
    if unreadable and not indices:
        name, reason = unreadable[-1]
        raise DataError(f"none of {len(unreadable)} validation images can be read; the last: {name}: {reason}")
    return Batch(
        torch.from_numpy(np.stack(crops) if crops else np.zeros((0, *shape.size, 3), np.uint8)),
        torch.from_numpy(np.stack(noise) if noise else np.zeros((0, shape.mask_blocks), np.float32)),
        torch.tensor(indices, dtype=torch.int64),
        unreadable,
    )


class UnreadableLog:
    """``unreadable.jsonl`` of a run: one row for each unreadable image, over all restarts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        whole = [line for line in lines if line.endswith("\n")]  # a crash may leave the last one incomplete
        if len(whole) < len(lines):
            with replacing(path) as temporary:
                temporary.write_text("".join(whole))
        self._names = {json.loads(line)["name"] for line in whole}

    @property
    def count(self) -> int:
        """Return the number of unreadable images."""
        return len(self._names)

    def add(self, unreadable: Iterable[tuple[str, str]]) -> None:
        """Write names and reasons that are new."""
        for name, reason in unreadable:
            if name in self._names:
                continue
            self._names.add(name)
            with self._path.open("a") as file:
                file.write(json.dumps({"name": name, "reason": reason}) + "\n")
            if self.count <= _SHOWN:
                further = f"; further ones only in {self._path}" if self.count == _SHOWN else ""
                log.warning("replaced by another image: %s: %s%s", name, reason, further)
