"""A simulated stereo depth camera: exact depth with disparity noise, holes, invalid edges and an invalid left border.

A stereo camera measures disparity, d = f b / z, and its errors are uniform in disparity: spatially correlated noise of
about a fifteenth of a pixel, and steps of 1/32 pixel. Pixels are invalid where the second camera has no view (the left
border, and what near objects occlude), often near edges, and in holes that persist and flicker.

Shapes: H height, W width of a depth map.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import cv2
import numpy as np

from ..errors import UnknownName, closest


@dataclass(frozen=True)
class StereoSensor:
    """The errors of a stereo camera; lengths are in pixels of the sensor, whose focal length is `focal`."""

    focal: float  # [px]
    baseline: float  # [m]
    step: float  # of disparity [px]
    sigma: float  # of the noise of disparity in a frame [px]
    blob: tuple[float, float]  # standard deviation of the blur that correlates it, horizontal and vertical [px]
    margin: float  # invalid border in addition to the disparity [px]
    edge: float  # distance up to which an edge makes pixels invalid [px]
    edge_share: float  # share of invalid pixels near edges, without occlusions
    hole_share: float  # share of invalid pixels elsewhere
    hole_blob: float  # standard deviation of the blur that makes holes [px]
    flicker: float  # weight of the changes from frame to frame in holes and edges, 0 to 1
    near: float  # [m]
    far: float  # [m]
    unit: float = 0.001  # of the output [m]

    def disparity(self, depth: np.ndarray) -> np.ndarray:
        """Return f b / z [px] of depth [m]; 0 where that is 0."""
        wide = self.focal * self.baseline
        return np.divide(wide, depth, out=np.zeros(depth.shape, np.float32), where=depth > 0)


SENSORS = {
    "d435": StereoSensor(  # of benchmarks/noise_fit.py on two frames of librealsense's D435 recording
        focal=390.4,
        baseline=0.05,
        step=1 / 32,
        sigma=0.092,
        blob=(5.0, 3.8),
        margin=10.7,
        edge=4.0,
        edge_share=0.31,
        hole_share=0.0059,
        hole_blob=2.0,
        flicker=0.43,
        near=0.2,
        far=10.0,
    )
}


def depth_sensor(name: str) -> StereoSensor | None:
    """Return a sensor by name; None for "exact", the simulator's own depth.

    Raises:
        UnknownName: for a sensor that does not exist.
    """
    if name == "exact":
        return None
    if name not in SENSORS:
        known = ("exact", *SENSORS)
        raise UnknownName(f"no depth sensor {name!r}{closest(name, known)}; there are: {', '.join(known)}")
    return SENSORS[name]


class NoisyDepth:
    """A sensor during one episode: holes persist and flicker, noise is drawn for every frame.

    Args:
        sensor: its errors.
        focal: of the images [px]; the sensor's lengths are scaled to it.
        seed: random seed; a number or several.
    """

    def __init__(self, sensor: StereoSensor, focal: float, seed: int | Sequence[int]) -> None:
        self._sensor, self._scale = sensor, focal / sensor.focal
        self._rng = np.random.default_rng(seed)
        self._holes: np.ndarray | None = None

    def measure(self, depth: np.ndarray) -> np.ndarray:
        """Return measured depth, (H, W) float32 [m], 0 where invalid.

        Args:
            depth: (H, W) exact, along the optical axis [m], 0 in the background.
        """
        sensor = self._sensor
        exact = sensor.disparity(depth)
        noise = self._field(depth.shape, sensor.blob) * sensor.sigma
        seen = np.rint((exact + noise) / sensor.step) * sensor.step
        seen[(depth <= 0) | ~self._valid(exact)] = 0
        wide = sensor.focal * sensor.baseline
        measured = np.divide(wide, seen, out=np.zeros(depth.shape), where=seen > 0)
        measured[(measured < sensor.near) | (measured > sensor.far)] = 0
        return (np.rint(measured / sensor.unit) * sensor.unit).astype(np.float32)

    def _valid(self, disparity: np.ndarray) -> np.ndarray:
        sensor = self._sensor
        near_edge = edges(disparity, sensor.edge * self._scale)
        shape, blob = disparity.shape, (sensor.hole_blob, sensor.hole_blob)
        if self._holes is None:
            self._holes = self._field(shape, blob)
        stay = np.sqrt(1 - sensor.flicker**2)
        score = stay * self._holes + sensor.flicker * self._field(shape, blob)
        limits = np.where(near_edge, _limit(sensor.edge_share), _limit(sensor.hole_share))
        return (score < limits) & self._seen_twice(disparity)

    def _seen_twice(self, disparity: np.ndarray) -> np.ndarray:
        """Return the mask of pixels that the second camera sees too; it is on the right, so the left border is not."""
        here = np.arange(disparity.shape[1]) - disparity * self._scale  # columns in the second camera
        nearer = np.minimum.accumulate(here[:, ::-1], axis=1)[:, ::-1]  # minimum over all pixels further right
        hidden = np.zeros(disparity.shape, bool)
        hidden[:, :-1] = nearer[:, 1:] < here[:, :-1]
        return (here > self._sensor.margin * self._scale) & ~hidden

    def _field(self, shape: tuple[int, ...], blob: tuple[float, float]) -> np.ndarray:
        """Return blurred noise of mean 0 and standard deviation 1."""
        values = self._rng.standard_normal(shape, np.float32)
        across, down = (max(each * self._scale, 0.05) for each in blob)
        blurred = cv2.GaussianBlur(values, (0, 0), sigmaX=across, sigmaY=down, borderType=cv2.BORDER_REFLECT_101)
        return blurred / _gain(across) / _gain(down)


def edges(disparity: np.ndarray, reach: float) -> np.ndarray:
    """Return the mask of pixels within `reach` [px] of a disparity jump over 5 % and half a pixel, (H, W) bool."""
    values = disparity.astype(np.float32)
    window = np.ones((3, 3), np.uint8)
    highest, lowest = cv2.dilate(values, window), cv2.erode(values, window)
    jump = (highest - lowest > 0.5) & (highest > 1.05 * lowest)
    size = 2 * max(0, round(reach) - 1) + 1  # the window itself reaches one pixel
    return cv2.dilate(jump.astype(np.uint8), np.ones((size, size), np.uint8)) > 0


def _limit(share: float) -> float:
    """Return the value that a share of normally distributed numbers exceeds."""
    return NormalDist().inv_cdf(1 - share) if share > 0 else np.inf


def _gain(sigma: float) -> float:
    """Return the standard deviation that a Gaussian blur of one axis leaves of white noise."""
    reach = np.arange(-int(4 * sigma + 2), int(4 * sigma + 2) + 1)
    weights = np.exp(-0.5 * (reach / sigma) ** 2)
    return float(np.linalg.norm(weights / weights.sum()))
