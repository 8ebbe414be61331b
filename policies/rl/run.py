"""What `train_rl` does, from its settings to its files. Reads downwards; the work is in the files it calls."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...datasets.robomimic import DemoSet
from ...envs.rollout import EpisodePlan, plan_episodes
from ...errors import DataError, MissingExtra
from ...metrics import mean_score, success_rate
from ...progress import silent
from ...report.page import write_report
from ...run_folder import open_run, write_json
from ..agent import Perception
from ..evaluate import Evaluation
from ..runs import cache_for, check_held_out, evaluate_policy
from ..settings import CURVE_SEED, HELD_OUT_SEED
from ..visuomotor import LoadedPolicy, Visuomotor, load_policy
from .commands import TrainRL

if TYPE_CHECKING:
    from .preparation import Preparation
    from .replay import Transitions
    from .task_vec_env import TaskVecEnv

SEEDS = 10_000_000  # training episodes of seed s have the seeds from SEEDS * (s + 1) on


def run_train_rl(command: TrainRL) -> tuple[Path, Path, Evaluation]:
    """Train, evaluate and report; return the run folder, the last policy's file and its evaluation."""
    require_learner()
    with _own_randomness():
        return _run(command)


def require_learner() -> None:
    """Refuse to go on without stable-baselines3.

    Raises:
        MissingExtra: with the line that installs it.
    """
    if importlib.util.find_spec("stable_baselines3") is None:
        raise MissingExtra("train_rl", "rl")


@contextmanager
def _own_randomness() -> Iterator[None]:
    """Leave torch's and NumPy's global generators as they were; stable-baselines3 seeds and uses them."""
    state = np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        np.random.set_state(state)


def _run(command: TrainRL) -> tuple[Path, Path, Evaluation]:
    from .preparation import prepare
    from .task_vec_env import TaskVecEnv

    prepared = prepare(command)
    request = prepared.request
    demos = None if command.demos is None else DemoSet(command.demos)
    curve = plan_episodes(request, command.eval_episodes, CURVE_SEED)
    plans = plan_episodes(request, command.episodes, HELD_OUT_SEED)
    if demos is not None:
        _check_demos(command, demos, [*curve, *plans])
    open_run(prepared.out, command, prepared.inputs)
    transitions = None if demos is None else _transitions(command, prepared, demos)
    processes = prepared.images if command.processes is None else command.processes
    tasks = TaskVecEnv(request, command.envs, SEEDS * (command.seed + 1), processes)
    try:
        run = _Run(command, prepared, tasks, [] if demos is None else demos.starts, transitions)
        seconds = run.train(curve)
    finally:
        tasks.close()
    evaluation = run.evaluate(load_policy(run.last), plans, prepared.out, command.videos)
    _report(command, prepared.out, evaluation, seconds)
    return prepared.out, run.last, evaluation


def _check_demos(command: TrainRL, demos: DemoSet, plans: list[EpisodePlan]) -> None:
    if demos.task != command.task:
        raise DataError(f"{demos.path} holds demonstrations of {demos.task}; the task is {command.task}")
    check_held_out(demos.starts, plans)


def _transitions(command: TrainRL, prepared: "Preparation", demos: DemoSet) -> "Transitions":
    from .demonstrations import demo_transitions

    cache = None
    if prepared.backbone is not None:
        where, embedding = Path(command.cache), command.embedding
        cache = cache_for(prepared.backbone, demos, embedding, where, prepared.device, prepared.precision)
    return demo_transitions(demos, cache, prepared.policy)


class _Run:
    """A learner on its environments, with what its policies' files say of it.

    Args:
        starts: digests of the demonstrations' starts.
    """

    def __init__(
        self,
        command: TrainRL,
        prepared: "Preparation",
        tasks: "TaskVecEnv",
        starts: list[str],
        transitions: "Transitions | None",
    ) -> None:
        from .embedded_env import EmbeddedVecEnv
        from .learner import init_actor, new_learner
        from .run_encoder import FinetunedEncoder, FrozenEncoder

        self.command, self.prepared, self.tasks = command, prepared, tasks
        self.folder = prepared.out / "checkpoints" / command.algorithm.name
        self.last = self.folder / "last.safetensors"
        self.described: dict[str, Any] = dict(
            **asdict(command.algorithm),
            algorithm=command.algorithm.name,
            seed=command.seed,
            task=command.task,
            starts=starts,
        )
        learned = prepared.backbone if command.finetune else None
        frozen = None if command.finetune else prepared.backbone
        perception = Perception(prepared.policy, frozen, prepared.precision, prepared.device)
        self.venv = EmbeddedVecEnv(tasks, perception, images=command.finetune)
        self.model = new_learner(
            command.algorithm,
            self.venv,
            prepared.policy,
            normalise=prepared.normalise,
            backbone=learned,
            demos=transitions,
            demo_ratio=command.demo_ratio,
            shift=command.shift and prepared.kind == "cnn",
            begun=prepared.begun is not None,
            seed=command.seed,
            device=prepared.device,
        )
        if prepared.begun is not None:
            init_actor(self.model, prepared.begun.policy.to(prepared.device), f"init={command.init}")
        self.sight: FrozenEncoder | FinetunedEncoder = FrozenEncoder(frozen, prepared.identity)
        if learned is not None:
            self.sight = FinetunedEncoder(self.model, prepared.precision)

    def train(self, curve: list[EpisodePlan]) -> dict[str, float]:
        """Train to the end, with the planned episodes for the learning curve; return seconds spent."""
        from .train import Schedule, train

        command, identity = self.command, self.prepared.identity

        def measure(trained: Visuomotor, step: int) -> dict[str, float]:
            loaded = LoadedPolicy(trained, self.sight.identity, self.prepared.request, self.described, step)
            where = self.prepared.out / "curve" / f"{step:09d}"
            with silent():
                rows = self.evaluate(loaded, curve, where, False).rows
            score, rate = mean_score(row.score for row in rows), success_rate(row.success_last for row in rows)
            mean_return = float(np.mean([row.episode_return for row in rows]))
            return {"eval/score": score.value, "eval/success": rate.value, "eval/return": mean_return}

        def save(trained: Visuomotor, path: Path, step: int) -> None:
            first = self.tasks.first_seed
            described = {**self.described, "seeds": [first, first + self.tasks.begun], "environment_steps": step}
            trained.save(path, self.sight.saved(path), self.prepared.request, described, step)

        return train(
            self.model,
            self.venv,
            self.prepared.policy,
            Schedule(command.steps, command.log_every, command.eval_every, command.save_every),
            name=command.algorithm.name,
            normalise=self.prepared.normalise and self.prepared.begun is None,
            measure=measure,
            save=save,
            folder=self.folder,
            out=self.prepared.out,
            identity={"encoder": None if identity is None else asdict(identity)},
        )

    def evaluate(self, loaded: LoadedPolicy, plans: list[EpisodePlan], out: Path, videos: bool) -> Evaluation:
        """Run planned episodes."""
        request, device = self.prepared.request, self.prepared.device
        width = self.command.envs if self.prepared.images else 1  # a worker takes longer to start than few episodes
        return evaluate_policy(loaded, self.sight.backbone, request, plans, device, out, width, videos)


def _report(command: TrainRL, out: Path, evaluation: Evaluation, seconds: dict[str, float]) -> None:
    label, algorithm = evaluation.rows[0], command.algorithm.name
    write_json(
        out / "result.json",
        {
            "title": f"{command.task} · {algorithm} from {command.obs}, {command.steps:,} environment steps",
            "task": command.task,
            "steps": command.steps,
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
    write_report(out)
