"""Settings shared by the commands that read a camera, and the camera that they request."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from ..settings import MISSING, key

if TYPE_CHECKING:
    from .camera import Camera


@dataclass
class CameraSettings:
    """Which camera to read, and how."""

    camera: str = key(
        MISSING, "driver (realsense, opencv:0, oak), file or folder of any known kind, or task:SUITE/TASK[@CAMERA]"
    )
    width: int | None = key(None, "width of the images [px]; null is the source's own", least=1)
    height: int | None = key(None, "height of the images [px]; null is the source's own", least=1)
    fps: float | None = key(None, "frames per second; null is the source's own")
    depth: bool = key(True, "with depth, if the camera has it")
    calibration: str | None = key(None, "camera.json of calibrate, for sources without their own intrinsics")
    color_topic: str | None = key(None, "topic of a ROS recording that has several; null chooses by name")
    depth_topic: str | None = key(None, "topic of a ROS recording that has several; null chooses by name")
    render: str | None = key(
        None, "render quality of a task: benchmark, balanced, fast; null is benchmark, in stream the policy's own"
    )
    depth_sensor: str = key("exact", "sensor that measures a task's depth: exact, d435")
    seed: int = key(0, "seed of a task's first episode", least=0)
    debug: bool = key(False, "show tracebacks", free=True)


def requested_camera(settings: CameraSettings) -> "Camera":
    """Return the camera of a command's settings, not open yet.

    Raises:
        BadInput: if the settings change what the source cannot change, such as the rate of a recording.
        PixioError: as `find_camera`.
    """
    from ..errors import BadInput
    from .camera import CameraRequest
    from .registry import find_camera

    names = {each.name for each in fields(CameraRequest)} & {each.name for each in fields(CameraSettings)}
    requested = {name: value for name in names if (value := getattr(settings, name)) is not None}
    camera = find_camera(settings.camera, CameraRequest(**requested))
    fixed = {"fps", "width", "height"} - set(camera.adjustable)
    if ignored := [f"{name}={requested[name]}" for name in sorted(fixed) if name in requested]:
        raise BadInput(f"{', '.join(ignored)}: camera={settings.camera} has fixed values; leave that out")
    return camera
