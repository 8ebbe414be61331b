"""Simulated scenes to render: registered tasks with their experts, and any MJCF file."""

import abc
import glob
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadInput, MissingExtra, UnknownName
from .mujoco_task import MujocoTask
from .registry import new_task, tasks
from .rendering import use_headless_gl
from .task import initial_state_hash

_MAX_STEPS = 150  # of a task, then it is reset
_JOINT_RANGE = 0.7  # share of a joint's range in which its random positions lie


class Scene(abc.ABC):
    """A MuJoCo scene with cameras. Everything random comes from the generator that is passed in."""

    model: Any  # mujoco.MjModel
    data: Any  # mujoco.MjData
    cameras: tuple[str, ...]  # the fixed cameras, as the model names them
    initial_state_hash: str  # as in demonstrations and evaluations; "" for a scene without initial states

    @abc.abstractmethod
    def reset(self, rng: np.random.Generator) -> None:
        """Draw a new initial state."""

    @abc.abstractmethod
    def advance(self, rng: np.random.Generator) -> None:
        """Advance the simulation by a random time."""


class TaskScene(Scene):
    """A registered task. Its expert acts with noise, whose size each reset draws; without expert it moves at random.

    Args:
        name: task in the registry.

    Raises:
        BadInput: if it is not simulated by MuJoCo, because only MuJoCo models can be randomised.
    """

    def __init__(self, name: str) -> None:
        task = new_task(name)
        if not isinstance(task, MujocoTask):
            task.close()
            raise BadInput(f"{name} is not simulated by MuJoCo; render_frames renders MuJoCo models only")
        self._task = task
        self.model, self.data = self._task.model, self._task.data
        self.cameras = (self._task.camera_in_model(self._task.cameras[0]),)
        self._steps, self._noise, self._random_action = 0, 0.0, np.zeros(self._task.action_dim)

    def reset(self, rng: np.random.Generator) -> None:
        self._task.reset(rng)
        self.initial_state_hash = initial_state_hash(self._task)
        self._steps, self._noise = 0, float(rng.choice([0.0, 0.3, 1.0]))
        self._random_action = rng.uniform(-1, 1, self._task.action_dim)
        for _ in range(
            int(rng.integers(0, 30)) if rng.random() < 0.5 else 0
        ):  # so that not all images are near initial states
            self._step(self._random_action)

    def advance(self, rng: np.random.Generator) -> None:
        if self._steps >= _MAX_STEPS:
            self.reset(rng)
        for _ in range(int(rng.integers(1, 10))):
            try:
                action = self._task.expert_action()
            except UnknownName:  # no expert
                action = self._random_action
            self._step(action + self._noise * rng.standard_normal(len(self._random_action)))

    def _step(self, action: np.ndarray) -> None:
        self._task.step(np.clip(action, -1, 1).astype(np.float32))
        self._steps += 1


class MjcfScene(Scene):
    """A model from a file: random joint positions and random actuator commands.

    Args:
        path: of the MJCF file.

    Raises:
        BadInput: if MuJoCo cannot read it, or it has no geoms.
    """

    initial_state_hash = ""

    def __init__(self, path: str) -> None:
        import mujoco

        self._mujoco: Any = mujoco
        try:
            self.model = mujoco.MjModel.from_xml_path(path)
        except ValueError as error:
            raise BadInput(f"MuJoCo cannot read {path}: {error}") from error
        if not self.model.ngeom:
            raise BadInput(f"{path} has no geoms, so nothing can be rendered; name the file of a whole scene")
        self.data = mujoco.MjData(self.model)
        self.cameras = tuple(self.model.camera(index).name for index in range(self.model.ncam))
        self.cameras = tuple(name for name in self.cameras if name)

    def reset(self, rng: np.random.Generator) -> None:
        self._mujoco.mj_resetData(self.model, self.data)
        for joint in range(self.model.njnt):
            if self.model.jnt_type[joint] not in (self._mujoco.mjtJoint.mjJNT_SLIDE, self._mujoco.mjtJoint.mjJNT_HINGE):
                continue  # free and ball joints stay where the model has them
            low, high = self.model.jnt_range[joint] if self.model.jnt_limited[joint] else (-0.5, 0.5)
            middle, half = (low + high) / 2, _JOINT_RANGE * (high - low) / 2
            self.data.qpos[self.model.jnt_qposadr[joint]] = rng.uniform(middle - half, middle + half)
        self._mujoco.mj_forward(self.model, self.data)

    def advance(self, rng: np.random.Generator) -> None:
        limits = np.where(self.model.actuator_ctrllimited[:, None], self.model.actuator_ctrlrange, (-1, 1))
        self.data.ctrl[:] = rng.uniform(limits[:, 0], limits[:, 1])
        for _ in range(max(1, int(rng.uniform(0.01, 0.15) / self.model.opt.timestep))):
            self._mujoco.mj_step(self.model, self.data)
        if not np.isfinite(self.data.qpos).all() or self.data.time == 0:  # MuJoCo resets an unstable simulation
            self.reset(rng)


def open_scene(name: str) -> Scene:
    """Open a scene by one of the names that `scene_names` gives.

    Raises:
        MissingExtra: if its package is not installed.
        BadInput: if its file cannot be read.
    """
    use_headless_gl()
    return TaskScene(name) if name in tasks() else MjcfScene(_path(name))


def scene_names(sources: list[str]) -> list[str]:
    """Return the names of the tasks and files that sources select.

    Args:
        sources: each a task ("metaworld/hammer"), a suite ("metaworld"), an MJCF file, a pattern of such files
            ("scenes/*.xml"), or a pattern in an installed package ("dm_control:suite/*.xml").

    Raises:
        UnknownName, BadInput, MissingExtra: naming the source that selects nothing.
    """
    names: list[str] = []
    for source in sources:
        if source in tasks():
            names.append(source)
        elif found := tasks(source):
            names += found
        else:
            names += _files(source)
    if not names:
        raise BadInput("scenes is empty; name at least one task, suite or MJCF file")
    return names


def _files(source: str) -> list[str]:
    package, pattern = source.rpartition(":")[0], _path(source)
    files = sorted(path for path in glob.glob(pattern, recursive=True) if path.endswith(".xml"))
    if not files:
        raise UnknownName(
            f"no scene {source!r}: it is no task (e.g. metaworld/hammer), no suite (e.g. metaworld), and there is "
            f"no .xml file at {pattern}"
        )
    if package:
        root = _path(f"{package}:")
        return [f"{package}:{Path(file).relative_to(root).as_posix()}" for file in files]
    return files


def _path(source: str) -> str:
    """Return the file, or the pattern of files, of a source that is no task."""
    package, colon, pattern = source.partition(":")
    if not colon:
        return source
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.origin:
        extras = {"dm_control": "dmc", "gymnasium_robotics": "adroit", "metaworld": "metaworld"}
        if package in extras:
            raise MissingExtra(source, extras[package])
        raise UnknownName(f"no installed package {package!r} for the scenes {source!r}")
    return str(Path(found.origin).parent / pattern)
