import numpy as np

from pixio_robot.envs.rendering import CameraView, DrawnView
from pixio_robot.envs.suite import Suite
from pixio_robot.envs.task import StepResult, Task


class Reach(Task):
    """Move a red point to a green goal."""

    horizon, control_hz, cameras = 20, 10.0, ("top",)
    action_dim, proprio_dim = 2, 2

    def reset(self, rng: np.random.Generator) -> None:
        self.point, self.goal = rng.uniform(-1, 1, (2, 2))

    def step(self, action: np.ndarray) -> StepResult:
        self.point = np.clip(self.point + 0.2 * action, -1, 1)
        distance = float(np.linalg.norm(self.goal - self.point))
        return StepResult(reward=-distance, success=distance < 0.1)

    def proprio(self) -> np.ndarray:
        return self.point.astype(np.float32)

    def state(self) -> np.ndarray:
        return np.concatenate([self.point, self.goal])

    def expert_action(self) -> np.ndarray:
        return np.clip((self.goal - self.point) / 0.2, -1, 1)

    def view(self, camera: str, size: int, render: str) -> CameraView:
        return DrawnView(lambda: self.draw(size))

    def draw(self, size: int) -> np.ndarray:
        axis = np.linspace(-1.2, 1.2, size)
        image = np.full((size, size, 3), 40, np.uint8)
        for (x, y), colour in ((self.goal, (40, 220, 40)), (self.point, (220, 40, 40))):
            image[(abs(axis[:, None] + y) < 0.15) & (abs(axis - x) < 0.15)] = colour
        return image


SUITE = Suite("point", requires="numpy", tasks=("reach",), make=lambda name: Reach())
