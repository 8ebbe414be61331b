"""Behaviour cloning with several encoders and baselines, on the same held-out episodes, for several seeds.

    python benchmarks/behaviour_cloning.py --out runs/bc --encoders pixio-robot-ti pixio-robot-ti+concat none

NAME+FUSION chooses another fusion of an encoder's tokens than their mean.
Runs (task, encoder, seed) that are finished are not repeated, so several calls may share the work.
"""

import argparse
from pathlib import Path

import numpy as np

from pixio_robot.envs.registry import TaskSpec
from pixio_robot.metrics import EpisodeRecord, mcnemar, read_episodes, resampled, success_rate
from pixio_robot.policies.collect import collect
from pixio_robot.policies.commands import Evaluate, TrainBC, evaluate, train_bc
from pixio_robot.policies.mlp import MlpConfig
from pixio_robot.policies.settings import TrainingSettings

TASKS = ("button-press-topdown", "hammer", "assembly", "bin-picking")
EPISODES = 25  # of a run
END_TO_END = TrainingSettings(batch=64, epochs=20)  # about as many optimiser steps as for the others


def run(out: Path, task: str, encoder: str, seed: int, envs: int) -> None:
    """Train and evaluate one policy, unless that is done."""
    folder = out / name_of(task, encoder, seed)
    if len(read_episodes(folder / "eval/episodes.jsonl")) == EPISODES:
        return
    name, _, fusion = encoder.partition("+")
    settings = TrainBC(
        demos=str(out / f"{task}.hdf5"),
        encoder=name,
        policy=MlpConfig(fusion=fusion or "mean"),
        training=END_TO_END if encoder == "cnn" else TrainingSettings(),
        seed=seed,
        cache=str(out / "cache"),
        out=str(folder),
    )
    _, result = train_bc(settings)
    checkpoint, into = str(result.last), str(folder / "eval")
    evaluate(Evaluate(checkpoint=checkpoint, episodes=EPISODES, envs=envs, videos=False, out=into))


def name_of(task: str, encoder: str, seed: int) -> str:
    """Return the name of a run's folder."""
    return f"{task}--{Path(encoder).name.removesuffix('.safetensors').replace(':', '-')}--{seed}"


def read_runs(out: Path, task: str, encoder: str, seeds: list[int]) -> list[list[EpisodeRecord]]:
    """Return the episodes of each seed that is finished."""
    found = (read_episodes(out / name_of(task, encoder, seed) / "eval/episodes.jsonl") for seed in seeds)
    return [rows for rows in found if len(rows) == EPISODES]


def outcomes(runs: list[list[EpisodeRecord]], rule: str) -> np.ndarray:
    """Return successes, (seeds, episodes) bool."""
    return np.array([[getattr(row, f"success_{rule}") for row in rows] for rows in runs])


def table(out: Path, encoders: list[str], seeds: list[int], rule: str) -> list[str]:
    """Return rates by task and encoder, and each encoder against the first, as Markdown.

    A rate's interval is Wilson's over all its episodes. The interval of a difference is a percentile bootstrap over
    training seeds and over episodes, which seeds and encoders share; p is McNemar's, over all pairs of episodes.
    """
    lines = [f"Success at {rule} step.", "", f"| task | {' | '.join(encoders)} |", "|---" * (len(encoders) + 1) + "|"]
    grids = {(t, e): outcomes(read_runs(out, t, e, seeds), rule) for t in TASKS for e in encoders}
    for task in TASKS:
        rates = []
        for encoder in encoders:
            grid = grids[task, encoder]
            each = ", ".join(str(int(row.sum())) for row in grid)
            rates.append(f"{success_rate(grid.ravel().tolist())} ({each})" if grid.size else "not run")
        lines.append(f"| {task} | {' | '.join(rates)} |")
    lines += ["", f"| {encoders[0]} against | difference over the tasks | wins, losses | p |", "|---|---|---|---|"]
    for other in encoders[1:]:
        pairs = [(grids[task, encoders[0]], grids[task, other]) for task in TASKS]
        if all(first.size and first.shape == second.shape for first, second in pairs):
            gap = resampled([100.0 * first - 100.0 * second for first, second in pairs])
            first, second = (np.concatenate([pair[side].ravel() for pair in pairs]).tolist() for side in (0, 1))
            test = mcnemar(first, second)
            lines.append(
                f"| {other} | {gap.value:+.0f} [{gap.low:+.0f}, {gap.high:+.0f}] points | "
                f"{test.only_first}, {test.only_second} | {test.p:.2g} |"
            )
    return lines


def main() -> None:
    """Record demonstrations, do the runs that are missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--encoders", nargs="+", required=True)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--render", default="fast")
    parser.add_argument("--episode-steps", type=int, default=200)
    parser.add_argument("--envs", type=int, default=4)
    parser.add_argument("--workers", type=int, default=None)
    asked = parser.parse_args()
    observe = ("rgb", "proprio", "state")
    for task in asked.tasks:
        request = TaskSpec(f"metaworld/{task}", observe, render=asked.render, horizon=asked.episode_steps)
        collect(request, demos=25, valid=3, first_seed=0, out=asked.out / f"{task}.hdf5", workers=asked.workers)
        for encoder in asked.encoders:
            for seed in asked.seeds:
                run(asked.out, task, encoder, seed, asked.envs)
    for rule in ("any", "last"):
        print("\n".join(table(asked.out, asked.encoders, asked.seeds, rule)), end="\n\n")


if __name__ == "__main__":
    main()
