"""One cell of the benchmark: one policy on one task, learned and judged. ``python -m pixio_robot.cortexbench
FOLDER PARENT`` runs the cell that ``FOLDER/cell.json`` describes; all it needs and leaves is in files.
"""

import re
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from ..datasets.robomimic import DemoSet
from ..datasets.token_cache import TokenCache
from ..envs.registry import TaskSpec, new_task
from ..envs.rollout import plan_episodes
from ..errors import CheckpointError
from ..hardware import choose_device, choose_precision
from ..jobs.launch import run_as_job
from ..memory import PeakMemory
from ..policies.bc import train_bc
from ..policies.collect import collect
from ..policies.evaluate import Evaluation, evaluate_expert
from ..policies.quickstart import Stages
from ..policies.runs import cache_for, check_held_out, evaluate_policy, load_backbone
from ..policies.settings import HELD_OUT_SEED
from ..policies.visuomotor import EncoderIdentity, load_policy, policy_kind
from ..run_folder import digest, read_json, write_json
from .protocol import BUDGETS, FIRST_DEMO, Budget, Protocol, end_to_end, protocol_of, score_scale, within
from .token_use import token_use

EXPERT = "expert"  # stands in the list of encoders, though it neither sees nor learns


@dataclass(frozen=True)
class RunSpec:
    """What is run; all of it, resolved, is what the cell's folder is called after."""

    task: str
    encoder: str  # as `load_encoder` takes it, or none, cnn, state, expert
    fusion: str  # of its tokens; "" without an encoder
    seed: int
    budget: str
    protocol: str  # which columns: both, cortexbench, honest
    precision: str
    weights: str = ""  # fingerprint of the encoder
    source: str = ""  # SHA-256 of the file of demonstrations or of the expert, where one was given

    @property
    def suite(self) -> str:
        """The task's suite."""
        return self.task.split("/")[0]

    @property
    def name(self) -> str:
        """The folder's name: readable, and different for different settings."""
        encoder = Path(self.encoder).stem if self.encoder.endswith((".safetensors", ".pth")) else self.encoder
        words = "-".join(str(each) for each in (self.task, encoder, self.fusion, self.seed) if each != "")
        settings = digest(asdict(self), asdict(self.learning), asdict(self.limits))
        return f"{re.sub(r'[^A-Za-z0-9_]+', '-', words)}-{settings[:8]}"

    @property
    def limits(self) -> Budget:
        """How much of the protocol is run."""
        return BUDGETS[self.budget]

    @property
    def learning(self) -> Protocol:
        """How the task is learned and judged, within the budget."""
        protocol = within(protocol_of(self.task), self.suite, self.limits, self.protocol != "honest")
        if self.encoder == "cnn":
            protocol = end_to_end(protocol)
        return replace(protocol, embedding=replace(protocol.embedding, fusion=self.fusion or "mean"))


@dataclass(frozen=True)
class Paths:
    """Where a cell finds and leaves things; no part of its identity."""

    root: str  # of the benchmark
    demos: str = ""  # file of demonstrations, instead of collecting them
    expert: str = ""  # file of the expert, for collecting
    device: str = "auto"

    @property
    def expert_or_none(self) -> str | None:
        """The expert as `collect` takes it."""
        return self.expert or None


def folder_of(cell: RunSpec, root: Path) -> Path:
    """Return a cell's folder."""
    return root / "cells" / cell.name


def request_of(cell: RunSpec, places: Paths) -> TaskSpec:
    """Return the environment of a cell's demonstrations and, the same, of its episodes."""
    own = new_task(cell.task).horizon
    if places.demos:
        found = DemoSet(places.demos).request
        return replace(found, horizon=found.horizon or own)
    protocol, limits = cell.learning, cell.limits
    return TaskSpec(
        cell.task,
        observe=("rgb", "proprio", "state"),
        cameras=protocol.cameras,
        image_size=protocol.image_size,
        render=limits.render,
        horizon=min(own, limits.horizon.get(cell.suite, own)),
    )


def demonstrations(cell: RunSpec, request: TaskSpec, places: Paths, stages: Stages) -> DemoSet:
    """Return the demonstrations of a cell; what several cells need is recorded by the first of them."""
    if places.demos:
        return DemoSet(places.demos)
    protocol, limits, workers = cell.learning, cell.limits, torch.get_num_threads()
    asked = digest(asdict(request), protocol.demos, limits.valid, FIRST_DEMO, cell.source)
    path = Path(places.root) / "demos" / f"{cell.task.replace('/', '-')}-{protocol.demos}-{asked[:8]}.hdf5"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")), stages.timed("demonstrations") as spent:
        found = collect(request, protocol.demos, limits.valid, FIRST_DEMO, path, workers, places.expert_or_none)
        spent |= found.seconds
    return DemoSet(path)


def run_cell(cell: RunSpec, places: Paths) -> dict[str, Any]:
    """Do what is missing of a cell and return its result, which is also ``result.json`` of its folder."""
    out = folder_of(cell, Path(places.root))
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_suffix(".lock")), PeakMemory() as memory:
        if found := read_json(out / "result.json"):
            return dict(found)
        request = request_of(cell, places)
        stages = Stages(out / "stages.json", read_json(out / "stages.json"))
        work = _expert if cell.encoder == EXPERT else _policy
        result = {
            "cell": asdict(cell),
            "request": asdict(request),
            "scale": score_scale(cell.suite, new_task(cell.task).horizon, int(request.horizon or 1)),
            **work(cell, places, request, stages),
            "stages": stages.times,
            "peak_memory_mb": round(memory.megabytes),
        }
        write_json(out / "result.json", result)
        for path in (out / "checkpoints").glob("*/*"):
            if path.name != "last.safetensors":  # the others were needed to judge and to go on
                path.unlink()
        shutil.rmtree(out / "tensorboard", ignore_errors=True)
    return result


def _expert(cell: RunSpec, places: Paths, request: TaskSpec, stages: Stages) -> dict[str, Any]:
    """Judge the task's expert on the first of the held-out episodes."""
    plans = plan_episodes(request, cell.limits.honest_episodes, HELD_OUT_SEED)
    with stages.timed("evaluate") as spent:
        out = folder_of(cell, Path(places.root)) / "honest"
        found = evaluate_expert(request, plans, out, torch.get_num_threads(), places.expert_or_none)
        spent["episodes"] = sum(row.wall_s for row in found.rows)
    return {"weights": "none", "demos": 0}


def _policy(cell: RunSpec, places: Paths, request: TaskSpec, stages: Stages) -> dict[str, Any]:
    """Learn a policy and judge it, at all moments as released and at its end on held-out starts."""
    out, protocol, threads = folder_of(cell, Path(places.root)), cell.learning, torch.get_num_threads()
    device = choose_device(places.device)
    precision = choose_precision(cell.precision, device)
    plans = {}
    if cell.protocol != "cortexbench":
        plans["honest"] = plan_episodes(request, cell.limits.honest_episodes, HELD_OUT_SEED)
    if cell.protocol != "honest":
        first = cell.seed if protocol.first_start is None else protocol.first_start
        plans["released"] = plan_episodes(request, protocol.episodes, first)
    demos = demonstrations(cell, request, places, stages)
    for each in plans.values():
        check_held_out(demos.starts, each)

    backbone = load_backbone(cell.encoder)
    if backbone is not None and backbone.fingerprint() != cell.weights:
        raise CheckpointError(f"{cell.encoder} has other weights than when the benchmark was begun; begin it anew")
    cache: TokenCache | None = None
    if backbone is not None:
        with stages.timed("encode") as spent:
            cache = cache_for(backbone, demos, protocol.embedding, Path(places.root) / "cache", device, precision)
            spent |= cache.seconds
    with stages.timed("train") as spent:
        trained = train_bc(
            demos,
            cache,
            None if backbone is None else EncoderIdentity.of(backbone, precision),
            None if backbone is None else backbone.token_shape,
            embedding=protocol.embedding,
            settings=protocol.policy,
            seed=cell.seed,
            device=device,
            out=out,
            kind=policy_kind(cell.encoder),
            keep=protocol.moments if "released" in plans else (),
        )
        spent |= trained.seconds

    released = []
    checkpoints = {"honest": [trained.last], "released": trained.kept}
    for column in plans:
        for checkpoint in checkpoints[column]:
            folder = out / column / (checkpoint.stem if column == "released" else "")
            with stages.timed("evaluate") as spent:
                evaluation = evaluate_policy(
                    load_policy(checkpoint),
                    backbone,
                    request,
                    plans[column],
                    device,
                    folder,
                    2 * threads,
                    column == "honest",
                )
                spent |= evaluation.seconds
            if column == "released":
                released.append(_mean_score(evaluation))
    return {
        "released": released,  # mean score at each moment
        "moments": list(protocol.moments) if "released" in plans else [],
        "weights": "none" if backbone is None else backbone.weights,
        "preprocessing": None if backbone is None else backbone.preprocessing._asdict(),
        "demos": len(demos.members("train")),
        "tokens": None if cache is None else token_use(load_policy(trained.last).policy, demos, cache),
    }


def _mean_score(evaluation: Evaluation) -> float:
    return sum(row.score for row in evaluation.rows) / len(evaluation.rows)


def describe(cell: RunSpec, places: Paths) -> Path:
    """Write a cell's ``cell.json`` and return its folder."""
    folder = folder_of(cell, Path(places.root))
    write_json(folder / "cell.json", {"cell": asdict(cell), "places": asdict(places)})
    return folder


def main(folder: Path, parent: int) -> int:
    """Run the cell that a folder describes; return the exit status."""

    def work() -> None:
        about = read_json(folder / "cell.json")
        run_cell(RunSpec(**about["cell"]), Paths(**about["places"]))

    return run_as_job(work, parent)
