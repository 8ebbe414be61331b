"""The commands about cameras: recordings are exact, calibration finds the true values, a check finds problems."""

import json
import re
import signal
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pixio_robot import cli
from pixio_robot.cameras import registry
from pixio_robot.cameras.camera import CameraRequest, CameraSpec
from pixio_robot.cameras.commands import Record
from pixio_robot.cameras.drivers.simulated import TaskCamera
from pixio_robot.cameras.frame import Frame, Intrinsics, rgbd_frame
from pixio_robot.cameras.intrinsics_file import read_intrinsics
from pixio_robot.cameras.playback import RealTimePlayback
from pixio_robot.cameras.recording.writer import RecordingWriter
from pixio_robot.cameras.registry import find_camera
from pixio_robot.cameras.settings import requested_camera
from pixio_robot.cameras.tools.calibration import Board, calibrate, hand_eye, select_evenly
from pixio_robot.cameras.tools.check import Finding, Measurements, depth_noise, findings
from pixio_robot.cameras.tools.view import colourised, depth_span
from pixio_robot.errors import BadInput, DataError, PixioError
from pixio_robot.video import read_video

TOY = ["render=fast", "width=32"]


def _run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = cli.run(list(words))
    out, err = capsys.readouterr()
    return status, out, err


def test_record_and_replay_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    for name, color in (("a", "h264"), ("b", "png")):
        words = ["camera=task:toy/reach", *TOY, "frames=5", f"out={name}", f"color={color}"]
        status, out, _ = _run(capsys, "record", *words)
        assert status == 0 and f"{name}: 5 frames, lossless" in out
        with (
            find_camera("task:toy/reach", CameraRequest(width=32, render="fast")) as truth,
            find_camera(name) as replay,
        ):
            for frame in replay:
                expected = truth.read()
                assert np.array_equal(frame.rgb, expected.rgb) and np.array_equal(frame.depth, expected.depth)
                assert np.array_equal(frame.valid, expected.valid)
                assert np.array_equal(frame.camera_to_world, expected.camera_to_world)
    status, _, err = _run(capsys, "record", "camera=a", "out=a")
    assert status == 1 and "a exists already" in err
    status, out, _ = _run(capsys, "record", "camera=a", "out=again")
    assert status == 0 and "again: 5 frames" in out, "a recording ends by itself"


@pytest.mark.parametrize("number", [None, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_record_keeps_what_came_before_an_interruption(
    number: int | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    count, read = 0, TaskCamera.read

    def interrupted(self: TaskCamera) -> Frame:
        nonlocal count
        count += 1
        if count == 3 and number is not None:
            signal.raise_signal(number)
        if count == 4:
            raise KeyboardInterrupt
        return read(self)

    monkeypatch.setattr(TaskCamera, "read", interrupted)
    status, out, _ = _run(capsys, "record", "camera=task:toy/reach", *TOY, "out=cut")
    assert status == 0 and "cut: 3 frames" in out and len(list(find_camera("cut").__enter__())) == 3


def test_settings_that_a_recording_cannot_follow_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(capsys, "record", "camera=task:toy/reach", *TOY, "seconds=0.5", "out=half")[0] == 0
    assert len(list(find_camera("half").__enter__())) == 10, "half a second of the simulation, however long it took"
    for words, message in (
        (["camera=half", "fps=7"], "fps=7.0: camera=half has fixed values"),
        (["camera=task:toy/reach", "fps=7"], "fps=7.0"),
        (["camera=half", "max_skew=-1"], "max_skew=-1.0 is a time"),
    ):
        status, _, err = _run(capsys, "camera_check", *words)
        assert status == 1 and message in err
    video = Path("half/depth.mkv")
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    status, _, err = _run(capsys, "camera_check", "camera=half")
    assert status == 1 and re.search("half is damaged: [^ \n]", err)


def test_views_of_every_kind_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    camera = ["camera=task:toy/reach", *TOY, "frames=6", "every=2"]
    status, out, _ = _run(capsys, "camera_view", *camera, "strip=3")
    assert status == 0 and "camera.png: 6 frames" in out
    assert cv2.imread("camera.png").shape == (64, 96, 3)
    assert _run(capsys, "camera_view", *camera, "out=a.mp4")[0] == 0
    assert read_video(Path("a.mp4")).shape == (6, 64, 32, 3)
    status, _, err = _run(capsys, "camera_view", *camera, "out=a.gif")
    assert status == 1 and "give a .png for a strip" in err and not Path("a.gif").exists()
    pytest.importorskip("rerun")
    assert _run(capsys, "camera_view", *camera, "out=a.rrd")[0] == 0
    assert Path("a.rrd").stat().st_size > 6 * 32 * 32 * 3


def test_colours_of_depth_are_ordered_and_invalid_is_grey() -> None:
    depth = np.linspace(0.5, 3, 64, dtype=np.float32).reshape(8, 8)
    depth[0, 0] = 0
    image = colourised(depth, 0.5, 3.0)
    assert tuple(image[0, 0]) == (180, 180, 180) and image[0, 1, 0] > image[-1, -1, 0], "near is warm"
    assert not (image.reshape(-1, 3)[1:] == (180, 180, 180)).all(1).any()
    with pytest.raises(BadInput, match="far the larger"):
        colourised(depth, 3, 0.5)
    assert depth_span([]) == (0.1, 1.0)


def _recording(change: Callable[[int, Frame], Frame | None], fps: float = 30.0) -> None:
    known = Intrinsics(32, 24, 30.0, 30.0, 15.5, 11.5)
    rng = np.random.default_rng(0)
    with RecordingWriter(Path("r"), CameraSpec("test", "test", False, (24, 32), (24, 32), fps)) as writer:
        for n in range(40):
            values = (1000 + rng.normal(0, 4, (24, 32))).astype(np.uint16)
            values[:2] = 0
            frame = change(n, rgbd_frame(np.zeros((24, 32, 3), np.uint8), values, known, 0.001, n / fps, n))
            if frame is not None:
                writer.add(frame)


def _without_depth(frame: Frame) -> Frame:
    assert frame.depth is not None and frame.valid is not None
    return replace(frame, depth=np.zeros_like(frame.depth), valid=np.zeros_like(frame.valid))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda n, frame: frame, ""),
        (lambda n, frame: None if n % 4 == 1 else frame, "drops"),
        (lambda n, frame: replace(frame, depth_time=frame.sensor_time - 0.04), "pairs"),
        (lambda n, frame: replace(frame, depth=None, valid=None) if n % 3 else frame, "pairs"),
        (lambda n, frame: _without_depth(frame), "validity"),
        (lambda n, frame: replace(frame, intrinsics=None), "intrinsics"),
    ],
)
def test_a_check_finds_each_problem(
    change: Callable[[int, Frame], Frame | None], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _recording(change)
    status, out, _ = _run(capsys, "camera_check", "camera=r")
    last = out.strip().splitlines()[-1]
    assert status == (1 if problem else 0)
    assert last == (f"r: not usable: {problem}" if problem else "r: usable")
    if not problem:
        assert "30.0 frames a second" in out and "8.3% of the depth is invalid" in out and "0 of 40 frames" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["record", "seconds=0"], "seconds=0"),
        (["camera_check", "max_invalid=7"], "max_invalid=7.0 is a share"),
    ],
)
def test_numbers_out_of_range_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = _run(capsys, *words, "camera=task:toy/reach", *TOY)
    assert status == 1 and message in err


def _judged(times: list[float], max_skew: float | None = None, **spec: Any) -> dict[str, Finding]:
    measured = Measurements(CameraSpec("x", "x", True, (2, 2), (2, 2), 30.0, **spec))
    for number, when in enumerate(times):
        frame = rgbd_frame(np.zeros((2, 2, 3), np.uint8), np.ones((2, 2), np.float32), None, None, when, number)
        measured.add(replace(frame, depth_time=when + 0.001), None)
    return {each.subject: each for each in findings(measured, max_skew, 0.5)}


def test_a_check_is_strict_and_reports_what_is_unknown() -> None:
    times = [n / 30 for n in range(10)]
    assert _judged(times)["pairs"].ok and not _judged(times, max_skew=0.0)["pairs"].ok
    stopped = _judged([1.0] * 10)["rate"]
    assert not stopped.ok and "the camera's clock did not advance in 10 frames" in stopped.detail
    assert "0 of 10 frames were dropped" in _judged(times)["drops"].detail
    silent = _judged(times, numbered=False)["drops"]
    assert silent.ok and "does not number its frames" in silent.detail and "were dropped" not in silent.detail


def test_the_codec_does_not_request_colour() -> None:
    camera = requested_camera(Record(camera="task:toy/reach", color="png"))
    assert isinstance(camera, TaskCamera) and camera.request.color is True


def test_noise_is_measured() -> None:
    rng = np.random.default_rng(0)
    still = [np.full((60, 80), 1.5, np.float32) + rng.normal(0, 0.01, (60, 80)).astype(np.float32) for _ in range(10)]
    noise = depth_noise(still)
    assert noise is not None and noise.distance == pytest.approx(1.5, abs=0.01) and noise.flicker == 0
    assert noise.median == pytest.approx(0.6745 * 0.01 * 2**0.5, rel=0.03)  # the median of |N(0, 2 sigma^2)|
    assert depth_noise(still[:1]) is None


def _board_images(count: int) -> tuple[list[np.ndarray], np.ndarray, Intrinsics, np.ndarray]:
    """Draw the board from many sides through a known lens; return images, poses and the truth."""
    board, square = Board(), 60
    flat = board.draw(square)
    known = Intrinsics(480, 360, 420.0, 425.0, 236.0, 184.0, "opencv", (-0.12, 0.05, 0.001, -0.0015, 0.0))
    rng = np.random.default_rng(0)
    columns, rows = np.meshgrid(np.arange(480, dtype=np.float32), np.arange(360, dtype=np.float32))
    pixels = np.stack([columns.ravel(), rows.ravel()], 1)[:, None]
    straight = cv2.undistortPoints(pixels, known.matrix, np.array(known.coefficients))[:, 0]
    rays = np.column_stack([straight, np.ones(len(straight))])
    images, poses = [], []
    for _ in range(count):
        pose = np.eye(4)
        pose[:3, :3] = cv2.Rodrigues(rng.uniform(-0.55, 0.55, 3))[0]
        pose[:3, 3] = pose[:3, :3] @ (-0.12, -0.09, 0) + (*rng.uniform(-0.05, 0.05, 2), rng.uniform(0.26, 0.4))
        normal, origin = pose[:3, 2], pose[:3, 3]
        there = rays * (origin @ normal / (rays @ normal))[:, None]
        here = ((there - origin) @ pose[:3, :3])[:, :2] / board.square * square + square / 2 - 0.5
        maps = here.astype(np.float32).reshape(360, 480, 2)
        view = cv2.remap(flat, maps, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=128)
        images.append(cv2.cvtColor(cv2.GaussianBlur(view, (3, 3), 0.6), cv2.COLOR_GRAY2RGB))
        poses.append(pose)
    return images, np.stack(poses), known, flat


def _some_pose(turn: tuple[float, float, float], shift: tuple[float, float, float]) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = cv2.Rodrigues(np.array(turn))[0], shift
    return pose


def test_calibration_finds_lens_and_hand_eye_pose(capsys: pytest.CaptureFixture[str]) -> None:
    images, boards, known, _ = _board_images(24)
    Path("views").mkdir()
    for number, image in enumerate(images):
        cv2.imwrite(f"views/{number:03d}.png", image)
    camera_in_hand, board_in_base = (
        _some_pose((0.1, -0.2, 1.5), (0.03, -0.02, 0.05)),
        _some_pose((3.0, 0.1, 0.1), (0.5, 0, 0)),
    )
    gripper = board_in_base @ np.linalg.inv(boards) @ np.linalg.inv(camera_in_hand)
    np.save("robot.npy", gripper)
    status, out, err = _run(capsys, "calibrate", "camera=views", "robot=robot.npy")
    assert status == 0, err
    error = float(out.split("reprojection error ")[1].split(" px")[0])
    assert error < 0.3
    found = read_intrinsics(Path("camera.json"))
    assert found.fx == pytest.approx(known.fx, rel=0.01) and found.fy == pytest.approx(known.fy, rel=0.01)
    assert found.cx == pytest.approx(known.cx, abs=4) and found.cy == pytest.approx(known.cy, abs=4)
    assert found.coefficients[0] == pytest.approx(-0.12, abs=0.03)
    written = json.loads(Path("camera.json").read_text())
    pose = np.array(written["camera_pose"])
    assert np.linalg.norm(pose[:3, 3] - camera_in_hand[:3, 3]) < 0.005
    assert np.abs(pose[:3, :3] - camera_in_hand[:3, :3]).max() < 0.015
    assert written["hand_eye_error"]["metres"] < 0.005
    with find_camera("views", CameraRequest(calibration="camera.json")) as camera:
        assert camera.read().intrinsics == found


def test_hand_eye_of_a_fixed_camera_and_its_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    camera_in_base, board_in_hand = _some_pose((2.0, 0.3, -0.1), (1, 0.2, 0.6)), _some_pose((0, 0.5, 0), (0, 0, 0.1))
    gripper = np.stack([_some_pose(tuple(rng.uniform(-1, 1, 3)), tuple(rng.uniform(-0.3, 0.3, 3))) for _ in range(9)])
    boards = np.linalg.inv(camera_in_base) @ gripper @ board_in_hand
    found = hand_eye(boards, gripper, "base")
    assert np.allclose(found.camera_pose, camera_in_base, atol=1e-6) and found.translation_error < 1e-6
    with pytest.raises(DataError, match="at least 3"):
        hand_eye(boards[:2], gripper[:2])
    with pytest.raises(DataError, match="hardly rotated"):
        hand_eye(boards, np.repeat(gripper[:1], 9, 0))
    about_one = np.stack([_some_pose((0, 0, angle), (angle, 0.1, 0)) for angle in np.linspace(0, 2, 9)])
    with pytest.raises(DataError, match="one axis only"):
        hand_eye(np.linalg.inv(camera_in_base) @ about_one @ board_in_hand, about_one)
    monkeypatch.delattr(cv2, "calibrateHandEye")
    with pytest.raises(PixioError, match="has no calibrateHandEye"):
        hand_eye(boards, gripper)


def test_calibration_reports_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    blank = [np.full((60, 80, 3), 200, np.uint8)] * 6
    with pytest.raises(DataError, match="found in 0 of 6"):
        calibrate(blank, Board())
    with pytest.raises(BadInput, match="must have one size; these have 40x30, 80x60"):
        calibrate([*blank, np.zeros((30, 40, 3), np.uint8)], Board())
    with pytest.raises(BadInput, match="does not fit"):
        Board(marker=0.05).make()
    with pytest.raises(BadInput, match="too few markers"):
        Board(20, 20, dictionary="DICT_4X4_50").make()
    status, out, _ = _run(capsys, "calibrate", "board=board.png", "columns=5", "rows=4")
    assert status == 0 and "the side of a square is 30 mm" in out and cv2.imread("board.png").shape == (600, 720, 3)
    assert _run(capsys, "calibrate", "camera=board.png")[0] == 1
    status, _, err = _run(capsys, "calibrate", "board=board.jpg")
    assert status == 1 and "give the name of a .png" in err and not Path("board.jpg").exists()


def test_poses_are_checked_before_the_images(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = _run(capsys, "calibrate", "camera=opencv:97", "robot=missing.npy")
    assert status == 1 and "missing.npy has no poses" in err
    np.save("poses.npy", np.stack([np.eye(4)] * 3))
    Path("views").mkdir()
    for number in range(4):
        cv2.imwrite(f"views/{number}.png", np.zeros((60, 80, 3), np.uint8))
    status, _, err = _run(capsys, "calibrate", "camera=views", "robot=poses.npy")
    assert status == 1 and "robot= has 3 poses for 4 images" in err


def test_poses_need_a_recording(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    np.save("poses.npy", np.eye(4)[None])
    monkeypatch.setattr(registry, "find_camera", lambda *_: RealTimePlayback(find_camera("task:toy/reach")))
    status, _, err = _run(capsys, "calibrate", "camera=opencv:0", "robot=poses.npy")
    assert status == 1 and "calibrate the recording" in err


def test_few_of_many_images_are_kept_in_memory() -> None:
    tracemalloc.start()
    chosen, images, count = select_evenly((np.full((100, 1000), n % 251, np.uint8) for n in range(1000)), 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 1000 and len(chosen) == 10 and peak < 25 * 100_000
    assert all((image == number % 251).all() for number, image in zip(chosen, images, strict=True))
    assert chosen[0] == 0 and chosen[-1] > 900 and np.diff(chosen).max() < 200
    assert select_evenly(iter([]), 4) == ([], [], 0)


def test_the_real_recording_through_the_commands(capsys: pytest.CaptureFixture[str], real_recording: str) -> None:
    status, out, _ = _run(capsys, "camera_check", f"camera={real_recording}")
    assert status == 1 and out.strip().endswith("not usable: pairs"), "its nearest pair is 102 ms apart"
    assert _run(capsys, "camera_check", f"camera={real_recording}", "max_skew=0.3")[0] == 0
    assert _run(capsys, "record", f"camera={real_recording}", "out=copy")[0] == 0
    with find_camera(real_recording) as first, find_camera("copy") as second:
        ours, theirs = second.read(), first.read()
    for name in ("rgb", "depth", "valid", "depth_to_color"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
    assert ours.intrinsics == theirs.intrinsics and ours.unit == theirs.unit and ours.skew == theirs.skew
