"""The table of tasks. A name is ``suite/task``; a suite is one file beside this one."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gymnasium.envs.registration import EnvSpec

from ..errors import UnknownName, closest
from . import adroit, dmc, metaworld, toy
from .rendering import quality, use_headless_gl
from .task import Task, TaskEnv
from .trifinger import tasks as trifinger


def _suites() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return, for each suite, the package it needs and its tasks."""
    return {
        "toy": ("mujoco", ("reach",)),
        "metaworld": ("metaworld", metaworld.TASKS),
        "dmc": ("dm_control", dmc.TASKS),
        "adroit": ("gymnasium_robotics", adroit.TASKS),
        "trifinger": ("robot_properties_fingers", trifinger.TASKS),
    }


def tasks(suite: str | None = None) -> list[str]:
    """Return the names of all tasks, or of one suite's, installed or not."""
    return [f"{key}/{task}" for key, (_, names) in _suites().items() if suite in (None, key) for task in names]


def installed() -> list[str]:
    """Return the names of the tasks whose packages are installed."""
    return [
        f"{key}/{task}"
        for key, (package, names) in _suites().items()
        if importlib.util.find_spec(package) is not None
        for task in names
    ]


@dataclass
class TaskSpec:
    """What to make: small, picklable, and recorded with data and results."""

    task: str
    observe: tuple[str, ...] = ("rgb", "proprio")
    cameras: tuple[str, ...] = ()
    image_size: int = 256
    render: str = "benchmark"
    horizon: int | None = None
    depth_sensor: str = "exact"

    def make(self) -> TaskEnv:
        """Build the environment."""
        return make(**asdict(self))


def make(
    task: str,
    observe: Sequence[str] = ("rgb", "proprio"),
    cameras: Sequence[str] = (),
    image_size: int = 256,
    render: str = "benchmark",
    horizon: int | None = None,
    depth_sensor: str = "exact",
    render_mode: str | None = None,
) -> TaskEnv:
    """Build an environment by name; the arguments are `TaskEnv`'s. `env.spec` records them.

    Raises:
        UnknownName: for a task, camera, modality or render quality that does not exist.
        MissingExtra: if the suite's package is not installed.
    """
    check_task(task)
    quality(render)
    settings: dict[str, Any] = dict(
        observe=tuple(observe),
        cameras=tuple(cameras),
        image_size=image_size,
        render=render,
        horizon=horizon,
        depth_sensor=depth_sensor,
        render_mode=render_mode,
    )
    env = TaskEnv(new_task(task), task, **settings)
    env.spec = EnvSpec(
        id=task,
        entry_point="pixio_robot.envs.registry:make",
        max_episode_steps=None,  # TaskEnv truncates by itself
        kwargs={"task": task, **settings},
        order_enforce=False,
        disable_env_checker=True,
    )
    return env


def check_task(task: str) -> None:
    """Refuse a name that is not in the table.

    Raises:
        UnknownName: listing what the suite has.
    """
    if task in tasks():
        return
    suite = task.split("/")[0]
    known = tasks(suite)
    if known:
        raise UnknownName(f"no task {task!r}{closest(task, known)}; suite {suite!r} has: {_listed(known)}")
    raise UnknownName(f"no task {task!r}{closest(task, tasks())}; suites: {', '.join(_suites())}, e.g. {tasks()[0]!r}")


def _listed(names: list[str]) -> str:
    return ", ".join(name.split("/")[1] for name in names)


def new_task(name: str) -> Task:
    """Return the bare simulator of a task in the table."""
    use_headless_gl()  # before MuJoCo is imported
    suite, task = name.split("/")
    makers: dict[str, Callable[[str], Task]] = {
        "toy": lambda _: toy.Reach(),
        "metaworld": metaworld.MetaWorld,
        "dmc": dmc.DMControl,
        "adroit": adroit.Adroit,
        "trifinger": trifinger.TriFinger,
    }
    return makers[suite](task)
