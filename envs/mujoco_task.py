"""Tasks that MuJoCo simulates."""

from typing import Any

import numpy as np

from .rendering import CameraView, View
from .task import Capabilities, Task


class MujocoTask(Task):
    """A task with a MuJoCo model: its images, depth, calibration and state come from the model.

    A subclass sets `model` and `data` when it is made and keeps these objects.
    """

    model: Any  # mujoco.MjModel
    data: Any  # mujoco.MjData
    capabilities = Capabilities(depth=True, calibration=True, privileged_state=True)

    def view(self, camera: str, size: int, render: str) -> CameraView:
        return View(self.model, self.data, self.camera_in_model(camera), size, render)

    def camera_in_model(self, camera: str) -> str:
        """Return the model's own name of a camera; tasks that add or rename a camera override this."""
        return camera

    def state(self) -> np.ndarray:
        """Return MuJoCo's integration state, (S,) float64; a simulation can be resumed from it."""
        import mujoco

        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(mujoco.mj_stateSize(self.model, kind))
        mujoco.mj_getState(self.model, self.data, state, kind)
        return state
