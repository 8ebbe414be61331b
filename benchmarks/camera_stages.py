"""What each stage of a depth camera's frame costs, beside RealSense's own: CPU time of one thread.

    OMP_NUM_THREADS=1 python benchmarks/camera_stages.py single_depth_color_640x480.bag

The recording is librealsense's (unit-tests/resources, Apache-2.0). Prints milliseconds: median, best, 95th percentile.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyrealsense2 as rs

from pixio_robot.cameras.frame import metric, to_sensor_units
from pixio_robot.cameras.geometry import points, registered, resize_depth, squared
from pixio_robot.cameras.registry import find_camera
from pixio_robot.envs.depth_noise import SENSORS, NoisyDepth

_CALLS = 30
_PERIOD = 1000 / 30  # of a camera [ms]


def main() -> None:
    """Time the stages of the recording's frame."""
    with find_camera(sys.argv[1]) as camera:
        frame = camera.read()
    assert frame.depth is not None and frame.unit is not None
    depth, sent = frame.depth, to_sensor_units(frame.depth, frame.unit)
    together = registered(frame)
    assert together.depth is not None and together.intrinsics is not None
    whole, known, small = together.depth, together.intrinsics, resize_depth(depth, 224, 224)
    sensor = SENSORS["d435"]
    large, little = NoisyDepth(sensor, sensor.focal, 0), NoisyDepth(sensor, sensor.focal * 224 / 480, 0)
    _time("units to metres", lambda: metric(sent, 0.001))
    _time("registration to colour", lambda: registered(frame))
    _time("square of 224 px", lambda: squared(together, 224))
    _time("copy", frame.copy)
    _time("points", lambda: points(whole, known))
    _time("sensor model, 640x480", lambda: large.measure(depth))
    _time("sensor model, 224x224", lambda: little.measure(small))
    found = _library_set(sys.argv[1])
    align = rs.align(rs.stream.color)
    _time("RealSense: align", lambda: align.process(found))
    theirs = found.get_depth_frame()
    for name in ("spatial_filter", "temporal_filter", "hole_filling_filter", "decimation_filter"):
        block = getattr(rs, name)()
        _time(f"RealSense: {name}", lambda block=block: block.process(theirs))  # type: ignore[misc]


def _library_set(path: str) -> Any:
    """Return the library's set; so short a recording may be over before it is asked."""
    for _ in range(20):
        config, pipeline = rs.config(), rs.pipeline()
        config.enable_device_from_file(path, repeat_playback=False)
        pipeline.start(config)
        there, found = pipeline.try_wait_for_frames(1000)
        if there and found.get_color_frame() and found.get_depth_frame():
            found.keep()
            return found
        pipeline.stop()
    raise SystemExit("the library made no set of the recording")


def _time(name: str, work: Callable[[], object]) -> None:
    work()
    spent = np.empty(_CALLS)
    for call in range(_CALLS):
        began = time.process_time()
        work()
        spent[call] = 1000 * (time.process_time() - began)
    middle, late = np.percentile(spent, (50, 95))
    print(f"{name:34} {middle:6.2f} {spent.min():6.2f} {late:6.2f}  {middle / _PERIOD:4.0%} of a frame period")


if __name__ == "__main__":
    main()
