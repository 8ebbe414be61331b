"""The policy contract: what a policy is built from, what it learns from, what it answers.

Shapes: B batch, T observation steps, K class tokens, N patches, D width, P width of a vector, H horizon, A action.
"""

import abc
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..datasets.dataset import Feature
from ..datasets.statistics import FeatureStatistics, Statistics, statistics_from_json
from ..encoders.encoder import Backbone, TokenShape

Observation = dict[str, Tensor]
Memory = dict[str, Tensor]  # recurrent state, (B, ...) each; empty for policies without one
Tokens = Literal["none", "cls", "patches", "both"]


@dataclass(frozen=True)
class EncoderIdentity:
    """Which frozen encoder a policy was trained on; its weights stay out of the policy's file."""

    name: str
    fingerprint: str
    weights: str  # "random" or "trained"
    preprocessing: dict[str, Any]
    precision: str

    @classmethod
    def of(cls, backbone: Backbone, precision: str) -> "EncoderIdentity":
        """Describe a loaded encoder."""
        return cls(backbone.name, backbone.fingerprint(), backbone.weights, backbone.preprocessing._asdict(), precision)


@dataclass(frozen=True)
class PolicySpec:
    """What a policy is built for; with its config and weights it is all that a checkpoint needs."""

    observation: dict[str, Feature]  # as recorded and as the environment gives it, without the time axis
    action: Feature
    statistics: Statistics = field(
        default_factory=dict
    )  # of "action" and of vectors; what is missing is not normalised
    observation_steps: int = 1  # T
    horizon: int = 1  # H
    tokens: dict[str, TokenShape] = field(default_factory=dict)  # what `Vision` makes of images, by name
    encoder: EncoderIdentity | None = None

    @property
    def vectors(self) -> dict[str, int]:
        """The vectors of an observation and their widths, in order."""
        return {key: feature.shape[0] for key, feature in self.observation.items() if feature.kind == "vector"}

    @property
    def action_dim(self) -> int:
        """A."""
        return self.action.shape[0]

    def as_json(self) -> dict[str, Any]:
        """Return this as nested dicts, ready for JSON."""
        return asdict(self) | {"tokens": {name: shape._asdict() for name, shape in self.tokens.items()}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "PolicySpec":
        """Rebuild from `as_json()`."""
        tokens = {
            key: TokenShape(each["cls"], tuple(each["grid"]), each["dim"]) for key, each in values["tokens"].items()
        }
        return cls(
            observation={key: _feature(each) for key, each in values["observation"].items()},
            action=_feature(values["action"]),
            statistics=statistics_from_json(values["statistics"]),
            observation_steps=values["observation_steps"],
            horizon=values["horizon"],
            tokens=tokens,
            encoder=None if values["encoder"] is None else EncoderIdentity(**values["encoder"]),
        )


def _feature(values: Mapping[str, Any]) -> Feature:
    return Feature(**{**values, "shape": tuple(values["shape"]), "names": tuple(values["names"])})


class Batch(NamedTuple):
    """What a policy learns from."""

    observation: Observation  # (B, T, ...): "<name>.cls" (B, T, K, D), "<name>.patches" (B, T, N, D), vectors (B, T, P)
    action: Tensor  # (B, H, A), normalised
    action_is_pad: Tensor  # (B, H) bool; True after the end of the episode, where there is no target


class Normaliser(nn.Module):
    """(value - offset) / scale for each feature, and back; does nothing where the mode is "none"."""

    def __init__(self, statistics: Mapping[str, FeatureStatistics]) -> None:
        super().__init__()
        self._numbers = {key: each for key, each in statistics.items() if each.mode != "none"}
        for key, each in self._numbers.items():
            self.register_buffer(f"{key}_offset", torch.tensor(each.offset, dtype=torch.float32), persistent=False)
            self.register_buffer(f"{key}_scale", torch.tensor(each.scale, dtype=torch.float32), persistent=False)

    def normalise(self, key: str, values: Tensor) -> Tensor:
        """Return values (..., P) normalised."""
        if key not in self._numbers:
            return values
        return (values - getattr(self, f"{key}_offset")) / getattr(self, f"{key}_scale")

    def denormalise(self, key: str, values: Tensor) -> Tensor:
        """Return normalised values (..., P) in the data's units."""
        if key not in self._numbers:
            return values
        return values * getattr(self, f"{key}_scale") + getattr(self, f"{key}_offset")


class Policy(nn.Module, abc.ABC):
    """A policy: observations in, chunks of actions out.

    A new one is a subclass with an entry point in the group ``pixio_robot.policies``. It defines `Config`, `loss` and
    `predict`; training, statistics, resume, evaluation, export and the control loop use nothing else. `loss` and
    `predict` see normalised vectors and give normalised actions; `act` is the way in and out of the data's units.

    Args:
        config: an instance of `Config`.
        spec: shapes and statistics.
    """

    Config: ClassVar[type]  # dataclass of the architecture, with ``name: str``; it is the option of policy=<name>
    tokens: Tokens = "cls"  # which tokens it observes
    noise_shape: tuple[int, ...] | None = None  # of one sample's noise, for policies that start from noise
    observes_past_vectors: bool = True  # whether vectors of earlier observation steps are used, not only the latest

    def __init__(self, config: Any, spec: PolicySpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        self.normaliser = Normaliser(spec.statistics)

    @classmethod
    def observed_tokens(cls, config: Any) -> Tokens:
        """Return which tokens a policy with this config observes; override where that depends on the config."""
        return cls.tokens

    @abc.abstractmethod
    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss to minimise, a scalar, and further numbers to log.

        The loss is a mean over the actions that are not padding.
        """

    @abc.abstractmethod
    def predict(self, observation: Observation, memory: Memory, noise: Tensor | None = None) -> tuple[Tensor, Memory]:
        """Return actions (B, H, A), normalised, from the latest step on, and the memory for the next call.

        Args:
            observation: as `Batch.observation`, normalised.
            memory: what the last call returned, or `initial_memory`.
            noise: (B, *noise_shape), for policies that need it.
        """

    def initial_memory(self, batch: int) -> Memory:
        """Return the memory at the start of episodes: (B, ...) each. {} for a policy without memory."""
        return {}

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return groups of parameters for an optimiser; a group may set its own ``lr``."""
        return [{"params": [each for each in self.parameters() if each.requires_grad], "lr": lr}]

    def precompute(self, observation: Observation) -> Observation | None:
        """Return what is the same in every epoch, (B, ...) each, or None to compute all of it every time.

        Training calls this once for the whole data set and passes the result to `loss` in place of the observation. It
        is for steps without parameters and without randomness, such as the mean of frozen tokens.
        """
        return None

    def normalise(self, observation: Observation) -> Observation:
        """Return an observation with its vectors normalised."""
        return {key: self.normaliser.normalise(key, values) for key, values in observation.items()}

    def act(self, observation: Observation, memory: Memory, noise: Tensor | None = None) -> tuple[Tensor, Memory]:
        """Return actions (B, H, A) and the next memory; vectors and actions are in the data's units."""
        actions, memory = self.predict(self.normalise(observation), memory, noise)
        return self.normaliser.denormalise("action", actions), memory
