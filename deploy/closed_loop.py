"""Run the same closed-loop episodes with an exported program and with the eager policy."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..envs.registry import TaskSpec
from ..envs.rollout import default_width, plan_episodes
from ..metrics import EpisodeRecord
from ..policies.evaluate import Label, RolloutSettings, check_no_overlap, evaluate, evaluate_policy, policy_task
from ..policies.loaded import LoadedPolicy
from ..run_folder import digest
from .runtime import Runtime


class Sessions:
    """An exported policy on a batch of environments, each with its own history."""

    def __init__(self, runtime: Runtime, width: int) -> None:
        self._runtimes = [runtime, *(runtime.session() for _ in range(width - 1))]

    def act(self, observations: dict[str, np.ndarray], reset_mask: np.ndarray, active_mask: np.ndarray) -> np.ndarray:
        """Return actions (B, A); arguments are those of `Agent.act`."""
        actions = np.zeros((len(active_mask), self._runtimes[0].manifest.actions), np.float32)
        for row in np.flatnonzero(active_mask):
            if reset_mask[row]:
                self._runtimes[row].reset()
            actions[row] = self._runtimes[row].act({key: value[row] for key, value in observations.items()})[0]
        return actions


@dataclass(frozen=True)
class EpisodePairs:
    """Which episodes both policies run."""

    episodes: int
    first_seed: int
    width: int | None  # environments in parallel; None is twice the cores
    cache: Path  # folder where the eager policy's rows are kept for other bundles


def run_episodes(
    runtime: Runtime, loaded: LoadedPolicy, task: TaskSpec, out: Path, pairs: EpisodePairs
) -> tuple[list[EpisodeRecord], list[EpisodeRecord]]:
    """Run the same episodes with both.

    Args:
        out: folder that gets the exported policy's rows, ``episodes.jsonl``.

    Returns:
        Rows of the exported and of the eager policy.

    Raises:
        DataError: if an episode has an initial state of the training data.
    """
    plans = plan_episodes(task, pairs.episodes, pairs.first_seed)
    check_no_overlap(loaded.training.get("initial_states", ()), plans, loaded.training.get("seeds", (0, 0)))
    sha256 = (runtime.manifest.policy or {}).get("sha256")
    rows = pairs.cache / f"eager-{digest(sha256, pairs.first_seed, pairs.episodes)}"
    width = min(pairs.width or 2 * default_width(), pairs.episodes)
    one_by_one = RolloutSettings(width, n_action_steps=1)
    eager = evaluate_policy(loaded, task, plans, torch.device("cpu"), rows, one_by_one)
    label = Label(f"{runtime.manifest.target}-{runtime.manifest.precision}")
    act = Sessions(runtime, width).act
    exported = evaluate(act, policy_task(loaded, task), plans, label, out, width=width, videos=False)
    return exported.rows, eager.rows
