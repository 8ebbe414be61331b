"""Settings of what policies observe and of how they are trained. Settings of architectures are beside their code."""

from dataclasses import dataclass

from ..settings import key

FUSIONS = ("mean", "concat", "first", "attention", "spatial")
FRAMES = ("stack", "flare")
DEPTHS = ("none", "patches", "late", "points", "channels")
OBSERVATION_MODES = ("rgb", "rgbd")
LOSSES = ("mse", "l1", "huber")
HELD_OUT_SEED = 10_000  # of the first evaluated episode; demonstrations count up from 0
CURVE_SEED = 50_000  # of the episodes of a learning curve, which choose checkpoints and are not reported


@dataclass
class ObservationSettings:
    """What a policy observes."""

    cameras: list[str] = key([], "cameras; empty means the first that was recorded")
    steps: int = key(3, "observation steps: frames that a policy observes at once", least=1)
    proprio: bool = key(True, "observe proprioception")
    normed: bool = key(True, "use tokens after the encoder's final norm")
    depth: str = key("none", f"depth beside colour: {', '.join(DEPTHS)}; docs/cameras.md explains them")
    depth_head: str | None = key(None, "depth head by probe, which predicts depth from colour; null is measured depth")
    depth_code: str = key("inverse", "how depth becomes numbers: inverse, log, metres; with channels also colours")
    depth_range: list[float] = key([0.25, 4.0], "nearest and farthest depth that the codes distinguish [m]")
    depth_epochs: int = key(10, "patches: last epochs, which run the encoder; others use cached tokens", least=1)
    depth_points: int = key(512, "points: how many are kept", least=1)
    depth_box: list[float] = key([], "points: box in the world, x0,x1,y0,y1,z0,z1 [m]; empty is that of the demos")


@dataclass
class TrainingSettings:
    """How a policy is trained; the defaults are CortexBench's."""

    epochs: int = key(100, "passes over the training frames", least=1)
    batch: int = key(256, "samples of an optimiser step", least=2)
    optimizer: str = key("adam", "optimiser: adam, adamw, sgd")
    lr: float = key(1e-3, "peak learning rate")
    weight_decay: float = key(0.0, "weight decay")
    schedule: str = key("constant", "learning rate after warm-up: constant, cosine")
    warmup: float = key(0.0, "share of the steps in which the learning rate rises from 0")
    clip: float = key(0.0, "largest norm of the gradients; 0 does not clip")
    ema: float = key(0.0, "decay of an exponential moving average of the weights, e.g. 0.999; 0 keeps none")
    accumulate: int = key(1, "parts that a batch is computed in, to save memory", least=1)
    precision: str = key("fp32", "arithmetic of the policy: fp32, bf16, fp16 (autocast; fp16 needs CUDA)")
    workers: int = key(0, "processes that read images, for policies that train on them", least=0)
    tune: str = key("frozen", "the encoder: frozen, last:N (its last N blocks learn), full (all of it learns)")
    encoder_lr: float = key(0.1, "learning rate of a tuned encoder, as a factor on lr")


@dataclass
class StatisticsSettings:
    """How vectors are normalised."""

    action: str = key("none", "statistics that normalise actions: none, mean_std, min_max, quantile")
    proprio: str = key("none", "statistics that normalise proprioception: none, mean_std, min_max, quantile")
