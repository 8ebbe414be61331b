"""The commands train_rl and learning_curves.

``run_<command>`` does a command and prints what came of it; `train_rl` returns the result.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from ...command import Command
from ...engine_schemas import EngineSettings
from ...errors import BadInput
from ...settings import MISSING, Hardware, key
from ..settings import FRAMES, FUSIONS, ObservationSettings
from .settings import AlgorithmSettings

if TYPE_CHECKING:
    from .plan import RLPlan
    from .run import RLResult


@dataclass
class TrainRL(Hardware, EngineSettings):
    """Train a policy by reinforcement learning on tokens that are encoded once; evaluate reads its checkpoint."""

    task: str = key(MISSING, "task, e.g. toy/reach or dmc/cheetah_run")
    algorithm: AlgorithmSettings = field(default_factory=AlgorithmSettings)
    obs: str = key(
        "tokens",
        "what is observed: tokens of an encoder, rgb (small CNN trained end to end), state (privileged simulator "
        "state)",
    )
    encoder: str = key(
        "pixio-robot-ti", "encoder of obs=tokens, as load_encoder takes it; or none (proprioception only)"
    )
    observation: ObservationSettings = field(default_factory=ObservationSettings)
    fusion: str = key("mean", f"how the tokens of a frame are fused: {', '.join(FUSIONS)}")
    frames: str = key("flare", f"how the frames of several observation steps are fused: {', '.join(FRAMES)}")
    finetune: bool = key(False, "train the encoder too; images are then replayed, and encoded each time")
    shift: bool = key(True, "shift replayed images by a few random pixels, as DrQ-v2; obs=rgb of sac and td3 only")
    steps: int = key(
        100_000, "environment steps, over all environments; more continues a finished run", least=1, free=True
    )
    envs: int = key(1, "environments in parallel", least=1)
    processes: bool | None = key(
        None, "run each environment in a separate process; null means if images are rendered", free=True
    )
    seed: int = key(0, "seed of networks, actions and episodes", least=0)
    render: str = key("fast", "render quality: benchmark, balanced, fast")
    image_size: int = key(256, "side of the images [px]")
    episode_steps: int | None = key(None, "steps of an episode; null means the task's own", least=1)
    demos: str | None = key(None, "demonstrations to replay too (sac, td3)")
    demo_ratio: float = key(0.5, "share of each batch that comes from demos")
    init_from: str | None = key(None, "policy checkpoint that initialises the actor, e.g. of train_bc")
    eval_every: int = key(10_000, "environment steps between evaluations of the learning curve", least=1)
    eval_episodes: int = key(
        10, "episodes of each of these evaluations; the best one chooses best.safetensors", least=1
    )
    episodes: int = key(25, "held-out episodes of the last policy, the same as those of evaluate", least=1)
    videos: bool = key(True, "keep videos of the last policy's first success and first failure", free=True)
    log_every: int = key(1_000, "environment steps between rows of metrics.jsonl", least=1)
    save_every: int = key(20_000, "environment steps between resumable states", least=1, free=True)
    cache: str = key("runs/cache", "folder of the caches of tokens and frames, for demos", free=True)
    out: str | None = key(None, "run folder; null means runs/train_rl/<digest of the settings>", free=True)


@dataclass
class LearningCurves:
    """Plot learning curves of several train_rl runs: interquartile means and intervals over their seeds."""

    runs: list[str] = key(MISSING, "run folders of train_rl; runs that differ only in their seed become one curve")
    out: str = key("runs/learning_curves", "folder of the report", free=True)
    debug: bool = key(False, "show tracebacks", free=True)


def train_rl(settings: TrainRL) -> "RLResult":
    """Train a policy; return its run folder, last policy and evaluation."""
    from .run import require_learner, run_plan

    require_learner()
    return run_plan(_plan(settings), settings)


def _plan(settings: TrainRL) -> "RLPlan":
    from ...envs.registry import TaskSpec
    from ...files import sha256_of
    from ...hardware import choose_device, choose_precision
    from ...run_folder import settings_digest
    from ..build import PolicyDesign
    from .learner import actor_config
    from .plan import Episodes, ReplaySetup, RLPlan, Schedule, design_encoder

    device = choose_device(settings.device)
    design = PolicyDesign(
        encoder=design_encoder(settings.obs, settings.encoder, settings.finetune),
        config=actor_config(settings.algorithm, settings.fusion, settings.frames),
        observation=settings.observation,
        tune="full" if settings.finetune else "frozen",
        precision=choose_precision(settings.precision, device),
    )
    task = TaskSpec(
        task=settings.task,
        observe=("rgb", design.vector) if design.observes_images else (design.vector,),
        cameras=tuple(settings.observation.cameras),
        image_size=settings.image_size,
        render=settings.render,
        horizon=settings.episode_steps,
    )
    files = [Path(each) for each in (settings.demos, settings.init_from) if each is not None and Path(each).is_file()]
    inputs = " ".join(map(sha256_of, files))
    return RLPlan(
        task=task,
        algorithm=settings.algorithm,
        design=design,
        schedule=Schedule(settings.steps, settings.log_every, settings.eval_every, settings.save_every),
        episodes=Episodes(settings.eval_episodes, settings.episodes, settings.videos),
        replay=ReplaySetup(
            None if settings.demos is None else Path(settings.demos), settings.demo_ratio, settings.shift
        ),
        init_from=settings.init_from,
        seed=settings.seed,
        envs=settings.envs,
        processes=design.observes_images if settings.processes is None else settings.processes,
        device=device,
        cache=Path(settings.cache),
        out=Path(settings.out or f"runs/train_rl/{settings_digest(settings, inputs)}"),
        inputs=inputs,
    )


def run_train_rl(settings: TrainRL) -> int:
    """Train a policy, and print its success."""
    from ...report.tables import print_evaluation

    for each in fields(EngineSettings):
        if getattr(settings, each.name) != each.default:
            raise BadInput(f"{each.name}={getattr(settings, each.name)} is for the jobs of a sweep; add -m")
    result = train_rl(settings)
    print_evaluation(result.out, result.evaluation.rows[0], result.evaluation.summary())
    print(f"evaluate it with: pixio-robot evaluate checkpoint={result.last}")
    return 0


def sweep_train_rl(every: list[TrainRL]) -> int:
    """Train every combination of a sweep, and print what became of each run."""
    from .run import require_learner
    from .sweep import SweepJob, run_sweep

    require_learner()
    launch = every[0].launch()
    jobs = [SweepJob(_plan(settings), settings) for settings in every]
    failures = run_sweep(jobs, launch)
    runs = [job.plan.out for job in jobs]
    for run in runs:
        print(f"{run}: {failures.get(run.name, 'trained')}")
    print(f"compare them with: pixio-robot learning_curves runs=[{','.join(map(str, runs))}]")
    return 1 if failures else 0


def train_folder(folder: Path) -> None:
    """Train as the ``config.yaml`` of a run folder says; this is a job of a sweep."""
    from omegaconf import OmegaConf

    composed = OmegaConf.merge(OmegaConf.structured(TrainRL), OmegaConf.load(folder / "config.yaml"))
    composed.out = str(folder)
    settings = OmegaConf.to_object(composed)
    if not isinstance(settings, TrainRL):
        raise BadInput(f"{folder / 'config.yaml'} is not of train_rl")
    train_rl(settings)


def run_learning_curves(settings: LearningCurves) -> int:
    """Plot learning curves, and print where the report is."""
    from .learning_curves import write_learning_curves

    free = {each.name for each in fields(TrainRL) if each.metadata.get("free")}
    print(write_learning_curves([Path(run) for run in settings.runs], Path(settings.out), free))
    return 0


COMMANDS = {
    "train_rl": Command(TrainRL, run_train_rl, {"algorithm": "sac"}, sweep=sweep_train_rl),
    "learning_curves": Command(LearningCurves, run_learning_curves),
}
