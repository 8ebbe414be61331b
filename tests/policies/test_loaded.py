"""Policy checkpoints: what they hold, and those that cannot be read."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from pixio_robot.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pixio_robot.errors import CheckpointError, UnknownName
from pixio_robot.policies.loaded import load_policy, save_policy
from pixio_robot.policies.mlp import MlpConfig
from pixio_robot.policies.policy import PolicySpec
from pixio_robot.policies.settings import ObservationSettings, StatisticsSettings, TrainingSettings

SMALL = MlpConfig(layers=[32])


def _changed(path: Path, out: Path, **arguments: Any) -> Path:
    """Write a copy of a checkpoint with other arguments; None removes one."""
    checkpoint = load_checkpoint(path, "policy")
    known = {**checkpoint.arguments, **arguments}
    known = {name: value for name, value in known.items() if value is not None}
    save_checkpoint(out, replace(checkpoint, arguments=known))
    return out


@pytest.fixture
def checkpoint(clone: Any) -> Path:
    statistics = StatisticsSettings("quantile", "mean_std")
    return clone("a", TrainingSettings(batch=64, epochs=1), SMALL, statistics=statistics, horizon=2).last


def test_a_checkpoint_holds_all_that_rebuilds_the_policy(checkpoint: Path, clone: Any, tmp_path: Path) -> None:
    loaded = load_policy(checkpoint)
    spec = loaded.spec
    assert (spec.observation_steps, spec.horizon, spec.action_dim) == (3, 2, 3)
    assert spec.observation == {key: clone.dataset.features[key] for key in ("rgb", "proprio")}
    assert spec.statistics["action"].mode == "quantile" and spec.statistics["proprio"].mode == "mean_std"
    assert loaded.policy.config == SMALL
    assert PolicySpec.from_json(json.loads(json.dumps(spec.as_json()))) == spec
    save_policy(tmp_path / "again.safetensors", loaded.model, loaded.provenance, loaded.training, loaded.step)
    again = load_policy(tmp_path / "again.safetensors")
    assert again.spec == spec and again.vision.spec == loaded.vision.spec and again.training == loaded.training
    assert clone.same(checkpoint, tmp_path / "again.safetensors")
    assert not any("backbone" in name for name in clone.weights(checkpoint)), "a frozen encoder stays in its own file"


def test_an_older_checkpoint_is_refused_by_its_version(checkpoint: Path, tmp_path: Path) -> None:
    """Those of the first layout said neither which layout nor which policy they are."""
    version = load_checkpoint(checkpoint, "policy").version
    old = _changed(checkpoint, tmp_path / "old.safetensors", layout=None, policy={"layers": [32]}, kind="bc", spec=None)
    with pytest.raises(
        CheckpointError, match=rf"was written by pixio-robot {version} in policy layout 1; .*layout 2: train the policy"
    ):
        load_policy(old)


def test_a_policy_that_is_not_installed_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UnknownName, match=r"'their_policy', and no installed package provides it; .*Installed are: mlp"
    ):
        load_policy(_changed(checkpoint, tmp_path / "their.safetensors", policy="their_policy"))


@pytest.mark.parametrize("change", [{"config": {"name": "mlp", "widths": [3]}}, {"spec": {"horizon": 2}}])
def test_arguments_of_another_version_are_refused(checkpoint: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"other\.safetensors .*written by pixio-robot .*train the policy again"):
        load_policy(_changed(checkpoint, tmp_path / "other.safetensors", **change))


def test_weights_that_do_not_fit_are_named(checkpoint: Path, tmp_path: Path) -> None:
    with safe_open(checkpoint, framework="pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    lost = tmp_path / "lost.safetensors"
    tensors.pop("policy.head.layers.1.weight")
    save_file(tensors, lost, metadata=header)
    with pytest.raises(CheckpointError, match=r"1 keys missing \['policy\.head\.layers\.1\.weight'\]"):
        load_policy(lost)


def test_another_kind_of_checkpoint_is_refused(tiny_file: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a checkpoint of kind 'encoder'"):
        load_policy(tiny_file)
    with pytest.raises(CheckpointError, match="no file"):
        load_policy(tmp_path / "none.safetensors")
    save_checkpoint(tmp_path / "bare.safetensors", Checkpoint("policy", {}, {}))
    with pytest.raises(CheckpointError, match="in policy layout 1"):
        load_policy(tmp_path / "bare.safetensors")


def test_the_preprocessing_is_that_of_the_training(clone: Any) -> None:
    def small() -> Any:
        backbone = clone_backbone()
        backbone.preprocessing = backbone.preprocessing._replace(size=(64, 64))
        return backbone

    clone_backbone, clone.backbone = clone.backbone, small
    result = clone("a", TrainingSettings(batch=64, epochs=1), SMALL, observation=ObservationSettings(steps=1))
    loaded = load_policy(result.last)
    assert loaded.vision.encoder.preprocessing.size == (64, 64)
    row = np.array([7])
    seen = {key: clone.dataset.read(key, row)[0] for key in loaded.spec.observation}
    given = clone_backbone()
    assert np.array_equal(loaded.act(seen), load_policy(result.last, given).act(seen))
