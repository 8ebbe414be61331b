"""Pre-training by masked reconstruction: one plain loop that goes on exactly where it stopped.

Shapes: B images of a micro-batch, M mask blocks.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..hardware import autocast, seeded
from ..preprocessing import Preprocessing, preprocess
from ..progress import Progress
from ..run_folder import binding_settings
from ..schemas import Pretrain
from .guard import Guard
from .images.crops import Cropping
from .images.image_set import ImageSet
from .journal import Journal, Window
from .loader import Batch, UnreadableLog, train_batches
from .mae import MaskedAutoencoder
from .masking import MaskShape, PatchMask
from .monitor import Monitor
from .optim import lr_at, new_optimizer, peak_lr
from .order import ImageOrder, Split
from .parallel import World, accumulating, distribute, micro_batches
from .plan import training_flops
from .states import Position, States, save_networks
from .stopping import Stopping

log = logging.getLogger(__name__)


@dataclass
class PretrainResult:
    """Where training ended."""

    encoder: Path
    position: Position
    numbers: dict[str, float]  # the last of each number in the metrics
    cosine: list[list[float]]  # between class tokens, (K, K)


def pretrain(
    model: MaskedAutoencoder,
    images: ImageSet,
    split: Split,
    order: ImageOrder,
    shape: MaskShape,
    settings: Pretrain,
    *,
    steps: int,
    precision: str,
    peak_flops: float,
    inputs: str,
    world: World,
    out: Path,
    progress: Progress,
) -> PretrainResult:
    """Train an autoencoder and leave checkpoints, metrics, pictures and the encoder in `out`.

    Every process of `world` calls this with the same arguments. Order, crops, masks and drop-path noise are functions
    of (seed, step or image), so a stopped run ends on the weights of one that was never stopped.

    Args:
        model: freshly initialised, the same in every process.
        order: in which order they are visited.
        shape: of the masks.
        steps: optimiser steps of the whole run.
        precision: "fp32" or "bf16".
        peak_flops: of this device's matrix products [FLOP/s]; metrics give the share that training reaches.
        inputs: hash of the files that decide what is trained on; a run goes on with the same alone.

    Raises:
        Stopped: after SIGTERM or Ctrl-C, once a checkpoint is written.
        DataError: if steps stop being finite, or `out` holds checkpoints of other settings.
    """
    device, passes = world.device, micro_batches(settings, world)
    identity = {
        "network": model.arguments,
        "images": inputs,
        "steps": steps,
        "settings": binding_settings(settings),
    }
    trained = distribute(model.to(device), settings, world, precision)
    optimizer = new_optimizer(trained, settings, device)
    states = States(out / "checkpoints", world, settings.keep_last, settings.keep_every, identity)
    position = Position()
    if found := states.latest():
        position = states.load(found, trained, optimizer)
        log.info("going on from %s", found)
    guard = Guard(optimizer, device, position.skipped)
    monitor = Monitor(images, split, shape, settings, precision, world)
    unreadable = UnreadableLog(out / ("unreadable.jsonl" if world.first else f"unreadable-{world.rank}.jsonl"))
    unreadable.add(monitor.unreadable if world.first else [])
    peak, warmup = peak_lr(settings), round(settings.warmup * steps)

    def batches(start: int) -> Iterator[Batch]:
        return train_batches(
            images,
            split,
            order,
            seed=settings.seed,
            size=(settings.image_size, settings.image_size),
            blocks=shape.blocks,
            batch=settings.batch,
            start=start,
            micro=settings.batch // world.size // passes,
            rank=world.rank,
            world=world.size,
            workers=settings.workers,
            cropping=Cropping(scale=(settings.crop_scale[0], settings.crop_scale[1]), flip=settings.flip),
        )

    with (
        Stopping() as stopping,
        Journal(out, settings, position, order.epoch_length, world) as journal,
        progress.stage("pretrain", steps) as bar,
    ):
        bar.advance(position.step)
        window = Window(device, settings.batch, training_flops(model, shape), peak_flops, world)
        stream = batches(position.samples)
        if position.step == 0:
            with window.aside():
                journal.write(position, monitor.measure(trained))
        trained.train()
        while position.step < steps:
            for group in optimizer.param_groups:
                group["lr"] = lr_at(position.step, steps, warmup, peak)
            loss = torch.zeros((), device=device)
            for number in range(passes):
                with window.waiting():
                    batch = next(stream)
                pixels, mask = to_device(batch, shape, device)
                with (
                    seeded(settings.seed, position.step, number, world.rank),
                    accumulating(trained, last=number == passes - 1),
                ):
                    with autocast(device, precision):
                        part = trained(pixels, mask).loss / passes
                    part.backward()
                loss += part.detach()
                unreadable.add(batch.unreadable)
            norm = clip_gradients(trained, settings.clip)
            finite = guard.step(norm, position.step)
            window.add(loss, norm, finite)
            position.step, position.samples = position.step + 1, position.samples + settings.batch
            bar.advance(1)

            done = position.step == steps
            stop = world.any(stopping.asked)
            if position.step % settings.log_every == 0 or done or stop:
                numbers = window.close()
                position.seconds += numbers["time/seconds"]
                position.skipped = guard.skipped
                numbers |= {"train/lr": float(optimizer.param_groups[0]["lr"]), "data/skipped_steps": guard.skipped}
                journal.write(position, numbers | {"data/unreadable_images": world.total(unreadable.count)})
                if guard.longest >= settings.abort_after:
                    again = batches(guard.first_bad * settings.batch)
                    guard.abort([next(again) for _ in range(passes)], images, out, world)
            valid, picture, save = (
                position.step % every == 0 or done
                for every in (settings.valid_every, settings.picture_every, settings.save_every)
            )
            if not (valid or picture or save or stop):
                continue
            with window.aside():
                if valid:
                    journal.write(position, monitor.measure(trained))
                if picture:
                    monitor.picture(trained, out / "pictures" / f"step-{position.step:08d}.png")
                if save or stop:
                    position.skipped = guard.skipped
                    states.save(trained, optimizer, position)
                    save_networks(out, trained, settings, position, world)
                if stop and not done:
                    states.wait()
                    raise stopping.stopped(position.step, steps)
        states.wait()
        if not monitor.cosine:  # all steps were done by an earlier start
            monitor.measure(trained)
    return PretrainResult(out / "encoder.safetensors", position, journal.last, monitor.cosine)


def to_device(batch: Batch, shape: MaskShape, device: torch.device) -> tuple[Tensor, PatchMask]:
    """Return a batch as pixels, (B, 3, H, W) float32, and mask on `device`."""
    images = batch.images.to(device, non_blocking=True)
    pixels = preprocess(images, Preprocessing(size=(images.shape[1], images.shape[2])))
    return pixels, PatchMask.from_noise(batch.mask_noise.to(device, non_blocking=True), shape)


def clip_gradients(model: nn.Module, most: float | None) -> Tensor:
    """Return the gradients' norm over all processes, before scaling them down to at most `most`."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), float("inf") if most is None else most)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
