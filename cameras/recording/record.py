"""Recording a camera until a limit, its end or an interruption."""

import logging
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from ...errors import BadInput, CameraError, EndOfStream
from ...progress import silent, stage
from ...stopping import Stopping
from ..camera import Camera
from .writer import RecordingWriter

log = logging.getLogger(__name__)


class Recorded(NamedTuple):
    """The result of recording."""

    path: Path
    frames: int
    missing: int  # frames that the camera dropped


def record(camera: Camera, out: Path, color: str, frames: int | None = None, seconds: float | None = None) -> Recorded:
    """Record a camera without loss. An interruption keeps what was recorded.

    Args:
        camera: open or not; it is closed afterwards.
        out: folder to create.
        color: codec of colour, "h264" or "png".
        frames: stop after so many frames.
        seconds: stop after this time [s], by the source's own clock if it is not live.

    Raises:
        BadInput: if `seconds` is not positive.
        CameraError: if the camera fails before its first frame.
    """
    if seconds is not None and not seconds > 0:
        raise BadInput(f"seconds={seconds}: the duration must be positive")
    with camera, RecordingWriter(out, camera.spec, color) as writer, Stopping() as stopping:
        if (camera.spec.live or camera.spec.endless) and frames is None and seconds is None:
            log.info("recording %s until Ctrl-C; frames= or seconds= set a limit", camera.spec.name)
        missing, before, begin = 0, None, None
        total = frames or camera.spec.frames or 0
        shown = nullcontext() if total else silent()  # no progress bar without a total
        with shown, stage(f"record {camera.spec.name}", total) as bar:
            try:
                while not stopping.asked and writer.count < (frames or float("inf")):
                    frame = camera.read()
                    now = time.monotonic() if camera.spec.live else frame.sensor_time
                    begin = now if begin is None else begin
                    if now - begin >= (seconds or float("inf")):
                        break
                    missing += 0 if before is None else max(0, frame.sequence - before - 1)
                    before = frame.sequence
                    writer.add(frame)
                    bar.advance(1)
            except EndOfStream:
                log.info("%s has ended", camera.spec.name)
            except KeyboardInterrupt:  # a second interruption, while waiting for a frame
                stopping.signal = signal.SIGINT
            except CameraError as error:  # keep what was recorded
                if not writer.count:
                    raise
                log.warning("%s; the %d frames before that are kept", error, writer.count)
        if stopping.asked:
            log.info("stopped; %d frames are kept", writer.count)
    return Recorded(writer.path, writer.count, missing)
