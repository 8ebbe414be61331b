"""Success of cloned policies without depth, with each fusion of depth, and with depth predicted from colour.

    OMP_NUM_THREADS=1 nice python benchmarks/depth_fusion.py --out runs/depth_fusion

Two tasks, depth exact and as a D435 measures it, three training seeds, every policy on the same starts. Small on
purpose: the bundled encoder on small images, one frame, few demonstrations and epochs. What is finished is not done
again; the tables, of what is there so far, are printed at the end and by ``--only-table``.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pixio_robot.policies.runs import run_collect, run_evaluate, run_train_bc

from pixio_robot.encoders.load import load_encoder, save_encoder
from pixio_robot.envs.rendering import use_headless_gl
from pixio_robot.metrics import EpisodeRecord, mcnemar, read_episodes, resampled, success_rate
from pixio_robot.policies.commands import Collect, Evaluate, TrainBC
from pixio_robot.policies.settings import EmbeddingSettings, PolicySettings
from pixio_robot.pretrain.probes.commands import DenseSettings, Probe, probe_encoders

SIDE = 128  # of the images, for the encoder too [px]
SENSORS = ("exact", "d435")
FUSIONS = {"(a) patches": "patches", "(b) late": "late", "(c) points": "points", "(d) channels": "channels"}
PREDICTED = "(e) predicted, late"
POLICY = PolicySettings(batch=64, epochs=30)
EMBEDDING = EmbeddingSettings(fusion="concat", frames="single", depth_epochs=2, depth_points=128)
HEAD = DenseSettings(train_images=300, test_images=50, epochs=6)


@dataclass
class Plan:
    """One task's sizes."""

    task: str
    demos: int
    episodes: int
    horizon: int
    reach: list[float]  # nearest and farthest depth [m]
    box: list[float]  # of the points, in the world: above floor or table, as far as the robot goes [m]

    @property
    def name(self) -> str:
        """Return its name in files and tables."""
        return self.task.split("/")[1]


BOX = [-0.4, 0.4, 0.3, 0.95, 0.01, 0.45]  # MetaWorld's table, without the arm's base
PLANS = (
    Plan("metaworld/button-press-topdown", 10, 16, 80, [0.2, 1.0], BOX),
    Plan("metaworld/hammer", 25, 16, 100, [0.2, 1.0], BOX),
)


def cells() -> list[tuple[str, str]]:
    """Return rows and sensors; colour knows nothing of the sensor."""
    return [("colour", "exact"), (PREDICTED, "exact"), *((row, sensor) for sensor in SENSORS for row in FUSIONS)]


def demonstrations(out: Path, plan: Plan, sensor: str) -> Path:
    """Record the same episodes with either sensor."""
    path = out / f"{plan.name}-{sensor}.hdf5"
    if not path.is_file():
        command = Collect(plan.task, plan.demos, valid=0, render="fast", obs="rgbd", depth_sensor=sensor)
        run_collect(replace(command, image_size=SIDE, horizon=plan.horizon, workers=1, out=str(path)))
    return path


def small_encoder(out: Path) -> Path:
    """Write the bundled encoder for small images."""
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
        probe_encoders(Probe(**settings, out=str(folder), cache=str(out / "cache")))
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
    embedding = replace(EMBEDDING, depth_range=plan.reach, depth_box=plan.box)
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
    _, result = run_train_bc(replace(command, device="cpu"))
    judged = Evaluate(checkpoint=str(result.last), episodes=plan.episodes, envs=1, videos=False, out=str(cell / "eval"))
    run_evaluate(replace(judged, device="cpu"))


def episodes(out: Path, plan: Plan, row: str, sensor: str, seeds: list[int]) -> list[list[EpisodeRecord]]:
    """Return the episodes of the seeds that are finished."""
    found = [read_episodes(folder_of(out, plan, row, sensor, seed) / "eval/episodes.jsonl") for seed in seeds]
    return [rows for rows in found if len(rows) == plan.episodes]


def values(rows: list[list[EpisodeRecord]], field: str) -> np.ndarray:
    """Return a number of each episode, (seeds, starts)."""
    return np.array([[float(getattr(each, field)) for each in some] for some in rows])


def table(out: Path, plan: Plan, seeds: list[int]) -> list[str]:
    """Return success, return and their differences to colour alone, row by row, as Markdown.

    A rate's interval is Wilson's over all its episodes; a difference's resamples starts, which all policies share, and
    training seeds (percentile bootstrap); p is McNemar's exact test over all pairs of episodes, not corrected.
    """
    titles = ("depth", "success at the last step", "by seed", "at any step", "against colour", "wins, losses, p")
    lines = [f"| {plan.name} | {' | '.join(titles)} | return | against colour |", "|---" * 9 + "|"]
    colour = episodes(out, plan, "colour", "exact", seeds)
    for row, sensor in cells():
        found = episodes(out, plan, row, sensor, seeds)
        said = {"colour": "none", PREDICTED: "from colour"}.get(row, sensor)
        if not found:
            lines.append(f"| {row} | {said} | not run | | | | | | |")
            continue
        last, reward = values(found, "success_last"), values(found, "episode_return")
        each = ", ".join(str(int(count)) for count in last.sum(axis=1))
        rates = [success_rate((values(found, f"success_{rule}") > 0).ravel().tolist()) for rule in ("last", "any")]
        against = ["", "", ""]
        if row != "colour" and len(colour) >= len(found):
            theirs = [values(colour[: len(found)], field) for field in ("success_last", "episode_return")]
            gaps = [resampled([100 * (last - theirs[0])]), resampled([reward - theirs[1]])]
            test = mcnemar((last > 0).ravel().tolist(), (theirs[0] > 0).ravel().tolist())
            against = [f"{gap.value:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}]" for gap in gaps]
            against.insert(1, f"{test.only_first}, {test.only_second}, {test.p:.2g}")
        cell = [row, said, str(rates[0]), each, str(rates[1]), *against[:2], f"{reward.mean():.2f}", against[2]]
        lines.append(f"| {' | '.join(cell)} |")
    return lines


def main() -> None:
    """Run what is missing, task by task and seed by seed, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=[plan.name for plan in PLANS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only-table", action="store_true")
    asked = parser.parse_args()
    plans = [plan for plan in PLANS if plan.name in asked.tasks]
    use_headless_gl()
    for plan in [] if asked.only_table else plans:
        for seed in asked.seeds:
            for row, sensor in cells():
                run_cell(asked.out, plan, row, sensor, seed)
    for plan in plans:
        print("\n".join(table(asked.out, plan, asked.seeds)), end="\n\n")


if __name__ == "__main__":
    main()
