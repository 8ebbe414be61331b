from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from pixio_robot.policies.necks import SequenceSpec, TokenSequence
from pixio_robot.policies.policy import Batch, Memory, Observation, Policy, PolicySpec
from pixio_robot.settings import key


@dataclass
class AttentionConfig:
    name: str = key("attention", "the policy")
    dim: int = key(32, "width of the transformer, a multiple of 4", least=4)
    layers: int = key(1, "transformer layers", least=1)


class AttentionPolicy(Policy):
    """A small transformer over class tokens and proprioception, trained by regression."""

    Config = AttentionConfig
    tokens = "cls"

    def __init__(self, config: AttentionConfig, spec: PolicySpec) -> None:
        super().__init__(config, spec)
        tokens = {f"{name}.cls": shape.dim for name, shape in spec.tokens.items()}
        sources, width = SequenceSpec(tokens, spec.vectors), config.dim
        self.sequence = TokenSequence(sources, spec.observation_steps, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, spec.horizon * spec.action_dim)

    def predict(self, observation: Observation, memory: Memory, noise: Tensor | None = None) -> tuple[Tensor, Memory]:
        pooled = self.transformer(self.sequence(observation)).mean(1)
        return self.head(pooled).unflatten(1, (self.spec.horizon, self.spec.action_dim)), memory

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        actions, _ = self.predict(batch.observation, {})
        kept = ~batch.action_is_pad
        return F.mse_loss(actions[kept], batch.action[kept]), {}
