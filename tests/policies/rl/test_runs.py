"""Runs of train_rl: they go on exactly where they stopped, and leave policies like any other."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pixio_robot.policies.runs import run_evaluate
from pixio_robot.policies.visuomotor import load_policy

from pixio_robot import cli
from pixio_robot.checkpoint import load_checkpoint
from pixio_robot.datasets.robomimic import DemoSet
from pixio_robot.deploy.eager import EagerPolicy
from pixio_robot.deploy.runtime import Runtime
from pixio_robot.encoders.load import load_encoder
from pixio_robot.envs.registry import TaskSpec
from pixio_robot.envs.state_actor import StateActor
from pixio_robot.errors import DataError, Stopped
from pixio_robot.policies.collect import collect
from pixio_robot.policies.commands import Evaluate
from pixio_robot.policies.rl.run import run_train_rl


def _same_weights(first: Path, second: Path) -> bool:
    one, other = (load_checkpoint(path, "policy").tensors for path in (first, second))
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def _rows(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


@pytest.mark.parametrize(
    ("name", "obs"), [("sac", "tokens"), ("ppo", "state"), pytest.param("ppo", "tokens", marks=pytest.mark.slow)]
)
def test_a_stopped_run_goes_on_to_the_same_end(
    name: str, obs: str, tmp_path: Path, small_file: Path, request: pytest.FixtureRequest, world: Any
) -> None:
    """Stopped in the middle of episodes, with full and half full buffers: the same weights, metrics and episodes."""
    from pixio_robot.policies.rl import train
    from pixio_robot.stopping import Stopping

    monkeypatch = request.getfixturevalue("monkeypatch")
    if obs == "tokens":
        request.getfixturevalue("no_evaluation")
    changes = dict(obs=obs, encoder=str(small_file), algorithm=world.settings(name, buffer=100, warmup=40))
    run_train_rl(world.command(tmp_path / "whole", name, **changes))
    asked = iter([False] * 4 + [True] * 10)
    monkeypatch.setattr(Stopping, "asked", property(lambda self: next(asked)))
    with pytest.raises(Stopped, match="the same command goes on"):
        run_train_rl(world.command(tmp_path / "cut", name, **changes))
    monkeypatch.setattr(Stopping, "asked", property(lambda self: False))
    state = train.latest_state(tmp_path / "cut/checkpoints" / name)
    assert state is not None and 96 < int(state.name[6:]) < 240
    run_train_rl(world.command(tmp_path / "cut", name, **changes))
    assert _rows(tmp_path / "whole") == _rows(tmp_path / "cut")
    for which in ("last", "best"):
        assert _same_weights(*(tmp_path / run / f"checkpoints/{name}/{which}.safetensors" for run in ("whole", "cut")))


def test_a_longer_run_goes_on_from_a_shorter_one(tmp_path: Path, no_evaluation: None, world: Any) -> None:
    for out, steps in (("whole", 240), ("parts", 144), ("parts", 240)):
        settings = world.settings("td3", noise=0.1)
        command = world.command(tmp_path / out, "td3", algorithm=settings, steps=steps, eval_every=480)
        run_train_rl(command)
    assert _same_weights(*(tmp_path / run / "checkpoints/td3/last.safetensors" for run in ("whole", "parts")))


def test_its_checkpoint_is_one_for_evaluate_and_for_experts(tmp_path: Path, world: Any) -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
    out, last, evaluation = run_train_rl(world.command(tmp_path / "rl"))
    assert torch.equal(before[0], torch.get_rng_state()) and np.array_equal(before[1], np.random.get_state()[1])  # type: ignore[arg-type]
    again = run_evaluate(Evaluate(checkpoint=str(last), episodes=2, envs=1, out=str(tmp_path / "eval")))[1]
    kept = [{**asdict(row), "wall_s": 0} for row in evaluation.rows]
    assert kept == [{**asdict(row), "wall_s": 0} for row in again.rows] and kept[0]["policy"] == "sac"
    with pytest.raises(DataError, match="start where training episodes start"):
        run_evaluate(Evaluate(checkpoint=str(last), episodes=2, first_seed=10_000_001))
    assert (out / "report.html").is_file() and (out / "tensorboard/sac").is_dir()
    loaded = load_policy(last)
    states = world.actions(0, (20, 6))
    with torch.no_grad():
        expected = loaded.policy(None, torch.from_numpy(states)).numpy()
    np.testing.assert_allclose(StateActor(last).act(states), expected, atol=1e-6)
    request = TaskSpec("toy/reach", ("proprio", "state"), horizon=10)
    with pytest.raises(DataError, match="is an expert of toy/reach; the task is dmc/"):
        collect(replace(request, task="dmc/reacher_easy"), 1, 0, 0, tmp_path / "other.hdf5", 1, expert=str(last))
    env = request.make()
    state = env.reset(seed=5)[0]["state"]
    action = StateActor(last).act(state)
    with torch.no_grad():
        np.testing.assert_allclose(action, loaded.policy(None, torch.from_numpy(state)[None])[0].numpy(), atol=1e-6)


def test_its_policy_is_exported_like_a_cloned_one(tmp_path: Path, small_file: Path, world: Any) -> None:
    """Actor, running statistics and encoder as one program: in ONNX Runtime its actions are the eager policy's."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    command = world.command(tmp_path / "rl", obs="tokens", encoder=str(small_file), steps=96, episodes=1)
    _, last, _ = run_train_rl(replace(command, eval_every=1000))
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
def test_a_learned_encoder_is_named_by_its_policy(tmp_path: Path, small_file: Path, world: Any) -> None:
    command = world.command(tmp_path / "rl", obs="tokens", encoder=str(small_file), finetune=True, steps=48, episodes=1)
    command = replace(command, algorithm=world.settings("sac", batch=4), eval_every=1000, eval_episodes=1)
    _, last, evaluation = run_train_rl(command)
    loaded = load_policy(last)
    assert loaded.encoder is not None and loaded.encoder.fingerprint != load_encoder(str(small_file)).fingerprint()
    again = run_evaluate(Evaluate(checkpoint=str(last), episodes=1, envs=1, videos=False, out="e"))[1]
    assert again.rows[0].episode_return == pytest.approx(evaluation.rows[0].episode_return, abs=1e-6)


def test_demonstrations_and_a_clone_are_taken(tmp_path: Path, toy_file: Path, small_file: Path) -> None:
    demos = ["demos=" + str(toy_file), "encoder=" + str(small_file), "embedding.history=2"]
    clone = [*demos, "policy.layers=[16,16]", "policy.tanh_output=true", "policy.epochs=1", "out=bc"]
    assert cli.run(["train_bc", *clone]) == 0
    small = ["algorithm.layers=[16,16]", "algorithm.batch=16", "algorithm.buffer=500", "algorithm.warmup=20"]
    small += [
        "steps=60",
        "eval_episodes=1",
        "episodes=1",
        "horizon=10",
        "videos=false",
        "processes=false",
        "image_size=32",
    ]
    last = "init=bc/checkpoints/bc/last.safetensors"
    assert cli.run(["train_rl", "task=toy/reach", *demos, *small, last, "out=rl"]) == 0
    assert load_policy("rl/checkpoints/sac/last.safetensors").training["starts"] == DemoSet(toy_file).starts
