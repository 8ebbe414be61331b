"""The training loop: one seed one result, exact resumption, and it does learn."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pixio_robot.datasets.dataset import open_dataset
from pixio_robot.encoders.load import load_encoder
from pixio_robot.errors import BadInput, CheckpointError, DataError, UnknownName
from pixio_robot.policies.commands import Evaluate, TrainBC, evaluate, train_bc
from pixio_robot.policies.loaded import load_policy
from pixio_robot.policies.mlp import MlpConfig
from pixio_robot.policies.policy import Batch
from pixio_robot.policies.settings import ObservationSettings, StatisticsSettings, TrainingSettings
from pixio_robot.policies.train import split_batches
from pixio_robot.run_folder import binding_settings, settings_digest

SMALL = MlpConfig(layers=[32])
SHORT = TrainingSettings(batch=32, epochs=4)


def test_one_seed_gives_one_result_and_leaves_global_randomness_alone(clone: Any) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = clone("a")
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert clone.same(first.last, clone("b").last)
    assert not clone.same(first.last, clone("c", seed=1).last)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_resumed_run_ends_on_the_same_weights(clone: Any, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clone.check_resumed(monkeypatch, replace(SHORT, optimizer=optimizer), replace(SMALL, dropout=0.2))


def test_a_run_folder_of_other_settings_is_refused(clone: Any) -> None:
    clone("a")
    with pytest.raises(CheckpointError, match="other settings or data"):
        clone("a", replace(SHORT, lr=1e-2))
    with pytest.raises(CheckpointError, match="other settings or data"):
        clone("a", config=MlpConfig(layers=[32], activation="tanh"))
    with pytest.raises(CheckpointError, match="other settings or data"):
        clone("a", statistics=StatisticsSettings(action="min_max"))


def test_it_learns_what_can_be_learned(clone: Any) -> None:
    """With the tokens the training loss falls far below what a constant action gives."""
    result = clone("a", replace(SHORT, epochs=60), MlpConfig(layers=[256, 256]))
    actions = clone.dataset.column("action")[clone.dataset.rows("train")]
    assert result.train_loss < 0.1 * float(actions.var(axis=0).mean())
    rows = clone.rows("a")
    assert rows[0]["train/loss"] > 5 * rows[-1]["train/loss"] and "valid/loss" in rows[-1]
    best = min(rows, key=lambda row: row["valid/loss"])
    assert load_policy(result.best).training["epoch"] == best["epoch"]


@pytest.mark.parametrize("fusion", ["concat", "first", "attention", "spatial"])
def test_every_fusion_trains_and_its_own_weights_move(clone: Any, fusion: str) -> None:
    config, observation = replace(SMALL, fusion=fusion, frames="stack"), ObservationSettings(steps=2)
    once, twice = (
        clone.weights(clone(f"{epochs}", replace(SHORT, epochs=epochs), config, observation=observation).last)
        for epochs in (1, 2)
    )
    own = [name for name in once if name.startswith("policy.neck.")]
    assert bool(own) == (fusion in ("attention", "spatial"))
    assert all(not torch.equal(once[name], twice[name]) for name in own if "in_proj_bias" not in name)


def test_a_policy_of_proprioception_alone_needs_no_tokens(clone: Any) -> None:
    loaded = load_policy(clone("none", encoder="none").last)
    assert loaded.spec.encoder is None and loaded.policy.neck.dim == 3 and not loaded.vision.keys
    assert loaded.model.act({}, {"proprio": torch.zeros(2, 3, 3)}, {})[0].shape == (2, 1, 3)


def test_a_policy_of_the_privileged_state_learns_better_than_one_of_proprioception(clone: Any) -> None:
    training, config = replace(SHORT, epochs=40), MlpConfig(layers=[256, 256])
    state, none = (clone(encoder, training, config, encoder=encoder) for encoder in ("state", "none"))
    assert state.train_loss < 0.7 * none.train_loss
    loaded = load_policy(state.last)
    assert loaded.label == "state" and list(loaded.spec.vectors) == ["state"] and loaded.policy.neck.dim == 6


@pytest.mark.parametrize("steps", [1, 3])
def test_a_network_for_images_is_trained_end_to_end(clone: Any, steps: int) -> None:
    """Its weights move, it repeats itself, and what is read from a file acts as what was written."""
    others = dict(encoder="cnn", observation=ObservationSettings(steps=steps))
    training, config = replace(SHORT, epochs=8), MlpConfig(layers=[64])
    result, again = (clone(out, training, config, **others) for out in ("a", "b"))
    assert clone.same(result.last, again.last)
    rows = clone.rows("a")
    assert rows[-1]["train/loss"] < 0.7 * rows[0]["train/loss"]
    loaded = load_policy(result.last)
    assert loaded.label == "cnn" and loaded.spec.observation_steps == loaded.vision.pixels.frames == steps
    early = clone.weights(clone("c", replace(training, epochs=1), config, **others).last)
    late = clone.weights(result.last)
    pixels = [name for name in late if name.startswith("vision.pixels.")]
    assert pixels and all(not torch.equal(early[name], late[name]) for name in pixels)


def test_the_checkpoint_explains_itself(clone: Any, tiny: Any) -> None:
    loaded = load_policy(clone("a").last)
    assert loaded.spec.encoder is not None and loaded.spec.encoder.fingerprint == tiny.fingerprint()
    assert loaded.provenance["environment"] == clone.dataset.provenance["environment"]
    assert loaded.task == "toy/reach" and loaded.training["initial_states"] == clone.dataset.initial_states
    assert loaded.training["lr"] == 1e-3 and loaded.training["epoch"] == 4 and loaded.step == 4 * 4
    assert loaded.vision.encoder.fingerprint() == tiny.fingerprint()


def test_another_encoder_than_the_trained_one_is_refused(clone: Any) -> None:
    last = clone("a").last
    with pytest.raises(CheckpointError, match=r"has weights .*, the policy was trained on"):
        load_policy(last, load_encoder("random:ti:0"))


def test_a_last_batch_of_one_joins_the_one_before() -> None:
    assert [len(part) for part in split_batches(torch.arange(65), 32)] == [32, 33]
    assert [len(part) for part in split_batches(torch.arange(66), 32)] == [32, 32, 2]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"optimizer": "lion"}, UnknownName, "adam, adamw, sgd"),
        ({"schedule": "cosin"}, UnknownName, "did you mean 'cosine'"),
        ({"precision": "half"}, UnknownName, "fp32, bf16, fp16"),
        ({"batch": 1}, BadInput, "at least 2"),
        ({"epochs": 0}, BadInput, "at least 1"),
        ({"lr": 0.0}, BadInput, "must be positive"),
        ({"clip": -1.0}, BadInput, "not be negative"),
        ({"warmup": 1.0}, BadInput, "below 1"),
        ({"ema": 1.0}, BadInput, "below 1"),
        ({"accumulate": 0}, BadInput, "at least 1"),
        ({"workers": -1}, BadInput, "at least 0"),
        ({"encoder_lr": -0.1}, BadInput, "not be negative"),
        ({"lr": 1e30}, DataError, "lower training.lr"),
    ],
)
def test_impossible_settings_of_training_are_refused(
    clone: Any, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        clone("a", replace(SHORT, **change))


def test_kept_epochs_are_the_policies_of_these_epochs(clone: Any) -> None:
    kept = clone("kept", keep=(2, 4)).kept
    assert [path.name for path in kept] == ["epoch-0002.safetensors", "epoch-0004.safetensors"]
    assert clone.same(kept[0], clone("short", replace(SHORT, epochs=2)).last) and not clone.same(*kept)
    assert clone("kept", keep=(2, 4)).reused
    kept[0].unlink()
    with pytest.raises(CheckpointError, match=r"has finished 4 epochs without epoch-0002\.safetensors"):
        clone("kept", keep=(2, 4))


# chunks of actions


def _batch(prepared: Any, rows: np.ndarray) -> Batch:
    sample = prepared.data.sample(rows)
    return Batch(
        prepared.model.observation(sample.frames, sample.vectors, sample.frame_index),
        sample.action,
        sample.action_is_pad,
    )


def test_the_loss_is_the_mean_over_actions_that_are_not_padding(clone: Any) -> None:
    prepared, rows = clone.prepare(encoder="state", horizon=4), np.arange(60)
    policy, batch = prepared.model.eval().policy, _batch(prepared, rows)
    loss, _ = policy.loss(batch)
    predicted = policy.predict(batch.observation, {})[0].detach().numpy()
    actions, episode_starts = clone.dataset.column("action"), clone.dataset.episode_starts
    errors = [
        (predicted[row, ahead] - actions[row + ahead]) ** 2
        for row in range(60)
        for ahead in range(4)
        if row + ahead < len(episode_starts) and episode_starts[row + ahead] == episode_starts[row]
    ]
    assert prepared.data.targets(rows) == len(errors) < 240
    assert float(loss.detach()) == pytest.approx(float(np.mean(errors)), rel=1e-5)


def test_a_horizon_of_one_is_plain_regression(clone: Any) -> None:
    prepared, rows = clone.prepare(encoder="state"), np.arange(40)
    policy, batch = prepared.model.eval().policy, _batch(prepared, rows)
    loss, _ = policy.loss(batch)
    assert prepared.data.targets(rows) == 40 and not batch.action_is_pad.any()
    expected = F.mse_loss(policy.predict(batch.observation, {})[0][:, 0], torch.from_numpy(prepared.data.action[rows]))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    plain = TrainBC(demos="demos.hdf5", policy=MlpConfig())
    other = replace(plain, horizon=2)
    assert binding_settings(other)["horizon"] == 2 and settings_digest(other) != settings_digest(plain)


def test_it_learns_several_steps_ahead(clone: Any) -> None:
    others = dict(encoder="state", horizon=4)
    result = clone("a", replace(SHORT, epochs=40), MlpConfig(layers=[256, 256]), **others)
    loaded, data = load_policy(result.last), clone.prepare(**others).data
    assert loaded.spec.horizon == 4
    rows = data.train.numpy()[~data.is_pad[data.train].any(1)]
    sample = data.sample(rows)
    with torch.inference_mode():
        actions, _ = loaded.model.act({}, sample.vectors, {})
    assert actions.shape == (len(rows), 4, 3)
    spread = float(data.action[data.train].var(0).mean())
    assert ((actions - sample.action).square().mean((0, 2)) < 0.5 * spread).all()


# units of actions


def test_actions_in_other_units_give_the_same_policy_in_these_units(clone: Any, toy_file: Path) -> None:
    """Trained on actions a thousand times as large, a policy with statistics answers a thousand times as much."""
    statistics = StatisticsSettings(action="min_max", proprio="mean_std")
    plain = load_policy(clone("plain", encoder="state", horizon=2, statistics=statistics).last)
    clone.dataset = open_dataset(toy_file)
    read = clone.dataset.read

    def scaled(key: str, rows: np.ndarray) -> np.ndarray:
        return read(key, rows) * (np.float32(1000) if key == "action" else 1)

    clone.dataset.read = scaled
    large = load_policy(clone("large", encoder="state", horizon=2, statistics=statistics).last)
    state = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
    actions = plain.act({"state": state})
    np.testing.assert_allclose(large.act({"state": state}), 1000 * actions, rtol=2e-3, atol=0.2)
    assert (
        np.abs(actions).max() > 0.01 and large.spec.statistics["action"].scale != plain.spec.statistics["action"].scale
    )


# files of other tools


def test_a_file_of_another_tool_trains_without_its_environment(foreign_file: Path, tiny_file: Path) -> None:
    """robomimic's own layout: found by its usual names, trained on, predicted with; only evaluation needs a task."""
    observation = ObservationSettings(cameras=["agentview", "robot0_eye_in_hand"], steps=2)
    command = TrainBC(demos=str(foreign_file), encoder=str(tiny_file), policy=SMALL, out="run")
    command.observation, command.training, command.horizon = observation, replace(SHORT, batch=8), 3
    command.statistics = StatisticsSettings("quantile", "mean_std")
    _, result = train_bc(command)
    assert np.isfinite(result.train_loss) and np.isnan(result.valid_loss)
    loaded = load_policy(result.last)
    dataset = open_dataset(foreign_file)
    assert loaded.spec.observation.keys() == {"rgb", "rgb_robot0_eye_in_hand", "proprio"}
    seen = {key: dataset.read(key, np.array([0, 9])) for key in loaded.spec.observation}
    assert loaded.act(seen).shape == (2, 7) and loaded.task == ""
    with pytest.raises(DataError, match=r"its environment is not known; name the one to evaluate in: task="):
        evaluate(Evaluate(checkpoint=str(result.last), episodes=1))


def test_a_file_whose_environment_is_of_another_tool_trains_and_evaluation_asks_for_a_task(
    tmp_path: Path, toy_file: Path
) -> None:
    import shutil

    import h5py

    shutil.copy(toy_file, tmp_path / "foreign.hdf5")
    with h5py.File(tmp_path / "foreign.hdf5", "r+") as file:
        file["data"].attrs["env_args"] = json.dumps({"env_name": "Lift", "type": 1, "env_kwargs": {"robots": "Panda"}})
    command = TrainBC(demos=str(tmp_path / "foreign.hdf5"), encoder="state", policy=SMALL, training=SHORT, out="run")
    _, result = train_bc(command)
    with pytest.raises(DataError, match=r"was not recorded by pixio-robot.*task=SUITE/TASK"):
        evaluate(Evaluate(checkpoint=str(result.last), episodes=1))
    command = Evaluate(checkpoint=str(result.last), task="toy/reach", episodes=1, envs=1, videos=False, out="eval")
    _, evaluation = evaluate(command)
    assert [row.task for row in evaluation.rows] == ["toy/reach"]
