"""Run the same closed-loop episodes with an exported program and with the eager policy."""

from pathlib import Path

import numpy as np
import torch

from ..encoders.load import Backbone
from ..envs.rollout import default_width, plan_episodes
from ..metrics import EpisodeRecord
from ..policies.evaluate import Label, evaluate
from ..policies.runs import check_held_out, evaluate_policy, policy_request
from ..policies.visuomotor import LoadedPolicy
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


def run_episodes(
    runtime: Runtime,
    loaded: LoadedPolicy,
    backbone: Backbone | None,
    out: Path,
    *,
    episodes: int,
    first_seed: int,
    width: int | None,
    cache: Path,
) -> tuple[list[EpisodeRecord], list[EpisodeRecord]]:
    """Run the same episodes with both.

    Args:
        out: folder that gets the exported policy's rows, ``episodes.jsonl``.
        cache: folder where the eager policy's rows are kept for other bundles.

    Returns:
        Rows of the exported and of the eager policy.

    Raises:
        DataError: if an episode has an initial state of the training data.
    """
    request = policy_request(loaded, loaded.request)
    plans = plan_episodes(loaded.request, episodes, first_seed)
    check_held_out(loaded.training.get("starts", ()), plans, loaded.training.get("seeds", (0, 0)))
    sha256 = (runtime.manifest.policy or {}).get("sha256")
    rows = cache / f"eager-{digest(sha256, first_seed, episodes)}"
    width = min(width or 2 * default_width(), episodes)
    eager = evaluate_policy(
        loaded, backbone, loaded.request, plans, torch.device("cpu"), rows, width, False, n_action_steps=1
    )
    label = Label(f"{runtime.manifest.target}-{runtime.manifest.precision}")
    act = Sessions(runtime, width).act
    exported = evaluate(act, request, plans, label, out, width=width, videos=False)
    return exported.rows, eager.rows
