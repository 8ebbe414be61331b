"""Recorded observations to compare and calibrate programs on: clips of consecutive frames, each a small episode."""

from dataclasses import dataclass

import numpy as np

from ..cameras.camera import CameraRequest
from ..cameras.registry import find_camera
from ..datasets.dataset import EpisodeDataset, open_dataset, recognised
from ..errors import BadInput, DataError
from .manifest import Manifest, TensorSpec
from .observation import cameras_of, observation_from_frames

_LENGTH = 8  # frames of a clip, so that histories are full of different frames

Observation = dict[str, np.ndarray]


@dataclass
class Recorded:
    """Observations in the form that a program takes, and the recorded actions."""

    clips: list[list[Observation]]
    actions: np.ndarray | None  # (frames, A) of all clips in their order; None where no action was recorded
    source: str

    @property
    def frames(self) -> int:
        """How many observations there are."""
        return sum(len(each) for each in self.clips)


def read_recorded(path: str, manifest: Manifest, count: int, shift: float) -> Recorded:
    """Read about `count` observations, in clips evenly spaced over a file.

    Args:
        path: demonstrations, or a recording that cameras read; zeros stand for missing proprioception.
        manifest: what an observation must hold.
        count: frames.
        shift: position of the clips in their share of the file, 0 to 1; other values give other frames.

    Raises:
        DataError: if the file is missing, damaged, or lacks what is observed.
        BadInput: if its images have another size.
    """
    if recognised(path) is not None:
        return _from_dataset(open_dataset(path), manifest.observation, count, shift)
    return _from_recording(path, manifest, count, shift)


def _from_dataset(dataset: EpisodeDataset, tensors: list[TensorSpec], count: int, shift: float) -> Recorded:
    firsts, total = dataset.episode_starts, dataset.frames
    ends = firsts + np.repeat(dataset.lengths, dataset.lengths)  # of each frame's demonstration
    wanted = min(-(-count // _LENGTH), max(1, total // _LENGTH))
    rows = ((np.arange(wanted) + shift) / wanted * total).astype(int)
    clip_starts = [max(int(firsts[row]), min(int(row), int(ends[row]) - _LENGTH)) for row in rows]
    clips, kept = [], []
    for begin in clip_starts:
        clip = np.arange(begin, min(begin + _LENGTH, int(ends[begin])))
        values = {}
        for tensor in tensors:
            shape = dataset.feature(tensor.name).shape
            if shape != tuple(tensor.shape):
                raise BadInput(
                    f"{dataset.source} holds {tensor.name!r} of shape {shape}, the program takes {tensor.shape}; give "
                    "what it was trained on" + _own_size(tensor)
                )
            values[tensor.name] = dataset.read(tensor.name, clip).astype(tensor.dtype)
        clips.append([{name: each[step] for name, each in values.items()} for step in range(len(clip))])
        kept.append(clip)
    actions = dataset.read("action", np.concatenate(kept))
    return Recorded(clips, actions.astype(np.float32), dataset.source)


def _own_size(tensor: TensorSpec) -> str:
    return ", or export with image_size=" if len(tensor.shape) > 1 else ""


def _from_recording(path: str, manifest: Manifest, count: int, shift: float) -> Recorded:
    if manifest.kind == "encoder":
        raise BadInput(f"{path} is not a data set of demonstrations, which an encoder alone is compared on")
    cameras = cameras_of(manifest)
    if len(cameras) != 1 or any(each.name == "state" for each in manifest.observation):
        raise BadInput(f"{path} is the recording of one camera, and the policy observes more; give demonstrations")
    width = next((each.shape[0] for each in manifest.observation if each.name == "proprio"), 0)
    frames = []
    with find_camera(path, CameraRequest()) as camera:
        for frame in camera:
            proprio = frame.proprio if frame.proprio is not None else np.zeros(width, np.float32)
            frames.append(observation_from_frames({cameras[0]: frame}, proprio, manifest))
    if not frames:
        raise DataError(f"{path} holds no frame")
    wanted = min(-(-count // _LENGTH), max(1, len(frames) // _LENGTH))
    clip_starts = ((np.arange(wanted) + shift) / wanted * len(frames)).astype(int)
    return Recorded([frames[begin : begin + _LENGTH] for begin in clip_starts], None, path)
