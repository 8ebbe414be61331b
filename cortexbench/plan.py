"""What a benchmark takes: work and memory of each cell, guessed from what it is or, for a plan, measured here."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from ..datasets.robomimic import DemoSet
from ..datasets.token_cache import encode
from ..errors import PixioError
from ..hardware import threads as one_thread
from ..jobs.launch import duration
from ..policies.bc import new_policy
from ..policies.embedding import Embedder
from ..policies.pixel_network import SIDE
from ..policies.runs import load_backbone
from ..policies.visuomotor import policy_kind
from ..progress import stage
from .cell import EXPERT, Paths, RunSpec, folder_of, request_of
from .grid import Grid, Vision
from .protocol import NAMES

_STEPS = {"adroit": 200, "dmc": 500, "metaworld": 500, "trifinger": 10, "toy": 50}  # of an episode, at most
_PROCESS, _ENVIRONMENT = 0.9, 0.35  # memory of a cell without its encoder, and of an environment's process [GB]
_START, _EVALUATION = 12.0, 5.0  # of a cell, and of each evaluation's processes [s]
_COMPRESSED = 0.35  # share that lzf leaves of simulators' frames


@dataclass
class Costs:
    """Unit costs of a cell on one core [s]; the defaults are rough, from two cores of a small machine."""

    step: float = 0.001  # simulating
    image: float = 0.02  # drawing
    expert: float = 0.02  # an action of the expert
    encoding: float = 0.05  # an image
    learning: float = 0.03  # a training step


@dataclass
class Load:
    """What one cell does and shares."""

    horizon: int
    recorded: int  # frames of demonstrations, with those to validate on
    steps: int  # of training
    played: int  # frames of all evaluations
    evaluations: int
    frames: int  # a frame
    sees: bool

    def seconds(self, cell: RunSpec, costs: Costs, recording: bool, encoding: bool) -> float:
        """Return what the cell takes on one core [s].

        Args:
            recording: it is the first that needs its demonstrations.
            encoding: it is the first that needs their tokens.
        """
        drawing = costs.image * self.frames
        total = _START + _EVALUATION * self.evaluations + self.played * costs.step + self.steps * costs.learning
        if recording:
            total += self.recorded * (costs.step + costs.expert + drawing)
        if cell.encoder == EXPERT:
            return total + self.played * costs.expert
        if self.sees:
            total += self.played * drawing
        if self.sees and cell.weights:
            total += (self.played + (self.recorded if encoding else 0)) * costs.encoding * self.frames
        return total


def load_of(cell: RunSpec, places: Paths) -> Load:
    """Return what a cell does, without making its environment."""
    protocol, limits = cell.learning, cell.limits
    horizon = min(_STEPS[cell.suite], limits.horizon.get(cell.suite, _STEPS[cell.suite]))
    recorded = (protocol.demos + limits.valid) * horizon
    if places.demos:
        recorded = int(DemoSet(places.demos).lengths.sum())
    training = protocol.policy.epochs * -(-recorded // protocol.policy.batch)
    released = protocol.episodes * len(protocol.moments) if cell.protocol != "honest" else 0
    episodes, moments = limits.honest_episodes, len(protocol.moments) if released else 0
    if cell.encoder == EXPERT:
        released, training, recorded, moments = 0, 0, 0, 0
    sees = cell.encoder == "cnn" or bool(cell.weights)
    return Load(
        horizon,
        recorded,
        training,
        (released + episodes) * horizon,
        moments + 1,
        max(1, len(protocol.cameras)),
        sees,
    )


def memory_of(cell: RunSpec, vision: Vision | None, threads: int) -> float:
    """Return about how much memory a cell needs [GB]."""
    total = _PROCESS + 2 * threads * _ENVIRONMENT
    if vision is not None:
        activations = 64e6 * vision.tokens.dim / 192  # of a batch on a CPU
        total += (5 * vision.parameters + activations) / 1e9
        embedding = cell.learning.embedding
        width = Embedder(vision.tokens, embedding, 0).dim * max(1, len(embedding.cameras))
        load = cell.learning.demos * _STEPS[cell.suite]
        total += min(4.0, 2 * 4 * load * width / 1e9)  # embeddings computed ahead
    return round(total, 2)


def rough_costs(cell: RunSpec, vision: Vision | None) -> Costs:
    """Return unit costs guessed from what a cell is."""
    costs = Costs()
    if cell.limits.render == "benchmark":
        costs.image = 0.08
    if vision is not None:
        patches = vision.tokens.grid[0] * vision.tokens.grid[1]
        costs.encoding = 2 * vision.parameters * (patches + vision.tokens.cls) / 50e9
    return costs


def work_of(cells: Sequence[tuple[RunSpec, Paths]], costs_of: Callable[[RunSpec], Costs]) -> list[float]:
    """Return what each cell takes on one core [s]; what is shared counts for the first that needs it."""
    recorded: set[str] = set()
    encoded: set[tuple[str, str]] = set()
    result = []
    for cell, places in cells:
        recording = cell.encoder != EXPERT and cell.task not in recorded and not places.demos
        encoding = (cell.task, cell.encoder) not in encoded
        if recording:
            recorded.add(cell.task)
        if cell.weights:
            encoded.add((cell.task, cell.encoder))
        result.append(load_of(cell, places).seconds(cell, costs_of(cell), recording, encoding))
    return result


@dataclass
class Plan:
    """What a benchmark would cost."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)


def make_plan(grid: Grid, jobs: int, threads: int, root: Path) -> Plan:
    """Measure unit costs on this machine, one thread, and add up what is not finished yet."""
    cells = [pair for pair in grid.cells if not (folder_of(pair[0], root) / "result.json").is_file()]
    firsts = {cell.task: (cell, places) for cell, places in reversed(cells)}
    encoders = {cell.encoder for cell, _ in cells if cell.weights}
    learners = {(cell.suite, cell.encoder, cell.fusion): cell for cell, _ in cells}
    by_task, by_encoder, learning = dict[str, Costs](), dict[str, float](), dict[tuple[str, str, str], float]()
    with one_thread(1), stage("measure", len(firsts) + len(encoders) + len(learners)) as bar:
        for task, (cell, places) in firsts.items():
            by_task[task] = _measured_task(cell, places)
            bar.advance(1)
        for name in encoders:
            by_encoder[name] = _measured_encoder(name)
            bar.advance(1)
        for key, cell in learners.items():
            learning[key] = _measured_learning(cell, grid.visions.get(cell.encoder))
            bar.advance(1)

    def costs_of(cell: RunSpec) -> Costs:
        encoding = by_encoder.get(cell.encoder, 0.0)
        return replace(by_task[cell.task], encoding=encoding, learning=learning[cell.suite, cell.encoder, cell.fusion])

    work = work_of(cells, costs_of)
    plan = Plan()
    reused = len(grid.cells) - len(cells)
    plan.rows.append(("cells", f"{len(cells)}" + (f", and {reused} that are finished" if reused else "")))
    for suite in dict.fromkeys(cell.suite for cell, _ in cells):
        spent = sum(each for each, (cell, _) in zip(work, cells, strict=True) if cell.suite == suite)
        plan.rows.append((f"{NAMES[suite]}, one core", duration(spent)))
    for encoder in dict.fromkeys(cell.encoder for cell, _ in cells):
        spent = sum(each for each, (cell, _) in zip(work, cells, strict=True) if cell.encoder == encoder)
        plan.rows.append((f"{encoder}, one core", duration(spent)))
    learning_from = {cell.task: (cell, places) for cell, places in reversed(cells) if cell.encoder != EXPERT}
    plan.rows.append(("all, one core", duration(sum(work))))
    plan.rows.append((f"all, {jobs} jobs of {threads} threads", duration(sum(work) / max(jobs, 1))))
    frames = sum(
        load_of(cell, places).recorded * load_of(cell, places).frames * cell.learning.image_size**2
        for cell, places in learning_from.values()
        if not places.demos
    )
    plan.rows.append(("disk for demonstrations", f"{3 * _COMPRESSED * frames / 1e9:.1f} GB"))
    needs = [memory_of(cell, grid.visions.get(cell.encoder), threads) for cell, _ in cells]
    plan.rows.append(("memory of the largest cell", f"{max(needs, default=0.0):.1f} GB"))
    plan.assumptions = [
        "a few steps of every task, frames of every encoder and steps of training were timed here, on one thread, as "
        "CPU time: other work on the machine makes it slower",
        "episodes go on to their last step, demonstrations succeed",
        "a job's second thread is not counted as a gain; jobs are",
        "a GPU is not planned for: it takes encoding and learning off the cores, not simulation",
    ]
    return plan


def _seconds(work: Callable[[], object], times: int) -> float:
    work()
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / times


def _measured_task(cell: RunSpec, places: Paths) -> Costs:
    """Return what a step, an image and an expert's action of a task take."""
    costs = Costs()
    env = request_of(cell, places).make()
    if places.expert:
        env.task.use_expert(places.expert)
    env.reset(seed=0)
    zero = np.zeros(env.action_space.shape or (), np.float32)
    env.seconds.update(physics=0.0, rendering=0.0)
    count = min(4, env.horizon)
    began = time.process_time()
    for _ in range(count):
        env.step(zero)
    share = env.seconds["rendering"] / max(sum(env.seconds.values()), 1e-9)
    spent = (time.process_time() - began) / count
    costs.step, costs.image = (1 - share) * spent, share * spent / len(env.cameras)
    env.reset(seed=0)
    try:
        began = time.process_time()
        for _ in range(count):
            action = env.task.expert_action()
            env.task.step(action)
        costs.expert = max((time.process_time() - began) / count - costs.step, 0.0)
    except PixioError:  # its demonstrations come from a file
        costs.expert = 0.0
    env.close()
    return costs


def _measured_encoder(name: str) -> float:
    """Return what one image takes."""
    backbone = load_backbone(name)
    assert backbone is not None
    images = torch.zeros(4, 256, 256, 3, dtype=torch.uint8)
    return _seconds(lambda: encode(backbone, images, True, "fp32"), 2) / len(images)


def _measured_learning(cell: RunSpec, vision: Vision | None) -> float:
    """Return what a training step takes."""
    kind, protocol = policy_kind(cell.encoder), cell.learning
    if cell.encoder == EXPERT:
        return 0.0
    widths = {"actions": 9, "proprio": 24, "state": 40}
    cameras = ("rgb", *("rgb_goal" for _ in protocol.cameras[1:]))
    tokens = None if vision is None else vision.tokens
    policy = new_policy(tokens, protocol.embedding, widths, protocol.policy, 0, kind, cameras).train()
    batch = protocol.policy.batch
    seen: torch.Tensor | None = None
    if policy.pixels is not None:
        seen = torch.zeros(batch, policy.history, SIDE, SIDE, 3 * len(cameras), dtype=torch.uint8)
    elif policy.embedder.tokens is not None:
        shape = policy.embedder.tokens
        count = shape.grid[0] * shape.grid[1] if policy.embedder.needs_patches else shape.cls
        seen = torch.zeros(batch, policy.history, count, shape.dim)
    felt = torch.zeros(batch, policy.embedder.proprio_dim) if policy.embedder.proprio_dim else None

    def step() -> None:
        policy(seen, felt).square().mean().backward()

    return 1.3 * _seconds(step, 2)  # with the optimiser
