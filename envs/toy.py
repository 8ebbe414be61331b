"""A small suite that needs MuJoCo only: move an end effector to a ball. It is the example of a suite."""

from typing import Any

import numpy as np

from .action_spec import ActionSpec
from .mujoco_task import MujocoTask
from .suite import Suite
from .task import StepResult

_SCENE = """
<mujoco model="reach">
  <option timestep="0.01" gravity="0 0 0"/>
  <visual><global offwidth="640" offheight="640"/></visual>
  <asset>
    <texture name="floor" type="2d" builtin="checker" rgb1=".7 .7 .65" rgb2=".55 .55 .5" width="128" height="128"/>
    <material name="floor" texture="floor" texrepeat="6 6"/>
  </asset>
  <worldbody>
    <light pos="0 -.3 1.2" dir="0 .2 -1"/>
    <camera name="front" pos="0 -.75 .55" xyaxes="1 0 0 0 .35 .75" fovy="45"/>
    <camera name="top" pos="0 0 1" xyaxes="1 0 0 0 1 0" fovy="45"/>
    <geom name="floor" type="plane" size=".6 .6 .1" material="floor"/>
    <body name="hand" pos="0 0 .2">
      <joint name="x" type="slide" axis="1 0 0" range="-.25 .25" damping="5"/>
      <joint name="y" type="slide" axis="0 1 0" range="-.25 .25" damping="5"/>
      <joint name="z" type="slide" axis="0 0 1" range="-.15 .15" damping="5"/>
      <geom name="hand" type="box" size=".025 .025 .025" rgba=".15 .35 .85 1" mass=".03" contype="0" conaffinity="0"/>
    </body>
    <body name="ball" mocap="true">
      <geom name="ball" type="sphere" size=".03" rgba=".9 .15 .1 1" contype="0" conaffinity="0"/>
    </body>
  </worldbody>
  <actuator>
    <position joint="x" kp="200"/> <position joint="y" kp="200"/> <position joint="z" kp="200"/>
  </actuator>
</mujoco>
"""
_CENTRE = np.array([0.0, 0.0, 0.2])  # of the workspace [m]
_REACH = np.array([0.22, 0.22, 0.12])  # half its size [m]
_STRIDE = 0.02  # farthest the set point moves in a step [m]
_NEAR = 0.05  # success distance [m]: hand (half a side 2.5 cm) and ball (radius 3 cm) touch


class Reach(MujocoTask):
    """Move the end effector to the ball until they touch. Proprioception is its position [m]; images show the ball.

    The end effector is light and its controller stiff: after a step it is at its target, so its position is its whole
    state. A step's reward is how much the step reduced the distance, in units of 2 cm: a potential-based reward (Ng et
    al. 1999), which depends on what a step did and not on where it was done.
    """

    horizon = 50
    action_dim = 3
    proprio_dim = 3
    state_dim = 6
    control_hz = 20.0
    cameras = ("front", "top")

    def __init__(self) -> None:
        import mujoco

        self._mujoco: Any = mujoco
        self.model = mujoco.MjModel.from_xml_string(_SCENE)
        self.data = mujoco.MjData(self.model)

    def reset(self, rng: np.random.Generator) -> None:
        self._mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = rng.uniform(-0.5, 0.5, 3) * _REACH
        self.data.ctrl[:] = self.data.qpos
        self.data.mocap_pos[0] = _CENTRE + rng.uniform(-0.9, 0.9, 3) * _REACH
        self._mujoco.mj_forward(self.model, self.data)

    def step(self, action: np.ndarray) -> StepResult:
        before = self._distance()
        self.data.ctrl[:] = np.clip(self.data.ctrl + action * _STRIDE, -_REACH, _REACH)
        self._mujoco.mj_step(self.model, self.data, nstep=5)
        self._mujoco.mj_forward(self.model, self.data)
        distance = self._distance()
        return StepResult((before - distance) / _STRIDE, distance < _NEAR)

    def proprio(self) -> np.ndarray:
        return self._hand()

    def privileged_state(self) -> np.ndarray:
        return np.concatenate([self._hand(), self.data.mocap_pos[0]])

    def action_spec(self) -> ActionSpec:
        speed = 1.25 * _STRIDE * self.control_hz  # 25 % more than a full action needs
        return ActionSpec.of(("x", "y", "z"), "m", _STRIDE, -_REACH, _REACH, speed, tuple(_CENTRE))

    def set_point(self) -> np.ndarray:
        return self.data.ctrl.copy()

    def measured(self) -> np.ndarray:
        return self.data.qpos.copy()

    def expert_action(self) -> np.ndarray:
        set_point = _CENTRE + self.data.ctrl
        return np.clip((self.data.mocap_pos[0] - set_point) / _STRIDE, -1, 1)

    def _distance(self) -> float:
        return float(np.linalg.norm(self.data.mocap_pos[0] - self._hand()))

    def _hand(self) -> np.ndarray:
        return self.data.body("hand").xpos.copy()


SUITE = Suite("toy", "mujoco", ("reach",), lambda _: Reach())
