"""One dataclass a command: the types, defaults and help of every key. Configuration stops here.

Hydra composes the YAML in ``configs/``, checks it against these, and ``cli.py`` hands plain objects on.
"""

from dataclasses import dataclass, field
from typing import Any

from .camera_schemas import Calibrate, CameraCheck, CameraSettings, CameraView, Record
from .engine_schemas import EngineSettings
from .export_schemas import Export, Verify
from .keys import MISSING, Device, Hardware, key
from .pretrain_schemas import Curate, Distill, Pretrain, Probe, Score
from .robot_schemas import Run
from .serving_schemas import Latency, Serve

FUSIONS = ("mean", "concat", "first", "attention", "spatial")
FRAMES = ("single", "stack", "flare")
DEPTHS = ("none", "patches", "late", "points", "channels")
CLONED = ("rgb", "rgbd")
HELD_OUT_SEED = 10_000  # of the first evaluated episode; demonstrations count up from 0
CURVE_SEED = 50_000  # of the episodes of a learning curve, which choose checkpoints and are not reported


@dataclass
class EmbeddingSettings:
    """How tokens, frames and proprioception become one vector."""

    fusion: str = key("mean", f"how class or patch tokens are fused: {', '.join(FUSIONS)}")
    normed: bool = key(True, "use tokens after the encoder's final norm")
    frames: str = key("flare", f"how the frames of the history are fused: {', '.join(FRAMES)}")
    history: int = key(3, "frames that stack and flare span [steps]", least=1)
    proprio: bool = key(True, "append proprioception")
    cameras: list[str] = key([], "cameras whose tokens stand side by side; empty means the first that was recorded")
    depth: str = key("none", f"depth beside colour: {', '.join(DEPTHS)}; docs/cameras.md says what they are")
    depth_head: str | None = key(None, "depth head by probe, which predicts depth from colour; null means measured")
    depth_code: str = key("inverse", "how depth becomes numbers: inverse, log, metres; with channels also colours")
    depth_range: list[float] = key([0.25, 4.0], "nearest and farthest depth that is told apart [m]")
    depth_dropout: float = key(0.1, "late, points: share of training samples without depth, and share without colour")
    depth_epochs: int = key(10, "patches: last epochs, with encoder passes; those before use cached tokens", least=1)
    depth_points: int = key(512, "points: how many are kept", least=1)
    depth_box: list[float] = key([], "points: box in the world, x0,x1,y0,y1,z0,z1 [m]; empty means that of the demos")


@dataclass
class PolicySettings:
    """The policy head and how it learns; the defaults are CortexBench's."""

    layers: list[int] = key([256, 256, 256], "widths of the hidden layers")
    activation: str = key("relu", "activation: relu, gelu, tanh")
    batch_norm: bool = key(True, "batch normalisation of the whole input, proprioception too")
    dropout: float = key(0.0, "dropout rate before each activation")
    last_scale: float = key(0.01, "factor on the last layer's initial weights")
    squash: bool = key(False, "end in a tanh, as the actors of SAC and TD3 do; what they begin with must have it")
    loss: str = key("mse", "loss on actions: mse, l1, huber")
    optimizer: str = key("adam", "optimiser: adam, adamw, sgd")
    lr: float = key(1e-3, "learning rate")
    weight_decay: float = key(0.0, "weight decay")
    batch: int = key(256, "samples a step")
    epochs: int = key(100, "passes over the training frames")
    chunk: int = key(1, "actions predicted at once: of this step and of those that follow", least=1)


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
    image_size: int = key(256, "side of the pictures [px]")
    horizon: int | None = key(None, "steps of an episode; null means the task's own", least=1)
    expert: str | None = key(
        None, "file of the expert: a policy of train_rl obs=state, for Adroit a DAPG policy; null means the task's"
    )
    workers: int | None = key(None, "worker processes; null means one a core", least=1, free=True)
    out: str | None = key(None, "file to write; null means runs/demos/<task>-<demos>-<render>.hdf5", free=True)
    debug: bool = key(False, "show tracebacks", free=True)


@dataclass
class Convert:
    """Turn CortexBench's released demonstrations of a task into ours, losing nothing."""

    source: str = key(MISSING, "released archive, its unpacked folder, or the task's pickle in it", free=True)
    task: str = key(MISSING, "task, e.g. metaworld/hammer, dmc/walker_walk, adroit/pen or trifinger/reach_cube")
    demos: int | None = key(
        None, "demonstrations to train on, the first ones; null means CortexBench's number", least=1
    )
    valid: int | None = key(None, "those after them to validate on; null means the rest, for TriFinger 25", least=0)
    splits: str | None = key(None, "TriFinger's JSON of splits, instead of demos and valid")
    out: str | None = key(None, "file to write; null means runs/demos/<task>-released.hdf5", free=True)
    debug: bool = key(False, "show tracebacks", free=True)


@dataclass
class RenderFrames:
    """Render simulated scenes with random looks, cameras, clutter and robot states into shards to pre-train on."""

    scenes: Any = key(
        MISSING, "tasks, suites, MJCF files or patterns of them, also in a package (dm_control:suite/*.xml); or a list"
    )
    frames: int = key(20_000, "pictures in all", least=1)
    image_size: int = key(256, "side of the pictures [px]")
    render: list[str] = key(["fast", "fast", "balanced"], "render qualities; each visit to a scene draws one of these")
    own_look: float = key(0.3, "share of pictures with the scene's own colours, textures and lights, without clutter")
    own_camera: float = key(0.5, "share through the scene's own cameras, moved a little; the others from anywhere")
    close: float = key(0.3, "share of those others taken close to something that moves")
    clutter: int = key(6, "most bodies added to a picture", least=0)
    visit: int = key(50, "pictures of a scene before the next one", least=1)
    shard: int = key(1000, "pictures in a shard", least=1)
    quality: int = key(92, "JPEG quality, 1 to 100")
    depth: bool = key(False, "write depth too, as `probe` reads it: KEY.depth.png, uint16 [mm]")
    seed: int = key(0, "seed of everything random", least=0)
    workers: int | None = key(None, "worker processes; null means one a core", least=1, free=True)
    out: str | None = key(None, "folder of the shards; null means runs/frames/<digest of the settings>", free=True)
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
class AlgorithmSettings:
    """An algorithm of stable-baselines3 and its numbers; configs/algorithm/ has them by suite, with their sources."""

    name: str = key("sac", "sac, td3, ppo")
    layers: list[int] = key([256, 256], "widths of the hidden layers of actor and critics")
    activation: str = key("relu", "activation: relu, gelu, tanh")
    normalise: bool = key(True, "scale what the networks see by running statistics; never after a network that learns")
    lr: float = key(3e-4, "learning rate (Adam)")
    gamma: float = key(0.99, "discount")
    batch: int = key(256, "steps a gradient step learns from", least=2)
    buffer: int = key(1_000_000, "steps kept for replay (sac, td3)", least=1)
    warmup: int = key(5_000, "environment steps before learning, with uniform actions unless init is given (sac, td3)")
    updates: float = key(1.0, "gradient steps an environment step (sac, td3)")
    tau: float = key(0.005, "share by which target networks follow at each gradient step (sac, td3)")
    entropy: str = key("auto", "temperature: auto, auto_<first value> or a number (sac)")
    noise: float = key(0.1, "standard deviation of exploration (td3)")
    rollout: int = key(2048, "environment steps between updates, over all environments (ppo)", least=2)
    epochs: int = key(10, "passes over a rollout (ppo)", least=1)
    gae_lambda: float = key(0.95, "decay of generalised advantage estimation (ppo)")
    clip: float = key(0.2, "most change of an action's probability, as a ratio (ppo)")
    entropy_bonus: float = key(0.0, "weight of the entropy in the objective (ppo)")


@dataclass
class TrainRL(Hardware, EngineSettings):
    """Train a policy by reinforcement, on tokens that are encoded once; its checkpoint is one for evaluate."""

    task: str = key(MISSING, "task, e.g. toy/reach or dmc/cheetah_run")
    algorithm: AlgorithmSettings = field(default_factory=AlgorithmSettings)
    obs: str = key("tokens", "what is seen: tokens of an encoder, state (is told what there is), rgb (learns to see)")
    encoder: str = key("pixio-robot-ti", "encoder of obs=tokens, as load_encoder takes it; none is blind")
    embedding: EmbeddingSettings = field(default_factory=EmbeddingSettings)
    finetune: bool = key(False, "let the encoder learn too; pictures are then replayed, and encoded each time")
    shift: bool = key(True, "move replayed pictures by a few pixels, as DrQ-v2; obs=rgb of sac and td3 only")
    steps: int = key(100_000, "environment steps, over all environments; a run may be made longer", least=1, free=True)
    envs: int = key(1, "environments in parallel", least=1)
    processes: bool | None = key(None, "run each in a process of its own; null means if pictures are drawn", free=True)
    seed: int = key(0, "seed of networks, actions and episodes", least=0)
    render: str = key("fast", "render quality: benchmark, balanced, fast")
    image_size: int = key(256, "side of the pictures [px]")
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


@dataclass
class Evaluate(Device):
    """Run a trained policy on a fixed list of held-out episodes."""

    checkpoint: str = key(MISSING, "policy checkpoint, e.g. runs/.../checkpoints/bc/last.safetensors")
    episodes: int = key(25, "episodes", least=1)
    first_seed: int = key(HELD_OUT_SEED, "seed of the first episode; demonstrations start from 0", least=0)
    envs: int | None = key(None, "environments in parallel; null means twice the cores", least=1, free=True)
    render: str | None = key(None, "render quality; null means the demonstrations'")
    execute: int | None = key(
        None, "actions of each chunk that are executed before the next one; null means all", least=1
    )
    videos: bool = key(True, "keep videos of the first success and the first failure")
    out: str | None = key(None, "run folder; null means runs/evaluate/<digest of the settings>", free=True)


@dataclass
class Benchmark(Hardware, EngineSettings):
    """Run CortexBench: tasks, encoders and seeds as independent cells, and the table they give."""

    encoders: list[str] = key(
        ["pixio-robot-ti", "random:ti:0", "none", "cnn", "state", "expert"],
        "policies to compare: encoders, as load_encoder takes them, and the references none (blind), cnn (learns to "
        "see), state (is told), expert",
    )
    tasks: Any = key("all", "all (14 tasks), a suite (adroit, dmc, metaworld, trifinger), SUITE/TASK, or a list")
    seeds: list[int] | None = key(None, "seeds of training; null is the budget's: 100, of full 100, 200 and 300")
    fusions: list[str] = key(["mean"], f"fusions of an encoder's tokens, each a row: {', '.join(FUSIONS)}")
    protocol: str = key("both", "columns: cortexbench (best of all evaluations), honest (last policy), or both")
    budget: str = key("smoke", "how much of it: smoke (does it run), small (two cores, hours), full (as published)")
    precision: str = key("fp32", "auto, fp32, bf16 (autocast)")
    plan: bool = key(False, "only measure and print what it would cost", free=True)
    experts: Any = key(None, "Adroit's experts: folder of DAPG policies, or {adroit/pen: FILE, ...}", free=True)
    demos: str | None = key(None, "folder of demonstrations (*.hdf5) to use where it has a task's", free=True)
    out: str | None = key(None, "folder; null means runs/benchmark-<budget>", free=True)


@dataclass
class Stream(Device, CameraSettings):
    """Run a trained policy on a camera, live, recorded or simulated; tell how long it takes and how old frames are."""

    checkpoint: str = key(MISSING, "policy checkpoint, e.g. runs/.../checkpoints/bc/last.safetensors")
    frames: int = key(200, "control steps", least=1)
    rate: float | None = key(None, "control steps a second; null is as fast as frames come")
    max_age: float | None = key(
        None, "oldest frame to act on [s]; null is 0.1 for a live camera, else every frame in turn"
    )
    max_skew: float | None = key(None, "most that colour and depth may be apart [s]; null is half a frame period")
    real_time: bool = key(False, "play a recording at its own pace, as a live camera")
    zeros: bool = key(False, "give zeros for proprioception that the camera does not know, to time a policy")
    out: str | None = key(None, "file of the actions (.jsonl); null writes none", free=True)


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


@dataclass
class Report:
    """Write a run folder's report.html again."""

    run: str = key(MISSING, "run folder")
    debug: bool = key(False, "show tracebacks", free=True)


@dataclass
class Doctor:
    """Say what is installed, which GL and GPU there are, what conflicts, and how to mend it."""

    system_only: bool = key(False, "only check what the operating system must provide")
    debug: bool = key(False, "show tracebacks", free=True)


COMMANDS: dict[str, type] = {
    "quickstart": Quickstart,
    "collect": Collect,
    "convert": Convert,
    "render_frames": RenderFrames,
    "embed": Embed,
    "train_bc": TrainBC,
    "train_rl": TrainRL,
    "learning_curves": LearningCurves,
    "evaluate": Evaluate,
    "benchmark": Benchmark,
    "pretrain": Pretrain,
    "distill": Distill,
    "score": Score,
    "curate": Curate,
    "probe": Probe,
    "record": Record,
    "camera_view": CameraView,
    "camera_check": CameraCheck,
    "calibrate": Calibrate,
    "stream": Stream,
    "run": Run,
    "export": Export,
    "verify": Verify,
    "serve": Serve,
    "latency": Latency,
    "report": Report,
    "doctor": Doctor,
}
