"""What every training command does around the loop: check settings, open images, make the run folder, train."""

import logging
import math
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadInput, UnknownName, closest
from ..hardware import choose_precision, keep_memory
from ..progress import silent
from ..run_folder import open_run
from ..training.distributed import PARALLEL, World, is_first_process, micro_batches
from ..training.optim import peak_lr
from .images.image_set import ImageSet
from .images.sources import open_images
from .objective import Objective
from .order import ImageOrder, Order, Split, hold_out
from .plan import matmul_peak
from .settings import Training
from .train import TrainResult, train

log = logging.getLogger(__name__)


@dataclass
class Prepared:
    """What a run trains on, and how long."""

    command: Training
    world: World
    images: ImageSet
    split: Split
    order: ImageOrder
    inputs: str  # hash of the files that decide what is trained on
    steps: int

    @property
    def summary(self) -> str:
        """In one line what is about to be trained; the numbers that launch scripts get wrong."""
        drawn = "" if self.command.weights is None else f", {self.order.epoch_length:.0f} of them expected an epoch"
        epochs = self.steps * self.command.batch / self.order.epoch_length
        return (
            f"{self.split.training} training images{drawn}, {len(self.split.evaluated)} held out; {self.steps} steps "
            f"of {self.command.batch} on {self.world.size} process(es) = {epochs:.3g} epochs; highest learning rate "
            f"{peak_lr(self.command.lr, self.command.base_lr, self.command.batch):.3g}"
        )


def prepare(command: Training, world: World) -> Prepared:
    """Open the images and decide which are held out, in which order the others come, and for how many steps."""
    micro_batches(command.batch, command.micro_batch, world.size)
    images = _open_once(command, world)
    split = split_images(images, command)
    order, inputs = order_of(images, split, command)
    return Prepared(command, world, images, split, order, inputs, count_steps(command, order))


def run_training(prepared: Prepared, objective: Objective, out: Path) -> TrainResult:
    """Make the run folder and train, or go on with it."""
    command, world = prepared.command, prepared.world
    if world.device.type == "cpu":
        keep_memory()
    precision = choose_precision(command.precision, world.device)
    if world.first:
        open_run(out, command, prepared.inputs)
    world.wait()
    with nullcontext() if world.first else silent():
        return train(
            objective,
            prepared.images,
            prepared.split,
            prepared.order,
            command,
            steps=prepared.steps,
            precision=precision,
            peak_flops=matmul_peak(world.device, precision),
            inputs=prepared.inputs,
            world=world,
            out=out,
        )


def check_names(*choices: tuple[str, str, tuple[str, ...]]) -> None:
    """Refuse settings that are none of the names there are.

    Args:
        choices: setting, value, known values.

    Raises:
        UnknownName: naming the setting and what it may be.
    """
    for what, name, known in choices:
        if name not in known:
            raise UnknownName(f"no {what} {name!r}; there are: {', '.join(known)}{closest(name, known)}")


def check_training(command: Training, drop_path: float) -> None:
    """Refuse impossible settings of any training before any work.

    Raises:
        BadInput, UnknownName: naming the setting, what it is and what it may be.
    """
    peak_lr(command.lr, command.base_lr, command.batch)
    check_names(("parallel", command.parallel, PARALLEL))
    if (command.steps is None) == (command.epochs is None):
        raise BadInput(f"steps={command.steps} and epochs={command.epochs}: set exactly one")
    for name, value, low, high in (
        ("drop_path", drop_path, 0.0, 0.999),
        ("warmup", command.warmup, 0.0, 1.0),
        ("beta1", command.beta1, 0.0, 0.9999),
        ("beta2", command.beta2, 0.0, 0.99999),
    ):
        if not low <= value <= high:
            raise BadInput(f"{name}={value} must lie from {low:g} to {high:g}")
    scale = command.crop_scale
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise BadInput(f"crop_scale={scale} must be two shares of the area, e.g. [0.2,1.0]")
    for name, amount in (("clip", command.clip), ("epochs", command.epochs)):
        if amount is not None and not 0 < amount < math.inf:
            raise BadInput(f"{name}={amount} must be positive and finite, or null")
    if not 0 <= command.weight_decay < math.inf:
        raise BadInput(f"weight_decay={command.weight_decay} must be 0 or positive")
    sources = [command.images] if isinstance(command.images, str) else command.images
    if not isinstance(sources, list) or not sources or not all(isinstance(each, str) and each for each in sources):
        raise BadInput(f"images={command.images} must name a source, or several: images=[photos,shards]")


def split_images(images: ImageSet, command: Training) -> Split:
    """Set the held-out images aside; of a small set at most half.

    Raises:
        BadInput: for a single image.
    """
    if len(images) < 2:
        raise BadInput(f"{len(images)} image is too few: one is trained on and one held out, at least")
    if command.val_images > len(images) // 2:
        log.warning("val_images=%d of %d images is more than half; half are held out", command.val_images, len(images))
    return hold_out(images, min(command.val_images, len(images) // 2), command.seed)


def order_of(images: ImageSet, split: Split, command: Training) -> tuple[ImageOrder, str]:
    """Return the order of training images, and a hash of the files that decide what is trained on."""
    block = command.shuffle_block or images.block
    mix = 1 if block == 1 else max(1, 16 * command.batch // block)  # so a batch comes from many places
    if command.weights is None:
        return Order(split.training, command.seed, block, mix), images.fingerprint
    from .curation.accepted_order import AcceptedOrder
    from .curation.joined import join_weights

    joined = join_weights(images, split, Path(command.weights), Path(command.cache))
    if joined.missing and is_first_process():
        log.warning("%d of %d training images have no weight and are never drawn", joined.missing, split.training)
    return AcceptedOrder(joined.folder, command.seed, block, mix), f"{images.fingerprint} {joined.sha256}"


def count_steps(command: Training, order: ImageOrder) -> int:
    """Return the optimiser steps of the whole run; with weights an epoch is the images it is expected to draw."""
    if command.steps is not None:
        return command.steps
    assert command.epochs is not None
    return max(1, math.ceil(command.epochs * order.epoch_length / command.batch))


def _open_once(command: Training, world: World) -> ImageSet:
    """Open the images, the first process before the others, which then find its index."""
    if world.first:
        images = open_images(command.images, Path(command.cache))
    world.wait()
    return images if world.first else open_images(command.images, Path(command.cache))
