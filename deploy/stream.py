"""A trained policy on cameras: the frames of any source through the same path as on a robot.

Shapes: S side of the images, P proprioception, A action.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch

from ..cameras.camera import Camera, check_age
from ..cameras.capture import Capture
from ..cameras.frame import Frame
from ..cameras.geometry import registered, squared
from ..errors import BadInput, EndOfStream, StaleFrame
from ..policies.agent import Agent
from ..policies.depth_inputs import depth_to_world_points
from ..policies.loaded import LoadedPolicy
from .export.describe import describe_policy
from .manifest import Manifest
from .observation import cameras_of, observation_from_frames


@dataclass
class StreamStep:
    """What happened at one step of the control loop."""

    sequence: int | None  # of the first camera's frame; None where a frame was too old
    action: np.ndarray | None  # (A,) float32 in the units of the data; None where there was no frame to act on
    is_first: bool = False  # the first of an episode
    age: float = 0.0  # of the oldest frame when the action was ready [s]
    prepare: float = 0.0  # registration, crop and resize [s]
    act: float = 0.0  # encoder and policy [s]


@dataclass(frozen=True)
class StreamTiming:
    """When a stream acts."""

    max_age: float | None = None  # oldest frame to act on [s]; None takes every frame in turn
    rate: float | None = None  # control steps a second; None is as fast as new frames come


class PolicyInput:
    """Turns frames into a policy's observation.

    Args:
        loaded: the policy.
        zeros: give zeros for proprioception that the source does not provide, to time a policy.

    Raises:
        BadInput: if cameras cannot provide what the policy observes.
    """

    def __init__(self, loaded: LoadedPolicy, zeros: bool = False) -> None:
        self.loaded, self.zeros = loaded, zeros
        self.manifest: Manifest = describe_policy(loaded, "")
        if "state" in loaded.spec.observation:
            raise BadInput("this policy observes the privileged state, which no camera gives; train another one")
        self.cameras = cameras_of(self.manifest)

    def observation(self, frames: Mapping[str, Frame]) -> dict[str, np.ndarray]:
        """Return what the policy observes: the largest central square of each image, at the size of training.

        Raises:
            BadInput: if a frame lacks colour, depth or proprioception that the policy needs.
        """
        proprio = next((frame.proprio for frame in frames.values() if frame.proprio is not None), None)
        width = self.loaded.spec.vectors.get("proprio", 0)
        if proprio is None and self.zeros:
            proprio = np.zeros(width, np.float32)
        if width and (proprio is None or proprio.shape != (width,)):
            given = 0 if proprio is None else len(proprio)
            raise BadInput(
                f"the policy observes {width} numbers of proprioception, the camera provides {given}; train with "
                "observation.proprio=false, or time it with zeros=true"
            )
        observation = observation_from_frames(frames, proprio, self.manifest)
        view, key = self.loaded.vision.view, self.loaded.vision.spec.depth_key
        if view is not None and key in observation:
            frame = squared(registered(frames[self.loaded.vision.image_key]), observation[key].shape[0])
            if frame.intrinsics is None:
                raise BadInput(
                    "this policy observes points, and the source has no intrinsics; give calibration=camera.json"
                )
            pose = view.calibration.camera_to_world if frame.camera_to_world is None else frame.camera_to_world
            observation["points"] = depth_to_world_points(observation[key], frame.intrinsics, pose)
        return observation


def stream(
    loaded: LoadedPolicy,
    cameras: Mapping[str, Camera],
    device: torch.device = torch.device("cpu"),
    timing: StreamTiming = StreamTiming(),
    zeros: bool = False,
) -> Iterator[StreamStep]:
    """Yield an action for each frame of open cameras, until one of them ends.

    A simulated camera is given each action, so that the loop is closed. Where the latest frame is too old there is no
    action: what to hold, and when to stop, is decided by the robot.

    Args:
        cameras: by the feature of their colour, ``rgb``, ``rgb_wrist``; the first sets the pace.
        zeros: as in `PolicyInput`.

    Raises:
        BadInput: if the policy needs what the cameras do not give.
        CameraError: as the cameras do.
    """
    taken, agent, active = PolicyInput(loaded, zeros), Agent(loaded, device), np.ones(1, bool)
    if missing := [name for name in taken.cameras if name not in cameras]:
        raise BadInput(f"the policy observes {', '.join(missing)}; name its camera: cameras={{{missing[0]}: ...}}")
    first_camera, due, first = next(iter(cameras)), time.monotonic(), True
    for step in count():
        if timing.rate is not None:
            time.sleep(max(0.0, due - time.monotonic()))
            due = max(due + 1 / timing.rate, time.monotonic())  # what is late is not caught up with
        try:
            frames = {
                name: _frame(camera, timing, step > 0 and name == first_camera) for name, camera in cameras.items()
            }
        except EndOfStream:
            return
        except StaleFrame:
            yield StreamStep(None, None)
            continue
        started = time.perf_counter()
        observation = {key: value[None] for key, value in taken.observation(frames).items()}
        ready = time.perf_counter()
        frame = frames[first_camera]
        is_first = frame.is_first or first
        action = agent.act(observation, np.array([is_first]), active)[0]
        done = time.perf_counter()
        for camera in cameras.values():
            if camera.accepts_actions:
                camera.act(action)
        age = max(each.age() for each in frames.values())
        yield StreamStep(frame.sequence, action, is_first, age, ready - started, done - ready)
        first = False


def _frame(camera: Camera, timing: StreamTiming, sets_pace: bool) -> Frame:
    """Return the frame of a camera for this step.

    Raises:
        StaleFrame: if the latest one is too old.
    """
    if timing.max_age is None:
        return camera.read()
    if timing.rate is None and sets_pace and isinstance(camera, Capture):
        frame = camera.fresh(timing.max_age)  # one that was not acted on yet
        if frame is None:
            raise StaleFrame(f"no new frame came for {1000 * timing.max_age:.0f} ms")
        check_age(frame, timing.max_age, time.monotonic())
        return frame
    return camera.latest(timing.max_age)


def percentiles(steps: list[StreamStep]) -> dict[str, dict[str, float]]:
    """Return percentiles of the times of the steps that acted [ms]."""
    acted = [each for each in steps if each.action is not None]
    table: dict[str, dict[str, float]] = {}
    for name in ("prepare", "act", "age"):
        values: Any = [1000 * getattr(each, name) for each in acted] or [0.0]
        table[name] = {f"p{at}": float(np.percentile(values, at)) for at in (50, 95, 99)}
    return table
