"""Run the episodes of one run and write their files: rows, ticks, recordings."""

import json
import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..deploy.manifest import Manifest
from ..envs.registry import TaskSpec
from ..errors import EmergencyStopped
from ..files import replacing
from ..metrics import EpisodeRecord, append_episode, read_episodes
from ..progress import stage
from ..stopping import Stopping
from .loop import ControlLoop
from .recording import EpisodeRecording, Origin, join_episodes, tick_row
from .robot import Robot
from .step_record import EpisodeEnd, StepRecord
from .timeline import read_ticks

log = logging.getLogger(__name__)
SIDE = 224  # of recorded images, for a policy without cameras [px]
_STEPS = 1000  # of an episode on a robot without a horizon
_PAUSES = 0.05  # share of steps without the policy's action, up to which an episode may be learned from


@dataclass
class RunReport:
    """The result of a run."""

    out: Path
    rows: list[EpisodeRecord]
    endings: Counter[str] = field(default_factory=Counter)
    summary: dict[str, float] = field(default_factory=dict)
    demos: Path | None = None
    stopped: str = ""  # why the emergency stop is latched
    interrupted: bool = False  # by Ctrl-C, SIGTERM or SIGHUP
    error: Exception | None = None  # that ended the last episode; raised after the files are written


@dataclass(frozen=True)
class SessionPlan:
    """The episodes of a run, and what its files say about it."""

    out: Path  # run folder
    episodes: int
    steps: int | None  # of the policy in an episode, at most; None is the task's own, else 1000
    seed: int  # of the first episode of a simulated robot
    record: bool
    robot: str  # as `find_robot` takes it
    policy: str  # name of its file or folder
    render: str  # quality of simulated images; "none" if unknown
    depth: bool  # whether depth is recorded
    settings: dict[str, Any]  # of the command, kept in the recording

    @property
    def title(self) -> str:
        """The title of the report."""
        return f"{self.robot} · {self.policy}"

    @property
    def facts(self) -> dict[str, str]:
        """What the report's table of settings shows."""
        shown = {name: self.settings.get(name) for name in ("time", "camera", "cameras")}
        return {name: str(value) for name, value in shown.items() if value}


class Session:
    """The episodes of one run and their files.

    Args:
        plan: which episodes.
        manifest: of the policy.
        robot: connected.
        loop: that runs an episode.
        cameras: the names under which the policy's cameras are recorded.
    """

    def __init__(
        self, plan: SessionPlan, manifest: Manifest, robot: Robot, loop: ControlLoop, cameras: Mapping[str, str]
    ) -> None:
        self.plan, self.manifest, self.robot, self.loop, self.cameras = plan, manifest, robot, loop, cameras
        self.out = plan.out
        self.parts = self.out / "episodes"
        self.side = manifest.image_size or SIDE
        self.ticks = self.out / "ticks.jsonl"
        self.name = "checkpoint" if plan.settings.get("checkpoint") else "bundle"
        self.report = RunReport(self.out, [])

    def run(self, stopping: Stopping) -> RunReport:
        """Run the episodes that the run folder does not hold yet."""
        done = {row.index for row in read_episodes(self.out / "episodes.jsonl")}
        waiting = [index for index in range(self.plan.episodes) if index not in done]
        self._forget_unfinished(done)
        with stage(f"run {self.robot.spec.name}", len(waiting)) as bar:
            for index in waiting:
                try:
                    why = self._episode(index)
                except EmergencyStopped as error:
                    self.report.stopped = str(error)
                    break
                bar.advance(1)
                if why == "estop":
                    self.report.stopped = "the emergency stop was pressed"
                if why in ("estop", "asked", "error"):
                    break
        self.report.rows = read_episodes(self.out / "episodes.jsonl")
        if self.plan.record:
            self._join()
        return self.report

    def _episode(self, index: int) -> str:
        seed = self.plan.seed + index
        recording = EpisodeRecording(self._part(index), self.cameras, self.side) if self.plan.record else None
        held, total = 0, 0
        began = time.perf_counter()
        with self.ticks.open("a") as lines:

            def on_step(record: StepRecord) -> None:
                """Record a step, and count those in which the robot held."""
                nonlocal held, total
                if recording is not None:
                    recording.add(record)
                lines.writelines(tick_row(tick) for tick in record.ticks)
                total += 1
                held += any(tick.state != "run" for tick in record.ticks)

            try:
                start, ending = self.loop.run(index, seed, self._steps(), on_step)
            except EmergencyStopped:
                if recording is not None:
                    recording.discard()  # nothing has moved
                raise
            except Exception as error:  # what it led to must not be lost; the episode is run again
                self.report.error = error
                self.report.endings["error"] += 1
                if recording is not None:
                    recording.note(f"error: {error}")
                    recording.close(seed, "", 0.0, False)
                return "error"
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
            good = fine and not recording.lost and (not self.robot.spec.resets or row.success_last)
            recording.close(seed, start, row.score, good)
            if recording.lost:
                words = "the disk was too slow for %d steps of episode %d, which must not be learned from"
                log.warning(words, recording.lost, index)
        self.report.endings[ending.why] += 1
        self.report.interrupted = ending.why == "asked"
        append_episode(self.out / "episodes.jsonl", row)
        return ending.why

    def _steps(self) -> int:
        known = self.robot.spec.details.get("horizon")
        return self.plan.steps or known or _STEPS

    def _row(self, index: int, seed: int, start: str, ending: EpisodeEnd, seconds: float) -> EpisodeRecord:
        outcomes = ending.outcomes
        success = [each.success for each in outcomes] or [False]
        encoder = self.manifest.encoder or {}
        return EpisodeRecord(
            task=self.robot.spec.name.removeprefix("task:"),
            policy=self.name,
            encoder=str(encoder.get("name", "none")),
            weights=str(encoder.get("weights", "none")),
            fusion="as exported",
            render=self.plan.render,
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

    def _forget_unfinished(self, done: set[int]) -> None:
        """Drop the ticks of episodes that were cut off and run again."""
        if self.ticks.is_file():
            kept = [tick for tick in read_ticks(self.ticks) if tick["episode"] in done]
            with replacing(self.ticks) as temporary:
                temporary.write_text("".join(json.dumps(tick) + "\n" for tick in kept))

    def _join(self) -> None:
        parts = sorted(self.parts.glob("episode_*.hdf5"))
        if not parts:
            return
        spec, cameras = self.robot.spec, tuple(self.cameras.values())
        request = self.robot.task_spec()
        if request is None:
            observed = ("rgb", "depth", "proprio") if self.plan.depth else ("rgb", "proprio")
            request = TaskSpec(spec.name, observe=observed, cameras=cameras, image_size=self.side)
        lowest, highest = spec.commands.action_range
        about = {
            "name": spec.name,
            "axes": list(spec.commands.names),
            "units": list(spec.commands.units),
            "actions": spec.commands.meanings,
            "action_low": lowest.tolist(),
            "action_high": highest.tolist(),
            "control_hz": 1 / self.loop.step_period,  # a row is a step of the policy
        }
        self.report.demos = self.out / "demos.hdf5"
        good, total = join_episodes(self.report.demos, parts, request, cameras, Origin(about, self.plan.settings))
        log.info("%s: %d of %d episodes may be learned from", self.report.demos, good, total)
