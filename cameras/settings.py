"""Settings shared by the commands that read a camera."""

from dataclasses import dataclass

from ..settings import MISSING, key


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
