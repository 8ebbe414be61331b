"""Every source returns its data: recordings of all kinds, folders, demonstrations, tasks; errors have messages."""

import struct
import sys
import types
from dataclasses import replace
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pixio_robot import plugins
from pixio_robot.cameras.camera import Camera, CameraRequest, CameraSpec
from pixio_robot.cameras.drivers.pairing import nearest_pairs
from pixio_robot.cameras.drivers.simulated import TaskCamera
from pixio_robot.cameras.frame import Frame, Intrinsics, metric, rgbd_frame
from pixio_robot.cameras.geometry import crop, registered, resize, squared
from pixio_robot.cameras.intrinsics_file import read_intrinsics, write_intrinsics
from pixio_robot.cameras.playback import RealTimePlayback
from pixio_robot.cameras.recording.writer import RecordingWriter
from pixio_robot.cameras.registry import drivers, find_camera, recognise
from pixio_robot.datasets.dataset import open_dataset
from pixio_robot.envs.registry import TaskSpec, make
from pixio_robot.errors import (
    BadInput,
    CameraError,
    DataError,
    EndOfStream,
    MissingExtra,
    PixioError,
    StaleFrame,
    UnknownName,
    Unreadable,
)
from pixio_robot.policies.collect import collect
from pixio_robot.video import VideoWriter

KNOWN = Intrinsics(32, 24, 30.0, 31.0, 15.5, 11.5)


def _all(name: str, **request: Any) -> list[Frame]:
    with find_camera(name, CameraRequest(**request)) as camera:
        return list(camera)


def _images(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (24, 32, 3), dtype=np.uint8) for _ in range(count)]


def _depths(count: int, seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, 5000, (24, 32)) * (rng.random((24, 32)) > 0.2)).astype(np.uint16) for _ in range(count)]


def _frames(count: int, unit: float | None = 0.001) -> list[Frame]:
    depths: list[np.ndarray] = _depths(count)
    if unit is None:
        depths = [each.astype(np.float32) / 1017 for each in depths]
    pairs = enumerate(zip(_images(count), depths, strict=True))
    pose = np.arange(16.0).reshape(4, 4) / 7
    return [rgbd_frame(rgb, depth, KNOWN, unit, n / 30, n, pose, is_first=n == 0) for n, (rgb, depth) in pairs]


def _record(frames: list[Frame], path: str, color: str = "h264") -> str:
    spec = CameraSpec("test", "test", False, (24, 32), (24, 32), 30.0)
    with RecordingWriter(Path(path), spec, color) as writer:
        for frame in frames:
            writer.add(frame)
    return path


@pytest.mark.parametrize("unit", [0.001, 0.0001, None], ids=str)
@pytest.mark.parametrize("color", ["h264", "png"])
def test_a_recording_gives_back_every_bit(unit: float | None, color: str) -> None:
    frames = _frames(5, unit)
    again = _all(_record(frames, "recording", color))
    assert len(again) == 5 and recognise(Path("recording")) == "recording"
    for ours, theirs in zip(frames, again, strict=True):
        for name in ("rgb", "depth", "valid", "camera_to_world", "depth_to_color"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
        for name in ("intrinsics", "depth_intrinsics", "unit", "sensor_time", "depth_time", "sequence", "is_first"):
            assert getattr(ours, name) == getattr(theirs, name), name
        assert theirs.is_registered and theirs.age() < 60
    assert not list(Path().glob(".*"))


def test_a_recording_keeps_gaps_and_missing_halves() -> None:
    first, second, third = _frames(3)
    frames = [first, replace(second, depth=None, valid=None, sequence=4), replace(third, rgb=None, sequence=9)]
    again = _all(_record(frames, "gaps"))
    assert [frame.sequence for frame in again] == [0, 4, 9]
    assert [(frame.rgb is None, frame.depth is None) for frame in again] == [
        (False, False),
        (False, True),
        (True, False),
    ]
    assert np.array_equal(again[2].depth, third.depth)
    repeated = iter(find_camera("gaps", CameraRequest(repeat=True)).__enter__())
    assert [next(repeated).sequence for _ in range(6)] == [0, 4, 9, 10, 14, 19]


def test_a_recording_of_resized_frames_gives_back_every_bit() -> None:
    frames = [resize(frame, 12, 16) for frame in _frames(3, 0.001)]
    again = _all(_record(frames, "small"))
    assert all(np.array_equal(ours.depth, theirs.depth) for ours, theirs in zip(frames, again, strict=True))
    assert frames[0].unit is None and crop(_frames(1)[0], 0, 0, 8, 8).unit == 0.001


def test_a_recording_has_one_calibration() -> None:
    first, second, third = _frames(3)
    other = KNOWN._replace(fx=99.0)
    for change in ({"intrinsics": other}, {"depth_intrinsics": other}, {"depth_to_color": np.eye(4) * 2}):
        with pytest.raises(BadInput, match=f"one calibration; {next(iter(change))} changed"):
            _record([first, replace(second, **change)], "changing")
    silent = replace(second, depth_to_color=None)
    again = _all(_record([silent, first, replace(third, intrinsics=None)], "silent"))
    assert all(frame.intrinsics == KNOWN and frame.is_registered for frame in again)


def test_a_recording_gives_every_depth_map_without_colour() -> None:
    first, second, third = _frames(3)
    late = replace(third, depth_time=0.08)
    _record([first, replace(second, depth=None, valid=None, depth_time=None), late], "both")
    depths = _all("both", color=False)
    assert [frame.rgb for frame in depths] == [None, None] and np.array_equal(depths[1].depth, third.depth)
    assert depths[1].sensor_time == 0.08, "of depth, if there is no colour"
    with find_camera("both", CameraRequest(color=False)) as camera:
        assert camera.spec.color_size is None and camera.spec.depth_size == (24, 32)
    _record([replace(first, depth=None, valid=None)], "colour")
    with pytest.raises(DataError, match="holds rgb only"):
        _all("colour", color=False)


def test_a_recording_is_complete_or_absent() -> None:
    with pytest.raises(DataError, match="no frame"):
        _record([], "empty")
    with (
        pytest.raises(ZeroDivisionError),
        RecordingWriter(Path("cut"), CameraSpec("a", "b", False, None, None, None)) as w,
    ):
        w.add(_frames(1)[0])
        _ = 1 / 0
    with pytest.raises(BadInput, match="one size"):
        _record([*_frames(1), rgbd_frame(np.zeros((8, 8, 3), np.uint8), None, None)], "sizes")
    assert not list(Path().iterdir())
    _record(_frames(1), "there")
    with pytest.raises(DataError, match="exists already"):
        _record(_frames(1), "there")
    with pytest.raises(UnknownName, match="h264, png"):
        _record(_frames(1), "codec", "h265")
    Path("there/frames.jsonl").write_text("")
    with pytest.raises(DataError, match="no complete recording"):
        _all("there")


def _rosbag(kind: str, compressed: bool = False, tf: bool = False, size: tuple[int, int] = (24, 32)) -> str:
    """Write 3 colour images and 4 depth maps, the depth 4 ms late, with calibration."""
    pytest.importorskip("rosbags")
    from rosbags.rosbag1 import Writer as Writer1
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS1_NOETIC if kind == "bag" else Stores.ROS2_HUMBLE)
    types: Any = store.types
    if kind == "bag":
        path, writer = Path("a.bag"), Writer1(Path("a.bag"))
    else:
        path = Path("ros")
        plugin = StoragePlugin.MCAP if kind == "mcap" else StoragePlugin.SQLITE3
        writer = Writer(path, version=8, storage_plugin=plugin)
    serialise = store.serialize_ros1 if kind == "bag" else store.serialize_cdr

    def header(when: float, frame: str) -> Any:
        time = types["builtin_interfaces/msg/Time"](int(when), round(when % 1 * 1e9))
        values = (time, frame)
        return types["std_msgs/msg/Header"](*((0, *values) if kind == "bag" else values))

    def image(when: float, frame: str, encoding: str, values: np.ndarray) -> Any:
        data = np.frombuffer(values.tobytes(), np.uint8)
        height, width = values.shape[:2]
        return types["sensor_msgs/msg/Image"](
            header(when, frame), height, width, encoding, 0, len(data) // height, data
        )

    def packed(when: float, frame: str, encoding: str, values: np.ndarray, head: bytes = b"") -> Any:
        data = np.frombuffer(head + cv2.imencode(".png", values)[1].tobytes(), np.uint8)
        return types["sensor_msgs/msg/CompressedImage"](header(when, frame), encoding, data)

    def info(frame: str, known: Intrinsics) -> Any:
        kind_ = types["sensor_msgs/msg/CameraInfo"]
        region = types["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False)
        head = (header(1, frame), known.height, known.width, "plumb_bob")
        rows = (np.zeros(5), known.matrix.ravel(), np.eye(3).ravel(), np.zeros(12))
        return kind_(*head, *rows, 0, 0, region)

    def transform(parent: str, child: str, shift: tuple[float, float, float]) -> Any:
        vector = types["geometry_msgs/msg/Vector3"](*shift)
        turn = types["geometry_msgs/msg/Quaternion"](0.0, 0.0, 0.0, 1.0)
        inner = types["geometry_msgs/msg/Transform"](vector, turn)
        return types["geometry_msgs/msg/TransformStamped"](header(1, parent), child, inner)

    deep_frame = "depth_frame" if tf else "color_frame"
    with writer:
        connections: dict[str, Any] = {}

        def write(topic: str, when: float, message: Any) -> None:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, message.__msgtype__, typestore=store)
            writer.write(connections[topic], int(when * 1e9) + 7, serialise(message, message.__msgtype__))

        write("/cam/color/camera_info", 1, info("color_frame", KNOWN))
        write("/cam/depth/camera_info", 1, info(deep_frame, KNOWN._replace(fx=28.0) if tf else KNOWN))
        if tf:
            static = types["tf2_msgs/msg/TFMessage"](
                [transform("base", "color_frame", (0.1, 0, 0)), transform("base", "depth_frame", (0.15, 0, 0))]
            )
            write("/tf_static", 1, static)
        for n, (rgb, depth) in enumerate(zip(_images(4), _depths(4), strict=True)):
            when = 2 + n / 10
            if n < 3:
                if compressed:
                    write("/cam/color/image_raw/compressed", when, packed(when, "color_frame", "png", rgb[..., ::-1]))
                else:
                    write("/cam/color/image_raw", when, image(when, "color_frame", "rgb8", rgb))
            late = when + 0.004
            if compressed:
                said = "16UC1; compressedDepth png"
                write("/cam/depth/image_rect/compressedDepth", late, packed(late, deep_frame, said, depth, bytes(12)))
            else:
                write("/cam/depth/image_rect", late, image(late, deep_frame, "16UC1", depth))
            write("/cam/infra/image", late, image(late, deep_frame, "mono16", depth))
    return str(path if kind in ("bag", "folder") else next(path.glob(f"*.{kind}")))


@pytest.mark.parametrize("kind", ["bag", "folder", "db3", "mcap"])
@pytest.mark.parametrize("compressed", [False, True])
def test_ros_recordings_pair_colour_and_depth(kind: str, compressed: bool) -> None:
    name = _rosbag(kind, compressed)
    assert recognise(Path(name)) == "ros"
    frames = _all(name)
    assert len(frames) == 3
    for n, frame in enumerate(frames):
        assert np.array_equal(frame.rgb, _images(4)[n])
        assert np.array_equal(frame.depth, metric(_depths(4)[n], 0.001)[0])
        assert frame.skew == pytest.approx(0.004) and frame.sensor_time == pytest.approx(2 + n / 10)
        assert frame.intrinsics == KNOWN and frame.is_registered and frame.unit == 0.001
    assert _all(name, depth=False)[0].depth is None
    with pytest.raises(UnknownName, match="no colour topic '/cam/x'"):
        _all(name, color_topic="/cam/x")


def test_ros_transforms_register_depth() -> None:
    frame = _all(_rosbag("mcap", tf=True))[0]
    assert frame.depth_to_color is not None and np.allclose(frame.depth_to_color[:3, 3], (0.05, 0, 0))
    assert not frame.is_registered and registered(frame).is_registered
    assert frame.depth_intrinsics is not None and frame.depth_intrinsics.fx == 28.0


def _single(when: float, colour: bool) -> Frame:
    known = {"rgb": np.zeros((1, 1, 3), np.uint8), "depth": None, "valid": None}
    if not colour:
        known = {"rgb": None, "depth": np.ones((1, 1), np.float32), "valid": np.ones((1, 1), bool)}
    return Frame(**known, intrinsics=None, sensor_time=when, depth_time=None if colour else when)


@pytest.mark.parametrize("late", [0.05, -0.12])
def test_depth_of_the_same_time_is_paired_if_either_is_late(late: float) -> None:
    logged = [(n / 30 + late * (not colour), n / 30, colour) for n in range(9) for colour in (True, False)]
    pairs = list(nearest_pairs(_single(when, colour) for _, when, colour in sorted(logged)))
    assert [frame.sensor_time for frame in pairs] == [n / 30 for n in range(9)]
    assert all(frame.depth is not None and frame.skew == 0 for frame in pairs)


def test_pairs_continue_when_the_clock_is_reset() -> None:
    times = [n / 30 for _ in range(2) for n in range(20)]
    pairs = list(nearest_pairs(_single(when, colour) for when in times for colour in (True, False)))
    assert [frame.sensor_time for frame in pairs] == times
    assert [frame.skew == 0 for frame in pairs].count(False) <= 1, "the first of the new times has a large skew"


def test_folders_of_images_and_tum() -> None:
    rgbs, depths = _images(12), _depths(12)
    for folder in ("shots/color", "shots/depth", "tum/rgb", "tum/depth"):
        Path(folder).mkdir(parents=True)
    lines: dict[str, list[str]] = {"rgb": ["# colour"], "depth": ["# depth"], "groundtruth": ["# poses"]}
    for n, (rgb, depth) in enumerate(zip(rgbs, depths, strict=True)):
        cv2.imwrite(f"shots/color/{n}.png", rgb[..., ::-1])
        cv2.imwrite(f"shots/depth/{n}.png", depth)
        cv2.imwrite(f"tum/rgb/{n}.png", rgb[..., ::-1])
        cv2.imwrite(f"tum/depth/{n}.png", depth)
        lines["rgb"].append(f"{n / 30:.4f} rgb/{n}.png")
        if n != 5:
            lines["depth"].append(f"{n / 30 + 0.006:.4f} depth/{n}.png")
        lines["groundtruth"].append(f"{n / 30:.4f} {n} 0 1 0 0 0.7071068 0.7071068")
    write_intrinsics(Path("shots/camera.json"), KNOWN)
    frames = _all("shots")
    assert len(frames) == 12 and all(np.array_equal(a.rgb, b) for a, b in zip(frames, rgbs, strict=True)), "in order"
    assert all(np.array_equal(a.depth, metric(b, 0.001)[0]) for a, b in zip(frames, depths, strict=True))
    assert frames[3].intrinsics == KNOWN
    for name, rows in lines.items():
        Path(f"tum/{name}.txt").write_text("\n".join(rows))
    frames = _all("tum", calibration="shots/camera.json")
    assert recognise(Path("tum")) == "tum" and len(frames) == 12 and frames[5].depth is None
    assert np.array_equal(frames[4].depth, metric(depths[4], 1 / 5000)[0]) and frames[4].skew == pytest.approx(0.006)
    pose = frames[4].camera_to_world
    assert pose is not None and np.allclose(pose[:3, 3], (4, 0, 1)) and np.allclose(pose[:3, 0], (0, 1, 0), atol=1e-6)
    assert np.array_equal(_all("shots/color")[11].rgb, rgbs[11]), "a plain folder of images"


def test_eight_bit_images_are_refused_as_depth() -> None:
    for folder in ("grey/color", "grey/depth"):
        Path(folder).mkdir(parents=True)
        cv2.imwrite(f"{folder}/0.png", np.full((24, 32), 200, np.uint8))
    with pytest.raises(Unreadable, match=r"it must have 16-bit integers or floats \(H, W\), it has uint8"):
        _all("grey")


def test_intrinsics_files_scale_with_the_aspect_ratio() -> None:
    write_intrinsics(Path("camera.json"), KNOWN, error=0.3)
    assert read_intrinsics(Path("camera.json")) == KNOWN
    double = read_intrinsics(Path("camera.json"), (48, 64))
    assert (double.fx, double.cx) == (60.0, 31.5)
    with pytest.raises(DataError, match="another aspect ratio"):
        read_intrinsics(Path("camera.json"), (32, 32))
    Path("camera.json").write_text("{}")
    with pytest.raises(DataError, match="pixio-robot calibrate"):
        read_intrinsics(Path("camera.json"))


def _video(path: str) -> list[np.ndarray]:
    with VideoWriter(Path(path), 10) as writer:
        images = [np.full((24, 32, 3), 20 * n, np.uint8) for n in range(8)]
        for image in images:
            writer.add(image)
    return images


@pytest.mark.parametrize("driver", ["", "opencv:"])
def test_videos_are_colour_cameras(driver: str) -> None:
    images = _video("a.mp4")
    frames = _all(f"{driver}a.mp4")
    assert len(frames) == 8 and frames[3].depth is None and frames[3].sensor_time == pytest.approx(0.3)
    for frame, image in zip(frames, images, strict=True):
        assert frame.rgb is not None and np.abs(frame.rgb.astype(int) - image).max() <= 6
    assert (
        len(
            [
                frame
                for frame, _ in zip(
                    find_camera(f"{driver}a.mp4", CameraRequest(repeat=True)).__enter__(), range(20), strict=False
                )
            ]
        )
        == 20
    )


def test_a_rotated_video_has_upright_images_and_intrinsics() -> None:
    _video("a.mp4")
    data = bytearray(Path("a.mp4").read_bytes())  # turn the track's display matrix by a quarter, as phones do
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 24 << 16, 0, 1 << 30)
    Path("phone.mp4").write_bytes(data)
    write_intrinsics(Path("camera.json"), KNOWN._replace(width=24, height=32))
    with find_camera("phone.mp4", CameraRequest(calibration="camera.json")) as camera:
        frames, spec = list(camera), camera.spec
    assert spec.color_size == (32, 24) and len(frames) == 8 and frames[0].rgb.shape == (32, 24, 3)
    assert spec.intrinsics == frames[0].intrinsics == KNOWN._replace(width=24, height=32)


def test_demonstrations_are_cameras_with_depth_and_poses() -> None:
    request = TaskSpec("toy/reach", ("rgb", "depth", "proprio"), ("top", "front"), 32, "fast", 30)
    collect(request, demos=2, valid=0, first_seed=0, out=Path("demos.hdf5"), workers=1)
    frames = _all("demos.hdf5")
    assert len(frames) == 60 and [frame.is_first for frame in frames] == [n % 30 == 0 for n in range(60)]
    env = request.make()
    first, _ = env.reset(seed=open_dataset("demos.hdf5").provenance["seeds"][0])
    known = env.calibration()["top"]
    env.close()
    assert np.array_equal(frames[0].rgb, first["rgb"]) and np.array_equal(frames[0].depth, first["depth"])
    assert np.allclose(frames[0].camera_to_world, known.camera_to_world)
    assert frames[0].intrinsics is not None and np.allclose(frames[0].intrinsics.matrix, known.intrinsics)
    assert np.array_equal(_all("demos:demos.hdf5@front")[0].rgb, first["rgb_front"])
    with pytest.raises(UnknownName, match="it has: top, front"):
        _all("demos:demos.hdf5@side")


def test_a_task_is_a_camera_bit_for_bit() -> None:
    """What a policy is trained on, and what comes through the camera's whole path, are the same bytes."""
    request = CameraRequest(width=48, render="fast", seed=3)
    env = make("toy/reach", observe=("rgb", "depth", "proprio"), image_size=48, render="fast", horizon=50)
    observation, _ = env.reset(seed=3)
    with find_camera("task:toy/reach", request) as camera:
        for _ in range(4):
            frame = squared(registered(camera.read()), 48)
            assert np.array_equal(frame.rgb, observation["rgb"]) and np.array_equal(frame.depth, observation["depth"])
            assert frame.depth is not None and frame.rgb is not None and frame.depth.dtype == np.float32
            observation, *_ = env.step(env.task.expert_action())
        assert camera.spec.fps == 20.0 and frame.intrinsics is not None
        assert np.allclose(frame.intrinsics.matrix, env.calibration()["front"].intrinsics)
    env.close()


def test_a_policy_can_act_through_a_task_camera() -> None:
    with find_camera("task:toy/reach@top", CameraRequest(width=16, render="fast", depth=False)) as camera:
        assert isinstance(camera, TaskCamera) and camera.accepts_actions
        first = camera.read()
        camera.act(np.ones(3))
        camera.read()
        before = camera.observation["proprio"]
        camera.act(-np.ones(3))
        for _ in range(20):
            camera.read()
        assert (camera.observation["proprio"] < before).all() and first.is_first and first.depth is None


def test_real_time_playback_drops_late_frames() -> None:
    _record(_frames(10), "paced")
    now = [100.0]

    def wait(seconds: float) -> None:
        now[0] += seconds

    camera = RealTimePlayback(find_camera("paced"), clock=lambda: now[0], sleep=wait)
    with camera:
        assert camera.spec.live
        assert camera.read().sequence == 0 and camera.read().sequence == 1
        assert now[0] == pytest.approx(100 + 1 / 30)
        now[0] += 0.11  # somebody was slow
        late = camera.read()
        assert late.sequence == 4 and late.arrival_time == now[0]
        assert [frame.sequence for frame in camera] == [5, 6, 7, 8, 9]
    assert now[0] == pytest.approx(100 + 9 / 30)


class _Mine(Camera):
    """A third-party camera."""

    reads = "files of mine"

    def __init__(self, text: str, request: CameraRequest) -> None:
        self.text = text

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return path.suffix == ".mine"

    def open(self) -> None:
        pass

    @property
    def spec(self) -> CameraSpec:
        return CameraSpec(self.text, "mine", True, (2, 2), None, None)

    def read(self) -> Frame:
        return rgbd_frame(np.zeros((2, 2, 3), np.uint8), None, None)

    def close(self) -> None:
        pass


def test_a_third_party_source_is_a_class_and_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("their_cameras")
    module.Mine, module.NOTHING = _Mine, 7  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "their_cameras", module)
    entries = {
        name: metadata.EntryPoint(name, f"their_cameras:{value}", "pixio_robot.cameras")
        for name, value in (("mine", "Mine"), ("nothing", "NOTHING"))
    }
    monkeypatch.setattr(plugins, "_entries", lambda group: entries)
    assert drivers() == ["mine", "nothing"]
    with pytest.raises(PixioError, match="'nothing' is 7; it must be a subclass of Camera"):
        find_camera("nothing:0")
    Path("a.mine").write_text("mine")
    with find_camera("a.mine") as camera, pytest.raises(BadInput, match="does not accept actions"):
        camera.act(np.zeros(2))
    entries["again"] = entries["mine"]
    with pytest.raises(DataError, match=r"several drivers: again, mine; choose one: again:a\.mine"):
        find_camera("a.mine")
    with find_camera("mine:a:b") as camera:
        assert camera.spec.name == "a:b"
        assert camera.latest(max_age=1.0).rgb is not None
        with pytest.raises(BadInput, match="max_age"):
            camera.latest(max_age=0)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("relsense:1", UnknownName, "no camera driver 'relsense'; did you mean 'realsense'"),
        ("", BadInput, r"needs camera=\.\.\."),
        ("nothing.bag", DataError, r"no such file or folder: camera=nothing\.bag; it may also be a driver, e\.g\."),
        ("no/thing", DataError, "no such file or folder: camera=no/thing"),
        ("recording:missing", DataError, "there is no file or folder 'missing' for driver 'recording'"),
        ("demos:missing@front", DataError, "there is no file or folder 'missing@front'"),
        ("ros:missing.bag", DataError, r"there is no file or folder 'missing\.bag'"),
        ("webcam", DataError, "e.g. realsense, opencv:0"),
        ("task:toy/reech", UnknownName, "did you mean 'toy/reach'"),
        ("opencv:97", CameraError, "cannot read camera or file '97'"),
        ("text.txt", DataError, "no known recording; known are: .*demonstrations; .*folders of images"),
        ("folder", DataError, "no known recording"),
        ("bad.bag", DataError, "cannot be read as a recording"),
        ("bad.mkv", DataError, "no video"),
        ("bad.db3", DataError, "no ROS 2 recording"),
        ("bad.mp4", DataError, "no video"),
        ("bad.hdf5", DataError, "not a demonstration file"),
        ("tum", DataError, "no list of times"),
        ("recording", DataError, "no complete recording"),
    ],
)
def test_what_is_no_camera_is_refused_with_the_reason(name: str, error: type[PixioError], message: str) -> None:
    Path("text.txt").write_text("hello")
    for folder in ("folder", "tum", "recording"):
        Path(folder).mkdir()
    Path("tum/rgb.txt").write_text("a b c")
    Path("tum/depth.txt").write_text("1 x")
    Path("recording/recording.json").write_text("{}")
    Path("bad.bag").write_bytes(b"#ROSBAG V2.0\n")
    Path("bad.mkv").write_bytes(b"\x1a\x45\xdf\xa3 and nothing")
    Path("bad.db3").write_bytes(b"SQLite format 3\0 and nothing")
    Path("bad.mp4").write_bytes(b"\0\0\0\x20ftypisom and nothing")
    Path("bad.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n and nothing")
    if name == "bad.bag":
        pytest.importorskip("rosbags")
    with pytest.raises(error, match=message), find_camera(name, CameraRequest(width=8, render="fast")) as camera:
        camera.read()


def test_an_unused_calibration_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    _record(_frames(1), "known")
    Path("text.txt").write_text("hello")
    with pytest.raises(DataError, match=r"text\.txt has no intrinsics"):
        _all("known", calibration="text.txt")
    write_intrinsics(Path("camera.json"), KNOWN)
    assert len(_all("known", calibration="camera.json")) == 1
    assert "calibration=camera.json is not used: recording has its own intrinsics" in caplog.text


def test_a_folder_that_cannot_be_created_is_named() -> None:
    Path("text.txt").write_text("hello")
    with pytest.raises(DataError, match=r"out=text\.txt/rec cannot be created: Not a directory; choose another out="):
        _record(_frames(1), "text.txt/rec")


def test_a_folder_may_have_the_name_of_a_driver() -> None:
    assert len(_all(_record(_frames(2), "recording"))) == 2 and len(_all(_record(_frames(3), "images"))) == 3
    with pytest.raises(DataError, match="no known recording"):
        Path("tum").mkdir()
        find_camera("tum")


def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "depthai", None)
    with pytest.raises(MissingExtra, match=r"pixio-robot\[oak\]"):
        find_camera("oak")


class _OakMessage:
    """What one camera of a Luxonis device sends, as depthai gives it."""

    def __init__(self, image: np.ndarray, seconds: float) -> None:
        self.getFrame = self.getCvFrame = lambda: image
        self.getTimestampDevice = lambda: timedelta(seconds=seconds)
        self.getSequenceNum = lambda: 7


def test_colour_and_depth_of_luxonis_keep_their_own_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "depthai", types.ModuleType("depthai"))
    camera: Any = find_camera("oak")
    rgb, depth = _images(1)[0], _depths(1)[0]
    group = {"rgb": _OakMessage(rgb[..., ::-1], 2.0), "depth": _OakMessage(depth, 1.99)}
    camera._pipeline, camera._spec = object(), CameraSpec("oak", "oak", True, (24, 32), (24, 32), 30.0, 0.001, KNOWN)
    camera._queue = types.SimpleNamespace(tryGet=lambda: group)
    frame = camera.read()
    assert np.array_equal(frame.rgb, rgb) and np.array_equal(frame.depth, metric(depth, 0.001)[0])
    assert frame.skew == pytest.approx(0.01) and frame.sensor_time == 2.0 and frame.sequence == 7


def test_ends_and_ages_are_reported() -> None:
    _record(_frames(2), "short")
    camera = find_camera("short")
    with pytest.raises(CameraError, match="not open"):
        camera.read()
    with camera:
        camera.read()
        frame = camera.latest(max_age=5)
        assert frame.age(frame.arrival_time + 2) == 2
        with pytest.raises(EndOfStream, match="no more frames after 2"):
            camera.read()
    camera.close()
    from pixio_robot.cameras.camera import check_age

    with pytest.raises(StaleFrame, match="300 ms old, 200 ms are allowed"):
        check_age(frame, 0.2, frame.arrival_time + 0.3)
