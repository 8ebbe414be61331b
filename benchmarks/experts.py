"""How well each expert does what it demonstrates: ``python benchmarks/experts.py TASK [TASK@STEPS ...]``

50 held-out episodes a task, nothing drawn; one line each. ``@STEPS`` cuts the episodes of experts that plan slowly; the
Control Suite's score is then scaled to a whole episode. ``--experts FOLDER`` holds DAPG's policies for Adroit.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np

from pixio_robot.cortexbench.protocol import SUCCESS, score_scale
from pixio_robot.envs.registry import TaskSpec, new_task
from pixio_robot.envs.rollout import in_workers, plan_episodes, run_expert
from pixio_robot.metrics import mean_score, success_rate
from pixio_robot.policies.settings import HELD_OUT_SEED


def line_of(name: str, episodes: int, experts: str | None, workers: int) -> str:
    """Return what an expert reaches, as words."""
    task, _, steps = name.partition("@")
    suite, own = task.split("/")[0], new_task(task).horizon
    request = TaskSpec(task, observe=("proprio",), horizon=int(steps or own))
    file = str(Path(experts) / f"{task.split('/')[1]}-v0.pickle") if experts and suite == "adroit" else None
    plans = plan_episodes(request, episodes, HELD_OUT_SEED)
    rows = [row for _, row in in_workers(partial(run_expert, request, expert=file), plans, workers)]
    seconds = sum(row.wall_s for row in rows) / episodes
    scale = score_scale(suite, own, int(steps or own))
    scores = np.array([row.score for row in rows]) * scale
    found = str(success_rate((scores > 50).tolist())) if suite in SUCCESS else str(mean_score(scores))
    return f"{task}, {steps or own} steps: {found}, least {scores.min():.1f}; {seconds:.2f} s an episode"


def main() -> None:
    """Print a line a task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--experts")
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    for name in asked.tasks:
        print(line_of(name, asked.episodes, asked.experts, asked.workers), flush=True)


if __name__ == "__main__":
    main()
