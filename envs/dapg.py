"""The published DAPG policies for Adroit's hand (Rajeswaran et al. 2018, arXiv 1709.10087), as plain arrays.

Their pickles (hand_dapg, Apache-2.0) hold objects of mjrl and of an old torch. They are read as data: neither package
is needed, and no code of the file is run. The network is observation - tanh - tanh - mean action.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadInput, DataError
from ..restricted_pickle import Record, read_pickle
from ..torch_files import TENSORS

_CLASSES = (
    "mjrl.policies.gaussian_mlp.MLP",
    "mjrl.utils.fc_network.FCNetwork",
    "torch.nn.modules.container.ModuleList",
    "torch.nn.modules.linear.Linear",
    "torch.nn.backends.thnn._get_thnn_function_backend",
    "torch._C._VariableFunctions",
    "builtins.getattr",  # of torch._C._VariableFunctions, 'tanh'; recorded, never called
)
_SAFE = 1e-8  # added to input scales, as mjrl does


@dataclass(frozen=True)
class DapgPolicy:
    """A small network; I observations, A actions.

    Attributes:
        weights: of each layer, (out, in) float32.
        biases: of each layer, (out,) float32.
        in_shift, in_scale: of the observation, (I,) float32.
        out_shift, out_scale: of the action, (A,) float32.
        log_std: of the exploration noise in training, (A,) float32; `act` is deterministic.
    """

    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    in_shift: np.ndarray
    in_scale: np.ndarray
    out_shift: np.ndarray
    out_scale: np.ndarray
    log_std: np.ndarray

    @property
    def observation_dim(self) -> int:
        """Return the width of an observation."""
        return int(self.weights[0].shape[1])

    @property
    def action_dim(self) -> int:
        """Return the width of an action."""
        return len(self.biases[-1])

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return the mean action, (..., A) float32, not clipped, for Adroit's state observation, (..., I)."""
        if np.shape(observation)[-1:] != (self.observation_dim,):
            raise BadInput(f"the policy needs observations of {self.observation_dim}; got {np.shape(observation)}")
        hidden = (np.asarray(observation, np.float32) - self.in_shift) / (self.in_scale + _SAFE)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = np.tanh(hidden @ weight.T + bias)
        output = hidden @ self.weights[-1].T + self.biases[-1]
        return (output * self.out_scale + self.out_shift).astype(np.float32)


def load_dapg(path: Path | str) -> DapgPolicy:
    """Read a policy's pickle.

    Raises:
        DataError: if it is no DAPG policy, or damaged; UnsafePickle if it needs code to run.
    """
    path = Path(path)
    policy = read_pickle(path, records=_CLASSES, allowed=TENSORS)
    try:
        model = _object(policy, "mjrl.policies.gaussian_mlp.MLP").state["model"]
        values: Mapping[str, Any] = _object(model, "mjrl.utils.fc_network.FCNetwork").state
        _check_tanh(values["nonlinearity"])
        layers = list(values["_modules"]["fc_layers"].state["_modules"].values())
        parameters = [_object(layer, "torch.nn.modules.linear.Linear").state["_parameters"] for layer in layers]
        weights = tuple(np.asarray(each["weight"], np.float32) for each in parameters)
        biases = tuple(np.asarray(each["bias"], np.float32) for each in parameters)
        widths = [weights[0].shape[1], *map(len, biases)]
        if any(w.shape != (out, into) for w, into, out in zip(weights, widths[:-1], widths[1:], strict=True)):
            raise ValueError(f"layers of shapes {[each.shape for each in weights]} do not follow each other")

        def scaling(name: str, width: int, otherwise: float) -> np.ndarray:
            value = values.get(name)
            filled = np.full(width, otherwise) if value is None else np.asarray(value).reshape(width)
            return filled.astype(np.float32)

        return DapgPolicy(
            weights,
            biases,
            in_shift=scaling("in_shift", widths[0], 0),
            in_scale=scaling("in_scale", widths[0], 1),
            out_shift=scaling("out_shift", widths[-1], 0),
            out_scale=scaling("out_scale", widths[-1], 1),
            log_std=np.asarray(policy.state["log_std"], np.float32).reshape(widths[-1]),
        )
    except (KeyError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise DataError(f"{path} holds no DAPG policy ({type(error).__name__}: {error})") from error


def _object(value: Any, name: str) -> Record:
    if not isinstance(value, Record) or value.name != name:
        raise ValueError(f"{value!r:.60} is no {name}")
    return value


def _check_tanh(function: Any) -> None:
    """Refuse a network with another activation; the file names it by a recorded getattr."""
    if not isinstance(function, Record) or function.arguments[-1:] != ("tanh",):
        raise ValueError(f"its activation is not tanh but {function!r:.60}")
