"""Training a policy on demonstrations: one plain loop that resumes exactly.

Shapes: F frames, B batch, T observation steps, H horizon, A action.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from ..checkpoint import Checkpoint, load_checkpoint, load_strictly, save_checkpoint
from ..errors import BadInput, CheckpointError, DataError, UnknownName, closest
from ..hardware import seeded, threads
from ..progress import stage
from ..run_folder import MetricsLog, described, digest
from .build import VisionPolicy
from .data import Sample, TrainingData
from .loaded import save_policy
from .policy import Batch, Observation
from .settings import OPTIMIZERS, SCHEDULES, TrainingSettings
from .vision import DEPTH_FEATURE

_OPTIMIZERS: dict[str, Any] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_IN_MEMORY = 2 * 1024**3  # largest observations computed once for the whole data set [bytes]


@dataclass(frozen=True)
class TrainPlan:
    """Where a training run writes, and when."""

    out: Path  # run folder
    label: str  # name of the policy in files and displays
    seed: int
    save_every: int = 10  # epochs between resumable states
    keep: tuple[int, ...] = ()  # epochs whose policies stay, as ``epoch-0005.safetensors``
    depth_epochs: int = 10  # last epochs in which depth is added to an encoder's patches

    @property
    def folder(self) -> Path:
        """Folder of the checkpoints."""
        return self.out / "checkpoints" / self.label


@dataclass
class TrainResult:
    """Where training ended."""

    last: Path
    best: Path  # lowest validation loss; the last one where there is no validation split
    train_loss: float
    valid_loss: float  # NaN without a validation split
    reused: bool
    kept: list[Path] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def train_policy(
    model: VisionPolicy,
    data: TrainingData,
    settings: TrainingSettings,
    plan: TrainPlan,
    device: torch.device = torch.device("cpu"),
) -> TrainResult:
    """Train a policy and leave checkpoints, metrics and TensorBoard events in its run folder.

    The order of frames is a function of (seed, epoch), so a run that was stopped and resumed ends on the same weights.

    Raises:
        UnknownName, BadInput: for settings that cannot be.
        DataError: if the loss stops being finite.
        CheckpointError: if the folder is of a run with other settings, or one that kept other epochs.
    """
    check_training(settings, model)
    model.to(device)
    model.vision.place(device)
    provenance = data.dataset.provenance
    training = dict(
        label=plan.label,
        seed=plan.seed,
        **described(settings),
        data=data.fingerprint,
        task=provenance.get("task", ""),
        initial_states=data.dataset.initial_states,
        robot=provenance.get("robot"),
    )
    last, best = plan.folder / "last.safetensors", plan.folder / "best.safetensors"
    optimizer = new_optimizer(model, settings, device)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema)) if settings.ema else None
    identity = digest(training, model.spec.as_json(), described(model.policy.config), asdict(model.vision.spec))
    state = _State(plan.folder / "state.safetensors", identity)
    state.resume(model, optimizer, average)
    kept = {epoch: plan.folder / f"epoch-{epoch:04d}.safetensors" for epoch in plan.keep}
    if lost := [path.name for epoch, path in kept.items() if epoch <= state.epoch and not path.is_file()]:
        raise CheckpointError(
            f"{plan.folder} has finished {state.epoch} epochs without {', '.join(lost)}; delete it to start again"
        )
    if state.epoch == settings.epochs and all(path.is_file() for path in (last, best, *kept.values())):
        return TrainResult(last, best, state.train_loss, state.valid_loss, reused=True, kept=list(kept.values()))
    learner = _Learner(model, data, settings, device, settings.epochs - plan.depth_epochs)
    seconds = {"learning": 0.0}
    with (
        threads(1 if device.type == "cpu" and learner.precomputed is not None else torch.get_num_threads()),
        MetricsLog(plan.out, plan.label, state.step) as metrics,
        stage(f"train {plan.label}", settings.epochs) as bar,
    ):
        bar.advance(state.epoch)
        steps = len(split_batches(data.train, settings.batch))
        for epoch in range(state.epoch + 1, settings.epochs + 1):
            began = perf_counter()
            model.train()
            total = torch.zeros((), device=device)
            with seeded(plan.seed, epoch):
                order = data.train[torch.randperm(len(data.train))]
                parts = split_batches(order, settings.batch)
                for number, (rows, samples) in enumerate(learner.batches(parts, epoch)):
                    rate = learning_rate(settings, (epoch - 1) * steps + number, settings.epochs * steps)
                    for group in optimizer.param_groups:
                        group["lr"] = rate * group["lr_factor"]
                    loss = learner.step(rows, samples, optimizer)
                    if average is not None:
                        average.update_parameters(model)
                    total += loss * data.targets(rows)
            state.train_loss = float(total) / data.targets(order.numpy())
            trained: VisionPolicy = model if average is None else average.module
            state.valid_loss = learner.valid_loss(trained, data.valid, epoch)
            state.epoch, state.step = epoch, state.step + len(parts)
            if not np.isfinite(state.train_loss):
                raise DataError(f"the training loss is {state.train_loss} in epoch {epoch}; lower training.lr")
            seconds["learning"] += perf_counter() - began
            values = {"train/loss": state.train_loss, **learner.logged()}
            if len(data.valid):
                values["valid/loss"] = state.valid_loss
            metrics.write(epoch, state.step, values)
            bar.advance(1)
            explained = {**training, "epoch": epoch}
            due = epoch % plan.save_every == 0 or epoch == settings.epochs or epoch in kept
            if state.valid_loss < state.best_loss or (due and not len(data.valid)):
                state.best_loss = state.valid_loss
                save_policy(best, trained, provenance, explained, state.step)
            if due:
                for path in (last, *([kept[epoch]] if epoch in kept else [])):
                    save_policy(path, trained, provenance, explained, state.step)
                state.save(model, optimizer, average)
    return TrainResult(last, best, state.train_loss, state.valid_loss, False, list(kept.values()), seconds)


class _Learner:
    """Losses of batches of rows, and optimiser steps. What is the same in every epoch is computed once.

    Where depth is added to an encoder's patches, the encoder runs with gradients in the epochs after `depth_from`.
    Before, its tokens come from the cache, which is what it gives while the added patches are still 0.
    """

    def __init__(
        self, model: VisionPolicy, data: TrainingData, settings: TrainingSettings, device: torch.device, depth_from: int
    ) -> None:
        self.model, self.data, self.settings, self.device, self.depth_from = model, data, settings, device, depth_from
        fp16 = settings.precision == "fp16"
        self.scaler = torch.amp.GradScaler(device.type) if fp16 else None
        self._logged: dict[str, list[Tensor]] = {}
        self.precomputed = None if model.vision.trainable else self._precompute()

    @torch.inference_mode()
    def _precompute(self) -> Observation | None:
        """Return the policy's `precompute` of the whole data set, (F, ...) each, where there is one and it fits."""
        rows = np.arange(self.data.dataset.frames)
        example = self.model.policy.precompute(self._observation(self.data.sample(rows[:1]), self.model))
        if example is None:
            return None
        if sum(values.numel() * values.element_size() for values in example.values()) * len(rows) > _IN_MEMORY:
            return None
        parts = [
            self.model.policy.precompute(self._observation(self.data.sample(part), self.model))
            for part in np.split(rows, range(1024, len(rows), 1024))
        ]
        return {name: torch.cat([part[name] for part in parts if part is not None]).clone() for name in example}

    def _images(self, epoch: int) -> tuple[str, ...]:
        """Return the image features that are encoded with gradients in an epoch."""
        vision = self.model.vision
        if vision.residual is not None:
            return (vision.spec.cameras[0],) if epoch > self.depth_from else ()
        return self.data.images

    def batches(self, parts: list[Tensor], epoch: int) -> Iterator[tuple[np.ndarray, Sample | None]]:
        """Yield rows and their samples; worker processes read ahead where there are some."""
        images = self._images(epoch)
        if self.precomputed is not None:
            yield from ((rows.numpy(), None) for rows in parts)
        elif self.settings.workers and images:
            rows_of = [rows.numpy() for rows in parts]
            reader = _Reader(self.data, images)
            loader = DataLoader(
                reader,
                sampler=rows_of,  # type: ignore[arg-type]
                batch_size=None,
                num_workers=self.settings.workers,
                multiprocessing_context="spawn",
                generator=torch.Generator(),  # the workers' seeds must not change this process's random numbers
            )
            yield from zip(rows_of, loader, strict=True)
        else:
            for rows in parts:
                yield rows.numpy(), self.data.sample(rows.numpy(), images)

    def _observation(self, sample: Sample, model: VisionPolicy) -> Observation:
        sample = sample.to(self.device)
        frames = sample.frames
        if model.vision.residual is not None and sample.index is None:
            frames = {name: values for name, values in frames.items() if name != DEPTH_FEATURE}
        return model.observation(frames, sample.vectors, sample.index)

    def loss(self, model: VisionPolicy, rows: np.ndarray, sample: Sample | None) -> Tensor:
        """Return the mean loss over the targets of `rows`."""
        if sample is None and self.precomputed is not None and model is self.model:
            where = torch.from_numpy(rows)
            observation = {name: values[where] for name, values in self.precomputed.items()}
            action = torch.from_numpy(self.data.action[self.data.chunks[rows]]).to(self.device)
            is_pad = torch.from_numpy(self.data.is_pad[rows]).to(self.device)
        else:
            sample = self.data.sample(rows) if sample is None else sample
            observation = self._observation(sample, model)
            action, is_pad = sample.action.to(self.device), sample.action_is_pad.to(self.device)
        batch = Batch(observation, model.policy.normaliser.normalise("action", action), is_pad)
        kind = _AUTOCAST.get(self.settings.precision)
        with nullcontext() if kind is None else torch.autocast(self.device.type, kind):
            loss, numbers = model(batch)
        for name, value in numbers.items():
            self._logged.setdefault(name, []).append(value.detach())
        return loss

    def step(self, rows: np.ndarray, sample: Sample | None, optimizer: torch.optim.Optimizer) -> Tensor:
        """Make one optimiser step and return the loss, detached."""
        optimizer.zero_grad(set_to_none=True)
        parts = np.array_split(rows, min(self.settings.accumulate, len(rows) // 2 or 1))
        if len(parts) == 1:
            total = self.loss(self.model, rows, sample)
            self._backward(total)
        else:
            total, count = torch.zeros((), device=self.device), self.data.targets(rows)
            for part in parts:
                images = (
                    self.data.images
                    if sample is None or sample.index is None
                    else tuple(key for key in sample.frames if "." not in key and key != DEPTH_FEATURE)
                )
                given = None if self.precomputed is not None else self.data.sample(part, images)
                share = self.loss(self.model, part, given) * (self.data.targets(part) / count)
                self._backward(share)
                total = total + share.detach()
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        if self.settings.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()
        return total.detach()

    def _backward(self, loss: Tensor) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    @torch.no_grad()
    def valid_loss(self, model: VisionPolicy, rows: Tensor, epoch: int) -> float:
        """Return the mean loss over the targets of a split; NaN where it is empty."""
        if not len(rows):
            return float("nan")
        model.eval()
        total, count, images = 0.0, 0, self._images(epoch)
        for part in rows.split(self.settings.batch):
            numbers = part.numpy()
            use = self.precomputed is not None and model is self.model
            sample = None if use else self.data.sample(numbers, images)
            targets = self.data.targets(numbers)
            total += float(self.loss(model, numbers, sample)) * targets
            count += targets
        self._logged.clear()
        return total / count

    def logged(self) -> dict[str, float]:
        """Return the means of the policy's further numbers since the last call."""
        means = {f"train/{name}": float(torch.stack(values).mean()) for name, values in self._logged.items()}
        self._logged.clear()
        return means


class _Reader:
    """A data set of batches for a `DataLoader`: its index is an array of rows."""

    def __init__(self, data: TrainingData, images: tuple[str, ...]) -> None:
        self.data, self.images = data, images

    def __getitem__(self, rows: np.ndarray) -> Sample:
        return self.data.sample(rows, self.images)


def check_training(settings: TrainingSettings, model: nn.Module | None = None) -> None:
    """Refuse settings of training that cannot be.

    Raises:
        UnknownName: for an unknown optimiser, schedule or precision.
        BadInput: for a number out of its range, or an average of a network with batch normalisation.
    """
    for what, name, known in (
        ("optimizer", settings.optimizer, OPTIMIZERS),
        ("schedule", settings.schedule, SCHEDULES),
        ("precision", settings.precision, ("fp32", "bf16", "fp16")),
    ):
        if name not in known:
            raise UnknownName(f"no training.{what} {name!r}{closest(name, known)}; there are: {', '.join(known)}")
    for what, value, least in (
        *(("batch", settings.batch, 2), ("epochs", settings.epochs, 1)),
        *(("accumulate", settings.accumulate, 1), ("workers", settings.workers, 0)),
    ):
        if value < least:
            raise BadInput(f"training.{what} is {value}; it must be at least {least}")
    if settings.lr <= 0 or min(settings.weight_decay, settings.clip, settings.encoder_lr) < 0:
        raise BadInput(
            f"training.lr={settings.lr}, training.weight_decay={settings.weight_decay}, training.clip={settings.clip}, "
            f"training.encoder_lr={settings.encoder_lr}: lr must be positive, the others must not be negative"
        )
    if not 0 <= settings.warmup < 1 or not 0 <= settings.ema < 1:
        raise BadInput(f"training.warmup={settings.warmup}, training.ema={settings.ema}: give 0 or more, and below 1")
    if settings.precision == "fp16" and not torch.cuda.is_available():
        raise BadInput("training.precision=fp16 needs a CUDA device; use bf16 or fp32")
    norms = (
        [] if model is None else [name for name, part in model.named_modules() if "BatchNorm" in type(part).__name__]
    )
    if settings.ema and norms:
        raise BadInput(
            f"training.ema={settings.ema} averages weights, which does not fit the running statistics of batch "
            f"normalisation ({norms[0]}); use policy.batch_norm=false or training.ema=0"
        )


def learning_rate(settings: TrainingSettings, step: int, steps: int) -> float:
    """Return the learning rate of a step: linear warm-up, then constant or half a cosine down to 0.

    >>> learning_rate(TrainingSettings(lr=1.0, warmup=0.5), 1, 4), learning_rate(TrainingSettings(lr=1.0), 3, 4)
    (0.5, 1.0)
    """
    warmup = round(settings.warmup * steps)
    if step < warmup:
        return settings.lr * step / warmup
    if settings.schedule == "constant":
        return settings.lr
    share = (step - warmup) / max(steps - warmup, 1)
    return settings.lr * 0.5 * (1 + float(np.cos(np.pi * share)))


def new_optimizer(model: VisionPolicy, settings: TrainingSettings, device: torch.device) -> torch.optim.Optimizer:
    """Return the optimiser of the policy's groups and of what learns in its vision."""
    groups = model.policy.parameter_groups(settings.lr)
    encoder = model.vision.backbone
    tuned = set() if encoder is None else {id(each) for each in encoder.parameters()}
    learns = [each for each in model.vision.parameters() if each.requires_grad]
    groups += [
        {"params": [each for each in learns if id(each) not in tuned], "lr": settings.lr},
        {"params": [each for each in learns if id(each) in tuned], "lr": settings.lr * settings.encoder_lr},
    ]
    groups = [{**group, "lr_factor": group["lr"] / settings.lr} for group in groups if group["params"]]
    return _OPTIMIZERS[settings.optimizer](
        groups, lr=settings.lr, weight_decay=settings.weight_decay, fused=device.type in ("cpu", "cuda")
    )


def split_batches(order: Tensor, size: int) -> list[Tensor]:
    """Cut rows into batches; a last batch of one frame, which batch normalisation cannot take, joins the one before."""
    parts = list(order.split(size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


@dataclass
class _State:
    """How far training is; written beside the policy so that it can resume."""

    path: Path
    identity: str
    epoch: int = 0
    step: int = 0
    train_loss: float = float("nan")
    valid_loss: float = float("nan")
    best_loss: float = float("inf")

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None) -> None:
        """Write weights, optimiser and counters."""
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        if average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items() if value is not None}
        numbers = {name: value for name, value in asdict(self).items() if name != "path"}
        save_checkpoint(self.path, Checkpoint("bc-state", tensors, numbers, step=self.step))

    def resume(self, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None) -> None:
        """Set everything to a state on disk, where there is one.

        Raises:
            CheckpointError: if it is of a run with other settings.
        """
        if not self.path.is_file():
            return
        checkpoint = load_checkpoint(self.path, "bc-state")
        if checkpoint.arguments["identity"] != self.identity:
            raise CheckpointError(
                f"{self.path} is of a run with other settings or data; choose another out= or delete it"
            )
        for name, value in checkpoint.arguments.items():
            setattr(self, name, value)
        load_strictly(model, _below("model.", checkpoint.tensors), self.path)
        if average is not None:
            load_strictly(average, _below("average.", checkpoint.tensors), self.path)
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _below("optimizer.", checkpoint.tensors).items():
            index, slot = name.split(".")
            slots.setdefault(int(index), {})[slot] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): copy.copy(each) for name, each in tensors.items() if name.startswith(prefix)}
