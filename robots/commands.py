"""The command run."""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from ..cameras.settings import CameraSettings
from ..command import INTERRUPTED, Command
from ..settings import MISSING, key

if TYPE_CHECKING:
    from ..cameras.camera import Camera
    from ..deploy.load import LoadedSource
    from .session import RunReport


@dataclass
class Run(CameraSettings):
    """Drive a robot with a policy: fixed rate, safety filter, watchdog, emergency stop, recording, report."""

    robot: str = key(MISSING, "task:SUITE/TASK[@CAMERA] (simulated), ros:FILE (ROS 2), or another package's driver")
    camera: str = key("robot", "the policy's first camera: robot (its own), or a camera as in camera_check")
    cameras: Any = key(  # Hydra adds no keys to a dict with a schema
        None, "the policy's further cameras, e.g. {rgb_wrist: opencv:0}; null is the robot's own of that name"
    )
    bundle: str | None = key(None, "folder that pixio-robot export wrote")
    checkpoint: str | None = key(None, "instead of a bundle: a policy checkpoint, run by torch")
    server: str | None = key(None, "instead of a bundle: HOST:PORT of pixio-robot serve, or a ws:// or wss:// address")
    token_file: str | None = key(None, "file with the server's secret", free=True)
    allow_unverified: bool = key(False, "use an int8 bundle that did not pass verification", free=True)
    time: str = key("real", "time of a simulated robot: real, stepped")
    rate: float | None = key(None, "commands per second; null is the robot's own, else the policy's")
    episodes: int = key(1, "episodes", least=1)
    steps: int | None = key(
        None, "steps of the policy in an episode, at most; null is the task's own, else 1000", least=1
    )
    seed: int = key(20_000, "seed of a simulated robot's first episode; they count up", least=0)
    render: str | None = key("fast", "render quality of a simulated robot: benchmark, balanced, fast")
    depth_sensor: str = key("d435", "what a simulated robot's depth is measured with: exact, d435")
    n_action_steps: int | None = key(None, "actions of a chunk that are used; null is all", least=1)
    chunk_blend: float = key(
        1.0, "weight of a new chunk where an older one planned the same step; 1 replaces, LeRobot's is 0.7"
    )
    limits: str | None = key(None, "file (.json) of limits that narrow the robot's own")
    max_age: float = key(0.2, "oldest frame that the policy may act on [s]")
    stop_after: float = key(1.0, "time without a good action after which the watchdog stops the episode [s]")
    estop: str = key("runs/estop.json", "file that latches the emergency stop; whoever creates it stops the robot")
    estop_reset: bool = key(False, "reset the emergency stop first, after checking the robot", free=True)
    faults: list[str] = key(
        [], "faults to inject, KIND@EPISODE:TIME[:SECONDS]; kinds are stall, stall.CAMERA, nan, late, estop"
    )
    threads: int | None = key(1, "CPU threads of the policy; null is the library's choice", least=1)
    record: bool = key(True, "write every step to demos.hdf5")
    device: str = key("cpu", "where a checkpoint is computed: auto, cpu, cuda", free=True)
    out: str | None = key(None, "run folder; null means runs/run/<digest of the settings>", free=True)


def run_robot(settings: Run) -> int:
    """Drive a robot, and print the result."""
    from contextlib import ExitStack

    from ..deploy.load import PolicySource, load_policy_source
    from ..report.tables import print_run

    policy = PolicySource(
        settings.bundle,
        settings.checkpoint,
        settings.server,
        settings.token_file,
        settings.allow_unverified,
        settings.threads,
        settings.device,
    )
    with ExitStack() as stack:
        report = drive_robot(settings, load_policy_source(policy, stack))
    print_run(report)
    return 3 if report.stopped else INTERRUPTED if report.interrupted else 0


def drive_robot(settings: Run, source: "LoadedSource") -> "RunReport":
    """Drive a robot with a policy that is loaded; raises as `robots.drive.drive` does."""
    import logging
    from pathlib import Path

    from ..cameras.settings import requested_camera
    from ..deploy.observation import cameras_of, needs_depth
    from ..errors import BadInput
    from ..run_folder import open_run, settings_digest
    from .drive import Control, RobotSetup, choose_cameras, drive, robot_cameras
    from .emergency import EmergencyStop
    from .faults import Fault
    from .loop import Watchdog
    from .robot import RobotRequest
    from .session import SIDE, SessionPlan

    if settings.time not in ("real", "stepped"):
        raise BadInput(f"time={settings.time}: there are real, stepped")
    manifest = source.manifest
    others = settings.cameras or {}
    if not isinstance(others, dict) or not all(isinstance(each, str) for pair in others.items() for each in pair):
        raise BadInput(f"cameras={others!r} is not {{CAMERA: SOURCE}}, e.g. cameras={{rgb_wrist: opencv:0}}")
    cameras = choose_cameras(manifest, settings.camera, others)
    control = Control(
        Watchdog(settings.max_age, settings.stop_after),
        settings.n_action_steps,
        settings.chunk_blend,
        tuple(Fault.parse(each) for each in settings.faults),
    )
    emergency = EmergencyStop(Path(settings.estop))
    if settings.estop_reset and (reason := emergency.reset()):
        logging.getLogger(__name__).warning("the emergency stop is reset; it was latched: %s", reason)
    request = RobotRequest(
        stepped=settings.time == "stepped",
        depth=settings.depth,
        image_size=manifest.image_size or SIDE,
        render=settings.render or "fast",
        depth_sensor=settings.depth_sensor,
        horizon=settings.steps if settings.robot.startswith("task:") else None,
        cameras=robot_cameras(cameras),
    )

    def new_camera(name: str) -> "Camera":
        if name == settings.camera:
            return requested_camera(settings)
        observed = [each for each in cameras_of(manifest) if cameras[each] == name]
        depth = settings.depth and any(needs_depth(manifest, each) for each in observed)
        return requested_camera(
            replace(settings, camera=name, depth=depth, calibration=None, color_topic=None, depth_topic=None)
        )

    setup = RobotSetup(
        settings.robot,
        request,
        cameras,
        new_camera,
        emergency,
        None if settings.limits is None else Path(settings.limits),
        settings.rate,
    )
    out = Path(settings.out or f"runs/run/{settings_digest(settings, source.fingerprint)}")
    plan = SessionPlan(
        out=out,
        episodes=settings.episodes,
        steps=settings.steps,
        seed=settings.seed,
        record=settings.record,
        robot=settings.robot,
        policy=Path(settings.bundle or settings.checkpoint or settings.server or "").name,
        render=settings.render or "none",
        depth=settings.depth,
        settings=asdict(settings),
    )
    return drive(source, setup, control, plan, lambda: open_run(out, settings, source.fingerprint))


COMMANDS = {
    "run": Command(Run, run_robot),
}
