"""Demonstrations as the training loop reads them: cached frames, windows of rows, batches.

Shapes: F frames, B batch, T observation steps, H horizon, A action, U different frames in a batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..datasets.dataset import EpisodeDataset
from ..datasets.frame_cache import ArraySpec, FrameCache, frame_cache
from ..datasets.token_cache import TokenFormat, token_cache
from ..datasets.windows import Window, action_rows, observation_rows
from ..errors import DataError
from ..run_folder import digest
from .depth_inputs import depth_parts
from .pixel_network import SIDE
from .policy import PolicySpec
from .vision import DEPTH_FEATURE, PIXELS, Vision


@dataclass
class CachedFrames:
    """What `Vision.encode` gives for all frames of a data set, memory-mapped and kept apart by name."""

    places: dict[str, tuple[FrameCache, str]] = field(default_factory=dict)  # name -> cache, and array in it

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name: "rgb.cls" (F, K, D), "pixels" (F, S, S, C), ..."""
        return {name: cache.arrays[array] for name, (cache, array) in self.places.items()}

    @property
    def caches(self) -> list[FrameCache]:
        """The caches that hold the arrays."""
        return list({id(cache): cache for cache, _ in self.places.values()}.values())

    @property
    def names(self) -> list[str]:
        """The digests of what they were made from."""
        return [cache.name for cache in self.caches]

    @property
    def seconds(self) -> dict[str, float]:
        """Reading and encoding [s]; nothing if all was reused."""
        total: dict[str, float] = {}
        for cache in self.caches:
            for what, spent in cache.seconds.items():
                total[what] = total.get(what, 0.0) + spent
        return total


def cached_frames(
    vision: Vision, dataset: EpisodeDataset, root: Path, depths: np.ndarray | None = None
) -> CachedFrames:
    """Return the frames of a data set as a policy keeps them, from the caches in `root`; what is missing is filled.

    Images of a tuned encoder are not cached: training reads them.

    Args:
        depths: (F, H, W) [m] in place of recorded depth.

    Raises:
        DataError: if a cache is damaged, or the data lacks what is observed.
    """
    found, spec = CachedFrames(), vision.spec
    if vision.encoder is not None and spec.tune == "frozen":
        tokens = TokenFormat(spec.normed, "patches" in spec.kinds, spec.precision, spec.depth_code)
        for key in spec.cameras:
            cache = token_cache(root, vision.encoder, dataset, key, tokens, vision.device)
            found.places |= {f"{key}.{kind}": (cache, kind) for kind in spec.kinds}
    if vision.pixels is not None:
        found.places[PIXELS] = (_pixel_cache(vision, dataset, root), PIXELS)
    if vision.depth is not None or vision.residual is not None:
        found.places[DEPTH_FEATURE] = (_depth_cache(vision, dataset, root, depths), DEPTH_FEATURE)
    return found


def _pixel_cache(vision: Vision, dataset: EpisodeDataset, root: Path) -> FrameCache:
    """Return the small images of all cameras, side by side along the channels."""
    keys, size = vision.spec.cameras, 64

    def frames(first: int):  # type: ignore[no-untyped-def]
        for parts in zip(*(dataset.batches(key, first, size) for key in keys), strict=True):
            yield vision.pixel_frames(dict(zip(keys, parts, strict=True)))

    identity = {"frames": PIXELS, "data": dataset.fingerprint, "keys": list(keys), "side": SIDE}
    if any(key.startswith("depth") for key in keys):
        identity["depth_code"] = list(vision.spec.depth_code)
    specs = {PIXELS: ArraySpec((SIDE, SIDE, 3 * len(keys)), "uint8")}
    return frame_cache(root, identity, specs, frames, lambda batch: {PIXELS: batch}, dataset.frames)


def _depth_cache(vision: Vision, dataset: EpisodeDataset, root: Path, depths: np.ndarray | None) -> FrameCache:
    """Return the small depth, or the clouds, of the first camera."""
    spec, key = vision.spec, vision.spec.depth_key
    identity = {
        "frames": DEPTH_FEATURE,
        "data": dataset.fingerprint,
        "key": key,
        "mode": spec.depth,
        "code": list(spec.depth_code),
        "points": spec.depth_points,
        "view": spec.view,
        "head": None if spec.depth_head is None else spec.depth_head[1],
        "size": None if vision.residual is None else list(vision.residual.size),
    }
    example = vision.depth_frames(next(depth_parts(dataset, key, depths, size=1)))
    specs = {DEPTH_FEATURE: ArraySpec(example.shape[1:], str(example.dtype))}

    def compute(depth: np.ndarray) -> Mapping[str, np.ndarray]:
        return {DEPTH_FEATURE: vision.depth_frames(depth)}

    return frame_cache(
        root, identity, specs, lambda first: depth_parts(dataset, key, depths, first), compute, dataset.frames
    )


class Sample(NamedTuple):
    """A batch before vision and normalisation."""

    frames: dict[str, Tensor]  # (B, T, ...); or images and depth of the U different frames, (U, ...)
    frame_index: Tensor | None  # (B, T), which of the U frames; None without images
    vectors: dict[str, Tensor]  # (B, T, P)
    action: Tensor  # (B, H, A)
    action_is_pad: Tensor  # (B, H) bool

    @property
    def images(self) -> tuple[str, ...]:
        """The image features among the frames."""
        if self.frame_index is None:
            return ()
        return tuple(key for key in self.frames if "." not in key and key not in (DEPTH_FEATURE, PIXELS))

    def to(self, device: torch.device) -> "Sample":
        """Return this on a device."""

        def moved(values: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: value.to(device) for name, value in values.items()}

        index = None if self.frame_index is None else self.frame_index.to(device)
        action, is_pad = self.action.to(device), self.action_is_pad.to(device)
        return Sample(moved(self.frames), index, moved(self.vectors), action, is_pad)


class TrainingData:
    """A data set by windows: `sample` turns rows into a batch. Cached frames stay on disk, vectors are in memory.

    Args:
        dataset: the demonstrations.
        spec: what the policy observes and predicts.
        cached: frames by name.
        images: image features that are read from the data set, for encoders that learn.

    Raises:
        DataError: if actions are not finite, or there is nothing to train on.
    """

    def __init__(
        self, dataset: EpisodeDataset, spec: PolicySpec, cached: CachedFrames, images: tuple[str, ...] = ()
    ) -> None:
        self.dataset, self.cached, self.images = dataset, cached, images
        window = Window(spec.observation_steps, spec.horizon)
        self.history = observation_rows(dataset.episode_starts, window.observation_steps)
        self.chunks, self.is_pad = action_rows(dataset.episode_starts, window.horizon)
        self.action = dataset.column("action").astype(np.float32)
        self.vectors = {key: dataset.column(key).astype(np.float32) for key in spec.vectors}
        for key, values in {"action": self.action, **self.vectors}.items():
            if not np.isfinite(values).all():
                raise DataError(f"{dataset.source} has values of {key!r} that are not finite; remove these frames")
        self.train, self.valid = (torch.from_numpy(dataset.rows(split)) for split in ("train", "valid"))
        if len(self.train) < 2:
            raise DataError(f"{dataset.source} has {len(self.train)} training frames; at least 2 are needed")

    @property
    def fingerprint(self) -> str:
        """The digest of the demonstrations and of what their frames were turned into."""
        return digest(self.dataset.fingerprint, self.cached.names)

    def targets(self, rows: np.ndarray) -> int:
        """Return how many actions of `rows` are targets."""
        return int((~self.is_pad[rows]).sum())

    def sample(self, rows: np.ndarray, images: tuple[str, ...] | None = None) -> Sample:
        """Return the batch of `rows` (B,).

        Args:
            images: image features to read in place of cached tokens; None is those of the constructor.
        """
        wanted = self.images if images is None else images
        history = self.history[rows]
        frames, index = {}, None
        if wanted:
            unique, places = np.unique(history, return_inverse=True)
            index = torch.from_numpy(places.reshape(history.shape))
            frames = {key: torch.from_numpy(self.dataset.read(key, unique)) for key in wanted}
        for name, values in self.cached.arrays.items():
            if name.partition(".")[0] in wanted:
                continue
            live = name == DEPTH_FEATURE and index is not None
            frames[name] = torch.from_numpy(values[unique if live else history])
        return Sample(
            frames,
            index,
            {key: torch.from_numpy(values[history]) for key, values in self.vectors.items()},
            torch.from_numpy(self.action[self.chunks[rows]]),
            torch.from_numpy(self.is_pad[rows]),
        )
