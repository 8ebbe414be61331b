"""MetaWorld v3 as in CortexBench: one camera, end-effector position and gripper opening, the goal only in the image.

The package is corrected in three points: `reset(seed=)` seeds, initial states vary, and CortexBench's camera exists.
"""

import warnings
from typing import Any

import numpy as np

from ..errors import MissingExtra
from .action_spec import ActionSpec
from .mujoco_task import MujocoTask
from .suite import Suite
from .task import StepResult

CORTEXBENCH = ("assembly", "bin-picking", "button-press-topdown", "drawer-open", "hammer")
TASKS = tuple(
    """
    assembly basketball bin-picking box-close button-press button-press-topdown button-press-topdown-wall
    button-press-wall coffee-button coffee-pull coffee-push dial-turn disassemble door-close door-lock door-open
    door-unlock drawer-close drawer-open faucet-close faucet-open hammer hand-insert handle-press
    handle-press-side handle-pull handle-pull-side lever-pull peg-insert-side peg-unplug-side pick-out-of-hole
    pick-place pick-place-wall plate-slide plate-slide-back plate-slide-back-side plate-slide-side push
    push-back push-wall reach reach-wall shelf-place soccer stick-pull stick-push sweep sweep-into window-close
    window-open
    """.split()  # noqa: SIM905
)
CAMERA = "top_cap2"  # CortexBench's camera; no released metaworld has it, so another one is moved
_SPARE = "corner4"


class MetaWorld(MujocoTask):
    """One of the 50 MetaWorld tasks. Proprioception is the end effector's x, y, z [m] and gripper opening in [0, 1].

    Args:
        task: name without version, e.g. "drawer-open".

    Raises:
        MissingExtra: if metaworld is not installed.
    """

    horizon = 500  # the package raises on step 501
    action_dim = 4
    proprio_dim = 4
    state_dim = 39
    control_hz = 80.0

    def __init__(self, task: str) -> None:
        try:
            import mujoco
            from metaworld.env_dict import ALL_V3_ENVIRONMENTS
            from metaworld.policies import ENV_POLICY_MAP
        except ImportError as error:
            raise MissingExtra(f"metaworld/{task}", "metaworld") from error
        self._mujoco: Any = mujoco
        self._env: Any = ALL_V3_ENVIRONMENTS[f"{task}-v3"]()
        self._env._freeze_rand_vec = False  # if True, all episodes have the same initial state: train = test
        self._env.seeded_rand_vec = True  # draw initial states from the seeded generator, not numpy's global one
        self._env._set_task_called = True
        self._env._partially_observable = False  # scripted experts read the goal; policies never see this vector
        vars(self._env).pop("sawyer_observation_space", None)  # cached with the goal hidden, it would clip it to zero
        policy: Any = ENV_POLICY_MAP[f"{task}-v3"]
        self._scripted = policy()
        self.model, self.data = self._env.model, self._env.data
        self.cameras = (CAMERA, *(self.model.camera(i).name for i in range(self.model.ncam)))
        self.cameras = tuple(name for name in self.cameras if name != _SPARE)
        self.control_hz = 1.0 / self._env.dt
        self._place_camera()
        self._vector = np.zeros(39)

    def _place_camera(self) -> None:
        spare = self.model.camera(_SPARE).id
        self.model.cam_mode[spare] = self._mujoco.mjtCamLight.mjCAMLIGHT_TARGETBODY
        self.model.cam_targetbodyid[spare] = self.model.body("tablelink").id
        self.model.cam_bodyid[spare] = 0
        self.model.cam_pos[spare] = (0.0, 0.9, 0.6)  # [m]
        self.model.cam_fovy[spare] = 45.0  # [deg]

    def camera_in_model(self, camera: str) -> str:
        return _SPARE if camera == CAMERA else camera

    def reset(self, rng: np.random.Generator) -> None:
        self._env.seed(int(rng.integers(2**31)))  # the package ignores reset(seed=)
        self._vector, _ = self._env.reset()
        self._mujoco.mj_forward(self.model, self.data)
        for site in self._env._target_site_config:  # the package moves the goal's marker to its place only at step 1
            self._env._set_pos_site(*site)

    def step(self, action: np.ndarray) -> StepResult:
        self._vector, reward, _, _, info = self._env.step(action)
        return StepResult(float(reward), bool(info["success"]))

    def proprio(self) -> np.ndarray:
        return self._vector[:4]

    def privileged_state(self) -> np.ndarray:
        return self._vector  # end effector, gripper, poses of two objects, the same of the previous step, and the goal

    def action_spec(self) -> ActionSpec:
        """Return displacements of the end effector's set point and the force of the gripper's fingers."""
        low, high = np.append(self._env.mocap_low, -1.0), np.append(self._env.mocap_high, 1.0)
        stride = float(self._env.action_scale)
        return ActionSpec(
            ("x", "y", "z", "gripper"),
            ("m", "m", "m", "1"),
            np.array([stride, stride, stride, 1.0]),
            np.zeros(4),
            np.array([True, True, True, False]),
            low,
            high,
            np.array([1.25 * stride * self.control_hz] * 3 + [np.inf]),
            (0.0, 0.0, 0.0),
        )

    def set_point(self) -> np.ndarray:
        return np.append(self.data.mocap_pos[0], 0.0)

    def measured(self) -> np.ndarray:
        return np.append(self._vector[:3], np.nan)

    def expert_action(self) -> np.ndarray:
        with warnings.catch_warnings():  # the scripted policies warn about actions beyond 1
            warnings.filterwarnings("ignore", message="Constant")
            return np.clip(self._scripted.get_action(self._vector), -1, 1)  # raw actions reach 12

    def initial_state_bytes(self) -> bytes:
        return super().initial_state_bytes() + np.asarray(self._env._last_rand_vec, np.float64).tobytes()


SUITE = Suite("metaworld", "metaworld", TASKS, MetaWorld)
