"""Colour and depth in ROS recordings: ROS 1 bags, rosbag2 folders, .db3 and .mcap files. ROS is not needed."""

import logging
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from ...errors import CameraError, DataError, PixioError, UnknownName, Unreadable, closest
from ...ros_images import COMPRESSED, RAW, colour_image, depth_image, is_colour, is_depth, open_recording
from ..camera import CameraRequest, CameraSpec
from ..frame import Frame, Intrinsics, metric
from ..playback import Playback
from .file_types import MCAP, ROS1, SQLITE, is_realsense_recording, starts_with
from .pairing import nearest_pairs

if TYPE_CHECKING:
    from rosbags.highlevel import AnyReader

log = logging.getLogger(__name__)

_INFO, _TF = "sensor_msgs/msg/CameraInfo", "tf2_msgs/msg/TFMessage"
_MILLIMETRE = 0.001  # the unit of 16-bit depth in ROS, REP 118 [m]
_MODELS = {"plumb_bob": "opencv", "rational_polynomial": "opencv", "Brown Conrady": "opencv"}
_INVERSE = ("Inverse Brown Conrady", "Modified Brown Conrady")


@dataclass
class _Topic:
    """A topic of images and the properties of its camera."""

    name: str
    depth: bool
    count: int
    frame_id: str
    intrinsics: Intrinsics | None = None


class RosRecording(Playback):
    """One colour and one depth topic of a recording; each colour image is paired with the depth map nearest in time.

    Args:
        path: a .bag, .db3 or .mcap file, or a rosbag2 folder.
        request: `color_topic` and `depth_topic` choose among several; `depth=False` leaves depth out.
    """

    needs_argument = True
    reads = "ROS bags (ROS 1, .db3, .mcap, rosbag2 folders)"
    has_intrinsics = True

    def __init__(self, path: str, request: CameraRequest) -> None:
        super().__init__(request)
        self.path = Path(path)
        self._reader: AnyReader | None = None
        self._color: _Topic | None = None
        self._depth: _Topic | None = None
        self._unit = _MILLIMETRE
        self._pose: np.ndarray | None = None

    @classmethod
    def recognises(cls, path: Path) -> bool:
        if starts_with(path, ROS1, SQLITE):
            return not is_realsense_recording(path)
        return starts_with(path, MCAP) or (path / "metadata.yaml").is_file()

    def start(self) -> CameraSpec:
        self._reader = open_recording(self.path)
        try:
            topics = _image_topics(self._reader)
            self._color = _choose(topics, False, self.request.color_topic, self.path) if self.request.color else None
            self._depth = _choose(topics, True, self.request.depth_topic, self.path) if self.request.depth else None
            if self._color is None and self._depth is None:
                raise DataError(f"{self.path} has neither colour nor depth images")
            self._read_calibration(self._reader)
            return self._describe(self._reader)
        except PixioError:
            raise
        except Exception as error:  # for a damaged file the parsers of rosbags raise any exception
            raise DataError(f"{self.path} is damaged: {error or type(error).__name__}") from error

    def _read_calibration(self, reader: "AnyReader") -> None:
        """Read calibrations, poses and the depth unit."""
        for topic in (self._color, self._depth):
            if topic is not None:
                topic.intrinsics = _intrinsics(reader, topic.name)
        self._unit = _realsense_number(reader, "/option/Depth Units/value", self._depth) or _MILLIMETRE
        if self._color is None or self._depth is None:
            return
        realsense = [_realsense_pose(reader, topic.name) for topic in (self._depth, self._color)]
        if realsense[0] is not None and realsense[1] is not None:
            self._pose = realsense[1] @ np.linalg.inv(realsense[0])
        elif self._color.frame_id == self._depth.frame_id or "aligned" in self._depth.name:
            self._pose = np.eye(4)
        else:
            self._pose = _tf_pose(reader, self._depth.frame_id, self._color.frame_id)

    def _describe(self, reader: "AnyReader") -> CameraSpec:
        main = self._color or self._depth
        if main is None:
            raise DataError(f"{self.path} has neither colour nor depth images")
        seconds = reader.duration / 1e9
        known = self._color.intrinsics if self._color else None
        deep = self._depth.intrinsics if self._depth else None
        return CameraSpec(
            name=str(self.path),
            driver="ros",
            live=False,
            color_size=(known.height, known.width) if known else None,
            depth_size=(deep.height, deep.width) if deep else None,
            fps=(main.count - 1) / seconds if main.count > 1 and seconds > 0 else None,
            unit=self._unit if self._depth else None,
            intrinsics=known,
            frames=main.count,
            details={
                kind: topic.name
                for kind, topic in (("color", self._color), ("depth", self._depth))
                if topic is not None
            },
        )

    def frames(self) -> Iterator[Frame]:
        """Yield a frame per colour image, or per depth map without colour."""
        return self._images() if self._color is None or self._depth is None else nearest_pairs(self._images())

    def _images(self) -> Iterator[Frame]:
        reader, unreadable = self._reader, 0
        if reader is None:
            raise CameraError("the camera is not open")
        by_name = {topic.name: topic for topic in (self._color, self._depth) if topic is not None}
        connections = [each for each in reader.connections if each.topic in by_name]
        for connection, time, raw in reader.messages(connections):
            topic = by_name[connection.topic]
            try:
                yield self._frame(topic, reader.deserialize(raw, connection.msgtype), _stamp(raw, time))
            except Unreadable as error:
                unreadable += 1
                if unreadable == 1:
                    log.warning("%s: an image of %s is skipped: %s", self.path, topic.name, error)

    def _frame(self, topic: _Topic, message: Any, stamp: float) -> Frame:
        if topic.depth:
            values = depth_image(message)
            depth, valid = metric(values, self._unit)
            return Frame(
                rgb=None,
                depth=depth,
                valid=valid,
                intrinsics=None,
                depth_intrinsics=topic.intrinsics,
                depth_to_color=self._pose,
                unit=self._unit if values.dtype.kind == "u" else None,
                sensor_time=stamp,
                depth_time=stamp,
            )
        return Frame(_rgb(colour_image(message)), None, None, topic.intrinsics, sensor_time=stamp)

    def stop(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader = None


def _rgb(image: bytes | np.ndarray) -> np.ndarray:
    if isinstance(image, np.ndarray):
        return image
    values = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    if values is None:
        raise Unreadable("OpenCV cannot decode a compressed image")
    return cv2.cvtColor(values, cv2.COLOR_BGR2RGB)


def _stamp(raw: bytes, time: int) -> float:
    """Return the time of an image [s]: its header's stamp, or the recording's time if that is 0.

    Both serialisations begin with four bytes (ROS 1: the header's count, CDR: its representation), then seconds and
    nanoseconds.
    """
    seconds, nanoseconds = struct.unpack_from("<iI", raw, 4)
    return seconds + nanoseconds / 1e9 if seconds or nanoseconds else time / 1e9


def _image_topics(reader: "AnyReader") -> list[_Topic]:
    found: list[_Topic] = []
    for name in sorted({each.topic for each in reader.connections if each.msgtype in (RAW, COMPRESSED)}):
        connections = [each for each in reader.connections if each.topic == name]
        for connection, _, raw in reader.messages(connections):
            message: Any = reader.deserialize(raw, connection.msgtype)
            count = sum(each.msgcount for each in connections)
            mono = getattr(message, "encoding", "") == "mono16" and "depth" not in name.lower()  # infrared
            if is_colour(message) or (is_depth(message) and not mono):
                found.append(_Topic(name, is_depth(message), count, message.header.frame_id))
            break
    return found


def _choose(topics: list[_Topic], depth: bool, name: str | None, path: Path) -> _Topic | None:
    kind = "depth" if depth else "colour"
    fitting = [topic for topic in topics if topic.depth == depth]
    if name is not None:
        names = [topic.name for topic in fitting]
        if name not in names:
            there = ", ".join(names) or "none"
            raise UnknownName(f"{path} has no {kind} topic {name!r}{closest(name, names)}; there are: {there}")
        return fitting[names.index(name)]
    words = ("aligned", "depth") if depth else ("color", "rgb")
    return max(
        fitting, key=lambda topic: (sum(word in topic.name.lower() for word in words), topic.count), default=None
    )


def _first(reader: "AnyReader", connections: list[Any]) -> Any | None:
    for connection, _, raw in reader.messages(connections) if connections else ():
        return reader.deserialize(raw, connection.msgtype)
    return None


def _intrinsics(reader: "AnyReader", topic: str) -> Intrinsics | None:
    """Return the calibration of a topic: that of the nearest namespace above it with a CameraInfo."""
    place = topic
    infos = {each.topic: each for each in reader.connections if each.msgtype == _INFO}
    while "/" in place[1:]:
        place = place.rpartition("/")[0]
        for name in (f"{place}/camera_info", f"{place}/info/camera_info"):
            message = _first(reader, [infos[name]]) if name in infos else None
            if message is not None:
                return _from_info(message)
    return None


def _from_info(message: Any) -> Intrinsics | None:
    matrix = np.asarray(getattr(message, "K", getattr(message, "k", None)), float).reshape(3, 3)
    coefficients = tuple(float(each) for each in getattr(message, "D", getattr(message, "d", ())))
    name = message.distortion_model
    known = Intrinsics.from_matrix(matrix, int(message.width), int(message.height))
    if matrix[0, 0] <= 0:  # published without a calibration
        return None
    if not any(coefficients):
        return known
    model = "inverse_brown_conrady" if name in _INVERSE else _MODELS.get(name)
    if model is None:
        log.warning("distortion model %r is not known; no distortion is assumed", name)
        return known
    return known._replace(model=model, coefficients=coefficients)


def _realsense_number(reader: "AnyReader", end: str, topic: _Topic | None) -> float | None:
    """Return an option of the sensor of a RealSense topic, such as /device_0/sensor_0/Depth_0/image/data."""
    if topic is None or not topic.name.startswith("/device_"):
        return None
    sensor = "/".join(topic.name.split("/")[:3])
    message = _first(reader, [each for each in reader.connections if each.topic == sensor + end])
    return None if message is None else float(message.data)


def _realsense_pose(reader: "AnyReader", topic: str) -> np.ndarray | None:
    """Return (4, 4) from points in the device's reference stream to those in a RealSense stream's camera [m]."""
    if not topic.startswith("/device_"):
        return None
    stream = "/".join(topic.split("/")[:4])
    message = _first(reader, [each for each in reader.connections if each.topic.startswith(f"{stream}/tf/")])
    return None if message is None else _matrix(message)


def _matrix(transform: Any) -> np.ndarray:
    matrix = np.eye(4)
    turn, shift = transform.rotation, transform.translation
    quaternion = np.array([turn.x, turn.y, turn.z, turn.w])
    if np.linalg.norm(quaternion) > 0.5:
        matrix[:3, :3] = Rotation.from_quat(quaternion).as_matrix()
    matrix[:3, 3] = shift.x, shift.y, shift.z
    return matrix


def _tf_pose(reader: "AnyReader", source: str, target: str) -> np.ndarray | None:
    """Return (4, 4) from points in the frame `source` to `target`, along /tf_static; None if they are not connected."""
    to_parent: dict[str, tuple[str, np.ndarray]] = {}
    statics = [each for each in reader.connections if each.msgtype == _TF and each.topic.endswith("tf_static")]
    for connection, _, raw in reader.messages(statics) if statics else ():
        message: Any = reader.deserialize(raw, connection.msgtype)
        for each in message.transforms:
            to_parent[each.child_frame_id] = (each.header.frame_id, _matrix(each.transform))
    above = {}
    for start in (source, target):
        chain, place, matrix = {start: np.eye(4)}, start, np.eye(4)
        while place in to_parent and to_parent[place][0] not in chain:
            place, step = to_parent[place]
            matrix = step @ matrix
            chain[place] = matrix
        above[start] = chain
    shared = next((place for place in above[source] if place in above[target]), None)
    return None if shared is None else np.linalg.inv(above[target][shared]) @ above[source][shared]
