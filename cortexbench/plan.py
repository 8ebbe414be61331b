"""Rough estimates of a benchmark: time, memory and disk, computed from tables. Nothing is run or measured.

The numbers are of one core of a small machine. The scheduler uses them too: ratios of times order and weigh the runs,
and a run starts when its memory is free.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..datasets.dataset import open_dataset
from ..jobs.launch import duration
from ..policies.necks import FusedVector
from .cell import EXPERT, Paths, RunSpec, folder_of
from .grid import Grid, Vision
from .protocol import NAMES

EPISODE_STEPS = {"adroit": 200, "dmc": 500, "metaworld": 500, "trifinger": 10, "toy": 50}  # at most
PROCESS, ENVIRONMENT = 0.9, 0.35  # memory of a run without its encoder, and of an environment's process [GB]
START, EVALUATION = 12.0, 5.0  # of a run, and of the processes of each evaluation [s]
STEP, EXPERT_ACTION, TRAIN_STEP = 0.001, 0.02, 0.03  # a step of a simulator, an action of an expert, an update [s]
IMAGE = {"fast": 0.02, "benchmark": 0.08}  # an image, by render quality [s]
COMPRESSED = 0.35  # share that lzf leaves of simulators' frames
ENCODER_FLOPS = 50e9  # of an encoder [1/s]


@dataclass(frozen=True)
class Load:
    """The numbers of steps and images of one run."""

    recorded: int  # frames of demonstrations, with those of validation
    updates: int  # of training
    evaluated: int  # frames of all evaluations
    evaluations: int
    cameras: int

    @classmethod
    def of(cls, cell: RunSpec, places: Paths) -> "Load":
        """Return the load of a run, without making its environment."""
        protocol, limits = cell.learning, cell.limits
        steps = min(EPISODE_STEPS[cell.suite], limits.horizon.get(cell.suite, EPISODE_STEPS[cell.suite]))
        cameras = max(1, len(protocol.cameras))
        if cell.encoder == EXPERT:
            return cls(0, 0, limits.honest_episodes * steps, 1, cameras)
        recorded = (protocol.demos + limits.valid) * steps
        if places.demos:
            recorded = int(open_dataset(places.demos).lengths.sum())
        updates = protocol.training.epochs * -(-recorded // protocol.training.batch)
        moments = len(protocol.moments) if cell.protocol != "honest" else 0
        episodes = protocol.episodes * moments + (limits.honest_episodes if cell.protocol != "cortexbench" else 0)
        return cls(recorded, updates, episodes * steps, moments + 1, cameras)


def seconds_of(cells: Sequence[tuple[RunSpec, Paths]], visions: dict[str, Vision]) -> list[float]:
    """Return how long each run takes on one core [s]; what runs share counts for the first that needs it."""
    recorded: set[str] = set()
    encoded: set[tuple[str, str]] = set()
    result = []
    for cell, places in cells:
        load = Load.of(cell, places)
        rendering = IMAGE.get(cell.limits.render, IMAGE["fast"]) * load.cameras
        total = START + EVALUATION * load.evaluations + load.evaluated * STEP + load.updates * TRAIN_STEP
        if cell.encoder == EXPERT:
            total += load.evaluated * EXPERT_ACTION
        elif cell.task not in recorded and not places.demos:
            recorded.add(cell.task)
            total += load.recorded * (STEP + EXPERT_ACTION + rendering)
        if cell.encoder == "cnn" or cell.weights:
            total += load.evaluated * rendering
        if cell.weights:
            frames = load.evaluated + (load.recorded if (cell.task, cell.encoder) not in encoded else 0)
            encoded.add((cell.task, cell.encoder))
            total += frames * load.cameras * _encoding(visions[cell.encoder])
        result.append(total)
    return result


def _encoding(vision: Vision) -> float:
    """Return how long an image takes in an encoder [s]."""
    patches = vision.tokens.grid[0] * vision.tokens.grid[1]
    return 2 * vision.parameters * (patches + vision.tokens.cls) / ENCODER_FLOPS


def memory_of(cell: RunSpec, vision: Vision | None, threads: int) -> float:
    """Return about how much memory a run needs [GB]."""
    total = PROCESS + 2 * threads * ENVIRONMENT
    if vision is not None:
        activations = 64e6 * vision.tokens.dim / 192  # of a batch on a CPU
        total += (5 * vision.parameters + activations) / 1e9
        protocol = cell.learning
        policy = protocol.policy
        width = FusedVector(vision.tokens, policy.fusion, policy.frames, protocol.observation.steps, 0).dim
        frames = protocol.demos * EPISODE_STEPS[cell.suite] * max(1, len(protocol.observation.cameras))
        total += min(4.0, 2 * 4 * frames * width / 1e9)  # embeddings computed ahead
    return round(total, 2)


@dataclass
class Plan:
    """What a benchmark would take."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)


def make_plan(grid: Grid, jobs: int, threads: int, root: Path) -> Plan:
    """Return an estimate of everything that is not finished yet.

    Args:
        jobs: runs at a time.
        threads: of each run.
        root: folder of the benchmark.
    """
    cells = [pair for pair in grid.cells if not (folder_of(pair[0], root) / "result.json").is_file()]
    seconds = seconds_of(cells, grid.visions)
    reused = len(grid.cells) - len(cells)
    plan = Plan([("runs", f"{len(cells)}" + (f", and {reused} that are finished" if reused else ""))])
    for suite in dict.fromkeys(cell.suite for cell, _ in cells):
        spent = sum(each for each, (cell, _) in zip(seconds, cells, strict=True) if cell.suite == suite)
        plan.rows.append((f"{NAMES[suite]}, one core", duration(spent)))
    for encoder in dict.fromkeys(cell.encoder for cell, _ in cells):
        spent = sum(each for each, (cell, _) in zip(seconds, cells, strict=True) if cell.encoder == encoder)
        plan.rows.append((f"{encoder}, one core", duration(spent)))
    plan.rows.append(("all, one core", duration(sum(seconds))))
    plan.rows.append((f"all, {jobs} jobs of {threads} threads", duration(sum(seconds) / max(jobs, 1))))
    recording = {cell.task: (cell, places) for cell, places in cells if cell.encoder != EXPERT and not places.demos}
    loads = [(Load.of(cell, places), cell.learning.image_size) for cell, places in recording.values()]
    pixels = sum(load.recorded * load.cameras * size**2 for load, size in loads)
    plan.rows.append(("disk for demonstrations", f"{3 * COMPRESSED * pixels / 1e9:.1f} GB"))
    needs = [memory_of(cell, grid.visions.get(cell.encoder), threads) for cell, _ in cells]
    plan.rows.append(("memory of the largest run", f"{max(needs, default=0.0):.1f} GB"))
    plan.assumptions = [
        "times come from a table for one core of a small machine, not from measurements here; expect them to be right "
        "within a factor of two or three",
        "every episode runs to its last step, and every demonstration succeeds",
        "jobs scale with their number; further threads of a job do not count",
        "a GPU is not planned for: it takes encoding and training off the cores, not simulation",
    ]
    return plan
