"""The laws every task obeys, as one function. Run it on a task of your own before you trust its numbers."""

import numpy as np

from .registry import make
from .task import TaskEnv


def check_contract(task: str, render: str = "fast", steps: int = 3) -> None:
    """Assert the environment contract on a registered task.

    Args:
        task: name in the registry.
        render: render quality to check with.
        steps: control steps an episode is followed for.

    Raises:
        AssertionError: naming the law that is broken.
    """
    env = make(task, observe=("rgb", "depth", "proprio"), render=render)
    try:
        first = _trajectory(env, seed=7, steps=steps)
        _check_spaces(env, first)
        other = _trajectory(env, seed=8, steps=steps)
        again = _trajectory(env, seed=7, steps=steps)
        for key in first:
            assert np.array_equal(first[key], again[key]), f"{task}: the same seed gives another {key}"
        assert first["start"] != other["start"], f"{task}: another seed gives the same start"
        _check_known_state(task)
        _check_images(env, first)
        _check_clipping(env)
        _check_spec(env, render)
    finally:
        env.close()
    _check_horizon(task)


def _actions(env: TaskEnv, steps: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (steps, env.task.action_dim)).astype(np.float32)


def _trajectory(env: TaskEnv, seed: int, steps: int) -> dict[str, np.ndarray]:
    observation, info = env.reset(seed=seed)
    assert isinstance(info["start"], str), "reset must tell the start"
    start = np.array(info["start"])
    rows = [{**observation, "state": env.task.state(), "reward": np.zeros(1), "success": np.zeros(1)}]
    for action in _actions(env, steps):
        observation, reward, terminated, truncated, info = env.step(action)
        assert type(info["success"]) is bool and info["is_success"] == info["success"], "success is a bool every step"
        assert isinstance(reward, float) and isinstance(terminated, bool) and isinstance(truncated, bool), (
            "types of a step"
        )
        outcome = {"reward": np.array([reward]), "success": np.array([info["success"]])}
        rows.append({**observation, "state": env.task.state(), **outcome})
    return {"start": start} | {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def _check_spaces(env: TaskEnv, trajectory: dict[str, np.ndarray]) -> None:
    space = env.observation_space
    observation = {key: trajectory[key][0] for key in space.keys()}  # type: ignore[attr-defined]  # noqa: SIM118
    assert space.contains(observation), f"{env.name}: the observation is outside its space"
    assert env.action_space.dtype == np.float32, "actions are float32"
    low, high = env.action_space.low, env.action_space.high  # type: ignore[attr-defined]
    assert (low == -1).all() and (high == 1).all(), "actions are in [-1, 1]"


def _check_known_state(task: str) -> None:
    env = make(task, observe=("proprio", "state"), horizon=1)
    first = env.reset(seed=7)[0]["state"]
    other, again = (env.reset(seed=seed)[0]["state"] for seed in (8, 7))
    assert env.observation_space["state"].contains(first), f"{task}: the state is outside its space"  # type: ignore[index]
    assert np.array_equal(first, again) and not np.array_equal(first, other), f"{task}: the state does not tell starts"
    env.close()


def _check_images(env: TaskEnv, trajectory: dict[str, np.ndarray]) -> None:
    rgb, depth, task = trajectory["rgb"][0], trajectory["depth"][0], env.name
    assert rgb.std() > 5, f"{task}: the image is blank"
    seen = depth[depth > 0]
    assert seen.size > depth.size * (1 - env.task.empty), f"{task}: its images are mostly empty"
    assert 0.05 < np.median(seen) < env.task.far, f"{task}: depth is not in metres"


def _check_clipping(env: TaskEnv) -> None:
    states = []
    for scale in (1.0, 7.0):
        env.reset(seed=3)
        env.step(np.full(env.action_space.shape, scale, np.float32))  # type: ignore[arg-type]
        states.append(env.task.state())
    assert np.array_equal(states[0], states[1]), f"{env.name}: actions beyond [-1, 1] are not clipped"


def _check_spec(env: TaskEnv, render: str) -> None:
    assert env.spec is not None and env.spec.kwargs["render"] == render, "the spec records the render quality"


def _check_horizon(task: str) -> None:
    env = make(task, observe=("proprio",), horizon=2)
    env.reset(seed=0)
    still = np.zeros(env.task.action_dim, np.float32)
    truncations = [env.step(still)[3] for _ in range(4)]
    assert truncations == [False, True, True, True], (
        f"{task}: an episode of 2 steps is truncated at step 2 and stays so"
    )
    before, after = env.task.state(), (env.step(still), env.task.state())[1]
    assert np.array_equal(before, after), f"{task}: an ended episode goes on"
    env.close()
