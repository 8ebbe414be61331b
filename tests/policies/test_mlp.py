"""The MLP policy: CortexBench's head, and settings that cannot be."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from pixio_robot.datasets.dataset import Feature
from pixio_robot.encoders.pixio import TokenShape
from pixio_robot.errors import BadInput, UnknownName
from pixio_robot.policies.mlp import MlpConfig, MlpHead, MlpPolicy
from pixio_robot.policies.policy import PolicySpec

SMALL = MlpConfig(layers=[32])


def test_the_head_is_cortexbench_s() -> None:
    head = MlpHead(10, 4, MlpConfig())
    kinds = [type(layer).__name__ for layer in head.layers]
    assert kinds == ["BatchNorm1d", *["Linear", "Dropout", "ReLU"] * 3, "Linear"]
    linears = [layer for layer in head.layers if isinstance(layer, torch.nn.Linear)]
    assert [layer.out_features for layer in linears] == [256, 256, 256, 4]
    assert float(linears[-1].weight.detach().abs().max()) <= 0.01 / 256**0.5 * 1.001
    assert not [layer for layer in MlpHead(10, 4, MlpConfig(batch_norm=False)).layers if "Norm" in type(layer).__name__]
    assert isinstance(MlpHead(10, 4, MlpConfig(tanh_output=True)).layers[-1], torch.nn.Tanh)


def _spec(vectors: int = 3, tokens: bool = True) -> PolicySpec:
    observed = {"proprio": Feature("vector", (vectors,))} if vectors else {}
    shapes = {"rgb": TokenShape(8, (14, 14), 12)} if tokens else {}
    return PolicySpec(observed, Feature("vector", (2,)), observation_steps=2, horizon=3, tokens=shapes)


def test_a_chunk_of_actions_comes_out_in_order_of_time() -> None:
    policy = MlpPolicy(SMALL, _spec()).eval()
    observation = {"rgb.cls": torch.randn(5, 2, 8, 12), "proprio": torch.randn(5, 2, 3)}
    actions, memory = policy.predict(observation, policy.initial_memory(5))
    assert actions.shape == (5, 3, 2) and memory == {}
    assert torch.equal(actions.flatten(1), policy.head(policy.embed(observation)))


def test_the_embedding_computed_once_is_the_embedding() -> None:
    observation = {"rgb.cls": torch.randn(5, 2, 8, 12), "proprio": torch.randn(5, 2, 3)}
    policy = MlpPolicy(SMALL, _spec()).eval()
    computed = policy.precompute(observation)
    assert computed is not None
    assert torch.equal(policy.predict(computed, {})[0], policy.predict(observation, {})[0])
    assert MlpPolicy(replace(SMALL, fusion="attention"), _spec()).precompute(observation) is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"loss": "mes"}, UnknownName, "did you mean 'mse'"),
        ({"activation": "silu"}, UnknownName, "relu, gelu, tanh"),
        ({"fusion": "meen"}, UnknownName, "did you mean 'mean'"),
        ({"frames": "flair"}, UnknownName, "stack, flare"),
        ({"layers": [0]}, BadInput, "at least 1"),
        ({"dropout": 1.0}, BadInput, "below 1"),
        ({"depth_dropout": 0.5}, BadInput, r"between 0 and 0\.45"),
    ],
)
def test_impossible_architectures_are_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MlpPolicy(replace(SMALL, **change), _spec())


def test_observing_nothing_is_refused() -> None:
    with pytest.raises(BadInput, match="observes nothing"):
        MlpPolicy(SMALL, _spec(vectors=0, tokens=False))
