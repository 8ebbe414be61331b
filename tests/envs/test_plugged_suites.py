"""Suites of other packages: found by entry point, tested by the same contract, without MuJoCo."""

import sys
from collections.abc import Iterator
from importlib import metadata
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import pytest

from pixio_robot import plugins
from pixio_robot.cameras.camera import CameraRequest
from pixio_robot.envs import registry
from pixio_robot.envs.contract import check_contract
from pixio_robot.envs.gymnasium_task import GymnasiumTask
from pixio_robot.envs.registry import TaskSpec, make
from pixio_robot.envs.rollout import BatchRollout, plan_episodes
from pixio_robot.envs.suite import Suite
from pixio_robot.envs.task import Capabilities, Task
from pixio_robot.errors import BadInput, ContractError, PixioError, UnknownName


class Point(gymnasium.Env[np.ndarray, np.ndarray]):
    """A point that moves to a goal; the image shows both."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    render_mode = "rgb_array"
    observation_space = gymnasium.spaces.Box(-4, 4, (4,), np.float32)
    action_space = gymnasium.spaces.Box(-0.1, 0.1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.place, self.goal = self.np_random.uniform(-1, 1, (2, 2)).astype(np.float32)
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.place = np.clip(self.place + action, -1, 1)
        distance = float(np.linalg.norm(self.place - self.goal))
        return self._observation(), -distance, False, False, {"success": distance < 0.1}

    def render(self) -> np.ndarray:  # type: ignore[override]
        image = np.full((60, 80, 3), 30, np.uint8)
        for (x, y), colour in ((self.place, (250, 40, 40)), (self.goal, (40, 250, 40))):
            row, column = round(30 + 24 * y), round(40 + 24 * x)
            image[row - 6 : row + 6, column - 6 : column + 6] = colour
        return image

    def _observation(self) -> np.ndarray:
        return np.concatenate([self.place, self.goal]).astype(np.float32)


def _point(_: str) -> Task:
    return GymnasiumTask(Point(), horizon=20, control_hz=10, proprio=lambda observation: observation[:2])


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module with a suite, beside the built-in ones."""
    module = ModuleType("their_package")
    module.SUITE = Suite("theirs", "gymnasium", ("point",), _point)  # type: ignore[attr-defined]
    module.WRONG = "no suite"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "their_package", module)
    ours = metadata.entry_points(group="pixio_robot.suites")
    theirs = [
        metadata.EntryPoint(name, value, "pixio_robot.suites")
        for name, value in (
            ("theirs", "their_package:SUITE"),
            ("wrong", "their_package:WRONG"),
            ("broken", "no_such_package:SUITE"),
        )
    ]
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda group: [*ours, *theirs] if "suites" in group else [])
    plugins._entries.cache_clear()
    yield module
    monkeypatch.undo()
    plugins._entries.cache_clear()


def test_the_suite_of_another_package_fulfils_the_contract(suite: ModuleType) -> None:
    assert "theirs/point" in registry.tasks() and "theirs/point" in registry.installed()
    check_contract("theirs/point")
    check_contract(lambda: _point("point"))


def test_a_gymnasium_environment_runs_episodes(suite: ModuleType) -> None:
    spec = TaskSpec("theirs/point", observe=("rgb", "proprio"), image_size=32)
    plans = plan_episodes(spec, 2, first_seed=3)
    assert plans == plan_episodes(spec, 2, first_seed=3)
    shapes = set()

    def act(observations: dict[str, np.ndarray], *_: np.ndarray) -> np.ndarray:
        shapes.add((observations["rgb"].shape, observations["proprio"].shape))
        return np.zeros((2, 2), np.float32)

    with BatchRollout(spec, plans, 2, processes=False) as rollout:
        results = list(rollout.run(act))
    assert [len(result.rewards) for result in results] == [20, 20] and shapes == {((2, 32, 32, 3), (2, 2))}


def test_actions_are_scaled_to_the_bounds_of_the_environment() -> None:
    task = _point("point")
    task.reset(np.random.default_rng(0))
    before = task.proprio().copy()
    result = task.step(np.array([1.0, -0.5]))
    assert task.proprio() - before == pytest.approx([0.1, -0.05], abs=1e-6) and not result.terminated


def test_what_a_task_does_not_declare_is_refused(suite: ModuleType) -> None:
    with pytest.raises(BadInput, match="theirs/point provides no depth; it can be observed by: rgb, proprio"):
        make("theirs/point", observe=("rgb", "depth"))
    with pytest.raises(BadInput, match="provides no state"):
        make("theirs/point", observe=("state",))
    env = make("theirs/point")
    env.reset(seed=0)
    assert env.calibration() == {}
    env.close()


def test_a_task_without_calibration_is_a_camera_without_intrinsics(suite: ModuleType) -> None:
    request = CameraRequest(width=32, depth=False)
    camera = pytest.importorskip("pixio_robot.cameras.drivers.simulated").TaskCamera("theirs/point", request)
    with camera:
        frame = camera.read()
    assert frame.rgb.shape == (32, 32, 3) and frame.intrinsics is None and frame.camera_to_world is None


class _Liar(GymnasiumTask):
    """A task that declares more than it gives."""

    capabilities = Capabilities(privileged_state=True)
    state_dim = 7

    def privileged_state(self) -> np.ndarray:
        return np.zeros(3, np.float32)


def test_a_false_declaration_is_found() -> None:
    with pytest.raises(ContractError, match=r"custom/_Liar: its task gives state as float32 \(3,\), but declares"):
        check_contract(lambda: _Liar(Point(), 20, 10.0))


def test_a_plug_in_that_is_no_suite_is_named(suite: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    assert "toy/reach" in registry.tasks()
    assert "'broken' (no_such_package:SUITE) cannot be imported" in caplog.text
    assert "'wrong' in the group pixio_robot.suites gives 'no suite'" in caplog.text
    with pytest.raises(PixioError, match="cannot be imported"):
        make("broken/task")
    with pytest.raises(UnknownName, match="no task 'theirs/piont'; did you mean 'theirs/point'"):
        make("theirs/piont")
    suite.SUITE = Suite("theirs", "gymnasium", ("point",), lambda _: Point())  # type: ignore[attr-defined]
    with pytest.raises(PixioError, match="GymnasiumTask"):
        make("theirs/point")


def test_discrete_actions_are_refused() -> None:
    env = Point()
    env.action_space = gymnasium.spaces.Discrete(3)  # type: ignore[assignment]
    with pytest.raises(BadInput, match="bounded vector"):
        GymnasiumTask(env, 5, 10.0)
