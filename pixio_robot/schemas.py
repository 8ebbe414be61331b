"""One dataclass a command: the types, defaults and help of every key. Configuration stops here.

Hydra composes the YAML in ``configs/``, checks it against these, and ``cli.py`` hands plain objects on.
"""

from dataclasses import dataclass, field
from typing import Any

FUSIONS = ("mean", "concat", "first", "attention", "spatial")
FRAMES = ("single", "stack", "flare")
MISSING: Any = "???"  # Hydra's mark for a key without a default
HELD_OUT_SEED = 10_000  # of the first evaluated episode; demonstrations count up from 0


def key(default: Any, help: str, least: int | None = None) -> Any:
    """Return a dataclass field with a line of help and the least value it may have."""
    metadata = {"help": help, "least": least}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class EmbeddingSettings:
    """How tokens, frames and proprioception become one vector."""

    fusion: str = key("mean", f"how class or patch tokens are fused: {', '.join(FUSIONS)}")
    normed: bool = key(True, "use tokens after the encoder's final norm")
    frames: str = key("flare", f"how the frames of the history are fused: {', '.join(FRAMES)}")
    history: int = key(3, "frames that stack and flare span [steps]", least=1)
    proprio: bool = key(True, "append proprioception")


@dataclass
class PolicySettings:
    """The policy head and how it learns; the defaults are CortexBench's."""

    layers: list[int] = key([256, 256, 256], "widths of the hidden layers")
    activation: str = key("relu", "activation: relu, gelu, tanh")
    batch_norm: bool = key(True, "batch normalisation of the whole input, proprioception too")
    dropout: float = key(0.0, "dropout rate before each activation")
    last_scale: float = key(0.01, "factor on the last layer's initial weights")
    loss: str = key("mse", "loss on actions: mse, l1, huber")
    optimizer: str = key("adam", "optimiser: adam, adamw, sgd")
    lr: float = key(1e-3, "learning rate")
    weight_decay: float = key(0.0, "weight decay")
    batch: int = key(256, "samples a step")
    epochs: int = key(100, "passes over the training frames")


@dataclass
class Hardware:
    """Where and how exactly numbers are computed."""

    device: str = key("auto", "auto, cpu, cuda, mps")
    precision: str = key("auto", "auto, fp32, bf16 (autocast); auto is bf16 on CUDA devices that have it")
    debug: bool = key(False, "show tracebacks")


@dataclass
class Collect:
    """Record demonstrations from a task's expert."""

    task: str = key(MISSING, "task, e.g. metaworld/drawer-open or toy/reach")
    demos: int = key(25, "successful demonstrations for training", least=1)
    valid: int = key(3, "further demonstrations held out for the validation curve", least=0)
    first_seed: int = key(0, "seed of the first episode; they count up", least=0)
    render: str = key("benchmark", "render quality: benchmark, balanced, fast")
    depth: bool = key(False, "record depth too")
    cameras: list[str] = key([], "cameras; empty means the task's default")
    image_size: int = key(256, "side of the pictures [px]")
    horizon: int | None = key(None, "steps of an episode; null means the task's own", least=1)
    workers: int | None = key(None, "worker processes; null means one a core", least=1)
    out: str | None = key(None, "file to write; null means runs/demos/<task>-<demos>-<render>.hdf5")
    debug: bool = key(False, "show tracebacks")


@dataclass
class Embed(Hardware):
    """Encode every frame of a demonstration file once, into the token cache."""

    demos: str = key(MISSING, "demonstration file")
    encoder: str = key("random:ti:0", "encoder, as load_encoder takes it")
    normed: bool = key(True, "tokens after the encoder's final norm")
    patches: bool = key(False, "store patch tokens too (32 times the size)")
    batch: int | None = key(None, "images an encoder call; null means 8 on a CPU, 128 elsewhere", least=1)
    cache: str = key("runs/cache", "folder of the token caches")


@dataclass
class TrainBC(Hardware):
    """Clone behaviour from demonstrations on cached tokens."""

    demos: str = key(MISSING, "demonstration file")
    encoder: str = key("random:ti:0", "encoder, or none for a blind policy")
    embedding: EmbeddingSettings = field(default_factory=EmbeddingSettings)
    policy: PolicySettings = field(default_factory=PolicySettings)
    seed: int = key(0, "seed of initialisation and shuffling", least=0)
    save_every: int = key(10, "epochs between resumable states", least=1)
    cache: str = key("runs/cache", "folder of the token caches")
    out: str | None = key(None, "run folder; null means runs/train_bc/<digest of the settings>")


@dataclass
class Evaluate(Hardware):
    """Run a trained policy on a fixed list of held-out episodes."""

    checkpoint: str = key(MISSING, "policy checkpoint, e.g. runs/.../checkpoints/bc/last.safetensors")
    episodes: int = key(25, "episodes", least=1)
    first_seed: int = key(HELD_OUT_SEED, "seed of the first episode; demonstrations start from 0", least=0)
    envs: int | None = key(None, "environments in parallel; null means twice the cores", least=1)
    render: str | None = key(None, "render quality; null means the demonstrations'")
    videos: bool = key(True, "keep videos of the first success and the first failure")
    out: str | None = key(None, "run folder; null means runs/evaluate/<digest of the settings>")


@dataclass
class Quickstart(Hardware):
    """Demonstrations, cached tokens, behaviour cloning, evaluation, report: all of it on one task."""

    task: str = key("metaworld/drawer-open", "task, e.g. metaworld/hammer or toy/reach")
    demos: int = key(25, "demonstrations for training", least=1)
    valid: int = key(3, "demonstrations for the validation curve", least=0)
    episodes: int = key(25, "held-out episodes", least=1)
    horizon: int | None = key(200, "steps of an episode, at most; null means the task's own", least=1)
    render: str = key("fast", "render quality: benchmark, balanced, fast")
    encoder: str = key("random:ti:0", "encoder, as load_encoder takes it")
    embedding: EmbeddingSettings = field(default_factory=EmbeddingSettings)
    policy: PolicySettings = field(default_factory=PolicySettings)
    seed: int = key(0, "seed of the policies", least=0)
    envs: int | None = key(None, "environments in parallel; null means twice the cores", least=1)
    cache: str = key("runs/cache", "folder of the token caches")
    out: str | None = key(None, "run folder; null means runs/quickstart/<task>-<digest of the settings>")


@dataclass
class Report:
    """Write a run folder's report.html again."""

    run: str = key(MISSING, "run folder")
    debug: bool = key(False, "show tracebacks")


@dataclass
class Doctor:
    """Say what is installed, which GL and GPU there are, what conflicts, and how to mend it."""

    system_only: bool = key(False, "only check what the operating system must provide")
    debug: bool = key(False, "show tracebacks")


COMMANDS: dict[str, type] = {
    "quickstart": Quickstart,
    "collect": Collect,
    "embed": Embed,
    "train_bc": TrainBC,
    "evaluate": Evaluate,
    "report": Report,
    "doctor": Doctor,
}
