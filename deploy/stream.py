"""A trained policy on a camera: the frames of any source through the path that it was trained on.

Shapes: H side of the images, P proprioception, A action.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np

from ..cameras.camera import Camera, check_age
from ..cameras.capture import Capture
from ..cameras.frame import Frame
from ..cameras.geometry import registered, squared
from ..datasets.robomimic import depth_key
from ..errors import BadInput, EndOfStream, StaleFrame
from ..policies.agent import Agent
from ..policies.depth_inputs import depth_to_world_points
from ..policies.visuomotor import LoadedPolicy


@dataclass
class StreamStep:
    """What happened at one step of the control loop."""

    sequence: int | None  # of the frame; None where the newest was too old
    action: np.ndarray | None  # (A,) float32 in [-1, 1]; None where there was no frame to act on
    starts: bool = False  # the first of an episode
    age: float = 0.0  # of the frame when the action was ready [s]
    prepare: float = 0.0  # registration, crop and resize [s]
    act: float = 0.0  # encoder and policy [s]


def check_policy(loaded: LoadedPolicy) -> None:
    """Refuse a policy that one camera cannot feed.

    Raises:
        BadInput: naming what it needs.
    """
    policy = loaded.policy
    if policy.kind == "state":
        raise BadInput("this policy is told the known state, which no camera gives; train one that sees")
    if len(colours := [key for key in policy.images if key.startswith("rgb")]) > 1:
        raise BadInput(f"this policy sees {len(colours)} cameras, {', '.join(colours)}; a stream is one")


def observation_of(frame: Frame, loaded: LoadedPolicy, zeros: bool = False) -> dict[str, np.ndarray]:
    """Return what a policy observes of a frame, each (1, ...): the largest central square at its own size.

    A simulated frame of that size comes through as it is, bit for bit.

    Args:
        zeros: give zeros for proprioception that the source does not know, to time a policy.

    Raises:
        BadInput: if the frame lacks colour, depth or proprioception that the policy needs.
    """
    policy = loaded.policy
    seen: dict[str, np.ndarray] = {}
    sees = policy.needs_colour
    if not policy.needs_depth:
        frame = replace(frame, depth=None, valid=None, depth_time=None)
    if (sees and frame.rgb is None) or (policy.needs_depth and frame.depth is None):
        missing = "colour" if sees and frame.rgb is None else "depth"
        raise BadInput(f"frame {frame.sequence} has no {missing}, which the policy looks at")
    if sees or policy.needs_depth:
        square = squared(registered(frame), loaded.request.image_size)
        if sees and square.rgb is not None:
            seen[policy.images[0]] = square.rgb[None]
        if square.depth is not None:
            seen[depth_key(policy.images[0])] = square.depth[None]
        if policy.view is not None and policy.depth_head is None and square.depth is not None:
            if square.intrinsics is None:
                raise BadInput(
                    "this policy sees points, and the source tells no intrinsics; give calibration=camera.json"
                )
            pose = policy.view.calibration.camera_to_world if square.camera_to_world is None else square.camera_to_world
            seen["points"] = depth_to_world_points(square.depth, square.intrinsics, pose)[None]
    if width := policy.embedder.proprio_dim:
        felt = np.zeros(width, np.float32) if frame.proprio is None and zeros else frame.proprio
        if felt is None or felt.shape != (width,):
            raise BadInput(
                f"the policy feels {width} numbers of proprioception, the camera knows "
                f"{0 if felt is None else len(felt)}; train with embedding.proprio=false, or time it with zeros=true"
            )
        seen[policy.felt] = np.asarray(felt, np.float32)[None]
    return seen


def stream(
    agent: Agent, camera: Camera, max_age: float | None = None, rate: float | None = None, zeros: bool = False
) -> Iterator[StreamStep]:
    """Yield an action for each frame of an open camera, until it ends.

    A task's camera is told each action, so that the loop is closed. Where the newest frame is too old there is no
    action: what to hold, and when to stop, is the robot's matter.

    Args:
        max_age: the oldest frame to act on [s]; None takes every frame in turn.
        rate: control steps a second; None is as fast as new frames come.
        zeros: as in `observation_of`.

    Raises:
        BadInput: if the policy needs what the camera does not give.
        CameraError: as the camera does.
    """
    check_policy(agent.loaded)
    due, first, running = time.monotonic(), True, np.ones(1, bool)
    for step in count():
        if rate is not None:
            time.sleep(max(0.0, due - time.monotonic()))
            due = max(due + 1 / rate, time.monotonic())  # what is late is not caught up with
        try:
            if max_age is None:
                frame = camera.read()
            elif rate is None and step and isinstance(camera, Capture):
                frame = _fresh(camera, max_age)
            else:
                frame = camera.latest(max_age)
        except EndOfStream:
            return
        except StaleFrame:
            yield StreamStep(None, None)
            continue
        began = time.perf_counter()
        observation = observation_of(frame, agent.loaded, zeros)
        ready = time.perf_counter()
        action = agent.act(observation, np.array([frame.is_first or first]), running)[0]
        done = time.perf_counter()
        if camera.accepts_actions:
            camera.act(action)
        yield StreamStep(frame.sequence, action, frame.is_first or first, frame.age(), ready - began, done - ready)
        first = False


def _fresh(camera: Capture, max_age: float) -> Frame:
    """Return a frame that was not acted on yet, which sets the pace."""
    frame = camera.fresh(max_age)
    if frame is None:
        raise StaleFrame(f"no new frame came for {1000 * max_age:.0f} ms")
    check_age(frame, max_age, time.monotonic())
    return frame


def timing(moments: list[StreamStep]) -> dict[str, dict[str, float]]:
    """Return percentiles of the times of the moments that acted [ms], and how many were stale."""
    acted = [each for each in moments if each.action is not None]
    table: dict[str, dict[str, float]] = {}
    for name in ("prepare", "act", "age"):
        values: Any = [1000 * getattr(each, name) for each in acted] or [0.0]
        table[name] = {f"p{at}": float(np.percentile(values, at)) for at in (50, 95, 99)}
    return table
