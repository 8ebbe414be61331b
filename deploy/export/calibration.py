"""Inputs that int8 programs are calibrated on: the ranges of activations are taken from recorded frames.

Only the encoder's blocks are quantised. Preprocessing, patch embedding, fusion and head keep their precision: they are
small, and quantising them cost the most accuracy (docs/log.md).
"""

import numpy as np
import torch

from ...errors import BadInput
from ..manifest import STARTS
from ..recorded import Recorded
from .program import Program

Inputs = dict[str, np.ndarray]


@torch.inference_mode()
def calibration_inputs(program: Program, recorded: Recorded | None) -> list[Inputs]:
    """Return the program's inputs, batch 1, at every recorded frame, histories included.

    Raises:
        BadInput: if no frames are given.
    """
    if recorded is None:
        raise BadInput("int8 takes its ranges from recorded frames: give calibration=FILE or demos=FILE")
    found: list[Inputs] = []
    for clip in recorded.clips:
        kept: Inputs = {}
        for step, observation in enumerate(clip):
            inputs = {tensor.name: observation[tensor.name][None] for tensor in program.observation}
            for tensor in program.inputs[len(inputs) :]:
                if tensor.name == STARTS:
                    inputs[tensor.name] = np.array([step == 0])
                else:
                    inputs[tensor.name] = kept.get(tensor.name, np.zeros((1, *tensor.shape), np.float32))
            found.append(inputs)
            if not program.memory:
                continue
            _, *latest = program(*(torch.from_numpy(inputs[tensor.name]) for tensor in program.inputs))
            for memory, value in zip(program.memory, latest, strict=True):
                name, new = memory.history.name, value.numpy()[:, None]
                past = kept.get(name, np.repeat(new, memory.frames - 1, axis=1))
                kept[name] = np.concatenate([past, new], axis=1)[:, 1:]
    return found
