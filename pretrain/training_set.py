"""The images of a training run: which are trained on, in which order, and which are kept for validation."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..training.distributed import World, is_first_process
from .images.image_set import ImageSet
from .images.sources import open_images
from .order import ImageOrder, Order, Split, hold_out

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataConfig:
    """Where training images come from and how they are split and ordered.

    Raises:
        BadInput: if `images` names no source.
    """

    images: Any  # a source or a list of sources, as for `open_images`
    val_images: int = 256  # kept out of training
    shuffle_block: int | None = None  # images that are stored and visited together; None is the source's own number
    weights: Path | None = None  # file of `pixio-robot curate`; each epoch draws images by them
    cache: Path = Path("runs/cache")  # of the image indexes

    def __post_init__(self) -> None:
        sources = [self.images] if isinstance(self.images, str) else self.images
        if not isinstance(sources, list) or not sources or not all(isinstance(each, str) and each for each in sources):
            raise BadInput(f"images={self.images} must name a source, or several: images=[photos,shards]")


@dataclass(frozen=True)
class TrainingSet:
    """Images, their split, and the order in which the training images are visited."""

    images: ImageSet
    split: Split
    order: ImageOrder
    fingerprint: str  # hash of all files that decide what is trained on

    def with_fingerprint(self, fingerprint: str) -> "TrainingSet":
        """Return the same set with another fingerprint, for runs that read further files."""
        return replace(self, fingerprint=fingerprint)


def open_training_set(config: DataConfig, batch: int, seed: int, world: World) -> TrainingSet:
    """Open the images, split them and choose their order.

    Every process calls this. The first opens the images before the others, which then find its index.

    Args:
        batch: images a step.
        seed: of split and order.

    Raises:
        DataError: if there are no images, or the weights do not fit them.
        BadInput: for a single image.
    """
    if world.first:
        images = open_images(config.images, config.cache)
    world.wait()
    if not world.first:
        images = open_images(config.images, config.cache)
    split = split_images(images, config.val_images, seed)
    order, fingerprint = order_of(images, split, config, batch, seed)
    return TrainingSet(images, split, order, fingerprint)


def split_images(images: ImageSet, count: int, seed: int) -> Split:
    """Choose `count` validation images; of a small set at most half.

    Raises:
        BadInput: for a single image.
    """
    if len(images) < 2:
        raise BadInput(f"{len(images)} image is too few: at least one is for training and one for validation")
    if count > len(images) // 2:
        log.warning("val_images=%d is more than half of %d images; half of them are used", count, len(images))
    return hold_out(images, min(count, len(images) // 2), seed)


def order_of(images: ImageSet, split: Split, config: DataConfig, batch: int, seed: int) -> tuple[ImageOrder, str]:
    """Return the order of the training images, and a hash of the files that decide what is trained on."""
    block = config.shuffle_block or images.block
    mix = 1 if block == 1 else max(1, 16 * batch // block)  # so that a batch comes from many places
    if config.weights is None:
        return Order(split.training, seed, block, mix), images.fingerprint
    from .curation.accepted_order import AcceptedOrder
    from .curation.joined import join_weights

    joined = join_weights(images, split, config.weights, config.cache)
    if joined.missing and is_first_process():
        log.warning("%d of %d training images have no weight and are never drawn", joined.missing, split.training)
    return AcceptedOrder(joined.folder, seed, block, mix), f"{images.fingerprint} {joined.sha256}"
