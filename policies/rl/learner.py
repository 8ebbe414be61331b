"""stable-baselines3's algorithms from our settings, and the way between their actors and `Visuomotor` policies.

Shapes: E embedding, A action.
"""

import copy
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import NormalActionNoise
from torch import Tensor, nn

from ...encoders.load import Backbone
from ...errors import BadInput, CheckpointError, UnknownName, closest
from ..settings import PolicySettings
from ..visuomotor import Visuomotor
from .embedded_env import EmbeddedVecEnv
from .extractor import EPSILON, POLICIES, Extractor, Parts
from .replay import Replay, Transitions
from .settings import AlgorithmSettings

ALGORITHMS = ("sac", "td3", "ppo")
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


def head_settings(settings: AlgorithmSettings, normalise: bool) -> PolicySettings:
    """Return the settings of the head that an actor becomes; its batch norm holds the running statistics."""
    return PolicySettings(
        layers=list(settings.layers),
        activation=settings.activation,
        batch_norm=normalise,
        tanh_output=settings.name != "ppo",
        lr=settings.lr,
        batch=settings.batch,
    )


def check_algorithm(settings: AlgorithmSettings, envs: int) -> None:
    """Refuse settings that no algorithm can run with.

    Raises:
        UnknownName: for an algorithm or activation that does not exist.
        BadInput: for a number out of its range.
    """
    for what, name, known in (
        ("algorithm.name", settings.name, ALGORITHMS),
        ("algorithm.activation", settings.activation, tuple(_ACTIVATIONS)),
    ):
        if name not in known:
            raise UnknownName(f"no {what} {name!r}; there are: {', '.join(known)}{closest(name, known)}")
    if not settings.layers or min(settings.layers) < 1:
        raise BadInput(f"algorithm.layers={settings.layers}; at least one layer, each at least 1 wide")
    for what, number, low, high in (
        ("lr", settings.lr, 1e-12, 1.0),
        ("gamma", settings.gamma, 0.0, 1.0),
        ("tau", settings.tau, 1e-12, 1.0),
        ("updates", settings.updates, 1e-6, 1e6),
        ("noise", settings.noise, 0.0, 10.0),
        ("gae_lambda", settings.gae_lambda, 0.0, 1.0),
        ("clip", settings.clip, 1e-12, 1e6),
    ):
        if not low <= number <= high:
            raise BadInput(f"algorithm.{what}={number} must lie from {low:g} to {high:g}")
    if settings.name == "ppo" and (settings.rollout % envs or settings.rollout % settings.batch):
        raise BadInput(
            f"algorithm.rollout={settings.rollout} must be a multiple of envs={envs} and of "
            f"algorithm.batch={settings.batch}"
        )
    if settings.name != "ppo" and settings.buffer < max(settings.batch, settings.warmup, envs):
        raise BadInput(
            f"algorithm.buffer={settings.buffer} must hold at least algorithm.batch={settings.batch}, "
            f"algorithm.warmup={settings.warmup} and envs={envs} steps"
        )
    temperature = settings.entropy.removeprefix("auto_") if settings.entropy != "auto" else "1"
    try:
        positive = float(temperature) > 0
    except ValueError:
        positive = False
    if settings.name == "sac" and not positive:
        raise BadInput(f"algorithm.entropy={settings.entropy} must be auto, auto_<first value> or a positive number")


def new_learner(
    settings: AlgorithmSettings,
    venv: EmbeddedVecEnv,
    policy: Visuomotor,
    *,
    normalise: bool,
    backbone: Backbone | None = None,
    demos: Transitions | None = None,
    demo_ratio: float = 0.0,
    shift: bool = False,
    begun: bool = False,
    seed: int,
    device: torch.device,
) -> Any:
    """Return an untrained SAC, TD3 or PPO; draws from torch's and NumPy's global generators, which it seeds.

    Args:
        policy: whose embedder, and network that sees, the extractor copies.
        normalise: scale embeddings by running statistics.
        backbone: an encoder that shall learn too.
        begun: the actor does not begin at random, so it acts from the first step on.
    """

    def make() -> Parts:
        learned = None if backbone is None else copy.deepcopy(backbone).requires_grad_(True)
        return Parts(copy.deepcopy(policy.embedder), copy.deepcopy(policy.pixels), learned)

    fused = device.type in ("cpu", "cuda")
    optimizer = {"fused": fused} if settings.name != "ppo" else {"fused": fused, "eps": 1e-5}
    common: dict[str, Any] = dict(
        policy=POLICIES[settings.name],
        env=venv,
        learning_rate=settings.lr,
        gamma=settings.gamma,
        batch_size=settings.batch,
        seed=seed,
        device=device,
        policy_kwargs=dict(
            net_arch=list(settings.layers),
            activation_fn=_ACTIVATIONS[settings.activation],
            features_extractor_class=Extractor,
            features_extractor_kwargs=dict(make=make, normalise=normalise),
            optimizer_kwargs=optimizer,
        ),
    )
    actions = int(np.prod(venv.action_space.shape or ()))
    if settings.name == "ppo":
        model: Any = PPO(
            **common,
            n_steps=settings.rollout // venv.num_envs,
            n_epochs=settings.epochs,
            gae_lambda=settings.gae_lambda,
            clip_range=settings.clip,
            ent_coef=settings.entropy_bonus,
        )
    else:
        every = Fraction(settings.updates * venv.num_envs).limit_denominator(1000)
        common |= dict(
            buffer_size=settings.buffer,
            learning_starts=settings.warmup,
            tau=settings.tau,
            train_freq=every.denominator,
            gradient_steps=every.numerator,
            replay_buffer_class=Replay,
            replay_buffer_kwargs=dict(demos=demos, demo_ratio=demo_ratio, shift=shift),
        )
        if settings.name == "sac":
            entropy = settings.entropy if settings.entropy.startswith("auto") else float(settings.entropy)
            model = (WarmStartSAC if begun else SAC)(**common, ent_coef=entropy)
        else:
            noise = NormalActionNoise(np.zeros(actions), np.full(actions, settings.noise)) if settings.noise else None
            model = (WarmStartTD3 if begun else TD3)(**common, action_noise=noise)
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model


class WarmStartSAC(SAC):
    """SAC whose first steps are its actor's, not uniform: it begins from a cloned policy."""

    def _sample_action(self, learning_starts: int, *arguments: Any, **named: Any) -> tuple[np.ndarray, np.ndarray]:
        return super()._sample_action(0, *arguments, **named)


class WarmStartTD3(TD3):
    """TD3 likewise."""

    def _sample_action(self, learning_starts: int, *arguments: Any, **named: Any) -> tuple[np.ndarray, np.ndarray]:
        return super()._sample_action(0, *arguments, **named)


def extractor_of(model: Any) -> Extractor:
    """Return the extractor that learns."""
    extractor: Any = (model.policy if isinstance(model, PPO) else model.critic).features_extractor
    return extractor


def _layers(model: Any) -> list[nn.Linear]:
    """Return the linear layers from embedding to mean action."""
    if isinstance(model, PPO):
        parts: Sequence[nn.Module] = (model.policy.mlp_extractor.policy_net, model.policy.action_net)
    elif isinstance(model, SAC):
        parts = (model.actor.latent_pi, model.actor.mu)
    else:
        parts = (model.actor.mu,)
    return [layer for part in parts for layer in part.modules() if isinstance(layer, nn.Linear)]


@torch.no_grad()
def copy_actor(model: Any, policy: Visuomotor) -> None:
    """Write the actor's deterministic action into a `Visuomotor` made with `head_settings`."""
    extractor = extractor_of(model)
    policy.embedder.load_state_dict(extractor.embedder.state_dict())
    if policy.pixels is not None and extractor.pixels is not None:
        policy.pixels.load_state_dict(extractor.pixels.state_dict())
    head = policy.head.layers
    if extractor.norm is not None:
        norm = next(layer for layer in head if isinstance(layer, nn.BatchNorm1d))
        norm.reset_parameters()
        for mine, theirs in ((norm.running_mean, "running_mean"), (norm.running_var, "running_var")):
            assert mine is not None
            mine.copy_(getattr(extractor.norm, theirs))
    mine_layers = [layer for layer in head if isinstance(layer, nn.Linear)]
    for mine_layer, layer in zip(mine_layers, _layers(model), strict=True):
        mine_layer.load_state_dict(layer.state_dict())


@torch.no_grad()
def init_actor(model: Any, policy: Visuomotor, source: str) -> None:
    """Begin the actor, and all that sees before it, from a trained policy; its running statistics then stay.

    Args:
        source: what to call it in messages.

    Raises:
        CheckpointError: if its head is not the actor's.
    """
    layers, settings = _layers(model), policy.settings
    if settings.chunk > 1:
        raise CheckpointError(
            f"{source} predicts chunks of {settings.chunk} actions; reinforcement learns one action at a time: clone "
            "with policy.chunk=1"
        )
    squashed = not isinstance(model, PPO)
    wanted = [tuple(layer.weight.shape) for layer in layers]
    theirs = [layer for layer in policy.head.layers if isinstance(layer, nn.Linear)]
    found = [tuple(layer.weight.shape) for layer in theirs]
    extractor = extractor_of(model)
    if (
        found != wanted
        or settings.tanh_output != squashed
        or not isinstance(extractor.embedder.pool, type(policy.embedder.pool))
    ):
        raise CheckpointError(
            f"{source} has layers {found}, tanh_output={settings.tanh_output}, "
            f"fusion={policy.embedder.settings.fusion}; the actor has {wanted}, tanh_output={squashed}, "
            f"fusion={extractor.embedder.settings.fusion}; clone with "
            f"policy.layers=[{','.join(str(shape[0]) for shape in wanted[:-1])}] "
            f"policy.tanh_output={str(squashed).lower()} and the same embedding"
        )
    extractor.embedder.load_state_dict(policy.embedder.state_dict())
    if extractor.pixels is not None and policy.pixels is not None:
        extractor.pixels.load_state_dict(policy.pixels.state_dict())
    for layer, trained in zip(layers, theirs, strict=True):
        layer.load_state_dict(trained.state_dict())
    norm = next((layer for layer in policy.head.layers if isinstance(layer, nn.BatchNorm1d)), None)
    if norm is not None:
        _fold(layers[0], norm, extractor)
    if not isinstance(model, PPO):
        model.critic_target.load_state_dict(model.critic.state_dict())
    if isinstance(model, TD3):
        model.actor_target.load_state_dict(model.actor.state_dict())


def _fold(first: nn.Linear, norm: nn.BatchNorm1d, extractor: Extractor) -> None:
    """Put a trained batch norm into the running statistics, or without these wholly into the first layer."""
    assert norm.running_mean is not None and norm.running_var is not None
    mean, var = norm.running_mean, norm.running_var
    scale, shift = norm.weight.clone(), norm.bias.clone()
    if extractor.norm is not None:
        extractor.norm.running_mean.copy_(mean)
        extractor.norm.running_var.copy_(var)
    else:
        deviation = torch.sqrt(var + EPSILON)
        scale, shift = scale / deviation, shift - scale * mean / deviation
    first.bias.add_(first.weight @ shift)
    first.weight.mul_(scale)


@torch.no_grad()
def newest_embeddings(model: Any, steps: int) -> Tensor:
    """Return the embeddings (n, E), not normalised, of the newest `steps` vector steps' observations, at most 4096."""
    buffer: Any = model.rollout_buffer if isinstance(model, PPO) else model.replay_buffer
    if isinstance(model, PPO):  # its update has laid steps and environments out in one row
        rows = dict(buffer.observations)
    else:
        places = (buffer.pos - 1 - np.arange(min(steps, buffer.size()))) % buffer.buffer_size
        rows = {key: values[places].reshape(-1, *values.shape[2:]) for key, values in buffer.observations.items()}
    thinned = slice(None, None, max(1, len(next(iter(rows.values()))) // 4096))
    tensors = {key: torch.from_numpy(values[thinned]).to(model.device).float() for key, values in rows.items()}
    return extractor_of(model).embed(tensors)
