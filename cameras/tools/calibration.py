"""Intrinsics from views of a ChArUco board and hand-eye calibration, both with their errors, by OpenCV.

Shapes: V views, n corners of a view.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ...errors import BadInput, DataError, PixioError, UnknownName, closest
from ...files import replacing
from ...progress import Bar, stage
from ..camera import Camera
from ..frame import Intrinsics

_MIN_CORNERS = 6  # of a view
_MIN_VIEWS = 4
_MIN_ROTATION = 5.0  # about each of two axes, between two views of hand-eye [degrees]
_MODELS = {
    "opencv": 0,
    "rational": cv2.CALIB_RATIONAL_MODEL,
    "none": cv2.CALIB_ZERO_TANGENT_DIST | cv2.CALIB_FIX_K1 | cv2.CALIB_FIX_K2 | cv2.CALIB_FIX_K3,
}
_PRINTED_SQUARE = 120  # side of a printed board's squares [px]
_MOUNTINGS = ("hand", "base")


@dataclass(frozen=True)
class Board:
    """A ChArUco board: squares per row and column, sides of squares and markers [m], OpenCV's dictionary."""

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
        """Return the board as a grey image, uint8, with squares of `square` [px] and a margin of half a square."""
        size = ((self.columns + 1) * square, (self.rows + 1) * square)
        return self.make().generateImage(size, marginSize=square // 2)

    def write(self, path: Path) -> None:
        """Write the board as a PNG to print.

        Raises:
            BadInput: for another kind of file.
        """
        if path.suffix.lower() != ".png":
            raise BadInput(f"board={path}: the board is written without loss; give the name of a .png")
        data = cv2.imencode(".png", self.draw(_PRINTED_SQUARE))[1]
        with replacing(path) as temporary:
            temporary.write_bytes(data.tobytes())


@dataclass(frozen=True)
class CalibrationResult:
    """The result of a calibration."""

    intrinsics: Intrinsics
    error: float  # root mean square reprojection error [px]
    view_errors: list[float]  # root mean square reprojection error of each used view [px]
    used: list[int]  # indices of the views in which the board was found
    board_to_camera: np.ndarray  # (V, 4, 4) of the used views [m]
    covered: float  # share of the cells of an 8 x 8 grid over the image that had a corner


def calibrate(frames: Sequence[np.ndarray], board: Board, model: str = "opencv") -> CalibrationResult:
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
        listed = ", ".join(f"{width}x{height}" for height, width in sorted(sizes))
        raise BadInput(f"all images of a calibration must have one size; these have {listed}")
    made = board.make()
    detector = cv2.aruco.CharucoDetector(made)
    found: list[tuple[int, np.ndarray, np.ndarray]] = []
    for number, image in enumerate(frames):
        corners, ids, _, _ = detector.detectBoard(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
        if ids is not None and len(ids) >= _MIN_CORNERS:
            here = made.getChessboardCorners()[ids[:, 0]]
            if np.linalg.matrix_rank(here[:, :2] - here[0, :2]) == 2:  # corners on one line do not constrain the camera
                found.append((number, here, corners[:, 0]))
    if len(found) < _MIN_VIEWS:
        raise DataError(
            f"the board was found in {len(found)} of {len(frames)} frames, {_MIN_VIEWS} are needed; check "
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
    return CalibrationResult(known, float(error), errors, [each[0] for each in found], poses, covered)


@dataclass(frozen=True)
class HandEye:
    """The pose of the camera on the robot."""

    camera_pose: np.ndarray  # (4, 4) from points in the camera to the gripper, or to the base for a fixed camera [m]
    rotation_error: float  # median disagreement between views [degrees]
    translation_error: float  # median disagreement between views [m]


def hand_eye(board_to_camera: np.ndarray, gripper_to_base: np.ndarray, mounting: str = "hand") -> HandEye:
    """Find the pose of a camera on the hand, or of a fixed camera that observes a board in the hand.

    The error is the disagreement between views about a constant pose: that of the board in the base, or on the gripper.

    Args:
        board_to_camera: (V, 4, 4) of `calibrate` [m].
        gripper_to_base: (V, 4, 4) of the robot, at the same times [m].
        mounting: "hand" or "base".

    Raises:
        PixioError: if this version of OpenCV cannot.
        DataError: if there are too few poses, or they do not rotate about two axes.
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
    _check_rotations(np.linalg.inv(moved[0]) @ moved[1:])
    turn, shift = cv2.calibrateHandEye(
        list(moved[:, :3, :3]), list(moved[:, :3, 3]), list(board_to_camera[:, :3, :3]), list(board_to_camera[:, :3, 3])
    )
    pose = _matrix(turn, shift)
    still = moved @ pose @ board_to_camera  # the board in the frame in which it does not move
    middle = still[int(np.argmin(np.linalg.norm(still[:, :3, 3] - np.median(still[:, :3, 3], 0), axis=1)))]
    turns = [_angle(np.linalg.inv(middle) @ each) for each in still]
    shifts = np.linalg.norm(still[:, :3, 3] - middle[:3, 3], axis=1)
    return HandEye(pose, float(np.median(turns)), float(np.median(shifts)))


def select_evenly(frames: Iterable[np.ndarray], most: int) -> tuple[list[int], list[np.ndarray], int]:
    """Select at most `most` of the frames, evenly spaced; at most twice as many are in memory.

    Returns:
        the indices of the selected frames, the frames, and the number of all frames.
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


def calibrate_camera(
    camera: Camera, board: Board, model: str, views: int, poses: np.ndarray | None = None, mounting: str = "hand"
) -> tuple[CalibrationResult, HandEye | None]:
    """Calibrate from the images of a camera, and find its pose on the robot if poses are given.

    Args:
        camera: open or not; it is closed afterwards. Of a live camera, ten times `views` frames are read.
        board: the board that the images show.
        model: lens model, as for `calibrate`.
        views: largest number of images to use, evenly spaced.
        poses: (frames, 4, 4) gripper to base for each frame [m]; needs a recording or a folder.
        mounting: as for `hand_eye`.

    Raises:
        BadInput: for poses with a live camera.
        DataError: if the number of poses is not that of the images, or as `calibrate` and `hand_eye`.
    """
    with camera:
        if poses is not None and camera.spec.live:
            raise BadInput(
                f"robot= has one pose per image, but the images of a live camera ({camera.spec.name}) cannot be "
                "matched to poses; record them with: pixio-robot record, and calibrate the recording"
            )
        limit = None if camera.spec.frames else 10 * views
        with stage(f"read {camera.spec.name}", camera.spec.frames or limit or 0) as bar:
            chosen, images, count = select_evenly(_colour_images(camera, limit, bar), views)
    if poses is not None and len(poses) != count:
        raise DataError(f"robot= has {len(poses)} poses for {count} images; it must have one for each")
    result = calibrate(images, board, model)
    eye = None if poses is None else hand_eye(result.board_to_camera, poses[chosen][result.used], mounting)
    return result, eye


def _colour_images(camera: Camera, limit: int | None, bar: Bar) -> Iterator[np.ndarray]:
    for frame in islice(camera, limit):
        bar.advance(1)
        if frame.rgb is not None:
            yield frame.rgb


def read_poses(path: Path) -> np.ndarray:
    """Return (n, 4, 4) from a .npy or .json file.

    Raises:
        DataError: if the file is missing, or has other contents.
    """
    try:
        values = np.load(path) if path.suffix == ".npy" else np.array(json.loads(path.read_text()), float)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} has no poses: {error}") from error
    if values.shape[1:] != (4, 4) or not np.allclose(values[:, 3], (0, 0, 0, 1), atol=1e-6):
        raise DataError(
            f"{path} must have one pose per frame, (frames, 4, 4) with a last row of 0 0 0 1; got {values.shape}"
        )
    return values


def _check_rotations(relative: np.ndarray) -> None:
    """Refuse poses (n, 4, 4) that rotate about fewer than two axes."""
    turns = np.degrees([cv2.Rodrigues(np.ascontiguousarray(each[:3, :3]))[0][:, 0] for each in relative])
    axis = np.linalg.svd(turns, full_matrices=False)[2][0]
    if np.abs(turns @ axis).max() < _MIN_ROTATION:
        raise DataError("the gripper hardly rotated between the views; hand-eye needs rotations about two axes or more")
    if np.linalg.norm(turns - np.outer(turns @ axis, axis), axis=1).max() < _MIN_ROTATION:
        raise DataError("the gripper rotated about one axis only; hand-eye needs rotations about two axes or more")


def _matrix(turn: np.ndarray, shift: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn, np.ravel(shift)
    return matrix


def _angle(matrix: np.ndarray) -> float:
    """Return the rotation angle of a pose [degrees]."""
    return float(np.degrees(np.linalg.norm(cv2.Rodrigues(np.ascontiguousarray(matrix[:3, :3]))[0])))
