"""Policies on the privileged state, run without torch: a checkpoint of train_rl or train_bc as an expert.

Shapes: S state, A action.
"""

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .task import TaskEnv

Layer = Callable[[np.ndarray], np.ndarray]
_EPSILON = 1e-5  # torch's, of batch normalisation
SUFFIX = ".safetensors"


class StateActor:
    """A multilayer perceptron from the privileged state to an action, as trained with `encoder=state`.

    Args:
        path: the checkpoint.

    Raises:
        DataError: if it is no checkpoint of such a policy.
    """

    def __init__(self, path: Path | str) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as file:
                header = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path} cannot be read as a policy checkpoint: {error}") from error
        arguments: dict[str, Any] = json.loads(header.get("arguments", "{}"))
        if header.get("kind") != "policy" or arguments.get("kind") != "state":
            raise DataError(
                f"{path} holds {header.get('kind', 'something else')} of kind {arguments.get('kind')!r}; an expert is "
                "a policy on the privileged state: pixio-robot train_rl obs=state, or train_bc encoder=state"
            )
        try:
            self.task, settings = str(arguments["environment"]["task"]), arguments["policy"]
            self.layers = _layers(tensors, settings)
            self.state_dim, self.action_dim = int(arguments["embedder"]["proprio_dim"]), int(arguments["actions"])
        except KeyError as error:
            raise DataError(f"{path} lacks {error}; it was written by another version") from error

    def act(self, state: np.ndarray) -> np.ndarray:
        """Return the action, (..., A) float32 in [-1, 1], for the privileged state, (..., S)."""
        hidden = np.asarray(state, np.float32)
        for layer in self.layers:
            hidden = layer(hidden)
        return np.clip(hidden[..., : self.action_dim], -1, 1)  # the first step of a chunk


def _layers(tensors: dict[str, np.ndarray], settings: dict[str, Any]) -> list[Layer]:
    """Return the head's layers as functions, in order; dropout is the identity."""
    layers: list[Layer] = []
    place = 0
    if settings["batch_norm"]:
        names = ("running_mean", "running_var", "weight", "bias")
        mean, var, weight, bias = (tensors[f"head.layers.0.{name}"] for name in names)
        scale = weight / np.sqrt(var + np.float32(_EPSILON))
        layers.append(lambda x: (x - mean) * scale + bias)
        place = 1
    for _ in settings["layers"]:
        layers += [_linear(tensors, place), _activation(settings["activation"])]
        place += 3  # a linear layer, dropout, an activation
    layers.append(_linear(tensors, place))
    return [*layers, np.tanh] if settings["tanh_output"] else layers


def _linear(tensors: dict[str, np.ndarray], place: int) -> Layer:
    weight, bias = tensors[f"head.layers.{place}.weight"], tensors[f"head.layers.{place}.bias"]
    return lambda x: x @ weight.T + bias


def _activation(name: str) -> Layer:
    if name == "relu":
        return lambda x: np.maximum(x, 0)
    if name == "tanh":
        return np.tanh
    from scipy.special import erf

    return lambda x: x * np.float32(0.5) * (1 + erf(x / np.float32(np.sqrt(2))))


def shipped_expert(task: str) -> StateActor | None:
    """Return the trained expert that the package ships for a task, e.g. "dmc/cheetah_run", or None."""
    file = resources.files(__package__).joinpath("experts", task.replace("/", "-") + SUFFIX)
    with resources.as_file(file) as path:
        return StateActor(path) if path.is_file() else None


def expert_of(env: TaskEnv, path: str | None) -> Callable[[], np.ndarray]:
    """Return a function that gives the expert's action for the present state, (A,) in [-1, 1].

    Args:
        path: a checkpoint of train_rl or train_bc on the privileged state, or a file that the task can load; None for
            the task's own expert.

    Raises:
        DataError: if the file holds no expert of this task.
        BadInput: if the task has no experts in files.
    """
    if path is None:
        return env.task.expert_action
    if Path(path).suffix != SUFFIX:
        env.task.use_expert(path)
        return env.task.expert_action
    actor = StateActor(path)
    if actor.task != env.name:
        raise DataError(f"{path} is an expert of {actor.task}; the task is {env.name}")
    return lambda: actor.act(env.task.privileged_state())
