"""From stored tokens to the embedding inside stable-baselines3's networks: one extractor for actor and critics.

Shapes: B batch, T frames of history, C cameras, E embedding.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

from ...encoders.load import Backbone
from ..embedding import Embedder
from ..pixel_network import PixelNetwork
from .embedded_env import FELT, TOKENS

EPSILON = 1e-5  # that of nn.BatchNorm1d, which stands in its place in a `Visuomotor`


class Parts(NamedTuple):
    """What an extractor is made of; each call of a maker gives its own copies."""

    embedder: Embedder
    pixels: PixelNetwork | None
    backbone: Backbone | None  # only where it learns


class RunningNorm(nn.Module):
    """Mean 0 and variance 1 by statistics of all that was collected; `update` adds to them, gradients never do.

    Names begin with ``running_``: stable-baselines3 copies such buffers to its target networks.
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
    """The same fusion of tokens, frames and proprioception as behaviour cloning's, as a features extractor.

    Args:
        observation_space: of `EmbeddedVecEnv`.
        make: gives its parts.
        normalise: scale the embedding by running statistics.
    """

    def __init__(self, observation_space: Any, make: Callable[[], Parts], normalise: bool) -> None:
        embedder, pixels, backbone = make()
        super().__init__(observation_space, embedder.dim)
        self.embedder, self.pixels, self.backbone = embedder, pixels, backbone
        self.norm = RunningNorm(embedder.dim) if normalise else None

    def train(self, mode: bool = True) -> "Extractor":
        """Set the mode; images are moved in the replay buffer, so the network that sees never moves them itself."""
        super().train(mode)
        if self.pixels is not None:
            self.pixels.eval()
        return self

    def apply(self, fn: Callable[[nn.Module], None]) -> "Extractor":
        """Do nothing: PPO would draw the weights of what it finds here anew, pre-trained or not."""
        return self

    def embed(self, observations: dict[str, Tensor]) -> Tensor:
        """Return the embedding (B, E) before it is normalised."""
        tokens = observations.get(TOKENS)
        if tokens is not None and self.pixels is not None:
            tokens = self.pixels(tokens)
        elif tokens is not None and self.backbone is not None:
            tokens = self._encode(tokens)
        return self.embedder(tokens, observations.get(FELT))

    def _encode(self, images: Tensor) -> Tensor:
        """Encode images (B, T, H, W, 3 C) with a gradient; returns tokens (B, T, K or N, C D)."""
        assert self.backbone is not None
        batch, history = images.shape[:2]
        views = []
        for view in images.flatten(0, 1).to(torch.uint8).split(3, dim=-1):
            tokens = self.backbone(self.backbone.preprocess(view), normed=self.embedder.settings.normed)
            views.append(tokens.patches if self.embedder.needs_patches else tokens.cls)
        return torch.cat(views, dim=-1).unflatten(0, (batch, history))

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Return the embedding (B, E)."""
        embedding = self.embed(observations)
        return embedding if self.norm is None else self.norm(embedding)


class DetachedExtractor(BaseFeaturesExtractor):
    """Another network's extractor, used without a gradient: critics teach it, the actor only looks (DrQ's way)."""

    def __init__(self, extractor: BaseFeaturesExtractor) -> None:
        super().__init__(extractor._observation_space, extractor.features_dim)
        self._owner = (extractor,)  # in a tuple, so that its weights are not registered twice

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Return the embedding (B, E), detached."""
        with torch.no_grad():
            return self._owner[0](observations)


class SharedSACPolicy(SACPolicy):
    """SAC with one extractor, the critics'. stable-baselines3's own sharing would teach it by the actor's loss."""

    def _build(self, lr_schedule: Callable[[float], float]) -> None:
        self.critic = self.make_critic()
        self.critic_target = self.make_critic()
        self.critic_target.load_state_dict(self.critic.state_dict())
        self.actor = self.make_actor(DetachedExtractor(self.critic.features_extractor))
        optimizer: Any = self.optimizer_class
        for network in (self.actor, self.critic):
            network.optimizer = optimizer(network.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)
        self.critic_target.set_training_mode(False)


class SharedTD3Policy(TD3Policy):
    """TD3 with one extractor, the critics'; the target actor looks with the target critics'."""

    def _build(self, lr_schedule: Callable[[float], float]) -> None:
        self.critic = self.make_critic()
        self.critic_target = self.make_critic()
        self.critic_target.load_state_dict(self.critic.state_dict())
        self.actor = self.make_actor(DetachedExtractor(self.critic.features_extractor))
        self.actor_target = self.make_actor(DetachedExtractor(self.critic_target.features_extractor))
        self.actor_target.load_state_dict(self.actor.state_dict())
        optimizer: Any = self.optimizer_class
        for network in (self.actor, self.critic):
            network.optimizer = optimizer(network.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)
        self.actor_target.set_training_mode(False)
        self.critic_target.set_training_mode(False)


POLICIES = {"sac": SharedSACPolicy, "td3": SharedTD3Policy, "ppo": ActorCriticPolicy}
