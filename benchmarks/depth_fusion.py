"""Success of cloned policies without depth, with each fusion of depth, and with depth predicted from colour.

    OMP_NUM_THREADS=1 nice python benchmarks/depth_fusion.py --out runs/depth_fusion

Two tasks, depth exact and as a D435 measures it, three training seeds, every policy on the same starts. Small on
purpose: the bundled encoder on small pictures, one frame, few demonstrations and epochs. What is finished is not done
again; the tables, of what is there so far, are printed at the end and by ``--only-table``.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pixio_robot.backbones import load_encoder, save_encoder
from pixio_robot.envs.rendering import use_headless_gl
from pixio_robot.metrics import EpisodeRecord, mcnemar, read_episodes, resampled, success_rate
from pixio_robot.policies.runs import run_collect, run_evaluate, run_train_bc
from pixio_robot.pretrain.probes.runs import run_probe
from pixio_robot.pretrain_schemas import DenseSettings, Probe
from pixio_robot.progress import Progress
from pixio_robot.schemas import Collect, EmbeddingSettings, Evaluate, PolicySettings, TrainBC

SIDE = 96  # of the pictures, for the encoder too [px]
SENSORS = ("exact", "d435")
FUSIONS = {"(a) patches": "patches", "(b) late": "late", "(c) points": "points", "(d) channels": "channels"}
PREDICTED = "(e) predicted, late"
POLICY = PolicySettings(batch=32, epochs=12)
EMBEDDING = EmbeddingSettings(
    fusion="concat",
    frames="single",
    depth_range=[0.2, 1.0],
    depth_epochs=2,
    depth_points=128,
    depth_box=[-0.4, 0.4, 0.3, 0.95, 0.01, 0.45],  # above the table, as far as the robot goes
)
HEAD = DenseSettings(train_images=300, test_images=50, epochs=6)


@dataclass
class Plan:
    """One task's sizes."""

    task: str
    demos: int
    episodes: int
    horizon: int

    @property
    def name(self) -> str:
        """Return its name in files and tables."""
        return self.task.split("/")[1]


PLANS = (
    Plan("metaworld/drawer-open", demos=10, episodes=8, horizon=100),
    Plan("metaworld/button-press-topdown", demos=10, episodes=8, horizon=85),
)


def cells() -> list[tuple[str, str]]:
    """Return rows and sensors; colour knows nothing of the sensor."""
    return [("colour", "exact"), (PREDICTED, "exact"), *((row, sensor) for sensor in SENSORS for row in FUSIONS)]


def demonstrations(out: Path, plan: Plan, sensor: str) -> Path:
    """Record the same episodes with either sensor."""
    path = out / f"{plan.name}-{sensor}.hdf5"
    if not path.is_file():
        command = Collect(plan.task, plan.demos, valid=0, render="fast", obs="rgbd", depth_sensor=sensor)
        run_collect(replace(command, image_size=SIDE, horizon=plan.horizon, workers=1, out=str(path)), Progress())
    return path


def small_encoder(out: Path) -> Path:
    """Write the bundled encoder for small pictures."""
    path = out / f"ti-{SIDE}.safetensors"
    if not path.is_file():
        backbone = load_encoder("pixio-robot-ti")
        backbone.preprocessing = backbone.preprocessing._replace(size=(SIDE, SIDE))
        out.mkdir(parents=True, exist_ok=True)
        save_encoder(backbone, path)
    return path


def depth_head(out: Path, plan: Plan) -> Path:
    """Train a DPT head on the exact depth of the task's own demonstrations."""
    folder = out / f"{plan.name}-head"
    if not list((folder / "heads").glob("depth_dpt-*.safetensors")):
        images = str(demonstrations(out, plan, "exact"))
        settings = dict(encoder=str(small_encoder(out)), images=images, probes=["depth_dpt"], dense=HEAD, device="cpu")
        run_probe(Probe(**settings, out=str(folder), cache=str(out / "cache")), Progress())
    return next((folder / "heads").glob("depth_dpt-*.safetensors"))


def folder_of(out: Path, plan: Plan, row: str, sensor: str, seed: int) -> Path:
    """Return the folder of a cell."""
    kind = "predicted" if row == PREDICTED else FUSIONS.get(row, row)
    return out / f"{plan.name}--{kind}--{sensor}--{seed}"


def run_cell(out: Path, plan: Plan, row: str, sensor: str, seed: int) -> None:
    """Train and evaluate one policy, unless that is done."""
    cell = folder_of(out, plan, row, sensor, seed)
    if len(read_episodes(cell / "eval/episodes.jsonl")) == plan.episodes:
        return
    embedding = EMBEDDING
    if row == PREDICTED:
        embedding = replace(embedding, depth="late", depth_head=str(depth_head(out, plan)))
    elif row in FUSIONS:
        embedding = replace(embedding, depth=FUSIONS[row])
    command = TrainBC(
        demos=str(demonstrations(out, plan, sensor)),
        encoder=str(small_encoder(out)),
        embedding=embedding,
        policy=POLICY,
        seed=seed,
        save_every=POLICY.epochs,
        cache=str(out / "cache"),
        out=str(cell),
    )
    _, result = run_train_bc(replace(command, device="cpu"), Progress())
    judged = Evaluate(checkpoint=str(result.last), episodes=plan.episodes, envs=1, videos=False, out=str(cell / "eval"))
    run_evaluate(replace(judged, device="cpu"), Progress())


def outcomes(out: Path, plan: Plan, row: str, sensor: str, seeds: list[int], rule: str) -> np.ndarray:
    """Return successes of the seeds that are finished, (seeds, starts) bool."""
    found = [read_episodes(folder_of(out, plan, row, sensor, seed) / "eval/episodes.jsonl") for seed in seeds]
    done: list[list[EpisodeRecord]] = [rows for rows in found if len(rows) == plan.episodes]
    return np.array([[getattr(each, f"success_{rule}") for each in rows] for rows in done])


def table(out: Path, plan: Plan, seeds: list[int], rule: str) -> list[str]:
    """Return success and difference to colour alone, row by row, as Markdown.

    A rate's interval is Wilson's over all its episodes; a difference's resamples starts, which all policies share, and
    training seeds (percentile bootstrap); p is McNemar's exact test over all pairs of episodes, not corrected.
    """
    titles = (f"{plan.name}, {rule} step", "depth", "success", "by seed", "against colour", "wins, losses", "p")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    colour = outcomes(out, plan, "colour", "exact", seeds, rule)
    for row, sensor in cells():
        grid = outcomes(out, plan, row, sensor, seeds, rule)
        if not grid.size:
            lines.append(f"| {row} | {sensor} | not run | | | | |")
            continue
        said = {"colour": "none", PREDICTED: "from colour"}.get(row, sensor)
        line = f"| {row} | {said} | {success_rate(grid.ravel().tolist())} | {', '.join(map(str, grid.sum(1)))} |"
        if row != "colour" and colour.shape == grid.shape:
            gap = resampled([100.0 * grid - 100.0 * colour])
            test = mcnemar(grid.ravel().tolist(), colour.ravel().tolist())
            line += f" {gap.value:+.0f} [{gap.low:+.0f}, {gap.high:+.0f}] points |"
            line += f" {test.only_first}, {test.only_second} | {test.p:.2g} |"
        else:
            line += " | | |"
        lines.append(line)
    return lines


def main() -> None:
    """Run what is missing, seed by seed, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=[plan.name for plan in PLANS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only-table", action="store_true")
    asked = parser.parse_args()
    plans = [plan for plan in PLANS if plan.name in asked.tasks]
    use_headless_gl()
    for seed in [] if asked.only_table else asked.seeds:
        for plan in plans:
            for row, sensor in cells():
                run_cell(asked.out, plan, row, sensor, seed)
    for rule in ("last", "any"):
        for plan in plans:
            print("\n".join(table(asked.out, plan, asked.seeds, rule)), end="\n\n")


if __name__ == "__main__":
    main()
