"""Which class tokens a trained policy uses: leave one out and see how much worse its actions become.

Shapes: F frames, B batch, T frames of history, K class tokens, D width.
"""

import numpy as np
import torch

from ..datasets.robomimic import DemoSet
from ..datasets.token_cache import TokenCache
from ..policies.bc_data import bc_data
from ..policies.visuomotor import Visuomotor

_FRAMES = 2048  # training frames that a token's mean is taken over


@torch.inference_mode()
def token_use(policy: Visuomotor, demos: DemoSet, cache: TokenCache) -> list[float] | None:
    """Return how much the action error on held-out demonstrations rises without each class token, (K,).

    A token is left out by putting its mean over training frames in its place, in all frames of the history; 0.5 says
    that the mean squared error is half as large again. It says what this trained policy leans on. It does not say what
    a policy trained without the token could do, since tokens share what they know, nor what happens to success.

    Returns:
        None where there is nothing to leave out: no held-out demonstrations, fewer than two class tokens, or patch
        tokens.
    """
    data = bc_data(demos, cache, policy)
    shape = policy.embedder.tokens
    if policy.embedder.needs_patches or shape is None or shape.cls < 2 or not len(data.valid):
        return None
    assert data.tokens is not None
    some = data.train[:: -(-len(data.train) // _FRAMES)].numpy()
    means = torch.from_numpy(data.tokens[some].astype(np.float32)).mean(0)  # (K, D)
    errors = torch.zeros(shape.cls + 1, dtype=torch.float64)  # the last one with all tokens
    for rows in data.valid.split(256):
        tokens = torch.from_numpy(data.tokens[data.history[rows.numpy()]]).float()  # (B, T, K, D)
        proprio = None if data.proprio is None else data.proprio[rows]
        for left_out in range(shape.cls + 1):
            seen = tokens
            if left_out < shape.cls:
                seen = tokens.clone()
                seen[:, :, left_out] = means[left_out]
            now = policy(seen, proprio)[:, : policy.actions]
            errors[left_out] += float((now - data.actions[rows]).square().sum())
    if float(errors[-1]) == 0:
        return None
    return [float(error / errors[-1] - 1) for error in errors[:-1]]
