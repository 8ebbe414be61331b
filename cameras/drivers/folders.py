"""Folders of images, optionally with depth, and folders in the layout of TUM's RGB-D benchmark."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from ...errors import DataError, Unreadable
from ..camera import CameraRequest, CameraSpec
from ..frame import Frame, Intrinsics, rgbd_frame
from ..intrinsics_file import intrinsics_for
from ..playback import Playback

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_COLOR_FOLDERS = ("color", "rgb", "images")
_DEPTHS = (".png", ".tif", ".tiff", ".npy")
_MILLIMETRE = 0.001  # of 16-bit depth images [m]
_TUM_UNIT = 1 / 5000  # of TUM's depth images [m]
_TUM_SIZE, _TUM_FOCAL = (480, 640), 525.0  # the calibration that TUM's page recommends for all its sequences
_TUM_TOLERANCE = 0.02  # largest time between colour, depth and pose [s]


class ImageFolder(Playback):
    """Images in the order of their numbers, in the folder itself or in color/, rgb/ or images/, optionally with depth/.

    Depth images (16-bit PNG or TIFF in millimetres, or float .npy in metres) have the names of the colour images and
    are registered to them. ``camera.json`` in the folder has the intrinsics.

    Args:
        path: the folder.
        request: `fps` is the rate at which the images were taken, 30 by default.
    """

    needs_argument = True
    reads = "folders of images"
    adjustable = ("fps",)

    def __init__(self, path: str, request: CameraRequest) -> None:
        super().__init__(request)
        self.path = Path(path)
        self._pairs: list[tuple[Path | None, Path | None]] = []

    @classmethod
    def recognises(cls, path: Path) -> bool:
        if TumFolder.recognises(path) or any((path / name).is_file() for name in ("recording.json", "metadata.yaml")):
            return False  # another driver reads it
        folders = [path, *(path / name for name in (*_COLOR_FOLDERS, "depth"))]
        return any(_images(folder, _SUFFIXES) for folder in folders if folder.is_dir())

    def start(self) -> CameraSpec:
        colors: dict[str, Path] = {}
        for folder in (*(self.path / name for name in _COLOR_FOLDERS), self.path):
            if folder.is_dir() and (colors := _images(folder, _SUFFIXES)):
                break
        folder = self.path / "depth"
        depths = _images(folder, _DEPTHS) if folder.is_dir() and self.request.depth else {}
        if depths and colors and not set(colors) & set(depths):
            raise DataError(f"{folder} has no image with the name of a colour image, such as {next(iter(colors))!r}")
        names = sorted({*colors} & {*depths} if colors and depths else {*colors, *depths}, key=_natural)
        if not names:
            raise DataError(f"{self.path} has no images; known are {', '.join(_SUFFIXES)}")
        self._pairs = [(colors.get(name), depths.get(name)) for name in names]
        return _describe(self.path, "images", self._pairs, self.request, _MILLIMETRE, None)

    def frames(self) -> Iterator[Frame]:
        rate = self.spec.fps or 30.0
        for number, (color, depth) in enumerate(self._pairs):
            yield _read(color, depth, self.spec.intrinsics, _MILLIMETRE, number / rate)

    def stop(self) -> None:
        self._pairs = []


class TumFolder(Playback):
    """A sequence of TUM's RGB-D benchmark: rgb.txt, depth.txt and optionally groundtruth.txt, paired by time.

    Args:
        path: the folder.
    """

    needs_argument = True
    reads = "TUM folders (rgb.txt, depth.txt)"
    adjustable = ("fps",)

    def __init__(self, path: str, request: CameraRequest) -> None:
        super().__init__(request)
        self.path = Path(path)
        self._rows: list[tuple[float, Path, float, Path | None]] = []
        self._poses: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return all((path / name).is_file() for name in _LISTS)

    def start(self) -> CameraSpec:
        colors, depths = ([(when, self.path / words[0]) for when, words in _table(self.path / name)] for name in _LISTS)
        if not colors:
            raise DataError(f"{self.path / 'rgb.txt'} lists no images")
        times = np.array([when for when, _ in depths])
        for when, color in colors:
            nearest = int(np.abs(times - when).argmin()) if len(times) and self.request.depth else None
            if nearest is None or abs(times[nearest] - when) > _TUM_TOLERANCE:
                self._rows.append((when, color, when, None))
            else:
                self._rows.append((when, color, float(times[nearest]), depths[nearest][1]))
        truth = self.path / "groundtruth.txt"
        if truth.is_file() and (rows := _table(truth)):
            values = np.array([list(map(float, words[:7])) for _, words in rows])
            self._poses = np.array([when for when, _ in rows]), values
        height, width = _TUM_SIZE
        fallback = Intrinsics(width, height, _TUM_FOCAL, _TUM_FOCAL, width / 2 - 0.5, height / 2 - 0.5)
        pairs: list[tuple[Path | None, Path | None]] = [(color, depth) for _, color, _, depth in self._rows]
        spec = _describe(self.path, "tum", pairs, self.request, _TUM_UNIT, fallback)
        span = self._rows[-1][0] - self._rows[0][0]
        return replace(spec, fps=(len(self._rows) - 1) / span if span > 0 else None)

    def frames(self) -> Iterator[Frame]:
        for when, color, depth_time, depth in self._rows:
            frame = _read(color, depth, self.spec.intrinsics, _TUM_UNIT, when)
            yield replace(frame, camera_to_world=self._pose(when), depth_time=None if depth is None else depth_time)

    def _pose(self, when: float) -> np.ndarray | None:
        if self._poses is None:
            return None
        times, values = self._poses
        nearest = int(np.abs(times - when).argmin())
        if abs(times[nearest] - when) > _TUM_TOLERANCE:
            return None
        matrix = np.eye(4)
        matrix[:3, 3] = values[nearest, :3]
        matrix[:3, :3] = Rotation.from_quat(values[nearest, 3:7]).as_matrix()
        return matrix

    def stop(self) -> None:
        self._rows, self._poses = [], None


_LISTS = ("rgb.txt", "depth.txt")


def _images(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    return {file.stem: file for file in sorted(folder.iterdir()) if file.suffix.lower() in suffixes}


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort frame-10 after frame-9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _table(path: Path) -> list[tuple[float, list[str]]]:
    """Return the rows of one of TUM's lists: a time [s] and the other columns."""
    try:
        lines = [line.split() for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
        return [(float(words[0]), words[1:]) for words in lines if words[1:]]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no list of times and files: {error}") from error


def _describe(
    path: Path,
    driver: str,
    pairs: list[tuple[Path | None, Path | None]],
    request: CameraRequest,
    unit: float,
    fallback: Intrinsics | None,
) -> CameraSpec:
    color, depth = pairs[0]
    depth = depth or next((each for _, each in pairs if each is not None), None)
    sizes = [None if file is None else reader(file).shape[:2] for file, reader in ((color, _rgb), (depth, _depth))]
    size = sizes[0] or sizes[1] or (0, 0)
    if fallback is not None and size != (fallback.height, fallback.width):
        fallback = None
    return CameraSpec(
        name=str(path),
        driver=driver,
        live=False,
        color_size=sizes[0],
        depth_size=sizes[1],
        fps=request.fps or 30.0,
        unit=unit if depth is not None and depth.suffix != ".npy" else None,
        intrinsics=intrinsics_for(request.calibration, size, path, fallback),
        frames=len(pairs),
    )


def _read(color: Path | None, depth: Path | None, known: Intrinsics | None, unit: float, when: float) -> Frame:
    values = None if depth is None else _depth(depth)
    rgb = None if color is None else _rgb(color)
    if rgb is not None and values is not None and rgb.shape[:2] != values.shape:
        raise Unreadable(f"{depth} has {values.shape[1]}x{values.shape[0]} px, {color} {rgb.shape[1]}x{rgb.shape[0]}")
    return rgbd_frame(rgb, values, known, None if values is None or values.dtype.kind == "f" else unit, when)


def _rgb(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise Unreadable(f"{path} cannot be decoded by OpenCV")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _depth(path: Path) -> np.ndarray:
    try:
        values = np.load(path) if path.suffix == ".npy" else cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    except (OSError, ValueError) as error:
        raise Unreadable(f"{path} has no depth: {error}") from error
    if values is None or values.ndim != 2 or values.dtype.kind not in "uf" or values.dtype == np.uint8:
        found = "nothing that OpenCV can decode" if values is None else f"{values.dtype} {values.shape}"
        raise Unreadable(f"{path} has no depth: it must have 16-bit integers or floats (H, W), it has {found}")
    return values
