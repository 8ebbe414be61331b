"""Demonstrations as transitions that a replay buffer could have stored."""

import numpy as np

from ...datasets.robomimic import DemoSet
from ...datasets.token_cache import TokenCache
from ...errors import DataError
from ..embedding import frame_indices
from ..pixel_network import shrunk
from ..visuomotor import Visuomotor
from .embedded_env import FELT, TOKENS
from .replay import Transitions


def demo_transitions(demos: DemoSet, cache: TokenCache | None, policy: Visuomotor) -> Transitions:
    """Return all steps of the training split but the last of each demonstration, embedded as `EmbeddedVecEnv` does.

    Args:
        cache: tokens of the demonstrations; None for a policy without an encoder.

    Raises:
        DataError: if actions or rewards are not finite.
    """
    rows = demos.rows("train")
    starts = demos.frame_starts
    rows = rows[(rows + 1 < len(starts)) & (starts[np.minimum(rows + 1, len(starts) - 1)] == starts[rows])]
    actions, rewards = demos.read("actions").astype(np.float32), demos.read("rewards").astype(np.float32)
    if not (np.isfinite(actions).all() and np.isfinite(rewards).all()) or not len(rows):
        raise DataError(f"{demos.path} has actions or rewards that are not finite, or no step with a next one")
    history = frame_indices(starts, policy.history)
    embedder, tokens = policy.embedder, None
    if cache is not None:
        tokens = np.asarray(cache.patches if embedder.needs_patches else cache.cls)
        if embedder.settings.fusion == "first":
            tokens = tokens[:, :1]
        elif embedder.settings.fusion == "mean":
            tokens = tokens.astype(np.float32).mean(axis=1, keepdims=True).astype(np.float16)
    elif policy.pixels is not None:
        views = [np.concatenate([shrunk(part) for part in demos.batches(key, 0, 256)]) for key in policy.images]
        tokens = np.concatenate(views, axis=-1)
    felt = demos.read(policy.felt).astype(np.float32) if embedder.proprio_dim else None

    def observed(at: np.ndarray) -> dict[str, np.ndarray]:
        observations = {} if tokens is None else {TOKENS: tokens[history[at]]}
        return observations if felt is None else {**observations, FELT: felt[at]}

    return Transitions(observed(rows), observed(rows + 1), np.clip(actions[rows], -1, 1), rewards[rows, None])
