"""Runs of train_rl: they resume exactly, and leave policies like those of train_bc."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pixio_robot import cli
from pixio_robot.checkpoint import load_checkpoint
from pixio_robot.datasets.dataset import open_dataset
from pixio_robot.encoders.load import load_encoder
from pixio_robot.envs.registry import TaskSpec
from pixio_robot.envs.state_actor import StateActor
from pixio_robot.errors import CheckpointError, DataError, Stopped
from pixio_robot.policies.collect import collect
from pixio_robot.policies.commands import Evaluate, evaluate
from pixio_robot.policies.loaded import load_policy
from pixio_robot.policies.rl.commands import train_rl


def _same_weights(first: Path, second: Path) -> bool:
    one, other = (load_checkpoint(path, "policy").tensors for path in (first, second))
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def _rows(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


@pytest.mark.parametrize(
    ("name", "obs"), [("sac", "tokens"), ("ppo", "state"), pytest.param("ppo", "tokens", marks=pytest.mark.slow)]
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    name: str, obs: str, tmp_path: Path, small_file: Path, request: pytest.FixtureRequest, world: Any
) -> None:
    """Stopped in the middle of episodes, with full and half full buffers: the same weights, metrics and episodes."""
    from pixio_robot.policies.rl import train
    from pixio_robot.stopping import Stopping

    monkeypatch = request.getfixturevalue("monkeypatch")
    if obs == "tokens":
        request.getfixturevalue("no_evaluation")
    changes = dict(obs=obs, encoder=str(small_file), algorithm=world.settings(name, buffer=100, warmup=40))
    train_rl(world.command(tmp_path / "whole", name, **changes))
    asked = iter([False] * 4 + [True] * 10)
    monkeypatch.setattr(Stopping, "asked", property(lambda self: next(asked)))
    with pytest.raises(Stopped, match=r"after step .* the same command"):
        train_rl(world.command(tmp_path / "cut", name, **changes))
    monkeypatch.setattr(Stopping, "asked", property(lambda self: False))
    state = train.latest_state(tmp_path / "cut/checkpoints" / name)
    assert state is not None and 96 < int(state.name[6:]) < 240
    train_rl(world.command(tmp_path / "cut", name, **changes))
    assert _rows(tmp_path / "whole") == _rows(tmp_path / "cut")
    for which in ("last", "best"):
        assert _same_weights(*(tmp_path / run / f"checkpoints/{name}/{which}.safetensors" for run in ("whole", "cut")))


def test_a_shorter_run_can_be_continued(tmp_path: Path, no_evaluation: None, world: Any) -> None:
    for out, steps in (("whole", 240), ("parts", 144), ("parts", 240)):
        settings = world.settings("td3", noise=0.1)
        command = world.command(tmp_path / out, "td3", algorithm=settings, steps=steps, eval_every=480)
        train_rl(command)
    assert _same_weights(*(tmp_path / run / "checkpoints/td3/last.safetensors" for run in ("whole", "parts")))


def test_its_checkpoint_is_evaluated_and_is_an_expert(tmp_path: Path, world: Any) -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
    result = train_rl(world.command(tmp_path / "rl"))
    out, last, evaluation = result.out, result.last, result.evaluation
    assert torch.equal(before[0], torch.get_rng_state()) and np.array_equal(before[1], np.random.get_state()[1])  # type: ignore[arg-type]
    again = evaluate(Evaluate(checkpoint=str(last), episodes=2, envs=1, out=str(tmp_path / "eval")))[1]
    kept = [{**asdict(row), "wall_s": 0} for row in evaluation.rows]
    assert kept == [{**asdict(row), "wall_s": 0} for row in again.rows] and kept[0]["policy"] == "sac"
    with pytest.raises(DataError, match="have initial states of training episodes"):
        evaluate(Evaluate(checkpoint=str(last), episodes=2, first_seed=10_000_001))
    assert (out / "report.html").is_file() and (out / "tensorboard/sac").is_dir()
    loaded = load_policy(last)
    states = world.actions(0, (20, 6))
    with torch.no_grad():
        expected = loaded.model.act({}, {"state": torch.from_numpy(states)[:, None]}, {})[0][:, 0].numpy()
    np.testing.assert_allclose(StateActor(last).act(states), expected, atol=1e-6)
    request = TaskSpec("toy/reach", ("proprio", "state"), horizon=10)
    with pytest.raises(DataError, match="is an expert of toy/reach; the task is dmc/"):
        collect(replace(request, task="dmc/reacher_easy"), 1, 0, 0, tmp_path / "other.hdf5", 1, expert=str(last))
    env = request.make()
    state = env.reset(seed=5)[0]["state"]
    action = StateActor(last).act(state)
    np.testing.assert_allclose(action, loaded.act({"state": state}), atol=1e-6)


def test_its_policy_is_exported_like_a_cloned_one(tmp_path: Path, small_file: Path, world: Any) -> None:
    """Actor, running statistics and encoder as one program: in ONNX Runtime its actions are the eager policy's."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from pixio_robot.deploy.eager import EagerPolicy
    from pixio_robot.deploy.runtime import Runtime

    command = world.command(tmp_path / "rl", obs="tokens", encoder=str(small_file), steps=96, episodes=1)
    last = train_rl(replace(command, eval_every=1000)).last
    words = [f"checkpoint={last}", "verify=false", "threads=1", f"out={tmp_path / 'bundle'}"]
    assert cli.run(["export", *words]) == 0
    runtime, eager = Runtime.load(tmp_path / "bundle", threads=1), EagerPolicy.load(last)
    env = TaskSpec("toy/reach", ("rgb", "proprio"), image_size=32, render="fast").make()
    observation, _ = env.reset(seed=4)
    for _ in range(5):
        expected = eager.act(observation)[0]
        np.testing.assert_allclose(runtime.act(observation)[0], expected, atol=1e-3)
        observation = env.step(expected)[0]
    env.close()


@pytest.mark.slow
def test_a_finetuned_encoder_is_part_of_its_policy(tmp_path: Path, small_file: Path, world: Any) -> None:
    command = world.command(tmp_path / "rl", obs="tokens", encoder=str(small_file), finetune=True, steps=48, episodes=1)
    command = replace(command, algorithm=world.settings("sac", batch=4), eval_every=1000, eval_episodes=1)
    result = train_rl(command)
    loaded = load_policy(result.last)
    assert loaded.spec.encoder is not None and loaded.spec.encoder.name == str(small_file)
    assert loaded.vision.encoder.fingerprint() != load_encoder(str(small_file)).fingerprint()
    again = evaluate(Evaluate(checkpoint=str(result.last), episodes=1, envs=1, videos=False, out="e"))[1]
    assert again.rows[0].episode_return == pytest.approx(result.evaluation.rows[0].episode_return, abs=1e-6)
    with pytest.raises(CheckpointError, match="add finetune=true"):
        train_rl(replace(command, finetune=False, init_from=str(result.last), out="other"))


def test_demonstrations_and_a_cloned_policy_are_used(tmp_path: Path, toy_file: Path, small_file: Path) -> None:
    demos = ["demos=" + str(toy_file), "encoder=" + str(small_file), "observation.steps=2"]
    clone = [*demos, "policy.layers=[16,16]", "policy.tanh_output=true", "training.epochs=1", "out=bc"]
    assert cli.run(["train_bc", *clone]) == 0
    small = ["algorithm.layers=[16,16]", "algorithm.batch=16", "algorithm.buffer=500", "algorithm.warmup=20"]
    small += [
        "steps=60",
        "eval_episodes=1",
        "episodes=1",
        "episode_steps=10",
        "videos=false",
        "processes=false",
        "image_size=32",
    ]
    last = "init_from=bc/checkpoints/mlp/last.safetensors"
    assert cli.run(["train_rl", "task=toy/reach", *demos, *small, last, "out=rl"]) == 0
    trained = load_policy("rl/checkpoints/sac/last.safetensors").training["initial_states"]
    assert trained == open_dataset(toy_file).initial_states
