"""`pixio-robot run`, from its settings to its files."""

import logging
import math
from collections import Counter
from pathlib import Path
from typing import Any

from ..cameras.camera import Camera
from ..cameras.playback import Playback, RealTimePlayback
from ..cameras.settings import requested_camera
from ..cameras.tools.faults import FaultInjectingCamera, Faults
from ..deploy.runtime.bundle import Manifest
from ..deploy.runtime.policy import Policy
from ..errors import BadInput
from ..metrics import success_rate
from ..report.page import write_report
from ..run_folder import open_run, settings_digest, write_json
from ..stopping import Stopping
from .actions import ActionPlan
from .clock import Rate
from .commands import Run
from .emergency import EmergencyStop
from .faults import Fault, FaultInjector
from .fit import check_fit
from .frame_source import SteppedFrameSource, open_frame_source
from .inference import InferenceInStep, InferenceThread
from .limits import Limits
from .loop import ControlLoop, Rules
from .registry import find_robot
from .robot import Robot, RobotRequest
from .safety import SafeRobot
from .session import SIDE, RunReport, Session
from .timeline import fault_table, read_ticks, summary_of, write_timelines

log = logging.getLogger(__name__)


def robot_request(command: Run, card: Manifest) -> RobotRequest:
    """Return what is asked of a robot: images as the policy looks at them."""
    if command.time not in ("real", "stepped"):
        raise BadInput(f"time={command.time}: there are real, stepped")
    return RobotRequest(
        stepped=command.time == "stepped",
        depth=command.depth,
        image_size=card.image_size or SIDE,
        render=command.render or "fast",
        depth_sensor=command.depth_sensor,
        horizon=command.steps if command.robot.startswith("task:") else None,
    )


def run_robot(command: Run, card: Manifest, policy: Policy, inputs: str) -> RunReport:
    """Drive a robot for some episodes; those that a run folder holds already are not run again.

    Args:
        card: of the policy.
        inputs: hash of the policy, part of the run's identity.

    Raises:
        BadInput: if policy, robot and camera do not fit, or limits are missing; nothing has moved then.
        EmergencyStopped: if the stop was latched before this run.
        PixioError: what the policy or the robot raised; what was recorded until then is kept, as no success.
    """
    plan = ActionPlan(command.n_action_steps, command.chunk_blend)
    rules = Rules(command.max_age, command.stop_after)
    faults = [Fault.parse(each) for each in command.faults]
    emergency = EmergencyStop(Path(command.estop))
    if command.estop_reset and (told := emergency.reset()):
        log.warning("the emergency stop is reset; it was latched: %s", told)
    emergency.check()
    log.info("emergency stop: touch %s", emergency.path)
    request = robot_request(command, card)
    out = Path(command.out or f"runs/run/{settings_digest(command, inputs)}")
    with find_robot(command.robot, request) as robot:
        rate = command.rate or robot.spec.control_hz or (1 / card.control_period if card.control_period else 0)
        if not 0 < rate < math.inf:
            raise BadInput(f"neither {robot.spec.name} nor the policy tells its rate; give rate= in commands a second")
        limits = Limits.of(robot.spec.commands)
        if command.limits is not None:
            limits = limits.narrowed(Path(command.limits), robot.spec.commands)
        safe = SafeRobot(robot, limits, 1 / rate, emergency)
        stepped = request.stepped and robot.spec.resets
        if request.stepped and not stepped:
            raise BadInput(f"{robot.spec.name} cannot be stepped; time=stepped is for simulated robots")
        camera = FaultInjectingCamera(_camera(command, robot, stepped), Faults())
        with camera:
            parts = check_fit(card, robot.spec, camera.spec, rate)
            open_run(out, command, inputs)
            eyes = open_frame_source(camera, robot.clock, stepped)
            if isinstance(eyes, SteppedFrameSource):
                camera.sleep = eyes.stall
            saboteur = FaultInjector(faults, camera, emergency)
            spoilt = saboteur.around(policy) if faults else policy
            inference = (
                InferenceInStep(spoilt, robot.clock, saboteur.delay)
                if stepped
                else InferenceThread(spoilt, saboteur.delay)
            )
            try:
                with Stopping() as stopping:
                    loop = ControlLoop(
                        safe,
                        eyes,
                        inference,
                        card,
                        Rate(robot.clock, 1 / rate),
                        parts=parts,
                        rules=rules,
                        plan=plan,
                        stepped=stepped,
                        saboteur=saboteur,
                        asked_to_stop=lambda: stopping.asked,
                    )
                    session = Session(command, card, out, robot, loop, stopping)
                    report = session.run()
            finally:
                inference.close()
                eyes.close()
    _finish(command, report, faults)
    if report.error is not None:
        log.warning("what came before the error is in %s", out)
        raise report.error
    if report.interrupted:
        log.warning("interrupted after %d of %d episodes; the same command goes on", len(report.rows), command.episodes)
    return report


def _camera(command: Run, robot: Robot, stepped: bool) -> Camera:
    """Return the camera that a run looks through, not open yet; in real time a recording plays at its own pace."""
    driver, _, name = command.camera.partition(":")
    if driver == "robot":
        return robot.camera(name)
    if driver == "task":
        raise BadInput(f"camera={command.camera} is another simulation than the robot's; use camera=robot")
    camera = requested_camera(command)
    return RealTimePlayback(camera) if isinstance(camera, Playback) and not stepped else camera


def _finish(command: Run, report: RunReport, faults: list[Fault]) -> None:
    """Write the report."""
    out = report.out
    ticks = read_ticks(out / "ticks.jsonl")
    report.summary = summary_of(ticks)
    images = write_timelines(out, ticks, command.max_age)
    result: dict[str, Any] = {
        "title": f"{command.robot} · {Path(command.bundle or command.checkpoint or '').name}",
        "task": command.robot,
        "success_rule": "last",
        "render": command.render,
        "numbers": report.summary,
        "tables": {"Faults on purpose": fault_table(faults, ticks)},
        "images_title": "Timeline",
        "images": images,
        "facts": {"time": command.time, "camera": command.camera, "ended by": ", ".join(_ends(report.endings))},
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
    write_json(out / "result.json", result)
    write_report(out)


def _ends(endings: Counter[str]) -> list[str]:
    return [f"{count} {why}" for why, count in endings.most_common()]
