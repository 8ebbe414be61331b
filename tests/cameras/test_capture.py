"""The capture thread: the latest frame or none, every fault is counted, nothing blocks, leaks or is used when old."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import psutil
import pytest

from pixio_robot.cameras.camera import Camera, CameraRequest, CameraSpec
from pixio_robot.cameras.capture import Capture
from pixio_robot.cameras.drivers.simulated import TaskCamera
from pixio_robot.cameras.frame import Frame, Intrinsics, rgbd_frame
from pixio_robot.cameras.playback import Playback, RealTimePlayback
from pixio_robot.cameras.tools.faults import FaultInjectingCamera, Faults
from pixio_robot.errors import CameraError, EndOfStream, StaleFrame

SIZE = (24, 32)
KNOWN = Intrinsics(32, 24, 30.0, 30.0, 15.5, 11.5)


class _Steady(Camera):
    """A live camera at a fixed rate; it blocks until the next frame is due, and loses those nobody fetched.

    Every pixel of a frame is a function of its number, so that a mixture of two frames shows.
    """

    def __init__(self, fps: float = 200.0, count: int = 10**9, change: Callable[[Frame], Frame] = lambda frame: frame):
        self.fps, self.count, self.change = fps, count, change
        self.opened = self.closed = 0
        self.begin: float | None = None
        self.next = 0

    def open(self) -> None:
        self.opened += 1
        self.begin = self.begin or time.monotonic()

    @property
    def spec(self) -> CameraSpec:
        return CameraSpec("steady", "test", True, SIZE, SIZE, self.fps)

    def read(self) -> Frame:
        if self.begin is None:
            raise CameraError("closed")
        due = int((time.monotonic() - self.begin) * self.fps)
        number = self.next = max(self.next, due - 1) + 1
        if number > self.count:
            raise EndOfStream("the end")
        time.sleep(max(0.0, self.begin + number / self.fps - time.monotonic()))
        rgb = np.full((*SIZE, 3), number % 251, np.uint8)
        depth = np.full(SIZE, 1 + number % 1000, np.uint16)
        return self.change(rgbd_frame(rgb, depth, KNOWN, 0.001, number / self.fps, number))

    def close(self) -> None:
        self.closed += 1


def _whole(frame: Frame) -> bool:
    assert frame.rgb is not None and frame.depth is not None
    depth = np.float32(1 + frame.sequence % 1000) * np.float32(0.001)
    return bool((frame.rgb == frame.sequence % 251).all() and (frame.depth == depth).all())


def _until(happened: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


def test_the_latest_frame_is_new_complete_and_counted() -> None:
    with Capture(_Steady()) as camera:
        seen = []
        for _ in range(40):
            frame = camera.latest(max_age=0.5)
            assert _whole(frame) and frame.age() < 0.5
            time.sleep(0.007)
            assert _whole(frame), "it is valid until the next request"
            seen.append(frame.sequence)
        counters = camera.counters()
    assert seen == sorted(seen) and len(set(seen)) > 20
    assert counters.received == counters.published and counters.unseen > 0
    assert len(counters.ages) == 40 and max(counters.skews) == 0
    assert counters.skewed == counters.incomplete == counters.repeated == counters.failures == 0


def test_read_gives_each_frame_once() -> None:
    with Capture(_Steady(fps=100)) as camera:
        numbers = [camera.read().sequence for _ in range(30)]
    assert len(set(numbers)) == 30 and numbers == sorted(numbers)


def test_three_buffers_are_reused() -> None:
    with Capture(_Steady(fps=500)) as camera:
        places = {id(_array(camera.latest(1.0))) for _ in range(200) if time.sleep(0.001) is None}
    assert len(places) <= 3, "buffers are reused"


def _array(frame: Frame) -> Any:
    assert frame.rgb is not None
    return frame.rgb if frame.rgb.base is None else frame.rgb.base


def test_an_old_frame_is_refused() -> None:
    with Capture(_Steady(fps=100, count=3)) as camera:
        _until(lambda: camera.counters().published == 3)
        assert camera.latest(10.0).sequence == 3
        with pytest.raises(EndOfStream):
            camera.latest(10.0)
    stuck = threading.Event()

    def late(frame: Frame) -> Frame:
        if frame.sequence == 3:
            stuck.wait(2)
        return frame

    with Capture(_Steady(fps=100, change=late)) as camera:
        _until(lambda: camera.counters().published == 2)
        time.sleep(0.08)
        began = time.monotonic()
        for _ in range(3):
            with pytest.raises(StaleFrame, match="are allowed"):
                camera.latest(0.05)
        assert time.monotonic() - began < 0.05, "asking does not wait for the camera"
        stuck.set()
        _until(lambda: camera.counters().published > 3)
        assert camera.latest(1.0).sequence > 2
        counters = camera.counters()
    assert counters.stale == 3 and counters.stalls >= 1


def _faulty(**rates: Any) -> tuple[Capture, FaultInjectingCamera]:
    faulty = FaultInjectingCamera(_Steady(), Faults(**rates), seed=1)
    return Capture(faulty, back_off=(0.01, 0.05)), faulty


@pytest.mark.parametrize(
    ("fault", "counter"),
    [
        ("drop", "missing"),
        ("skew", "skewed"),
        ("nan", "not_finite"),
        ("incomplete", "incomplete"),
        ("repeat", "repeated"),
    ],
)
def test_each_fault_is_counted_and_rejected(fault: str, counter: str) -> None:
    camera, faulty = _faulty(**{fault: 0.3})
    with camera:
        for _ in range(60):
            frame = camera.read()
            assert frame.depth is not None and frame.valid is not None and np.isfinite(frame.depth).all()
            assert ((frame.depth == 0) == ~frame.valid).all() and frame.skew < 0.0025
        numbers = camera.counters().received
    counted = getattr(camera.counters(), counter)
    assert numbers > 60 or fault in ("drop", "nan")
    assert faulty.injected[fault] > 5
    # the steady camera itself may lose frames on a busy machine; those are missing too
    assert counted == faulty.injected[fault] if fault != "drop" else counted >= faulty.injected[fault] - 1


def test_the_end_of_a_recording_reports_faults() -> None:
    skewed = _Steady(count=3, change=lambda frame: replace(frame, depth_time=frame.sensor_time - 0.1))
    with Capture(skewed) as camera, pytest.raises(EndOfStream, match=r"the end; faults: [0-9 a-z,]*[123] skewed"):
        camera.read()


def test_an_unplugged_camera_is_reconnected() -> None:
    camera, faulty = _faulty(unplug=0.05, gone_seconds=0.1)
    with camera:
        _until(lambda: camera.counters().reconnects >= 3, 20)
        frame = camera.latest(2.0)
        assert _whole(frame)
    counters = camera.counters()
    assert counters.failures == faulty.injected["unplug"] and counters.reconnects >= counters.failures - 1
    assert faulty.injected["refusal"] >= 3, "it tried while the camera was gone"


def test_an_unplugged_camera_is_closed() -> None:
    source = _Steady()
    with Capture(FaultInjectingCamera(source, Faults(unplug=1.0, gone_seconds=5))) as camera:
        _until(lambda: camera.counters().failures == 1)
    assert source.closed >= 1


def test_a_missing_camera_does_not_block() -> None:
    class Gone(_Steady):
        def read(self) -> Frame:
            raise CameraError("gone")

    with Capture(Gone(), timeout=0.1, back_off=(0.01, 0.02)) as camera:
        for ask in (camera.read, lambda: camera.latest(1.0)):
            with pytest.raises(CameraError, match=r"no frame for 0\.1 s"):
                ask()
        began = time.monotonic()
    assert time.monotonic() - began < 1 and camera.counters().failures > 1


def test_the_error_of_a_driver_reaches_the_reader() -> None:
    def broken(frame: Frame) -> Frame:
        raise RuntimeError("the driver broke")

    with Capture(_Steady(change=broken)) as camera:
        for ask in (camera.read, lambda: camera.latest(1.0)):
            with pytest.raises(RuntimeError, match="the driver broke"):
                ask()


def test_closing_ends_the_thread_and_the_camera() -> None:
    source = _Steady(fps=50)
    camera = Capture(source)
    for _ in range(3):
        camera.open()
        camera.open()
        camera.read()
        camera.close()
        camera.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("camera steady")]
    assert source.opened == 3 and source.closed >= 3
    with pytest.raises(CameraError, match="not open"):
        camera.read()


class _Played(Playback):
    """A source whose frames take 5 ms to be made, or never come."""

    def __init__(self, waits: bool = False) -> None:
        super().__init__(CameraRequest(repeat=True))
        self.waits, self.stopped = waits, 0

    def start(self) -> CameraSpec:
        return CameraSpec("played", "test", False, SIZE, None, 200.0)

    def frames(self) -> Iterator[Frame]:
        number = 0
        while not self.closing:
            time.sleep(0.005)
            if not self.waits:
                number += 1
                yield rgbd_frame(np.zeros((*SIZE, 3), np.uint8), None, None, None, number / 200)

    def stop(self) -> None:
        self.stopped += 1


@pytest.mark.parametrize("paced", [False, True])
def test_a_playback_can_be_closed_while_it_is_read(paced: bool) -> None:
    source = _Played()
    camera = Capture(RealTimePlayback(source) if paced else source)
    for times in range(1, 6):
        camera.open()
        camera.read()
        camera.close()
        assert source.stopped == times, "its files are closed"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("camera played")]


def test_a_task_can_be_closed_while_it_is_rendered() -> None:
    source = TaskCamera("toy/reach", CameraRequest(width=32, render="fast"))
    with Capture(source) as camera:
        camera.read()
    assert source.env is None


def test_close_interrupts_a_source_that_waits_for_frames() -> None:
    source = _Played(waits=True)
    with Capture(source) as camera:
        time.sleep(0.03)
    assert source.stopped == 1 and camera.counters().failures == 0


def test_a_camera_that_restarts_its_numbers_is_accepted() -> None:
    source = _Steady(fps=200)

    def restarted(frame: Frame) -> Frame:
        number = frame.sequence - 300
        if number < 0:
            return frame
        return replace(frame, sequence=number, sensor_time=number / 200, depth_time=number / 200)

    source.change = restarted
    source.begin = time.monotonic() - 1.45
    with Capture(source) as camera:
        _until(lambda: camera.counters().received > 30)
        assert camera.latest(1.0).sequence < 290
        assert camera.counters().repeated == 0


def test_frames_with_numbers_but_without_times_are_accepted() -> None:
    """A custom source may lack the camera's clock."""
    with Capture(_Steady(fps=100, change=lambda frame: replace(frame, sensor_time=0.0, depth_time=0.0))) as camera:
        numbers = [camera.read().sequence for _ in range(5)]
        assert len(set(numbers)) == 5 and camera.counters().repeated == 0


def test_an_ended_recording_can_be_opened_again() -> None:
    class Short(_Played):
        def frames(self) -> Iterator[Frame]:
            yield from islice(super().frames(), 4)

    source = Short()
    source.request = CameraRequest()
    camera = Capture(source, timeout=1)
    for _ in range(2):
        with camera:
            assert list(camera)[-1].sequence == 3
    assert camera.counters().repeated == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_faults_for_a_long_time() -> None:
    """Ten minutes (or SOAK seconds) of a 30 Hz camera with everything that goes wrong, and a 20 Hz reader."""
    import os

    seconds = float(os.environ.get("SOAK", "600"))
    faults = Faults(
        drop=0.02, stall=0.005, skew=0.02, nan=0.02, incomplete=0.02, repeat=0.02, unplug=0.002, stall_seconds=0.25
    )
    faulty = FaultInjectingCamera(_Steady(fps=30), faults, seed=0)
    process, max_age = psutil.Process(), 0.1
    camera = Capture(faulty, back_off=(0.02, 0.2))
    used, stale, waits, memory = 0, 0, [], []
    with camera:
        end, last = time.monotonic() + seconds, -1
        camera.read()
        while time.monotonic() < end:
            began = time.monotonic()
            try:
                frame = camera.latest(max_age)
            except StaleFrame:
                stale += 1
            else:
                assert frame.age() < max_age + 0.05 and frame.depth is not None and frame.valid is not None
                assert np.isfinite(frame.depth).all() and not frame.depth[~frame.valid].any()
                assert frame.skew <= 1 / 60 and frame.sequence >= last
                used, last = used + 1, frame.sequence
            waits.append(time.monotonic() - began)
            memory.append((process.memory_info().rss, threading.active_count(), process.num_fds()))
            time.sleep(max(0.0, 0.05 - (time.monotonic() - began)))
    counters, injected = camera.counters(), faulty.injected
    print(f"\n{seconds:.0f} s: used {used}, stale {stale}, injected {dict(injected)}")
    print(f"slowest answer {1000 * max(waits):.1f} ms, {counters.reconnects} reconnects, unseen {counters.unseen}")
    quarter = len(memory) // 4
    first, final = (max(each[0] for each in part) for part in (memory[:quarter], memory[-quarter:]))
    print(f"memory {first / 2**20:.1f} MB in the first quarter, {final / 2**20:.1f} MB in the last")
    assert used > 0.5 * seconds * 20 and stale == counters.stale
    assert counters.skewed == injected["skew"] and counters.not_finite == injected["nan"]
    assert counters.incomplete == injected["incomplete"] and counters.repeated == injected["repeat"]
    assert counters.failures == injected["unplug"] and counters.reconnects in (counters.failures, counters.failures - 1)
    assert counters.missing >= 0.9 * injected["drop"] and counters.stalls >= 0.8 * injected["stall"]
    assert sorted(waits)[int(0.999 * len(waits))] < 0.05, "asking waited for the camera"
    assert final - first < 4 * 2**20 and memory[-1][1] <= memory[0][1] and memory[-1][2] <= memory[0][2] + 1, "a leak"
