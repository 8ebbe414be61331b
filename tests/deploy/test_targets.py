"""Export targets are plug-ins: one that another package provides writes and opens bundles like the built-in ones."""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pixio_robot import cli, plugins
from pixio_robot.deploy.manifest import Manifest, TensorSpec
from pixio_robot.deploy.runtime import Runtime
from pixio_robot.deploy.targets.onnx import write_onnx
from pixio_robot.deploy.targets.target import Arrays, ExecutionContext, LoadedProgram, ProgramOptions, Target
from pixio_robot.errors import BadInput, UnknownName


class _Context(ExecutionContext):
    def __init__(self, mean: float, inputs: Arrays, outputs: Arrays) -> None:
        self._mean, self.inputs, self.outputs = mean, inputs, outputs

    def run(self) -> None:
        self.outputs["cls"][:] = self._mean
        self.outputs["patches"][:] = self.inputs["rgb"].mean()


class _Program(LoadedProgram):
    def __init__(self, mean: float) -> None:
        self._mean = mean

    def bind(self, inputs: Arrays, outputs: Arrays) -> ExecutionContext:
        return _Context(self._mean, inputs, outputs)


class MeanTarget(Target):
    """Writes the mean of an encoder's first class token, and returns it for every image."""

    program_file = "mean.json"
    library = "json"
    unsupported = {"int8": "the mean is not quantised"}  # noqa: RUF012

    def write(self, program: object, folder: Path, options: ProgramOptions) -> dict[str, object]:
        mean = float(program(*program.example(1))[0].mean())  # type: ignore[operator, attr-defined]
        (folder / self.program_file).write_text(json.dumps(mean))
        return {"batch": options.batch}

    def open(self, path: Path, manifest: Manifest, threads: int | None) -> LoadedProgram:
        return _Program(json.loads(path.read_text()))


@pytest.fixture
def mean_target(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = metadata.EntryPoint("mean", f"{__name__}:MeanTarget", "pixio_robot.targets")
    known = plugins._entries("targets")
    monkeypatch.setattr(metadata.EntryPoint, "load", lambda entry: MeanTarget)
    monkeypatch.setattr(plugins, "_entries", lambda group: {**known, "mean": entry} if group == "targets" else {})


@pytest.mark.usefixtures("mean_target")
def test_a_target_of_another_package_writes_and_opens_bundles(tiny_file: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.run(["export", f"encoder={tiny_file}", "target=mean", "verify=false", "out=bundle"]) == 0
    manifest = Manifest.read("bundle")
    assert (manifest.target, manifest.program, list(manifest.files)) == ("mean", "mean.json", ["mean.json"])
    runtime = Runtime.load("bundle")
    tokens = runtime.encode(np.full(manifest.observation[0].shape, 7, np.uint8))
    assert (tokens["patches"] == 7).all() and np.ptp(tokens["cls"]) == 0
    words = ["target=mean", "precision=int8", "verify=false", "out=other"]
    assert cli.run(["export", f"encoder={tiny_file}", *words]) == 1
    assert "the mean is not quantised" in capsys.readouterr().err and not Path("other").exists()


def test_an_unknown_target_lists_what_there_is(tiny_file: Path, toy_bundle: Path) -> None:
    manifest = Manifest.read(toy_bundle)
    manifest.target = "onx"
    from pixio_robot.deploy.runtime import open_program

    with pytest.raises(UnknownName, match=r"did you mean 'onnx'.*aoti, onnx, openvino, tensorrt"):
        open_program(manifest, toy_bundle, None)


@pytest.mark.parametrize("name", plugins.plugin_names("targets"))
def test_targets_name_a_file_and_refuse_what_they_cannot_write(name: str) -> None:
    target = plugins.find_plugin("targets", name)()
    assert isinstance(target, Target) and target.program_file.startswith("program.") and target.library
    for precision in target.unsupported:
        with pytest.raises(BadInput, match="use target="):
            target.check(None, precision)


def test_an_operation_without_onnx_form_is_named(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    torch = pytest.importorskip("torch")

    class Eigenvalues(torch.nn.Module):  # type: ignore[misc, name-defined]
        inputs = (TensorSpec("x", (3, 3), "float32"),)
        outputs = (TensorSpec("y", (3,), "float32"),)

        def forward(self, x: Any) -> Any:
            return torch.linalg.eigvals(x).real

        def example(self, batch: int) -> tuple[Any, ...]:
            return (torch.rand(batch, 3, 3),)

    program: Any = Eigenvalues()
    with pytest.raises(BadInput, match=r"cannot write this program as ONNX: .*linalg_eig.*is_causal=False"):
        write_onnx(program, tmp_path / "program.onnx", 1)
    assert not list(tmp_path.iterdir())
