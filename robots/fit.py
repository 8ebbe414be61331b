"""Whether a policy, a robot and a camera belong together, and what the policy observes of them."""

import logging
from dataclasses import replace

import numpy as np

from ..cameras.camera import CameraSpec
from ..cameras.frame import Frame
from ..cameras.geometry import registered, squared
from ..deploy.runtime.bundle import Manifest
from ..errors import BadInput
from .robot import RobotSpec

log = logging.getLogger(__name__)

_PERIOD = 0.02  # share by which control periods may differ


def check_fit(card: Manifest, robot: RobotSpec, camera: CameraSpec, rate: float) -> int:
    """Refuse what does not fit, before anything moves.

    Args:
        rate: commands a second.

    Returns:
        commands a step of the policy, 1 or more.

    Raises:
        BadInput: saying what does not fit and what would.
    """
    if card.kind != "policy":
        raise BadInput("this bundle is an encoder alone, which does not act; export a policy's checkpoint")
    axes = robot.commands.names
    if card.actions != len(axes):
        raise BadInput(
            f"the policy gives actions of {card.actions} numbers, {robot.name} takes {len(axes)} ({', '.join(axes)}); "
            "use a policy that was trained for this robot"
        )
    if card.action_names is not None and tuple(card.action_names) != axes:
        raise BadInput(f"the policy's actions are {', '.join(card.action_names)}, {robot.name} takes {', '.join(axes)}")
    if card.action_meanings is not None and card.action_meanings != robot.commands.meanings:
        pairs = zip(axes, card.action_meanings, robot.commands.meanings, strict=True)
        log.warning(
            "an action a means something else here than where the policy learned: %s",
            "; ".join(f"{axis}: {here}, was {there}" for axis, there, here in pairs if here != there),
        )
    if card.action_low and (min(card.action_low) < -1 or max(card.action_high) > 1):
        raise BadInput(f"the policy's actions are {min(card.action_low)} to {max(card.action_high)}, not -1 to 1")
    for port in card.observation:
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
    return _parts(card, robot, rate)


def _parts(card: Manifest, robot: RobotSpec, rate: float) -> int:
    if robot.control_hz is not None and abs(rate / robot.control_hz - 1) > _PERIOD:
        raise BadInput(f"{robot.name} takes {robot.control_hz:g} commands a second, not rate={rate:g}; leave rate= out")
    if card.control_period is None:
        return 1
    parts = rate * card.control_period
    if parts < 1 - _PERIOD or abs(parts - round(parts)) > _PERIOD * parts:
        raise BadInput(
            f"the policy was trained for a step every {1000 * card.control_period:g} ms, commands go out every "
            f"{1000 / rate:g} ms; use a robot or rate= of {1 / card.control_period:g} per second or a multiple of it"
        )
    return round(parts)


def observation_of(frame: Frame, felt: np.ndarray, card: Manifest) -> dict[str, np.ndarray]:
    """Return what a policy observes: copies, images at its size, as they are where they have it.

    Args:
        felt: proprioception (P,).

    Raises:
        BadInput: if the frame lacks colour or depth that the policy looks at.
    """
    seen: dict[str, np.ndarray] = {}
    images = [port.name for port in card.observation if port.name in ("rgb", "depth")]
    if images and card.image_size is not None:
        if "depth" not in images:
            frame = replace(frame, depth=None, valid=None, depth_time=None)
        square = squared(registered(frame), card.image_size)
        for name, value in (("rgb", square.rgb), ("depth", square.depth)):
            if name in images:
                if value is None:
                    raise BadInput(f"frame {frame.sequence} has no {name}, which the policy looks at")
                seen[name] = value.copy()
    if any(port.name == "proprio" for port in card.observation):
        seen["proprio"] = np.array(felt, np.float32)
    return seen
