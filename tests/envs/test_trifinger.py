"""TriFinger: torques, the open-loop plan, the score, the goal's image, and initial states that repeat bit by bit."""

import hashlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pixio_robot.envs import registry
from pixio_robot.envs.contract import check_contract
from pixio_robot.envs.registry import make
from pixio_robot.envs.task import TaskEnv
from pixio_robot.envs.trifinger import arena as trifinger_arena
from pixio_robot.envs.trifinger import tasks as trifinger
from pixio_robot.envs.trifinger.arena import START_JOINTS, Arena, impedance_torque, motor_torque
from pixio_robot.envs.trifinger.tasks import move_score, reach_score
from pixio_robot.errors import BadInput, MissingExtra

installed = importlib.util.find_spec("pybullet") is not None and "trifinger/move_cube" in registry.installed()
needs_trifinger = pytest.mark.skipif(not installed, reason="needs the extra trifinger")


@pytest.fixture(scope="module")
def moving() -> Iterator[TaskEnv]:
    env = make("trifinger/move_cube", observe=("rgb", "proprio"), cameras=("camera60", "goal"), image_size=96)
    yield env
    env.close()


@pytest.fixture(scope="module")
def reaching() -> Iterator[TaskEnv]:
    env = make("trifinger/reach_cube", observe=("rgb", "depth", "state"), image_size=96)
    yield env
    env.close()


def _random_actions(env: TaskEnv) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (env.horizon, env.task.action_dim)).astype(np.float32)


def _fingerprint(env: TaskEnv, seed: int, steps: int = 2) -> str:
    """Return a digest of everything that is observed and simulated in the first steps of an episode."""
    seen = hashlib.sha256()
    observation, info = env.reset(seed=seed)
    seen.update(info["initial_state_hash"].encode())
    for action in [None, *_random_actions(env)[:steps]]:
        if action is not None:
            observation, *_ = env.step(action)
        for value in (*observation.values(), env.task.state()):
            seen.update(np.ascontiguousarray(value).tobytes())
    return seen.hexdigest()


@needs_trifinger
@pytest.mark.parametrize("task", trifinger.TASKS)
def test_contract(task: str) -> None:
    check_contract(f"trifinger/{task}")


def test_the_position_error_is_limited_to_a_centimetre() -> None:
    still, free = np.zeros(9), np.zeros(9)
    near = impedance_torque(np.eye(9), np.full(9, 0.001), still, free)
    assert near == pytest.approx(0.3)  # 300 N/m
    far, farther = (impedance_torque(np.eye(9), np.array([x, 0, 0] * 3), still, free) for x in (0.01, 0.2))
    assert far == pytest.approx(farther) and far[0] == pytest.approx(3.0)
    one = impedance_torque(np.eye(9), np.array([0.5, 0, 0, 0.002, 0, 0, 0, 0, 0]), still, free)
    assert one == pytest.approx([3, 0, 0, 0.6, 0, 0, 0, 0, 0]), "each finger by itself"
    assert impedance_torque(np.eye(9), still, np.full(9, 0.1), np.full(9, 0.2)) == pytest.approx(0.5 + 0.2)


def test_motor_torques_are_limited_and_damped() -> None:
    still = np.zeros(9)
    assert motor_torque(np.full(9, 0.2), still) == pytest.approx(0.2)
    assert motor_torque(np.full(9, 9.0), still) == pytest.approx(0.396)
    assert motor_torque(np.full(9, 9.0), np.ones(9)) == pytest.approx([0.316, 0.316, 0.356] * 3)
    wild = np.random.default_rng(0).normal(0, 10, (2, 100, 9))
    assert all(np.abs(motor_torque(*pair)).max() <= 0.396 for pair in wild.swapaxes(0, 1))


def test_scores_of_given_states() -> None:
    cube, start = np.array([0, 0, 0.0325]), np.array([0.1325, 0, 0.0325])
    assert reach_score(start, start, cube) == 0
    assert reach_score(np.array([0.0825, 0, 0.0325]), start, cube) == pytest.approx(0.5)
    assert reach_score(np.array([0.0425, 0, 0.0325]), start, cube) == pytest.approx(0.9), (
        "contact leaves a tip's radius"
    )
    assert reach_score(np.array([0.01, 0, 0.0325]), start, cube) == 1
    assert reach_score(np.array([0.3, 0, 0.0325]), start, cube) == 0, "away is no worse than nothing"
    goal = np.array([0.1, 0, 0.0325])
    assert move_score(cube, cube, goal) == 0 and move_score(goal, cube, goal) == 1
    assert move_score(np.array([0.05, 0, 0.0325]), cube, goal) == pytest.approx(0.5)
    assert move_score(np.array([-0.1, 0, 0.0325]), cube, goal) == 0
    assert move_score(np.array([0.1, 0, 0.0825]), cube, goal) == pytest.approx(0.5), "a lifted cube is off its goal"


@needs_trifinger
def test_decisions_and_actions_are_the_benchmark_s(moving: TaskEnv, reaching: TaskEnv) -> None:
    assert (reaching.task.horizon, reaching.task.action_dim) == (5, 3)
    assert (moving.task.horizon, moving.task.action_dim) == (10, 9)
    assert (trifinger_arena.DECISION_STEPS, trifinger_arena.SIM_STEP) == (100, 0.004)
    assert moving.task.control_hz == pytest.approx(2.5)
    assert moving.task.cameras == ("camera60", "camera180", "camera300", "goal")
    assert "goal" not in reaching.task.cameras


@needs_trifinger
def test_displacements_add_up_also_where_fingers_do_not_follow(reaching: TaskEnv) -> None:
    reaching.reset(seed=0)
    tips = reaching.task.proprio()
    down = np.array([0, 0, -1], np.float32)  # 25 cm, far below the table
    for count in range(1, 6):
        observation, *_ = reaching.step(down)
        plan = observation["state"][9:18]
        assert plan == pytest.approx(tips + np.array([0, 0, -5.0 * count, *[0] * 6]), abs=1e-4), "[cm]"
    assert reaching.task.proprio()[2] > 0, "the table holds the finger"
    assert reaching.task.proprio()[3:] == pytest.approx(tips[3:], abs=0.1), "the other fingers wait"


@needs_trifinger
def test_fingertips_follow_in_free_air(moving: TaskEnv) -> None:
    moving.reset(seed=1)
    tips = moving.task.proprio()
    wait, up = np.zeros(9, np.float32), np.array([0, 0, 0.375] * 3, np.float32)  # 3 cm
    for action in (up, wait):
        observation, *_ = moving.step(action)
    assert observation["proprio"] == pytest.approx(tips + np.array([0, 0, 3.0] * 3), abs=0.02)


@needs_trifinger
def test_kinematics_and_gravity_are_pinocchio_s() -> None:
    pinocchio = pytest.importorskip("pinocchio")
    arena = Arena(fixed_cube=True)
    arena.build(trifinger_arena.Pose(np.array([0, 0, 0.0325]), np.array([0.0, 0, 0, 1])))
    angles = START_JOINTS
    model = pinocchio.buildModelFromUrdf(str(arena.urdf))
    data = model.createData()
    pinocchio.framesForwardKinematics(model, data, angles)
    pinocchio.computeJointJacobians(model, data, angles)
    frames = [model.getFrameId(f"finger_tip_link_{finger}") for finger in (0, 120, 240)]
    around = pinocchio.ReferenceFrame.LOCAL_WORLD_ALIGNED
    rows = [pinocchio.getFrameJacobian(model, data, frame, around)[:3] for frame in frames]
    assert arena.tips() == pytest.approx(np.concatenate([data.oMf[frame].translation for frame in frames]), abs=1e-7)
    assert np.abs(arena.jacobian(angles) - np.concatenate(rows)).max() < 1e-12
    assert arena.gravity(angles) == pytest.approx(pinocchio.rnea(model, data, angles, np.zeros(9), np.zeros(9)))
    arena.close()


@needs_trifinger
def test_initial_states_are_in_their_range(reaching: TaskEnv) -> None:
    ups = set()
    for seed in range(12):
        reaching.reset(seed=seed)
        task: Any = reaching.task
        position, quaternion = task._arena.cube()
        away = position[:2] - task.proprio().reshape(3, 3)[:, :2] / 100
        assert np.hypot(*position[:2]) <= 0.09 and np.linalg.norm(away, axis=1).min() >= 0.085
        x, y, z, w = quaternion
        upwards = np.array([2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)])
        assert np.abs(upwards).max() == pytest.approx(1), "it lies on a face"
        ups.add(tuple(np.round(upwards).astype(int).tolist()))
    assert len(ups) > 3


@needs_trifinger
def test_the_return_is_the_last_score(reaching: TaskEnv) -> None:
    reaching.reset(seed=2)
    task: Any = reaching.task
    tip, cube = task.proprio()[:3] / 100, task._arena.cube().position
    steps = [reaching.step(action) for action in _random_actions(reaching)]
    share = reach_score(task.proprio()[:3] / 100, tip, cube)
    assert sum(step[1] for step in steps) == pytest.approx(share, abs=1e-9)
    assert steps[-1][4]["score"] == pytest.approx(100 * share, abs=1e-7)


@needs_trifinger
def test_the_expert_touches_the_cube() -> None:
    env = make("trifinger/reach_cube", observe=("proprio",))
    scores = []
    for seed in range(4):
        env.reset(seed=seed)
        steps = [env.step(env.task.expert_action()) for _ in range(5)]
        scores.append(sum(step[1] for step in steps))
        assert steps[-1][4]["success"] and not steps[0][4]["success"]
    env.close()
    assert min(scores) > 0.8 and 0.85 < np.mean(scores) < 1, "contact leaves a tip's radius"


@needs_trifinger
def test_the_goal_is_where_the_expert_leaves_the_cube(moving: TaskEnv) -> None:
    task: Any = moving.task
    for seed in range(2):
        first, _ = moving.reset(seed=seed)
        goal, start = task.privileged_state()[21:24] / 100, task._arena.cube().position
        assert np.linalg.norm(goal - start) > 0.03
        assert (first["rgb"] != first["rgb_goal"]).any(axis=2).mean() > 0.02
        _check_cube_is_at(goal, first["rgb_goal"], moving)
        rewards = []
        for _ in range(10):
            last, reward, *_, info = moving.step(moving.task.expert_action())
            rewards.append(reward)
            assert np.array_equal(last["rgb_goal"], first["rgb_goal"]), "the same in all of an episode"
        assert task._arena.cube().position == pytest.approx(goal, abs=1e-12)
        assert sum(rewards) == pytest.approx(1) and info["success"]
        assert np.array_equal(last["rgb"], first["rgb_goal"]), "the goal's image is the expert's last"


def _check_cube_is_at(place: np.ndarray, image: np.ndarray, env: TaskEnv) -> None:
    """Assert that the cube's top, seen around its centre, is brightly coloured; table and bowl are grey."""
    calibration = env.calibration()["goal"]
    point = np.linalg.inv(calibration.camera_to_world) @ [*place[:2], place[2] + 0.0325, 1.0]
    u, v, w = calibration.intrinsics @ point[:3]
    around = image[round(v / w) - 2 : round(v / w) + 3, round(u / w) - 2 : round(u / w) + 3].astype(int)
    assert np.median(around.max(2) - around.min(2)) > 100


@needs_trifinger
def test_the_expert_reaches_the_commanded_position(moving: TaskEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its score for the commanded position, which differs slightly from the goal."""
    commanded: list[np.ndarray] = []
    draw = trifinger.TriFinger._draw_goal
    monkeypatch.setattr(
        trifinger.TriFinger, "_draw_goal", lambda *given: commanded.append(draw(*given)) or commanded[-1]
    )
    task: Any = moving.task
    for seed in range(10, 13):
        moving.reset(seed=seed)
        assert move_score(task._goal, task._arena.cube().position, commanded[-1]) > 0.9


@needs_trifinger
@pytest.mark.parametrize("camera", tuple(trifinger.CAMERAS))
def test_depth_and_calibration_agree(camera: str) -> None:
    """Every pixel of the table lies at height 0, and the cube's top at 65 mm."""
    env = make("trifinger/reach_cube", observe=("rgb", "depth"), cameras=(camera,), image_size=200)
    observation, _ = env.reset(seed=3)
    intrinsics, pose = env.calibration()[camera]
    rows, columns = np.mgrid[:200, :200]
    rays = np.linalg.inv(intrinsics) @ np.stack([columns.ravel(), rows.ravel(), np.ones(rows.size)])
    x, y, z = pose[:3, :3] @ (rays * observation["depth"].ravel()) + pose[:3, 3:]
    task: Any = env.task
    cube = task._arena.cube().position
    colour = np.ptp(observation["rgb"].reshape(-1, 3).astype(int), axis=1)
    table = (np.hypot(x, y) < 0.15) & (colour < 10)
    assert table.sum() > 4000 and np.abs(z[table]).mean() < 5e-4
    top = (np.hypot(x - cube[0], y - cube[1]) < 0.03) & (z > 0.06) & (z < 0.07)
    assert top.sum() > 100 and z[top] == pytest.approx(0.065, abs=2e-4) and colour[top].min() > 100
    assert pose[2, 1] < 0, "the image is upright: its y axis points down"
    env.close()


@needs_trifinger
def test_another_process_gives_the_same_bits(moving: TaskEnv) -> None:
    """And it starts fast: neither torch nor pinocchio is imported."""
    code = (
        "import json, sys, runpy\n"
        f"here = runpy.run_path({__file__!r})\n"
        "env = here['make']('trifinger/move_cube', observe=('rgb', 'proprio'), cameras=('camera60', 'goal'), "
        "image_size=96)\n"
        "print(json.dumps([here['_fingerprint'](env, 5), sorted({'torch', 'pinocchio'} & set(sys.modules))]))"
    )
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    theirs, heavy = json.loads(next(line for line in outcome.stdout.splitlines() if line.startswith("[")))
    moving.reset(seed=0)  # what ran before does not matter
    assert theirs == _fingerprint(moving, 5) == _fingerprint(moving, 5)
    assert heavy == []


@needs_trifinger
def test_environments_are_independent(reaching: TaskEnv) -> None:
    alone = _fingerprint(reaching, 6)
    other = make("trifinger/reach_cube", observe=("rgb",), image_size=32)
    other.reset(seed=9)
    reaching.reset(seed=6)
    action = _random_actions(reaching)[0]
    together = [env.step(action) for env in (reaching, other, reaching, other)]
    assert not np.array_equal(reaching.task.state(), other.task.state()) and len(together) == 4
    other.close()
    assert _fingerprint(reaching, 6) == alone


@needs_trifinger
def test_closing_releases_the_client() -> None:
    import pybullet

    env = make("trifinger/reach_cube", observe=("proprio",))
    task: Any = env.task
    client = task._arena.bullet.number
    assert pybullet.isConnected(client)
    env.reset(seed=0)
    env.close()
    env.close()
    assert not pybullet.isConnected(client)
    other: Any = make("trifinger/reach_cube", observe=("proprio",))
    assert other.task._arena.bullet.number == client, "PyBullet gives the number away again"
    with pytest.raises(pybullet.error, match="Not connected"):
        env.step(np.zeros(3, np.float32))
    other.reset(seed=0)
    other.close()


@needs_trifinger
@pytest.mark.parametrize("package", ["pybullet", "robot_properties_fingers"])
def test_a_missing_extra_says_what_to_install(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=r"pip install 'pixio-robot\[trifinger\]'"):
        make("trifinger/reach_cube")


@needs_trifinger
def test_render_frames_refuses_tasks_without_a_mujoco_model() -> None:
    from pixio_robot.envs.scenes import open_scene

    with pytest.raises(BadInput, match="not simulated by MuJoCo"):
        open_scene("trifinger/reach_cube")
