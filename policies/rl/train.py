"""The loop of reinforcement learning: learn, log, evaluate, save; it goes on exactly where it stopped."""

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
from ..visuomotor import Visuomotor
from .embedded_env import EmbeddedVecEnv
from .learner import copy_actor, extractor_of, newest_embeddings
from .states import latest_state, load_state, save_state

log = logging.getLogger(__name__)
# from a policy and the environment step to rates and scores of the learning curve
Measure = Callable[[Visuomotor, int], dict[str, float]]
Save = Callable[[Visuomotor, Path, int], None]  # write a policy that explains itself


@dataclass
class Schedule:
    """When what happens [environment steps]."""

    steps: int
    log_every: int
    eval_every: int
    save_every: int


@dataclass
class _Numbers:
    """What a run remembers beside its learner."""

    best_score: float = float("-inf")
    seconds: dict[str, float] = field(default_factory=lambda: {"learning": 0.0, "evaluating": 0.0})


def train(
    model: Any,
    venv: EmbeddedVecEnv,
    policy: Visuomotor,
    schedule: Schedule,
    *,
    name: str,
    normalise: bool,
    measure: Measure,
    save: Save,
    folder: Path,
    out: Path,
    identity: dict[str, Any],
) -> dict[str, float]:
    """Train `model` and leave ``last.safetensors`` and ``best.safetensors`` in `folder`; return seconds spent.

    Args:
        model: an algorithm of stable-baselines3 on `venv`.
        policy: what the actor is written into.
        name: of the learner, in metrics and displays.
        normalise: add to the running statistics of embeddings; False where they are given.
        identity: written into each state.

    Raises:
        Stopped: after SIGTERM or Ctrl-C, once a state is written.
        DataError: if actions, rewards or losses stop being finite; ``failure.json`` has the step.
    """
    numbers = _Numbers()
    if found := latest_state(folder):
        numbers = _Numbers(**load_state(found, model, venv)["numbers"])
        log.info("going on from %s", found)
    small = model.device.type == "cpu" and extractor_of(model).pixels is None and extractor_of(model).backbone is None

    def export() -> Visuomotor:
        copy_actor(model, policy)
        return policy.eval()

    def evaluate(metrics: MetricLogger) -> None:
        began = perf_counter()
        measured = measure(export(), model.num_timesteps)
        metrics.write(0, model.num_timesteps, measured)
        if measured["eval/score"] > numbers.best_score:
            numbers.best_score = measured["eval/score"]
            save(policy, folder / "best.safetensors", model.num_timesteps)
        numbers.seconds["evaluating"] += perf_counter() - began

    with (
        Stopping() as stopping,
        MetricLogger(out, name, model.num_timesteps) as metrics,
        stage(f"train {name}", schedule.steps) as bar,
        threads(1 if small else torch.get_num_threads()),
    ):
        bar.advance(model.num_timesteps)
        if not found:
            evaluate(metrics)
        while model.num_timesteps < schedule.steps:
            before, began = model.num_timesteps, perf_counter()
            chunk = min(schedule.log_every - before % schedule.log_every, schedule.steps - before)
            with _noting_failure(out, model):
                model.learn(chunk, log_interval=None, reset_num_timesteps=False)
                values = _collected(model)
            after, spent = model.num_timesteps, perf_counter() - began
            norm = extractor_of(model).norm
            if normalise and norm is not None:
                norm.update(newest_embeddings(model, (after - before) // venv.num_envs))
            numbers.seconds["learning"] += spent
            metrics.write(0, after, {**values, "time/steps_per_second": (after - before) / spent})
            bar.advance(after - before)
            done = after >= schedule.steps
            if done or after // schedule.eval_every > before // schedule.eval_every:
                evaluate(metrics)
            if done or stopping.asked or after // schedule.save_every > before // schedule.save_every:
                save(export(), folder / "last.safetensors", after)
                save_state(folder, model, venv, {"numbers": copy.copy(vars(numbers)), **identity})
            if stopping.asked and not done:
                raise stopping.stopped(after, schedule.steps)
    return numbers.seconds


def _collected(model: Any) -> dict[str, float]:
    """Return and forget what the algorithm logged, with means over recent episodes.

    Raises:
        DataError: if a loss is not finite.
    """
    recorded = model.logger.name_to_value
    values = {tag: float(value) for tag, value in recorded.items() if isinstance(value, int | float | np.number)}
    recorded.clear()
    if bad := [f"{tag}={value}" for tag, value in values.items() if not np.isfinite(value) and "variance" not in tag]:
        raise DataError(f"{', '.join(bad)} is not finite; lower algorithm.lr")
    if model.ep_info_buffer:
        values["rollout/return"] = float(np.mean([each["r"] for each in model.ep_info_buffer]))
        values["rollout/length"] = float(np.mean([each["l"] for each in model.ep_info_buffer]))
    if model.ep_success_buffer:
        values["rollout/success"] = float(np.mean(model.ep_success_buffer))
    return {tag: value for tag, value in values.items() if np.isfinite(value)}


@contextmanager
def _noting_failure(out: Path, model: Any) -> Iterator[None]:
    """Write ``failure.json`` with the step when what is inside fails in a way of ours, or by numbers torch refuses."""
    try:
        yield
    except (PixioError, ValueError) as error:
        write_json(out / "failure.json", {"step": model.num_timesteps, "error": str(error)})
        raise DataError(
            f"{error}; stopped at environment step {model.num_timesteps}, written to {out / 'failure.json'}; the "
            "newest state before it is kept"
        ) from error
