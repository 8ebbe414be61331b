"""What train_rl refuses, with which message, and what it leaves behind."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from pixio_robot.encoders.load import load_encoder
from pixio_robot.errors import BadInput, CheckpointError, DataError, UnknownName
from pixio_robot.policies.rl.commands import train_rl
from pixio_robot.policies.rl.replay import require_memory
from pixio_robot.policies.rl.settings import AlgorithmSettings
from pixio_robot.policies.rl.task_vec_env import TaskVecEnv
from pixio_robot.policies.settings import ObservationSettings


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"obs": "pixels"}, UnknownName, "tokens, state, rgb"),
        ({"algorithm": AlgorithmSettings(name="sacc")}, UnknownName, "did you mean 'sac'"),
        ({"algorithm": AlgorithmSettings(name="sac", activation="silu")}, UnknownName, "relu, gelu, tanh"),
        ({"algorithm": AlgorithmSettings(name="sac", layers=[])}, BadInput, "at least one layer"),
        ({"algorithm": AlgorithmSettings(name="sac", gamma=1.5)}, BadInput, "must lie from 0 to 1"),
        ({"algorithm": AlgorithmSettings(name="sac", entropy="-1")}, BadInput, "auto_<first value>"),
        ({"algorithm": AlgorithmSettings(name="ppo", rollout=50)}, BadInput, "must be a multiple of envs=2"),
        ({"algorithm": AlgorithmSettings(name="sac", buffer=10)}, BadInput, "must hold at least"),
        ({"algorithm": AlgorithmSettings(name="sac", buffer=10**12)}, BadInput, r"needs [\d.]+ GB, [\d.]+ GB are free"),
        ({"obs": "tokens", "encoder": "cnn"}, BadInput, "use obs=rgb"),
        ({"finetune": True}, BadInput, "needs obs=tokens"),
        ({"observation": ObservationSettings(depth="late")}, BadInput, "observes colour images only"),
        ({"algorithm": AlgorithmSettings(name="ppo"), "demos": "d.hdf5"}, BadInput, "needs a replay buffer"),
        ({"demos": "d.hdf5", "demo_ratio": 1.0}, BadInput, "below 1"),
        ({"task": "toy/reahc"}, UnknownName, "did you mean 'toy/reach'"),
        ({"init_from": "nowhere.safetensors"}, CheckpointError, "no file"),
    ],
)
def test_impossible_settings_are_refused(
    changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path, world: Any
) -> None:
    with pytest.raises(error, match=message):
        train_rl(world.command(tmp_path / "rl", **changes))
    assert not (tmp_path / "rl").exists(), "nothing is left behind"


def test_the_buffer_size_is_computed() -> None:
    space = spaces.Dict(
        {"rgb.cls": spaces.Box(-1, 1, (3, 1, 192), np.float16), "proprio": spaces.Box(-1, 1, (4,), np.float32)}
    )
    assert require_memory(space, 3, AlgorithmSettings(buffer=1000)) == 1000 * (2 * (2 * 576 + 16) + 4 * 3 + 12)


def test_another_encoder_is_refused_with_both_hashes(tmp_path: Path, small_file: Path, world: Any) -> None:
    command = world.command(tmp_path / "rl", obs="tokens", encoder=str(small_file), steps=96, episodes=1)
    train_rl(command)
    mine = load_encoder(str(small_file)).fingerprint()
    other = tmp_path / "other.safetensors"
    from pixio_robot.encoders.load import save_encoder
    from pixio_robot.encoders.pixio import PixioEncoder

    encoder = PixioEncoder(dim=32, depth=2, heads=2)
    encoder.initialise(torch.Generator().manual_seed(1))
    save_encoder(encoder, other)
    theirs = load_encoder(str(other)).fingerprint()
    last = str(tmp_path / "rl/checkpoints/sac/last.safetensors")
    for changed in (
        replace(command, encoder=str(other)),
        replace(command, encoder=str(other), init_from=last, out="x"),
    ):
        with pytest.raises(CheckpointError) as caught:
            train_rl(changed)
        assert mine in str(caught.value) and theirs in str(caught.value)


@pytest.mark.parametrize("what", ["reward", "action"])
def test_numbers_that_are_not_finite_stop_the_run_with_the_step(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_evaluation: None, world: Any
) -> None:
    from pixio_robot.envs import toy
    from pixio_robot.envs.task import StepResult

    count = iter(range(10_000))
    original = toy.Reach.step

    def broken(self: toy.Reach, action: np.ndarray) -> StepResult:
        result = original(self, action)
        return result._replace(reward=float("nan")) if next(count) == 150 else result

    if what == "reward":
        monkeypatch.setattr(toy.Reach, "step", broken)
    else:
        step_async = TaskVecEnv.step_async
        monkeypatch.setattr(
            TaskVecEnv, "step_async", lambda self, a: step_async(self, a if self.steps < 110 else a * np.nan)
        )
    command = world.command(tmp_path / "rl", eval_every=10_000)
    with pytest.raises(DataError, match=rf"{what} is not finite in environment .* after \d+ environment steps"):
        train_rl(command)
    failure = json.loads((tmp_path / "rl/failure.json").read_text())
    assert 96 < failure["step"] < 240 and "not finite" in failure["error"]
    assert (tmp_path / "rl/checkpoints/sac/state-000000096").is_dir()
