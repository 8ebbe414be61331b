"""The control loop: a beat, the newest action there is, the safety filter, and what becomes of the time in between.

A tick sends what has been planned; then the loop looks for a new frame and hands it to the policy's thread, so that the
action is there when the next tick comes. The policy takes as long as it takes. Where no action is there at a tick the
robot holds; where none has come for too long the watchdog stops the episode.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..action_queue import ActionQueue, QueuedAction
from ..cameras.frame import Frame
from ..deploy.manifest import Manifest
from ..errors import BadInput, CameraError, EmergencyStopped, EndOfStream, OutOfControl, RemoteError, RobotError
from .clock import Rate
from .faults import FaultInjector
from .fit import observation_of
from .frame_source import FrameSource
from .inference import InferenceInStep, InferenceThread, Job
from .interpolation import Interpolation
from .robot import Outcome
from .safety import SafeRobot
from .step_record import COUNTED, EpisodeEnd, StepRecord, Tick

log = logging.getLogger(__name__)
_LOOK = 0.6  # share of a period in which a new frame is waited for


@dataclass(frozen=True)
class Rules:
    """When the watchdog acts.

    Raises:
        BadInput: for a time that is no finite number above 0, which no age would ever exceed.
    """

    max_age: float = 0.2  # of a frame, when it is handed to the policy [s]
    stop_after: float = 1.0  # without a good action [s]
    startup_timeout: float = 5.0  # for the first frame and action of an episode [s]

    def __post_init__(self) -> None:
        for name, value in (("max_age", self.max_age), ("stop_after", self.stop_after)):
            if not (math.isfinite(value) and value > 0):
                raise BadInput(f"{name}={value:g} is no time; give seconds above 0, e.g. {name}={getattr(Rules, name)}")


class ControlLoop:
    """One robot, one camera, one policy.

    Args:
        robot: behind its safety filter.
        eyes: its camera.
        inference: the policy.
        manifest: what the policy observes.
        metronome: the beat.
        parts: ticks a step of the policy.
        rules: of the watchdog.
        queue: what becomes of chunks; None carries each out to its end.
        stepped: in stepped time nothing is asked for before it is needed, unless chunks are mixed.
        saboteur: of planned faults.
        watch: called with each step, for the recording.
    """

    def __init__(
        self,
        robot: SafeRobot,
        eyes: FrameSource,
        inference: InferenceThread | InferenceInStep,
        manifest: Manifest,
        metronome: Rate,
        *,
        parts: int = 1,
        rules: Rules = Rules(),
        queue: ActionQueue | None = None,
        stepped: bool = False,
        saboteur: FaultInjector | None = None,
        watch: Callable[[StepRecord], None] = lambda moment: None,
        asked_to_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.robot, self.eyes, self.inference, self.manifest = robot, eyes, inference, manifest
        self.metronome, self.rules, self.saboteur, self.watch = metronome, rules, saboteur, watch
        self.asked_to_stop = asked_to_stop
        self.clock = robot.clock
        self.queue = ActionQueue() if queue is None else queue
        self.ways = Interpolation(robot.spec.commands, parts)
        chunk = min(self.queue.n_action_steps or manifest.horizon, manifest.horizon)
        needed = stepped and self.queue.blend == 1
        self._ask_at = 0 if needed else chunk // 2  # actions left when the next chunk is asked for
        self._blind = rules.max_age + parts * metronome.period  # age of the newest frame; beyond it nothing is sent
        self._bearable = rules.max_age + (chunk + 1) * parts * metronome.period  # age of what is behind an action [s]
        self._frame: Frame | None = None
        self._submitted = -1  # number of the frame
        self._noted: list[str] = []
        self._told: Counter[str] = Counter()  # what ticks have counted so far
        self._lost = False  # whether the policy's server is
        self._since = -np.inf  # when the last command was sent, or the episode began [s]
        self._took: float | None = None  # by the answer that came [s]

    def run(self, episode: int, seed: int, steps: int) -> tuple[str, EpisodeEnd]:
        """Run one episode of at most so many steps of the policy; return what names its start, and how it ended.

        Raises:
            EmergencyStopped: if the stop is latched before anything moves.
            PixioError: what the policy or the robot raised, when the robot stands still.
        """
        if not self.inference.settle(self.rules.startup_timeout):
            raise RobotError(
                f"the policy is still computing its answer of the last episode after {self.rules.startup_timeout:g} s; "
                "nothing has moved"
            )
        self._since = self.clock.now()
        self.queue.clear()
        self.ways.reset()
        self._frame, self._submitted, self._noted, self._lost = None, -1, [], False
        outcomes: list[Outcome] = []
        try:
            start = self.robot.reset(seed)
            self._look(0, self.rules.startup_timeout, first=True)
            self.inference.ready(self.rules.startup_timeout)
            why, step = self._steps(episode, steps, outcomes)
        finally:
            self.robot.stop()
        return start, EpisodeEnd(why, step, outcomes)

    def _steps(self, episode: int, steps: int, outcomes: list[Outcome]) -> tuple[str, int]:
        self.metronome.restart()
        began = good = self.clock.now()
        for step in range(steps):
            ticks: list[Tick] = []
            sent: list[np.ndarray] = []
            planned: QueuedAction | None = None
            felt, state = self.robot.get_observation(), self.robot.state()
            frame = self._frame
            for part in range(self.ways.parts):
                late = self.metronome.tick()
                now = self.clock.now()
                if self.saboteur is not None:
                    self._noted += [f"fault {each.kind}" for each in self.saboteur.tick(episode, now - began)]
                if part == 0:
                    felt, state = self.robot.get_observation(), self.robot.state()
                    planned = self._next(step, now)
                command = None if planned is None else self.ways.next()
                self._since = now
                done: np.ndarray | None = None
                end = ""
                try:
                    done = self.robot.hold() if command is None else self.robot.send_action(command)
                    reasons = self.robot.reasons
                except EmergencyStopped as error:
                    log.error("%s", error)
                    reasons, end = ("estop",), "estop"
                except OutOfControl as error:
                    log.error("%s", error)
                    reasons, end = ("out_of_control",), "control"
                if command is None and reasons == ("hold",):
                    reasons = ("no_action",)
                held = command is None or "nan" in reasons or bool(end)
                if not held:
                    good = now
                sent += [] if done is None else [done]
                ticks.append(self._tick(episode, step, now - began, late, held, planned, done, reasons, now))
                if not end and now - good > self.rules.stop_after:
                    ticks[-1].events.append("watchdog")
                    end = "watchdog"
                if not end and self._lost:
                    end = "remote"
                if not end and self.asked_to_stop():
                    end = "asked"
                if end:
                    self._finish(felt, state, frame, planned, sent, ticks, outcomes)
                    return end, step + 1
            self._finish(felt, state, frame, planned, sent, ticks, outcomes)
            if outcomes and outcomes[-1].over:
                return ("success" if outcomes[-1].success else "end"), step + 1
            self._look(step + 1, _LOOK * self.metronome.period)
        return "end", steps

    def _next(self, step: int, now: float) -> QueuedAction | None:
        """Return the action for a step, if there is one that is not too old."""
        self._took = None
        if (answer := self.inference.poll()) is not None:
            self._took = answer.seconds
            if isinstance(answer.error, RemoteError) and not answer.job.starts:
                log.error("%s", answer.error)
                self._noted.append("remote")
                self._lost = True
                return None
            if answer.error is not None:
                raise answer.error
            assert answer.actions is not None
            self.queue.put(answer.actions, answer.job.step, answer.job.seen)
        if len(self.queue):
            planned: QueuedAction | None = self.queue.pop()
        else:
            planned = None
            self.queue.skip()
        if planned is not None and now - planned.tag > self._bearable:
            self._noted.append("expired")
            planned = None
        if planned is not None and (self._frame is None or self._frame.age(now) > self._blind):
            self._noted.append("stale")  # the rest of a chunk, while the camera shows nothing
            planned = None
        if planned is not None:
            self.ways.aim(planned.action)
        return planned

    def _tick(
        self,
        episode: int,
        step: int,
        at: float,
        late: float,
        held: bool,
        planned: QueuedAction | None,
        sent: np.ndarray | None,
        reasons: tuple[str, ...],
        now: float,
    ) -> Tick:
        events, self._noted = self._noted, []
        took, self._took = self._took, None
        return Tick(
            episode,
            step,
            at,
            late,
            "hold" if held else "run",
            None if planned is None else now - planned.tag,
            None if self._frame is None else self._frame.age(now),
            took,
            None if planned is None or not np.isfinite(planned.action).all() else planned.action.tolist(),
            None if sent is None else sent.tolist(),
            reasons,
            events,
            self._counted(),
        )

    def _counted(self) -> dict[str, int]:
        totals = Counter(dict(zip(COUNTED, self._totals(), strict=True)))
        news, self._told = totals - self._told, totals
        return dict(news)

    def _totals(self) -> tuple[int, int, int, int]:
        return self.metronome.misses, self.metronome.resyncs, self.queue.dropped, self.robot.uncommanded_steps

    def _finish(
        self,
        felt: dict[str, np.ndarray],
        state: np.ndarray,
        frame: Frame | None,
        planned: QueuedAction | None,
        sent: list[np.ndarray],
        ticks: list[Tick],
        outcomes: list[Outcome],
    ) -> None:
        outcome = self.robot.outcome()
        if outcome is not None:
            outcomes.append(outcome)
        asked = np.full(len(felt["set_point"]), np.nan, np.float32) if planned is None else planned.action
        whole = self.ways.whole(sent) if sent else None
        self.watch(StepRecord(frame, felt["proprio"], state, asked, whole, ticks, outcome))

    def _newest(self, timeout: float, first: bool) -> Frame | None:
        """Return a frame that came after the last command, else the newest; at first none from before the episode."""
        end, found = self.clock.now() + timeout, None
        while (frame := self.eyes.fresh(max(0.0, end - self.clock.now()))) is not None:
            if frame.arrival_time >= self._since:
                return frame
            found = None if first else frame
        return found

    def _look(self, step: int, timeout: float, first: bool = False) -> None:
        """Wait a little for a new frame and hand it to the policy, if that has time and is needed."""
        try:
            frame = self._newest(timeout, first)
        except EndOfStream as error:
            raise EndOfStream(
                f"{error}, before the episode's end; record more, or lower steps= or episodes="
            ) from error
        except CameraError as error:
            if "camera_lost" not in self._noted:
                log.warning("%s", error)
                self._noted.append("camera_lost")
            return
        if frame is not None:
            self._frame = frame
        elif not first:
            self._noted.append("no_frame")
        known = self._frame
        if known is None or known.sequence == self._submitted or len(self.queue) > self._ask_at:
            return
        if (age := known.age(self.clock.now())) > self.rules.max_age:
            self._noted.append(f"stale {1000 * age:.0f} ms")
            return
        felt = self.robot.get_observation()["proprio"]
        job = Job(observation_of(known, felt, self.manifest), step, known.arrival_time, self._submitted < 0)
        if self.inference.submit(job):
            self._submitted = known.sequence
        else:
            self._noted.append("busy")
