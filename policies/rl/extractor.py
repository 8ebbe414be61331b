"""From stored observations to the embedding inside stable-baselines3's networks, as a policy computes it.

Shapes: B batch, T observation steps, E embedding.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from ...errors import BadInput
from ..build import VisionPolicy
from ..mlp import MlpPolicy

EPSILON = 1e-5  # that of nn.BatchNorm1d, which holds the running statistics in an `MlpHead`


def mlp_of(model: VisionPolicy, source: str) -> MlpPolicy:
    """Return the policy network of a model.

    Args:
        source: what to call the model in messages.

    Raises:
        BadInput: if it is not an MLP.
    """
    if not isinstance(model.policy, MlpPolicy):
        raise BadInput(f"{source} is a policy {model.policy.config.name!r}; train_rl needs an MLP: train_bc policy=mlp")
    return model.policy


class RunningNorm(nn.Module):
    """Mean 0 and variance 1 by statistics of all that was collected; `update` changes them, gradients do not.

    Names start with ``running_``: stable-baselines3 copies such buffers to its target networks.
    """

    running_mean: Tensor  # (E,)
    running_var: Tensor  # (E,)
    running_count: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.register_buffer("running_count", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:  # (B, E) -> (B, E)
        return (x - self.running_mean) / torch.sqrt(self.running_var + EPSILON)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Add a batch (B, E) (Chan et al. 1979, pairwise means and variances)."""
        mean, var, count = self.running_mean, self.running_var, self.running_count
        total = count + len(x)
        delta = x.mean(0) - mean
        share = (len(x) / total).float()
        squares = (count / total).float() * var + share * x.var(0, unbiased=False)
        var.copy_(squares + delta.square() * share * (1 - share))
        mean.add_(delta * share)
        count.copy_(total)


class Extractor(BaseFeaturesExtractor):
    """Vision and neck of a policy as a features extractor; each instance has its own copy of what learns.

    Args:
        observation_space: of `EmbeddedVecEnv`.
        model: the policy that is copied, without its head. A frozen encoder is neither copied nor used.
        normalise: scale the embedding by running statistics.
    """

    def __init__(self, observation_space: Any, model: VisionPolicy, normalise: bool) -> None:
        policy = mlp_of(model, "the actor")
        super().__init__(observation_space, policy.neck.dim)
        vision = model.vision
        frozen = {} if vision.backbone is not None else {id(vision.encoder): vision.encoder}  # is not copied
        self.vision, self.policy = copy.deepcopy(vision, frozen), copy.deepcopy(policy)
        self.policy.head = nn.Identity()  # type: ignore[assignment]
        self.norm = RunningNorm(policy.neck.dim) if normalise else None

    def train(self, mode: bool = True) -> "Extractor":
        """Set the mode; the network for pixels never shifts images itself, because the replay buffer does."""
        super().train(mode)
        if self.vision.pixels is not None:
            self.vision.pixels.eval()
        return self

    def apply(self, fn: Callable[[nn.Module], None]) -> "Extractor":
        """Do nothing: PPO would initialise the weights that it finds here again, pre-trained or not."""
        return self

    def embed(self, observations: dict[str, Tensor]) -> Tensor:
        """Return the embedding (B, E) before it is normalised."""
        vectors = {key: observations[key][:, None] for key in self.policy.spec.vectors}
        frames = {name: values for name, values in observations.items() if name not in vectors}
        index = None
        if self.vision.backbone is not None:  # images (B, T, H, W, 3), encoded with gradients
            first = next(iter(frames.values()))
            batch, steps = first.shape[:2]
            frames = {key: images.flatten(0, 1).to(torch.uint8) for key, images in frames.items()}
            index = torch.arange(batch * steps, device=first.device).view(batch, steps)
        return self.policy.embed({**self.vision(frames, index), **vectors})

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Return the embedding (B, E)."""
        embedding = self.embed(observations)
        return embedding if self.norm is None else self.norm(embedding)
