"""Check that a policy, a robot and its cameras fit, before anything moves."""

import logging
from collections.abc import Mapping

from ..cameras.camera import CameraSpec
from ..deploy.manifest import Manifest, TensorSpec
from ..deploy.observation import camera_of
from ..errors import BadInput
from .robot import RobotSpec

log = logging.getLogger(__name__)
_ROUNDING = 1e-6  # share of its range by which an action may exceed it
_TOLERANCE = 0.02  # share by which a step may be longer or shorter than in training


def check_fit(manifest: Manifest, robot: RobotSpec, cameras: Mapping[str, CameraSpec], rate: float) -> int:
    """Return how many commands make a step of the policy, or refuse.

    Args:
        manifest: of the policy.
        robot: connected.
        cameras: open, by camera: ``rgb``, ``rgb_wrist``, ...
        rate: commands per second.

    Raises:
        BadInput: saying what does not fit and what would.
    """
    if manifest.kind != "policy":
        raise BadInput("this bundle is an encoder alone, which does not act; export a policy's checkpoint")
    _check_actions(manifest, robot)
    for tensor in manifest.observation:
        if tensor.name == "proprio":
            if tensor.shape != (robot.proprio,):
                raise BadInput(
                    f"the policy expects proprioception of size {tensor.shape[0]}, {robot.name} provides "
                    f"{robot.proprio}; use a policy that was trained for this robot, or with observation.proprio=false"
                )
        else:
            _check_camera(tensor, cameras)
    return _commands_per_step(manifest, robot, rate)


def _check_actions(manifest: Manifest, robot: RobotSpec) -> None:
    axes, limits = robot.commands.names, (manifest.action_low, manifest.action_high)
    for size in (manifest.actions, *(len(each) for each in limits if each)):
        if size != len(axes):
            raise BadInput(
                f"the policy's actions have size {size}, {robot.name} takes {len(axes)} ({', '.join(axes)}); "
                "use a policy that was trained for this robot"
            )
    if manifest.action_names is not None and tuple(manifest.action_names) != axes:
        given = ", ".join(manifest.action_names)
        raise BadInput(f"the policy's actions are {given}, {robot.name} takes {', '.join(axes)}")
    if manifest.action_meanings is not None and manifest.action_meanings != robot.commands.meanings:
        pairs = zip(axes, manifest.action_meanings, robot.commands.meanings, strict=True)
        log.warning(
            "an action a means something else here than in the policy's training data: %s",
            "; ".join(f"{axis}: {here}, was {there}" for axis, there, here in pairs if here != there),
        )
    if not all(limits):
        log.warning("the range of the policy's actions is unknown; actions outside that of %s are clipped", robot.name)
        return
    lowest, highest = robot.commands.action_range
    for axis, low, high, least, most in zip(axes, *limits, lowest, highest, strict=True):
        room = _ROUNDING * (most - least)
        if low < least - room or high > most + room:
            raise BadInput(
                f"the policy's actions on axis {axis} are {low:g} to {high:g}, {robot.name} takes {least:g} to "
                f"{most:g}; use a policy that was trained for this robot"
            )


def _check_camera(tensor: TensorSpec, cameras: Mapping[str, CameraSpec]) -> None:
    camera = camera_of(tensor.name)
    if camera is None or camera not in cameras:
        hint = f"; name one: cameras={{{camera}: realsense}}" if camera is not None else ""
        raise BadInput(
            f"the policy observes {tensor.name!r}, which nothing provides: cameras are {', '.join(cameras)}, and the "
            f"robot provides proprio{hint}"
        )
    spec = cameras[camera]
    depth = tensor.name.startswith("depth")
    if (spec.depth_size if depth else spec.color_size) is None:
        what = "depth" if depth else "colour"
        raise BadInput(f"the policy observes {what} ({tensor.name}), which {spec.name} does not give; choose another")


def _commands_per_step(manifest: Manifest, robot: RobotSpec, rate: float) -> int:
    if robot.control_hz is not None and abs(rate / robot.control_hz - 1) > _TOLERANCE:
        raise BadInput(f"{robot.name} takes {robot.control_hz:g} commands a second, not rate={rate:g}; leave rate= out")
    if manifest.control_period is None:
        return 1
    parts = rate * manifest.control_period
    if parts < 1 - _TOLERANCE or abs(parts - round(parts)) > _TOLERANCE * parts:
        needed = 1 / manifest.control_period
        raise BadInput(
            f"the policy was trained for a step every {1000 * manifest.control_period:g} ms, commands are sent every "
            f"{1000 / rate:g} ms; use a robot or rate= of {needed:g} per second or a multiple of it"
        )
    return round(parts)
