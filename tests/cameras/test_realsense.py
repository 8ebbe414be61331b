"""RealSense through Intel's library: its software device, its recorder and player, and a real recording if given.

A real recording is named by the environment variable ``REALSENSE_BAG``: ``single_depth_color_640x480.bag`` from
librealsense's unit tests (Apache-2.0).
"""

import ctypes
import importlib.util
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixio_robot.cameras.camera import CameraRequest
from pixio_robot.cameras.drivers.realsense import RealSense
from pixio_robot.cameras.drivers.realsense_frames import frame_of, realsense_library
from pixio_robot.cameras.frame import Frame, Intrinsics, metric
from pixio_robot.cameras.geometry import registered, squared
from pixio_robot.cameras.lenses import rays
from pixio_robot.cameras.registry import find_camera, recognise
from pixio_robot.errors import CameraError, DataError, MissingExtra

if importlib.util.find_spec("pyrealsense2") is None:
    pytest.skip("needs the extra realsense", allow_module_level=True)
rs = realsense_library()  # not imported bare, which fails where the system has no libusb
SIZE = (48, 64)
UNIT = 0.0005


class _Device:
    """A camera of software: the library's own sensors, stream profiles, extrinsics and recorder."""

    def __init__(self, late: float = 0.0, own_clock: bool = False) -> None:
        self.late = late  # of colour [ms]
        self.own_clock = own_clock  # of colour, which began elsewhere
        self.device = rs.software_device()
        self.sensors, self.profiles = {}, {}
        for kind, form, bpp, focal in (
            (rs.stream.depth, rs.format.z16, 2, 50.0),
            (rs.stream.color, rs.format.rgb8, 3, 60.0),
        ):
            sensor = self.device.add_sensor(str(kind).removeprefix("stream."))
            stream = rs.video_stream()
            stream.type, stream.index, stream.uid = kind, 0, len(self.sensors)
            stream.width, stream.height, stream.fps, stream.bpp, stream.fmt = SIZE[1], SIZE[0], 30, bpp, form
            known = rs.intrinsics()
            known.width, known.height, known.fx, known.fy, known.ppx, known.ppy = (
                SIZE[1],
                SIZE[0],
                focal,
                focal,
                31.5,
                23.5,
            )
            known.model = rs.distortion.brown_conrady
            known.coeffs = [0.01, 0, 0, 0, 0] if kind == rs.stream.color else [0.0] * 5
            stream.intrinsics = known
            self.profiles[kind] = sensor.add_video_stream(stream)
            self.sensors[kind] = sensor
        self.sensors[rs.stream.depth].add_read_only_option(rs.option.depth_units, UNIT)
        pose = rs.extrinsics()
        pose.rotation, pose.translation = [0, 1, 0, -1, 0, 0, 0, 0, 1], [0.015, 0.001, -0.002]
        self.profiles[rs.stream.depth].register_extrinsics_to(self.profiles[rs.stream.color], pose)
        self.device.create_matcher(rs.matchers.default)

    def send(self, number: int, depth: np.ndarray, color: np.ndarray, sink: Any = None) -> None:
        """Send one pair; without the metadata the library's syncer pairs nearly none."""
        for kind, values, bpp, late in ((rs.stream.depth, depth, 2, 0.0), (rs.stream.color, color, 3, self.late)):
            frame = rs.software_video_frame()
            frame.pixels, frame.stride, frame.bpp = np.ascontiguousarray(values), SIZE[1] * bpp, bpp
            frame.timestamp, frame.domain = 1000 + number * 1000 / 30 + late, rs.timestamp_domain.hardware_clock
            arrival = 50_000 + number * 1000 // 30
            if self.own_clock and kind == rs.stream.color:
                frame.timestamp, frame.domain = frame.timestamp + 7000, rs.timestamp_domain.system_time
            self.sensors[kind].set_metadata(rs.frame_metadata_value.time_of_arrival, arrival)
            frame.frame_number, frame.profile = number, self.profiles[kind].as_video_stream_profile()
            if kind == rs.stream.depth:
                frame.depth_units = UNIT
            self.sensors[kind].set_metadata(rs.frame_metadata_value.actual_fps, 0)
            self.sensors[kind].on_video_frame(frame)


def _pair(number: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(number)
    depth = (rng.integers(0, 4000, SIZE) * (rng.random(SIZE) > 0.1)).astype(np.uint16)
    return depth, rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def _through_the_syncer(count: int, late: float = 0.0) -> list[Frame]:
    device, syncer, frames = _Device(late), rs.syncer(100), []
    for kind, sensor in device.sensors.items():
        sensor.open(device.profiles[kind])
        sensor.start(syncer)
    for number in range(count):
        device.send(number, *_pair(number))
        there, found = syncer.try_wait_for_frames(200)
        while there:
            frames.append(frame_of(rs, found.as_frameset(), UNIT))
            there, found = syncer.try_wait_for_frames(5)
    for sensor in device.sensors.values():
        sensor.stop()
        sensor.close()
    return frames


def test_frames_of_the_software_device_are_complete() -> None:
    frames = _through_the_syncer(8)
    pairs = [frame for frame in frames if frame.rgb is not None and frame.depth is not None]
    assert len(pairs) >= 6, "the syncer pairs them, but for the first"
    for frame in pairs:
        depth, color = _pair(frame.sequence)
        assert np.array_equal(frame.rgb, color) and np.array_equal(frame.depth, metric(depth, UNIT)[0])
        assert frame.skew < 1e-6 and frame.unit == UNIT and frame.sensor_time == pytest.approx(1 + frame.sequence / 30)
    known, deep, pose = pairs[0].intrinsics, pairs[0].depth_intrinsics, pairs[0].depth_to_color
    assert known is not None and deep is not None and pose is not None
    assert known.model == "opencv" and known.coefficients[0] == pytest.approx(0.01) and deep.model == "none"
    assert np.allclose(pose[:3], [[0, -1, 0, 0.015], [1, 0, 0, 0.001], [0, 0, 1, -0.002]], atol=1e-6)


def test_a_late_colour_sensor_gives_skew() -> None:
    pairs = [frame for frame in _through_the_syncer(8, late=9.0) if frame.rgb is not None and frame.depth is not None]
    assert pairs and all(frame.skew == pytest.approx(0.009, abs=1e-4) or frame.skew > 0.02 for frame in pairs)


def _recorded(count: int, own_clock: bool = False) -> str:
    device = _Device(own_clock=own_clock)
    recorder = rs.recorder("recorded.db3", device.device)
    sensors = dict(zip(device.sensors, recorder.query_sensors(), strict=True))
    queue = rs.frame_queue(100)
    for kind, sensor in sensors.items():
        sensor.open(device.profiles[kind])
        sensor.start(queue)
    for number in range(count):
        device.send(number, *_pair(number))
        time.sleep(0.005)
    time.sleep(0.3)
    for sensor in sensors.values():
        sensor.stop()
        sensor.close()
    recorder.pause()
    del recorder, sensors
    return "recorded.db3"


def test_a_recording_of_the_library_plays_back_exactly() -> None:
    name = _recorded(12)
    assert recognise(Path(name)) == "realsense-file"
    with find_camera(name) as camera:
        frames = list(camera)
        assert camera.spec.color_size == SIZE and camera.spec.unit == pytest.approx(UNIT)
    pairs = [frame for frame in frames if frame.rgb is not None and frame.depth is not None and frame.skew < 1e-6]
    assert len(pairs) >= 9
    for frame in pairs:
        depth, color = _pair(frame.sequence)
        assert np.array_equal(frame.rgb, color) and np.array_equal(frame.depth, metric(depth, frame.unit)[0])
    both = registered(pairs[-1])
    assert both.is_registered and both.depth is not None and both.depth.any()


def test_a_recording_with_two_clocks_is_paired_by_arrival() -> None:
    with find_camera(_recorded(12, own_clock=True)) as camera:
        frames = list(camera)
    pairs = [frame for frame in frames if frame.depth is not None and frame.skew < 1e-6]
    assert len(pairs) >= 9, "their own times are 7 s apart"
    for frame in pairs:
        depth, color = _pair(frame.sequence)
        assert np.array_equal(frame.rgb, color) and np.array_equal(frame.depth, metric(depth, frame.unit)[0])
        assert frame.sensor_time == pytest.approx(50 + frame.sequence / 30, abs=2e-3)


def test_a_missing_camera_or_recording_is_reported() -> None:
    camera = RealSense("", CameraRequest())
    if not rs.context().query_devices().size():
        with pytest.raises(CameraError, match="no RealSense camera is connected; connected are: none"):
            camera.open()
        with pytest.raises(CameraError, match="with serial number 42 is connected"):
            RealSense("42", CameraRequest()).open()
    Path("cut.bag").write_bytes(b"#ROSBAG V2.0\n" + bytes(64) + b"topic=/device_0/sensor_0")
    with pytest.raises(DataError, match="no RealSense recording that can be played"):
        find_camera("cut.bag").open()


def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pixio-robot\[realsense\]"):
        realsense_library()


class _WithoutLibusb:
    """An importer on whose machine the library does not find libusb."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "pyrealsense2":
            raise ImportError("libusb-1.0.so.0: cannot open shared object file: No such file or directory")


def test_libusb_of_its_package_is_the_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded for all libraries, before the second import; without the package the error says what to do."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.delitem(sys.modules, "pyrealsense2")
    monkeypatch.setattr(sys, "meta_path", [_WithoutLibusb(), *sys.meta_path])
    monkeypatch.setitem(sys.modules, "libusb_package", None)
    with pytest.raises(CameraError, match="apt-get install -y libusb"):
        realsense_library()
    loaded = []

    def load(path: str, mode: int) -> None:
        loaded.append((path, mode))
        sys.modules["pyrealsense2"] = rs  # with libusb in the process it imports

    package = types.ModuleType("libusb_package")
    package.get_library_path = lambda: Path("/somewhere/libusb-1.0.so")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "libusb_package", package)
    monkeypatch.setattr("ctypes.CDLL", load)
    assert realsense_library() is rs
    assert loaded == [("/somewhere/libusb-1.0.so", ctypes.RTLD_GLOBAL)]


def _along_colour_axis(depth: np.ndarray, known: Intrinsics, depth_to_color: np.ndarray) -> np.ndarray:
    """The library moves pixels but keeps distances along the depth camera's axis; turn them to the colour camera's."""
    columns, rows = np.meshgrid(np.arange(known.width), np.arange(known.height))
    ones = np.ones(known.width * known.height)
    looks = np.column_stack([rays(known, np.column_stack([columns.ravel(), rows.ravel()]).astype(float)), ones])
    back = np.linalg.inv(depth_to_color)
    return np.where(depth > 0, (depth - back[2, 3]) / (looks @ back[2, :3]).reshape(depth.shape), 0)


def _library_set(recording: str) -> tuple[Any, Any]:
    """Return a pipeline and the set that it makes of the recording; so short a file may be over before it is asked."""
    for _ in range(20):
        config, pipeline = rs.config(), rs.pipeline()
        config.enable_device_from_file(recording, repeat_playback=False)
        pipeline.start(config)
        there, found = pipeline.try_wait_for_frames(1000)
        if there and found.get_color_frame() and found.get_depth_frame():
            return pipeline, found
        pipeline.stop()
    raise AssertionError("the library made no set")


def test_the_real_recording_plays_registers_and_agrees_with_the_library(real_recording: str) -> None:
    with find_camera(real_recording) as camera:
        frames, spec = list(camera), camera.spec
    assert spec.details["model"].endswith("D435") and len(frames) == 1 and spec.depth_size == (480, 640)
    frame = frames[0]
    assert frame.valid is not None and frame.skew == pytest.approx(0.102, abs=0.001), "the nearest in time"
    assert 1 - frame.valid.mean() == pytest.approx(0.067, abs=0.001)
    pipeline, found = _library_set(real_recording)
    theirs = rs.align(rs.stream.color).process(found)
    mine = registered(frame_of(rs, found, frame.unit or 0.001))
    aligned = metric(np.asanyarray(theirs.get_depth_frame().get_data()), frame.unit)[0]
    pipeline.stop()
    assert mine.depth is not None and mine.intrinsics is not None and mine.skew > 0.2
    assert frame.depth_to_color is not None
    aligned = _along_colour_axis(aligned, mine.intrinsics, frame.depth_to_color)
    both = (mine.depth > 0) & (aligned > 0)
    assert ((mine.depth > 0) == (aligned > 0)).mean() > 0.98
    assert np.mean(np.abs(mine.depth[both] - aligned[both]) < 0.005) > 0.97
    seen = squared(mine, 224)
    assert (
        seen.valid is not None and seen.valid.mean() > 0.9 and seen.rgb is not None and seen.rgb.shape == (224, 224, 3)
    )


def test_the_live_camera_returns_the_frames_of_its_pipeline(real_recording: str) -> None:
    """All of it but the search for a device; so short a file may be over before it is asked."""

    class Played(RealSense):
        def choose_device(self, config: Any) -> str:
            config.enable_device_from_file(real_recording, repeat_playback=False)
            return "recorded"

    for _ in range(20):
        with Played("", CameraRequest(fps=6, timeout=0.5)) as camera:
            camera.open()
            assert camera.spec.live and camera.spec.name == "realsense:recorded" and camera.spec.intrinsics is not None
            assert camera.spec.color_size == camera.spec.depth_size == (480, 640)
            try:
                frame = camera.read()
            except CameraError:
                continue
            with pytest.raises(CameraError, match=r"gave no frame for 0\.5 s|is gone"):
                for _ in range(9):
                    camera.read()
        with pytest.raises(CameraError, match="not open"):
            camera.read()
        assert frame.rgb is not None and frame.rgb.shape == (480, 640, 3) and frame.unit == pytest.approx(0.001)
        return
    raise AssertionError("the library made no set")


def test_two_readers_of_the_real_recording_agree(real_recording: str) -> None:
    pytest.importorskip("rosbags")
    frames = {}
    for name in (real_recording, f"ros:{real_recording}"):
        with find_camera(name) as camera:
            frames[name] = next(iter(camera))
    library, ros = frames.values()
    assert np.array_equal(library.rgb, ros.rgb) and library.unit == pytest.approx(ros.unit)
    assert library.intrinsics is not None and ros.intrinsics is not None
    assert np.allclose(library.intrinsics[:6], ros.intrinsics[:6]) and np.allclose(
        library.depth_to_color, ros.depth_to_color, atol=1e-6
    )
    assert np.array_equal(library.depth, ros.depth) and ros.skew == pytest.approx(library.skew, abs=1e-6)
