"""Training of a dense head on a frozen encoder: features are computed once, test errors are on whole images.

Shapes: n images, L blocks read, N patches, D width, C classes, H x W size of the encoder's image.
"""

import logging
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...depth.estimator import at_size
from ...depth.heads import WIDTHS, DPTHead, LinearHead, dpt_blocks, frozen_tokens, make_head, metric_depth, token_map
from ...encoders.encoder import Tokens
from ...encoders.load import Backbone
from ...errors import BadInput, DataError, UnknownName
from ...hardware import autocast, seeded
from .dense import silog
from .dense_data import IGNORED, DenseSet

log = logging.getLogger(__name__)

_ENCODED = 32  # images at a time
_WARM_UP = 0.1  # of the steps
_POWER = 0.9  # of the polynomial decay


@dataclass(frozen=True)
class HeadTraining:
    """How heads for depth and segmentation are trained. Published: 45,000 steps of 32 images.

    Raises:
        UnknownName: for an unknown size of DPT heads.
    """

    train_images: int = 600  # at most, evenly spaced; their features are kept in memory
    test_images: int = 200  # at most, evenly spaced
    epochs: int = 20
    batch: int = 16
    linear_rate: float = 1e-2  # learning rate of linear heads; published 2e-4
    dpt_rate: float = 1e-3  # learning rate of DPT heads; published 1e-4
    weight_decay: float = 0.01
    widths: str = "small"  # size of DPT heads, a name of `depth.heads.WIDTHS`
    max_depth: float | None = None  # greatest depth that counts [m]; None is 1.25 times the largest of training

    def __post_init__(self) -> None:
        if self.widths not in WIDTHS:
            raise UnknownName(f"dense.widths={self.widths!r} is not one of: {', '.join(WIDTHS)}")


class DenseFeatures(NamedTuple):
    """Inputs and targets of a head, on the CPU."""

    patches: Tensor  # (n, L, N, D) float16, normed
    cls: Tensor  # (n, L, D) float16: mean of the normed class tokens
    targets: Tensor | None  # (n, H, W) float32 [m] or uint8 labels, for training
    whole: list[np.ndarray]  # n targets in their own size, for the test


def blocks_of(backbone: Backbone, head: str) -> list[int] | None:
    """Return the blocks that a head reads; None is the last one only.

    Raises:
        BadInput: for a DPT head on an encoder that is not Pixio's, or has fewer than four blocks.
    """
    if head == "linear":
        return None
    if backbone.network.block_count == 0:
        raise BadInput(f"a DPT head reads four blocks; {backbone.name} returns its last block only: use linear")
    return dpt_blocks(backbone.network.block_count)


def encode_dense(
    backbone: Backbone, images: DenseSet, blocks: list[int] | None, *, train: bool, precision: str = "fp32"
) -> DenseFeatures:
    """Read and encode images once."""
    device = next(backbone.parameters()).device
    size = backbone.preprocessing.size
    patches, cls, targets, whole = [], [], [], []
    for begin in range(0, len(images), _ENCODED):
        pairs = [images.read(index) for index in range(begin, min(begin + _ENCODED, len(images)))]
        shapes = {pair.image.shape for pair in pairs}
        batches = [pairs] if len(shapes) == 1 else [[pair] for pair in pairs]
        for batch in batches:
            pixels = torch.from_numpy(np.stack([pair.image for pair in batch])).to(device)
            with autocast(device, precision):
                tokens = frozen_tokens(backbone, pixels, blocks)
            patches.append(torch.stack([each.patches for each in tokens], 1).half().cpu())
            cls.append(torch.stack([each.cls[:, 0] for each in tokens], 1).half().cpu())
        if train:
            targets += [nearest(pair.target, size) for pair in pairs]
        else:
            whole += [pair.target for pair in pairs]
    return DenseFeatures(torch.cat(patches), torch.cat(cls), torch.stack(targets) if train else None, whole)


def nearest(target: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Resize a target without mixing its values: (H, W) to `size`."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64) for new, old in zip(size, target.shape, strict=True)
    )
    return torch.from_numpy(np.ascontiguousarray(target[rows[:, None], columns]))


class Trained(NamedTuple):
    """A head after its last epoch."""

    head: nn.Module
    max_depth: float  # [m]; 0 for segmentation
    losses: list[float]  # mean of each epoch


def train_head(
    features: DenseFeatures,
    kind: str,
    grid: tuple[int, int],
    settings: HeadTraining,
    classes: int = 0,
    device: torch.device = torch.device("cpu"),
    seed: int = 0,
) -> Trained:
    """Train a head with AdamW, 10 % linear warm-up and polynomial decay; the result is that of the last epoch.

    There is no augmentation, since features are computed once from the unchanged images.

    Args:
        features: of training images.
        kind: "linear" or "dpt".
        grid: of patches.
        settings: of the training.
        classes: C for segmentation, 0 for depth.
        device: to train on.
        seed: of the initial weights and the order.

    Raises:
        DataError: if no training pixel has a target.
    """
    targets = features.targets
    if targets is None:
        raise BadInput("features without targets cannot train a head; encode them with train=True")
    known = targets != IGNORED if classes else targets > 0
    if not known.any():
        raise DataError(f"not one of the {len(targets)} training images has a pixel whose target is known")
    max_depth = 0.0 if classes else settings.max_depth or 1.25 * float(targets.max())
    if max_depth:
        targets = torch.where(targets <= max_depth, targets, 0)
    with seeded(seed):
        head = make_head(kind, features.patches.shape[3], max(1, classes), settings.widths)
    if not classes:
        _start_at(head, float(targets[targets > 0].median()) / max_depth)
    head.to(device).requires_grad_(True).train()
    rate = settings.linear_rate if kind == "linear" else settings.dpt_rate
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate, betas=(0.9, 0.999), weight_decay=settings.weight_decay)
    steps = settings.epochs * -(-len(targets) // settings.batch)
    order = np.random.default_rng(seed)
    step, losses = 0, []
    for epoch in range(settings.epochs):
        total, counted = 0.0, 0
        for rows in np.array_split(order.permutation(len(targets)), -(-len(targets) // settings.batch)):
            for group in optimizer.param_groups:
                group["lr"] = rate * _schedule(step, steps)
            step += 1
            truth = targets[rows].to(device)
            valid = truth != IGNORED if classes else truth > 0
            if len(rows) < 2 or not valid.any():  # batch normalisation needs two; a loss needs a pixel
                continue
            output = head(_maps(features, rows, grid, device), tuple(truth.shape[1:]))
            if classes:
                loss = F.cross_entropy(output, truth.long(), ignore_index=IGNORED)
            else:
                loss = silog(metric_depth(output, max_depth), truth)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()
            total, counted = total + float(loss.detach()), counted + 1
        losses.append(total / max(1, counted))
        if (epoch + 1) % max(1, settings.epochs // 5) == 0:
            log.info("%s head, epoch %d of %d: loss %.4f", kind, epoch + 1, settings.epochs, losses[-1])
    return Trained(head.eval().requires_grad_(False), max_depth, losses)


@torch.no_grad()
def predict(
    trained: Trained, features: DenseFeatures, grid: tuple[int, int], size: tuple[int, int], device: torch.device
) -> list[np.ndarray]:
    """Return a map for each test image in its own size: depth float32 [m], or classes int64."""
    maps: list[np.ndarray] = []
    for begin in range(0, len(features.patches), _ENCODED):
        rows = np.arange(begin, min(begin + _ENCODED, len(features.patches)))
        output = trained.head(_maps(features, rows, grid, device), size)
        if trained.max_depth:
            output = metric_depth(output, trained.max_depth)[:, None]
        for row, each in zip(rows, output, strict=True):
            whole = at_size(each[None], features.whole[row].shape)[0]
            maps.append((whole[0] if trained.max_depth else whole.argmax(0)).cpu().numpy())
    return maps


def _maps(features: DenseFeatures, rows: np.ndarray, grid: tuple[int, int], device: torch.device) -> list[Tensor]:
    patches, cls = features.patches[rows].to(device).float(), features.cls[rows].to(device).float()
    return [token_map(Tokens(cls[:, [level]], patches[:, level]), grid) for level in range(patches.shape[1])]


def _start_at(head: LinearHead | DPTHead, share: float) -> None:
    """Set the last bias so that the initial output is the median depth, where the sigmoid is steep."""
    last = head.project if isinstance(head, LinearHead) else head.last[-1]
    bias = cast(Tensor, cast(nn.Conv2d, last).bias)
    nn.init.constant_(bias, float(np.log(share / (1 - share))))


def _schedule(step: int, steps: int) -> float:
    warm = max(1, round(_WARM_UP * steps))
    return (step + 1) / warm if step < warm else (1 - (step - warm) / max(1, steps - warm)) ** _POWER
