"""What is done for a task of CortexBench: as its authors released it, and as an honest comparison needs it.

CortexBench: Majumdar et al. 2023, "Where are we in the search for an artificial visual cortex for embodied
intelligence?", arXiv 2303.18240; settings of its released code, restated.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..envs import adroit, dmc, metaworld
from ..envs.registry import tasks
from ..envs.trifinger import tasks as trifinger
from ..errors import UnknownName, closest
from ..policies.settings import EmbeddingSettings, PolicySettings

SUITES: dict[str, tuple[str, ...]] = {
    "adroit": adroit.CORTEXBENCH,
    "dmc": dmc.CORTEXBENCH,
    "metaworld": metaworld.CORTEXBENCH,
    "trifinger": trifinger.TASKS,
}
TASKS = tuple(f"{suite}/{task}" for suite, names in SUITES.items() for task in names)
SMOKE_SUITE = "toy"  # a suite to try the machinery on; no part of CortexBench
NAMES = {"adroit": "Adroit", "dmc": "DMC", "metaworld": "MetaWorld", "trifinger": "TriFinger", SMOKE_SUITE: "toy"}
SUCCESS = ("adroit", "metaworld", SMOKE_SUITE)  # their score is success; the others' is a share of what could be had
HAS_PROPRIO = (
    "adroit",
    "metaworld",
    "trifinger",
    SMOKE_SUITE,
)  # have proprioception, so that a blind policy is possible
COLUMNS = ("both", "cortexbench", "honest")
SEEDS = (100, 200, 300)
FIRST_DEMO = 54_321  # seed of the first demonstration, the released code's own
TEST_STARTS = 30_000  # seed of the first of TriFinger's 25 starts, which all of its policies are tried on


@dataclass(frozen=True)
class Protocol:
    """How one task is learned and judged."""

    demos: int  # to train on
    episodes: int  # of each evaluation
    moments: tuple[int, ...]  # epochs after which the policy is evaluated; their best is what was published
    embedding: EmbeddingSettings
    policy: PolicySettings
    cameras: tuple[str, ...] = ()  # () is the task's default
    image_size: int = 256  # of the images [px]; encoders then resize them as they are used to
    first_start: int | None = None  # seed of an evaluation's first episode; None is the policy's own seed


def _moments(every: int, epochs: int) -> tuple[int, ...]:
    """Return after how many epochs there is an evaluation.

    The released code counts epochs from 0 and evaluates after 5, 10, ..., 95 and the last one, 99.
    """
    return (*range(every + 1, epochs, every), epochs)


_IMITATION = Protocol(
    demos=100,
    episodes=25,
    moments=_moments(5, 100),
    embedding=EmbeddingSettings(),  # FLARE of three frames, proprioception appended
    policy=PolicySettings(),
)
_TRIFINGER = Protocol(
    demos=100,
    episodes=25,
    moments=_moments(5, 100),
    embedding=EmbeddingSettings(frames="single"),
    policy=PolicySettings(
        layers=[2000, 2000], batch_norm=False, output_init_scale=1.0, optimizer="adamw", lr=1e-4, batch=32, epochs=100
    ),
    image_size=270,
    first_start=TEST_STARTS,
)


def protocol_of(task: str) -> Protocol:
    """Return a task's protocol, also for tasks of its suite that CortexBench leaves out.

    Raises:
        UnknownName: for a task of no suite of CortexBench.
    """
    suite = task.partition("/")[0]
    if suite not in NAMES or task not in tasks(suite):
        of_suite = tasks(suite) if suite in NAMES else []
        there = of_suite or [*SUITES, *TASKS]
        raise UnknownName(f"no benchmark task {task!r}{closest(task, there)}; there are: all, {', '.join(there)}")
    if suite in ("metaworld", SMOKE_SUITE):
        return replace(_IMITATION, demos=25)
    if suite == "dmc":
        return replace(_IMITATION, episodes=10)
    if task == "trifinger/move_cube":
        return replace(
            _TRIFINGER,
            moments=_moments(25, 1000),
            embedding=replace(_TRIFINGER.embedding, cameras=["camera60", "goal"]),
            policy=replace(_TRIFINGER.policy, epochs=1000),
            cameras=("camera60", "goal"),
        )
    return _TRIFINGER if suite == "trifinger" else _IMITATION


@dataclass(frozen=True)
class Budget:
    """How much of the protocol is run; numbers by suite are upper bounds."""

    seeds: tuple[int, ...] = SEEDS
    demos: Mapping[str, int] = field(default_factory=dict)
    valid: int = 5  # further demonstrations, on which class tokens are left out
    horizon: Mapping[str, int] = field(default_factory=dict)  # steps of an episode
    share: float = 1.0  # of the epochs
    moments: int | None = None  # evaluations of a run, evenly spread, the last among them; None is all
    episodes: int | None = None  # of each of them; None is the protocol's
    honest_episodes: int = 50
    render: str = "benchmark"
    image_size: int | None = None  # [px]; None is the protocol's


BUDGETS = {
    "smoke": Budget(
        seeds=SEEDS[:1],
        demos={"adroit": 2, "dmc": 2, "metaworld": 2, "trifinger": 4, SMOKE_SUITE: 4},
        valid=1,
        horizon={"dmc": 20, "metaworld": 140},  # below, MetaWorld's experts are not done
        share=0.04,
        moments=2,
        episodes=1,
        honest_episodes=2,
        render="fast",
        image_size=64,
    ),
    "small": Budget(
        seeds=SEEDS[:1],
        demos={"adroit": 25, "dmc": 10, "metaworld": 25, "trifinger": 100, SMOKE_SUITE: 25},
        valid=2,
        horizon={"dmc": 200, "metaworld": 200},
        share=0.5,
        moments=4,
        episodes=5,
        honest_episodes=20,
        render="fast",
    ),
    "full": Budget(),
}


def within(protocol: Protocol, suite: str, budget: Budget, released: bool) -> Protocol:
    """Return what is left of a suite's protocol under a budget.

    Args:
        released: evaluate at all moments, not after the last epoch only.
    """
    epochs = max(1, round(protocol.policy.epochs * budget.share))
    moments = _rescaled(protocol.moments, protocol.policy.epochs, epochs) if released else (epochs,)
    count = min(len(moments), budget.moments or len(moments))
    return replace(
        protocol,
        demos=min(protocol.demos, budget.demos.get(suite, protocol.demos)),
        episodes=min(protocol.episodes, budget.episodes or protocol.episodes),
        moments=tuple(moments[-(-len(moments) * (place + 1) // count) - 1] for place in range(count)),
        policy=replace(protocol.policy, epochs=epochs),
        image_size=min(protocol.image_size, budget.image_size or protocol.image_size),
    )


def end_to_end(protocol: Protocol) -> Protocol:
    """Return a protocol for a network that learns to see: smaller batches, about as many steps as the others take."""
    batch = min(protocol.policy.batch, 64)
    epochs = max(1, -(-protocol.policy.epochs * batch // protocol.policy.batch))
    moments = _rescaled(protocol.moments, protocol.policy.epochs, epochs)
    return replace(protocol, moments=moments, policy=replace(protocol.policy, batch=batch, epochs=epochs))


def _rescaled(moments: tuple[int, ...], epochs: int, to: int) -> tuple[int, ...]:
    """Return moments of a shorter training, at the same shares of it."""
    return tuple(sorted({max(1, -(-moment * to // epochs)) for moment in moments}))


def score_scale(suite: str, own_horizon: int, horizon: int) -> float:
    """Return what a score is multiplied with where episodes are cut.

    The Control Suite's score is a sum over steps, out of 100 for all of them; of fewer steps it stays out of 100.
    """
    return own_horizon / horizon if suite == "dmc" else 1.0
