"""The commands collect, embed, train_bc, evaluate and quickstart."""

from dataclasses import dataclass, field

from ..command import Command
from ..settings import MISSING, Device, Hardware, key
from .settings import HELD_OUT_SEED, EmbeddingSettings, PolicySettings


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
    horizon: int | None = key(None, "steps of an episode; null means the task's own", least=1)
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
    """Clone behaviour from demonstrations on cached tokens."""

    demos: str = key(MISSING, "demonstration file")
    encoder: str = key(
        "pixio-robot-ti", "encoder; or none (blind), cnn (learns to see, end to end), state (is told what there is)"
    )
    obs: str = key("rgb", "what is seen: rgb, or rgbd, which makes embedding.depth late unless it says another")
    embedding: EmbeddingSettings = field(default_factory=EmbeddingSettings)
    policy: PolicySettings = field(default_factory=PolicySettings)
    seed: int = key(0, "seed of initialisation and shuffling", least=0)
    save_every: int = key(10, "epochs between resumable states", least=1)
    cache: str = key("runs/cache", "folder of the token caches", free=True)
    out: str | None = key(None, "run folder; null means runs/train_bc/<digest of the settings>", free=True)


@dataclass
class Evaluate(Device):
    """Run a trained policy on a fixed list of held-out episodes."""

    checkpoint: str = key(MISSING, "policy checkpoint, e.g. runs/.../checkpoints/bc/last.safetensors")
    episodes: int = key(25, "episodes", least=1)
    first_seed: int = key(HELD_OUT_SEED, "seed of the first episode; demonstrations start from 0", least=0)
    envs: int | None = key(None, "environments in parallel; null means twice the cores", least=1, free=True)
    render: str | None = key(None, "render quality; null means the demonstrations'")
    n_action_steps: int | None = key(
        None, "actions of each chunk that are executed before the next one; null means all", least=1, later=True
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
    horizon: int | None = key(200, "steps of an episode, at most; null means the task's own", least=1)
    render: str = key("fast", "render quality: benchmark, balanced, fast")
    encoder: str = key("pixio-robot-ti", "encoder, as load_encoder takes it")
    embedding: EmbeddingSettings = field(default_factory=EmbeddingSettings)
    policy: PolicySettings = field(default_factory=PolicySettings)
    seed: int = key(0, "seed of the policies", least=0)
    envs: int | None = key(None, "environments in parallel; null means twice the cores", least=1, free=True)
    cache: str = key("runs/cache", "folder of the token caches", free=True)
    out: str | None = key(None, "run folder; null means runs/quickstart/<task>-<digest of the settings>", free=True)


def _quickstart(command: Quickstart) -> int:
    from ..report.tables import print_quickstart
    from .quickstart import run_quickstart

    out, result = run_quickstart(command)
    print_quickstart(out, result)
    return 0


def _collect(command: Collect) -> int:
    from .runs import run_collect

    report = run_collect(command)
    state = "reused" if report.reused else f"recorded in {report.attempts} episodes"
    print(f"{report.path}: {command.demos} + {command.valid} demonstrations of {command.task}, {state}")
    return 0


def _embed(command: Embed) -> int:
    from .runs import run_embed

    cache = run_embed(command)
    shape = " x ".join(map(str, cache.cls.shape))
    print(f"{cache.folder}: class tokens {shape} float16{', reused' if cache.reused else ''}")
    return 0


def _train_bc(command: TrainBC) -> int:
    from .runs import run_train_bc

    _, result = run_train_bc(command)
    state = ", reused" if result.reused else ""
    print(f"{result.last}: train loss {result.train_loss:.5f}, validation loss {result.valid_loss:.5f}{state}")
    print(f"evaluate it with: pixio-robot evaluate checkpoint={result.last}")
    return 0


def _evaluate(command: Evaluate) -> int:
    from ..report.tables import print_evaluation
    from .runs import run_evaluate

    out, evaluation = run_evaluate(command)
    print_evaluation(out, evaluation.rows[0], evaluation.summary())
    return 0


COMMANDS = {
    "quickstart": Command(Quickstart, _quickstart, {"policy": "cortexbench"}),
    "collect": Command(Collect, _collect),
    "embed": Command(Embed, _embed),
    "train_bc": Command(TrainBC, _train_bc, {"policy": "cortexbench"}),
    "evaluate": Command(Evaluate, _evaluate),
}
