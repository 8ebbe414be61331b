"""Everything that reads or overrides internals of stable-baselines3 (with states.py, which saves and restores them).

A `learner` here and in the other files is an instance of stable-baselines3's SAC, TD3 or PPO.

Shapes: B batch, E embedding.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

from .extractor import Extractor


class DetachedExtractor(BaseFeaturesExtractor):
    """Another network's extractor, used without gradients: only the critics' losses train it (as in DrQ)."""

    def __init__(self, extractor: BaseFeaturesExtractor) -> None:
        super().__init__(extractor._observation_space, extractor.features_dim)
        self._owner = (extractor,)  # in a tuple, so that its weights are not registered twice

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Return the embedding (B, E), detached."""
        with torch.no_grad():
            return self._owner[0](observations)


class SharedSACPolicy(SACPolicy):
    """SAC with one extractor, the critics'. The sharing of stable-baselines3 would train it on the actor's loss."""

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
    """TD3 with one extractor, the critics'; the target actor uses the target critics'."""

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


class WarmStartSAC(SAC):
    """SAC whose first steps are its actor's, not uniform: the actor is initialised from a trained policy."""

    def _sample_action(self, learning_starts: int, *arguments: Any, **named: Any) -> tuple[np.ndarray, np.ndarray]:
        return super()._sample_action(0, *arguments, **named)


class WarmStartTD3(TD3):
    """TD3 whose first steps are its actor's, not uniform."""

    def _sample_action(self, learning_starts: int, *arguments: Any, **named: Any) -> tuple[np.ndarray, np.ndarray]:
        return super()._sample_action(0, *arguments, **named)


def extractor_of(learner: Any) -> Extractor:
    """Return the extractor that is trained."""
    extractor: Any = (learner.policy if isinstance(learner, PPO) else learner.critic).features_extractor
    return extractor


def has_tanh_output(learner: Any) -> bool:
    """Return whether the actor's mean action goes through a tanh."""
    return not isinstance(learner, PPO)


def actor_layers(learner: Any) -> list[nn.Linear]:
    """Return the linear layers from embedding to mean action."""
    if isinstance(learner, PPO):
        parts: Sequence[nn.Module] = (learner.policy.mlp_extractor.policy_net, learner.policy.action_net)
    elif isinstance(learner, SAC):
        parts = (learner.actor.latent_pi, learner.actor.mu)
    else:
        parts = (learner.actor.mu,)
    return [layer for part in parts for layer in part.modules() if isinstance(layer, nn.Linear)]


def sync_targets(learner: Any) -> None:
    """Set the target networks to the networks that they follow."""
    if not isinstance(learner, PPO):
        learner.critic_target.load_state_dict(learner.critic.state_dict())
    if isinstance(learner, TD3):
        learner.actor_target.load_state_dict(learner.actor.state_dict())


@torch.no_grad()
def latest_embeddings(learner: Any, steps: int) -> Tensor:
    """Return the embeddings (B, E), not normalised, of the latest `steps` steps of all environments, at most 4096."""
    buffer: Any = learner.rollout_buffer if isinstance(learner, PPO) else learner.replay_buffer
    if isinstance(learner, PPO):  # its update has flattened steps and environments to one axis
        rows = dict(buffer.observations)
    else:
        places = (buffer.pos - 1 - np.arange(min(steps, buffer.size()))) % buffer.buffer_size
        rows = {key: values[places].reshape(-1, *values.shape[2:]) for key, values in buffer.observations.items()}
    thinned = slice(None, None, max(1, len(next(iter(rows.values()))) // 4096))
    tensors = {key: torch.from_numpy(values[thinned]).to(learner.device).float() for key, values in rows.items()}
    return extractor_of(learner).embed(tensors)


def take_logged_values(learner: Any) -> dict[str, float]:
    """Return what the algorithm logged, with means over recent episodes, and clear its log."""
    recorded = learner.logger.name_to_value
    values = {tag: float(value) for tag, value in recorded.items() if isinstance(value, int | float | np.number)}
    recorded.clear()
    if learner.ep_info_buffer:
        values["rollout/return"] = float(np.mean([each["r"] for each in learner.ep_info_buffer]))
        values["rollout/length"] = float(np.mean([each["l"] for each in learner.ep_info_buffer]))
    if learner.ep_success_buffer:
        values["rollout/success"] = float(np.mean(learner.ep_success_buffer))
    return values
