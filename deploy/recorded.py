"""Recorded observations to compare and calibrate programs on: clips of consecutive frames, each a small episode."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..cameras.camera import CameraRequest
from ..cameras.registry import find_camera
from ..datasets.robomimic import DemoSet
from ..errors import BadInput, DataError
from ..policies.visuomotor import LoadedPolicy
from .manifest import TensorSpec
from .stream import check_policy, observation_of

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


def read_recorded(
    path: str, tensors: list[TensorSpec], count: int, shift: float, loaded: LoadedPolicy | None = None
) -> Recorded:
    """Read about `count` observations, in clips evenly spaced over a file.

    Args:
        path: a demonstration file, or a recording that cameras read; zeros stand for missing proprioception.
        tensors: what an observation must hold.
        count: frames.
        shift: position of the clips in their share of the file, 0 to 1; other values give other frames.
        loaded: the policy, for recordings; None for an encoder alone.

    Raises:
        DataError: if the file is missing, damaged, or lacks what is observed.
        BadInput: if its images have another size.
    """
    if Path(path).suffix in (".hdf5", ".h5"):
        return _from_demos(DemoSet(path), tensors, count, shift)
    return _from_recording(path, tensors, count, shift, loaded)


def _from_demos(demos: DemoSet, tensors: list[TensorSpec], count: int, shift: float) -> Recorded:
    firsts, total = demos.frame_starts, int(demos.lengths.sum())
    ends = firsts + np.repeat(demos.lengths, demos.lengths)  # of each frame's demonstration
    wanted = min(-(-count // _LENGTH), max(1, total // _LENGTH))
    rows = ((np.arange(wanted) + shift) / wanted * total).astype(int)
    clip_starts = [max(int(firsts[row]), min(int(row), int(ends[row]) - _LENGTH)) for row in rows]
    vectors = {tensor.name: demos.read(tensor.name) for tensor in tensors if len(tensor.shape) == 1}
    clips, kept = [], []
    for begin in clip_starts:
        size = min(_LENGTH, int(ends[begin]) - begin)
        values = {name: whole[begin : begin + size].astype(np.float32) for name, whole in vectors.items()}
        for tensor in tensors:
            if tensor.name not in values:
                read = next(demos.batches(tensor.name, begin, size))
                values[tensor.name] = read[..., 0] if read.ndim == 4 and read.shape[-1] == 1 else read
            if values[tensor.name].shape[1:] != tensor.shape:
                raise BadInput(
                    f"{demos.path} holds {tensor.name!r} of shape {values[tensor.name].shape[1:]}, the program takes "
                    f"{tensor.shape}; give what it was trained on" + _own_size(tensor)
                )
        clips.append([{name: each[step] for name, each in values.items()} for step in range(size)])
        kept.append(np.arange(begin, begin + size))
    actions = demos.read("actions")[np.concatenate(kept)]
    return Recorded(clips, actions.astype(np.float32), str(demos.path))


def _own_size(tensor: TensorSpec) -> str:
    return ", or export with image_size=" if len(tensor.shape) > 1 else ""


def _from_recording(
    path: str, tensors: list[TensorSpec], count: int, shift: float, loaded: LoadedPolicy | None
) -> Recorded:
    if loaded is None:
        raise BadInput(f"{path} is no demonstration file (.hdf5), which an encoder alone is compared on")
    check_policy(loaded)
    frames = []
    with find_camera(path, CameraRequest()) as camera:
        for frame in camera:
            frames.append({key: value[0] for key, value in observation_of(frame, loaded, zeros=True).items()})
    if not frames:
        raise DataError(f"{path} holds no frame")
    wanted = min(-(-count // _LENGTH), max(1, len(frames) // _LENGTH))
    clip_starts = ((np.arange(wanted) + shift) / wanted * len(frames)).astype(int)
    return Recorded([frames[begin : begin + _LENGTH] for begin in clip_starts], None, path)
