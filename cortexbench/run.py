"""One run of the benchmark: a policy is trained on one task and evaluated.

``python -m pixio_robot.cortexbench FOLDER PARENT`` does the run that ``FOLDER/run.json`` describes. Its inputs and
outputs are files only, so any engine can start it, and an interrupted run resumes.
"""

import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock

from ..datasets.dataset import EpisodeDataset, open_dataset
from ..encoders.load import Backbone
from ..envs.registry import TaskSpec, new_task
from ..envs.rollout import EpisodePlan, plan_episodes
from ..errors import CheckpointError
from ..hardware import choose_device, choose_precision
from ..jobs.launch import run_as_job
from ..memory import PeakMemory
from ..plugins import find_plugin
from ..policies.build import PolicyDesign
from ..policies.cloning import CloningSetup, load_backbone, prepare_cloning
from ..policies.collect import collect
from ..policies.evaluate import (
    Evaluation,
    RolloutSettings,
    check_no_overlap,
    evaluate_expert,
    evaluate_policy,
    task_of,
)
from ..policies.loaded import load_policy
from ..policies.settings import HELD_OUT_SEED
from ..policies.train import TrainPlan, train_policy
from ..run_folder import digest, read_json, write_json
from ..stages import Stages
from ..training.distributed import World
from .protocol import (
    BEST_CHECKPOINT,
    BUDGETS,
    FIRST_DEMO_SEED,
    HELD_OUT,
    Budget,
    Protocol,
    end_to_end,
    protocol_of,
    scaled_to,
    score_scale,
)
from .token_use import token_use

EXPERT = "expert"  # listed among the encoders: the task's expert, which is evaluated and not trained


class Method(NamedTuple):
    """What is compared, a row of the tables: a policy on an encoder, a baseline, or the expert."""

    encoder: str
    policy: str
    fusion: str

    def __str__(self) -> str:
        policy = "" if self.policy == "mlp" else self.policy
        return ", ".join(each for each in (self.encoder, policy, self.fusion) if each)


@dataclass(frozen=True)
class RunSpec:
    """What is run. The run's folder is named after all of it."""

    task: str
    encoder: str  # as `load_encoder` takes it, or none, cnn, state, expert
    fusion: str  # of the encoder's tokens; "" without an encoder, or for policies without this setting
    seed: int
    budget: str
    protocol: str  # columns: both, best_checkpoint, held_out
    precision: str
    policy: str = "mlp"  # name of an installed policy; "" for the expert
    horizon: int = 1  # actions predicted at once
    weights: str = ""  # fingerprint of the encoder
    source: str = ""  # SHA-256 of the file of demonstrations or of the expert, where one was given

    @property
    def suite(self) -> str:
        """The task's suite."""
        return self.task.split("/")[0]

    @property
    def method(self) -> Method:
        """The row that the run belongs to."""
        return Method(self.encoder, self.policy, self.fusion)

    @property
    def name(self) -> str:
        """The folder's name: readable, and different for different settings."""
        encoder = Path(self.encoder).stem if self.encoder.endswith((".safetensors", ".pth")) else self.encoder
        policy = "" if self.policy == "mlp" else self.policy
        parts = "-".join(str(each) for each in (self.task, encoder, policy, self.fusion, self.seed) if each != "")
        custom = [] if self.policy in ("", "mlp") else [asdict(policy_config(self.policy, self.fusion, self.learning))]
        settings = digest(asdict(self), asdict(self.learning), asdict(self.limits), *custom)
        return f"{re.sub(r'[^A-Za-z0-9_]+', '-', parts)}-{settings[:8]}"

    @property
    def limits(self) -> Budget:
        """How much of the protocol is run."""
        return BUDGETS[self.budget]

    @property
    def learning(self) -> Protocol:
        """How the policy is trained and evaluated, within the budget."""
        protocol = scaled_to(self.limits, protocol_of(self.task), self.suite, final_only=self.protocol == HELD_OUT)
        protocol = replace(protocol, horizon=self.horizon)
        return end_to_end(protocol) if self.encoder == "cnn" else protocol

    def design(self, precision: str) -> PolicyDesign:
        """Return the policy that is trained.

        Args:
            precision: of the encoder, resolved.
        """
        protocol = self.learning
        config = policy_config(self.policy, self.fusion, protocol)
        return PolicyDesign(self.encoder, config, protocol.observation, protocol.horizon, precision=precision)


def policy_config(policy: str, fusion: str, protocol: Protocol) -> Any:
    """Return a policy's config: CortexBench's for the MLP, else the policy's defaults.

    Args:
        fusion: of tokens; "" is the policy's default.

    Raises:
        UnknownName: if no such policy is installed.
    """
    config = protocol.policy if policy == "mlp" else find_plugin("policies", policy).Config()
    return replace(config, fusion=fusion) if fusion else config


@dataclass(frozen=True)
class Paths:
    """Where a run reads and writes; not a part of its identity."""

    root: str  # of the benchmark
    demos: str = ""  # file of demonstrations, instead of collecting them
    expert: str = ""  # file of the expert, for collecting
    device: str = "auto"

    @property
    def expert_or_none(self) -> str | None:
        """The expert as `collect` takes it."""
        return self.expert or None


def folder_of(spec: RunSpec, root: Path) -> Path:
    """Return a run's folder."""
    return root / "runs" / spec.name


def is_finished(spec: RunSpec, root: Path) -> bool:
    """Return whether a run has its result."""
    return (folder_of(spec, root) / "result.json").is_file()


def request_of(spec: RunSpec, paths: Paths) -> TaskSpec:
    """Return the environment that records a run's demonstrations and evaluates its policy."""
    full_horizon = new_task(spec.task).horizon
    if paths.demos:
        found = task_of(open_dataset(paths.demos).provenance, paths.demos)
        return replace(found, horizon=found.horizon or full_horizon)
    protocol, limits = spec.learning, spec.limits
    return TaskSpec(
        spec.task,
        observe=("rgb", "proprio", "state"),
        cameras=protocol.cameras,
        image_size=protocol.image_size,
        render=limits.render,
        horizon=min(full_horizon, limits.horizon.get(spec.suite, full_horizon)),
    )


def demonstrations(spec: RunSpec, request: TaskSpec, paths: Paths, stages: Stages) -> EpisodeDataset:
    """Return a run's demonstrations. Runs that need the same ones share a file; the first of them records it."""
    if paths.demos:
        return open_dataset(paths.demos)
    protocol, limits, workers = spec.learning, spec.limits, torch.get_num_threads()
    recorded_with = digest(asdict(request), protocol.demos, limits.valid, FIRST_DEMO_SEED, spec.source)
    name = f"{spec.task.replace('/', '-')}-{protocol.demos}-{recorded_with[:8]}.hdf5"
    path = Path(paths.root) / "demos" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")), stages.timed("demonstrations") as spent:
        found = collect(request, protocol.demos, limits.valid, FIRST_DEMO_SEED, path, workers, paths.expert_or_none)
        spent |= found.seconds
    return open_dataset(path)


def run(spec: RunSpec, paths: Paths) -> dict[str, Any]:
    """Do what is missing of a run and return its result, which is also ``result.json`` of its folder."""
    out = folder_of(spec, Path(paths.root))
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_suffix(".lock")), PeakMemory() as memory:
        if found := read_json(out / "result.json"):
            return dict(found)
        request = request_of(spec, paths)
        stages = Stages(out / "stages.json", read_json(out / "stages.json"))
        work = _run_expert if spec.encoder == EXPERT else _run_policy
        result = {
            "run": asdict(spec),
            "request": asdict(request),
            "scale": score_scale(spec.suite, new_task(spec.task).horizon, int(request.horizon or 1)),
            **work(spec, paths, request, stages),
            "stages": stages.times,
            "peak_memory_mb": round(memory.megabytes),
        }
        write_json(out / "result.json", result)
        for path in (out / "checkpoints").glob("*/*"):
            if path.name != "last.safetensors":  # the others served evaluation and resuming
                path.unlink()
        shutil.rmtree(out / "tensorboard", ignore_errors=True)
    return result


def _run_expert(spec: RunSpec, paths: Paths, request: TaskSpec, stages: Stages) -> dict[str, Any]:
    """Evaluate the task's expert on the held-out episodes."""
    plans = plan_episodes(request, spec.limits.held_out_episodes, HELD_OUT_SEED)
    with stages.timed("evaluate") as spent:
        out = folder_of(spec, Path(paths.root)) / HELD_OUT
        found = evaluate_expert(request, plans, out, torch.get_num_threads(), paths.expert_or_none)
        spent["episodes"] = sum(row.wall_s for row in found.rows)
    return {"weights": "none", "demos": 0}


def _run_policy(spec: RunSpec, paths: Paths, request: TaskSpec, stages: Stages) -> dict[str, Any]:
    """Train a policy; evaluate it at all evaluation epochs, and the final one on held-out episodes."""
    out, protocol = folder_of(spec, Path(paths.root)), spec.learning
    device = choose_device(paths.device)
    plans = _episode_plans(spec, request)
    demos = demonstrations(spec, request, paths, stages)
    for each in plans.values():
        check_no_overlap(demos.initial_states, each)
    backbone = load_backbone(spec.encoder)
    if backbone is not None and backbone.fingerprint() != spec.weights:
        raise CheckpointError(f"{spec.encoder} has other weights than when the benchmark started; choose another out=")

    design = spec.design(choose_precision(spec.precision, device))
    setup = CloningSetup(spec.seed, cache=Path(paths.root) / "cache", device=device)
    with stages.timed("encode") as spent:
        prepared = prepare_cloning(demos, design, backbone, setup)
        spent |= prepared.frames.seconds
    keep = protocol.eval_epochs if BEST_CHECKPOINT in plans else ()
    with stages.timed("train") as spent:
        plan = TrainPlan(out, design.label, spec.seed, keep=keep)
        trained = train_policy(prepared.model, prepared.data, protocol.training, plan, World(device))
        spent |= trained.seconds

    def evaluated(checkpoint: Path, column: str, folder: Path) -> Evaluation:
        with stages.timed("evaluate") as spent:
            rollout = RolloutSettings(2 * torch.get_num_threads(), videos=column == HELD_OUT)
            loaded = load_policy(checkpoint, backbone)
            evaluation = evaluate_policy(loaded, request, plans[column], device, folder, rollout)
            spent |= evaluation.seconds
        return evaluation

    if HELD_OUT in plans:
        evaluated(trained.last, HELD_OUT, out / HELD_OUT)
    scores = []
    for checkpoint in trained.kept:
        evaluation = evaluated(checkpoint, BEST_CHECKPOINT, out / BEST_CHECKPOINT / checkpoint.stem)
        scores.append(sum(row.score for row in evaluation.rows) / len(evaluation.rows))
    return {
        "eval_epochs": list(keep),
        "best_checkpoint": scores,  # mean score at each evaluation epoch; the best one is reported
        "weights": "none" if backbone is None else backbone.weights,
        "preprocessing": _preprocessing(backbone),
        "demos": len(demos.split("train")),
        "tokens": token_use(load_policy(trained.last, backbone).model, prepared.data),
    }


def _episode_plans(spec: RunSpec, request: TaskSpec) -> dict[str, Sequence[EpisodePlan]]:
    """Return the episodes of each column."""
    protocol, plans = spec.learning, dict[str, Sequence[EpisodePlan]]()
    if spec.protocol != BEST_CHECKPOINT:
        plans[HELD_OUT] = plan_episodes(request, spec.limits.held_out_episodes, HELD_OUT_SEED)
    if spec.protocol != HELD_OUT:
        first_seed = spec.seed if protocol.first_seed is None else protocol.first_seed
        plans[BEST_CHECKPOINT] = plan_episodes(request, protocol.episodes, first_seed)
    return plans


def _preprocessing(backbone: Backbone | None) -> dict[str, Any] | None:
    return None if backbone is None else backbone.preprocessing._asdict()


def write_run(spec: RunSpec, paths: Paths) -> Path:
    """Write ``run.json``, from which `main` does the run, and return the run's folder."""
    folder = folder_of(spec, Path(paths.root))
    write_json(folder / "run.json", {"run": asdict(spec), "paths": asdict(paths)})
    return folder


def main(folder: Path, parent: int) -> int:
    """Do the run that a folder describes; return the exit status.

    Args:
        parent: process that started this one; the run ends with it.
    """

    def work() -> None:
        written = read_json(folder / "run.json")
        run(RunSpec(**written["run"]), Paths(**written["paths"]))

    return run_as_job(work, parent)
