"""`TaskSpec`: the one list of the settings of a simulated task."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .task import TaskEnv


@dataclass(frozen=True)
class TaskSpec:
    """What to simulate and what to observe: small, picklable, and stored as JSON with demonstrations and results.

    Attributes:
        task: name in the registry, ``suite/task``.
        observe: modalities among rgb, depth, proprio, state; images are only rendered if they are observed.
        cameras: names of cameras; the first becomes ``rgb``, the others ``rgb_<name>``. Empty means the task's default.
        image_size: side of the square images [px].
        render: render quality: benchmark, balanced or fast.
        horizon: steps until truncation; None for the task's own.
        depth_sensor: how depth is measured: exact, or a sensor with noise and holes such as d435.
    """

    task: str
    observe: tuple[str, ...] = ("rgb", "proprio")
    cameras: tuple[str, ...] = ()
    image_size: int = 256
    render: str = "benchmark"
    horizon: int | None = None
    depth_sensor: str = "exact"

    def make(self) -> "TaskEnv":
        """Build the environment."""
        from .registry import make_env

        return make_env(self)
