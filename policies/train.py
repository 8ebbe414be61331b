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
from ..errors import BadInput, CheckpointError, DataError, PixioError, UnknownName, closest
from ..hardware import combine, seeded, threads
from ..progress import stage
from ..run_folder import digest
from ..training.distributed import World, accumulating, distribute
from ..training.metric_log import MetricLogger
from ..training.optim import OPTIMIZERS, SCHEDULES, Schedule, clip_gradients, set_lr
from ..training.optim import new_optimizer as optimizer_of
from .build import VisionPolicy
from .data import Sample, TrainingData
from .loaded import save_policy
from .policy import Batch, Observation
from .settings import TrainingSettings
from .vision import DEPTH_FEATURE

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
    """The result of training."""

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
    world: World = World(torch.device("cpu")),
) -> TrainResult:
    """Train a policy and leave checkpoints, metrics and TensorBoard events in its run folder.

    The order of frames is a function of (seed, epoch), so a run that was stopped and resumed ends on the same weights.
    Every process of `world` calls this with the same arguments; each computes its share of every batch.

    Raises:
        UnknownName, BadInput: for impossible settings.
        DataError: if the loss stops being finite.
        CheckpointError: if the folder is of a run with other settings, or one that kept other epochs.
    """
    check_training(settings, model)
    device = world.device
    if world.size > 1 and model.vision.residual is not None:
        raise BadInput("observation.depth=patches is trained by one process; start it without torchrun")
    model.to(device)
    model.vision.place(device)
    provenance = data.dataset.provenance
    training = dict(
        label=plan.label,
        seed=plan.seed,
        **asdict(settings),
        data=data.fingerprint,
        task=provenance.get("task", ""),
        initial_states=data.dataset.initial_states,
        robot=provenance.get("robot"),
    )
    last, best = plan.folder / "last.safetensors", plan.folder / "best.safetensors"
    optimizer = new_optimizer(model, settings, device)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema)) if settings.ema else None
    identity = digest(training, model.spec.as_json(), asdict(model.policy.config), asdict(model.vision.spec))
    scaler = torch.amp.GradScaler(device.type) if settings.precision == "fp16" else None
    state = _State(plan.folder / "state.safetensors", identity)
    state.resume(model, optimizer, average)
    if scaler is not None and state.scaler:
        scaler.load_state_dict(state.scaler)
    kept = {epoch: plan.folder / f"epoch-{epoch:04d}.safetensors" for epoch in plan.keep}
    if lost := [path.name for epoch, path in kept.items() if epoch <= state.epoch and not path.is_file()]:
        raise CheckpointError(
            f"{plan.folder} has finished {state.epoch} epochs without {', '.join(lost)}; delete it to start again"
        )
    if state.epoch == settings.epochs and all(path.is_file() for path in (last, best, *kept.values())):
        return TrainResult(last, best, state.train_loss, state.valid_loss, reused=True, kept=list(kept.values()))
    check_contract(model, data)
    learner = _Learner(model, data, settings, world, scaler, settings.epochs - plan.depth_epochs)
    steps = len(split_batches(data.train, settings.batch))
    schedule = Schedule(
        settings.lr, settings.epochs * steps, round(settings.warmup * settings.epochs * steps), settings.schedule
    )
    seconds = {"learning": 0.0}
    with (
        threads(1 if device.type == "cpu" and learner.precomputed is not None else torch.get_num_threads()),
        MetricLogger(plan.out, plan.label, state.step, enabled=world.first) as metrics,
        stage(f"train {plan.label}", settings.epochs) as bar,
    ):
        bar.advance(state.epoch)
        for epoch in range(state.epoch + 1, settings.epochs + 1):
            began = perf_counter()
            model.train()
            total = torch.zeros((), device=device)
            with seeded(plan.seed, epoch):
                order = data.train[torch.randperm(len(data.train))]
                parts = split_batches(order, settings.batch)
                if world.rank:  # dropout and other noise differ between processes, the order of frames does not
                    torch.manual_seed(combine(plan.seed, epoch, world.rank))
                for number, batch in enumerate(learner.batches(parts, epoch)):
                    set_lr(optimizer, schedule.at((epoch - 1) * steps + number))
                    loss = learner.step(batch, optimizer)
                    if average is not None:
                        average.update_parameters(model)
                    total += world.mean(loss) * data.targets(parts[number].numpy())
            state.train_loss = float(total) / data.targets(order.numpy())
            values = {"train/loss": state.train_loss, **learner.logged()}
            trained = model
            if average is not None and isinstance(average.module, VisionPolicy):
                trained = average.module
            with seeded(plan.seed, 0):  # the same noise in every epoch, for policies that draw it
                state.valid_loss = learner.valid_loss(trained, data.valid, epoch)
            state.epoch, state.step = epoch, state.step + len(parts)
            if not np.isfinite(state.train_loss):
                raise DataError(f"the training loss is {state.train_loss} in epoch {epoch}; lower training.lr")
            seconds["learning"] += perf_counter() - began
            if len(data.valid):
                values["valid/loss"] = state.valid_loss
            metrics.write(epoch, state.step, values)
            bar.advance(1)
            explained = {**training, "epoch": epoch}
            if not world.first:
                continue
            due = epoch % plan.save_every == 0 or epoch == settings.epochs or epoch in kept
            if state.valid_loss < state.best_loss or (due and not len(data.valid)):
                state.best_loss = state.valid_loss
                save_policy(best, trained, provenance, explained, state.step)
            if due:
                for path in (last, *([kept[epoch]] if epoch in kept else [])):
                    save_policy(path, trained, provenance, explained, state.step)
                state.scaler = {} if scaler is None else scaler.state_dict()
                state.save(model, optimizer, average)
    world.wait()
    return TrainResult(last, best, state.train_loss, state.valid_loss, False, list(kept.values()), seconds)


class _Learner:
    """Losses of batches of rows, and optimiser steps. What is the same in every epoch is computed once.

    Where depth is added to an encoder's patches, the encoder runs with gradients in the epochs after `depth_from`.
    Before, its tokens come from the cache, which is what it gives while the added patches are still 0.
    """

    def __init__(
        self,
        model: VisionPolicy,
        data: TrainingData,
        settings: TrainingSettings,
        world: World,
        scaler: torch.amp.GradScaler | None,
        depth_from: int,
    ) -> None:
        self.model, self.data, self.settings, self.world = model, data, settings, world
        self.scaler, self.depth_from, self.device = scaler, depth_from, world.device
        self._workers: _Workers | None = None
        self._logged: dict[str, list[Tensor]] = {}
        self.precomputed = None if model.vision.trainable else self._precompute()
        self.trained = distribute(model, [], world, parallel="ddp", passes=settings.accumulate)

    @torch.inference_mode()
    def _precompute(self) -> Observation | None:
        """Return the policy's `precompute` of the whole data set, (F, ...) each, where there is one and it fits."""
        rows = np.arange(self.data.dataset.frames)
        example = self._precomputed_part(rows[:1])
        if example is None:
            return None
        if sum(values.numel() * values.element_size() for values in example.values()) * len(rows) > _IN_MEMORY:
            return None
        parts = [self._precomputed_part(part) for part in np.split(rows, range(1024, len(rows), 1024))]
        return {name: torch.cat([part[name] for part in parts if part is not None]).clone() for name in example}

    def _images(self, epoch: int) -> tuple[str, ...]:
        """Return the image features that are encoded with gradients in an epoch."""
        vision = self.model.vision
        if vision.residual is not None:
            return (vision.spec.cameras[0],) if epoch > self.depth_from else ()
        return self.data.images

    def batches(self, parts: list[Tensor], epoch: int) -> Iterator[list[tuple[np.ndarray, Sample | None]]]:
        """Yield the rows of each optimiser step and their samples, in as many parts as they are computed in.

        Samples are None where all that is needed is `precomputed`. Worker processes read ahead where there are some.
        """
        images, count = self._images(epoch), self.settings.accumulate
        shares = [self._share(rows.numpy()) for rows in parts]
        steps = [np.array_split(rows, min(count, len(rows) // 2 or 1)) for rows in shares]
        flat = [rows for step in steps for rows in step]
        samples: Iterator[Sample | None]
        if self.precomputed is not None:
            samples = (None for _ in flat)
        elif self.settings.workers and images:
            if self._workers is None or self._workers.images != images:
                self._workers = _Workers(self.data, images, self.settings.workers)
            samples = self._workers.read(flat)
        else:
            samples = (self.data.sample(rows, images) for rows in flat)
        for step in steps:
            yield [(rows, next(samples)) for rows in step]

    def _share(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows of a batch that this process computes; a batch too small to share, all of it."""
        size = self.world.size
        return np.array_split(rows, size)[self.world.rank] if len(rows) >= 2 * size else rows

    def _frames(self, sample: Sample) -> dict[str, Tensor]:
        """Return a sample's frames, without the depth of patches where no images are encoded."""
        if self.model.vision.residual is None or sample.frame_index is not None:
            return sample.frames
        return {name: values for name, values in sample.frames.items() if name != DEPTH_FEATURE}

    def _precomputed_part(self, rows: np.ndarray) -> Observation | None:
        sample = self.data.sample(rows).to(self.device)
        observation = self.model.observation(self._frames(sample), sample.vectors, sample.frame_index)
        return self.model.policy.precompute(observation)

    def loss(self, model: nn.Module, rows: np.ndarray, sample: Sample | None) -> Tensor:
        """Return the mean loss over the targets of `rows`.

        Args:
            sample: of these rows; None where they are in `precomputed`.
        """
        if sample is None:
            if self.precomputed is None:
                raise BadInput("rows without a sample, and nothing is computed in advance")
            where = torch.from_numpy(rows)
            vectors, frames, index = {name: values[where] for name, values in self.precomputed.items()}, {}, None
            action = torch.from_numpy(self.data.action[self.data.chunks[rows]]).to(self.device)
            is_pad = torch.from_numpy(self.data.is_pad[rows]).to(self.device)
        else:
            sample = sample.to(self.device)
            frames, vectors, index = self._frames(sample), sample.vectors, sample.frame_index
            action, is_pad = sample.action, sample.action_is_pad
        kind = _AUTOCAST.get(self.settings.precision)
        with nullcontext() if kind is None else torch.autocast(self.device.type, kind):
            loss, numbers = model(frames, vectors, action, is_pad, index)
        for name, value in numbers.items():
            self._logged.setdefault(name, []).append(value.detach())
        return loss

    def step(self, batch: list[tuple[np.ndarray, Sample | None]], optimizer: torch.optim.Optimizer) -> Tensor:
        """Make one optimiser step on the parts of a batch and return their mean loss, detached."""
        optimizer.zero_grad(set_to_none=True)
        targets = [self.data.targets(rows) for rows, _ in batch]
        total = torch.zeros((), device=self.device)
        for number, (rows, sample) in enumerate(batch):
            with accumulating(self.trained, last=number == len(batch) - 1):
                loss = self.loss(self.trained, rows, sample)
                if len(batch) > 1:
                    loss = loss * (targets[number] / sum(targets))
                self._backward(loss)
            total = total + loss.detach()
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        if self.settings.clip:
            clip_gradients(self.model.parameters(), self.settings.clip)
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()
        return total

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
            sample = None if self.precomputed is not None else self.data.sample(numbers, images)
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


class _Workers:
    """Processes that read samples ahead. They stay for all epochs, since each takes seconds to start.

    Args:
        data: the demonstrations.
        images: image features to read.
        count: of processes.
    """

    def __init__(self, data: TrainingData, images: tuple[str, ...], count: int) -> None:
        self.images, self._rows = images, _Rows()
        reader: Any = _Reader(data, images)
        self._loader: DataLoader[Any] = DataLoader(
            reader,
            sampler=self._rows,
            batch_size=None,
            num_workers=count,
            multiprocessing_context="spawn",
            persistent_workers=True,
            generator=torch.Generator(),  # the workers' seeds must not change this process's random numbers
        )

    def read(self, rows: list[np.ndarray]) -> Iterator[Sample]:
        """Yield the samples of batches of rows, in order."""
        self._rows.batches = rows
        return iter(self._loader)


class _Rows:
    """A sampler of a `DataLoader`: the rows of the batches to read next."""

    def __init__(self) -> None:
        self.batches: list[np.ndarray] = []

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


@torch.no_grad()
def check_contract(model: VisionPolicy, data: TrainingData) -> None:
    """Try a policy on two frames, so that a mistake in a plug-in is found and named before training.

    Raises:
        PixioError: naming the policy, if it fails or returns other shapes than the contract asks for.
    """
    policy, spec = model.policy, model.spec
    name = f"the policy {policy.config.name!r} ({type(policy).__module__}:{type(policy).__name__})"
    sample = data.sample(data.train[:2].numpy()).to(model.vision.device)
    wanted = (len(sample.action), spec.horizon, spec.action_dim)
    model.eval()
    with seeded(0):
        noise = None if policy.noise_shape is None else torch.randn(len(sample.action), *policy.noise_shape)
        noise = None if noise is None else noise.to(model.vision.device)
        frames = sample.frames
        if model.vision.residual is not None and sample.frame_index is None:
            frames = {key: values for key, values in frames.items() if key != DEPTH_FEATURE}
        try:
            observation = model.observation(frames, sample.vectors, sample.frame_index)
            memory = {key: each.to(model.vision.device) for key, each in policy.initial_memory(wanted[0]).items()}
            actions, _ = policy.predict(observation, memory, noise)
            loss, _ = policy.loss(Batch(observation, sample.action, sample.action_is_pad))
        except PixioError:
            raise
        except Exception as error:  # the policy may belong to any package
            raise PixioError(f"{name} fails on a first batch: {type(error).__name__}: {error}") from error
    if tuple(actions.shape) != wanted:
        raise PixioError(f"{name}: predict returns {tuple(actions.shape)}, the contract asks for (B, H, A) = {wanted}")
    if loss.ndim:
        raise PixioError(f"{name}: loss returns a tensor of shape {tuple(loss.shape)}, the contract asks for a scalar")


class _Reader:
    """A data set of batches for a `DataLoader`: its index is an array of rows."""

    def __init__(self, data: TrainingData, images: tuple[str, ...]) -> None:
        self.data, self.images = data, images

    def __getitem__(self, rows: np.ndarray) -> Sample:
        return self.data.sample(rows, self.images)


def check_training(settings: TrainingSettings, model: nn.Module | None = None) -> None:
    """Refuse impossible settings of training.

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
    groups = [{**group, "lr_scale": group["lr"] / settings.lr} for group in groups if group["params"]]
    return optimizer_of(groups, settings.optimizer, device, lr=settings.lr, weight_decay=settings.weight_decay)


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
    scaler: dict[str, Any] = field(default_factory=dict)  # of gradients in fp16

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
