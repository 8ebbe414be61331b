"""Settings of the reinforcement-learning algorithms."""

from dataclasses import dataclass

from ...settings import key

ALGORITHMS = ("sac", "td3", "ppo")


@dataclass
class AlgorithmSettings:
    """An algorithm of stable-baselines3 and its hyperparameters; configs/algorithm/ has them by suite, with sources."""

    name: str = key("sac", f"algorithm: {', '.join(ALGORITHMS)}")
    layers: list[int] = key([256, 256], "widths of the hidden layers of actor and critics")
    activation: str = key("relu", "activation: relu, gelu, tanh")
    normalise: bool = key(True, "scale embeddings by running statistics; not done where vision or neck learn")
    lr: float = key(3e-4, "learning rate (Adam)")
    gamma: float = key(0.99, "discount")
    batch: int = key(256, "steps in the batch of a gradient step", least=2)
    buffer: int = key(1_000_000, "steps kept for replay (sac, td3)", least=1)
    warmup: int = key(5_000, "environment steps before learning, with uniform actions without init_from (sac, td3)")
    updates: float = key(1.0, "gradient steps an environment step (sac, td3)")
    tau: float = key(0.005, "coefficient of the soft updates of target networks (sac, td3)")
    entropy: str = key("auto", "temperature: auto, auto_<first value> or a number (sac)")
    noise: float = key(0.1, "standard deviation of exploration noise (td3)")
    rollout: int = key(2048, "environment steps between updates, over all environments (ppo)", least=2)
    epochs: int = key(10, "passes over a rollout (ppo)", least=1)
    gae_lambda: float = key(0.95, "decay of generalised advantage estimation (ppo)")
    clip: float = key(0.2, "clipping of the probability ratio (ppo)")
    entropy_bonus: float = key(0.0, "weight of the entropy in the objective (ppo)")
