"""`pixio-robot run`, from its settings to its files."""

import json
import logging
import math
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..cameras.camera import Camera
from ..cameras.faults import Faults, Faulty
from ..cameras.runs import asked_camera
from ..envs.registry import EnvRequest
from ..errors import BadInput, EmergencyStopped
from ..metrics import EpisodeRecord, append_episode, read_episodes, success_rate
from ..progress import Progress
from ..report import write_report
from ..robot_schemas import Run
from ..run_folder import open_run, settings_digest, write_json
from ..runtime.bundle import Card
from ..runtime.policy import Policy
from ..stopping import Stopping
from .clock import Metronome
from .emergency import EmergencyStop
from .eyes import SteppedEyes, eyes_of
from .faults import Fault, Saboteur
from .fit import check_fit
from .inference import InferenceInStep, InferenceThread
from .limits import Limits
from .loop import ControlLoop, Ending, Moment, Rules
from .recording import EpisodeRecording, join_episodes, tick_row
from .registry import find_robot
from .robot import Robot, RobotRequest
from .safety import SafeRobot
from .simulated import TaskRobot
from .timeline import fault_table, read_ticks, summary_of, write_timelines

log = logging.getLogger(__name__)
_STEPS = 1000  # of an episode on a robot that does not know its end
_SIDE = 224  # of recorded pictures, for a policy that looks at none [px]
_PAUSES = 0.05  # share of steps without the policy's action, up to which an episode is fit to learn from


@dataclass
class RunReport:
    """What a run came to."""

    out: Path
    rows: list[EpisodeRecord]
    endings: Counter[str] = field(default_factory=Counter)
    summary: dict[str, float] = field(default_factory=dict)
    demos: Path | None = None
    stopped: str = ""  # why the emergency stop is latched
    interrupted: bool = False  # by Ctrl-C or SIGTERM


def robot_request(command: Run, card: Card) -> RobotRequest:
    """Return what is asked of a robot: pictures as the policy looks at them."""
    if command.time not in ("real", "stepped"):
        raise BadInput(f"time={command.time}: there are real, stepped")
    return RobotRequest(
        stepped=command.time == "stepped",
        depth=command.depth,
        image_size=card.image_size or _SIDE,
        render=command.render or "fast",
        depth_sensor=command.depth_sensor,
        horizon=command.steps if command.robot.startswith("task:") else None,
    )


def run_robot(command: Run, card: Card, policy: Policy, inputs: str, progress: Progress) -> RunReport:
    """Drive a robot for some episodes; those that a run folder holds already are not run again.

    Args:
        card: of the policy.
        inputs: hash of the policy, part of the run's identity.

    Raises:
        BadInput: if policy, robot and camera do not fit, or limits are missing; nothing has moved then.
        EmergencyStopped: if the stop was latched before this run.
    """
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
        camera = Faulty(_camera(command, robot), Faults())
        with camera:
            parts = check_fit(card, robot.spec, camera.spec, rate)
            open_run(out, command, inputs)
            eyes = eyes_of(camera, robot.clock, stepped)
            if isinstance(eyes, SteppedEyes):
                camera.sleep = eyes.stall
            saboteur = Saboteur(faults, camera, emergency)
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
                        Metronome(robot.clock, 1 / rate),
                        parts=parts,
                        rules=rules,
                        execute=command.execute,
                        stepped=stepped,
                        saboteur=saboteur,
                        asked_to_stop=lambda: stopping.asked,
                    )
                    session = _Session(command, card, out, robot, loop, stopping)
                    report = session.run(progress)
            finally:
                inference.close()
                eyes.close()
    _finish(command, report, faults)
    return report


def _camera(command: Run, robot: Robot) -> Camera:
    """Return the camera that a run looks through, not open yet."""
    driver, _, name = command.camera.partition(":")
    if driver == "robot":
        return robot.camera(name)
    if driver == "task":
        raise BadInput(f"camera={command.camera} is another simulation than the robot's; use camera=robot")
    return asked_camera(command)


class _Session:
    """The episodes of one run and their files."""

    def __init__(
        self, command: Run, card: Card, out: Path, robot: Robot, loop: ControlLoop, stopping: Stopping
    ) -> None:
        self.command, self.card, self.out, self.robot, self.loop, self.stopping = (
            command,
            card,
            out,
            robot,
            loop,
            stopping,
        )
        self.parts = out / "episodes"
        self.side = card.image_size or _SIDE
        self.ticks = out / "ticks.jsonl"
        self.name = "checkpoint" if command.checkpoint else "bundle"
        self.report = RunReport(out, [])

    def run(self, progress: Progress) -> RunReport:
        done = {row.index for row in read_episodes(self.out / "episodes.jsonl")}
        waiting = [index for index in range(self.command.episodes) if index not in done]
        self._forget_unfinished(done)
        with progress.stage(f"run {self.robot.spec.name}", len(waiting)) as bar:
            for index in waiting:
                try:
                    why = self._episode(index)
                except EmergencyStopped as error:
                    self.report.stopped = str(error)
                    break
                bar.advance(1)
                if why == "estop":
                    self.report.stopped = "the emergency stop was pressed"
                if why in ("estop", "asked"):
                    break
        self.report.rows = read_episodes(self.out / "episodes.jsonl")
        if self.command.record:
            self._join()
        return self.report

    def _episode(self, index: int) -> str:
        seed = self.command.seed + index
        recording = EpisodeRecording(self._part(index), self._camera_name(), self.side) if self.command.record else None
        held, total = 0, 0
        began = time.perf_counter()
        with self.ticks.open("a") as lines:

            def watch(moment: Moment) -> None:
                nonlocal held, total
                if recording is not None:
                    recording.add(moment)
                lines.writelines(tick_row(tick) for tick in moment.ticks)
                total += 1
                held += any(tick.state != "run" for tick in moment.ticks)

            self.loop.watch = watch
            try:
                start, ending = self.loop.run(index, seed, self._steps())
            except BaseException:
                if recording is not None:
                    recording.discard()
                raise
        if ending.why == "asked" and self.robot.spec.resets:  # it can be run again
            if recording is not None:
                recording.discard()
            self.report.interrupted = True
            return ending.why
        row = self._row(index, seed, start, ending, time.perf_counter() - began)
        if recording is not None:
            fine = ending.why in ("success", "end") and held <= _PAUSES * total
            good = fine and (not self.robot.spec.resets or row.success_last)
            recording.close(seed, start, row.score, good)
            if recording.lost:
                log.warning("the disk was too slow for %d steps of episode %d", recording.lost, index)
        self.report.endings[ending.why] += 1
        self.report.interrupted = ending.why == "asked"
        append_episode(self.out / "episodes.jsonl", row)
        return ending.why

    def _steps(self) -> int:
        known = self.robot.spec.details.get("horizon")
        return self.command.steps or known or _STEPS

    def _row(self, index: int, seed: int, start: str, ending: Ending, seconds: float) -> EpisodeRecord:
        outcomes = ending.outcomes
        success = [each.success for each in outcomes] or [False]
        encoder = self.card.encoder or {}
        return EpisodeRecord(
            task=self.robot.spec.name.removeprefix("task:"),
            policy=self.name,
            encoder=str(encoder.get("name", "none")),
            weights=str(encoder.get("weights", "none")),
            fusion="as exported",
            render=self.command.render or "none",
            index=index,
            seed=seed,
            start=start,
            episode_return=float(sum(each.reward for each in outcomes)),
            success_any=any(success),
            success_last=success[-1] and ending.why in ("success", "end"),
            success_count=sum(success),
            score=outcomes[-1].score if outcomes and ending.why in ("success", "end") else 0.0,
            length=ending.steps,
            wall_s=round(seconds, 3),
        )

    def _part(self, index: int) -> Path:
        return self.parts / f"episode_{index:05d}.hdf5"

    def _camera_name(self) -> str:
        if self.command.camera.startswith("robot"):
            return self.robot.spec.cameras[0]
        return self.command.camera.partition(":")[0]

    def _forget_unfinished(self, done: set[int]) -> None:
        """Drop the ticks of episodes that were cut off and run again."""
        if self.ticks.is_file():
            kept = [line for line in self.ticks.read_text().splitlines(True) if json.loads(line)["episode"] in done]
            self.ticks.write_text("".join(kept))

    def _join(self) -> None:
        parts = [self._part(row.index) for row in self.report.rows]
        parts = [part for part in parts if part.is_file()]
        if not parts:
            return
        spec = self.robot.spec
        if isinstance(self.robot, TaskRobot):
            request = self.robot.request
        else:
            seen = ("rgb", "depth", "proprio") if self.command.depth else ("rgb", "proprio")
            request = EnvRequest(spec.name, observe=seen, cameras=(self._camera_name(),), image_size=self.side)
        about = {"name": spec.name, "axes": list(spec.commands.names), "units": list(spec.commands.units)}
        about["control_hz"] = 1 / (self.loop.ways.parts * self.loop.metronome.period)  # a row is a step of the policy
        self.report.demos = self.out / "demos.hdf5"
        good, total = join_episodes(self.report.demos, parts, request, self._camera_name(), about, asdict(self.command))
        log.info("%s: %d of %d episodes are fit to learn from", self.report.demos, good, total)


def _finish(command: Run, report: RunReport, faults: list[Fault]) -> None:
    """Write the report."""
    out = report.out
    ticks = read_ticks(out / "ticks.jsonl")
    report.summary = summary_of(ticks)
    pictures = write_timelines(out, ticks, command.max_age)
    result: dict[str, Any] = {
        "title": f"{command.robot} · {Path(command.bundle or command.checkpoint or '').name}",
        "task": command.robot,
        "success_rule": "last",
        "render": command.render,
        "numbers": report.summary,
        "tables": {"Faults on purpose": fault_table(faults, ticks)},
        "pictures_title": "Timeline",
        "pictures": pictures,
        "facts": {"time": command.time, "camera": command.camera, "ended by": ", ".join(_ends(report.endings))},
        "notes": [report.stopped] if report.stopped else [],
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
