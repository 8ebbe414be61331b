"""The features of a task: what its observations and actions are called, and their shapes."""

from dataclasses import replace

from ..datasets.dataset import Feature, depth_key
from .registry import TaskSpec


def task_features(request: TaskSpec) -> dict[str, Feature]:
    """Return the features that a task's observations and actions have, those of `request.cameras` in this order.

    Whether an environment gives a feature depends on `request.observe`, which is ignored here.
    """
    env = replace(request, observe=("proprio",)).make()
    env.close()
    task, side = env.task, request.image_size
    cameras = ["rgb" if camera == env.cameras[0] else f"rgb_{camera}" for camera in env.cameras]
    features = {key: Feature("image", (side, side, 3), "uint8") for key in cameras}
    features |= {depth_key(key): Feature("depth", (side, side), unit="m") for key in cameras}
    widths = {"proprio": task.proprio_dim, "state": task.state_dim, "action": task.action_dim}
    return features | {key: Feature("vector", (width,)) for key, width in widths.items()}


def task_cameras(request: TaskSpec) -> tuple[str, ...]:
    """Return the names of the cameras that an environment has, also where `request.cameras` leaves them to the task."""
    if request.cameras:
        return request.cameras
    env = replace(request, observe=("proprio",)).make()
    env.close()
    return env.cameras
