"""The training loop of pre-training and distillation. A resumed run ends on the weights of an uninterrupted one."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..hardware import autocast, seeded
from ..progress import stage
from ..stopping import Stopping
from ..training.distributed import World, accumulating, distribute, micro_batches
from ..training.guard import Guard
from ..training.metric_log import MetricLogger, ThroughputMeter
from ..training.optim import Schedule, clip_gradients, new_optimizer, set_lr, weight_decay_groups
from ..training.states import States, TrainState, gathered_weights
from .cost import matmul_peak
from .loader import Batch, SampleShape, UnreadableLog, train_batches
from .monitor import Matrix, Monitor
from .objective import Objective
from .train_config import TrainConfig
from .training_set import TrainingSet

log = logging.getLogger(__name__)


@dataclass
class TrainResult:
    """Where training ended."""

    state: TrainState
    numbers: dict[str, float]  # the last value of each metric
    cosine: list[list[float]]  # between class tokens, (K, K)


def train(
    objective: Objective, data: TrainingSet, config: TrainConfig, *, precision: str, world: World, out: Path
) -> TrainResult:
    """Train a model; write checkpoints, metrics, images and encoders into `out`.

    Every process of `world` calls this with the same arguments. Order, crops, masks and drop-path noise are functions
    of (seed, step or image), so a stopped run ends on the weights of one that was never stopped.

    Args:
        objective: its model freshly initialised, the same in every process.
        data: a run resumes with the same files only.
        precision: "fp32" or "bf16".

    Raises:
        Stopped: after SIGTERM or Ctrl-C, once a checkpoint is written.
        DataError: if steps stop being finite, or `out` holds checkpoints of other settings.
    """
    device, batching, optimisation = world.device, config.batching, config.optimisation
    passes = micro_batches(batching.batch, batching.micro_batch, world.size)
    steps = config.steps(data)
    shape = SampleShape((objective.size, objective.size), objective.mask_blocks)
    identity = {
        "network": objective.arguments,
        "images": data.fingerprint,
        "steps": steps,
        "settings": config.recorded,
    }
    for block in objective.checkpointable_blocks[config.execution.activation_checkpointing]:
        block.activation_checkpointing = True
    trained = distribute(
        objective.model.to(device),
        objective.wrapped_modules,
        world,
        parallel=config.execution.parallel,
        compile=config.execution.compile,
        precision=precision,
        passes=passes,
    )
    parts = objective.parts(trained)
    groups = weight_decay_groups(trained, optimisation.weight_decay)
    optimizer = new_optimizer(groups, "adamw", device, betas=(optimisation.beta1, optimisation.beta2))
    schedule = Schedule(optimisation.lr, steps, warmup_steps=round(optimisation.warmup * steps))
    states = States(out / "checkpoints", world, config.logging.keep_last, config.logging.keep_every, identity)
    state = TrainState()
    if found := states.latest():
        state = states.load(found, trained, optimizer)
        log.info("resuming from %s", found)
    guard = Guard(optimizer, device, state.skipped)
    chunk = min(batching.micro_batch or 64, 64)
    monitor = Monitor(data.images, data.split, shape, seed=config.seed, chunk=chunk, precision=precision, world=world)
    unreadable = UnreadableLog(out / ("unreadable.jsonl" if world.first else f"unreadable-{world.rank}.jsonl"))
    unreadable.add(monitor.unreadable if world.first else [])

    def batches(start: int) -> Iterator[Batch]:
        """Yield this process's micro-batches from a sample on."""
        micro = batching.batch // world.size // passes
        return train_batches(
            data.images,
            data.split,
            data.order,
            replace(batching, micro_batch=micro),
            shape,
            seed=config.seed,
            start=start,
            ranks=(world.rank, world.size),
        )

    def measure() -> tuple[dict[str, float], Matrix]:
        """Return validation metrics and the cosine between class tokens."""
        trained.eval()
        measured = objective.measure(trained, monitor)
        trained.train()
        return measured

    def log_row(numbers: dict[str, float]) -> None:
        """Write a row of metrics for the present step."""
        logger.write(round(state.samples / data.order.epoch_length, 6), state.step, numbers)

    @torch.no_grad()
    def visualize() -> None:
        """Write an image of the model's output."""
        trained.eval()
        with torch.compiler.set_stance("force_eager"), autocast(device, precision):
            objective.visualize(trained, monitor, out / "images" / f"step-{state.step:08d}.png", world.first)
        trained.train()

    cosine: Matrix = []
    with (
        Stopping() as stopping,
        MetricLogger(out, objective.name, state.step, wandb=config.logging.wandb, enabled=world.first) as logger,
        stage(objective.name, steps) as bar,
    ):
        bar.advance(state.step)
        meter = ThroughputMeter(batching.batch, world, flops=objective.flops, peak=matmul_peak(device, precision))
        stream = batches(state.samples)
        if state.step == 0:
            with meter.paused():
                log_row(measure()[0])
        trained.train()
        while state.step < steps:
            set_lr(optimizer, schedule.at(state.step))
            losses: dict[str, Tensor] = {}
            for number in range(passes):
                with meter.waiting():
                    batch = next(stream)
                with (
                    seeded(config.seed, state.step, number, world.rank),
                    accumulating(trained, last=number == passes - 1),
                ):
                    with autocast(device, precision):
                        found_losses = objective.losses(trained, batch, device)
                    torch.stack([*found_losses.values()]).sum().div(passes).backward()
                for name, loss in found_losses.items():
                    losses[name] = losses.get(name, 0.0) + loss.detach() / passes
                unreadable.add(batch.unreadable)
            norm = torch.stack([clip_gradients(part.parameters(), optimisation.clip) for part in parts]).norm()
            finite = guard.step(norm, state.step)
            meter.add(losses, norm, finite)
            state.step, state.samples = state.step + 1, state.samples + batching.batch
            bar.advance(1)

            done = state.step == steps
            stop = world.any(stopping.asked)
            if state.step % config.logging.log_every == 0 or done or stop:
                numbers = meter.close()
                state.seconds += numbers["time/seconds"]
                state.skipped = guard.skipped
                numbers |= {"train/lr": float(optimizer.param_groups[0]["lr"]), "data/skipped_steps": guard.skipped}
                log_row(numbers | {"data/unreadable_images": world.total(unreadable.count)})
                if guard.longest >= optimisation.abort_after:
                    again = batches(guard.first_bad * batching.batch)
                    tensors = _joined([next(again) for _ in range(passes)])
                    names = [data.images.name(int(index)) for index in tensors["indices"]]
                    guard.abort(tensors, names, out, world)
            valid, image, save = (
                state.step % interval == 0 or done
                for interval in (config.logging.valid_every, config.logging.visualize_every, config.logging.save_every)
            )
            if not (valid or image or save or stop):
                continue
            with meter.paused():
                if valid:
                    numbers, cosine = measure()
                    log_row(numbers)
                if image:
                    visualize()
                if save or stop:
                    state.skipped = guard.skipped
                    states.save(trained, optimizer, state)
                    weights = gathered_weights(trained, world)
                    if world.first:
                        whole = objective.blank()
                        whole.load_state_dict(weights, assign=True)
                        objective.save(whole, out, config.recorded | {"samples_seen": state.samples}, state.step)
                if stop and not done:
                    states.wait()
                    raise stopping.stopped(state.step, steps)
        states.wait()
        if not cosine:  # an earlier start made all steps
            cosine = measure()[1]
    return TrainResult(state, logger.last, cosine)


def _joined(batches: list[Batch]) -> dict[str, Tensor]:
    """Return the tensors of several micro-batches as one."""
    return {name: torch.cat([getattr(each, name) for each in batches]) for name in ("images", "mask_noise", "indices")}
