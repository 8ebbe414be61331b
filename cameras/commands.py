"""The commands record, camera_view, camera_check and calibrate."""

from dataclasses import dataclass

from ..command import Command
from ..settings import key
from .settings import CameraSettings


@dataclass
class Record(CameraSettings):
    """Record a camera without loss: colour, depth, calibration, times. Ctrl-C ends it and keeps what there is."""

    frames: int | None = key(None, "frames; null records until the source ends, or Ctrl-C", least=1)
    seconds: float | None = key(None, "seconds, of a recording or a simulation by its own clock; null as above")
    color: str = key("h264", "codec of colour, both without loss: h264 (smaller), png")
    out: str = key("recording", "folder to make", free=True)


@dataclass
class CameraView(CameraSettings):
    """Show a camera: a strip of colour over depth (.png), a video of them (.mp4), or a rerun stream (.rrd, or live)."""

    frames: int = key(60, "frames to look at", least=1)
    every: int = key(1, "look at each frame whose number this divides", least=1)
    strip: int = key(6, "images in a strip", least=1)
    register: bool = key(True, "bring depth into the colour image, where the geometry is known")
    near: float | None = key(None, "distance shown brightest [m]; null is the nearest percentile of the first frames")
    far: float | None = key(None, "distance shown darkest [m]; null is the farthest percentile")
    viewer: bool = key(False, "open a rerun viewer and stream into it (extra viz)", free=True)
    out: str = key("camera.png", "file to write: .png, .mp4 or .rrd (extra viz)", free=True)


@dataclass
class CameraCheck(CameraSettings):
    """Say whether a camera is usable: rate, drops, skew, invalid share, noise of a static scene. Exits with 0 if so."""

    frames: int = key(150, "frames to look at, at most", least=2)
    seconds: float = key(10.0, "seconds to look at a live camera, at most")
    max_skew: float | None = key(None, "most that colour and depth may be apart [s]; null is half a frame period")
    max_invalid: float = key(0.5, "largest share of invalid depth")
    real_time: bool = key(False, "play a recording at its own pace, dropping what is late, as a live camera does")


@dataclass
class Calibrate(CameraSettings):
    """Find a camera's intrinsics from views of a ChArUco board, and with poses of the robot its place on it."""

    camera: str = key("opencv:0", "camera, recording or folder of images that show the board")
    columns: int = key(8, "squares across the board", least=3)
    rows: int = key(6, "squares down the board", least=3)
    square: float = key(0.03, "side of a square [m]")
    marker: float = key(0.022, "side of a marker [m]")
    dictionary: str = key("DICT_5X5_100", "OpenCV's name of the markers' dictionary")
    views: int = key(40, "views to use, at most, evenly spaced", least=4)
    model: str = key("opencv", "lens: opencv (5 coefficients), rational (8), none")
    robot: str | None = key(
        None, ".npy or .json of the gripper's pose in the robot's base at each frame, (frames, 4, 4), for hand-eye"
    )
    mounting: str = key("hand", "where the camera is: hand (it moves with the gripper), base (it stands still)")
    board: str | None = key(None, "only write the board as an image to print, to this .png")
    out: str = key("camera.json", "file to write", free=True)


def _record(command: Record) -> int:
    from .runs import run_record

    path, frames, missing = run_record(command)
    lost = f"; the camera left out {missing}" if missing else ""
    print(f"{path}: {frames} frames, lossless{lost}")
    print(f"look at it with: pixio-robot camera_view camera={path}")
    return 0


def _camera_view(command: CameraView) -> int:
    from .runs import run_view

    path, frames = run_view(command)
    print(f"{path or 'rerun'}: {frames} frames of {command.camera}")
    return 0


def _camera_check(command: CameraCheck) -> int:
    from .check import summary
    from .runs import run_check

    found = run_check(command)
    for finding in found:
        print(f"{'ok     ' if finding.fine else 'PROBLEM'} {finding.what:<10} {finding.detail}")
    print(f"{command.camera}: {summary(found)}")
    return int(not all(finding.fine for finding in found))


def _calibrate(command: Calibrate) -> int:
    from .runs import run_calibrate

    result, eye = run_calibrate(command)
    if result is None:
        side = 1000 * command.square
        print(f"{command.board}: print it so that a square's side is {side:g} mm, and measure it")
        return 0
    known = result.intrinsics
    print(f"focal lengths {known.fx:.2f} and {known.fy:.2f} px, centre ({known.cx:.2f}, {known.cy:.2f})")
    worst = max(result.view_errors)
    print(f"reprojection error {result.error:.3f} px over {len(result.used)} views, {worst:.3f} in the worst one")
    if result.covered < 0.6:
        print(f"corners cover {result.covered:.0%} of the image; hold the board into its corners too")
    if eye is not None:
        x, y, z = eye.camera_pose[:3, 3]
        print(f"camera at ({x:.4f}, {y:.4f}, {z:.4f}) m in the {'gripper' if command.mounting == 'hand' else 'base'}")
        print(f"the views disagree by {eye.turn_error:.2f} degrees and {1000 * eye.shift_error:.1f} mm (median)")
    print(f"{command.out}: written; use it with calibration={command.out}")
    return 0


COMMANDS = {
    "record": Command(Record, _record),
    "camera_view": Command(CameraView, _camera_view),
    "camera_check": Command(CameraCheck, _camera_check),
    "calibrate": Command(Calibrate, _calibrate),
}
