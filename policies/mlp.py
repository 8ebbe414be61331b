"""The MLP policy: tokens fused to one vector, and an MLP that predicts the next actions from it by regression.

Its defaults are CortexBench's head: BatchNorm1d over the whole input, three layers of 256, a small last layer.

Shapes: B batch, T observation steps, E embedding, H horizon, A action.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import BadInput, UnknownName, closest
from ..settings import key
from .necks import FusedVector, join_cameras
from .policy import Batch, Memory, Observation, Policy, PolicySpec, Tokens
from .settings import FRAMES, FUSIONS, LOSSES
from .vision import DEPTH_FEATURE, PIXELS

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}
_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}

EMBEDDING = "embedding"  # in an observation: the head's input, computed once


@dataclass
class MlpConfig:
    """The architecture of the MLP policy and its loss."""

    name: str = key("mlp", "the policy")
    fusion: str = key("mean", f"how the tokens of a frame are fused: {', '.join(FUSIONS)}")
    frames: str = key("flare", f"how the frames of several observation steps are fused: {', '.join(FRAMES)}")
    layers: list[int] = key([256, 256, 256], "widths of the hidden layers")
    activation: str = key("relu", "activation: relu, gelu, tanh")
    batch_norm: bool = key(True, "batch normalisation of the whole input, proprioception too")
    dropout: float = key(0.0, "dropout rate before each activation")
    output_init_scale: float = key(0.01, "factor on the last layer's initial weights")
    tanh_output: bool = key(False, "end in a tanh, as the actors of SAC and TD3 do; needed to initialise them")
    loss: str = key("mse", f"loss on actions: {', '.join(LOSSES)}")
    depth_dropout: float = key(0.1, "late, points: share of training samples without depth, and share without colour")


class MlpHead(nn.Module):
    """Batch normalisation, an MLP, a last layer that starts small, perhaps a tanh.

    Args:
        inputs: E.
        outputs: H * A.
        config: layers, activation, normalisation.

    Raises:
        UnknownName: for an unknown activation.
        BadInput: for a layer without width, or an impossible dropout rate.
    """

    def __init__(self, inputs: int, outputs: int, config: MlpConfig) -> None:
        super().__init__()
        name = config.activation
        if name not in _ACTIVATIONS:
            raise UnknownName(
                f"no activation {name!r}{closest(name, _ACTIVATIONS)}; there are: {', '.join(_ACTIVATIONS)}"
            )
        if any(width < 1 for width in config.layers):
            raise BadInput(f"policy.layers is {config.layers}; every width must be at least 1")
        if not 0 <= config.dropout < 1:
            raise BadInput(f"policy.dropout={config.dropout} must be at least 0 and below 1")
        layers: list[nn.Module] = [nn.BatchNorm1d(inputs)] if config.batch_norm else []
        for width in config.layers:
            layers += [nn.Linear(inputs, width), nn.Dropout(config.dropout), _ACTIVATIONS[name]()]
            inputs = width
        last = nn.Linear(inputs, outputs)
        last.weight.data *= config.output_init_scale
        last.bias.data *= config.output_init_scale
        self.layers = nn.Sequential(*layers, last, *([nn.Tanh()] if config.tanh_output else []))

    def forward(self, embedding: Tensor) -> Tensor:  # (B, E) -> (B, H * A)
        return self.layers(embedding)


class MlpPolicy(Policy):
    """Fused tokens and proprioception in, a chunk of actions out.

    Raises:
        UnknownName: for an unknown fusion, activation or loss.
        BadInput: for impossible numbers, or if nothing is observed.
    """

    Config = MlpConfig
    observes_past_vectors = False
    config: MlpConfig

    def __init__(self, config: MlpConfig, spec: PolicySpec) -> None:
        super().__init__(config, spec)
        if config.loss not in _LOSSES:
            raise UnknownName(
                f"no loss {config.loss!r}{closest(config.loss, _LOSSES)}; there are: {', '.join(_LOSSES)}"
            )
        if not 0 <= config.depth_dropout <= 0.45:
            raise BadInput(f"policy.depth_dropout={config.depth_dropout} must lie between 0 and 0.45")
        self.cameras = [name for name in spec.tokens if name != DEPTH_FEATURE]
        tokens = None
        if self.cameras:
            first = spec.tokens[self.cameras[0]]
            tokens = first._replace(dim=sum(spec.tokens[name].dim for name in self.cameras))
        end_to_end = self.cameras == [PIXELS]  # this network fuses its frames itself
        self.token_kind = "cls" if end_to_end else self.observed_tokens(config)
        self.neck = FusedVector(
            tokens,
            "mean" if end_to_end else config.fusion,
            config.frames,
            1 if end_to_end else spec.observation_steps,
            sum(spec.vectors.values()),
        )
        depth = spec.tokens.get(DEPTH_FEATURE)
        self.depth_dim = 0 if depth is None else depth.dim
        if self.neck.dim + self.depth_dim == 0:
            raise BadInput("a policy without images and without proprioception observes nothing; enable one of them")
        self.head = MlpHead(self.neck.dim + self.depth_dim, spec.horizon * spec.action_dim, config)

    @classmethod
    def observed_tokens(cls, config: MlpConfig) -> Tokens:
        """Patch tokens for the fusion "spatial", else class tokens."""
        return "patches" if config.fusion == "spatial" else "cls"

    def embed(self, observation: Observation) -> Tensor:
        """Return the head's input for normalised observations, (B, E)."""
        if EMBEDDING in observation:
            return observation[EMBEDDING]
        tokens = join_cameras(observation, self.cameras, self.token_kind) if self.cameras else None
        vectors = [observation[name][:, -1] for name in self.spec.vectors]
        seen = self.neck(tokens, torch.cat(vectors, dim=-1) if vectors else None)
        if not self.depth_dim:
            return seen
        depth = observation[f"{DEPTH_FEATURE}.cls"][:, 0, 0]
        if not self.neck.dim:
            return depth
        if self.training:  # leave one or the other out of some samples, so that neither is relied on alone
            draw = torch.rand(len(seen), 1, device=seen.device)
            rate, visual = self.config.depth_dropout, self.neck.visual_dim
            depth = depth * (draw >= rate)
            seen = torch.cat([seen[:, :visual] * (draw < 1 - rate), seen[:, visual:]], dim=1)
        return torch.cat([seen, depth], dim=1)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss over the actions that are not padding."""
        actions = self._actions(batch.observation)
        there = ~batch.action_is_pad
        return _LOSSES[self.config.loss](actions[there], batch.action[there]), {}

    def predict(self, observation: Observation, memory: Memory, noise: Tensor | None = None) -> tuple[Tensor, Memory]:
        """Return actions (B, H, A)."""
        return self._actions(observation), memory

    def precompute(self, observation: Observation) -> Observation | None:
        """Return the embedding, where nothing before the head learns or is random."""
        if self.neck.trainable or self.depth_dim:
            return None
        return {EMBEDDING: self.embed(observation)}

    def _actions(self, observation: Observation) -> Tensor:
        return self.head(self.embed(observation)).unflatten(1, (self.spec.horizon, self.spec.action_dim))
