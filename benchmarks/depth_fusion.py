"""Success of cloned policies without depth, with each fusion of depth, and with depth predicted from colour.

    OMP_NUM_THREADS=1 nice python benchmarks/depth_fusion.py --out runs/depth_fusion

Two tasks, exact depth and depth as a D435 measures it, three training seeds, every policy on the same episodes. It is
small on purpose: the bundled encoder on small images, one frame, few demonstrations and epochs. Finished runs are not
repeated. The tables of all finished runs are printed at the end and by ``--only-table``.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from pixio_robot.pretrain.settings import DenseSettings

from pixio_robot.command_table import find_command
from pixio_robot.encoders.load import load_encoder, save_encoder
from pixio_robot.envs.rendering import use_headless_gl
from pixio_robot.metrics import EpisodeRecord, mcnemar, read_episodes, resampled, success_rate
from pixio_robot.policies.commands import Collect, Evaluate, TrainBC, collect, evaluate, train_bc
from pixio_robot.policies.mlp import MlpConfig
from pixio_robot.policies.settings import ObservationSettings, TrainingSettings
from pixio_robot.pretrain.commands import Probe

SIDE = 128  # of the images, for the encoder too [px]
SENSORS = ("exact", "d435")
FUSIONS = {"(a) patches": "patches", "(b) late": "late", "(c) points": "points", "(d) channels": "channels"}
PREDICTED = "(e) predicted, late"
POLICY = MlpConfig(fusion="concat")
TRAINING = TrainingSettings(batch=64, epochs=30)
OBSERVATION = ObservationSettings(steps=1, depth_epochs=2, depth_points=128)
HEAD = DenseSettings(train_images=300, test_images=50, epochs=6)


@dataclass
class Plan:
    """One task's sizes."""

    task: str
    demos: int
    episodes: int
    episode_steps: int
    depth_range: list[float]  # nearest and farthest depth [m]
    box: list[float]  # of the points, in the world: above floor or table, within the robot's reach [m]

    @property
    def name(self) -> str:
        """Return its name in files and tables."""
        return self.task.split("/")[1]


BOX = [-0.4, 0.4, 0.3, 0.95, 0.01, 0.45]  # MetaWorld's table, without the arm's base
PLANS = (
    Plan("metaworld/button-press-topdown", 10, 16, 80, [0.2, 1.0], BOX),
    Plan("metaworld/hammer", 25, 16, 100, [0.2, 1.0], BOX),
)


def variants() -> list[tuple[str, str]]:
    """Return rows and sensors; colour does not depend on the sensor."""
    return [("colour", "exact"), (PREDICTED, "exact"), *((row, sensor) for sensor in SENSORS for row in FUSIONS)]


def demonstrations(out: Path, plan: Plan, sensor: str) -> Path:
    """Record the same episodes with either sensor."""
    path = out / f"{plan.name}-{sensor}.hdf5"
    if not path.is_file():
        settings = Collect(plan.task, plan.demos, valid=0, render="fast", obs="rgbd", depth_sensor=sensor)
        collect(replace(settings, image_size=SIDE, episode_steps=plan.episode_steps, workers=1, out=str(path)))
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
        find_command("probe").run(Probe(**settings, out=str(folder), cache=str(out / "cache")))
    return next((folder / "heads").glob("depth_dpt-*.safetensors"))


def folder_of(out: Path, plan: Plan, row: str, sensor: str, seed: int) -> Path:
    """Return the folder of a run."""
    kind = "predicted" if row == PREDICTED else FUSIONS.get(row, row)
    return out / f"{plan.name}--{kind}--{sensor}--{seed}"


def run(out: Path, plan: Plan, row: str, sensor: str, seed: int) -> None:
    """Train and evaluate one policy, unless that is done."""
    folder = folder_of(out, plan, row, sensor, seed)
    if len(read_episodes(folder / "eval/episodes.jsonl")) == plan.episodes:
        return
    observation = replace(OBSERVATION, depth_range=plan.depth_range, depth_box=plan.box)
    if row == PREDICTED:
        observation = replace(observation, depth="late", depth_head=str(depth_head(out, plan)))
    elif row in FUSIONS:
        observation = replace(observation, depth=FUSIONS[row])
    settings = TrainBC(
        demos=str(demonstrations(out, plan, sensor)),
        encoder=str(small_encoder(out)),
        observation=observation,
        policy=POLICY,
        training=TRAINING,
        seed=seed,
        save_every=TRAINING.epochs,
        cache=str(out / "cache"),
        out=str(folder),
    )
    _, result = train_bc(replace(settings, device="cpu"))
    chosen = Evaluate(checkpoint=str(result.last), episodes=plan.episodes, envs=1, videos=False)
    evaluate(replace(chosen, out=str(folder / "eval"), device="cpu"))


def episodes(out: Path, plan: Plan, row: str, sensor: str, seeds: list[int]) -> list[list[EpisodeRecord]]:
    """Return the episodes of the seeds that are finished."""
    found = [read_episodes(folder_of(out, plan, row, sensor, seed) / "eval/episodes.jsonl") for seed in seeds]
    return [rows for rows in found if len(rows) == plan.episodes]


def values(rows: list[list[EpisodeRecord]], field: str) -> np.ndarray:
    """Return a number of each episode, (seeds, episodes)."""
    return np.array([[float(getattr(each, field)) for each in some] for some in rows])


def table(out: Path, plan: Plan, seeds: list[int]) -> list[str]:
    """Return success, return and their differences to colour alone, row by row, as Markdown.

    A rate's interval is Wilson's over all its episodes. A difference's is a percentile bootstrap over training seeds
    and over episodes, which all policies share. p is McNemar's exact test over all pairs of episodes, not corrected.
    """
    titles = ("depth", "success at the last step", "by seed", "at any step", "against colour", "wins, losses, p")
    lines = [f"| {plan.name} | {' | '.join(titles)} | return | against colour |", "|---" * 9 + "|"]
    colour = episodes(out, plan, "colour", "exact", seeds)
    for row, sensor in variants():
        found = episodes(out, plan, row, sensor, seeds)
        depth = {"colour": "none", PREDICTED: "from colour"}.get(row, sensor)
        if not found:
            lines.append(f"| {row} | {depth} | not run | | | | | | |")
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
        cells = [row, depth, str(rates[0]), each, str(rates[1]), *against[:2], f"{reward.mean():.2f}", against[2]]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Do the runs that are missing, task by task and seed by seed, and print the tables."""
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
            for row, sensor in variants():
                run(asked.out, plan, row, sensor, seed)
    for plan in plans:
        print("\n".join(table(asked.out, plan, asked.seeds)), end="\n\n")


if __name__ == "__main__":
    main()
