"""Training an encoder, by reconstruction or distillation: one plain loop that goes on exactly where it stopped."""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..hardware import autocast, seeded
from ..progress import stage
from ..run_folder import binding_settings
from ..stopping import Stopping
from ..training.distributed import World, accumulating, distribute, micro_batches
from ..training.guard import Guard
from ..training.metric_log import MetricLogger, ThroughputMeter, WandbRun
from ..training.optim import Schedule, clip_gradients, new_optimizer, peak_lr, set_lr, weight_decay_groups
from ..training.states import States, TrainState, gathered_weights
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
    device, passes = world.device, micro_batches(settings.batch, settings.micro_batch, world.size)
    identity = {
        "network": objective.arguments,
        "images": inputs,
        "steps": steps,
        "settings": binding_settings(settings),
    }
    for block in objective.activation_checkpointed[settings.activation_checkpointing]:
        block.activation_checkpointing = True
    trained = distribute(
        objective.model.to(device),
        objective.wrapped_modules,
        world,
        parallel=settings.parallel,
        compile=settings.compile,
        precision=precision,
        passes=passes,
    )
    parts = objective.parts(trained)
    optimizer = new_optimizer(
        weight_decay_groups(trained, settings.weight_decay), "adamw", device, betas=(settings.beta1, settings.beta2)
    )
    states = States(out / "checkpoints", world, settings.keep_last, settings.keep_every, identity)
    position = TrainState()
    if found := states.latest():
        position = states.load(found, trained, optimizer)
        log.info("going on from %s", found)
    guard = Guard(optimizer, device, position.skipped)
    monitor = Monitor(images, split, settings, objective.size, objective.blocks, precision, world)
    unreadable = UnreadableLog(out / ("unreadable.jsonl" if world.first else f"unreadable-{world.rank}.jsonl"))
    unreadable.add(monitor.unreadable if world.first else [])
    peak = peak_lr(settings.lr, settings.base_lr, settings.batch)
    schedule = Schedule(peak, steps, warmup_steps=round(settings.warmup * steps))
    wandb = None if settings.wandb is None else WandbRun(settings.wandb, asdict(settings))

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

    def log_row(numbers: dict[str, float]) -> None:
        logger.write(round(position.samples / order.epoch_length, 6), position.step, numbers)

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
        MetricLogger(out, objective.name, position.step, wandb=wandb, enabled=world.first) as logger,
        stage(objective.name, steps) as bar,
    ):
        bar.advance(position.step)
        window = ThroughputMeter(settings.batch, world, flops=objective.flops, peak=peak_flops)
        stream = batches(position.samples)
        if position.step == 0:
            with window.paused():
                log_row(measure()[0])
        trained.train()
        while position.step < steps:
            set_lr(optimizer, schedule.at(position.step))
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
            norm = torch.stack([clip_gradients(part.parameters(), settings.clip) for part in parts]).norm()
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
                log_row(numbers | {"data/unreadable_images": world.total(unreadable.count)})
                if guard.longest >= settings.abort_after:
                    again = batches(guard.first_bad * settings.batch)
                    parts_of_step = [next(again) for _ in range(passes)]
                    kept = {
                        name: torch.cat([getattr(each, name) for each in parts_of_step])
                        for name in ("images", "mask_noise", "indices")
                    }
                    guard.abort(kept, [images.name(int(index)) for index in kept["indices"]], out, world)
            valid, image, save = (
                position.step % every == 0 or done
                for every in (settings.valid_every, settings.visualize_every, settings.save_every)
            )
            if not (valid or image or save or stop):
                continue
            with window.paused():
                if valid:
                    numbers, cosine = measure()
                    log_row(numbers)
                if image:
                    draw(out / "images" / f"step-{position.step:08d}.png")
                if save or stop:
                    position.skipped = guard.skipped
                    states.save(trained, optimizer, position)
                    tensors = gathered_weights(trained, world)
                    if world.first:
                        whole = objective.blank()
                        whole.load_state_dict(tensors, assign=True)
                        described = binding_settings(settings) | {"samples_seen": position.samples}
                        objective.save(whole, out, described, position.step)
                if stop and not done:
                    states.wait()
                    raise stopping.stopped(position.step, steps)
        states.wait()
        if not cosine:  # all steps were done by an earlier start
            cosine = measure()[1]
    return TrainResult(position, logger.last, cosine)
