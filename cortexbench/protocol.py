"""CortexBench's protocol: how a policy is trained and evaluated on each task, and how much of that a budget runs.

CortexBench: Majumdar et al. 2023, "Where are we in the search for an artificial visual cortex for embodied
intelligence?", arXiv 2303.18240. The settings are those of its released code, restated.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..envs import adroit, dmc, metaworld
from ..envs.registry import tasks
from ..envs.trifinger import tasks as trifinger
from ..errors import UnknownName, closest
from ..policies.mlp import MlpConfig
from ..policies.settings import ObservationSettings, TrainingSettings

SUITES: dict[str, tuple[str, ...]] = {
    "adroit": adroit.CORTEXBENCH,
    "dmc": dmc.CORTEXBENCH,
    "metaworld": metaworld.CORTEXBENCH,
    "trifinger": trifinger.TASKS,
}
TASKS = tuple(f"{suite}/{task}" for suite, names in SUITES.items() for task in names)
SMOKE_SUITE = "toy"  # not a part of CortexBench; runs without further packages
NAMES = {"adroit": "Adroit", "dmc": "DMC", "metaworld": "MetaWorld", "trifinger": "TriFinger", SMOKE_SUITE: "toy"}
SUCCESS = ("adroit", "metaworld", SMOKE_SUITE)  # their score is success; that of the others is a share of the maximum
HAS_PROPRIO = ("adroit", "metaworld", "trifinger", SMOKE_SUITE)  # suites with proprioception

BEST_CHECKPOINT, HELD_OUT = "best_checkpoint", "held_out"
COLUMNS = {
    BEST_CHECKPOINT: "best checkpoint (as published)",
    HELD_OUT: "final checkpoint, held out",
}
BOTH = "both"
PROTOCOLS = (BOTH, *COLUMNS)

SEEDS = (100, 200, 300)
FIRST_DEMO_SEED = 54_321  # as in the released code
TRIFINGER_TEST_SEED = 30_000  # the first of TriFinger's 25 test episodes, the same for all runs


@dataclass(frozen=True)
class Protocol:
    """How a policy is trained and evaluated on one task."""

    demos: int  # to train on
    episodes: int  # of each evaluation during training
    eval_epochs: tuple[int, ...]  # epochs whose policies are evaluated; the best of them is what was published
    observation: ObservationSettings
    policy: MlpConfig
    training: TrainingSettings
    horizon: int = 1  # actions predicted at once
    cameras: tuple[str, ...] = ()  # of the environment; () is the task's default
    image_size: int = 256  # of the images [px]; encoders resize them as their preprocessing says
    first_seed: int | None = None  # of an evaluation's first episode; None is the run's own seed


def _eval_epochs(every: int, epochs: int) -> tuple[int, ...]:
    """Return the epochs after which a policy is evaluated.

    The released code counts epochs from 0 and evaluates after 5, 10, ..., 95 and the last one, 99.
    """
    return (*range(every + 1, epochs, every), epochs)


_IMITATION = Protocol(
    demos=100,
    episodes=25,
    eval_epochs=_eval_epochs(5, 100),
    observation=ObservationSettings(steps=3),  # and proprioception
    policy=MlpConfig(frames="flare"),
    training=TrainingSettings(epochs=100),
)
_TRIFINGER = Protocol(
    demos=100,
    episodes=25,
    eval_epochs=_eval_epochs(5, 100),
    observation=ObservationSettings(steps=1),
    policy=MlpConfig(layers=[2000, 2000], batch_norm=False, output_init_scale=1.0),
    training=TrainingSettings(optimizer="adamw", lr=1e-4, batch=32, epochs=100),
    image_size=270,
    first_seed=TRIFINGER_TEST_SEED,
)


def protocol_of(task: str) -> Protocol:
    """Return a task's protocol, also for tasks of its suite that CortexBench leaves out.

    Raises:
        UnknownName: for a task of no suite of CortexBench.
    """
    suite = task.partition("/")[0]
    if suite not in NAMES or task not in tasks(suite):
        of_suite = tasks(suite) if suite in NAMES else []
        known = of_suite or [*SUITES, *TASKS]
        raise UnknownName(f"no benchmark task {task!r}{closest(task, known)}; there are: all, {', '.join(known)}")
    if suite in ("metaworld", SMOKE_SUITE):
        return replace(_IMITATION, demos=25)
    if suite == "dmc":
        return replace(_IMITATION, episodes=10)
    if task == "trifinger/move_cube":
        return replace(
            _TRIFINGER,
            eval_epochs=_eval_epochs(25, 1000),
            observation=replace(_TRIFINGER.observation, cameras=["camera60", "goal"]),
            training=replace(_TRIFINGER.training, epochs=1000),
            cameras=("camera60", "goal"),
        )
    return _TRIFINGER if suite == "trifinger" else _IMITATION


@dataclass(frozen=True)
class Budget:
    """How much of the protocol is run; numbers by suite are upper bounds."""

    seeds: tuple[int, ...] = SEEDS
    demos: Mapping[str, int] = field(default_factory=dict)
    valid: int = 5  # further demonstrations, for the validation loss and the ablation of class tokens
    horizon: Mapping[str, int] = field(default_factory=dict)  # steps of an episode
    epoch_share: float = 1.0  # of the protocol's epochs
    evaluations: int | None = None  # of a run, evenly spaced, the last epoch among them; None is all
    episodes: int | None = None  # of each of them; None is the protocol's
    held_out_episodes: int = 50
    render: str = "benchmark"
    image_size: int | None = None  # [px]; None is the protocol's


BUDGETS = {
    "smoke": Budget(
        seeds=SEEDS[:1],
        demos={"adroit": 2, "dmc": 2, "metaworld": 2, "trifinger": 4, SMOKE_SUITE: 4},
        valid=1,
        horizon={"dmc": 20, "metaworld": 140},  # MetaWorld's experts need about that many
        epoch_share=0.04,
        evaluations=2,
        episodes=1,
        held_out_episodes=2,
        render="fast",
        image_size=64,
    ),
    "small": Budget(
        seeds=SEEDS[:1],
        demos={"adroit": 25, "dmc": 10, "metaworld": 25, "trifinger": 100, SMOKE_SUITE: 25},
        valid=2,
        horizon={"dmc": 200, "metaworld": 200},
        epoch_share=0.5,
        evaluations=4,
        episodes=5,
        held_out_episodes=20,
        render="fast",
    ),
    "full": Budget(),
}


def scaled_to(budget: Budget, protocol: Protocol, suite: str, final_only: bool = False) -> Protocol:
    """Return a suite's protocol scaled down to a budget.

    Args:
        final_only: evaluate after the last epoch only.
    """
    epochs = max(1, round(protocol.training.epochs * budget.epoch_share))
    evaluated = (epochs,) if final_only else _rescaled(protocol.eval_epochs, protocol.training.epochs, epochs)
    count = min(len(evaluated), budget.evaluations or len(evaluated))
    return replace(
        protocol,
        demos=min(protocol.demos, budget.demos.get(suite, protocol.demos)),
        episodes=min(protocol.episodes, budget.episodes or protocol.episodes),
        eval_epochs=tuple(evaluated[-(-len(evaluated) * (place + 1) // count) - 1] for place in range(count)),
        training=replace(protocol.training, epochs=epochs),
        image_size=min(protocol.image_size, budget.image_size or protocol.image_size),
    )


def end_to_end(protocol: Protocol) -> Protocol:
    """Return the protocol of a CNN that is trained end to end: smaller batches, about as many optimiser steps."""
    batch = min(protocol.training.batch, 64)
    epochs = max(1, -(-protocol.training.epochs * batch // protocol.training.batch))
    eval_epochs = _rescaled(protocol.eval_epochs, protocol.training.epochs, epochs)
    return replace(protocol, eval_epochs=eval_epochs, training=replace(protocol.training, batch=batch, epochs=epochs))


def _rescaled(eval_epochs: tuple[int, ...], epochs: int, to: int) -> tuple[int, ...]:
    """Return the evaluation epochs of a shorter training, at the same shares of it."""
    return tuple(sorted({max(1, -(-epoch * to // epochs)) for epoch in eval_epochs}))


def score_scale(suite: str, full_horizon: int, horizon: int) -> float:
    """Return the factor on a score where episodes are shorter than the task's own.

    The Control Suite's score is a sum over steps, 100 at most for all of them; the factor keeps the maximum at 100.
    """
    return full_horizon / horizon if suite == "dmc" else 1.0
