"""The TriFinger's arena in PyBullet: hand, table, bowl and cube, and the controller that moves the fingertips.

Joints (9,) and fingertip coordinates (9,) are in the order of the fingers 0, 120 and 240. Quaternions are x y z w.
"""

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import MissingExtra

SIM_STEP = 0.004  # [s]
DECISION_STEPS = 100  # simulation steps of a policy's decision: 0.4 s
HALF = 0.0325  # half the cube's side [m]
START_JOINTS = np.array([-0.08, 1.15, -1.5] * 3)  # [rad]
_CUBE_MASS = 0.094  # [kg]
_FACE_COLOURS = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1))  # x, -x, y, -y, z, -z
_GREY = (0.13, 0.13, 0.13, 1.0)  # table and bowl
_STIFFNESS = 300.0  # [N/m]
_DAMPING = 5.0  # [N s/m]
_REACH = 0.01  # longest position error that pulls a finger [m]
_COMMANDED = 0.397  # largest torque that may be commanded [N m]
_BOARD = 0.396  # largest that the motor boards give [N m]
_BOARD_DAMPING = np.array([0.08, 0.08, 0.04] * 3)  # [N m s/rad]


class Pose(NamedTuple):
    """The pose of a body."""

    position: np.ndarray  # (3,) [m]
    quaternion: np.ndarray  # (4,)


def impedance_torque(
    jacobian: np.ndarray, error: np.ndarray, velocity_error: np.ndarray, gravity: np.ndarray
) -> np.ndarray:
    """Return the torques (9,) [N m] of spring-dampers between the fingertips and their targets.

    Args:
        jacobian: (9, 9), of the fingertips [m/rad].
        error: (9,), target minus fingertips [m]; limited to 1 cm for each finger.
        velocity_error: (9,), target minus fingertips [m/s].
        gravity: (9,), torques that carry the fingers' weight [N m].
    """
    length = np.linalg.norm(error.reshape(3, 3), axis=1, keepdims=True)
    held = error.reshape(3, 3) * (_REACH / np.maximum(length, _REACH))
    return jacobian.T @ (_STIFFNESS * held.ravel() + _DAMPING * velocity_error) + gravity


def motor_torque(commanded: np.ndarray, joint_velocity: np.ndarray) -> np.ndarray:
    """Return the torques (9,) [N m] that the motors give: limited, damped by the boards, and limited again."""
    given = np.clip(np.clip(commanded, -_COMMANDED, _COMMANDED), -_BOARD, _BOARD)
    return np.clip(given - _BOARD_DAMPING * joint_velocity, -_BOARD, _BOARD)


class Arena:
    """A separate PyBullet client with the EDU hand, a 65 mm cube, the table and the bowl.

    Contacts and frictions are PyBullet's defaults, the cube's mass is ours. `build` creates the whole scene again,
    because bodies that are only moved back behave slightly differently, and a seed must repeat bit by bit.

    Args:
        fixed_cube: the cube cannot be moved.

    Raises:
        MissingExtra: if pybullet or robot_properties_fingers is not installed.
    """

    def __init__(self, fixed_cube: bool) -> None:
        package = importlib.util.find_spec("robot_properties_fingers")  # importing it would load pinocchio
        try:
            import pybullet
        except ImportError as error:
            raise MissingExtra("the TriFinger", "trifinger") from error
        if package is None or package.origin is None:
            raise MissingExtra("the TriFinger", "trifinger")
        self.bullet = _Client(pybullet)
        self._home = Path(package.origin).parent
        self.urdf = self._home / "urdf" / "edu" / "trifingeredu.urdf"
        self._mass = 0.0 if fixed_cube else _CUBE_MASS
        self._hand = self._cube = -1
        self.version = 0  # changes whenever an image may change
        self._joints: list[int] = []
        self._tips: list[int] = []

    def build(self, cube: Pose) -> None:
        """Build the scene: the fingers in their initial position, the cube at its pose, everything at rest."""
        bullet = self.bullet
        self.version += 1
        bullet.resetSimulation()
        bullet.setPhysicsEngineParameter(deterministicOverlappingPairs=1)
        bullet.setTimeStep(SIM_STEP)
        bullet.setGravity(0, 0, -9.81)
        floor = bullet.createCollisionShape(bullet.GEOM_PLANE)  # the table's mesh would hold the cube 1 mm above it
        bullet.createMultiBody(0, floor, self._mesh("trifinger_table_without_border"))
        bowl = bullet.createCollisionShape(
            bullet.GEOM_MESH, fileName=self._mesh_file("high_table_boundary"), flags=bullet.GEOM_FORCE_CONCAVE_TRIMESH
        )
        bowl = bullet.createMultiBody(0, bowl, self._mesh("high_table_boundary"))
        self._load_hand()
        self._spare_collisions(bowl)
        box = bullet.createCollisionShape(bullet.GEOM_BOX, halfExtents=[HALF] * 3)
        position, quaternion = (values.tolist() for values in cube)
        self._cube = bullet.createMultiBody(self._mass, box, self._faces(), position, quaternion)

    def _load_hand(self) -> None:
        bullet = self.bullet
        flags = bullet.URDF_USE_INERTIA_FROM_FILE | bullet.URDF_USE_SELF_COLLISION
        self._hand = bullet.loadURDF(str(self.urdf), useFixedBase=True, flags=flags)
        infos = [bullet.getJointInfo(self._hand, index) for index in range(bullet.getNumJoints(self._hand))]
        self._joints = [info[0] for info in infos if info[2] == bullet.JOINT_REVOLUTE]
        self._tips = [info[0] for info in infos if info[12].startswith(b"finger_tip_link")]
        for joint, angle in zip(self._joints, START_JOINTS, strict=True):
            bullet.resetJointState(self._hand, joint, angle)
        bullet.setJointMotorControlArray(  # PyBullet's own motors would brake
            self._hand, self._joints, bullet.VELOCITY_CONTROL, forces=[0.0] * 9
        )

    def _spare_collisions(self, bowl: int) -> None:
        """Disable collisions of fingers with their mounts, and of the bowl with links that are too high to reach it.

        Convex hulls of mounts and fingers overlap where the parts do not, and these checks are most of a step's cost.
        """
        for link in range(self.bullet.getNumJoints(self._hand)):
            name = self.bullet.getJointInfo(self._hand, link)[12]
            if not name.startswith(b"finger_lower_link"):
                self.bullet.setCollisionFilterPair(self._hand, bowl, link, -1, 0)
            if name.startswith(b"finger_base_link"):
                for other in set(range(self.bullet.getNumJoints(self._hand))) - {link}:
                    self.bullet.setCollisionFilterPair(self._hand, self._hand, link, other, 0)

    def _mesh_file(self, name: str) -> str:
        return str(self._home / "meshes" / f"{name}.stl")

    def _mesh(self, name: str) -> int:
        return self.bullet.createVisualShape(self.bullet.GEOM_MESH, fileName=self._mesh_file(name), rgbaColor=_GREY)

    def _faces(self) -> int:
        """Return the cube's visual shape: six thin plates, because a shape has one colour."""
        thin = 1e-4
        normals = np.repeat(np.eye(3), 2, axis=0) * np.array([[1.0], [-1.0]] * 3)
        return self.bullet.createVisualShapeArray(
            [self.bullet.GEOM_BOX] * 6,
            halfExtents=(HALF - (HALF - thin) * np.abs(normals)).tolist(),
            visualFramePositions=((HALF - thin) * normals).tolist(),
            rgbaColors=[[*colour, 1] for colour in _FACE_COLOURS],
        )

    def joints(self) -> tuple[np.ndarray, np.ndarray]:
        """Return angles (9,) [rad] and velocities (9,) [rad/s]."""
        states = self.bullet.getJointStates(self._hand, self._joints)
        return np.array([state[0] for state in states]), np.array([state[1] for state in states])

    def tips(self) -> np.ndarray:
        """Return the fingertips' coordinates, (9,) [m]."""
        states = self.bullet.getLinkStates(self._hand, self._tips, computeForwardKinematics=True)
        return np.array([state[4] for state in states]).ravel()

    def cube(self) -> Pose:
        """Return the cube's pose."""
        position, quaternion = self.bullet.getBasePositionAndOrientation(self._cube)
        return Pose(np.array(position), np.array(quaternion))

    def cube_velocity(self) -> np.ndarray:
        """Return the cube's linear [m/s] and angular [rad/s] velocity, (6,)."""
        return np.concatenate(self.bullet.getBaseVelocity(self._cube))

    def jacobian(self, angles: np.ndarray) -> np.ndarray:
        """Return the fingertips' Jacobian, (9, 9) [m/rad]."""
        still, at = [0.0] * 9, angles.tolist()
        rows = [self.bullet.calculateJacobian(self._hand, tip, [0.0] * 3, at, still, still)[0] for tip in self._tips]
        return np.concatenate([np.array(row) for row in rows])

    def gravity(self, angles: np.ndarray) -> np.ndarray:
        """Return the torques that carry the fingers' weight, (9,) [N m]."""
        still = [0.0] * 9
        return np.array(self.bullet.calculateInverseDynamics(self._hand, angles.tolist(), still, still))

    def move_tips(self, begin: np.ndarray, displacement: np.ndarray) -> None:
        """Simulate one decision, in which the fingertips' targets move in straight lines.

        Args:
            begin: (9,), where the targets are [m].
            displacement: (9,), how far they move [m].
        """
        self.version += 1
        velocity = displacement / (DECISION_STEPS * SIM_STEP)
        for step in range(1, DECISION_STEPS + 1):
            angles, speeds = self.joints()
            jacobian = self.jacobian(angles)
            error = begin + displacement * (step / DECISION_STEPS) - self.tips()
            commanded = impedance_torque(jacobian, error, velocity - jacobian @ speeds, self.gravity(angles))
            torque = motor_torque(commanded, speeds).tolist()
            self.bullet.setJointMotorControlArray(self._hand, self._joints, self.bullet.TORQUE_CONTROL, forces=torque)
            self.bullet.stepSimulation()

    def close(self) -> None:
        """Release the client; a second call does nothing."""
        self.bullet.close()


class _Client:
    """PyBullet's functions and constants for one client, which is disconnected with this object at the latest."""

    def __init__(self, pybullet: Any) -> None:
        self._pybullet, self.number = pybullet, pybullet.connect(pybullet.DIRECT)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._pybullet, name)
        value = partial(found, physicsClientId=self.number) if callable(found) else found
        setattr(self, name, value)  # later look-ups do not come here
        return value

    def close(self) -> None:
        pybullet = self._pybullet
        if self.number >= 0:
            pybullet.disconnect(self.number)
            vars(self).clear()  # its number may become another client's
            self._pybullet, self.number = pybullet, -1

    def __del__(self) -> None:
        self.close()
