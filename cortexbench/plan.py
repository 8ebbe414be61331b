"""Rough estimates of a benchmark: time, memory and disk, computed from tables. Nothing is run or measured.

The numbers are for one core of a small machine. The scheduler uses them too: ratios of times give the time that is
left, and a run starts when its memory is free.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..datasets.dataset import open_dataset
from ..jobs.launch import duration
from ..policies.necks import FusedVector
from .grid import EncoderInfo, Grid
from .protocol import BEST_CHECKPOINT, HELD_OUT, NAMES
from .run import EXPERT, Paths, RunSpec, is_finished

EPISODE_STEPS = {"adroit": 200, "dmc": 500, "metaworld": 500, "trifinger": 10, "toy": 50}  # at most
PROCESS, ENVIRONMENT = 0.9, 0.35  # memory of a run without its encoder, and of an environment's process [GB]
START, EVALUATION = 12.0, 5.0  # of a run, and of the processes of each evaluation [s]
STEP, EXPERT_ACTION = 0.001, 0.02  # a step of a simulator, an action of an expert [s]
UPDATE, LARGE_UPDATE = 0.03, 0.3  # an optimiser step of the MLP, and of other policies and the CNN [s]
IMAGE = {"fast": 0.02, "benchmark": 0.08}  # an image, by render quality [s]
ENCODER_FLOPS = 50e9  # of an encoder [1/s]
COMPRESSED = 0.35  # size of a simulator's images with lzf, as a share

ASSUMPTIONS = (
    "times come from a table for one core of a small machine, not from measurements here; expect them to be right "
    "within a factor of two or three",
    "every episode runs to its last step, and every demonstration succeeds",
    "jobs scale with their number; further threads of a job do not count",
    "a GPU is not considered: it takes encoding and training off the cores, not simulation",
)


@dataclass(frozen=True)
class Workload:
    """The frames and optimiser steps of one run."""

    recorded: int  # frames of demonstrations, with those of validation
    updates: int
    evaluated: int  # frames of all evaluations
    evaluations: int
    cameras: int

    @classmethod
    def of(cls, spec: RunSpec, paths: Paths) -> "Workload":
        """Return the work of a run, without making its environment."""
        protocol, limits = spec.learning, spec.limits
        steps = min(EPISODE_STEPS[spec.suite], limits.horizon.get(spec.suite, EPISODE_STEPS[spec.suite]))
        cameras = max(1, len(protocol.cameras))
        held_out_episodes = limits.held_out_episodes if spec.protocol != BEST_CHECKPOINT else 0
        if spec.encoder == EXPERT:
            return cls(0, 0, held_out_episodes * steps, 1, cameras)
        recorded = (protocol.demos + limits.valid) * steps
        if paths.demos:
            recorded = open_dataset(paths.demos).frames
        updates = protocol.training.epochs * -(-recorded // protocol.training.batch)
        evaluations = len(protocol.eval_epochs) if spec.protocol != HELD_OUT else 0
        episodes = protocol.episodes * evaluations + held_out_episodes
        return cls(recorded, updates, episodes * steps, evaluations + 1, cameras)


def seconds_of(runs: Sequence[tuple[RunSpec, Paths]], encoders: Mapping[str, EncoderInfo]) -> list[float]:
    """Return how long each run takes on one core [s]; what runs share counts for the first that needs it."""
    recorded: set[str] = set()
    encoded: set[tuple[str, str]] = set()
    result = []
    for spec, paths in runs:
        load = Workload.of(spec, paths)
        rendering = IMAGE.get(spec.limits.render, IMAGE["fast"]) * load.cameras
        update = UPDATE if spec.policy == "mlp" and spec.encoder != "cnn" else LARGE_UPDATE
        total = START + EVALUATION * load.evaluations + load.evaluated * STEP + load.updates * update
        if spec.encoder == EXPERT:
            total += load.evaluated * EXPERT_ACTION
        elif spec.task not in recorded and not paths.demos:
            recorded.add(spec.task)
            total += load.recorded * (STEP + EXPERT_ACTION + rendering)
        if spec.encoder == "cnn" or spec.weights:
            total += load.evaluated * rendering
        if spec.weights:
            frames = load.evaluated + (load.recorded if (spec.task, spec.encoder) not in encoded else 0)
            encoded.add((spec.task, spec.encoder))
            total += frames * load.cameras * _encoding(encoders[spec.encoder])
        result.append(total)
    return result


def _encoding(encoder: EncoderInfo) -> float:
    """Return how long an image takes in an encoder [s]."""
    rows, columns = encoder.tokens.grid
    return 2 * encoder.parameters * (rows * columns + encoder.tokens.cls) / ENCODER_FLOPS


def memory_of(spec: RunSpec, encoder: EncoderInfo | None, threads: int) -> float:
    """Return about how much memory a run needs [GB]."""
    total = PROCESS + 2 * threads * ENVIRONMENT
    if encoder is not None:
        activations = 64e6 * encoder.tokens.dim / 192  # of a batch on a CPU
        total += (5 * encoder.parameters + activations) / 1e9
    if encoder is not None and spec.policy == "mlp":  # it keeps the embedding of every frame
        protocol = spec.learning
        width = FusedVector(encoder.tokens, spec.fusion, protocol.policy.frames, protocol.observation.steps, 0).dim
        frames = protocol.demos * EPISODE_STEPS[spec.suite] * max(1, len(protocol.observation.cameras))
        total += min(4.0, 2 * 4 * frames * width / 1e9)
    return round(total, 2)


def estimate(grid: Grid, jobs: int, threads: int, root: Path) -> list[tuple[str, str]]:
    """Return what all runs that are not finished take, as pairs of a name and an amount.

    Args:
        jobs: runs at a time.
        threads: of each run.
        root: folder of the benchmark.
    """
    runs = [pair for pair in grid.runs if not is_finished(pair[0], root)]
    seconds = seconds_of(runs, grid.encoders)
    finished = len(grid.runs) - len(runs)
    rows = [("runs", f"{len(runs)}" + (f", and {finished} that are finished" if finished else ""))]
    by_suite, by_encoder = dict[str, float](), dict[str, float]()
    for spent, (spec, _) in zip(seconds, runs, strict=True):
        by_suite[spec.suite] = by_suite.get(spec.suite, 0.0) + spent
        by_encoder[spec.encoder] = by_encoder.get(spec.encoder, 0.0) + spent
    rows += [(f"{NAMES[suite]}, one core", duration(spent)) for suite, spent in by_suite.items()]
    rows += [(f"{encoder}, one core", duration(spent)) for encoder, spent in by_encoder.items()]
    rows.append(("all, one core", duration(sum(seconds))))
    rows.append((f"all, {jobs} jobs of {threads} threads", duration(sum(seconds) / max(jobs, 1))))
    recording = {spec.task: (spec, paths) for spec, paths in runs if spec.encoder != EXPERT and not paths.demos}
    loads = [(Workload.of(spec, paths), spec.learning.image_size) for spec, paths in recording.values()]
    pixels = sum(load.recorded * load.cameras * size**2 for load, size in loads)
    rows.append(("disk for demonstrations", f"{3 * COMPRESSED * pixels / 1e9:.1f} GB"))
    needs = [memory_of(spec, grid.encoders.get(spec.encoder), threads) for spec, _ in runs]
    rows.append(("memory of the largest run", f"{max(needs, default=0.0):.1f} GB"))
    return rows
