"""The control loop: a fixed rate, the latest action, the safety filter, and a watchdog.

A tick sends the planned action. Then the loop waits for new frames and hands them to the policy's thread, so that the
next action is there at the next tick. Inference may take any time. At a tick without an action the robot holds; without
a good action for too long the watchdog stops the episode.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..action_queue import ActionQueue, QueuedAction
from ..deploy.manifest import Manifest
from ..deploy.observation import observation_from_frames
from ..errors import BadInput, CameraError, EmergencyStopped, EndOfStream, OutOfControl, RemoteError, RobotError
from .clock import Rate
from .faults import FaultInjector
from .frame_source import FrameSet, FrameSources
from .inference import InferenceInStep, InferenceRequest, InferenceThread
from .interpolation import Interpolation
from .robot import Outcome
from .safety import SafeRobot
from .step_record import COUNTED, EpisodeEnd, StepRecord, Tick, TickTime

log = logging.getLogger(__name__)
_FRAME_WAIT = 0.6  # share of a period in which new frames are waited for


@dataclass(frozen=True)
class Watchdog:
    """When the watchdog acts.

    Raises:
        BadInput: for a time that is not finite and above 0, since no age would ever exceed it.
    """

    max_age: float = 0.2  # of the oldest frame, when it is handed to the policy [s]
    stop_after: float = 1.0  # without a good action [s]
    startup_timeout: float = 5.0  # for the first frames and action of an episode [s]

    def __post_init__(self) -> None:
        for name, value in (("max_age", self.max_age), ("stop_after", self.stop_after)):
            if not (math.isfinite(value) and value > 0):
                example = f"{name}={getattr(Watchdog, name)}"
                raise BadInput(f"{name}={value:g} is not a valid time; give seconds above 0, e.g. {example}")


@dataclass(frozen=True)
class LoopTiming:
    """The time of a control loop."""

    rate: Rate  # of commands
    commands_per_step: int = 1  # of the policy
    watchdog: Watchdog = Watchdog()
    stepped: bool = False  # inference starts only when an action is needed, unless chunks are blended


@dataclass
class _Step:
    """One step of the policy, while it runs."""

    proprio: np.ndarray
    state: np.ndarray
    frames: FrameSet | None
    planned: QueuedAction | None = None
    sent: list[np.ndarray] = field(default_factory=list)
    ticks: list[Tick] = field(default_factory=list)


class ControlLoop:
    """One robot, its cameras and one policy.

    Args:
        robot: behind its safety filter.
        sources: the cameras.
        inference: the policy.
        manifest: what the policy observes.
        timing: rate, watchdog.
        queue: how chunks are used; None executes each to its end.
        faults: planned faults.
        stop_requested: called at every tick; True ends the episode.
    """

    def __init__(
        self,
        robot: SafeRobot,
        sources: FrameSources,
        inference: InferenceThread | InferenceInStep,
        manifest: Manifest,
        timing: LoopTiming,
        queue: ActionQueue | None = None,
        faults: FaultInjector | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        self.robot, self.sources, self.inference, self.manifest = robot, sources, inference, manifest
        self.rate, self.watchdog = timing.rate, timing.watchdog
        self.faults, self.stop_requested = faults, stop_requested
        self.clock = robot.clock
        self.queue = ActionQueue() if queue is None else queue
        self.interpolator = Interpolation(robot.spec.commands, timing.commands_per_step)
        horizon = min(self.queue.n_action_steps or manifest.horizon, manifest.horizon)
        on_demand = timing.stepped and self.queue.blend == 1
        step_period = timing.commands_per_step * timing.rate.period
        self._request_at = 0 if on_demand else horizon // 2  # actions left when the next chunk is requested
        self._max_frame_age = timing.watchdog.max_age + step_period  # beyond it nothing is sent [s]
        self._max_action_age = timing.watchdog.max_age + (horizon + 1) * step_period  # of the frames behind it [s]
        self._frames: FrameSet | None = None
        self._submitted: FrameSet | None = None  # the last set that the policy got
        self._events: list[str] = []  # since the last tick
        self._counted: Counter[str] = Counter()  # by the ticks so far
        self._server_lost = False
        self._since = -np.inf  # when the last command was sent, or the episode started [s]
        self._inference_seconds: float | None = None  # of the result that arrived at this tick

    @property
    def step_period(self) -> float:
        """Time between two steps of the policy [s]."""
        return self.interpolator.parts * self.rate.period

    def run(
        self, episode: int, seed: int, steps: int, on_step: Callable[[StepRecord], None] = lambda record: None
    ) -> tuple[str, EpisodeEnd]:
        """Run one episode of at most `steps` steps of the policy.

        Args:
            on_step: called after each step, e.g. to record it.

        Returns:
            The hash of its initial state ("" if unknown), and how it ended.

        Raises:
            EmergencyStopped: if the stop is latched before anything moves.
            PixioError: what the policy or the robot raised, after the robot has stopped.
        """
        if not self.inference.discard(self.watchdog.startup_timeout):
            raise RobotError(
                "the policy is still computing an action of the last episode after "
                f"{self.watchdog.startup_timeout:g} s; nothing has moved"
            )
        self._since = self.clock.now()
        self.queue.clear()
        self.interpolator.reset()
        self._frames, self._submitted, self._events, self._server_lost = None, None, [], False
        outcomes: list[Outcome] = []
        try:
            start = self.robot.reset(seed)
            self._observe(0, self.watchdog.startup_timeout, first=True)
            self.inference.wait_idle(self.watchdog.startup_timeout)
            why, step = self._run_steps(episode, steps, outcomes, on_step)
        finally:
            self.robot.stop()
        return start, EpisodeEnd(why, step, outcomes)

    def _run_steps(
        self, episode: int, steps: int, outcomes: list[Outcome], on_step: Callable[[StepRecord], None]
    ) -> tuple[str, int]:
        self.rate.restart()
        began = good = self.clock.now()
        for number in range(steps):
            end = ""
            for part in range(self.interpolator.parts):
                late = self.rate.tick()
                now = self.clock.now()
                if self.faults is not None:
                    self._events += [f"fault {each.kind}" for each in self.faults.tick(episode, now - began)]
                if part == 0:
                    step = self._new_step()
                    step.planned = self._next_action(now)
                self._since = now
                end = self._send(step, TickTime(episode, number, now - began, late, now))
                if step.ticks[-1].state == "run":
                    good = now
                if not end and now - good > self.watchdog.stop_after:
                    step.ticks[-1].events.append("watchdog")
                    end = "watchdog"
                if not end and self._server_lost:
                    end = "remote"
                if not end and self.stop_requested():
                    end = "asked"
                if end:
                    break
            on_step(self._finish(step, outcomes))
            if end:
                return end, number + 1
            if outcomes and outcomes[-1].ended:
                return ("success" if outcomes[-1].success else "end"), number + 1
            self._observe(number + 1, _FRAME_WAIT * self.rate.period)
        return "end", steps

    def _new_step(self) -> _Step:
        return _Step(self.robot.get_observation()["proprio"], self.robot.state(), self._frames)

    def _send(self, step: _Step, when: TickTime) -> str:
        """Send the command of a tick, or hold; add the tick to the step. Return why the episode must end, or ""."""
        command = None if step.planned is None else self.interpolator.next()
        sent: np.ndarray | None = None
        end = ""
        try:
            sent = self.robot.hold() if command is None else self.robot.send_action(command)
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
        if sent is not None:
            step.sent.append(sent)
        step.ticks.append(self._tick(when, "hold" if held else "run", step.planned, sent, reasons))
        return end

    def _next_action(self, now: float) -> QueuedAction | None:
        """Return the action of this step, if there is one that is not too old."""
        self._inference_seconds = None
        if (result := self.inference.poll()) is not None:
            self._inference_seconds = result.seconds
            if isinstance(result.error, RemoteError) and not result.request.is_first:
                log.error("%s", result.error)
                self._events.append("remote")
                self._server_lost = True
                return None
            if result.error is not None:
                raise result.error
            self.queue.put(result.actions, result.request.step, result.request.frame_time)
        if not len(self.queue):
            self.queue.skip()
            return None
        planned = self.queue.pop()
        if now - planned.tag > self._max_action_age:
            self._events.append("expired")
            return None
        if self._frames is None or self._frames.age(now) > self._max_frame_age:
            self._events.append("stale")  # the rest of a chunk, while a camera gives no frames
            return None
        self.interpolator.aim(planned.action)
        return planned

    def _tick(
        self,
        when: TickTime,
        state: str,
        planned: QueuedAction | None,
        sent: np.ndarray | None,
        reasons: tuple[str, ...],
    ) -> Tick:
        events, self._events = self._events, []
        seconds, self._inference_seconds = self._inference_seconds, None
        return Tick(
            episode=when.episode,
            number=when.step,
            at=when.at,
            late=when.late,
            state=state,
            age=None if planned is None else when.now - planned.tag,
            latest_age=None if self._frames is None else self._frames.age(when.now),
            seconds=seconds,
            asked=None if planned is None or not np.isfinite(planned.action).all() else planned.action.tolist(),
            sent=None if sent is None else sent.tolist(),
            reasons=reasons,
            events=events,
            counts=self._new_counts(),
        )

    def _new_counts(self) -> dict[str, int]:
        now = (self.rate.misses, self.rate.resyncs, self.queue.dropped, self.robot.uncommanded_steps)
        totals = Counter(dict(zip(COUNTED, now, strict=True)))
        new, self._counted = totals - self._counted, totals
        return dict(new)

    def _finish(self, step: _Step, outcomes: list[Outcome]) -> StepRecord:
        outcome = self.robot.outcome()
        if outcome is not None:
            outcomes.append(outcome)
        missing = np.full(len(self.robot.spec.commands.names), np.nan, np.float32)
        asked = missing if step.planned is None else step.planned.action
        whole = self.interpolator.whole(step.sent) if step.sent else None
        return StepRecord(step.frames, step.proprio, step.state, asked, whole, step.ticks, outcome)

    def _observe(self, step: int, timeout: float, first: bool = False) -> None:
        """Wait for new frames, at most `timeout` [s], and hand them to the policy, if it is idle and needed."""
        try:
            frames = self.sources.fresh(timeout, self._since, strict=first)
        except EndOfStream as error:
            raise EndOfStream(
                f"{error}, before the episode's end; record more, or lower steps= or episodes="
            ) from error
        except CameraError as error:
            if "camera_lost" not in self._events:
                log.warning("%s", error)
                self._events.append("camera_lost")
            return
        if frames is not None:
            self._frames = frames
        elif not first:
            self._events.append("no_frame")
        known = self._frames
        if known is None or not known.is_new_after(self._submitted) or len(self.queue) > self._request_at:
            return
        if (age := known.age(self.clock.now())) > self.watchdog.max_age:
            self._events.append(f"stale {1000 * age:.0f} ms")
            return
        proprio = self.robot.get_observation()["proprio"]
        observation = observation_from_frames(known, proprio, self.manifest)
        request = InferenceRequest(observation, step, known.arrival_time, self._submitted is None)
        if self.inference.submit(request):
            self._submitted = known
        else:
            self._events.append("busy")
