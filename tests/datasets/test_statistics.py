"""Statistics: every mode can be undone, constant elements keep their unit, nothing is clipped."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from pixio_robot.datasets.dataset import EpisodeDataset
from pixio_robot.datasets.statistics import (
    MODES,
    FeatureStatistics,
    dataset_statistics,
    statistics_from_json,
    statistics_of,
)
from pixio_robot.errors import DataError, UnknownName
from pixio_robot.policies.policy import Normaliser


@pytest.fixture
def values() -> np.ndarray:
    """Joint angles [rad], millimetres, a gripper that never moves, pixels."""
    rng = np.random.default_rng(0)
    columns = [rng.normal(0.3, 0.1, 400), rng.uniform(-250, 900, 400), np.full(400, 0.04), rng.integers(0, 512, 400)]
    return np.stack(columns, axis=1)


def _normaliser(values: np.ndarray, mode: str) -> Normaliser:
    return Normaliser({"action": statistics_of(values, mode)})


@pytest.mark.parametrize("mode", MODES)
def test_what_is_normalised_can_be_undone(mode: str, values: np.ndarray) -> None:
    normaliser, there = _normaliser(values, mode), torch.from_numpy(values).float()
    normalised = normaliser.normalise("action", there)
    torch.testing.assert_close(normaliser.denormalise("action", normalised), there, rtol=1e-5, atol=1e-4)
    assert torch.equal(normaliser.normalise("proprio", there), there), "without statistics nothing changes"


def test_the_modes_give_what_they_are_called_after(values: np.ndarray) -> None:
    moving = [0, 1, 3]
    there = torch.from_numpy(values).float()
    scaled = {mode: _normaliser(values, mode).normalise("action", there)[:, moving].numpy() for mode in MODES}
    assert np.array_equal(scaled["none"], there[:, moving].numpy())
    assert np.abs(scaled["mean_std"].mean(0)).max() < 1e-4 and np.abs(scaled["mean_std"].std(0) - 1).max() < 1e-4
    assert np.allclose(scaled["min_max"].min(0), -1, atol=1e-5) and np.allclose(scaled["min_max"].max(0), 1, atol=1e-5)
    low, high = np.quantile(scaled["quantile"], [0.01, 0.99], axis=0)
    assert np.allclose(low, -1, atol=1e-4) and np.allclose(high, 1, atol=1e-4)
    assert np.abs(scaled["quantile"]).max() > 1, "what lies outside the quantiles is not clipped"


@pytest.mark.parametrize("mode", ["mean_std", "min_max", "quantile"])
def test_a_constant_element_becomes_zero_and_keeps_its_unit(mode: str, values: np.ndarray) -> None:
    normaliser = _normaliser(values, mode)
    constant = normaliser.normalise("action", torch.from_numpy(values).float())[:, 2]
    assert constant.abs().max() < 1e-6
    moved = torch.tensor([[0.3, 0.0, 0.04 + 0.5, 0.0]])
    assert normaliser.normalise("action", moved)[0, 2].item() == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("mode", ["mean_std", "min_max", "quantile"])
def test_values_outside_the_range_are_not_clipped(mode: str, values: np.ndarray) -> None:
    normaliser = _normaliser(values, mode)
    far = torch.tensor([[50.0, -9000.0, 3.0, 4000.0]])
    normalised = normaliser.normalise("action", far)
    assert (normalised.abs() > 1).all()
    torch.testing.assert_close(normaliser.denormalise("action", normalised), far, rtol=1e-5, atol=1e-3)


def test_quantiles_ignore_a_few_outliers(values: np.ndarray) -> None:
    spoiled = values.copy()
    spoiled[:2] = 1e6
    plain, quantile = statistics_of(values, "quantile"), statistics_of(spoiled, "quantile")
    assert np.allclose(quantile.scale, plain.scale, rtol=0.2)
    assert max(statistics_of(spoiled, "min_max").scale) > 1e5


def test_they_survive_json_and_are_of_the_training_frames_alone(toy_demos: EpisodeDataset) -> None:
    rows = toy_demos.rows("train")
    found = dataset_statistics(toy_demos, rows, {"action": "min_max", "proprio": "none"})
    actions = toy_demos.column("action")[rows]
    assert np.allclose(found["action"].offset, (actions.min(0) + actions.max(0)) / 2)
    assert found["proprio"] == FeatureStatistics()
    assert statistics_from_json(json.loads(json.dumps({key: asdict(each) for key, each in found.items()}))) == found


def test_what_has_no_statistics_is_refused(values: np.ndarray) -> None:
    with pytest.raises(UnknownName, match=r"did you mean 'min_max'.*none, mean_std, min_max, quantile"):
        statistics_of(values, "minmax")
    values[3, 1] = np.nan
    with pytest.raises(DataError, match="finite"):
        statistics_of(values, "mean_std")
