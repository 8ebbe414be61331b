"""Measure a real stereo depth camera's errors, and fit the simulated sensor (`depth_sensor`) that has the same ones.

    python benchmarks/noise_fit.py still.bag --baseline 0.05

The camera, a file or folder that `camera=` takes, must show a scene that does not move, in two frames or more. Prints
the recording's figures, those of the fitted sensor, and the sensor.

Shapes: T frames of a scene that stands still, H height, W width.
"""

import argparse
from dataclasses import replace
from itertools import islice
from statistics import NormalDist
from typing import NamedTuple

import cv2
import numpy as np

from pixio_robot.cameras.camera import CameraRequest
from pixio_robot.cameras.frame import Intrinsics
from pixio_robot.cameras.registry import find_camera
from pixio_robot.envs.depth_noise import SENSORS, NoisyDepth, StereoSensor, edges
from pixio_robot.errors import DataError

_BORDER = 40  # columns on the left that are counted apart [px]
_REACH = 4.0  # of edges [px]


def main() -> None:
    """Fit a sensor to the frames of a recording."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("camera")
    parser.add_argument("--baseline", type=float, default=0.05, help="between the two cameras [m]")
    parser.add_argument("--start", choices=sorted(SENSORS), default="d435", help="sensor to begin from")
    parser.add_argument("--frames", type=int, default=30, help="how many to use at most")
    asked = parser.parse_args()
    with find_camera(asked.camera, CameraRequest(color=False)) as camera:
        frames = list(islice(camera, asked.frames))
    known = frames[0].depth_intrinsics if frames else None
    if known is None:
        raise DataError(f"{asked.camera} tells no intrinsics of a depth camera; the fit needs its focal length")
    depths = np.stack([frame.depth for frame in frames if frame.depth is not None])
    print(f"recording {noise_figures(depths, known.fx, asked.baseline)}")
    sensor = fit_sensor(depths, known, asked.baseline, SENSORS[asked.start])
    print(f"fitted    {simulated_figures(sensor, depths, asked.baseline)}\n{sensor}")


class NoiseFigures(NamedTuple):
    """Errors of a stereo camera, from frames of one scene that stands still; disparities in the sensor's pixels."""

    step: float  # between neighbouring values of disparity [px]
    sigma: float  # of disparity in a frame, robust [px]
    across_1: float  # correlation of the noise with itself so many columns further
    across_8: float
    across_16: float
    down_8: float  # and rows
    invalid: float  # share of all pixels
    border: float  # invalid share of the left 40 columns
    edge: float  # of the others, within 4 px of an edge
    inside: float  # of the rest
    flicker: float  # share of pixels that change between valid and invalid


def noise_figures(depths: np.ndarray, focal: float, baseline: float) -> NoiseFigures:
    """Measure the errors in frames of one scene.

    Args:
        depths: (T, H, W) [m], 0 where invalid; T at least 2.
        focal: of the depth camera [px].
        baseline: between its two cameras [m].

    Raises:
        DataError: if there are fewer than two frames, nothing is valid twice, or nothing changes.
    """
    if depths.ndim != 3 or len(depths) < 2:
        raise DataError(f"noise shows between two frames or more; got depth of shape {depths.shape}")
    valid = depths > 0
    disparity = np.divide(focal * baseline, depths, out=np.zeros(depths.shape), where=valid)
    both = valid[1:] & valid[:-1]
    if both.sum() < 100:
        raise DataError("the frames have nothing valid in common")
    change = (disparity[1:] - disparity[:-1]) / np.sqrt(2)
    change = np.where(both, change - np.median(change[both]), 0)
    sigma = float(1.4826 * np.median(np.abs(change[both])))
    if sigma == 0:
        raise DataError("most of the depth is the same in all frames, so no noise shows; give frames of two moments")
    calm = both & (np.abs(change) < 4 * sigma)  # jumps at edges are not noise
    border = np.zeros(depths.shape[1:], bool)
    border[:, :_BORDER] = True
    near = edges(true_scene(depths, focal * baseline), _REACH) & ~border
    rest = ~near & ~border
    return NoiseFigures(
        step=_step(depths, focal * baseline),
        sigma=sigma,
        across_1=_correlation(change, calm, 0, 1),
        across_8=_correlation(change, calm, 0, 8),
        across_16=_correlation(change, calm, 0, 16),
        down_8=_correlation(change, calm, 8, 0),
        invalid=float(1 - valid.mean()),
        border=float(1 - valid[:, border].mean()),
        edge=float(1 - valid[:, near].mean()) if near.any() else 0.0,
        inside=float(1 - valid[:, rest].mean()) if rest.any() else 0.0,
        flicker=float((valid[1:] != valid[:-1]).mean()),
    )


def true_scene(depths: np.ndarray, wide: float) -> np.ndarray:
    """Return the disparity (H, W) [px] of the scene behind noisy frames: their median, holes filled, smoothed.

    Args:
        depths: (T, H, W) [m], 0 where invalid.
        wide: focal length times baseline [px m].
    """
    counted = np.where(depths > 0, depths, np.nan)
    known = np.asarray(np.isfinite(counted).any(axis=0))
    middle = np.zeros(depths.shape[1:], np.float32)
    middle[known] = wide / np.nanmedian(counted[:, known], axis=0)
    holes: np.ndarray = np.where(known, 0, 1).astype(np.uint8)
    _, labels = cv2.distanceTransformWithLabels(holes, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    values = np.zeros(labels.max() + 1, np.float32)
    values[labels[known]] = middle[known]
    filled = cv2.medianBlur(values[labels], 5)
    return cv2.bilateralFilter(filled, 15, 0.6, 6)


def fit_sensor(depths: np.ndarray, intrinsics: Intrinsics, baseline: float, start: StereoSensor) -> StereoSensor:
    """Return a sensor whose errors, simulated on the scene behind the frames, have the frames' figures.

    Args:
        depths: (T, H, W) [m] of one scene, from the depth camera itself, not registered.
        intrinsics: of the depth camera.
        baseline: between its two cameras [m].
        start: the sensor to begin from; its step, unit and range are kept.

    Raises:
        DataError: as `noise_figures`, or if the noise is no blobs, or less than steps of the sensor make.
    """
    wanted = noise_figures(depths, intrinsics.fx, baseline)
    for name, value in (("across", wanted.across_8), ("down", wanted.down_8)):
        if not 0 < value < 1:
            raise DataError(
                f"the noise 8 px {name} is correlated by {value:.2f}; a stereo camera's comes in blobs, between 0 "
                "and 1: give depth as the sensor measured it, not resized, of a scene that stands still"
            )
    if wanted.sigma**2 <= start.step**2 / 12:
        raise DataError(f"noise of {wanted.sigma:.4f} px is less than what steps of start.step={start.step} px make")
    blob = tuple(8 / 2 / np.sqrt(-np.log(each)) for each in (wanted.across_8, wanted.down_8))  # Gaussian blur's own
    sensor = replace(
        start,
        focal=float(intrinsics.fx),
        baseline=baseline,
        sigma=float(np.sqrt(wanted.sigma**2 - start.step**2 / 12)),
        blob=(float(blob[0]), float(blob[1])),
    )
    for _ in range(12):  # what depends on the scene, by going towards the figures
        found = simulated_figures(sensor, depths, baseline)
        sensor = replace(
            sensor,
            sigma=sensor.sigma * wanted.sigma / found.sigma,
            margin=max(0.0, sensor.margin + _BORDER * (wanted.border - found.border)),
            edge_share=_toward(sensor.edge_share, wanted.edge, found.edge),
            hole_share=_toward(sensor.hole_share, wanted.inside, found.inside),
            flicker=min(1.0, sensor.flicker * wanted.flicker / max(found.flicker, 1e-6)),
        )
    return sensor


def simulated_figures(sensor: StereoSensor, depths: np.ndarray, baseline: float, seed: int = 0) -> NoiseFigures:
    """Return the figures of as many simulated frames of the scene behind some real ones."""
    wide = sensor.focal * baseline
    scene = true_scene(depths, wide)
    exact = np.divide(wide, scene, out=np.zeros(scene.shape), where=scene > 0)
    camera = NoisyDepth(sensor, sensor.focal, seed)
    return noise_figures(np.stack([camera.measure(exact) for _ in depths]), sensor.focal, baseline)


def _toward(share: float, wanted: float, found: float) -> float:
    bound = NormalDist()
    now, here, there = (bound.inv_cdf(min(max(each, 1e-4), 0.95)) for each in (share, found, wanted))
    return min(0.95, bound.cdf(now + 0.7 * (there - here)))


def _step(depths: np.ndarray, wide: float) -> float:
    """Return the median step between neighbouring distances that occur, in disparity [px]."""
    steps = []
    for low, high in ((1.3, 1.6), (1.6, 2.0), (2.0, 2.5), (2.5, 3.1)):  # nearer, the unit of a millimetre hides it
        found = np.unique(depths[(depths >= low) & (depths < high)])
        if len(found) > 5:
            middle = np.median(found)
            steps.append(float(np.median(np.diff(found)) * wide / middle**2))
    return float(np.median(steps)) if steps else 0.0


def _correlation(values: np.ndarray, valid: np.ndarray, down: int, across: int) -> float:
    height, width = values.shape[1:]
    first, second = np.s_[:, : height - down, : width - across], np.s_[:, down:, across:]
    both = valid[first] & valid[second]
    a, b = values[first][both], values[second][both]
    return float((a * b).mean() / np.sqrt((a * a).mean() * (b * b).mean()))


if __name__ == "__main__":
    main()
