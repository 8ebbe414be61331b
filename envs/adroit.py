"""Adroit (Rajeswaran et al. 2018, arXiv 1709.10087) as in CortexBench: one camera, joints, counted success.

Two changes of gymnasium-robotics are reverted: the pen's episode has 100 steps and ends when the pen drops.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import DataError, MissingExtra, UnknownName
from .dapg import DapgPolicy, load_dapg
from .mujoco_task import MujocoTask
from .suite import Suite
from .task import StepResult

CORTEXBENCH = ("pen", "relocate")
TASKS = ("pen", "relocate", "door", "hammer")
CAMERA = "vil_camera"
_PEN_DROPPED = 0.075  # height of the pen's centre [m]


class _Facts(NamedTuple):
    """The constants of one task."""

    env: str  # class in gymnasium_robotics.envs.adroit_hand
    horizon: int
    joints: int  # of the hand, the first entries of the observation: its proprioception
    needed: int  # an episode succeeds if more of its steps than this do


_TASKS = {
    "pen": _Facts("AdroitHandPenEnv", 100, 24, 20),
    "relocate": _Facts("AdroitHandRelocateEnv", 200, 30, 25),
    "door": _Facts("AdroitHandDoorEnv", 200, 27, 25),
    "hammer": _Facts("AdroitHandHammerEnv", 200, 26, 25),
}


class Adroit(MujocoTask):
    """A dexterous hand. Proprioception is its joint positions [rad, m].

    An episode's score is 100 when more than 20 (pen) or 25 (others) of its steps meet the goal, else 0. CortexBench has
    pen and relocate only; door and hammer follow the same rule here.

    Args:
        task: pen, relocate, door or hammer.

    Raises:
        MissingExtra: if gymnasium-robotics is not installed.
    """

    def __init__(self, task: str) -> None:
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # it prints a notice about its rewards
                from gymnasium_robotics.envs import adroit_hand
        except ImportError as error:
            raise MissingExtra(f"adroit/{task}", "adroit") from error
        self._facts = _TASKS[task]
        self._env: Any = getattr(adroit_hand, self._facts.env)()
        self.model, self.data = self._env.model, self._env.data
        self.horizon, self.proprio_dim = self._facts.horizon, self._facts.joints
        self.action_dim = int(self._env.action_space.shape[0])
        self.state_dim = int(self._env.observation_space.shape[0])
        self.control_hz = 1.0 / self._env.dt
        names = [self.model.camera(index).name for index in range(self.model.ncam)]
        self.cameras = (CAMERA, *(name for name in names if name != CAMERA))
        self._drops = task == "pen"
        self._expert: DapgPolicy | None = None

    def reset(self, rng: np.random.Generator) -> None:
        self._env.reset(seed=int(rng.integers(2**31)))

    def step(self, action: np.ndarray) -> StepResult:
        _, reward, _, _, info = self._env.step(action)
        dropped = self._drops and self.data.xpos[self._env.obj_body_id][2] < _PEN_DROPPED
        return StepResult(float(reward), bool(info["success"]), terminated=bool(dropped))

    def proprio(self) -> np.ndarray:
        return self.privileged_state()[: self.proprio_dim]

    def privileged_state(self) -> np.ndarray:
        return self._env._get_obs()

    def use_expert(self, path: str) -> None:
        """Load a published DAPG policy, e.g. ``pen-v0.pickle`` of github.com/aravindr93/hand_dapg."""
        policy = load_dapg(path)
        if (policy.observation_dim, policy.action_dim) != (self.state_dim, self.action_dim):
            raise DataError(
                f"{path} is a policy of {policy.observation_dim} numbers and {policy.action_dim} actions; this task "
                f"has {self.state_dim} and {self.action_dim}"
            )
        self._expert = policy

    def expert_action(self) -> np.ndarray:
        if self._expert is None:
            raise UnknownName(
                "Adroit's experts are files; record demonstrations with: pixio-robot collect task=adroit/pen "
                "expert=hand_dapg/pen-v0.pickle (a published DAPG policy)"
            )
        return np.clip(self._expert.act(self.privileged_state()), -1, 1)

    def score(self, rewards: Sequence[float], success: Sequence[bool]) -> float:
        return 100.0 * (sum(success) > self._facts.needed)

    def initial_state_bytes(self) -> bytes:
        moved = self._env.get_env_state().values()  # objects and targets are moved in the model too
        return super().initial_state_bytes() + np.concatenate([np.ravel(each) for each in moved]).tobytes()


SUITE = Suite("adroit", "gymnasium_robotics", TASKS, Adroit)
