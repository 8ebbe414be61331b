"""The table of tasks. A task's name is ``suite/task``; a suite is an entry point in the group ``pixio_robot.suites``.

The built-in suites are entry points too (pyproject.toml). Another package adds tasks with one line:
``NAME = "module:SUITE"``, where ``SUITE`` is a `Suite`.
"""

import logging
from dataclasses import fields
from typing import Any

from ..errors import PixioError, UnknownName, closest
from ..plugins import find_plugin, plugin_names
from .rendering import use_headless_gl
from .suite import Suite
from .task import Task, TaskEnv
from .task_spec import TaskSpec

__all__ = ["TaskSpec", "check_task", "find_suite", "installed", "make", "make_env", "new_task", "suites", "tasks"]

log = logging.getLogger(__name__)


def find_suite(name: str) -> Suite:
    """Return a suite by the name of its entry point.

    Raises:
        UnknownName: if there is no such suite.
        PixioError: if its module cannot be imported, or the entry point is not a `Suite` of that name.
    """
    suite = find_plugin("suites", name)
    if not isinstance(suite, Suite) or suite.name != name:
        raise PixioError(
            f"the entry point {name!r} in the group pixio_robot.suites gives {suite!r:.80}, not Suite({name!r}, ...)"
        )
    return suite


def suites() -> list[Suite]:
    """Return all suites, sorted by name. One that cannot be imported is left out with a warning."""
    found = []
    for name in plugin_names("suites"):
        try:
            found.append(find_suite(name))
        except PixioError as error:
            log.warning("%s", error)
    return found


def tasks(suite: str | None = None) -> list[str]:
    """Return the names of all tasks, or of one suite's, installed or not; empty for a suite that does not exist."""
    if suite is None:
        return [f"{each.name}/{task}" for each in suites() for task in each.tasks]
    return [f"{suite}/{task}" for task in find_suite(suite).tasks] if suite in plugin_names("suites") else []


def installed() -> list[str]:
    """Return the names of the tasks whose packages are installed."""
    return [f"{each.name}/{task}" for each in suites() if each.is_installed for task in each.tasks]


def make(task: str, *, render_mode: str | None = None, **settings: Any) -> TaskEnv:
    """Build an environment by name, e.g. ``make("toy/reach", observe=("rgb", "depth"), image_size=128)``.

    Args:
        task: name in the registry.
        render_mode: None, or "rgb_array" for `TaskEnv.render`.
        **settings: the other fields of `TaskSpec`.

    Raises:
        UnknownName: for a task, camera, modality, render quality or setting that does not exist.
        BadInput: for a value that is out of range, or that the task does not provide.
        MissingExtra: if the suite's package is not installed.
    """
    known = [each.name for each in fields(TaskSpec)]
    for name in settings:
        if name not in known:
            raise UnknownName(f"make has no setting {name!r}{closest(name, known)}; there are: {', '.join(known[1:])}")
    settings |= {name: tuple(settings[name]) for name in ("observe", "cameras") if name in settings}
    return make_env(TaskSpec(task, **settings), render_mode)


def make_env(spec: TaskSpec, render_mode: str | None = None) -> TaskEnv:
    """Build the environment of a `TaskSpec`; raises as `make`."""
    check_task(spec.task)
    return TaskEnv(new_task(spec.task), spec, render_mode)


def check_task(task: str) -> None:
    """Refuse a name that is not in the table.

    Raises:
        UnknownName: listing what the suite has.
    """
    suite = task.partition("/")[0]
    known = tasks(suite)
    if task in known:
        return
    if known:
        listed = ", ".join(each.partition("/")[2] for each in known)
        raise UnknownName(f"no task {task!r}{closest(task, known)}; suite {suite!r} has: {listed}")
    everything = tasks()
    raise UnknownName(
        f"no task {task!r}{closest(task, everything)}; suites: {', '.join(plugin_names('suites'))}, e.g. 'toy/reach'"
    )


def new_task(name: str) -> Task:
    """Return the simulator of a task in the table, without the environment around it.

    Raises:
        UnknownName: for a task that does not exist.
        MissingExtra: if the suite's package is not installed.
        PixioError: if the suite gives something else than a `Task`.
    """
    check_task(name)
    use_headless_gl()  # before MuJoCo is imported
    suite, _, task = name.partition("/")
    made = find_suite(suite).make(task)
    if not isinstance(made, Task):
        raise PixioError(
            f"the suite {suite!r} made {type(made).__name__} for {task!r}, which is no Task; wrap a gymnasium "
            "environment in pixio_robot.envs.gymnasium_task.GymnasiumTask"
        )
    return made
