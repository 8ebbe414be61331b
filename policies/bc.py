"""Behaviour cloning on cached tokens, in one plain loop that resumes exactly.

Shapes: F frames, B batch, T frames of history, E embedding, P proprioception, C actions of a chunk, A action.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbones import Backbone
from ..checkpoint import Checkpoint, load_checkpoint, load_strictly, save_checkpoint
from ..embedding import Embedder, TokenShape, history_of
from ..envs.rendering import Calibration
from ..errors import BadInput, CheckpointError, DataError, UnknownName, closest
from ..files import sha256_of
from ..hardware import seeded, threads
from ..progress import Progress
from ..run_folder import MetricsLog, digest
from ..schemas import EmbeddingSettings, PolicySettings
from .bc_data import Batches, bc_data
from .cache import TokenCache
from .demos import DemoSet
from .depth_inputs import (
    PointView,
    check_depth,
    check_depth_encoder,
    point_view,
    recorded_depth,
    require_depth_head,
)
from .pixel_network import PixelNetwork
from .visuomotor import EncoderIdentity, Visuomotor

_LOSSES: dict[str, Any] = {"mse": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}
_OPTIMIZERS: dict[str, Any] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


@dataclass
class BCResult:
    """Where training ended."""

    last: Path
    best: Path  # lowest validation loss; the last one where there is no validation split
    train_loss: float
    valid_loss: float  # NaN without a validation split
    reused: bool
    kept: list[Path] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def train_bc(
    demos: DemoSet,
    cache: TokenCache | None,
    encoder: EncoderIdentity | None,
    tokens: TokenShape | None,
    *,
    embedding: EmbeddingSettings,
    settings: PolicySettings,
    seed: int,
    device: torch.device,
    out: Path,
    kind: str = "bc",
    save_every: int = 10,
    keep: Sequence[int] = (),
    progress: Progress | None = None,
    backbone: Backbone | None = None,
    depths: np.ndarray | None = None,
) -> BCResult:
    """Fit a policy head to demonstrations by regression on actions.

    The order of frames is a function of (seed, epoch), so a run that stopped and went on ends on the same weights.

    Args:
        cache: the demonstrations' tokens; None, with `encoder` and `tokens`, for a kind of policy without an encoder.
        out: folder for ``checkpoints/<label>/``, ``metrics.jsonl`` and TensorBoard events.
        kind: of policy, as `visuomotor.policy_kind` says; also its name in files and displays.
        save_every: epochs between resumable states.
        keep: epochs whose policies stay, as ``epoch-0005.safetensors``.
        backbone: the encoder itself, for depth patches: in the last `depth_epochs` it is run on every sample.
        depths: (F, H, W) [m] in place of the recorded depth, as `depth_inputs.predicted_depth` gives it.

    Raises:
        UnknownName: for an unknown loss or optimiser.
        BadInput: for impossible settings.
        DataError: if the demonstrations do not fit, or the loss stops being finite.
        CheckpointError: if the folder is of a run with other settings, or one that kept other epochs.
    """
    pictures = demos.pictures(embedding.cameras, recorded_depth(embedding))
    check_depth_encoder(embedding, backbone)
    view = point_view(embedding, demos, depths)
    policy = new_policy(tokens, embedding, demos.widths, settings, seed, kind, pictures, view).to(device)
    embedder = policy.embedder
    data = bc_data(demos, cache, policy, depths)
    training = dict(seed=seed, **asdict(settings), data=data.fingerprint, task=demos.task, starts=demos.starts)
    folder = out / "checkpoints" / kind
    last, best = folder / "last.safetensors", folder / "best.safetensors"
    optimizer = _optimizer(policy, settings, device)
    state = _resume(folder / "state.safetensors", policy, optimizer, digest(training, embedder.arguments(), kind))
    kept = {epoch: folder / f"epoch-{epoch:04d}.safetensors" for epoch in keep}
    if lost := [path.name for epoch, path in kept.items() if epoch <= state.epoch and not path.is_file()]:
        raise CheckpointError(f"{folder} is {state.epoch} epochs on without {', '.join(lost)}; delete it to begin anew")
    if state.epoch == settings.epochs and all(path.is_file() for path in (last, best, *kept.values())):
        return BCResult(last, best, state.train_loss, state.valid_loss, reused=True, kept=list(kept.values()))
    seconds = {"learning": 0.0}
    loss_of = _LOSSES[settings.loss]
    one_thread = device.type == "cpu" and not policy.learns_to_see
    with (
        threads(1 if one_thread else torch.get_num_threads()),
        MetricsLog(out, kind, state.step) as metrics,
        (progress or Progress()).stage(f"train {kind}", settings.epochs) as bar,
    ):
        bar.advance(state.epoch)
        precision = "fp32" if encoder is None else encoder.precision
        batches = Batches(data, policy, device, backbone, precision)
        for epoch in range(state.epoch + 1, settings.epochs + 1):
            began = perf_counter()
            policy.train()
            batches.adds_depth = epoch > settings.epochs - embedding.depth_epochs
            total = torch.zeros((), device=device)
            with seeded(seed, epoch):
                order = data.train[torch.randperm(len(data.train))]
                parts = _split(order, settings.batch)
                for rows in parts:
                    loss, count = batches.loss(policy, rows, loss_of)
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
                    total += loss.detach() * count
            state.train_loss = float(total) / int(data.within[order].sum())
            state.valid_loss = _valid_loss(policy, batches, data.valid, loss_of, settings.batch)
            state.epoch, state.step = epoch, state.step + len(parts)
            if not np.isfinite(state.train_loss):
                raise DataError(f"the training loss is {state.train_loss} in epoch {epoch}; lower policy.lr")
            seconds["learning"] += perf_counter() - began
            values = {"train/loss": state.train_loss}
            if len(data.valid):
                values["valid/loss"] = state.valid_loss
            metrics.write(epoch, state.step, values)
            bar.advance(1)
            explained = {**training, "epoch": epoch, "robot": demos.environment.get("robot")}
            due = epoch % save_every == 0 or epoch == settings.epochs or epoch in kept
            if state.valid_loss < state.best_loss or (due and not len(data.valid)):
                state.best_loss = state.valid_loss
                policy.save(best, encoder, demos.request, explained, state.step)
            if due:
                for path in (last, *([kept[epoch]] if epoch in kept else [])):
                    policy.save(path, encoder, demos.request, explained, state.step)
                state.save(policy, optimizer)
    return BCResult(last, best, state.train_loss, state.valid_loss, False, list(kept.values()), seconds)


def new_policy(
    tokens: TokenShape | None,
    embedding: EmbeddingSettings,
    widths: Mapping[str, int],
    settings: PolicySettings,
    seed: int,
    kind: str = "bc",
    pictures: Sequence[str] = ("rgb",),
    view: PointView | None = None,
) -> Visuomotor:
    """Return an untrained policy; also the way to learn, before any work, whether settings make sense.

    Args:
        tokens: what the encoder gives for a picture; None without one.
        widths: of "actions", and of the observations "proprio" and "state" that are there.
        kind: as `visuomotor.policy_kind` says.
        pictures: observation keys of the pictures it sees side by side.
        view: camera and box of a policy of points; without one they are made up, to learn whether settings make sense.

    Raises:
        UnknownName: for an unknown fusion, loss, optimiser or activation.
        BadInput: for impossible settings.
        DataError: if there is no observation that the policy needs.
    """
    _check(settings)
    check_depth(embedding, sees=kind == "bc")
    head = None if embedding.depth_head is None else sha256_of(require_depth_head(embedding.depth_head))
    if embedding.depth == "points" and view is None:
        view = PointView(Calibration(np.eye(3), np.eye(4)), ())
    frames = history_of(embedding)
    if kind == "cnn":
        tokens, embedding = PixelNetwork.tokens, replace(embedding, fusion="mean", frames="single")
    elif kind == "bc" and tokens is not None:
        tokens = tokens._replace(dim=tokens.dim * len(pictures))
    else:
        tokens, embedding = None, replace(embedding, proprio=True)
    felt = "state" if kind == "state" else "proprio"
    if kind == "state" and felt not in widths:
        raise DataError(f"the demonstrations have no observation {felt!r}; record them again with: pixio-robot collect")
    with seeded(seed, 0):
        embedder = Embedder(tokens, embedding, widths.get(felt, 0) if embedding.proprio else 0)
        return Visuomotor(embedder, widths["actions"], settings, kind, frames, pictures, view, head)


def _check(settings: PolicySettings) -> None:
    for what, name, known in (
        ("loss", settings.loss, _LOSSES),
        ("optimizer", settings.optimizer, _OPTIMIZERS),
    ):
        if name not in known:
            raise UnknownName(f"no {what} {name!r}; there are: {', '.join(known)}{closest(name, known)}")
    for what, value, least in (("batch", settings.batch, 2), ("epochs", settings.epochs, 1)):
        if value < least:
            raise BadInput(f"policy.{what} is {value}; it must be at least {least}")
    if not 0 <= settings.dropout < 1 or settings.lr <= 0 or settings.weight_decay < 0:
        raise BadInput(
            f"policy.dropout={settings.dropout}, policy.lr={settings.lr}, policy.weight_decay={settings.weight_decay}: "
            "dropout must be in [0, 1), the learning rate positive, weight decay not negative"
        )


def _optimizer(policy: nn.Module, settings: PolicySettings, device: torch.device) -> torch.optim.Optimizer:
    return _OPTIMIZERS[settings.optimizer](
        policy.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=device.type in ("cpu", "cuda")
    )


def _split(order: Tensor, size: int) -> list[Tensor]:
    """Cut rows into batches; a last batch of one frame, which batch normalisation cannot take, joins the one before."""
    parts = list(order.split(size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


@torch.no_grad()
def _valid_loss(policy: Visuomotor, batches: Batches, rows: Tensor, loss_of: Any, size: int) -> float:
    if not len(rows):
        return float("nan")
    policy.eval()
    losses = [batches.loss(policy, part, loss_of) for part in rows.split(size)]
    return sum(float(loss) * count for loss, count in losses) / sum(count for _, count in losses)


@dataclass
class _State:
    """How far training is; written beside the policy so that it can go on."""

    path: Path
    identity: str
    epoch: int = 0
    step: int = 0
    train_loss: float = float("nan")
    valid_loss: float = float("nan")
    best_loss: float = float("inf")

    def save(self, policy: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        tensors = {f"policy.{name}": tensor for name, tensor in policy.state_dict().items()}
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items() if value is not None}
        numbers = {name: value for name, value in asdict(self).items() if name != "path"}
        save_checkpoint(self.path, Checkpoint("bc-state", tensors, numbers, step=self.step))


def _resume(path: Path, policy: nn.Module, optimizer: torch.optim.Optimizer, identity: str) -> _State:
    """Return the state to go on from, with `policy` and `optimizer` set to it."""
    if not path.is_file():
        return _State(path, identity)
    checkpoint = load_checkpoint(path, "bc-state")
    state = _State(path, **checkpoint.arguments)
    if state.identity != identity:
        raise CheckpointError(f"{path} is of a run with other settings or data; choose another out= or delete it")
    weights = {name.removeprefix("policy."): t for name, t in checkpoint.tensors.items() if name.startswith("policy.")}
    load_strictly(policy, weights, path)
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in checkpoint.tensors.items():
        if name.startswith("optimizer."):
            _, index, slot = name.split(".")
            slots.setdefault(int(index), {})[slot] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
    return state
