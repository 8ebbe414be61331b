"""Algorithms of stable-baselines3 from our settings, and conversion between their actors and policies.

Shapes: E embedding, A action.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import NormalActionNoise
from torch import nn

from ...errors import BadInput, CheckpointError, UnknownName, closest
from ..build import VisionPolicy
from ..mlp import MlpConfig
from ..necks import FusedVector
from .embedded_env import EmbeddedVecEnv
from .extractor import EPSILON, Extractor, mlp_of
from .replay import MixedReplay, ReplayOptions
from .sb3 import POLICIES, WarmStartSAC, WarmStartTD3, actor_layers, extractor_of, has_tanh_output, sync_targets
from .settings import ALGORITHMS, AlgorithmSettings

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


def actor_config(settings: AlgorithmSettings, fusion: str = "mean", frames: str = "flare") -> MlpConfig:
    """Return the architecture of the policy that an actor becomes; its batch norm holds the running statistics.

    Args:
        fusion, frames: as in `MlpConfig`.
    """
    return MlpConfig(
        fusion=fusion,
        frames=frames,
        layers=list(settings.layers),
        activation=settings.activation,
        batch_norm=settings.normalise,
        tanh_output=settings.name != "ppo",
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
            raise UnknownName(f"no {what} {name!r}{closest(name, known)}; there are: {', '.join(known)}")
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


@dataclass(frozen=True)
class LearnerOptions:
    """What a learner needs beside its algorithm's settings."""

    normalise: bool = True  # scale embeddings by running statistics
    warm_start: bool = False  # the actor is initialised from a policy, so it acts from the first step on
    replay: ReplayOptions = ReplayOptions()
    seed: int = 0
    device: torch.device = torch.device("cpu")


def new_learner(
    settings: AlgorithmSettings, venv: EmbeddedVecEnv, model: VisionPolicy, options: LearnerOptions = LearnerOptions()
) -> Any:
    """Return an untrained SAC, TD3 or PPO; it seeds torch's and NumPy's global generators and draws from them.

    Args:
        model: whose vision and neck the learner copies.
    """
    fused = options.device.type in ("cpu", "cuda")
    optimizer = {"fused": fused} if settings.name != "ppo" else {"fused": fused, "eps": 1e-5}
    common: dict[str, Any] = dict(
        policy=POLICIES[settings.name],
        env=venv,
        learning_rate=settings.lr,
        gamma=settings.gamma,
        batch_size=settings.batch,
        seed=options.seed,
        device=options.device,
        policy_kwargs=dict(
            net_arch=list(settings.layers),
            activation_fn=_ACTIVATIONS[settings.activation],
            features_extractor_class=Extractor,
            features_extractor_kwargs=dict(model=model, normalise=options.normalise),
            optimizer_kwargs=optimizer,
        ),
    )
    if settings.name == "ppo":
        learner: Any = PPO(
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
            replay_buffer_class=MixedReplay,
            replay_buffer_kwargs=dict(options=options.replay),
        )
        if settings.name == "sac":
            entropy = settings.entropy if settings.entropy.startswith("auto") else float(settings.entropy)
            learner = (WarmStartSAC if options.warm_start else SAC)(**common, ent_coef=entropy)
        else:
            noise = _exploration(settings.noise, venv)
            learner = (WarmStartTD3 if options.warm_start else TD3)(**common, action_noise=noise)
    learner.set_logger(Logger(folder=None, output_formats=[]))
    return learner


def _exploration(deviation: float, venv: EmbeddedVecEnv) -> NormalActionNoise | None:
    actions = int(np.prod(venv.action_space.shape or ()))
    return NormalActionNoise(np.zeros(actions), np.full(actions, deviation)) if deviation else None


@torch.no_grad()
def copy_actor(learner: Any, model: VisionPolicy) -> None:
    """Write the actor into a policy built with `actor_config`; its action is then the actor's deterministic one."""
    extractor, policy = extractor_of(learner), mlp_of(model, "the actor")
    model.vision.load_state_dict(extractor.vision.state_dict())
    policy.neck.load_state_dict(extractor.policy.neck.state_dict())
    layers = policy.head.layers
    if extractor.norm is not None:
        norm = next(layer for layer in layers if isinstance(layer, nn.BatchNorm1d))
        norm.reset_parameters()
        norm.load_state_dict(
            {
                **norm.state_dict(),
                "running_mean": extractor.norm.running_mean,
                "running_var": extractor.norm.running_var,
            }
        )
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    for target, layer in zip(linear, actor_layers(learner), strict=True):
        target.load_state_dict(layer.state_dict())


@torch.no_grad()
def init_actor(learner: Any, model: VisionPolicy, source: str) -> None:
    """Initialise the actor and its extractor from a trained policy; the running statistics then stay as they are.

    Args:
        source: what to call the policy in messages.

    Raises:
        BadInput: if it is not an MLP.
        CheckpointError: if its architecture is not the actor's.
    """
    policy, extractor = mlp_of(model, source), extractor_of(learner)
    _check_same_architecture(learner, model, source)
    own = extractor.vision.state_dict()
    extractor.vision.load_state_dict(own | {k: v for k, v in model.vision.state_dict().items() if k in own})
    extractor.policy.neck.load_state_dict(policy.neck.state_dict())
    layers = actor_layers(learner)
    trained = [layer for layer in policy.head.layers if isinstance(layer, nn.Linear)]
    for layer, other in zip(layers, trained, strict=True):
        layer.load_state_dict(other.state_dict())
    norm = next((layer for layer in policy.head.layers if isinstance(layer, nn.BatchNorm1d)), None)
    if norm is not None:
        _fold(layers[0], norm, extractor)
    sync_targets(learner)


def _check_same_architecture(learner: Any, model: VisionPolicy, source: str) -> None:
    """Refuse a policy that cannot be written into an actor, and say how to train one that can."""
    policy, config, extractor = mlp_of(model, source), mlp_of(model, source).config, extractor_of(learner)
    if policy.spec.horizon > 1:
        raise CheckpointError(
            f"{source} predicts chunks of {policy.spec.horizon} actions; train_rl learns one action at a time: clone "
            "with horizon=1"
        )
    if scaled := [key for key, each in policy.spec.statistics.items() if each.mode != "none"]:
        keys = " ".join(f"statistics.{'action' if key == 'action' else 'proprio'}=none" for key in scaled)
        raise CheckpointError(f"{source} normalises {', '.join(scaled)} by statistics; train_rl does not: {keys}")
    mine, tanh = extractor.policy.config, has_tanh_output(learner)
    wanted = [tuple(layer.weight.shape) for layer in actor_layers(learner)]
    found = [tuple(layer.weight.shape) for layer in policy.head.layers if isinstance(layer, nn.Linear)]
    if found != wanted or config.tanh_output != tanh or not _same_neck(extractor.policy.neck, policy.neck):
        raise CheckpointError(
            f"{source} has layers {found}, tanh_output={config.tanh_output}, fusion={config.fusion}; the actor has "
            f"{wanted}, tanh_output={tanh}, fusion={mine.fusion}; clone with "
            f"policy.layers=[{','.join(str(shape[0]) for shape in wanted[:-1])}] "
            f"policy.tanh_output={str(tanh).lower()} policy.fusion={mine.fusion} policy.frames={mine.frames} and the "
            "same observation"
        )


def _same_neck(one: FusedVector, other: FusedVector) -> bool:
    """Return whether two necks make the same embedding of the same observation."""
    if one.tokens is None and other.tokens is None:
        return True
    same_frames = one.steps == other.steps and (one.steps == 1 or one.frames == other.frames)
    return one.tokens == other.tokens and one.fusion == other.fusion and same_frames


def _fold(first: nn.Linear, norm: nn.BatchNorm1d, extractor: Extractor) -> None:
    """Put a trained batch norm into the running statistics, or into the first layer where there are none."""
    if norm.running_mean is None or norm.running_var is None:
        return
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
