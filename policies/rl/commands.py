"""The commands train_rl and learning_curves."""

from dataclasses import dataclass, field, fields

from ...command import Command
from ...config import compose, sweep_jobs
from ...engine_schemas import EngineSettings
from ...errors import BadInput
from ...settings import MISSING, Hardware, key
from ..settings import EmbeddingSettings
from .settings import AlgorithmSettings


@dataclass
class TrainRL(Hardware, EngineSettings):
    """Train a policy by reinforcement, on tokens that are encoded once; its checkpoint is one for evaluate."""

    task: str = key(MISSING, "task, e.g. toy/reach or dmc/cheetah_run")
    algorithm: AlgorithmSettings = field(default_factory=AlgorithmSettings)
    obs: str = key("tokens", "what is seen: tokens of an encoder, state (is told what there is), rgb (learns to see)")
    encoder: str = key("pixio-robot-ti", "encoder of obs=tokens, as load_encoder takes it; none is blind")
    embedding: EmbeddingSettings = field(default_factory=EmbeddingSettings)
    finetune: bool = key(False, "let the encoder learn too; images are then replayed, and encoded each time")
    shift: bool = key(True, "move replayed images by a few pixels, as DrQ-v2; obs=rgb of sac and td3 only")
    steps: int = key(100_000, "environment steps, over all environments; a run may be made longer", least=1, free=True)
    envs: int = key(1, "environments in parallel", least=1)
    processes: bool | None = key(None, "run each in a process of its own; null means if images are drawn", free=True)
    seed: int = key(0, "seed of networks, actions and episodes", least=0)
    render: str = key("fast", "render quality: benchmark, balanced, fast")
    image_size: int = key(256, "side of the images [px]")
    horizon: int | None = key(None, "steps of an episode; null means the task's own", least=1)
    demos: str | None = key(None, "demonstration file to replay from too (sac, td3)")
    demo_ratio: float = key(0.5, "share of each batch that comes from demos")
    init: str | None = key(None, "policy checkpoint to begin the actor from, e.g. of train_bc")
    eval_every: int = key(10_000, "environment steps between evaluations of the learning curve", least=1)
    eval_episodes: int = key(10, "episodes of each; the best of them chooses best.safetensors", least=1)
    episodes: int = key(25, "held-out episodes of the last policy, those of evaluate", least=1)
    videos: bool = key(True, "keep videos of the first success and the first failure of these", free=True)
    log_every: int = key(1_000, "environment steps between rows of metrics.jsonl", least=1)
    save_every: int = key(20_000, "environment steps between states that can go on", least=1, free=True)
    cache: str = key("runs/cache", "folder of the token caches, for demos", free=True)
    out: str | None = key(None, "run folder; null means runs/train_rl/<digest of the settings>", free=True)


@dataclass
class LearningCurves:
    """Draw learning curves of several train_rl runs: interquartile means and intervals over their seeds."""

    runs: list[str] = key(MISSING, "run folders of train_rl; those that differ in their seed alone are one curve")
    out: str = key("runs/learning_curves", "folder of the report", free=True)
    debug: bool = key(False, "show tracebacks", free=True)


def _train_rl(command: TrainRL) -> int:
    from ...report.tables import print_evaluation
    from .run import run_train_rl

    for each in fields(EngineSettings):
        if getattr(command, each.name) != each.default:
            raise BadInput(f"{each.name}={getattr(command, each.name)} is for the jobs of a sweep; add -m")
    out, last, evaluation = run_train_rl(command)
    print_evaluation(out, evaluation.rows[0], evaluation.summary())
    print(f"evaluate it with: pixio-robot evaluate checkpoint={last}")
    return 0


def _learning_curves(command: LearningCurves) -> int:
    from .learning_curves import run_learning_curves

    print(run_learning_curves(command))
    return 0


def _sweep_train_rl(overrides: list[str]) -> int:
    from .sweep import run_sweep

    if hydra := [override for override in overrides if override.startswith("hydra")]:
        raise BadInput(f"{' '.join(hydra)}: sweeps of train_rl take engine=local, ray or slurm, not Hydra's launchers")
    runs, failures = run_sweep([compose("train_rl", job) for job in sweep_jobs(overrides)])
    for run in runs:
        print(f"{run}: {failures.get(run.name, 'trained')}")
    print(f"compare them with: pixio-robot learning_curves runs=[{','.join(map(str, runs))}]")
    return 1 if failures else 0


COMMANDS = {
    "train_rl": Command(TrainRL, _train_rl, {"algorithm": "sac"}, sweep=_sweep_train_rl),
    "learning_curves": Command(LearningCurves, _learning_curves),
}
