"""The commands record, camera_view, camera_check and calibrate."""

from dataclasses import dataclass

from ..command import Command
from ..settings import key
from .settings import CameraSettings, requested_camera


@dataclass
class Record(CameraSettings):
    """Record a camera without loss: colour, depth, calibration, times. Ctrl-C stops it and keeps the frames so far."""

    frames: int | None = key(None, "number of frames; null records until the source ends, or Ctrl-C", least=1)
    seconds: float | None = key(None, "duration [s], of a recording or a simulation by its own clock; null as above")
    color: str = key("h264", "lossless codec of colour: h264 (smaller), png")
    out: str = key("recording", "folder to create", free=True)


@dataclass
class CameraView(CameraSettings):
    """Show a camera: a strip of colour above depth (.png), a video (.mp4), or a rerun stream (.rrd, or live)."""

    frames: int = key(60, "largest number of frames", least=1)
    every: int = key(1, "show every n-th frame", least=1)
    strip: int = key(6, "images in a strip", least=1)
    register: bool = key(True, "transform depth to the colour image, if the geometry is known")
    near: float | None = key(None, "distance at the warm end of the scale [m]; null is the 1st percentile")
    far: float | None = key(None, "distance at the cold end of the scale [m]; null is the 99th percentile")
    viewer: bool = key(False, "open a rerun viewer and stream into it (extra viz)", free=True)
    out: str = key("camera.png", "file to write: .png, .mp4 or .rrd (extra viz)", free=True)


@dataclass
class CameraCheck(CameraSettings):
    """Check whether a camera is usable: rate, drops, skew, invalid share, static noise. Exits with 0 if it is."""

    frames: int = key(150, "largest number of frames", least=2)
    seconds: float = key(10.0, "longest time for a live camera [s]")
    max_skew: float | None = key(None, "largest time between colour and depth [s]; null is half a frame period")
    max_invalid: float = key(0.5, "largest share of invalid depth")
    real_time: bool = key(False, "play a recording in real time and drop late frames, as a live camera does")


@dataclass
class Calibrate(CameraSettings):
    """Find a camera's intrinsics from views of a ChArUco board, and with robot poses its pose on the robot."""

    camera: str = key("opencv:0", "camera, recording or folder of images that show the board")
    columns: int = key(8, "squares per row of the board", least=3)
    rows: int = key(6, "squares per column of the board", least=3)
    square: float = key(0.03, "side of a square [m]")
    marker: float = key(0.022, "side of a marker [m]")
    dictionary: str = key("DICT_5X5_100", "OpenCV's name of the markers' dictionary")
    views: int = key(40, "largest number of views, evenly spaced", least=4)
    model: str = key("opencv", "lens model: opencv (5 coefficients), rational (8), none")
    robot: str | None = key(
        None, ".npy or .json of gripper poses in the robot's base, one per frame, (frames, 4, 4), for hand-eye"
    )
    mounting: str = key("hand", "mounting of the camera: hand (it moves with the gripper), base (it is fixed)")
    board: str | None = key(None, "only write the board as an image to print, to this .png")
    out: str = key("camera.json", "file to write", free=True)


def run_record(settings: Record) -> int:
    """Record the camera and print the folder."""
    from pathlib import Path

    from .recording.record import record

    path, frames, missing = record(
        requested_camera(settings), Path(settings.out), settings.color, settings.frames, settings.seconds
    )
    dropped = f"; the camera dropped {missing}" if missing else ""
    print(f"{path}: {frames} frames, lossless{dropped}")
    print(f"view it with: pixio-robot camera_view camera={path}")
    return 0


def run_camera_view(settings: CameraView) -> int:
    """Write or stream the view and print its file."""
    from pathlib import Path

    from .tools.view import ViewOptions, view_camera

    options = ViewOptions(
        settings.frames, settings.every, settings.strip, settings.register, settings.near, settings.far
    )
    out = None if settings.viewer else Path(settings.out)
    frames = view_camera(requested_camera(settings), out, options)
    print(f"{out or 'rerun'}: {frames} frames of {settings.camera}")
    return 0


def run_camera_check(settings: CameraCheck) -> int:
    """Check the camera and print the findings; the status is 0 if it is usable."""
    from ..errors import BadInput
    from .playback import RealTimePlayback
    from .tools.check import findings, observe, summary

    if not 0 <= settings.max_invalid <= 1:
        raise BadInput(f"max_invalid={settings.max_invalid} is a share of the depth, from 0 to 1")
    if settings.max_skew is not None and not settings.max_skew >= 0:
        raise BadInput(f"max_skew={settings.max_skew} is a time between colour and depth [s], 0 or more")
    source = requested_camera(settings)
    with RealTimePlayback(source) if settings.real_time else source as camera:
        measured = observe(camera, settings.frames, settings.seconds)
    found = findings(measured, settings.max_skew, settings.max_invalid)
    for finding in found:
        print(f"{'ok     ' if finding.ok else 'PROBLEM'} {finding.subject:<10} {finding.detail}")
    print(f"{settings.camera}: {summary(found)}")
    return int(not all(finding.ok for finding in found))


def run_calibrate(settings: Calibrate) -> int:
    """Write the board to print, or calibrate, write the intrinsics and print the errors."""
    from pathlib import Path

    from .intrinsics_file import write_intrinsics
    from .tools.calibration import Board, calibrate_camera, read_poses

    board = Board(settings.columns, settings.rows, settings.square, settings.marker, settings.dictionary)
    if settings.board is not None:
        board.write(Path(settings.board))
        side = 1000 * settings.square
        print(f"{settings.board}: print it so that the side of a square is {side:g} mm, and measure it")
        return 0
    poses = None if settings.robot is None else read_poses(Path(settings.robot))
    camera = requested_camera(settings)
    result, eye = calibrate_camera(camera, board, settings.model, settings.views, poses, settings.mounting)
    details: dict[str, object] = {"reprojection_error": result.error, "views": len(result.used)}
    if eye is not None:
        details |= {
            "mounting": settings.mounting,
            "camera_pose": eye.camera_pose.tolist(),
            "hand_eye_error": {"degrees": eye.rotation_error, "metres": eye.translation_error},
        }
    known = result.intrinsics
    write_intrinsics(Path(settings.out), known, **details)
    print(f"focal lengths {known.fx:.2f} and {known.fy:.2f} px, centre ({known.cx:.2f}, {known.cy:.2f})")
    worst = max(result.view_errors)
    print(f"reprojection error {result.error:.3f} px over {len(result.used)} views, {worst:.3f} in the worst one")
    if result.covered < 0.6:
        print(f"corners cover {result.covered:.0%} of the image; hold the board into its corners too")
    if eye is not None:
        x, y, z = eye.camera_pose[:3, 3]
        print(f"camera at ({x:.4f}, {y:.4f}, {z:.4f}) m in the {'gripper' if settings.mounting == 'hand' else 'base'}")
        errors = f"{eye.rotation_error:.2f} degrees and {1000 * eye.translation_error:.1f} mm"
        print(f"the views disagree by {errors} (median)")
    print(f"{settings.out}: written; use it with calibration={settings.out}")
    return 0


COMMANDS = {
    "record": Command(Record, run_record),
    "camera_view": Command(CameraView, run_camera_view),
    "camera_check": Command(CameraCheck, run_camera_check),
    "calibrate": Command(Calibrate, run_calibrate),
}
