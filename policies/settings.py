"""Settings of policies: what they observe, their architecture, how they are trained."""

from dataclasses import dataclass

from ..settings import key

FUSIONS = ("mean", "concat", "first", "attention", "spatial")


FRAMES = ("single", "stack", "flare")


DEPTHS = ("none", "patches", "late", "points", "channels")


OBSERVATION_MODES = ("rgb", "rgbd")


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
    output_init_scale: float = key(0.01, "factor on the last layer's initial weights")
    tanh_output: bool = key(False, "end in a tanh, as the actors of SAC and TD3 do; what they begin with must have it")
    loss: str = key("mse", "loss on actions: mse, l1, huber")
    optimizer: str = key("adam", "optimiser: adam, adamw, sgd")
    lr: float = key(1e-3, "learning rate")
    weight_decay: float = key(0.0, "weight decay")
    batch: int = key(256, "samples a step")
    epochs: int = key(100, "passes over the training frames")
    chunk: int = key(1, "actions predicted at once: of this step and of those that follow", least=1, later=True)
