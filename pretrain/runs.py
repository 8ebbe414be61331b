"""What ``pixio-robot pretrain`` does, from its settings to its files. Reads downwards; the work is in what it calls."""

import logging
import math
from dataclasses import asdict
from pathlib import Path

import torch

from ..errors import BadInput, UnknownName, closest
from ..hardware import choose_device, choose_precision, keep_memory
from ..progress import Progress
from ..report import write_report
from ..run_folder import open_run, settings_digest, write_json
from ..schemas import Pretrain
from .images.image_set import ImageSet
from .images.sources import open_images
from .masking import MaskShape, mask_shape
from .networks import build_autoencoder, new_autoencoder, sizes
from .optim import peak_lr
from .order import ImageOrder, Order, Split, hold_out
from .parallel import PARALLEL, RECOMPUTE, World, is_first_process, joined, micro_batches
from .plan import DEVICES, Plan, matmul_peak, plan
from .train import PretrainResult, pretrain

log = logging.getLogger(__name__)
POSITIONS = ("sincos", "normal")


def run_pretrain(command: Pretrain, progress: Progress) -> tuple[Path, PretrainResult]:
    """Pre-train an encoder, or go on with it; return the run folder and where it ended."""
    shape = check_settings(command)
    with joined(command.device) as world:
        micro_batches(command, world)
        if world.device.type == "cpu":
            keep_memory()
        precision = choose_precision(command.precision, world.device)
        images = _open_once(command, world)
        split = split_images(images, command)
        order, inputs = order_of(images, split, command)
        steps = count_steps(command, order)
        out = Path(command.out or f"runs/pretrain/{settings_digest(command, inputs)}")
        if world.first:
            open_run(out, command, inputs)
            log.info("%s", summary(command, split, order, shape, steps, world))
        world.wait()
        result = pretrain(
            new_autoencoder(command),
            images,
            split,
            order,
            shape,
            command,
            steps=steps,
            precision=precision,
            peak_flops=matmul_peak(world.device, precision),
            inputs=inputs,
            world=world,
            out=out,
            progress=progress if world.first else Progress.silent(),
        )
        if world.first and not (out / "result.json").is_file():
            _write_result(out, command, images, split, shape, result)
    return out, result


def run_plan(command: Pretrain) -> Plan:
    """Say what a run would cost; trains nothing."""
    shape = check_settings(command)
    device = choose_device(command.device)
    images = open_images(command.images, Path(command.cache)) if command.steps is None else None
    steps = command.steps
    if images is not None:
        steps = count_steps(command, order_of(images, split_images(images, command), command)[0])
    assert steps is not None
    micro_batches(command, World(device, size=command.plan_devices))
    precision = "bf16" if command.plan_device != "here" else choose_precision(command.precision, device)
    if precision == "bf16" and command.precision == "fp32":
        raise BadInput("other devices are planned for bf16, whose peak is known; drop precision=fp32 or plan_device=")
    with torch.device("meta"):
        model = build_autoencoder(command)
    return plan(model, shape, command, steps, device, precision)


def check_settings(command: Pretrain) -> MaskShape:
    """Refuse impossible settings before any work; return how much the masks hide.

    Raises:
        BadInput, UnknownName: naming the setting, what it is and what it may be.
    """
    if command.image_size % command.patch:
        side = command.image_size // command.patch * command.patch
        near = " or ".join(str(each) for each in (side, side + command.patch) if each)
        raise BadInput(f"image_size={command.image_size} is not a multiple of patch={command.patch}; take {near}")
    side = command.image_size // command.patch
    shape = mask_shape((side, side), command.mask_ratio, command.mask_block)
    sizes(command)
    peak_lr(command)
    for what, name, known in (
        ("positions", command.positions, POSITIONS),
        ("plan_device", command.plan_device, ("here", *DEVICES)),
        ("parallel", command.parallel, PARALLEL),
        ("recompute", command.recompute, RECOMPUTE),
    ):
        if name not in known:
            raise UnknownName(f"no {what} {name!r}; there are: {', '.join(known)}{closest(name, known)}")
    if (command.steps is None) == (command.epochs is None):
        raise BadInput(f"steps={command.steps} and epochs={command.epochs}: set exactly one")
    for name, value, low, high in (
        ("drop_path", command.drop_path, 0.0, 0.999),
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
    return shape


def split_images(images: ImageSet, command: Pretrain) -> Split:
    """Set the held-out images aside; of a small set at most half.

    Raises:
        BadInput: for a single image.
    """
    if len(images) < 2:
        raise BadInput(f"{len(images)} image is too few: one is trained on and one held out, at least")
    if command.held_out > len(images) // 2:
        log.warning("held_out=%d of %d images is more than half; half are held out", command.held_out, len(images))
    return hold_out(images, min(command.held_out, len(images) // 2), command.seed)


def order_of(images: ImageSet, split: Split, command: Pretrain) -> tuple[ImageOrder, str]:
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


def count_steps(command: Pretrain, order: ImageOrder) -> int:
    """Return the optimiser steps of the whole run; with weights an epoch is the images it is expected to draw."""
    if command.steps is not None:
        return command.steps
    assert command.epochs is not None
    return max(1, math.ceil(command.epochs * order.epoch_length / command.batch))


def _open_once(command: Pretrain, world: World) -> ImageSet:
    """Open the images, the first process before the others, which then find its index."""
    if world.first:
        images = open_images(command.images, Path(command.cache))
    world.wait()
    return images if world.first else open_images(command.images, Path(command.cache))


def summary(command: Pretrain, split: Split, order: ImageOrder, shape: MaskShape, steps: int, world: World) -> str:
    """Return in one line what is about to be trained; the numbers that launch scripts get wrong."""
    drawn = "" if command.weights is None else f", {order.epoch_length:.0f} of them expected an epoch"
    return (
        f"{split.training} training images{drawn}, {len(split.evaluated)} held out; {steps} steps of {command.batch} "
        f"on {world.size} process(es) = {steps * command.batch / order.epoch_length:.3g} epochs; highest learning rate "
        f"{peak_lr(command):.3g}; {shape.ratio:.2%} of {shape.patches} patches hidden"
    )


def _named(name: str, size: tuple[int, int, int]) -> str:
    words = "x".join(map(str, size))
    return words if words == name else f"{name}: {words}"


def _write_result(
    out: Path, command: Pretrain, images: ImageSet, split: Split, shape: MaskShape, result: PretrainResult
) -> None:
    encoder, decoder = sizes(command)
    position, numbers = result.position, result.numbers
    pictures = sorted((out / "pictures").glob("step-*.png"))
    chosen = pictures if len(pictures) <= 2 else [pictures[0], pictures[-1]]
    facts = {
        "encoder": _named(command.encoder, encoder),
        "decoder": _named(command.decoder, decoder),
        "images": f"{split.training} trained on, {len(split.evaluated)} held out",
        "hidden": f"{shape.ratio:.1%} of {shape.patches} patches, blocks of {shape.block}x{shape.block}",
    }
    shown = {
        "held-out loss, fixed masks": numbers.get("valid/loss"),
        "training loss": numbers.get("train/loss"),
        "images seen": position.samples,
        "images/s": numbers.get("time/images_per_s"),
        "waiting for images": numbers.get("time/waiting_for_data"),
        "TFLOP/s a device": numbers.get("time/tflops_per_device"),
        "share of measured matmul peak": numbers.get("time/share_of_peak"),
        "memory [GB]": numbers.get("time/memory_gb"),
        "cosine between class tokens": numbers.get("features/class_token_cosine"),
        "effective rank of class-token means": numbers.get("features/effective_rank"),
        "k-NN accuracy, class tokens": numbers.get("class_tokens/knn_accuracy"),
        "k-NN accuracy, patch tokens": numbers.get("patches/knn_accuracy"),
        "k-NN accuracy, raw pixels": numbers.get("pixels/knn_accuracy"),
        "steps skipped as not finite": numbers.get("data/skipped_steps"),
        "unreadable images": numbers.get("data/unreadable_images"),
    }
    write_json(
        out / "result.json",
        {
            "title": f"pre-training {command.encoder}",
            "task": ", ".join([command.images] if isinstance(command.images, str) else command.images),
            "facts": facts,
            "numbers": {name: value for name, value in shown.items() if value is not None},
            "pictures": [
                {"file": str(path.relative_to(out)), "caption": f"Held-out images after {int(path.stem[5:])} steps"}
                for path in chosen
            ],
            "class_token_cosine": result.cosine,
            "position": asdict(position),
        },
    )
    write_report(out)
