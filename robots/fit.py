"""Whether a policy, a robot and a camera belong together, and what the policy observes of them."""

import logging
from dataclasses import replace

import numpy as np

from ..cameras.camera import CameraSpec
from ..cameras.frame import Frame
from ..cameras.geometry import registered, squared
from ..deploy.manifest import Manifest
from ..errors import BadInput
from .robot import RobotSpec

log = logging.getLogger(__name__)

_PERIOD = 0.02  # share by which control periods may differ


def check_fit(manifest: Manifest, robot: RobotSpec, camera: CameraSpec, rate: float) -> int:
    """Refuse what does not fit, before anything moves.

    Args:
        rate: commands a second.

    Returns:
        commands a step of the policy, 1 or more.

    Raises:
        BadInput: saying what does not fit and what would.
    """
    if manifest.kind != "policy":
        raise BadInput("this bundle is an encoder alone, which does not act; export a policy's checkpoint")
    axes = robot.commands.names
    if manifest.actions != len(axes):
        raise BadInput(
            f"the policy gives actions of {manifest.actions} numbers, {robot.name} takes {len(axes)} "
            f"({', '.join(axes)}); use a policy that was trained for this robot"
        )
    if manifest.action_names is not None and tuple(manifest.action_names) != axes:
        raise BadInput(
            f"the policy's actions are {', '.join(manifest.action_names)}, {robot.name} takes {', '.join(axes)}"
        )
    if manifest.action_meanings is not None and manifest.action_meanings != robot.commands.meanings:
        pairs = zip(axes, manifest.action_meanings, robot.commands.meanings, strict=True)
        log.warning(
            "an action a means something else here than where the policy learned: %s",
            "; ".join(f"{axis}: {here}, was {there}" for axis, there, here in pairs if here != there),
        )
    if manifest.action_low and (min(manifest.action_low) < -1 or max(manifest.action_high) > 1):
        raise BadInput(
            f"the policy's actions are {min(manifest.action_low)} to {max(manifest.action_high)}, not -1 to 1"
        )
    for port in manifest.observation:
        if port.name == "proprio":
            if port.shape != (robot.proprio,):
                raise BadInput(
                    f"the policy feels {port.shape[0]} numbers of proprioception, {robot.name} tells {robot.proprio}; "
                    "use a policy that was trained for this robot, or with embedding.proprio=false"
                )
        elif port.name not in ("rgb", "depth"):
            raise BadInput(f"the policy observes {port.name!r}; one camera gives rgb and depth, and the robot proprio")
        elif (camera.color_size if port.name == "rgb" else camera.depth_size) is None:
            what = "colour" if port.name == "rgb" else "depth"
            raise BadInput(f"the policy looks at {what}, which {camera.name} does not give; choose another camera=")
    return _parts(manifest, robot, rate)


def _parts(manifest: Manifest, robot: RobotSpec, rate: float) -> int:
    if robot.control_hz is not None and abs(rate / robot.control_hz - 1) > _PERIOD:
        raise BadInput(f"{robot.name} takes {robot.control_hz:g} commands a second, not rate={rate:g}; leave rate= out")
    if manifest.control_period is None:
        return 1
    parts = rate * manifest.control_period
    if parts < 1 - _PERIOD or abs(parts - round(parts)) > _PERIOD * parts:
        raise BadInput(
            f"the policy was trained for a step every {1000 * manifest.control_period:g} ms, commands go out every "
            f"{1000 / rate:g} ms; use a robot or rate= of {1 / manifest.control_period:g} per second or a multiple "
            "of it"
        )
    return round(parts)


def observation_of(frame: Frame, felt: np.ndarray, manifest: Manifest) -> dict[str, np.ndarray]:
    """Return what a policy observes: copies, images at its size, as they are where they have it.

    Args:
        felt: proprioception (P,).

    Raises:
        BadInput: if the frame lacks colour or depth that the policy looks at.
    """
    seen: dict[str, np.ndarray] = {}
    images = [port.name for port in manifest.observation if port.name in ("rgb", "depth")]
    if images and manifest.image_size is not None:
        if "depth" not in images:
            frame = replace(frame, depth=None, valid=None, depth_time=None)
        square = squared(registered(frame), manifest.image_size)
        for name, value in (("rgb", square.rgb), ("depth", square.depth)):
            if name in images:
                if value is None:
                    raise BadInput(f"frame {frame.sequence} has no {name}, which the policy looks at")
                seen[name] = value.copy()
    if any(port.name == "proprio" for port in manifest.observation):
        seen["proprio"] = np.array(felt, np.float32)
    return seen
