"""The TriFinger tasks of CortexBench: three fingers reach or move a cube in five or ten decisions.

The rules are those of the benchmark (Majumdar et al. 2023, "Where are we in the search for an artificial visual
cortex?"), implemented for the EDU hand of robot_properties_fingers. Lengths are in [m] inside, in [cm] in observations.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..rendering import CameraView
from ..suite import Suite
from ..task import Capabilities, StepResult, Task
from .arena import DECISION_STEPS, HALF, SIM_STEP, Arena, Pose
from .camera import CAMERAS, ArenaView
from .expert import move_waypoints, reach_waypoints

TASKS = ("reach_cube", "move_cube")
GOAL = "goal"  # move_cube's second "camera": the goal's image, constant during an episode
SUCCESS = 0.8  # the score above which a step counts as a success; our own rule; the benchmark only has the score
_START_RADIUS, _GOAL_RADIUS = 0.09, 0.12  # of the discs in which cubes start and end [m]
_CLEARANCE = 0.085  # horizontal distance of the cube's centre from each fingertip at the start [m]
_MIN_DISTANCE = 0.05  # of the commanded goal from the start [m]
_MAX_ERROR = 0.02  # distance from the commanded goal at the end of an expert's episode [m]


class _Rules(NamedTuple):
    """The constants of one task."""

    fingers: int  # that actions move
    stride: float  # displacement of a coordinate in a decision at action 1 [m]
    horizon: int  # decisions


_RULES = {"reach_cube": _Rules(1, 0.05, 5), "move_cube": _Rules(3, 0.08, 10)}


def reach_score(tip: np.ndarray, start_tip: np.ndarray, cube: np.ndarray) -> float:
    """Return the share of the distance to the cube's surface that a fingertip has covered, in [0, 1].

    Args:
        tip: (3,) [m], now.
        start_tip: (3,) [m], at the start.
        cube: (3,) [m], its centre; the surface is taken to be half its side away.
    """
    left, whole = (float(np.linalg.norm(point - cube)) - HALF for point in (tip, start_tip))
    return 1 - min(1.0, max(left, 0.0) / whole)


def move_score(cube: np.ndarray, start: np.ndarray, goal: np.ndarray) -> float:
    """Return the share of the distance to the goal that the cube's centre has covered, in [0, 1]; all (3,) [m]."""
    return max(0.0, 1 - float(np.linalg.norm(cube - goal)) / float(np.linalg.norm(start - goal)))


class TriFinger(Task):
    """Reach for a fixed cube with finger 0, or move a cube with three fingers to where an image shows it.

    An action is the displacement of the fingertips' targets in a decision of 0.4 s; 1 is 5 cm (reach) or 8 cm (move).
    Displacements add up from the initial fingertip positions, also where the fingers do not follow. Proprioception is
    the nine fingertip coordinates [cm]. A step's reward is the change of the benchmark's score in [0, 1], so the return
    is the last score; the episode's score is 100 times that. A success is a score above 0.8.

    The cube starts within 9 cm of the centre and 8.5 cm or more from each fingertip, any face up, at any yaw.
    `move_cube`: at reset the expert runs once, to a position within 12 cm of the centre and 5 cm or more from the
    start. The goal is where it leaves the cube, and its last image is the camera ``goal``. If it misses the position by
    more than 2 cm, another initial state is drawn.

    There is one render quality, TinyRenderer without shadows; the name of the quality has no effect.

    Args:
        task: "reach_cube" or "move_cube".

    Raises:
        MissingExtra: if pybullet or robot_properties_fingers is not installed.
    """

    proprio_dim = 9
    state_dim = 37
    control_hz = 1 / (DECISION_STEPS * SIM_STEP)
    demo_min_score = 100 * SUCCESS
    capabilities = Capabilities(depth=True, calibration=True, privileged_state=True)

    def __init__(self, task: str) -> None:
        self._rules = _RULES[task]
        self._moves = task == "move_cube"
        self.horizon, self.action_dim = self._rules.horizon, 3 * self._rules.fingers
        self.cameras = (*CAMERAS, GOAL) if self._moves else tuple(CAMERAS)
        self._arena = Arena(fixed_cube=not self._moves)
        self._goal_views: list[ArenaView] = []
        self._begin(Pose(np.array([0, 0, HALF]), np.array([0.0, 0.0, 0.0, 1.0])))
        self._goal, self._waypoints = self._start_cube.position, np.tile(self._plan, (self.horizon, 1))

    def reset(self, rng: np.random.Generator) -> None:
        cube = self._draw_start(rng)
        while self._moves and not self._set_goal(rng, cube):
            cube = self._draw_start(rng)
        self._begin(cube)
        if not self._moves:
            self._goal = cube.position
            self._waypoints = reach_waypoints(self._plan, cube, self.horizon, self._rules.stride)

    def _set_goal(self, rng: np.random.Generator, cube: Pose) -> bool:
        """Run the expert from an initial state and set the goal to its result; return whether it met its command."""
        self._begin(cube)
        command = self._draw_goal(rng, cube.position)
        self._waypoints = move_waypoints(self._plan, cube, command, self.horizon, self._rules.stride)
        for _ in range(self.horizon):
            self._advance(self.expert_action().astype(np.float32))
        self._goal = self._arena.cube().position
        for view in self._goal_views:
            view.keep()
        return bool(np.linalg.norm(self._goal - command) <= _MAX_ERROR)

    def _begin(self, cube: Pose) -> None:
        """Put everything in its initial state."""
        self._arena.build(cube)
        self._start_cube, self._plan = cube, self._arena.tips()
        self._start_tips, self._decision, self._reached = self._plan, 0, 0.0

    def _draw_start(self, rng: np.random.Generator) -> Pose:
        tips = self._start_tips.reshape(3, 3)
        while True:
            position = _in_disc(rng, _START_RADIUS)
            if np.linalg.norm((position - tips)[:, :2], axis=1).min() >= _CLEARANCE:
                return Pose(position, _any_face_up(rng))

    def _draw_goal(self, rng: np.random.Generator, start: np.ndarray) -> np.ndarray:
        while True:
            goal = _in_disc(rng, _GOAL_RADIUS)
            if np.linalg.norm(goal - start) >= _MIN_DISTANCE:
                return goal

    def step(self, action: np.ndarray) -> StepResult:
        self._advance(action)
        before, self._reached = self._reached, self._share()
        return StepResult(self._reached - before, self._reached > SUCCESS)

    def _advance(self, action: np.ndarray) -> None:
        displacement = np.zeros(9)
        displacement[: self.action_dim] = np.asarray(action, np.float64) * self._rules.stride
        self._arena.move_tips(self._plan, displacement)
        self._plan = self._plan + displacement
        self._decision += 1

    def score(self, rewards: Sequence[float], success: Sequence[bool]) -> float:
        return 100 * sum(rewards)

    def _share(self) -> float:
        """Return the benchmark's scaled success now, in [0, 1]."""
        if self._moves:
            return move_score(self._arena.cube().position, self._start_cube.position, self._goal)
        return reach_score(self._arena.tips()[:3], self._start_tips[:3], self._goal)

    def proprio(self) -> np.ndarray:
        return 100 * self._arena.tips()

    def privileged_state(self) -> np.ndarray:
        cube, angles = self._arena.cube(), self._arena.joints()[0]
        lengths = (self._arena.tips(), self._plan, cube.position, self._goal)
        return np.concatenate([100 * np.concatenate(lengths), cube.quaternion, angles])  # [cm], -, [rad]

    def expert_action(self) -> np.ndarray:
        way = self._waypoints[min(self._decision, self.horizon - 1)] - self._plan
        return np.clip(way[: self.action_dim] / self._rules.stride, -1, 1)

    def state(self) -> np.ndarray:
        """Return joints and their velocities, the cube's pose and velocity, the fingertips' targets and the goal."""
        arena = self._arena
        return np.concatenate([*arena.joints(), *arena.cube(), arena.cube_velocity(), self._plan, self._goal])

    def view(self, camera: str, size: int, render: str) -> CameraView:
        if camera != GOAL:
            return ArenaView(self._arena, camera, size)
        self._goal_views.append(ArenaView(self._arena, "camera60", size, live=False))
        return self._goal_views[-1]

    def close(self) -> None:
        self._arena.close()


def _in_disc(rng: np.random.Generator, radius: float) -> np.ndarray:
    """Return a position (3,) of the centre of a cube on the table, uniform in a disc around the arena's centre."""
    distance, angle = radius * math.sqrt(rng.random()), rng.uniform(0, 2 * math.pi)
    return np.array([distance * math.cos(angle), distance * math.sin(angle), HALF])


def _any_face_up(rng: np.random.Generator) -> np.ndarray:
    """Return an orientation (4,): one of six faces up, then any yaw."""
    turns = [(0, 0.0), (0, 0.5), (0, 1.0), (0, 1.5), (1, 0.5), (1, 1.5)]  # about x or y, by shares of pi
    axis, share = turns[rng.integers(6)]
    x, y = (math.sin(share * math.pi / 2) if axis == index else 0.0 for index in (0, 1))
    w, yaw = math.cos(share * math.pi / 2), rng.uniform(0, 2 * math.pi)
    s, c = math.sin(yaw / 2), math.cos(yaw / 2)
    return np.array([c * x - s * y, c * y + s * x, s * w, c * w])


SUITE = Suite("trifinger", "robot_properties_fingers", TASKS, TriFinger)
