"""The keys of the command that drives robots."""

from dataclasses import dataclass

from .camera_schemas import CameraSettings
from .keys import MISSING, key


@dataclass
class Run(CameraSettings):
    """Drive a robot with a policy: fixed rate, safety filter, watchdog, emergency stop, recording, report."""

    robot: str = key(MISSING, "task:SUITE/TASK[@CAMERA] (simulated), ros:FILE (ROS 2), or another package's driver")
    camera: str = key("robot", "robot (its own camera), or a camera as in camera_check")
    bundle: str | None = key(None, "folder that pixio-robot export wrote")
    checkpoint: str | None = key(None, "instead of a bundle: a policy checkpoint, run by torch")
    server: str | None = key(None, "instead of a bundle: HOST:PORT of pixio-robot serve, or a ws:// or wss:// address")
    token_file: str | None = key(None, "file with the server's secret", free=True)
    ungated: bool = key(False, "use an int8 bundle that did not pass the gate", free=True)
    time: str = key("real", "time of a simulated robot: real, stepped")
    rate: float | None = key(None, "commands a second; null is the robot's own, else the policy's")
    episodes: int = key(1, "episodes", least=1)
    steps: int | None = key(
        None, "steps of the policy in an episode, at most; null is the task's own, else 1000", least=1
    )
    seed: int = key(20_000, "seed of a simulated robot's first episode; they count up", least=0)
    render: str | None = key("fast", "render quality of a simulated robot: benchmark, balanced, fast")
    depth_sensor: str = key("d435", "what a simulated robot's depth is measured with: exact, d435")
    execute: int | None = key(None, "actions of a chunk that are used; null is all", least=1)
    new_share: float = key(
        1.0, "weight of a new chunk where an older one planned the same step; 1 replaces, LeRobot's is 0.7"
    )
    limits: str | None = key(None, "file (.json) of limits that narrow the robot's own")
    max_age: float = key(0.2, "oldest frame that the policy may act on [s]")
    stop_after: float = key(1.0, "time without a good action after which the watchdog stops the episode [s]")
    estop: str = key("runs/estop.json", "file that latches the emergency stop; whoever makes it stops the robot")
    estop_reset: bool = key(False, "reset the emergency stop first, after a look at the robot", free=True)
    faults: list[str] = key([], "faults on purpose, KIND@EPISODE:TIME[:SECONDS]; kinds are stall, nan, late, estop")
    threads: int | None = key(1, "CPU threads of the policy; null is the library's choice", least=1)
    record: bool = key(True, "write every step to demos.hdf5")
    device: str = key("cpu", "where a checkpoint is computed: auto, cpu, cuda, mps", free=True)
    out: str | None = key(None, "run folder; null means runs/run/<digest of the settings>", free=True)
