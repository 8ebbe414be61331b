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
_HEAD = "policy.head.layers"


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
        if header.get("kind") != "policy" or not _on_the_state(arguments):
            raise DataError(
                f"{path} holds {header.get('kind', 'something else')} {arguments.get('policy', '')}; an expert is an "
                "MLP on the privileged state: pixio-robot train_rl obs=state, or train_bc encoder=state"
            )
        try:
            self.task, spec = str(arguments["provenance"]["task"]), arguments["spec"]
            self.layers = _layers(tensors, arguments["config"], spec["statistics"])
            self.state_dim = int(spec["observation"]["state"]["shape"][0])
            self.action_dim = int(spec["action"]["shape"][0])
        except KeyError as error:
            raise DataError(f"{path} lacks {error}; it was written by another version") from error

    def act(self, state: np.ndarray) -> np.ndarray:
        """Return the action, (..., A) float32 in [-1, 1], for the privileged state, (..., S)."""
        hidden = np.asarray(state, np.float32)
        for layer in self.layers:
            hidden = layer(hidden)
        return np.clip(hidden[..., : self.action_dim], -1, 1)  # the first step of a chunk


def _on_the_state(arguments: dict[str, Any]) -> bool:
    """Return whether a policy is an MLP that observes the privileged state alone."""
    observed = arguments.get("spec", {}).get("observation", {})
    return arguments.get("policy") == "mlp" and list(observed) == ["state"]


def _layers(tensors: dict[str, np.ndarray], config: dict[str, Any], statistics: dict[str, Any]) -> list[Layer]:
    """Return the policy's layers as functions, in order; dropout is the identity."""
    scaled = {key: each for key, each in statistics.items() if each["mode"] != "none"}
    layers: list[Layer] = []
    if "state" in scaled:
        offset, scale = _numbers(scaled["state"])
        layers.append(lambda x: (x - offset) / scale)
    place = 0
    if config["batch_norm"]:
        names = ("running_mean", "running_var", "weight", "bias")
        mean, var, weight, bias = (tensors[f"{_HEAD}.0.{name}"] for name in names)
        deviation = weight / np.sqrt(var + np.float32(_EPSILON))
        layers.append(lambda x: (x - mean) * deviation + bias)
        place = 1
    for _ in config["layers"]:
        layers += [_linear(tensors, place), _activation(config["activation"])]
        place += 3  # a linear layer, dropout, an activation
    layers.append(_linear(tensors, place))
    if config["tanh_output"]:
        layers.append(np.tanh)
    if "action" in scaled:
        first, factor = _numbers(scaled["action"])
        layers.append(lambda x: x[..., : len(factor)] * factor + first)
    return layers


def _numbers(statistics: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the offset and the scale of a feature, (P,) each."""
    return np.asarray(statistics["offset"], np.float32), np.asarray(statistics["scale"], np.float32)


def _linear(tensors: dict[str, np.ndarray], place: int) -> Layer:
    weight, bias = tensors[f"{_HEAD}.{place}.weight"], tensors[f"{_HEAD}.{place}.bias"]
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
