"""What each command about cameras does, from its settings to its files."""

import logging
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import fields
from itertools import chain, islice
from pathlib import Path

import cv2
import numpy as np

from ..errors import BadInput, CameraError, DataError, EndOfStream
from ..files import replacing
from ..progress import Bar, silent, stage
from ..stopping import Stopping
from .calibration import Board, Calibrated, HandEye, calibrate, hand_eye, read_poses, spread
from .camera import Camera, CameraRequest
from .check import Finding, findings, observe
from .commands import Calibrate, CameraCheck, CameraView, Record
from .frame import Frame
from .geometry import registered
from .intrinsics_file import write_intrinsics
from .playback import Playback, RealTimePlayback
from .recording_writer import RecordingWriter
from .registry import find_camera
from .settings import CameraSettings
from .view import RerunStream, depth_span, tile, write_film, write_strip

log = logging.getLogger(__name__)

_LOOKED_AT = 5  # frames that set the scale of depth
_SQUARE = 120  # side of a printed board's squares [px]


def asked_camera(command: CameraSettings) -> Camera:
    """Return the camera that a command names, not open yet."""
    names = {each.name for each in fields(CameraRequest)} & {each.name for each in fields(CameraSettings)}
    asked = {name: value for name in names if (value := getattr(command, name)) is not None}
    camera = find_camera(command.camera, CameraRequest(**asked))
    fixed = {"fps", "width", "height"} - set(camera.follows) if isinstance(camera, Playback) else ()
    if ignored := [f"{name}={asked[name]}" for name in sorted(fixed) if name in asked]:
        raise BadInput(f"{', '.join(ignored)}: camera={command.camera} gives its frames as they are; leave that out")
    return camera


def run_record(command: Record) -> tuple[Path, int, int]:
    """Record a camera; return the folder, the frames in it and how many the camera left out."""
    if command.seconds is not None and not command.seconds > 0:
        raise BadInput(f"seconds={command.seconds}: there is something to record after 0 only")
    with (
        asked_camera(command) as camera,
        RecordingWriter(Path(command.out), camera.spec, command.color) as writer,
        Stopping() as stopping,
    ):
        endless = camera.spec.live or camera.spec.driver == "task"
        if endless and command.frames is None and command.seconds is None:
            log.info("recording %s until Ctrl-C; frames= or seconds= end it by themselves", camera.spec.name)
        missing, before, begin = 0, None, None
        total = command.frames or camera.spec.frames or 0
        shown = nullcontext() if total else silent()  # nobody knows how many there will be
        with shown, stage(f"record {camera.spec.name}", total) as bar:
            try:
                while not stopping.asked and writer.count < (command.frames or float("inf")):
                    frame = camera.read()
                    now = time.monotonic() if camera.spec.live else frame.sensor_time
                    begin = now if begin is None else begin
                    if now - begin >= (command.seconds or float("inf")):
                        break
                    missing += 0 if before is None else max(0, frame.sequence - before - 1)
                    before = frame.sequence
                    writer.add(frame)
                    bar.advance(1)
            except EndOfStream:
                log.info("%s is over", camera.spec.name)
            except KeyboardInterrupt:  # asked again, while waiting for a frame
                stopping.signal = signal.SIGINT
            except CameraError as error:  # what was recorded is worth keeping
                if not writer.count:
                    raise
                log.warning("%s; the %d frames before that are kept", error, writer.count)
        if stopping.asked:
            log.info("ended; %d frames are kept", writer.count)
    return writer.path, writer.count, missing


def run_view(command: CameraView) -> tuple[Path | None, int]:
    """Show a camera; return the file, or None for a viewer, and the number of frames shown."""
    out = Path(command.out)
    kind = "viewer" if command.viewer else out.suffix
    if kind not in ("viewer", ".png", ".mp4", ".rrd"):
        raise BadInput(f"out={command.out}: give a .png for a strip, an .mp4 for a video or an .rrd for rerun")
    with asked_camera(command) as camera:
        frames = _seen(camera, command)
        if kind == "viewer":
            return None, _stream(RerunStream(None), frames)
        if kind == ".rrd":
            with replacing(out) as temporary:
                return out, _stream(RerunStream(temporary), frames)
        first = list(islice(frames, _LOOKED_AT))
        near, far = depth_span(first)
        tiles = [tile(frame, command.near or near, command.far or far) for frame in chain(first, frames)]
        rate = (camera.spec.fps or 30.0) / command.every
    if not tiles:
        raise DataError(f"{command.camera} gave no frame to show")
    if kind == ".mp4":
        write_film(out, tiles, rate)
    else:
        write_strip(out, tiles, command.strip)
    return out, len(tiles)


def _seen(camera: Camera, command: CameraView) -> Iterator[Frame]:
    """Yield the frames to show, registered where that is wanted and can be."""
    said = False
    with stage(f"view {camera.spec.name}", command.frames) as bar:
        for number, frame in enumerate(camera):
            if number % command.every:
                continue
            if number // command.every >= command.frames:
                return
            bar.advance(1)
            try:
                yield (registered(frame) if command.register else frame).copy()
            except BadInput as error:
                if not said:
                    log.warning("%s; it is shown as it came", error)
                said = True
                yield frame.copy()


def _stream(stream: RerunStream, frames: Iterator[Frame]) -> int:
    shown = 0
    try:
        for frame in frames:
            stream.add(frame)
            shown += 1
    finally:
        stream.close()
    return shown


def run_check(command: CameraCheck) -> list[Finding]:
    """Look at a camera and judge it."""
    if not 0 <= command.max_invalid <= 1:
        raise BadInput(f"max_invalid={command.max_invalid} is a share of the depth, from 0 to 1")
    if command.max_skew is not None and not command.max_skew >= 0:
        raise BadInput(f"max_skew={command.max_skew} is a time between colour and depth [s], 0 or more")
    source = asked_camera(command)
    with RealTimePlayback(source) if command.real_time else source as camera:
        stretch = observe(camera, command.frames, command.seconds)
    return findings(stretch, command.max_skew, command.max_invalid)


def run_calibrate(command: Calibrate) -> tuple[Calibrated | None, HandEye | None]:
    """Write the board to print, or find intrinsics and write them, with the hand-eye pose where poses are given."""
    board = Board(command.columns, command.rows, command.square, command.marker, command.dictionary)
    if command.board is not None:
        if Path(command.board).suffix.lower() != ".png":
            raise BadInput(f"board={command.board}: the board is drawn without loss; give the name of a .png")
        data = cv2.imencode(".png", board.draw(_SQUARE))[1]
        with replacing(Path(command.board)) as temporary:
            temporary.write_bytes(data.tobytes())
        return None, None
    poses = None if command.robot is None else read_poses(Path(command.robot))
    with asked_camera(command) as camera:
        if poses is not None and camera.spec.live:
            raise BadInput(
                f"robot={command.robot} holds a pose an image, and nobody knows which images {camera.spec.name} "
                "gives; record them with: pixio-robot record, and calibrate the recording"
            )
        limit = None if camera.spec.frames else 10 * command.views
        with stage(f"look at {camera.spec.name}", camera.spec.frames or limit or 0) as bar:
            chosen, images, count = spread(_colours(camera, limit, bar), command.views)
    if poses is not None and len(poses) != count:
        raise DataError(f"{command.robot} holds {len(poses)} poses for {count} images; it must hold one for each")
    result = calibrate(images, board, command.model)
    eye = None
    if poses is not None:
        eye = hand_eye(result.board_to_camera, poses[chosen][result.used], command.mounting)
    details: dict[str, object] = {"reprojection_error": result.error, "views": len(result.used)}
    if eye is not None:
        details |= {
            "mounting": command.mounting,
            "camera_pose": eye.camera_pose.tolist(),
            "hand_eye_error": {"degrees": eye.turn_error, "metres": eye.shift_error},
        }
    write_intrinsics(Path(command.out), result.intrinsics, **details)
    return result, eye


def _colours(camera: Camera, limit: int | None, bar: Bar) -> Iterator[np.ndarray]:
    for frame in islice(camera, limit):
        bar.advance(1)
        if frame.rgb is not None:
            yield frame.rgb
