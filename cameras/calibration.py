"""Intrinsics from views of a ChArUco board, and where the camera sits on the robot, both with their errors, by OpenCV.

Shapes: V views, n corners of a view.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..errors import BadInput, DataError, PixioError, UnknownName, closest
from .frame import Intrinsics

_LEAST_CORNERS = 6  # of a view
_LEAST_VIEWS = 4
_LEAST_TURN = 5.0  # about each of two axes, between two views of hand-eye [degrees]
_MODELS = {
    "opencv": 0,
    "rational": cv2.CALIB_RATIONAL_MODEL,
    "none": cv2.CALIB_ZERO_TANGENT_DIST | cv2.CALIB_FIX_K1 | cv2.CALIB_FIX_K2 | cv2.CALIB_FIX_K3,
}
_MOUNTINGS = ("hand", "base")


@dataclass(frozen=True)
class Board:
    """A ChArUco board: squares across and down, their side, the side of the markers [m], OpenCV's dictionary."""

    columns: int = 8
    rows: int = 6
    square: float = 0.03
    marker: float = 0.022
    dictionary: str = "DICT_5X5_100"

    def make(self) -> Any:
        """Return OpenCV's board.

        Raises:
            UnknownName: for an unknown dictionary.
            BadInput: if a marker does not fit into a square, or the dictionary has too few.
        """
        known = [name for name in dir(cv2.aruco) if name.startswith("DICT_")]
        if self.dictionary not in known:
            raise UnknownName(f"no dictionary {self.dictionary!r}{closest(self.dictionary, known)} in OpenCV")
        if not 0 < self.marker < self.square:
            raise BadInput(f"a marker of {self.marker} m does not fit into a square of {self.square} m")
        dictionary = cv2.aruco.getPredefinedDictionary(getattr(cv2.aruco, self.dictionary))
        if self.columns * self.rows // 2 > len(dictionary.bytesList):
            raise BadInput(f"{self.dictionary} has too few markers for {self.columns}x{self.rows} squares")
        return cv2.aruco.CharucoBoard((self.columns, self.rows), self.square, self.marker, dictionary)

    def draw(self, square: int) -> np.ndarray:
        """Return the board as a grey image with squares of so many pixels and a margin of one, uint8."""
        size = ((self.columns + 1) * square, (self.rows + 1) * square)
        return self.make().generateImage(size, marginSize=square // 2)


@dataclass(frozen=True)
class Calibrated:
    """What a calibration found."""

    intrinsics: Intrinsics
    error: float  # root mean square distance of corners from where they should be [px]
    view_errors: list[float]  # of each used view [px]
    used: list[int]  # numbers of the views in which the board was found
    board_to_camera: np.ndarray  # (V, 4, 4) of the used views [m]
    covered: float  # share of the image, in a grid of 8 x 8, that held a corner


def calibrate(frames: Sequence[np.ndarray], board: Board, model: str = "opencv") -> Calibrated:
    """Find intrinsics from frames of the board.

    Args:
        frames: (H, W, 3) uint8 RGB of one size.
        model: "opencv" (5 coefficients), "rational" (8) or "none".

    Raises:
        DataError: if the board is found in fewer than 4 frames.
        BadInput: if the frames have several sizes.
        UnknownName: for another model.
    """
    if model not in _MODELS:
        raise UnknownName(f"no lens model {model!r}{closest(model, _MODELS)}; there are: {', '.join(_MODELS)}")
    if len(sizes := {image.shape[:2] for image in frames}) > 1:
        there = ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
        raise BadInput(f"a calibration is of one image size; these have {there}")
    made = board.make()
    detector = cv2.aruco.CharucoDetector(made)
    found: list[tuple[int, np.ndarray, np.ndarray]] = []
    for number, image in enumerate(frames):
        corners, ids, _, _ = detector.detectBoard(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
        if ids is not None and len(ids) >= _LEAST_CORNERS:
            here = made.getChessboardCorners()[ids[:, 0]]
            if np.linalg.matrix_rank(here[:, :2] - here[0, :2]) == 2:  # corners on one line say nothing
                found.append((number, here, corners[:, 0]))
    if len(found) < _LEAST_VIEWS:
        raise DataError(
            f"the board was found in {len(found)} of {len(frames)} frames, {_LEAST_VIEWS} are needed; check "
            "columns, rows and dictionary, light and focus, and let it fill the image at several angles"
        )
    height, width = frames[0].shape[:2]
    objects, images = [each[1] for each in found], [each[2] for each in found]
    start: Any = None
    error, matrix, coefficients, turns, shifts, _, _, view_errors = cv2.calibrateCameraExtended(
        objects, images, (width, height), start, start, flags=_MODELS[model]
    )
    values = tuple(float(each) for each in coefficients.ravel()[: 8 if model == "rational" else 5])
    known = Intrinsics.from_matrix(matrix, width, height)
    if model != "none":
        known = known._replace(model="opencv", coefficients=values)
    poses = np.stack([_matrix(cv2.Rodrigues(turn)[0], shift) for turn, shift in zip(turns, shifts, strict=True)])
    cells = np.concatenate(images) * (8 / width, 8 / height)
    covered = len({tuple(cell) for cell in cells.astype(int).tolist()}) / 64
    errors = [float(each) for each in view_errors.ravel()]
    return Calibrated(known, float(error), errors, [each[0] for each in found], poses, covered)


@dataclass(frozen=True)
class HandEye:
    """Where the camera is."""

    camera_pose: np.ndarray  # (4, 4) from points in the camera to the gripper (or the base, if it stands there) [m]
    turn_error: float  # median disagreement between views [degrees]
    shift_error: float  # [m]


def hand_eye(board_to_camera: np.ndarray, gripper_to_base: np.ndarray, mounting: str = "hand") -> HandEye:
    """Find the camera on the hand, or beside the robot looking at a board in the hand.

    The error is how far the views disagree about what must stand still: the board in the base, or on the gripper.

    Args:
        board_to_camera: (V, 4, 4) of `calibrate` [m].
        gripper_to_base: (V, 4, 4) from the robot, at the same moments [m].
        mounting: "hand" or "base".

    Raises:
        PixioError: if this OpenCV cannot.
        DataError: if there are too few poses, or they do not turn about two axes.
        UnknownName: for another mounting.
    """
    if mounting not in _MOUNTINGS:
        raise UnknownName(f"no mounting {mounting!r}; there are: {', '.join(_MOUNTINGS)}")
    if not hasattr(cv2, "calibrateHandEye"):
        raise PixioError(f"OpenCV {cv2.__version__} has no calibrateHandEye; pip install 'opencv-python>=4.10,<5'")
    if board_to_camera.shape != gripper_to_base.shape or len(board_to_camera) < 3:
        raise DataError(
            f"hand-eye needs at least 3 views with a pose each; got {len(board_to_camera)} and {len(gripper_to_base)}"
        )
    moved = gripper_to_base if mounting == "hand" else np.linalg.inv(gripper_to_base)
    _check_turns(np.linalg.inv(moved[0]) @ moved[1:])
    turn, shift = cv2.calibrateHandEye(
        list(moved[:, :3, :3]), list(moved[:, :3, 3]), list(board_to_camera[:, :3, :3]), list(board_to_camera[:, :3, 3])
    )
    pose = _matrix(turn, shift)
    still = moved @ pose @ board_to_camera  # the board, seen from what does not move
    middle = still[int(np.argmin(np.linalg.norm(still[:, :3, 3] - np.median(still[:, :3, 3], 0), axis=1)))]
    turns = [_angle(np.linalg.inv(middle) @ each) for each in still]
    shifts = np.linalg.norm(still[:, :3, 3] - middle[:3, 3], axis=1)
    return HandEye(pose, float(np.median(turns)), float(np.median(shifts)))


def spread(frames: Iterable[np.ndarray], most: int) -> tuple[list[int], list[np.ndarray], int]:
    """Choose at most so many of the frames, evenly over all of them, and hold no more than twice as many.

    Returns:
        the numbers of the chosen, the chosen, and how many there were.
    """
    held: list[tuple[int, np.ndarray]] = []
    step, count = 1, 0
    for image in frames:
        if count % step == 0:
            held.append((count, image.copy()))
        if len(held) > 2 * most:
            step, held = 2 * step, held[::2]
        count += 1
    places = np.unique(np.linspace(0, len(held) - 1, min(most, len(held))).round().astype(int))
    return [held[place][0] for place in places], [held[place][1] for place in places], count


def read_poses(path: Path) -> np.ndarray:
    """Return (n, 4, 4) from a .npy or .json file.

    Raises:
        DataError: if the file is missing, or holds something else.
    """
    try:
        values = np.load(path) if path.suffix == ".npy" else np.array(json.loads(path.read_text()), float)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} holds no poses: {error}") from error
    if values.shape[1:] != (4, 4) or not np.allclose(values[:, 3], (0, 0, 0, 1), atol=1e-6):
        raise DataError(
            f"{path} must hold one pose a frame, (frames, 4, 4) with a last row of 0 0 0 1; got {values.shape}"
        )
    return values


def _check_turns(relative: np.ndarray) -> None:
    """Refuse poses (n, 4, 4) that turn about fewer than two axes."""
    turns = np.degrees([cv2.Rodrigues(np.ascontiguousarray(each[:3, :3]))[0][:, 0] for each in relative])
    axis = np.linalg.svd(turns, full_matrices=False)[2][0]
    if np.abs(turns @ axis).max() < _LEAST_TURN:
        raise DataError("the gripper hardly turned between the views; hand-eye needs turns about two axes or more")
    if np.linalg.norm(turns - np.outer(turns @ axis, axis), axis=1).max() < _LEAST_TURN:
        raise DataError("the gripper turned about one axis only; hand-eye needs turns about two axes or more")


def _matrix(turn: np.ndarray, shift: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn, np.ravel(shift)
    return matrix


def _angle(matrix: np.ndarray) -> float:
    """Return by how much a pose turns [degrees]."""
    return float(np.degrees(np.linalg.norm(cv2.Rodrigues(np.ascontiguousarray(matrix[:3, :3]))[0])))
