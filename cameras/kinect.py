"""Azure Kinect recordings (.mkv) without the maker's SDK: PyAV reads the tracks, the calibration is an attachment.

The layout is the public "record file format" of the Azure Kinect Sensor SDK. The calibration's numbers are shares of
the whole sensor; a camera mode is a scaled and cropped part of it.
"""

import json
from collections.abc import Iterator
from typing import Any

import av
import numpy as np

from ..errors import DataError
from .camera import CameraRequest, CameraSpec
from .container import ContainerFile
from .frame import Frame, Intrinsics, metric
from .pairing import nearest_pairs

_UNIT = 0.001  # [m]
_BINNED = {
    (576, 640): 1024,
    (288, 320): 512,
    (1024, 1024): 1024,
    (512, 512): 512,
}  # depth size: side of the scaled sensor


class KinectFile(ContainerFile):
    """Each colour image of a recording with the nearest depth, which is in the depth camera's own geometry.

    Args:
        path: the .mkv.
    """

    def __init__(self, path: str, request: CameraRequest) -> None:
        super().__init__(path, request)
        self._tracks: dict[str, Any] = {}
        self._known: dict[str, Intrinsics] = {}
        self._pose: np.ndarray | None = None

    def start(self) -> CameraSpec:
        named = {_track_name(stream): stream for stream in self.open_container("recording").streams.video}
        self._tracks = {name: named[name] for name in ("COLOR", "DEPTH") if name in named}
        for name, asked in (("COLOR", self.request.color), ("DEPTH", self.request.depth)):
            if not asked:
                self._tracks.pop(name, None)
        if not self._tracks:
            raise DataError(f"{self.path} has neither a track COLOR nor DEPTH; it has: {', '.join(named)}")
        self._calibrate()
        sizes = {name: (stream.height, stream.width) for name, stream in self._tracks.items()}
        main = next(iter(self._tracks.values()))
        return CameraSpec(
            name=str(self.path),
            driver="kinect",
            live=False,
            color_size=sizes.get("COLOR"),
            depth_size=sizes.get("DEPTH"),
            fps=float(main.average_rate) if main.average_rate else None,
            unit=_UNIT if "DEPTH" in sizes else None,
            intrinsics=self._known.get("COLOR"),
            details={"serial": self.container.metadata.get("K4A_DEVICE_SERIAL_NUMBER", "")},
        )

    def _calibrate(self) -> None:
        for attachment in self.container.streams.attachments:
            if attachment.mimetype in (None, "application/octet-stream", "application/json"):
                try:
                    cameras = json.loads(bytes(attachment.data).rstrip(b"\0"))["CalibrationInformation"]["Cameras"]
                    known = {each["Purpose"].removeprefix("CALIBRATION_CameraPurpose"): each for each in cameras}
                    if "COLOR" in self._tracks:
                        self._known["COLOR"] = _color_intrinsics(known["PhotoVideo"], self._tracks["COLOR"])
                    if "DEPTH" in self._tracks:
                        self._known["DEPTH"] = _depth_intrinsics(known["Depth"], self._tracks["DEPTH"])
                    self._pose = np.linalg.inv(_pose(known["Depth"])) if "Depth" in known else np.eye(4)
                    self._pose = _pose(known["PhotoVideo"]) @ self._pose
                    return
                except (ValueError, KeyError, TypeError) as error:
                    raise DataError(f"{self.path} has a calibration that cannot be read: {error!r}") from error

    def frames(self) -> Iterator[Frame]:
        """Yield a frame a colour image, or a depth map where there is no colour."""
        return nearest_pairs(self._images()) if len(self._tracks) == 2 else self._images()

    def _images(self) -> Iterator[Frame]:
        try:
            for packet in self.container.demux(list(self._tracks.values())):
                for image in packet.decode():
                    when = float(image.time or 0.0)
                    if packet.stream is self._tracks.get("COLOR"):
                        rgb = image.to_ndarray(format="rgb24")
                        yield Frame(rgb, None, None, self._known.get("COLOR"), sensor_time=when)
                    else:
                        depth, valid = metric(image.reformat(format="gray16le").to_ndarray(), _UNIT)
                        known = self._known.get("DEPTH")
                        yield Frame(None, depth, valid, None, known, self._pose, _UNIT, None, when, when)
        except av.FFmpegError as error:
            raise DataError(f"{self.path} is damaged: {error}") from error


def _track_name(stream: Any) -> str:
    return stream.metadata.get("title", stream.metadata.get("TITLE", "")).upper()


def _scaled(camera: dict[str, Any], across: float, down: float, left: float, top: float, stream: Any) -> Intrinsics:
    """Return intrinsics of the part of a sensor of `across` x `down` px that begins at (`left`, `top`)."""
    numbers = camera["Intrinsics"]["ModelParameters"]
    cx, cy, fx, fy, k1, k2, k3, k4, k5, k6, _, _, p2, p1 = numbers[:14]
    return Intrinsics(
        stream.width,
        stream.height,
        fx * across,
        fy * down,
        cx * across - left - 0.5,
        cy * down - top - 0.5,
        "opencv",
        (k1, k2, p1, p2, k3, k4, k5, k6),
    )


def _color_intrinsics(camera: dict[str, Any], stream: Any) -> Intrinsics:
    """Colour modes use the sensor's whole width, and of a 16:9 image the middle of its height."""
    whole = stream.width * camera["SensorHeight"] / camera["SensorWidth"]
    return _scaled(camera, stream.width, whole, 0, (whole - stream.height) / 2, stream)


def _depth_intrinsics(camera: dict[str, Any], stream: Any) -> Intrinsics:
    """The narrow modes cut a part 192 px from the left and 180 from the top out of a sensor of 1024 px."""
    side = _BINNED.get((stream.height, stream.width))
    if side is None:
        raise DataError(f"no depth mode of the camera has {stream.width}x{stream.height} px")
    wide = stream.width == stream.height
    return _scaled(camera, side, side, 0 if wide else side * 192 / 1024, 0 if wide else side * 180 / 1024, stream)


def _pose(camera: dict[str, Any]) -> np.ndarray:
    """Return (4, 4) from points in the device's origin, the depth camera, to points in a camera [m]."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(camera["Rt"]["Rotation"], float).reshape(3, 3)
    matrix[:3, 3] = camera["Rt"]["Translation"]
    return matrix
