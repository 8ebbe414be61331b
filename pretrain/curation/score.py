"""Scoring of one shard: a pure function of shard, autoencoder and settings, independent of the engine.

Shapes: B images of a batch, S side, K mask blocks, N images of the shard.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ...encoders.preprocessing import Preprocessing, preprocess
from ...errors import Unreadable
from ...hardware import autocast, threads
from ..images.crops import center_crop
from ..images.decoding import decode
from ..images.headers import read_header
from ..images.shards import samples
from ..images.tar_walk import Member, TarWalk
from ..mae import MaskedAutoencoder
from ..masking import MaskShape, PatchMask, mask_shape
from .entropy import DEFINITION, colour_entropy
from .statistics import NOT_FINITE, OK, UNREADABLE, ShardStatistics, image_hash, shard_name


class Scoring(NamedTuple):
    """Everything besides the shard that decides its scores; recorded in every sidecar."""

    model: str  # `model_hash`
    image_size: int  # side of the central crop, S [px]
    mask_ratio: float
    mask_block: int  # [patches]
    masks: int  # losses of an image, each with its own mask
    batch: int  # images a forward pass; may change the last bits of a loss
    precision: str  # "fp32" or "bf16"
    entropy: str = DEFINITION


class _Image(NamedTuple):
    member: Member
    hash: int
    readable: bool
    width: int  # 0 where the header cannot be read
    height: int
    entropy: float = float("nan")


_Reading = tuple[_Image, np.ndarray | None]  # with the crop, (S, S, 3) uint8, of a readable image


def score_shard(
    shard: Path, model: MaskedAutoencoder, scoring: Scoring, device: torch.device, readers: int = 1
) -> ShardStatistics:
    """Score every image of a tar shard.

    An image's masks are functions of its name. Batches are cut along the shard and one thread computes, so on one kind
    of machine and version of torch the result is bit-identical.

    Args:
        shard: an uncompressed tar file.
        model: in evaluation mode, on `device`.
        readers: threads that read and decode ahead.

    Raises:
        OSError: if the shard cannot be opened or read.
    """
    name, patch = shard_name(shard), model.encoder.patch
    side = scoring.image_size // patch
    shape = mask_shape((side, side), scoring.mask_ratio, scoring.mask_block)
    file = os.open(shard, os.O_RDONLY)
    try:
        walk = TarWalk(shard)
        members = (member for member, _ in samples(walk))

        def read(member: Member) -> _Reading:
            return _read(file, member, image_hash(name, member.name), scoring.image_size)

        found: list[_Image] = []
        losses: list[np.ndarray] = []
        waiting: list[tuple[int, np.ndarray]] = []
        with threads(1):
            for image, crop in _ahead(read, members, readers, scoring.batch):
                found.append(image)
                if crop is not None:
                    waiting.append((image.hash, crop))
                if len(waiting) == scoring.batch:
                    losses.append(_losses(waiting, model, scoring, shape, device))
                    waiting = []
            if waiting:
                losses.append(_losses(waiting, model, scoring, shape, device))
        return _statistics(name, scoring.masks, walk.cut, found, losses)
    finally:
        os.close(file)


def _ahead(
    read: Callable[[Member], _Reading], members: Iterable[Member], readers: int, most: int
) -> Iterator[_Reading]:
    """Read images in order, with threads up to `most` images ahead."""
    if readers == 1:
        yield from map(read, members)
        return
    waiting: deque[Future[_Reading]] = deque()
    with ThreadPoolExecutor(readers) as pool:
        for member in members:
            waiting.append(pool.submit(read, member))
            if len(waiting) > most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read(file: int, member: Member, number: int, side: int) -> _Reading:
    data = os.pread(file, member.size, member.offset)
    width = height = 0
    try:
        if len(data) < member.size:
            raise Unreadable("the shard was shortened meanwhile")
        header = read_header(data)
        height, width = header.shape
        pixels = decode(data, header=header)
        height, width = pixels.shape[:2]
        return _Image(member, number, True, width, height, colour_entropy(pixels)), center_crop(pixels, (side, side))
    except Unreadable:
        return _Image(member, number, False, width, height), None


def _losses(
    images: Sequence[tuple[int, np.ndarray]],
    model: MaskedAutoencoder,
    scoring: Scoring,
    shape: MaskShape,
    device: torch.device,
) -> np.ndarray:
    """Return the loss of every image (hash and crop) with every mask, (B, masks) float64."""
    crops = torch.from_numpy(np.stack([crop for _, crop in images])).to(device)
    pixels = preprocess(crops, Preprocessing(size=(scoring.image_size, scoring.image_size)))
    columns = []
    with torch.inference_mode(), autocast(device, scoring.precision):
        for number in range(scoring.masks):
            noise = [np.random.default_rng([each, number]).random(shape.blocks, np.float32) for each, _ in images]
            mask = PatchMask.from_noise(torch.from_numpy(np.stack(noise)).to(device), shape)
            columns.append(model(pixels, mask).per_image_loss.float().cpu().numpy())
    return np.stack(columns, axis=1).astype(np.float64)


def _statistics(name: str, masks: int, cut: bool, found: list[_Image], losses: list[np.ndarray]) -> ShardStatistics:
    decoded = np.array([image.readable for image in found], bool)
    loss = np.full((len(found), masks), np.nan)
    if losses:
        loss[decoded] = np.concatenate(losses)
    finite = np.isfinite(loss).all(axis=1)
    loss[~finite] = np.nan
    spread = loss.std(axis=1, ddof=1) if masks > 1 else np.full(len(found), np.nan)
    status = (OK if good else NOT_FINITE if read else UNREADABLE for good, read in zip(finite, decoded, strict=True))
    return ShardStatistics(
        name,
        masks,
        cut,
        key=tuple(image.member.name for image in found),
        hash=np.array([image.hash for image in found], np.uint64),
        offset=np.array([image.member.offset for image in found], np.int64),
        size=np.array([image.member.size for image in found], np.int64),
        width=np.array([image.width for image in found], np.int32),
        height=np.array([image.height for image in found], np.int32),
        entropy=np.array([image.entropy for image in found], np.float64),
        loss=loss.mean(axis=1),
        spread=spread,
        status=tuple(status),
    )


def model_hash(model: MaskedAutoencoder) -> str:
    """Return 16 hex digits for an autoencoder's weights and arguments."""
    state = hashlib.sha256(json.dumps(model.arguments, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        state.update(name.encode())
        state.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return state.hexdigest()[:16]
