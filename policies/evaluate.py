"""Evaluation on a fixed list of episodes, known before the first one runs; every episode becomes a row."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..envs.registry import TaskSpec, tasks
from ..envs.rendering import check_rendering
from ..envs.rollout import Act, BatchRollout, EpisodePlan, EpisodeResult, default_width, in_workers, run_expert
from ..errors import DataError
from ..metrics import EpisodeRecord, append_episode, mean_score, read_episodes, success_rate, write_episodes
from ..progress import stage
from ..video import VideoWriter
from .agent import Agent
from .loaded import LoadedPolicy

log = logging.getLogger(__name__)


@dataclass
class Label:
    """How the rows of one policy describe it."""

    policy: str
    encoder: str = "none"
    weights: str = "none"
    fusion: str = "none"


@dataclass(frozen=True)
class RolloutSettings:
    """How episodes are run."""

    width: int | None = None  # environments in parallel; None is twice the cores
    videos: bool = False  # keep videos of the first success and the first failure
    n_action_steps: int | None = None  # as `Agent` takes it


@dataclass
class Evaluation:
    """The rows of one policy, in the order of the plan."""

    rows: list[EpisodeRecord]
    reused: int  # rows found, not run
    seconds: dict[str, float] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Return rates with Wilson intervals, the suite's score with a bootstrap one (95 %), mean return and length."""
        rates = {rule: success_rate(getattr(row, f"success_{rule}") for row in self.rows) for rule in ("last", "any")}
        return {
            **{rule: {**rate._asdict(), "rate": rate.value} for rule, rate in rates.items()},
            "score": mean_score(row.score for row in self.rows)._asdict(),
            "mean_return": float(np.mean([row.episode_return for row in self.rows])),
            "mean_length": float(np.mean([row.length for row in self.rows])),
        }


def evaluate(
    act: Act,
    request: TaskSpec,
    plans: Sequence[EpisodePlan],
    label: Label,
    out: Path,
    *,
    width: int,
    videos: bool = True,
) -> Evaluation:
    """Run the planned episodes that have no row in ``out/episodes.jsonl`` yet and add their rows.

    Args:
        act: the policy.
        label: what the rows say of the policy.
        width: environments in parallel.
        videos: keep H.264 videos of the first success and the first failure in the order of the plan.

    Raises:
        DataError: if rows found belong to another list of episodes.
    """
    waiting = _waiting(plans, label, out)
    reused = len(plans) - len(waiting)
    seconds: dict[str, float] = {}
    if waiting:
        if "rgb" in request.observe:
            check_rendering()
        rollout = BatchRollout(request, waiting, width, processes=width > 1 or "rgb" in request.observe)
        film = _Film(out, label, _rows(label, out)) if videos and "rgb" in request.observe else None
        horizon = plans_length(request)
        with (
            stage(f"evaluate {label.policy}", len(waiting) * horizon) as bar,
            rollout,
        ):
            try:
                for result in rollout.run(act, film.watch if film else None, bar.advance):
                    video = film.ended(result) if film else ""
                    append_episode(out / "episodes.jsonl", _record(result, request, label, video))
            finally:
                if film:
                    film.close()
        seconds = rollout.seconds
    _keep_first_videos(out, label)
    return Evaluation(_rows(label, out), reused, seconds)


def evaluate_expert(
    request: TaskSpec,
    plans: Sequence[EpisodePlan],
    out: Path,
    workers: int,
    expert: str | None = None,
) -> Evaluation:
    """Run the task's expert, or the one in the file `expert`, on the planned episodes, without images."""
    label = Label("expert")
    waiting = _waiting(plans, label, out)
    if waiting:
        with stage("evaluate expert", len(waiting)) as bar:
            for _, result in in_workers(partial(run_expert, request, expert=expert), waiting, workers):
                append_episode(out / "episodes.jsonl", _record(result, request, label, ""))
                bar.advance(1)
    return Evaluation(_rows(label, out), len(plans) - len(waiting))


def evaluate_policy(
    loaded: LoadedPolicy,
    request: TaskSpec,
    plans: Sequence[EpisodePlan],
    device: torch.device,
    out: Path,
    settings: RolloutSettings = RolloutSettings(),
) -> Evaluation:
    """Run a trained policy on planned episodes; without images where it does not observe them."""
    agent = Agent(loaded, device, settings.n_action_steps)
    width = settings.width or 2 * default_width()
    evaluation = evaluate(
        agent.act, policy_task(loaded, request), plans, label_of(loaded), out, width=width, videos=settings.videos
    )
    evaluation.seconds |= agent.seconds
    return evaluation


def label_of(loaded: LoadedPolicy) -> Label:
    """Return how rows describe a trained policy."""
    encoder, vision = loaded.spec.encoder, loaded.vision.spec
    if encoder is None:
        return Label(loaded.label)
    fusion = str(getattr(loaded.policy.config, "fusion", loaded.policy.config.name))
    if vision.depth != "none":
        fusion += f", depth {vision.depth}" + (" predicted" if vision.depth_head else "")
    return Label(loaded.label, encoder.name, encoder.weights, fusion)


def task_of(provenance: dict[str, Any], source: str) -> TaskSpec:
    """Return the environment that recorded demonstrations.

    Args:
        provenance: of a data set or of a policy.
        source: what to call it in messages.

    Raises:
        DataError: if another tool recorded it, or there is no such task here.
    """
    arguments, task = dict(provenance.get("environment") or {}), provenance.get("task") or "an unknown task"
    known = {each.name for each in fields(TaskSpec)}
    if not arguments or set(arguments) - known:
        raise DataError(
            f"{source} was not recorded by pixio-robot, so its environment is not known; name the one to evaluate in: "
            "task=SUITE/TASK"
        )
    if task not in tasks() and not provenance.get("robot"):
        raise DataError(f"{source} is of {task}, which cannot be simulated here; name a task: task=SUITE/TASK")
    arguments |= {"observe": tuple(arguments["observe"]), "cameras": tuple(arguments["cameras"])}
    return TaskSpec(**arguments)


def policy_task(loaded: LoadedPolicy, request: TaskSpec) -> TaskSpec:
    """Return a task that gives what a policy observes, and nothing else that would have to be rendered."""
    vision = loaded.vision
    seen = [*(["rgb"] if vision.observes_images else []), *(["depth"] if vision.observes_depth else [])]
    return replace(request, observe=(*seen, *loaded.spec.vectors))


def check_no_overlap(
    initial_states: Sequence[str], plans: Sequence[EpisodePlan], seeds: Sequence[int] = (0, 0)
) -> None:
    """Refuse to evaluate on initial states that were trained on.

    Args:
        initial_states: hashes of the demonstrations' initial states.
        seeds: the first of reinforcement learning's episodes, and the one after its last.

    Raises:
        DataError: naming the seeds that are in both.
    """
    known, trained = set(initial_states), range(seeds[0], seeds[1])
    for what, shared in (
        ("demonstrations", [plan.seed for plan in plans if plan.initial_state_hash in known]),
        ("training episodes", [plan.seed for plan in plans if plan.seed in trained]),
    ):
        if shared:
            raise DataError(f"evaluation seeds {shared[:5]} have initial states of {what}; choose another first_seed=")


def plans_length(request: TaskSpec) -> int:
    """Return the steps of an episode, for the progress display."""
    if request.horizon is not None:
        return request.horizon
    env = request.make()
    env.close()
    return env.horizon


def _rows(label: Label, out: Path) -> list[EpisodeRecord]:
    return [row for row in read_episodes(out / "episodes.jsonl") if row.policy == label.policy]


def _waiting(plans: Sequence[EpisodePlan], label: Label, out: Path) -> list[EpisodePlan]:
    """Return the planned episodes that have no row yet."""
    done = {row.index: row for row in _rows(label, out)}
    by_index = {plan.index: plan for plan in plans}
    for index, row in done.items():
        if index not in by_index or (row.seed, row.start) != (by_index[index].seed, by_index[index].initial_state_hash):
            raise DataError(f"{out / 'episodes.jsonl'} has rows of another list of episodes; choose another out=")
    return [plan for plan in plans if plan.index not in done]


def _record(result: EpisodeResult, request: TaskSpec, label: Label, video: str) -> EpisodeRecord:
    return EpisodeRecord(
        task=request.task,
        policy=label.policy,
        encoder=label.encoder,
        weights=label.weights,
        fusion=label.fusion,
        render=request.render if "rgb" in request.observe else "none",
        index=result.plan.index,
        seed=result.plan.seed,
        start=result.plan.initial_state_hash,
        episode_return=float(sum(result.rewards)),
        success_any=any(result.success),
        success_last=result.success[-1],
        success_count=sum(result.success),
        score=result.score,
        length=len(result.rewards),
        wall_s=round(result.wall_s, 3),
        video=video,
    )


class _Film:
    """Records episodes until the first success and the first failure, in the order of the plan, are kept."""

    def __init__(self, out: Path, label: Label, rows: Sequence[EpisodeRecord]) -> None:
        self.out, self.label = out, label
        self._writers: dict[int, VideoWriter] = {}
        self._first = {outcome: min(_with_video(rows, outcome), default=10**9) for outcome in (True, False)}

    def watch(self, plan: EpisodePlan, observation: dict[str, np.ndarray]) -> None:
        if plan.index > max(self._first.values()):
            return
        if plan.index not in self._writers:
            self._writers[plan.index] = VideoWriter(self._path(plan.index), fps=30)
        image = observation["rgb"]
        odd = image.shape[0] % 2  # H.264 wants even sides
        self._writers[plan.index].add(np.pad(image, ((0, odd), (0, odd), (0, 0)), mode="edge"))

    def ended(self, result: EpisodeResult) -> str:
        """Keep or drop the video of an ended episode; return its path in the run folder, or ""."""
        index, outcome = result.plan.index, result.success[-1]
        writer = self._writers.pop(index, None)
        if writer is None:
            return ""
        if index > self._first[outcome]:
            writer.discard()
            return ""
        self._first[outcome] = index
        writer.close()
        return str(self._path(index).relative_to(self.out))

    def close(self) -> None:
        for writer in self._writers.values():
            writer.discard()

    def _path(self, index: int) -> Path:
        return self.out / "videos" / f"{self.label.policy}-{index:03d}.mp4"


def _with_video(rows: Sequence[EpisodeRecord], outcome: bool) -> list[int]:
    return [row.index for row in rows if row.video and row.success_last == outcome]


def _keep_first_videos(out: Path, label: Label) -> None:
    """Delete videos that turned out not to be the first of their outcome, in the files and in the rows."""
    everything = read_episodes(out / "episodes.jsonl")
    rows = [row for row in everything if row.policy == label.policy]
    late = {index for outcome in (True, False) for index in sorted(_with_video(rows, outcome))[1:]}
    for row in rows:
        if row.index in late:
            (out / row.video).unlink(missing_ok=True)
            row.video = ""
    if late:
        write_episodes(out / "episodes.jsonl", everything)
