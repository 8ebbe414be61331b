"""The DeepMind Control Suite (Tassa et al. 2018, arXiv 1801.00690): rewards, no success, no proprioception."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import MissingExtra, UnknownName
from .mpc import ReacherExpert
from .mujoco_task import MujocoTask
from .state_actor import StateActor, shipped_expert
from .suite import Suite
from .task import StepResult

CORTEXBENCH = ("walker_stand", "walker_walk", "reacher_easy", "cheetah_run", "finger_spin")
TASKS = tuple(
    """
    acrobot_swingup acrobot_swingup_sparse ball_in_cup_catch cartpole_balance cartpole_balance_sparse
    cartpole_swingup cartpole_swingup_sparse cartpole_two_poles cartpole_three_poles cheetah_run dog_stand dog_walk
    dog_trot dog_run dog_fetch finger_spin finger_turn_easy finger_turn_hard fish_upright fish_swim hopper_stand
    hopper_hop humanoid_stand humanoid_walk humanoid_run humanoid_run_pure_state humanoid_CMU_stand
    humanoid_CMU_walk humanoid_CMU_run manipulator_bring_ball manipulator_bring_peg manipulator_insert_ball
    manipulator_insert_peg pendulum_swingup point_mass_easy point_mass_hard reacher_easy reacher_hard stacker_stack_2
    stacker_stack_4 swimmer_swimmer6 swimmer_swimmer15 walker_stand walker_walk walker_run
    """.split()  # noqa: SIM905
)  # without lqr, whose solution is known, and quadruped, which fails with NumPy 2.4 (it calls np.in1d)
_DOMAINS = ("ball_in_cup", "humanoid_CMU", "point_mass")  # those with an underscore in their own name
_REPEAT = 2  # control steps that take the same action


class DMControl(MujocoTask):
    """One task of the suite; camera 0 is the default. An action is repeated for two of the suite's 1000 control steps.

    Its score is the return divided by 10, so the maximum is 100.

    Args:
        task: domain and task, e.g. "walker_walk".

    Raises:
        MissingExtra: if dm_control is not installed.
    """

    proprio_dim = 0
    max_median_depth, max_background = 20.0, 0.875  # some cameras are far away, in front of an empty sky
    demo_min_score = 0.0  # every episode of an expert counts

    def __init__(self, task: str) -> None:
        try:
            import mujoco
            from dm_control import suite
        except ImportError as error:
            raise MissingExtra(f"dmc/{task}", "dmc") from error
        domain = next((name for name in _DOMAINS if task.startswith(name)), task.split("_")[0])
        self._env: Any = suite.load(domain, task[len(domain) + 1 :])
        self.horizon = round(self._env._step_limit) // _REPEAT
        physics = self._env.physics
        self.model, self.data = physics.model.ptr, physics.data.ptr
        self.cameras = tuple(
            mujoco.mj_id2name(self.model, mujoco.mjtObj.mjOBJ_CAMERA, index) or str(index)
            for index in range(self.model.ncam)
        )
        spec = self._env.action_spec()
        self._middle, self._half = (spec.maximum + spec.minimum) / 2, (spec.maximum - spec.minimum) / 2
        self.action_dim = int(spec.shape[0])
        self.control_hz = 1.0 / (self._env.control_timestep() * _REPEAT)
        self._env.reset()
        self.state_dim = len(self.privileged_state())
        self._name = task
        self._trained: StateActor | None = None
        self._searched = False  # for a trained expert
        self._planner: ReacherExpert | None = None  # made at its first use
        self._planner_seed, self._substeps = 0, round(1 / (self.control_hz * physics.timestep()))

    def reset(self, rng: np.random.Generator) -> None:
        self._planner, self._planner_seed = None, int(rng.integers(2**31))
        # the suite itself takes a seed only at load time
        self._env.task._random = np.random.RandomState(int(rng.integers(2**31)))
        self._env.reset()

    def step(self, action: np.ndarray) -> StepResult:
        command, reward = self._middle + self._half * action, 0.0
        for _ in range(_REPEAT):
            reward += float(self._env.step(command).reward or 0.0)
        return StepResult(reward, False)

    def proprio(self) -> np.ndarray:
        return np.zeros(0, np.float32)

    def privileged_state(self) -> np.ndarray:
        values = self._env.task.get_observation(self._env.physics).values()
        return np.concatenate([np.ravel(each) for each in values])

    def expert_action(self) -> np.ndarray:
        """Return the action of the trained expert, or of the planner for reacher_easy."""
        if not self._searched:
            self._trained, self._searched = shipped_expert(f"dmc/{self._name}"), True
        if self._trained is not None:
            return self._trained.act(self.privileged_state())
        if self._name != "reacher_easy":
            raise UnknownName(f"dmc/{self._name} has no expert; there are experts for: {', '.join(CORTEXBENCH)}")
        if self._planner is None:
            self._planner = ReacherExpert(self.model, self._substeps, self._planner_seed)
        return self._planner.action(self.data)

    def score(self, rewards: Sequence[float], success: Sequence[bool]) -> float:
        return sum(rewards) / 10


SUITE = Suite("dmc", "dm_control", TASKS, DMControl)
