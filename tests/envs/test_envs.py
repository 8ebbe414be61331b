"""Tasks obey the contract; colour, depth and poses of rendering agree; rollouts run the planned episodes."""

import os
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from pixio_robot.envs import metaworld, registry
from pixio_robot.envs.contract import check_contract
from pixio_robot.envs.registry import TaskSpec, make
from pixio_robot.envs.rendering import View
from pixio_robot.envs.rollout import BatchRollout, plan_episodes, run_expert
from pixio_robot.errors import BadInput, ContractError, DataError, MissingExtra, UnknownName

needs_metaworld = pytest.mark.skipif("metaworld/reach" not in registry.installed(), reason="needs the extra metaworld")


@pytest.mark.parametrize("task", [*registry.tasks("toy"), *registry.tasks("metaworld")])
def test_contract(task: str) -> None:
    if task not in registry.installed():
        pytest.skip("needs the extra metaworld")
    check_contract(task)


@pytest.mark.parametrize("task", [task for task in registry.installed() if task in ("toy/reach", "metaworld/hammer")])
@pytest.mark.filterwarnings("ignore:.*render_modes.*:UserWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:gymnasium.utils.env_checker")  # unbounded observations, by design
def test_gymnasium_accepts(task: str) -> None:
    env = make(task, observe=("rgb", "depth", "proprio"), render="fast", horizon=5)
    check_env(env, skip_render_check=True)
    env.close()


def test_the_contract_catches_an_environment_that_ignores_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    from pixio_robot.envs.toy import Reach

    original = Reach.reset
    monkeypatch.setattr(Reach, "reset", lambda self, rng: original(self, np.random.default_rng()))
    with pytest.raises(ContractError, match="same seed"):
        check_contract("toy/reach")


def test_depth_colour_and_calibration_agree() -> None:
    """The ball, projected with intrinsics and pose, is a red pixel at the depth of its front side."""
    for camera in ("front", "top"):
        env = make("toy/reach", observe=("rgb", "depth"), cameras=(camera,), render="benchmark")
        for seed in range(3):
            observation, _ = env.reset(seed=seed)
            calibration = env.calibration()[camera]
            centre = env.task.data.mocap_pos[0]
            point = np.linalg.inv(calibration.camera_to_world) @ [*centre, 1.0]
            u, v, w = calibration.intrinsics @ point[:3]
            column, row = round(u / w), round(v / w)
            colour = observation["rgb"][row, column].astype(int)
            if colour[2] > colour[0]:  # the hand is in front
                continue
            assert colour[0] > 2 * colour[1], f"{camera}: no ball at {row}, {column}: {colour}"
            assert observation["depth"][row, column] == pytest.approx(point[2] - 0.03, abs=0.004)
        env.close()


def test_further_cameras_get_their_own_keys() -> None:
    env = make("toy/reach", observe=("rgb", "depth"), cameras=("top", "front"), image_size=64, render="fast")
    observation, _ = env.reset(seed=0)
    assert set(observation) == {"rgb", "depth", "rgb_front", "depth_front"}
    assert not np.array_equal(observation["rgb"], observation["rgb_front"])
    env.close()


def test_images_may_be_larger_than_the_model_s_own_buffer() -> None:
    env = make("toy/reach", observe=("rgb",), image_size=800, render="fast")
    assert env.reset(seed=0)[0]["rgb"].shape == (800, 800, 3)
    env.close()


def test_render_qualities_change_pixels_and_are_recorded() -> None:
    images = {}
    for quality in ("benchmark", "balanced", "fast"):
        env = make("toy/reach", render=quality)
        images[quality] = env.reset(seed=0)[0]["rgb"].astype(int)
        assert env.spec is not None and env.spec.kwargs["render"] == quality
        env.close()
    near = np.abs(images["benchmark"] - images["balanced"]).mean()
    far = np.abs(images["benchmark"] - images["fast"]).mean()
    assert 0 < near < far


def test_nothing_is_rendered_unless_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: View) -> None:
        raise AssertionError("rendered")

    monkeypatch.setattr(View, "rgb", refuse)
    env = make("toy/reach", observe=("proprio",))
    assert set(env.reset(seed=0)[0]) == {"proprio"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "toy/reech"}, "did you mean 'toy/reach'"),
        ({"task": "metaworld/drawer-opne"}, "did you mean 'metaworld/drawer-open'"),
        ({"task": "atari/pong"}, "suites: adroit, dmc, metaworld, toy, trifinger, e.g. 'toy/reach'"),
        ({"task": "toy/reach", "render": "fsat"}, "benchmark, balanced, fast"),
        ({"task": "toy/reach", "cameras": ("side",)}, "it has: front, top"),
        ({"task": "toy/reach", "observe": ("smell",)}, "rgb, depth, proprio"),
        ({"task": "toy/reach", "imagesize": 64}, "no setting 'imagesize'; did you mean 'image_size'"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UnknownName, match=message):
        make(**arguments)  # type: ignore[arg-type]


def test_wrong_values_are_refused() -> None:
    with pytest.raises(BadInput, match="1 to 50 steps"):
        make("toy/reach", horizon=51)
    with pytest.raises(BadInput, match="16 to 4096 pixels"):
        make("toy/reach", image_size=0)
    env = make("toy/reach", observe=("proprio",))
    env.reset(seed=0)
    for action in (np.zeros(2, np.float32), np.full(3, np.nan, np.float32)):
        with pytest.raises(BadInput, match="finite action"):
            env.step(action)


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "metaworld", None)
    monkeypatch.setitem(sys.modules, "metaworld.env_dict", None)
    with pytest.raises(MissingExtra, match=r"pip install 'pixio-robot\[metaworld\]'"):
        make("metaworld/drawer-open")
    error = pickle.loads(pickle.dumps(MissingExtra("metaworld/hammer", "metaworld")))
    assert str(error).startswith("metaworld/hammer needs the extra"), "it crosses from a worker to its parent"


def test_a_missing_gl_context_has_an_error_message() -> None:
    code = "from pixio_robot.envs.rendering import check_rendering; check_rendering()"
    environment = {name: value for name, value in os.environ.items() if name != "DISPLAY"} | {"MUJOCO_GL": "glfw"}
    outcome = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert outcome.returncode == 1
    assert "RenderingUnavailable: " in outcome.stderr and "MUJOCO_GL=egl" in outcome.stderr


@needs_metaworld
def test_the_list_of_metaworld_tasks_is_the_package_s() -> None:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    assert {f"{task}-v3" for task in metaworld.TASKS} == set(ALL_V3_ENVIRONMENTS)
    assert set(metaworld.CORTEXBENCH) < set(metaworld.TASKS)


@needs_metaworld
@pytest.mark.parametrize("task", metaworld.CORTEXBENCH)
def test_metaworld_initial_states_vary_and_experts_succeed(task: str) -> None:
    spec = TaskSpec(f"metaworld/{task}", observe=("proprio",), horizon=200)
    plans = plan_episodes(spec, 4, first_seed=0)
    assert len({plan.initial_state_hash for plan in plans}) == 4
    np.random.seed(1)  # the package would draw initial states from numpy's global generator
    assert plan_episodes(spec, 4, first_seed=0) == plans
    results = [run_expert(spec, plan) for plan in plans[:2]]
    assert all(result.success[-1] and not result.success[0] for result in results)


@needs_metaworld
def test_metaworld_episodes_last_500_steps_and_success_is_not_latched() -> None:
    env = make("metaworld/drawer-open", observe=("proprio",))
    env.reset(seed=0)
    for _ in range(200):
        *_, info = env.step(env.task.expert_action())
    assert info["success"]
    back = np.array([0, 1, 0, -1], np.float32)
    ended = [env.step(back)[3] for _ in range(301)]
    assert ended.index(True) == 299, "truncated at step 500, and step 501 does not raise"


@needs_metaworld
def test_the_benchmark_s_camera_is_aimed_at_the_table() -> None:
    env = make("metaworld/drawer-open", render="fast")
    env.reset(seed=0)
    assert env.cameras == (metaworld.CAMERA,)
    pose = env.calibration()[metaworld.CAMERA].camera_to_world
    assert pose[:3, 3] == pytest.approx([0, 0.9, 0.6])
    towards = np.array([0, 0.6, 0]) - pose[:3, 3]
    assert pose[:3, 2] == pytest.approx(towards / np.linalg.norm(towards), abs=1e-6)
    assert pose[2, 1] < 0, "the image is upright: its y axis points down"
    assert env.observation_space["proprio"].shape == (4,), "end effector and gripper only, never the goal"  # type: ignore[index]
    env.close()


@pytest.fixture(scope="module")
def short() -> TaskSpec:
    return TaskSpec("toy/reach", observe=("proprio",), horizon=6)


def _drift(observations: dict[str, np.ndarray], *_: np.ndarray) -> np.ndarray:
    """A policy whose action depends on its observation."""
    return np.tanh(observations["proprio"] * 10)


def test_episodes_do_not_depend_on_the_width(short: TaskSpec) -> None:
    plans = plan_episodes(short, 5, first_seed=100)
    outcomes = []
    for width in (1, 3):
        with BatchRollout(short, plans, width) as rollout:
            results = sorted(rollout.run(_drift), key=lambda result: result.plan.index)
        assert [result.plan for result in results] == plans
        outcomes.append([result.rewards for result in results])
    assert outcomes[0] == outcomes[1]


def test_an_initial_state_that_was_not_planned_is_refused(short: TaskSpec) -> None:
    plans = [replace(plan, initial_state_hash="other") for plan in plan_episodes(short, 1, first_seed=0)]
    with BatchRollout(short, plans, 1) as rollout, pytest.raises(DataError, match="planned was other"):
        list(rollout.run(_drift))
