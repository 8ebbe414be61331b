"""Options of training: schedule, clipping, average of weights, parts of a batch, precision; all of them resume."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pixio_robot.errors import BadInput
from pixio_robot.policies import train as training_loop
from pixio_robot.policies.loaded import load_policy
from pixio_robot.policies.mlp import MlpConfig
from pixio_robot.policies.settings import ObservationSettings, StatisticsSettings, TrainingSettings
from pixio_robot.policies.train import check_training

PLAIN = MlpConfig(layers=[32], batch_norm=False, output_init_scale=1.0)
SHORT = TrainingSettings(batch=32, epochs=2)
STATE = dict(encoder="state", horizon=2)


def _distance(clone: Any, one: Any, other: Any) -> float:
    first, second = clone.weights(one.last), clone.weights(other.last)
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rates of the optimiser steps."""
    found: list[float] = []
    original = training_loop.set_lr

    def watch(optimizer: torch.optim.Optimizer, rate: float) -> None:
        original(optimizer, rate)
        found.append(optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(training_loop, "set_lr", watch)
    return found


def test_cosine_with_warm_up_rises_and_falls(clone: Any, rates: list[float]) -> None:
    clone("a", replace(SHORT, epochs=5, lr=0.01, schedule="cosine", warmup=0.2), PLAIN, **STATE)
    assert len(rates) == 20 and rates[0] == 0 and max(rates) == pytest.approx(0.01)
    assert np.allclose(rates[:4], [0, 0.0025, 0.005, 0.0075])
    assert (np.diff(rates[4:]) < 0).all() and rates[-1] < 0.001
    assert np.allclose(rates[4:], 0.005 * (1 + np.cos(np.pi * np.arange(16) / 16)))


def test_a_constant_rate_is_constant(clone: Any, rates: list[float]) -> None:
    clone("a", SHORT, PLAIN, **STATE)
    assert set(rates) == {1e-3}


def test_clipping_bounds_the_step(clone: Any) -> None:
    """With plain gradient descent no step moves the weights by more than the learning rate times the bound."""
    training = replace(SHORT, epochs=1, batch=100, optimizer="sgd", lr=0.1, clip=1e-3)
    start = clone.prepare(PLAIN, **STATE).model.state_dict()
    clipped, free = (clone(f"{clip}", replace(training, clip=clip), PLAIN, **STATE) for clip in (1e-3, 0.0))

    def moved(result: Any) -> float:
        return float(torch.cat([(v - start[k]).flatten() for k, v in clone.weights(result.last).items()]).norm())

    assert moved(clipped) == pytest.approx(0.1 * 1e-3, rel=1e-3) and moved(free) > 10 * moved(clipped)


def test_the_average_of_weights_is_what_is_saved(clone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exponential moving average over the optimiser steps, from the first one on."""
    decay, seen = 0.9, []
    original = training_loop._Learner.step

    def watch(self: Any, *arguments: Any) -> Any:
        loss = original(self, *arguments)
        seen.append({name: value.clone() for name, value in self.model.state_dict().items()})
        return loss

    monkeypatch.setattr(training_loop._Learner, "step", watch)
    saved = clone.weights(clone("a", replace(SHORT, ema=decay), PLAIN, **STATE).last)
    average = dict(seen[0])
    for weights in seen[1:]:
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in average}
    assert len(seen) == 8
    for name, value in saved.items():
        torch.testing.assert_close(value, average[name], rtol=1e-5, atol=1e-7)
        assert not torch.equal(value, seen[-1][name])


def test_an_average_does_not_go_with_batch_normalisation(clone: Any) -> None:
    with pytest.raises(BadInput, match=r"does not fit the running statistics.*policy\.batch_norm=false"):
        clone("a", replace(SHORT, ema=0.9), MlpConfig(layers=[32]))
    check_training(replace(SHORT, ema=0.9), clone.prepare(PLAIN).model)


def test_a_frozen_encoder_is_not_copied_for_the_average(clone: Any) -> None:
    import copy

    model = clone.prepare(PLAIN).model
    twin = copy.deepcopy(model)
    assert twin.vision.encoder is model.vision.encoder
    assert twin.policy.head.layers[0].weight is not model.policy.head.layers[0].weight


@pytest.mark.parametrize("encoder", ["state", "tiny"])
def test_parts_of_a_batch_give_the_weights_of_the_whole(clone: Any, encoder: str) -> None:
    """Up to rounding, for a policy without batch normalisation, though parts have different numbers of targets."""
    config = replace(PLAIN, fusion="attention")  # not computed once for all epochs
    training = replace(SHORT, optimizer="sgd", lr=0.05)
    whole, parts = (
        clone(f"{count}", replace(training, accumulate=count), config, encoder=encoder, horizon=7) for count in (1, 3)
    )
    assert _distance(clone, whole, parts) < 1e-6
    assert whole.train_loss == pytest.approx(parts.train_loss, rel=1e-5)


def test_parts_of_a_precomputed_batch_give_the_weights_of_the_whole(clone: Any) -> None:
    training = replace(SHORT, optimizer="sgd", lr=0.05)
    whole, parts = (clone(f"{count}", replace(training, accumulate=count), PLAIN, horizon=7) for count in (1, 5))
    assert _distance(clone, whole, parts) < 1e-6


def test_half_precision_runs_and_stays_near(clone: Any) -> None:
    config = replace(PLAIN, fusion="attention", layers=[64])
    full, half = (
        clone(kind, replace(SHORT, epochs=4, precision=kind), config, observation=ObservationSettings(steps=1))
        for kind in ("fp32", "bf16")
    )
    assert 0 < _distance(clone, full, half) < 0.05
    assert half.train_loss == pytest.approx(full.train_loss, rel=0.1)
    assert all(value.dtype == torch.float32 for value in clone.weights(half.last).values() if value.is_floating_point())


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_fp16_needs_cuda() -> None:
    with pytest.raises(BadInput, match="needs a CUDA device; use bf16 or fp32"):
        check_training(replace(SHORT, precision="fp16"))


@pytest.mark.parametrize(
    "change",
    [
        {"schedule": "cosine", "warmup": 0.3, "clip": 0.1},
        {"ema": 0.8},
        {"accumulate": 3, "optimizer": "adamw", "weight_decay": 0.1},
        {"precision": "bf16"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_resumed_equals_uninterrupted(clone: Any, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(PLAIN, dropout=0.2)
    clone.check_resumed(monkeypatch, replace(SHORT, **change), config, **STATE)


def test_resumed_equals_uninterrupted_with_statistics(clone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = StatisticsSettings(action="quantile", proprio="mean_std")
    result = clone.check_resumed(monkeypatch, SHORT, PLAIN, statistics=statistics)
    assert {key: each.mode for key, each in load_policy(result.last).spec.statistics.items()} == {
        "action": "quantile",
        "proprio": "mean_std",
    }
