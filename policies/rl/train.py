"""The training loop of reinforcement learning: learn, log, evaluate, save. A stopped run resumes exactly."""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from ...errors import DataError, PixioError
from ...hardware import threads
from ...progress import stage
from ...run_folder import write_json
from ...stopping import Stopping
from ...training.metric_log import MetricLogger
from ..build import VisionPolicy
from .embedded_env import EmbeddedVecEnv
from .learner import copy_actor
from .plan import Schedule
from .sb3 import extractor_of, latest_embeddings, take_logged_values
from .states import latest_state, load_state, save_state

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LearnerRun:
    """What the training loop needs beside learner, environments and policy."""

    name: str  # of the algorithm, in metrics and displays
    schedule: Schedule
    out: Path  # the run folder
    measure: Callable[[int], dict[str, float]]  # from the environment step to the policy's score on the learning curve
    save: Callable[[Path, int], None]  # write the policy of an environment step to a file
    update_statistics: bool  # update the running statistics of embeddings; False where `init_from=` gave them
    facts: dict[str, Any]  # written into each state

    @property
    def folder(self) -> Path:
        """The folder of checkpoints and states."""
        return self.out / "checkpoints" / self.name


@dataclass
class _Numbers:
    """What a run remembers beside its learner."""

    best_score: float = float("-inf")
    seconds: dict[str, float] = field(default_factory=lambda: {"learning": 0.0, "evaluating": 0.0})


def train(learner: Any, venv: EmbeddedVecEnv, model: VisionPolicy, run: LearnerRun) -> dict[str, float]:
    """Train, write ``last.safetensors`` and ``best.safetensors``, and return seconds spent.

    Args:
        learner: an algorithm of stable-baselines3 on `venv`.
        model: the policy that the actor is written into before it is evaluated or saved.

    Raises:
        Stopped: after SIGTERM or Ctrl-C, once a state is written.
        DataError: if actions, rewards or losses are not finite; ``failure.json`` has the step.
    """
    numbers, schedule, folder = _Numbers(), run.schedule, run.folder
    if found := latest_state(folder):
        numbers = _Numbers(**load_state(found, learner, venv)["numbers"])
        log.info("resuming from %s", found)
    extractor = extractor_of(learner)
    small = learner.device.type == "cpu" and not extractor.vision.trainable

    def evaluate(metrics: MetricLogger) -> None:
        began = perf_counter()
        _export(learner, model)
        measured = run.measure(learner.num_timesteps)
        metrics.write(0, learner.num_timesteps, measured)
        if measured["eval/score"] > numbers.best_score:
            numbers.best_score = measured["eval/score"]
            run.save(folder / "best.safetensors", learner.num_timesteps)
        numbers.seconds["evaluating"] += perf_counter() - began

    with (
        Stopping() as stopping,
        MetricLogger(run.out, run.name, learner.num_timesteps) as metrics,
        stage(f"train {run.name}", schedule.steps) as bar,
        threads(1 if small else torch.get_num_threads()),
    ):
        bar.advance(learner.num_timesteps)
        if not found:
            evaluate(metrics)
        while learner.num_timesteps < schedule.steps:
            before, began = learner.num_timesteps, perf_counter()
            part = min(schedule.log_every - before % schedule.log_every, schedule.steps - before)
            with _recorded_failure(run.out, learner):
                learner.learn(part, log_interval=None, reset_num_timesteps=False)
                values = _finite(take_logged_values(learner))
            after, spent = learner.num_timesteps, perf_counter() - began
            if run.update_statistics and extractor.norm is not None:
                extractor.norm.update(latest_embeddings(learner, (after - before) // venv.num_envs))
            numbers.seconds["learning"] += spent
            metrics.write(0, after, {**values, "time/steps_per_second": (after - before) / spent})
            bar.advance(after - before)
            done = after >= schedule.steps
            if done or after // schedule.eval_every > before // schedule.eval_every:
                evaluate(metrics)
            if done or stopping.asked or after // schedule.save_every > before // schedule.save_every:
                _export(learner, model)
                run.save(folder / "last.safetensors", after)
                save_state(folder, learner, venv, {"numbers": copy.copy(vars(numbers)), **run.facts})
            if stopping.asked and not done:
                raise stopping.stopped(after, schedule.steps)
    return numbers.seconds


def _export(learner: Any, model: VisionPolicy) -> None:
    copy_actor(learner, model)
    model.eval()


def _finite(values: dict[str, float]) -> dict[str, float]:
    """Return the values that are finite.

    Raises:
        DataError: if a loss is not finite.
    """
    undefined = ("variance", "rollout/")  # of returns that are all equal; of episodes
    bad = {tag: value for tag, value in values.items() if not np.isfinite(value)}
    if losses := [f"{tag}={value}" for tag, value in bad.items() if not any(each in tag for each in undefined)]:
        raise DataError(f"{', '.join(losses)} is not finite; lower algorithm.lr")
    return {tag: value for tag, value in values.items() if tag not in bad}


@contextmanager
def _recorded_failure(out: Path, learner: Any) -> Iterator[None]:
    """Write ``failure.json`` with the step if the block raises an error of ours, or torch refuses numbers."""
    try:
        yield
    except (PixioError, ValueError) as error:
        write_json(out / "failure.json", {"step": learner.num_timesteps, "error": str(error)})
        raise DataError(
            f"{error}; stopped at environment step {learner.num_timesteps}, written to {out / 'failure.json'}; the "
            "latest state before it is kept"
        ) from error
