"""The DeepMind Control Suite and Adroit: the contract, and what each suite's numbers depend on."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from pixio_robot.cli import run
from pixio_robot.cortexbench.protocol import TASKS
from pixio_robot.datasets.dataset import Feature
from pixio_robot.envs import adroit, dmc, registry
from pixio_robot.envs.contract import check_contract
from pixio_robot.envs.registry import TaskSpec, make
from pixio_robot.envs.rollout import BatchRollout, plan_episodes
from pixio_robot.envs.state_actor import shipped_expert
from pixio_robot.envs.task import StepResult, TaskEnv
from pixio_robot.errors import BadInput
from pixio_robot.policies.build import PolicyDesign, build_policy
from pixio_robot.policies.mlp import MlpConfig

BENCHMARKED = [f"dmc/{task}" for task in dmc.CORTEXBENCH] + [f"adroit/{task}" for task in adroit.TASKS]
OTHERS = [task for task in registry.tasks("dmc") if task not in BENCHMARKED]


def needs(task: str) -> None:
    if task not in registry.installed():
        pytest.skip(f"needs the extra of {task.split('/')[0]}")


@pytest.mark.parametrize("task", [*BENCHMARKED, *(pytest.param(task, marks=pytest.mark.slow) for task in OTHERS)])
def test_contract(task: str) -> None:
    needs(task)
    check_contract(task)


@pytest.mark.parametrize("task", sorted({*TASKS, *BENCHMARKED}))
@pytest.mark.filterwarnings("ignore:.*render_modes.*:UserWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:gymnasium.utils.env_checker")  # unbounded observations, by design
def test_gymnasium_and_stable_baselines_accept(task: str) -> None:
    """All 14 tasks of CortexBench, and Adroit's other two."""
    needs(task)
    steps = 2 if task.startswith("trifinger/") else 5
    env = make(task, observe=("rgb", "depth", "proprio", "state"), render="fast", horizon=steps, image_size=48)
    check_env(env, skip_render_check=True)
    env.close()
    if importlib.util.find_spec("stable_baselines3"):
        from stable_baselines3.common.env_checker import check_env as accepted_by_sb3

        env = make(task, observe=("rgb", "proprio", "state"), render="fast", horizon=steps, image_size=48)
        accepted_by_sb3(env)  # it warns of depth maps, which are neither images nor vectors
        env.close()


def test_the_table_has_every_task_of_the_suite() -> None:
    suite = pytest.importorskip("dm_control.suite")
    assert {f"{domain}_{task}" for domain, task in suite.ALL_TASKS if domain not in ("lqr", "quadruped")} == set(
        dmc.TASKS
    )
    assert set(dmc.CORTEXBENCH) <= set(dmc.TASKS) and set(adroit.CORTEXBENCH) <= set(adroit.TASKS)


@pytest.mark.parametrize(
    ("task", "least"), [("finger_spin", 40), ("cheetah_run", 42), ("walker_walk", 60), ("walker_stand", 80)]
)
def test_shipped_experts_reach_their_score(task: str, least: float) -> None:
    """They use the privileged state only; 100 steps, in which a cheetah only gets going, score `least`."""
    needs(f"dmc/{task}")
    env = make(f"dmc/{task}", observe=("state",))
    actor = shipped_expert(f"dmc/{task}")
    assert actor is not None and actor.task == env.name and shipped_expert("dmc/reacher_easy") is None
    rewards = []
    for seed in (10_000, 10_001):
        state = env.reset(seed=seed)[0]["state"]
        for _ in range(100):
            action = env.task.expert_action()
            np.testing.assert_allclose(action, actor.act(state), atol=1e-6)
            observation, reward, *_ = env.step(action)
            state = observation["state"]
            rewards.append(reward)
    env.close()
    assert np.mean(rewards) * 50 > least


def test_control_suite_rewards_are_a_hundred_at_best() -> None:
    needs("dmc/reacher_easy")
    env = make("dmc/reacher_easy", observe=("state",))
    assert env.horizon == 500 and env.cameras == ("fixed",) and "proprio" not in env.observation_space.spaces
    assert env.task.score([2.0] * 500, [False] * 500) == 100
    env.reset(seed=0)
    rewards = [env.step(np.zeros(2, np.float32))[1] for _ in range(20)]
    assert all(0 <= reward <= 2 for reward in rewards)
    env.close()


def test_a_suite_without_proprioception_has_no_proprioception_only_policy() -> None:
    features = {
        "rgb": Feature("image", (64, 64, 3), "uint8"),
        "state": Feature("vector", (6,), "float32"),
        "action": Feature("vector", (2,), "float32"),
    }
    with pytest.raises(BadInput, match="observes nothing"):
        build_policy(PolicyDesign("none", MlpConfig()), features, (), None, 0)
    model = build_policy(PolicyDesign("cnn", MlpConfig()), features, ("rgb",), None, 0)
    assert model.spec.observation.keys() == {"rgb"} and model.spec.vectors == {}


@pytest.mark.parametrize(("task", "needed", "horizon"), [("pen", 20, 100), ("relocate", 25, 200)])
def test_adroit_counts_steps_strictly(task: str, needed: int, horizon: int) -> None:
    needs(f"adroit/{task}")
    env = make(f"adroit/{task}", observe=("proprio",))
    assert env.horizon == horizon
    for count, score in ((needed, 0.0), (needed + 1, 100.0)):
        success = [True] * count + [False] * (horizon - count)
        assert env.task.score([0.0] * horizon, success) == score
    env.close()


def test_a_dropped_pen_ends_the_episode() -> None:
    needs("adroit/pen")
    env = make("adroit/pen", observe=("proprio",))
    env.reset(seed=0)
    env.task.data.qpos[-6] = 0.2  # the pen lies 20 cm lower
    _, _, terminated, truncated, _ = env.step(np.zeros(24, np.float32))
    assert terminated and not truncated
    before = env.task.state()
    assert env.step(np.ones(24, np.float32))[2:4] == (True, False) and np.array_equal(before, env.task.state())
    env.close()


@pytest.mark.parametrize("task", adroit.TASKS)
def test_adroit_proprioception_is_the_hand_only(task: str) -> None:
    """It is the same in every initial state, while objects and goals differ."""
    needs(f"adroit/{task}")
    env = make(f"adroit/{task}", observe=("proprio", "state"))
    first, other = (env.reset(seed=seed)[0] for seed in (1, 2))
    assert np.array_equal(first["proprio"], other["proprio"]) and not np.array_equal(first["state"], other["state"])
    env.close()


def test_planning_has_no_side_effects_and_is_deterministic() -> None:
    needs("dmc/reacher_easy")
    actions = []
    for _ in range(2):
        env = make("dmc/reacher_easy", observe=("state",))
        env.reset(seed=3)
        before = env.task.state()
        actions.append([env.task.expert_action() for _ in range(3)])
        assert np.array_equal(before, env.task.state())
        env.close()
    assert np.array_equal(actions[0], actions[1]) and np.abs(actions[0]).max() <= 1


def test_planned_actions_earn_rewards() -> None:
    needs("dmc/reacher_easy")
    env = make("dmc/reacher_easy", observe=("state",))
    env.reset(seed=1)
    for _ in range(100):
        info = env.step(env.task.expert_action().astype(np.float32))[-1]
    assert info["score"] * env.horizon / 100 > 60
    env.close()


def test_missing_experts_are_refused_with_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs("dmc/dog_run")
    needs("adroit/pen")
    (tmp_path / "policy.pickle").write_bytes(b"no pickle")
    for task, expert, words in (
        ("dmc/dog_run", None, "dmc/dog_run has no expert"),
        ("adroit/pen", None, "expert=hand_dapg/pen-v0.pickle"),
        ("adroit/pen", "nowhere.pickle", "no file nowhere.pickle"),
        ("adroit/pen", str(tmp_path / "policy.pickle"), "policy.pickle"),
        ("toy/reach", str(tmp_path / "policy.pickle"), "takes no expert from a file"),
    ):
        assert run(["collect", f"task={task}", f"expert={expert or 'null'}", "out=demos.hdf5"]) == 1
        assert words in capsys.readouterr().err and not Path("demos.hdf5").exists()


def test_terminated_episodes_stay_terminated(monkeypatch: pytest.MonkeyPatch) -> None:
    request = TaskSpec("toy/reach", observe=("proprio",), horizon=12)
    env = request.make()
    original = type(env.task).step

    def step(self: object, action: np.ndarray) -> StepResult:
        result = original(self, action)  # type: ignore[arg-type]
        return result._replace(terminated=len(env._rewards) == 4)

    monkeypatch.setattr(type(env.task), "step", step)
    env.reset(seed=0)
    ends = [env.step(np.zeros(3, np.float32))[2:4] for _ in range(7)]
    assert ends == [(False, False)] * 4 + [(True, False)] * 3
    assert len(env._rewards) == 5


def test_scores_reach_the_rows_of_an_evaluation() -> None:
    request = TaskSpec("toy/reach", observe=("proprio",), horizon=3)
    plans = plan_episodes(request, 3, first_seed=0)
    with BatchRollout(request, plans, 2) as rollout:
        results = list(rollout.run(lambda seen, *_: np.zeros((len(seen["proprio"]), 3), np.float32)))
    assert {result.score for result in results} == {0.0} and all(len(result.rewards) == 3 for result in results)


def test_a_demonstration_is_what_scores_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pixio_robot.datasets.writer import demo_outcome, write_demo
    from pixio_robot.policies.collect import _run

    env: TaskEnv = replace(TaskSpec("toy/reach", observe=("proprio",)), horizon=25).make()
    for least, good in ((100.0, True), (101.0, False)):
        env.task.demo_min_score = least
        demo = _run(env, env.task.expert_action, seed=0)
        write_demo(tmp_path / "demo.hdf5", demo)
        assert demo.facts.score == 100 and demo_outcome(tmp_path / "demo.hdf5") is good
    env.close()


@pytest.mark.parametrize(
    ("task", "message"),
    [("dmc/walker_wlak", "did you mean 'dmc/walker_walk'"), ("adroit/pan", "did you mean 'adroit/pen'")],
)
def test_unknown_tasks_are_refused_with_a_message(task: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["collect", f"task={task}", "out=x.hdf5"]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "camera"),
    [
        ("walker_stand", "side"),
        ("walker_walk", "side"),
        ("reacher_easy", "fixed"),
        ("cheetah_run", "side"),
        ("finger_spin", "cam0"),
    ],
)
def test_the_control_suite_s_default_is_camera_0(task: str, camera: str) -> None:
    needs(f"dmc/{task}")
    env = make(f"dmc/{task}", observe=("state",))
    assert env.cameras == (camera,) == (env.task.model.camera(0).name,)
    env.close()


@pytest.mark.parametrize("task", ["pen", "relocate"])
def test_adroit_s_goal_is_in_the_image_and_not_in_proprioception(task: str) -> None:
    needs(f"adroit/{task}")
    env = make(f"adroit/{task}", observe=("rgb", "proprio"), render="fast", image_size=128)
    before, _ = env.reset(seed=0)
    import mujoco

    model = env.task.model
    if task == "pen":
        model.body("target").quat = [0.7071, 0.7071, 0.0, 0.0]
    else:
        model.site_pos[env.task._env.target_obj_site_id] += [0.1, 0.0, 0.0]  # [m]
    mujoco.mj_forward(model, env.task.data)
    after = env._observe()
    assert np.array_equal(before["proprio"], after["proprio"])
    changed = np.abs(before["rgb"].astype(int) - after["rgb"]).max(2) > 30
    assert changed.sum() > 20, "the goal is drawn"
    env.close()
