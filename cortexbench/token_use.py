"""Which class tokens a trained policy uses: leave one out and measure how much worse its actions become.

Shapes: F frames, B batch, T observation steps, K class tokens, D width, H horizon, A action.
"""

import numpy as np
import torch
from torch import Tensor

from ..policies.build import VisionPolicy
from ..policies.data import TrainingData

_FRAMES = 2048  # training frames that a token's mean is taken over
_BATCH = 256


@torch.inference_mode()
def token_use(model: VisionPolicy, data: TrainingData) -> list[float] | None:
    """Return how much the action error on held-out demonstrations rises without each class token, (K,).

    A token is left out by replacing it with its mean over training frames, in all observation steps. 0.5 means that the
    mean squared error is 1.5 times as large. The number describes what this trained policy relies on. It does not say
    what a policy trained without the token could do, because tokens share information, nor how success changes.

    Returns:
        None where there is nothing to leave out: no encoder, no held-out demonstrations, fewer than two class tokens,
        or a policy on patch tokens.
    """
    policy, cameras = model.policy, model.vision.spec.cameras
    if model.vision.encoder is None or policy.observed_tokens(policy.config) != "cls" or not len(data.valid):
        return None
    count = model.spec.tokens[cameras[0]].cls
    if count < 2:
        return None
    names = [f"{camera}.cls" for camera in cameras]
    some = data.train[:: -(-len(data.train) // _FRAMES)].numpy()
    means = {name: torch.from_numpy(data.cached.arrays[name][some].astype(np.float32)).mean(0) for name in names}
    errors = torch.zeros(count + 1, dtype=torch.float64)  # the last one with all tokens
    model.eval()
    device = model.vision.device
    generator = torch.Generator().manual_seed(0)
    for rows in data.valid.split(_BATCH):
        sample = data.sample(rows.numpy()).to(device)
        observation = model.observation(sample.frames, sample.vectors, sample.frame_index)
        noise = None if policy.noise_shape is None else torch.randn(len(rows), *policy.noise_shape, generator=generator)
        target = policy.normaliser.normalise("action", sample.action)[:, 0]
        for left_out in range(count + 1):
            changed = dict(observation)
            if left_out < count:
                changed |= {name: _replaced(observation[name], left_out, means[name]) for name in names}
            memory = policy.initial_memory(len(rows))
            actions, _ = policy.predict(changed, memory, noise)
            errors[left_out] += float((actions[:, 0] - target).square().sum())
    if float(errors[-1]) == 0:
        return None
    return [float(error / errors[-1] - 1) for error in errors[:-1]]


def _replaced(tokens: Tensor, place: int, means: Tensor) -> Tensor:
    """Return tokens (B, T, K, D) with one of them replaced by its mean, means (K, D)."""
    changed = tokens.clone()
    changed[:, :, place] = means[place].to(changed)
    return changed
