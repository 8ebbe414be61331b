"""The commands collect, embed, train_bc, evaluate and quickstart.

``run_<command>`` runs a command and prints the result; the function of the command's name returns the result.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..command import Command
from ..settings import MISSING, Device, Hardware, key
from .settings import HELD_OUT_SEED, ObservationSettings, StatisticsSettings, TrainingSettings

if TYPE_CHECKING:
    import torch

    from ..datasets.frame_cache import FrameCache
    from .build import PolicyDesign
    from .collect import CollectReport
    from .evaluate import Evaluation
    from .train import TrainResult


@dataclass
class Collect:
    """Record demonstrations from a task's expert."""

    task: str = key(MISSING, "task, e.g. metaworld/drawer-open or toy/reach")
    demos: int = key(25, "successful demonstrations for training", least=1)
    valid: int = key(3, "further demonstrations held out for the validation curve", least=0)
    first_seed: int = key(0, "seed of the first episode; they count up", least=0)
    render: str = key("benchmark", "render quality: benchmark, balanced, fast")
    obs: str = key("rgb", "what cameras record: rgb, or rgbd with depth")
    depth_sensor: str = key(
        "exact", "what depth is measured with: exact, or d435 (noise, holes, edges of a real camera)"
    )
    cameras: list[str] = key([], "cameras; empty means the task's default")
    image_size: int = key(256, "side of the images [px]")
    episode_steps: int | None = key(None, "steps of an episode; null means the task's own", least=1)
    expert: str | None = key(
        None, "file of the expert: a policy of train_rl obs=state, for Adroit a DAPG policy; null means the task's"
    )
    workers: int | None = key(None, "worker processes; null means one a core", least=1, free=True)
    out: str | None = key(None, "file to write; null means runs/demos/<task>-<demos>-<render>.hdf5", free=True)
    debug: bool = key(False, "show tracebacks", free=True)


@dataclass
class Embed(Hardware):
    """Encode every frame of a demonstration file once, into the token cache."""

    demos: str = key(MISSING, "demonstration file")
    encoder: str = key("pixio-robot-ti", "encoder, as load_encoder takes it")
    normed: bool = key(True, "tokens after the encoder's final norm")
    patches: bool = key(False, "store patch tokens too (32 times the size)")
    batch: int | None = key(None, "images an encoder call; null means 8 on a CPU, 128 elsewhere", least=1)
    cache: str = key("runs/cache", "folder of the token caches", free=True)


@dataclass
class TrainBC(Hardware):
    """Train a policy on demonstrations by behaviour cloning."""

    demos: str = key(MISSING, "demonstrations: a file of any installed format")
    encoder: str = key(
        "pixio-robot-ti",
        "encoder; or a baseline: none (proprioception only), cnn (small CNN trained end to end), state (privileged "
        "simulator state)",
    )
    obs: str = key("rgb", "what is observed: rgb, or rgbd, which makes observation.depth late unless it is given")
    observation: ObservationSettings = field(default_factory=ObservationSettings)
    policy: Any = key(MISSING, "the policy's architecture; policy=NAME chooses another one")
    horizon: int = key(1, "actions predicted at once: of this step and of those that follow", least=1)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    statistics: StatisticsSettings = field(default_factory=StatisticsSettings)
    seed: int = key(0, "seed of initialisation and shuffling", least=0)
    save_every: int = key(10, "epochs between resumable states", least=1)
    cache: str = key("runs/cache", "folder of the caches of tokens and frames", free=True)
    out: str | None = key(None, "run folder; null means runs/train_bc/<digest of the settings>", free=True)


@dataclass
class Evaluate(Device):
    """Run a trained policy on a fixed list of held-out episodes."""

    checkpoint: str = key(MISSING, "policy checkpoint, e.g. runs/.../checkpoints/mlp/last.safetensors")
    task: str | None = key(None, "task to evaluate in; null means the one that recorded the demonstrations")
    episodes: int = key(25, "episodes", least=1)
    first_seed: int = key(HELD_OUT_SEED, "seed of the first episode; demonstrations start from 0", least=0)
    envs: int | None = key(None, "environments in parallel; null means twice the cores", least=1, free=True)
    render: str | None = key(None, "render quality; null means the demonstrations'")
    n_action_steps: int | None = key(
        None, "actions of each chunk that are executed before the policy predicts again; null means all", least=1
    )
    videos: bool = key(True, "keep videos of the first success and the first failure")
    out: str | None = key(None, "run folder; null means runs/evaluate/<digest of the settings>", free=True)


@dataclass
class Quickstart(Hardware):
    """Demonstrations, cached tokens, behaviour cloning, evaluation, report: all of it on one task."""

    task: str = key("metaworld/drawer-open", "task, e.g. metaworld/hammer or toy/reach")
    demos: int = key(25, "demonstrations for training", least=1)
    valid: int = key(3, "demonstrations for the validation curve", least=0)
    episodes: int = key(25, "held-out episodes", least=1)
    episode_steps: int | None = key(200, "steps of an episode, at most; null means the task's own", least=1)
    render: str = key("fast", "render quality: benchmark, balanced, fast")
    encoder: str = key("pixio-robot-ti", "encoder, as load_encoder takes it")
    observation: ObservationSettings = field(default_factory=ObservationSettings)
    policy: Any = key(MISSING, "the policy's architecture; policy=NAME chooses another one")
    horizon: int = key(1, "actions predicted at once: of this step and of those that follow", least=1)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    seed: int = key(0, "seed of the policies", least=0)
    envs: int | None = key(None, "environments in parallel; null means twice the cores", least=1, free=True)
    cache: str = key("runs/cache", "folder of the caches of tokens and frames", free=True)
    out: str | None = key(None, "run folder; null means runs/quickstart/<task>-<digest of the settings>", free=True)


def collect(settings: Collect) -> "CollectReport":
    """Record demonstrations."""
    from ..envs.registry import TaskSpec
    from .cloning import has_depth
    from .collect import collect as record
    from .collect import has_privileged_state

    images = ("rgb", "depth") if has_depth(settings.obs) else ("rgb",)
    request = TaskSpec(
        task=settings.task,
        observe=(*images, "proprio", "state") if has_privileged_state(settings.task) else (*images, "proprio"),
        cameras=tuple(settings.cameras),
        image_size=settings.image_size,
        render=settings.render,
        horizon=settings.episode_steps,
        depth_sensor=settings.depth_sensor,
    )
    out = settings.out or f"runs/demos/{settings.task.replace('/', '-')}-{settings.demos}-{settings.render}.hdf5"
    return record(
        request,
        settings.demos,
        settings.valid,
        settings.first_seed,
        Path(out),
        settings.workers,
        settings.expert,
    )


def run_collect(settings: Collect) -> int:
    """Record demonstrations, and print how many."""
    report = collect(settings)
    state = "reused" if report.reused else f"recorded in {report.attempts} episodes"
    print(f"{report.path}: {settings.demos} + {settings.valid} demonstrations of {settings.task}, {state}")
    return 0


def embed(settings: Embed) -> "FrameCache":
    """Fill the token cache."""
    from ..datasets.dataset import open_dataset
    from ..datasets.token_cache import TokenFormat, token_cache
    from ..encoders.load import load_encoder
    from ..hardware import choose_device, choose_precision

    device = choose_device(settings.device)
    dataset = open_dataset(settings.demos)
    tokens = TokenFormat(settings.normed, settings.patches, choose_precision(settings.precision, device))
    backbone = load_encoder(settings.encoder)
    return token_cache(Path(settings.cache), backbone, dataset, dataset.cameras[0], tokens, device, settings.batch)


def run_embed(settings: Embed) -> int:
    """Fill the token cache, and print where it is."""
    cache = embed(settings)
    shape = " x ".join(map(str, cache.arrays["cls"].shape))
    print(f"{cache.folder}: class tokens {shape} float16{', reused' if cache.reused else ''}")
    return 0


def train_bc(settings: TrainBC) -> "tuple[Path, TrainResult]":
    """Train a policy; return its run folder and result. Under torchrun every process computes a share."""
    import logging
    from contextlib import nullcontext

    from ..datasets.dataset import open_dataset
    from ..progress import silent
    from ..run_folder import open_run, settings_digest
    from ..training.distributed import joined
    from .cloning import CloningSetup, has_depth, load_backbone, new_model, prepare_cloning
    from .train import TrainPlan, check_training, train_policy

    if has_depth(settings.obs) and settings.observation.depth == "none":
        settings = replace(settings, observation=replace(settings.observation, depth="late"))
    out = Path(settings.out or f"runs/train_bc/{settings_digest(settings)}")
    dataset = open_dataset(settings.demos)
    backbone = load_backbone(settings.encoder)
    with joined(settings.device) as world:
        design = _design(settings, world.device, settings.training.tune)
        task = dataset.provenance.get("task") or "an unknown task"
        logging.getLogger(__name__).info("%d demonstrations of %s", len(dataset.lengths), task)
        check_training(settings.training, new_model(dataset, design, backbone, settings.seed))  # refuses early
        if world.first:
            open_run(out, settings)
        setup = CloningSetup(settings.seed, settings.statistics, Path(settings.cache), world.device)
        prepared = prepare_cloning(dataset, design, backbone, setup)
        plan = TrainPlan(
            out, design.label, settings.seed, settings.save_every, depth_epochs=settings.observation.depth_epochs
        )
        with nullcontext() if world.first else silent():
            return out, train_policy(prepared.model, prepared.data, settings.training, plan, world)


def _design(settings: "TrainBC | Quickstart", device: "torch.device", tune: str) -> "PolicyDesign":
    from ..hardware import choose_precision
    from .build import PolicyDesign

    precision = choose_precision(settings.precision, device)
    return PolicyDesign(settings.encoder, settings.policy, settings.observation, settings.horizon, tune, precision)


def run_train_bc(settings: TrainBC) -> int:
    """Train a policy, and print its losses."""
    from ..training.distributed import is_first_process

    _, result = train_bc(settings)
    if not is_first_process():
        return 0
    state = ", reused" if result.reused else ""
    print(f"{result.last}: train loss {result.train_loss:.5f}, validation loss {result.valid_loss:.5f}{state}")
    print(f"evaluate it with: pixio-robot evaluate checkpoint={result.last}")
    return 0


def evaluate(settings: Evaluate) -> "tuple[Path, Evaluation]":
    """Evaluate a checkpoint; return its run folder and rows."""
    from ..envs.registry import TaskSpec
    from ..envs.rollout import plan_episodes
    from ..files import sha256_of
    from ..hardware import choose_device
    from ..report.page import write_report
    from ..run_folder import open_run, settings_digest, write_json
    from .evaluate import RolloutSettings, check_no_overlap, evaluate_policy, task_of
    from .loaded import load_policy

    device = choose_device(settings.device)
    loaded = load_policy(settings.checkpoint)
    if settings.task is None:
        request = task_of(loaded.provenance, settings.checkpoint)
    else:
        sizes = [feature.shape[0] for feature in loaded.spec.observation.values() if feature.kind == "image"]
        request = TaskSpec(settings.task, image_size=sizes[0]) if sizes else TaskSpec(settings.task)
    request = request if settings.render is None else replace(request, render=settings.render)
    inputs = sha256_of(Path(settings.checkpoint))
    out = Path(settings.out or f"runs/evaluate/{settings_digest(settings, inputs)}")
    plans = plan_episodes(request, settings.episodes, settings.first_seed)
    check_no_overlap(loaded.training.get("initial_states", []), plans, loaded.training.get("seeds", (0, 0)))
    open_run(out, settings, inputs)
    rollout = RolloutSettings(settings.envs, settings.videos, settings.n_action_steps)
    evaluation = evaluate_policy(loaded, request, plans, device, out, rollout)
    label = evaluation.rows[0]
    write_json(
        out / "result.json",
        {
            "title": f"{request.task} · {Path(settings.checkpoint).name}",
            "task": request.task,
            "headline": label.policy,
            "success_rule": "last",
            "policies": {label.policy: evaluation.summary()},
            "encoder": label.encoder,
            "weights": label.weights,
            "fusion": label.fusion,
            "render": request.render,
        },
    )
    write_report(out)
    return out, evaluation


def run_evaluate(settings: Evaluate) -> int:
    """Evaluate a checkpoint, and print its success."""
    from ..report.tables import print_evaluation

    out, evaluation = evaluate(settings)
    print_evaluation(out, evaluation.rows[0], evaluation.summary())
    return 0


def run_quickstart(settings: Quickstart) -> int:
    """Do every stage, and print what came of it."""
    from ..hardware import choose_device
    from ..report.tables import print_quickstart
    from ..run_folder import settings_digest
    from .quickstart import QuickstartPlan, quickstart

    device = choose_device(settings.device)
    plan = QuickstartPlan(
        task=settings.task,
        demos=settings.demos,
        valid=settings.valid,
        episodes=settings.episodes,
        episode_steps=settings.episode_steps,
        render=settings.render,
        design=_design(settings, device, "frozen"),
        training=settings.training,
        seed=settings.seed,
        envs=settings.envs,
        cache=Path(settings.cache),
    )
    out = Path(settings.out or f"runs/quickstart/{settings.task.replace('/', '-')}-{settings_digest(settings)}")
    print_quickstart(out, quickstart(plan, device, out, settings))
    return 0


COMMANDS = {
    "collect": Command(Collect, run_collect),
    "embed": Command(Embed, run_embed),
    "train_bc": Command(TrainBC, run_train_bc, {"policy": "mlp"}),
    "evaluate": Command(Evaluate, run_evaluate),
    "quickstart": Command(Quickstart, run_quickstart, {"policy": "mlp"}),
}
