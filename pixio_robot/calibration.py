"""The calibration of a camera that a scene, a file of demonstrations or a robot reports."""

from typing import NamedTuple

import numpy as np


class Calibration(NamedTuple):
    """A pinhole camera; pixel (0, 0) is the centre of the top left pixel."""

    intrinsics: np.ndarray  # (3, 3) [px]
    camera_to_world: np.ndarray  # (4, 4) [m]; axes as in OpenCV: x right, y down, z forward
