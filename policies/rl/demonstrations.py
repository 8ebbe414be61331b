"""Demonstrations as transitions that a replay buffer could have stored."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ...datasets.dataset import EpisodeDataset, camera_keys
from ...datasets.windows import observation_rows
from ...errors import DataError
from ..build import VisionPolicy
from ..data import cached_frames
from ..vision import Vision
from .embedded_env import stored_frames
from .replay import Transitions


def demo_transitions(
    dataset: EpisodeDataset, model: VisionPolicy, cache: Path, cameras: Sequence[str] = ()
) -> Transitions:
    """Return all steps of the training split but the last of each demonstration, as `EmbeddedVecEnv` gives them.

    Args:
        model: the policy; frames that are not in `cache` yet are encoded.
        cameras: names of the cameras that the policy observes, as they were recorded; empty means the first one.

    Raises:
        DataError: if actions or rewards are not finite, or there is no step with a next one.
        UnknownName: for a camera that was not recorded.
    """
    episode = np.append(dataset.episode_starts, -1)  # of each row and of the one after the last
    rows = dataset.rows("train")
    rows = rows[episode[rows + 1] == episode[rows]]
    actions, rewards = dataset.column("action").astype(np.float32), dataset.column("reward").astype(np.float32)
    if not (np.isfinite(actions).all() and np.isfinite(rewards).all()) or not len(rows):
        raise DataError(f"{dataset.source} has actions or rewards that are not finite, or no step with a next one")
    history = observation_rows(dataset.episode_starts, model.spec.observation_steps)
    frames = _demo_frames(dataset, model, cache, cameras)
    vectors = {key: dataset.column(key).astype(np.float32) for key in model.spec.vectors}

    def observed(at: np.ndarray) -> dict[str, np.ndarray]:
        stacked = {name: values[history[at]] for name, values in frames.items()}
        return stacked | {key: values[at] for key, values in vectors.items()}

    return Transitions(observed(rows), observed(rows + 1), np.clip(actions[rows], -1, 1), rewards[rows, None])


def _demo_frames(
    dataset: EpisodeDataset, model: VisionPolicy, cache: Path, cameras: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return what is stored of all frames, (F, ...) each, under the policy's names.

    A data set and the environment may have different names for a camera: "rgb" of the data is the first recorded one.
    """
    vision = model.vision
    if not vision.spec.cameras:
        return {}
    keys = camera_keys(dataset, cameras)
    recorded = Vision(replace(vision.spec, cameras=keys), vision.encoder).place(vision.device)
    names = dict(zip(keys, vision.spec.cameras, strict=True))
    frames = {}
    for name, values in cached_frames(recorded, dataset, cache).arrays.items():
        key, dot, kind = name.partition(".")
        frames[names.get(key, key) + dot + kind] = torch.from_numpy(np.array(values))
    return {name: values.numpy() for name, values in stored_frames(model, frames).items()}
