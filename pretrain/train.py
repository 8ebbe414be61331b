"""Training an encoder, by reconstruction or distillation: one plain loop that goes on exactly where it stopped."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..hardware import autocast, seeded
from ..progress import stage
from ..run_folder import binding_settings
from ..stopping import Stopping
from ..training.distributed import World, accumulating, distribute, micro_batches
from ..training.guard import Guard
from ..training.metric_log import MetricLogger, ThroughputMeter
from ..training.optim import lr_at, new_optimizer, peak_lr
from ..training.states import States, TrainState, save_trained
from .images.crops import Cropping
from .images.image_set import ImageSet
from .loader import Batch, UnreadableLog, train_batches
from .monitor import Matrix, Monitor
from .objective import Objective
from .order import ImageOrder, Split
from .settings import Training

log = logging.getLogger(__name__)


@dataclass
class TrainResult:
    """Where training ended."""

    position: TrainState
    numbers: dict[str, float]  # the last of each number in the metrics
    cosine: list[list[float]]  # between class tokens, (K, K)


def train(
    objective: Objective,
    images: ImageSet,
    split: Split,
    order: ImageOrder,
    settings: Training,
    *,
    steps: int,
    precision: str,
    peak_flops: float,
    inputs: str,
    world: World,
    out: Path,
) -> TrainResult:
    """Train a model and leave checkpoints, metrics, images and encoders in `out`.

    Every process of `world` calls this with the same arguments. Order, crops, masks and drop-path noise are functions
    of (seed, step or image), so a stopped run ends on the weights of one that was never stopped.

    Args:
        objective: its model freshly initialised, the same in every process.
        order: in which order they are visited.
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
        "network": objective.arguments,
        "images": inputs,
        "steps": steps,
        "settings": binding_settings(settings),
    }
    activation_checkpointed = objective.activation_checkpointed[settings.activation_checkpointing]
    trained = distribute(
        objective.model.to(device), objective.wrapped_modules, activation_checkpointed, settings, world, precision
    )
    parts = objective.parts(trained)
    optimizer = new_optimizer(trained, settings, device)
    states = States(out / "checkpoints", world, settings.keep_last, settings.keep_every, identity)
    position = TrainState()
    if found := states.latest():
        position = states.load(found, trained, optimizer)
        log.info("going on from %s", found)
    guard = Guard(optimizer, device, position.skipped)
    monitor = Monitor(images, split, settings, objective.size, objective.blocks, precision, world)
    unreadable = UnreadableLog(out / ("unreadable.jsonl" if world.first else f"unreadable-{world.rank}.jsonl"))
    unreadable.add(monitor.unreadable if world.first else [])
    peak, warmup = peak_lr(settings), round(settings.warmup * steps)

    def batches(start: int) -> Iterator[Batch]:
        return train_batches(
            images,
            split,
            order,
            seed=settings.seed,
            size=(objective.size, objective.size),
            blocks=objective.blocks,
            batch=settings.batch,
            start=start,
            micro=settings.batch // world.size // passes,
            rank=world.rank,
            world=world.size,
            workers=settings.workers,
            cropping=Cropping(scale=(settings.crop_scale[0], settings.crop_scale[1]), flip=settings.flip),
        )

    def measure() -> tuple[dict[str, float], Matrix]:
        trained.eval()
        measured = objective.measure(trained, monitor)
        trained.train()
        return measured

    @torch.no_grad()
    def draw(path: Path) -> None:
        trained.eval()
        with torch.compiler.set_stance("force_eager"), autocast(device, precision):
            objective.image(trained, monitor, path, world.first)
        trained.train()

    cosine: Matrix = []
    with (
        Stopping() as stopping,
        MetricLogger(out, objective.name, settings, position, order.epoch_length, world) as journal,
        stage(objective.name, steps) as bar,
    ):
        bar.advance(position.step)
        window = ThroughputMeter(device, settings.batch, objective.flops, peak_flops, world)
        stream = batches(position.samples)
        if position.step == 0:
            with window.aside():
                journal.write(position, measure()[0])
        trained.train()
        while position.step < steps:
            for group in optimizer.param_groups:
                group["lr"] = lr_at(position.step, steps, warmup, peak)
            losses: dict[str, Tensor] = {}
            for number in range(passes):
                with window.waiting():
                    batch = next(stream)
                with (
                    seeded(settings.seed, position.step, number, world.rank),
                    accumulating(trained, last=number == passes - 1),
                ):
                    with autocast(device, precision):
                        found_losses = objective.losses(trained, batch, device)
                    torch.stack([*found_losses.values()]).sum().div(passes).backward()
                for name, loss in found_losses.items():
                    losses[name] = losses.get(name, 0.0) + loss.detach() / passes
                unreadable.add(batch.unreadable)
            norm = torch.stack([clip_gradients(part, settings.clip) for part in parts]).norm()
            finite = guard.step(norm, position.step)
            window.add(losses, norm, finite)
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
            valid, image, save = (
                position.step % every == 0 or done
                for every in (settings.valid_every, settings.visualize_every, settings.save_every)
            )
            if not (valid or image or save or stop):
                continue
            with window.aside():
                if valid:
                    numbers, cosine = measure()
                    journal.write(position, numbers)
                if image:
                    draw(out / "images" / f"step-{position.step:08d}.png")
                if save or stop:
                    position.skipped = guard.skipped
                    states.save(trained, optimizer, position)
                    save_trained(out, objective, trained, settings, position, world)
                if stop and not done:
                    states.wait()
                    raise stopping.stopped(position.step, steps)
        states.wait()
        if not cosine:  # all steps were done by an earlier start
            cosine = measure()[1]
    return TrainResult(position, journal.last, cosine)


def clip_gradients(model: nn.Module, most: float | None) -> Tensor:
    """Return the gradients' norm over all processes, before scaling them down to at most `most`."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), float("inf") if most is None else most)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
