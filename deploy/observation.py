"""From camera frames to what a policy observes. Several cameras stay apart: ``rgb``, ``rgb_wrist``, ``depth_wrist``.

A camera has the name of its colour feature: that of ``rgb_wrist`` and ``depth_wrist`` is ``rgb_wrist``.

Shapes: S side of an image, P proprioception.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..cameras.frame import Frame
from ..cameras.geometry import registered, squared
from ..errors import BadInput
from .manifest import Manifest


def camera_of(feature: str) -> str | None:
    """Return the camera of an image feature; None for another feature.

    >>> camera_of("depth"), camera_of("rgb_wrist"), camera_of("depth_wrist"), camera_of("proprio")
    ('rgb', 'rgb_wrist', 'rgb_wrist', None)
    """
    kind, _, name = feature.partition("_")
    if kind not in ("rgb", "depth"):
        return None
    return f"rgb_{name}" if name else "rgb"


def cameras_of(manifest: Manifest) -> tuple[str, ...]:
    """Return the cameras that a policy observes, in the manifest's order."""
    found = [camera for tensor in manifest.observation if (camera := camera_of(tensor.name)) is not None]
    return tuple(dict.fromkeys(found))


def needs_depth(manifest: Manifest, camera: str) -> bool:
    """Return whether a policy observes the depth of a camera."""
    return any(camera_of(each.name) == camera and each.name.startswith("depth") for each in manifest.observation)


def observation_from_frames(
    frames: Mapping[str, Frame], proprio: np.ndarray | None, manifest: Manifest
) -> dict[str, np.ndarray]:
    """Return what a policy observes: copies, each image cropped to its largest central square and resized.

    A frame of the right size passes unchanged.

    Args:
        frames: by camera, see `cameras_of`; more may be there.
        proprio: proprioception (P,); None if there is none.

    Returns:
        ``rgb...`` (S, S, 3) uint8, ``depth...`` (S, S) float32 [m], ``proprio`` (P,) float32: what the manifest names.

    Raises:
        BadInput: if a camera, its colour or depth, or the proprioception is missing.
    """
    observation: dict[str, np.ndarray] = {}
    squares: dict[tuple[str, int], Frame] = {}
    for tensor in manifest.observation:
        camera = camera_of(tensor.name)
        if camera is None:
            continue
        if camera not in frames:
            raise BadInput(f"there is no frame of camera {camera}, which the policy observes; got {_listed(frames)}")
        is_depth = tensor.name.startswith("depth")
        if (frames[camera].depth if is_depth else frames[camera].rgb) is None:
            what, number = "depth" if is_depth else "colour", frames[camera].sequence
            raise BadInput(f"frame {number} of camera {camera} has no {what}, which the policy observes")
        place = (camera, tensor.shape[0])
        if place not in squares:
            frame = frames[camera]
            if not needs_depth(manifest, camera):
                frame = replace(frame, depth=None, valid=None, depth_time=None)
            squares[place] = squared(registered(frame), tensor.shape[0])
        square = squares[place]
        observation[tensor.name] = np.array(square.depth if is_depth else square.rgb)
    if any(each.name == "proprio" for each in manifest.observation):
        if proprio is None:
            raise BadInput("the policy observes proprioception, and there is none")
        observation["proprio"] = np.array(proprio, np.float32)
    return observation


def _listed(frames: Mapping[str, Frame]) -> str:
    return ", ".join(frames) or "none"
