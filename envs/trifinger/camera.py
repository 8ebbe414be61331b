"""Images of the TriFinger's arena, drawn on the CPU by PyBullet's TinyRenderer without shadows."""

import math

import numpy as np

from ...calibration import Calibration
from .arena import Arena, Pose

# position [m] and orientation (x y z w, axes as in OpenCV), from trifinger_simulation (BSD-3)
CAMERAS = {
    "camera60": Pose(np.array([0.2496, 0.2458, 0.4190]), np.array([0.3760, 0.8690, -0.2918, -0.1354])),
    "camera180": Pose(np.array([0.0047, -0.2834, 0.4558]), np.array([0.9655, -0.0098, -0.0065, -0.2603])),
    "camera300": Pose(np.array([-0.2470, 0.2513, 0.3943]), np.array([-0.3633, 0.8686, -0.3141, 0.1220])),
}
_FOV = 52.0  # [deg]
_NEAR, _FAR = 0.001, 100.0  # [m]


class ArenaView:
    """One camera of the arena.

    Args:
        arena: the scene.
        camera: a name in `CAMERAS`.
        size: side of the square image [px].
        live: render the present state; otherwise the state of the last call of `keep`.
    """

    def __init__(self, arena: Arena, camera: str, size: int, live: bool = True) -> None:
        self._arena, self._size, self._live = arena, size, live
        position, quaternion = CAMERAS[camera]
        self._pose = np.eye(4)
        self._pose[:3, :3] = np.reshape(arena.bullet.getMatrixFromQuaternion(quaternion.tolist()), (3, 3))
        self._pose[:3, 3] = position
        self._version = -1
        self._rgb, self._depth = np.zeros((size, size, 3), np.uint8), np.zeros((size, size), np.float32)

    def keep(self) -> None:
        """Render image and depth in one pass and keep them."""
        bullet, size, position = self._arena.bullet, self._size, self._pose[:3, 3]
        towards, up = position + self._pose[:3, 2], -self._pose[:3, 1]
        view = bullet.computeViewMatrix(position.tolist(), towards.tolist(), up.tolist())
        projection = bullet.computeProjectionMatrixFOV(_FOV, 1.0, _NEAR, _FAR)
        drawn = bullet.getCameraImage(size, size, view, projection, shadow=0, renderer=bullet.ER_TINY_RENDERER)
        self._rgb = np.reshape(np.asarray(drawn[2], np.uint8), (size, size, 4))[:, :, :3]
        buffer = np.reshape(np.asarray(drawn[3], np.float64), (size, size))  # OpenGL's: 0 near, 1 far
        depth = _FAR * _NEAR / (_FAR - (_FAR - _NEAR) * buffer)
        self._depth = np.where(buffer < 1, depth, 0).astype(np.float32)
        self._version = self._arena.version

    def rgb(self) -> np.ndarray:
        self._refresh()
        return self._rgb.copy()

    def depth(self) -> np.ndarray:
        self._refresh()
        return self._depth.copy()

    def _refresh(self) -> None:
        if self._live and self._version != self._arena.version:
            self.keep()

    def calibration(self) -> Calibration:
        half = self._size / 2
        focal = half / math.tan(math.radians(_FOV) / 2)
        # TinyRenderer samples a pixel's lower left corner, half a pixel from its centre both ways
        return Calibration(np.array([[focal, 0, half], [0, focal, half - 1], [0, 0, 1.0]]), self._pose.copy())

    def close(self) -> None:
        return
