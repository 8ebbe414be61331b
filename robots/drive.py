"""Drive a robot with a policy: connect, check that everything fits, run the episodes, write the report."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..action_queue import ActionQueue
from ..cameras.camera import Camera
from ..cameras.playback import Playback, RealTimePlayback
from ..cameras.tools.faults import FaultInjectingCamera, Faults
from ..deploy.load import LoadedSource
from ..deploy.manifest import Manifest
from ..deploy.observation import cameras_of
from ..errors import BadInput, UnknownName, closest
from ..metrics import success_rate
from ..report.page import write_report
from ..run_folder import write_json
from ..stopping import Stopping
from .clock import Rate
from .emergency import EmergencyStop
from .faults import Fault, FaultInjector
from .fit import check_fit
from .frame_source import FrameSource, FrameSources, SteppedFrameSource, new_frame_source
from .inference import InferenceInStep, InferenceThread
from .limits import Limits
from .loop import ControlLoop, LoopTiming, Watchdog
from .registry import find_robot
from .robot import Robot, RobotRequest
from .safety import SafeRobot
from .session import RunReport, Session, SessionPlan
from .timeline import fault_table, read_ticks, summary_of, write_timelines

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RobotSetup:
    """Which robot, with which cameras."""

    robot: str  # as `find_robot` takes it
    request: RobotRequest
    cameras: Mapping[str, str]  # by camera of the policy: "robot", "robot:NAME", or what `new_camera` takes
    new_camera: Callable[[str], Camera]  # makes a camera that is not the robot's
    emergency: EmergencyStop
    limits: Path | None = None  # file of limits that narrow the robot's own
    rate: float | None = None  # commands per second; None is the robot's own, else the policy's


@dataclass(frozen=True)
class Control:
    """How the policy is used."""

    watchdog: Watchdog = Watchdog()
    n_action_steps: int | None = None  # of each chunk
    chunk_blend: float = 1.0
    faults: tuple[Fault, ...] = ()  # to inject


def choose_cameras(manifest: Manifest, camera: str, others: Mapping[str, str]) -> dict[str, str]:
    """Return the source of each camera that a policy observes; a policy without cameras gets ``rgb``, to record it.

    Args:
        camera: source of the policy's first camera.
        others: sources of the others, by camera (``rgb_wrist``). If `camera` is the robot's, those that are not named
            are the robot's own cameras of that name.

    Raises:
        BadInput: if a source is missing.
        UnknownName: for a camera that the policy does not observe.
    """
    needed = cameras_of(manifest) or ("rgb",)
    main = "rgb" if "rgb" in needed else needed[0]
    for name in others:
        if name not in needed:
            near = closest(name, needed)
            raise UnknownName(f"cameras= names {name!r}, which the policy does not observe{near}: {', '.join(needed)}")
    own = camera.partition(":")[0] == "robot"
    found: dict[str, str] = {}
    for name in needed:
        _, _, suffix = name.partition("_")
        if name in others:
            found[name] = others[name]
        elif name == main:
            found[name] = f"robot:{suffix}" if camera == "robot" and suffix else camera
        elif own:
            found[name] = f"robot:{suffix}"
        else:
            raise BadInput(f"the policy observes {', '.join(needed)}; give cameras={{{name}: SOURCE}}")
    return found


def robot_cameras(sources: Mapping[str, str]) -> tuple[str, ...]:
    """Return which of a robot's own cameras are used, by name; "" is its first one, which is always there.

    >>> robot_cameras({"rgb": "robot", "rgb_wrist": "robot:wrist", "rgb_side": "opencv:0"})
    ('', 'wrist')
    """
    names = []
    for camera, source in sources.items():
        kind, _, name = source.partition(":")
        if kind == "robot":
            names.append("" if camera == "rgb" else name)
    return tuple(dict.fromkeys(names)) or ("",)


def drive(
    source: LoadedSource, setup: RobotSetup, control: Control, plan: SessionPlan, begin: Callable[[], None]
) -> RunReport:
    """Drive a robot for some episodes. Episodes that the run folder already holds are not run again.

    Args:
        source: the policy.
        begin: makes the run folder; called after all checks, before anything moves.

    Raises:
        BadInput: if policy, robot and cameras do not fit, or limits are missing; nothing has moved then.
        EmergencyStopped: if the stop was latched before this run.
        PixioError: what the policy or the robot raised; what was recorded until then is kept, not as a success.
    """
    manifest, request, emergency = source.manifest, setup.request, setup.emergency
    queue = ActionQueue(control.n_action_steps, control.chunk_blend)
    emergency.check()
    log.info("emergency stop: touch %s", emergency.path)
    with ExitStack() as stack:
        robot = stack.enter_context(find_robot(setup.robot, request))
        rate = setup.rate or robot.spec.control_hz or (1 / manifest.control_period if manifest.control_period else 0)
        if not 0 < rate < math.inf:
            raise BadInput(f"neither {robot.spec.name} nor the policy has a rate; give rate= in commands a second")
        limits = Limits.of(robot.spec.commands)
        if setup.limits is not None:
            limits = limits.narrowed(setup.limits, robot.spec.commands)
        safe = SafeRobot(robot, limits, 1 / rate, emergency)
        stepped = request.stepped and robot.spec.resets
        if request.stepped and not stepped:
            raise BadInput(f"{robot.spec.name} cannot be stepped; time=stepped is for simulated robots")
        cameras = {name: _new_camera(each, setup, robot, stepped) for name, each in setup.cameras.items()}
        for camera in cameras.values():
            stack.enter_context(camera)
        parts = check_fit(manifest, robot.spec, {name: each.spec for name, each in cameras.items()}, rate)
        injector = FaultInjector(control.faults, cameras, emergency)
        begin()
        sources = _open_sources(cameras, robot, stepped, stack)
        policy = injector.wrap(source.policy) if control.faults else source.policy
        inference: InferenceInStep | InferenceThread
        if stepped:
            inference = InferenceInStep(policy, robot.clock, injector.delay)
        else:
            inference = InferenceThread(policy, injector.delay)
        stack.callback(inference.close)
        stopping = stack.enter_context(Stopping())
        timing = LoopTiming(Rate(robot.clock, 1 / rate), parts, control.watchdog, stepped)
        loop = ControlLoop(safe, sources, inference, manifest, timing, queue, injector, lambda: stopping.asked)
        report = Session(plan, manifest, robot, loop, recorded_names(setup.cameras, robot)).run(stopping)
    _write_report(plan, report, control)
    if report.error is not None:
        log.warning("what was recorded before the error is in %s", plan.out)
        raise report.error
    if report.interrupted:
        log.warning("interrupted after %d of %d episodes; the same command resumes", len(report.rows), plan.episodes)
    return report


def recorded_names(sources: Mapping[str, str], robot: Robot) -> dict[str, str]:
    """Return the names under which cameras are recorded: of the robot's camera, of the driver, or as the policy's.

    Raises:
        BadInput: if two cameras have the same name.
    """
    names = {}
    for camera, source in sources.items():
        driver, _, name = source.partition(":")
        own = (name or robot.spec.cameras[0]) if driver == "robot" else driver
        names[camera] = camera.partition("_")[2] or own
    if len(set(names.values())) < len(names):
        raise BadInput(f"two cameras would be recorded as {', '.join(names.values())}; rename one in cameras=")
    return names


def _new_camera(source: str, setup: RobotSetup, robot: Robot, stepped: bool) -> FaultInjectingCamera:
    """Return a camera of a run, not open yet; in real time a recording plays at its own pace."""
    driver, _, name = source.partition(":")
    camera = robot.camera(name) if driver == "robot" else setup.new_camera(source)
    if driver != "robot" and camera.accepts_actions:  # nobody would drive it
        raise BadInput(f"camera={source} is another simulation than the robot's; use camera=robot")
    if isinstance(camera, Playback) and not stepped:
        camera = RealTimePlayback(camera)
    return FaultInjectingCamera(camera, Faults())


def _open_sources(
    cameras: Mapping[str, FaultInjectingCamera], robot: Robot, stepped: bool, stack: ExitStack
) -> FrameSources:
    sources: dict[str, FrameSource] = {}
    for name, camera in cameras.items():
        sources[name] = source = new_frame_source(camera, robot.clock, stepped)
        if isinstance(source, SteppedFrameSource):
            camera.sleep = source.stall
    return stack.enter_context(FrameSources(sources, robot.clock))


def _write_report(plan: SessionPlan, report: RunReport, control: Control) -> None:
    ticks = read_ticks(report.out / "ticks.jsonl")
    report.summary = summary_of(ticks)
    images = write_timelines(report.out, ticks, control.watchdog.max_age)
    result: dict[str, Any] = {
        "title": plan.title,
        "task": plan.robot,
        "success_rule": "last",
        "render": plan.render,
        "numbers": report.summary,
        "tables": {"Injected faults": fault_table(control.faults, ticks)},
        "images_title": "Timeline",
        "images": images,
        "facts": {**plan.facts, "ended by": ", ".join(_ends(report.endings))},
        "notes": [words for words in (report.stopped, str(report.error or "")) if words],
    }
    if report.rows:
        result["headline"] = report.rows[0].policy
        result["policies"] = {
            report.rows[0].policy: {
                rule: {**rate._asdict(), "rate": rate.value}
                for rule in ("last", "any")
                for rate in [success_rate(getattr(row, f"success_{rule}") for row in report.rows)]
            }
        }
    write_json(report.out / "result.json", result)
    write_report(report.out)


def _ends(endings: Counter[str]) -> list[str]:
    return [f"{count} {why}" for why, count in endings.most_common()]
