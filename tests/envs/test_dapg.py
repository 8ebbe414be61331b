"""DAPG policies: their pickles become a small network, whatever packages wrote them; other files are refused."""

import io
import os
import pickle
import subprocess
import sys
import types
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pixio_robot.envs.dapg import DapgPolicy, load_dapg
from pixio_robot.errors import BadInput, DataError, UnsafePickle

REAL = os.environ.get("PIXIO_ROBOT_DAPG", "")  # folder with pen-v0.pickle and relocate-v0.pickle
WIDTHS = {"pen": (45, 64, 64, 24), "relocate": (39, 32, 32, 30)}


class _OldTensor:
    """Pickles as a tensor of torch before 1.6."""

    def __init__(self, values: np.ndarray) -> None:
        self.tensor = torch.from_numpy(values)

    def __reduce__(self) -> Any:
        storage, file = self.tensor.untyped_storage(), io.BytesIO()
        typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=self.tensor.dtype, _internal=True)
        torch.save(typed, file, _use_new_zipfile_serialization=False)
        inner = _Call(torch.storage._load_from_bytes, file.getvalue())
        shape, stride = tuple(self.tensor.shape), self.tensor.stride()
        data = _Call(torch._utils._rebuild_tensor_v2, inner, 0, shape, stride, False, OrderedDict())
        return torch._utils._rebuild_parameter, (data, True, OrderedDict())


class _Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.parts = (function, arguments)

    def __reduce__(self) -> Any:
        return self.parts

    def __call__(self) -> None:
        """Only what can be called can be pickled as a call."""


_Functions = type("_VariableFunctions", (), {"__module__": "torch._C"})


def _tanh() -> Any:
    return _Call(getattr, _Functions, "tanh")


@pytest.fixture
def classes(monkeypatch: pytest.MonkeyPatch) -> dict[str, type]:
    """Stand-ins of mjrl's and old torch's classes, under their names, as long as a file is written."""
    made = {}
    for full in (
        "mjrl.policies.gaussian_mlp.MLP",
        "mjrl.utils.fc_network.FCNetwork",
        "torch.nn.modules.container.ModuleList",
        "torch.nn.modules.linear.Linear",
    ):
        module, name = full.rsplit(".", 1)
        made[name] = type(name, (), {"__module__": module})
        stand_in = types.ModuleType(module)
        setattr(stand_in, name, made[name])
        parts = module.split(".")
        for end in range(1, len(parts)):
            if parts[0] == "mjrl":
                monkeypatch.setitem(sys.modules, ".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
        monkeypatch.setitem(sys.modules, module, stand_in)
    monkeypatch.setattr(torch._C, "_VariableFunctions", _Functions)
    return made


def _with(kind: type, **values: Any) -> Any:
    made = kind()
    made.__dict__.update(values)
    return made


def _policy(classes: dict[str, type], widths: tuple[int, ...], **changed: Any) -> tuple[Any, list[np.ndarray]]:
    rng = np.random.default_rng(0)
    arrays, layers = [], OrderedDict()
    for index, (into, out) in enumerate(pairwise(widths)):
        weight, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((out, into), (out,)))
        arrays += [weight, bias]
        parameters = OrderedDict(weight=_OldTensor(weight), bias=_OldTensor(bias))
        layers[str(index)] = _with(classes["Linear"], _parameters=parameters, in_features=into)
    modules = OrderedDict(fc_layers=_with(classes["ModuleList"], _modules=layers))
    values: dict[str, Any] = {
        "_modules": modules,
        "in_shift": rng.normal(size=widths[0]).astype(np.float32),
        "in_scale": rng.uniform(0.5, 2, widths[0]).astype(np.float32),
        "out_shift": rng.normal(size=widths[-1]).astype(np.float32),
        "out_scale": rng.uniform(0.5, 2, widths[-1]).astype(np.float32),
        "nonlinearity": _tanh(),
        **changed,
    }
    arrays += [values[key] for key in ("in_shift", "in_scale", "out_shift", "out_scale")]
    model = _with(classes["FCNetwork"], **values)
    log_std = _OldTensor(np.zeros(widths[-1], np.float32))
    policy = _with(classes["MLP"], n=widths[0], m=widths[-1], model=model, old_model=model, log_std=log_std)
    policy.d = np.int64(7)
    return policy, arrays


@pytest.mark.parametrize("task", list(WIDTHS))
def test_the_network_has_the_values_of_the_file(task: str, classes: dict[str, type], tmp_path: Path) -> None:
    built, arrays = _policy(classes, WIDTHS[task])
    (tmp_path / "p.pickle").write_bytes(pickle.dumps(built, 3))
    policy = load_dapg(tmp_path / "p.pickle")
    w1, b1, w2, b2, w3, b3, in_shift, in_scale, out_shift, out_scale = arrays
    x = np.random.default_rng(1).normal(size=(5, WIDTHS[task][0])).astype(np.float32)
    hidden = np.tanh(np.tanh((x - in_shift) / (in_scale + 1e-8) @ w1.T + b1) @ w2.T + b2)
    expected = (hidden @ w3.T + b3) * out_scale + out_shift
    assert np.allclose(policy.act(x), expected, atol=1e-5) and policy.act(x).dtype == np.float32
    assert np.allclose(policy.act(x[0]), expected[0], atol=1e-5)
    assert (policy.observation_dim, policy.action_dim) == (WIDTHS[task][0], WIDTHS[task][-1])
    with pytest.raises(BadInput, match=f"observations of {WIDTHS[task][0]}"):
        policy.act(np.zeros(7))


def test_missing_shifts_and_scales_are_identities(classes: dict[str, type], tmp_path: Path) -> None:
    nothing = dict.fromkeys(("in_shift", "in_scale", "out_shift", "out_scale"))
    built, _ = _policy(classes, (4, 3, 2), **nothing)
    (tmp_path / "p.pickle").write_bytes(pickle.dumps(built, 3))
    policy = load_dapg(tmp_path / "p.pickle")
    assert not policy.in_shift.any() and (policy.in_scale == 1).all() and (policy.out_scale == 1).all()


def test_other_files_are_refused_with_a_message(classes: dict[str, type], tmp_path: Path) -> None:
    path = tmp_path / "p.pickle"
    wrong, _ = _policy(classes, (4, 3, 2))
    relu, _ = _policy(classes, (4, 3, 2), nonlinearity=_Call(getattr, _Functions, "relu"))
    odd, _ = _policy(classes, (4, 3, 2), in_shift=np.zeros(9, np.float32))
    shuffled, _ = _policy(classes, (4, 3, 2))
    layers = shuffled.model._modules["fc_layers"]._modules
    layers["1"], layers["0"] = layers["0"], layers["1"]
    for content, message in (
        ([1, 2], "holds no DAPG policy"),
        (wrong.model, "no mjrl.policies.gaussian_mlp.MLP"),
        (relu, "activation is not tanh"),
        (odd, "holds no DAPG policy"),
        (shuffled, "do not follow each other"),
    ):
        path.write_bytes(pickle.dumps(content, 3))
        with pytest.raises(DataError, match=message):
            load_dapg(path)
    whole = pickle.dumps(wrong, 3)
    for broken in (whole[:-20], b"", b"text"):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"p\.pickle"):
            load_dapg(path)
    with pytest.raises(DataError, match="no such file"):
        load_dapg(tmp_path / "none.pickle")


def test_code_in_the_file_is_not_run(classes: dict[str, type], tmp_path: Path) -> None:
    """The getattr of real files is read as text; a getattr that would run something is refused."""
    built, _ = _policy(classes, (4, 3, 2))
    built.evil = _Call(os.mkdir, str(tmp_path / "trap"))
    (tmp_path / "p.pickle").write_bytes(pickle.dumps(built, 3))
    with pytest.raises(UnsafePickle, match="mkdir"):
        load_dapg(tmp_path / "p.pickle")
    built.evil = _Call(_Call(getattr, _Functions, "mkdir"), str(tmp_path / "trap"))
    (tmp_path / "p.pickle").write_bytes(pickle.dumps(built, 3))
    with pytest.raises(UnsafePickle, match="calls a Record"):
        load_dapg(tmp_path / "p.pickle")
    assert not (tmp_path / "trap").exists()


def test_simulators_read_policies_without_torch() -> None:
    code = "import sys, pixio_robot.envs.dapg; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not REAL, reason="PIXIO_ROBOT_DAPG names no folder with pen-v0.pickle and relocate-v0.pickle")
@pytest.mark.parametrize("task", list(WIDTHS))
def test_the_published_files(task: str) -> None:
    policy = load_dapg(Path(REAL) / f"{task}-v0.pickle")
    assert [policy.observation_dim, *map(len, policy.biases)] == list(WIDTHS[task])
    assert np.isfinite(policy.act(np.zeros(policy.observation_dim))).all()


@pytest.mark.filterwarnings("ignore:.*")  # gymnasium-robotics warns about its versions
@pytest.mark.skipif(not REAL, reason="PIXIO_ROBOT_DAPG names no folder with pen-v0.pickle and relocate-v0.pickle")
@pytest.mark.parametrize(("task", "steps", "needed", "least"), [("pen", 100, 20, 1), ("relocate", 200, 25, 3)])
def test_the_published_policies_succeed(task: str, steps: int, needed: int, least: int) -> None:
    hand = pytest.importorskip("gymnasium_robotics.envs.adroit_hand", reason="needs the extra adroit")
    policy: DapgPolicy = load_dapg(Path(REAL) / f"{task}-v0.pickle")
    env = getattr(hand, f"AdroitHand{task.title()}Env")()
    successes = 0
    for seed in range(3):
        state, _ = env.reset(seed=seed)
        met = 0
        for _ in range(steps):
            state, _, _, _, info = env.step(np.clip(policy.act(state), -1, 1))
            met += bool(info["success"])
        successes += met > needed
    env.close()
    assert successes >= least
