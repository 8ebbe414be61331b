"""The rules of every task, as one function. Run it on your own task before you trust its numbers.

It accepts a task in the registry, so the suites of other packages too, and a task that is not registered.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import ContractError
from .registry import new_task
from .task import Task, TaskEnv
from .task_spec import TaskSpec


def check_contract(task: str | Callable[[], Task], render: str = "fast", steps: int = 3) -> None:
    """Test a task against the contract of environments, including all that it declares in its `Capabilities`.

    Args:
        task: name in the registry, or a function that makes the task.
        render: render quality to test with.
        steps: control steps of each test episode.

    Raises:
        ContractError: naming the rule that is broken.
    """
    env = _new_env(task, render)
    declared = env.task.capabilities
    try:
        first = _trajectory(env, 7, steps)
        _check_spaces(env, first)
        other, again = _trajectory(env, 8, steps), _trajectory(env, 7, steps)
        for key in first:
            _check(np.array_equal(first[key], again[key]), env, f"the same seed gives a different {key}")
        hashes = (first["initial_state_hash"], other["initial_state_hash"])
        _check(hashes[0] != hashes[1], env, "different seeds give the same initial state")
        if env.cameras:
            _check_images(env, first)
        _check_clipping(env)
        _check(env.spec is not None and env.spec.kwargs["render"] == render, env, "the spec records the render quality")
    finally:
        env.close()
    if declared.privileged_state:
        _check_privileged_state(_new_env(task, render, ("proprio", "state"), 1))
    _check_horizon(_new_env(task, render, ("proprio",), 2))


def _new_env(
    task: str | Callable[[], Task], render: str, observe: tuple[str, ...] = (), horizon: int | None = None
) -> TaskEnv:
    """Return an environment that observes the given modalities, or all but the privileged state."""
    made = new_task(task) if isinstance(task, str) else task()
    if not observe:
        images = ("rgb", "depth") if made.capabilities.depth else ("rgb",)
        observe = (*images, "proprio") if made.cameras else ("proprio",)
    name = task if isinstance(task, str) else f"custom/{type(made).__name__}"
    return TaskEnv(made, TaskSpec(name, observe, render=render, horizon=horizon))


def _check(holds: Any, env: TaskEnv, rule: str) -> None:
    if not holds:
        raise ContractError(f"{env.name}: {rule}")


def _actions(env: TaskEnv, steps: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (steps, env.task.action_dim)).astype(np.float32)


def _trajectory(env: TaskEnv, seed: int, steps: int) -> dict[str, np.ndarray]:
    """Return the observations, states, rewards and successes of an episode with random actions, by key."""
    observation, info = env.reset(seed=seed)
    digest = info.get("initial_state_hash")
    _check(isinstance(digest, str), env, "reset must return the initial state's hash")
    rows = [{**observation, "state": env.task.state(), "reward": np.zeros(1), "success": np.zeros(1)}]
    for action in _actions(env, steps):
        observation, reward, terminated, truncated, info = env.step(action)
        is_same = type(info["success"]) is bool and info["is_success"] == info["success"]
        _check(is_same, env, "success must be a bool in every step")
        right = isinstance(reward, float) and isinstance(terminated, bool) and isinstance(truncated, bool)
        _check(right, env, "reward must be a float, terminated and truncated must be bools")
        outcome = {"reward": np.array([reward]), "success": np.array([info["success"]])}
        rows.append({**observation, "state": env.task.state(), **outcome})
    return {"initial_state_hash": np.array(digest)} | {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def _check_spaces(env: TaskEnv, trajectory: dict[str, np.ndarray]) -> None:
    space, actions = env.observation_space, env.action_space
    observation = {key: trajectory[key][0] for key in space.keys()}  # type: ignore[attr-defined]  # noqa: SIM118
    _check(space.contains(observation), env, "the observation is outside its space")
    _check(actions.dtype == np.float32, env, "actions must be float32")
    low, high = actions.low, actions.high  # type: ignore[attr-defined]
    _check((low == -1).all() and (high == 1).all(), env, "actions must be in [-1, 1]")
    axes = len(env.task.action_spec().names)
    _check(axes == env.task.action_dim, env, f"its action_spec has {axes} axes, actions have {env.task.action_dim}")


def _check_privileged_state(env: TaskEnv) -> None:
    first = env.reset(seed=7)[0]["state"]
    other, again = (env.reset(seed=seed)[0]["state"] for seed in (8, 7))
    _check(env.observation_space["state"].contains(first), env, "the state is outside its space")  # type: ignore[index]
    _check(np.array_equal(first, again), env, "the same seed gives a different privileged state")
    _check(not np.array_equal(first, other), env, "different seeds give the same privileged state")
    env.close()


def _check_images(env: TaskEnv, trajectory: dict[str, np.ndarray]) -> None:
    _check(trajectory["rgb"][0].std() > 5, env, "the image is blank")
    if env.task.capabilities.depth:
        depth = trajectory["depth"][0]
        hit = depth[depth > 0]
        _check(hit.size > depth.size * (1 - env.task.max_background), env, "its images are mostly background")
        _check(0.05 < np.median(hit) < env.task.max_median_depth, env, "depth is not in metres")
    if env.task.capabilities.calibration:
        found = env.calibration()
        _check(set(found) == set(env.cameras), env, f"calibration() must have {env.cameras}, it has {tuple(found)}")
        for known in found.values():
            shapes = known.intrinsics.shape, known.camera_to_world.shape
            _check(shapes == ((3, 3), (4, 4)), env, f"a calibration has the shapes (3, 3) and (4, 4), not {shapes}")
            turn = known.camera_to_world[:3, :3]
            _check(np.allclose(turn @ turn.T, np.eye(3), atol=1e-5), env, "a camera's pose must be a rigid motion")


def _check_clipping(env: TaskEnv) -> None:
    states = []
    for scale in (1.0, 7.0):
        env.reset(seed=3)
        env.step(np.full(env.action_space.shape, scale, np.float32))  # type: ignore[arg-type]
        states.append(env.task.state())
    _check(np.array_equal(states[0], states[1]), env, "actions beyond [-1, 1] must be clipped")


def _check_horizon(env: TaskEnv) -> None:
    env.reset(seed=0)
    rest = np.zeros(env.task.action_dim, np.float32)
    truncations = [env.step(rest)[3] for _ in range(4)]
    _check(
        truncations == [False, True, True, True], env, "an episode of 2 steps must be truncated at step 2 and stay so"
    )
    before, after = env.task.state(), (env.step(rest), env.task.state())[1]
    _check(np.array_equal(before, after), env, "an ended episode must not continue")
    env.close()
