"""A run of `train_rl`, from its plan to its files."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...datasets.dataset import EpisodeDataset, open_dataset
from ...envs.features import task_cameras
from ...envs.rollout import EpisodePlan, plan_episodes
from ...errors import DataError, MissingExtra
from ...metrics import mean_score, success_rate
from ...progress import silent
from ...report.page import write_report
from ...run_folder import open_run, write_json
from ..evaluate import Evaluation, RolloutSettings, check_no_overlap, evaluate_policy
from ..loaded import LoadedPolicy, load_policy, save_policy
from ..settings import CURVE_SEED, HELD_OUT_SEED
from .plan import RLPlan

if TYPE_CHECKING:
    from .preparation import Preparation
    from .task_vec_env import TaskVecEnv

SEEDS = 10_000_000  # training episodes of seed s have the seeds from SEEDS * (s + 1) on


@dataclass
class RLResult:
    """What a run left behind."""

    out: Path  # the run folder
    last: Path  # the last policy
    evaluation: Evaluation  # of the last policy
    seconds: dict[str, float] = field(default_factory=dict)


def require_learner() -> None:
    """Check that stable-baselines3 is installed.

    Raises:
        MissingExtra: with the command that installs it.
    """
    if importlib.util.find_spec("stable_baselines3") is None:
        raise MissingExtra("train_rl", "rl")


def run_plan(plan: RLPlan, settings: Any) -> RLResult:
    """Train, evaluate and report.

    Args:
        settings: of the command, written into the run folder.
    """
    require_learner()
    with _kept_randomness():
        return _run(plan, settings)


@contextmanager
def _kept_randomness() -> Iterator[None]:
    """Restore torch's and NumPy's global generators afterwards; stable-baselines3 seeds and uses them."""
    state = np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        np.random.set_state(state)


def _run(plan: RLPlan, settings: Any) -> RLResult:
    from .preparation import prepare
    from .task_vec_env import TaskVecEnv

    prepared = prepare(plan)
    dataset = None if plan.replay.demos is None else open_dataset(plan.replay.demos)
    curve = plan_episodes(plan.task, plan.episodes.curve, CURVE_SEED)
    final = plan_episodes(plan.task, plan.episodes.final, HELD_OUT_SEED)
    if dataset is not None:
        _check_demos(plan, dataset, [*curve, *final])
    open_run(plan.out, settings, plan.inputs)
    prepared.model.vision.place(plan.device)
    tasks = TaskVecEnv(plan.task, plan.envs, SEEDS * (plan.seed + 1), plan.processes)
    try:
        run = _Run(plan, prepared, tasks, dataset)
        seconds = run.train(curve)
    finally:
        tasks.close()
    last = plan.folder / "last.safetensors"
    encoder = prepared.model.vision.encoder if not plan.finetune else None
    evaluation = run.evaluate(load_policy(last, encoder), final, plan.out, plan.episodes.videos)
    _report(plan, evaluation, seconds)
    return RLResult(plan.out, last, evaluation, seconds)


def _check_demos(plan: RLPlan, dataset: EpisodeDataset, episodes: list[EpisodePlan]) -> None:
    task = dataset.provenance.get("task") or "an unknown task"
    if task != plan.task.task:
        raise DataError(f"{dataset.source} holds demonstrations of {task}; the task is {plan.task.task}")
    check_no_overlap(dataset.initial_states, episodes)


class _Run:
    """A learner on its environments, and what the files of its policies hold beside weights.

    Args:
        dataset: demonstrations to replay.
    """

    def __init__(
        self, plan: RLPlan, prepared: "Preparation", tasks: "TaskVecEnv", dataset: EpisodeDataset | None
    ) -> None:
        from .demonstrations import demo_transitions
        from .embedded_env import EmbeddedVecEnv
        from .learner import LearnerOptions, init_actor, new_learner
        from .replay import ReplayOptions

        self.plan, self.tasks, self.model = plan, tasks, prepared.model
        cameras = task_cameras(plan.task)
        self.provenance = {"task": plan.task.task, "environment": asdict(plan.task), "cameras": list(cameras)}
        self.training: dict[str, Any] = {
            **asdict(plan.algorithm),
            "algorithm": plan.algorithm.name,
            "seed": plan.seed,
            "task": plan.task.task,
            "initial_states": [] if dataset is None else dataset.initial_states,
        }
        self.facts = {"encoder": None if prepared.encoder is None else asdict(prepared.encoder)}
        self.update_statistics = prepared.normalise and prepared.initial is None
        demos = None if dataset is None else demo_transitions(dataset, self.model, plan.cache, cameras)
        self.venv = EmbeddedVecEnv(tasks, self.model)
        shift = plan.replay.shift and self.model.vision.pixels is not None
        options = LearnerOptions(
            normalise=prepared.normalise,
            warm_start=prepared.initial is not None,
            replay=ReplayOptions(demos, plan.replay.demo_ratio, shift),
            seed=plan.seed,
            device=plan.device,
        )
        self.learner = new_learner(plan.algorithm, self.venv, self.model, options)
        if prepared.initial is not None:
            init_actor(self.learner, prepared.initial.model.to(plan.device), f"init_from={plan.init_from}")

    def train(self, curve: list[EpisodePlan]) -> dict[str, float]:
        """Train to the end, with planned episodes for the learning curve; return seconds spent."""
        from .train import LearnerRun, train

        run = LearnerRun(
            name=self.plan.algorithm.name,
            schedule=self.plan.schedule,
            out=self.plan.out,
            measure=partial(self._measure, curve),
            save=self._save,
            update_statistics=self.update_statistics,
            facts=self.facts,
        )
        return train(self.learner, self.venv, self.model, run)

    def _measure(self, curve: list[EpisodePlan], step: int) -> dict[str, float]:
        """Return score, success rate and mean return of the policy at an environment step, on planned episodes."""
        loaded = LoadedPolicy(self.model, self.provenance, self.training, step)
        with silent():
            rows = self.evaluate(loaded, curve, self.plan.out / "curve" / f"{step:09d}", videos=False).rows
        score, rate = mean_score(row.score for row in rows), success_rate(row.success_last for row in rows)
        mean_return = float(np.mean([row.episode_return for row in rows]))
        return {"eval/score": score.value, "eval/success": rate.value, "eval/return": mean_return}

    def _save(self, path: Path, step: int) -> None:
        """Write the policy of an environment step, with the seeds of the episodes that trained it."""
        first = self.tasks.first_seed
        seeds = [first, first + self.tasks.episodes_started]
        training = {**self.training, "seeds": seeds, "environment_steps": step}
        save_policy(path, self.model, self.provenance, training, step)

    def evaluate(self, loaded: LoadedPolicy, episodes: list[EpisodePlan], out: Path, videos: bool) -> Evaluation:
        """Run planned episodes."""
        request = self.plan.task
        width = self.plan.envs if "rgb" in request.observe else 1  # few episodes end before a process has started
        return evaluate_policy(loaded, request, episodes, self.plan.device, out, RolloutSettings(width, videos))


def _report(plan: RLPlan, evaluation: Evaluation, seconds: dict[str, float]) -> None:
    label, steps = evaluation.rows[0], plan.schedule.steps
    write_json(
        plan.out / "result.json",
        {
            "title": f"{plan.task.task} · {plan.algorithm.name} from {plan.observes}, {steps:,} environment steps",
            "task": plan.task.task,
            "steps": steps,
            "headline": label.policy,
            "success_rule": "last",
            "policies": {label.policy: evaluation.summary()},
            "encoder": label.encoder,
            "weights": label.weights,
            "fusion": label.fusion,
            "render": label.render,
            "stages": {
                "learn": {"seconds": round(seconds["learning"], 1)},
                "evaluate": {"seconds": round(seconds["evaluating"], 1)},
            },
        },
    )
    write_report(plan.out)
