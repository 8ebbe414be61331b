"""What is done for a task of CortexBench: as its authors released it, and as an honest comparison needs it.

CortexBench: Majumdar et al. 2023, "Where are we in the search for an artificial visual cortex for embodied
intelligence?", arXiv 2303.18240; settings of its released code, restated.
"""

from dataclasses import dataclass, replace

from ...envs import adroit, dmc, metaworld
from ...envs.registry import tasks
from ...envs.trifinger import tasks as trifinger
from ...errors import UnknownName, closest
from ...schemas import EmbeddingSettings, PolicySettings

SUITES: dict[str, tuple[str, ...]] = {
    "adroit": adroit.CORTEXBENCH,
    "metaworld": metaworld.CORTEXBENCH,
    "dmc": dmc.CORTEXBENCH,
    "trifinger": trifinger.TASKS,
}
TASKS = tuple(f"{suite}/{task}" for suite, names in SUITES.items() for task in names)
SEEDS = (100, 200, 300)
FIRST_DEMO = 54_321  # seed of the first demonstration, the released code's own


@dataclass(frozen=True)
class Protocol:
    """How one task is learned and judged.

    Rolling out starts at the cell's own seed, as released, and at `HELD_OUT_SEED` for the honest column.
    """

    demos: int  # to train on
    episodes: int  # of each evaluation
    moments: tuple[int, ...]  # epochs after which the policy is evaluated; their best is what was published
    embedding: EmbeddingSettings
    policy: PolicySettings
    cameras: tuple[str, ...] = ()  # () is the task's default


def _moments(every: int, epochs: int) -> tuple[int, ...]:
    """Return every so many epochs and the last, counted from 1; the released code counts from 0 and begins at `every`."""
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
        layers=[2000, 2000], batch_norm=False, last_scale=1.0, optimizer="adamw", lr=1e-4, batch=32, epochs=100
    ),
)


def protocol_of(task: str) -> Protocol:
    """Return a task's protocol, also for tasks of its suite that CortexBench leaves out.

    Raises:
        UnknownName: for a task of no suite of CortexBench.
    """
    suite, _, name = task.partition("/")
    if suite not in SUITES or task not in tasks(suite):
        raise UnknownName(f"no benchmark task {task!r}{closest(task, TASKS)}; there are: {', '.join(TASKS)}")
    if suite == "metaworld":
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
    """How much of a protocol is run."""

    demos: int | None = None  # at most; None is the protocol's
    horizon: int | None = None  # steps of an episode, at most
    epochs: int | None = None
    episodes: int | None = None
    honest_episodes: int = 50
    moments: int | None = None  # evaluations of a run, the last among them
    seeds: int = 3
    render: str = "benchmark"
    image_size: int = 256


BUDGETS = {
    "smoke": Budget(4, 20, 4, 2, 2, 1, 1, "fast", 64),
    "small": Budget(10, 200, 50, 10, 10, 1, 1, "fast", 256),
    "full": Budget(),
}


def within(protocol: Protocol, budget: Budget) -> Protocol:
    """Return what is left of a protocol under a budget."""
    epochs = min(protocol.policy.epochs, budget.epochs or protocol.policy.epochs)
    moments = tuple(moment for moment in protocol.moments if moment < epochs) + (epochs,)
    return replace(
        protocol,
        demos=min(protocol.demos, budget.demos or protocol.demos),
        episodes=min(protocol.episodes, budget.episodes or protocol.episodes),
        moments=moments if budget.moments is None else moments[-budget.moments :],
        policy=replace(protocol.policy, epochs=epochs),
    )
