"""The keys of the commands that read cameras."""

from dataclasses import dataclass

from .keys import MISSING, key


@dataclass
class CameraSettings:
    """Which camera, and what is asked of it."""

    camera: str = key(
        MISSING, "driver (realsense, opencv:0, oak), file or folder of any known kind, or task:SUITE/TASK[@CAMERA]"
    )
    width: int | None = key(None, "width of the images [px]; null is the source's own", least=1)
    height: int | None = key(None, "height of the images [px]; null is the source's own", least=1)
    fps: float | None = key(None, "frames per second; null is the source's own")
    depth: bool = key(True, "with depth, where the camera has it")
    calibration: str | None = key(None, "camera.json of calibrate, for sources that know no intrinsics")
    color_topic: str | None = key(None, "topic of a ROS recording that holds several; null takes the likeliest")
    depth_topic: str | None = key(None, "topic of a ROS recording that holds several; null takes the likeliest")
    render: str | None = key(
        None, "render quality of a task: benchmark, balanced, fast; null is benchmark, in stream the policy's own"
    )
    depth_sensor: str = key("exact", "what a task's depth is measured with: exact, d435")
    seed: int = key(0, "seed of a task's first episode", least=0)
    debug: bool = key(False, "show tracebacks", free=True)


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
