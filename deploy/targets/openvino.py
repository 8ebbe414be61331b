"""OpenVINO: programs in its intermediate representation, on the CPU or another of its devices."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import MissingExtra
from ..manifest import Manifest
from .onnx import OPSET, in_blocks, quiet, write_onnx
from .target import HALF_PRECISIONS, Arrays, ExecutionContext, LoadedProgram, ProgramOptions, Target

if TYPE_CHECKING:
    from ..export.program import Program

_COMPUTE = {"MatMul", "Convolution", "Multiply", "Add", "Subtract", "Divide", "ReduceMean", "Concat", "MVN", "Select"}
_HINTS = {"fp16": "f16", "bf16": "bf16"}


class OpenVinoTarget(Target):
    """Programs for OpenVINO."""

    program_file = "program.xml"
    library = "openvino"

    def check(self, program: "Program", precision: str) -> None:
        super().check(program, precision)
        _import_openvino("target=openvino")
        if precision == "int8":
            _import_nncf()

    def write(self, program: "Program", folder: Path, options: ProgramOptions) -> dict[str, Any]:
        openvino = _import_openvino("target=openvino")
        inputs: list[Arrays] = []
        if options.precision == "int8":
            from ..export.calibration import calibration_inputs

            inputs = calibration_inputs(program, options.calibration)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            source = Path(scratch) / "fp32.onnx"
            write_onnx(program, source, options.batch)
            model = openvino.convert_model(str(source))
            if options.precision == "int8":
                model = quantise_openvino(model, source, inputs)
            half = options.precision in HALF_PRECISIONS
            openvino.save_model(model, str(folder / self.program_file), compress_to_fp16=half)
        return {"inference_precision": _HINTS.get(options.precision, "f32"), "opset": OPSET}

    def open(self, path: Path, manifest: Manifest, threads: int | None) -> "OpenVinoProgram":
        return OpenVinoProgram(path, manifest, threads)


class OpenVinoProgram(LoadedProgram):
    """A compiled model, on the CPU unless the manifest names another device."""

    def __init__(self, path: Path, manifest: Manifest, threads: int | None) -> None:
        self._openvino = _import_openvino("running an OpenVINO bundle")
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        if "inference_precision" in manifest.options:
            settings["INFERENCE_PRECISION_HINT"] = manifest.options["inference_precision"]
        device = manifest.options.get("device", "CPU")
        self.model = self._openvino.Core().compile_model(str(path), device, settings)

    def bind(self, inputs: Arrays, outputs: Arrays) -> ExecutionContext:
        return _OpenVinoContext(self._openvino, self.model, inputs, outputs)


class _OpenVinoContext(ExecutionContext):
    def __init__(self, openvino: Any, model: Any, inputs: Arrays, outputs: Arrays) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._request = model.create_infer_request()
        for name, value in [*inputs.items(), *outputs.items()]:
            self._request.set_tensor(name, openvino.Tensor(value, shared_memory=True))

    def run(self) -> None:
        self._request.infer()


def quantise_openvino(model: Any, source: Path, inputs: list[Arrays]) -> Any:
    """Return an OpenVINO model quantised by NNCF: post-training, for transformers (SmoothQuant, bias correction).

    Args:
        model: converted from `source`.
        source: the ONNX file, which records what belongs to the encoder's blocks.
        inputs: of the program, one call each, to calibrate on.

    Raises:
        MissingExtra: if NNCF is not installed.
    """
    nncf = _import_nncf()
    import onnx

    graph = onnx.load(str(source), load_external_data=False).graph
    inside = {name for node in graph.node if in_blocks(node) for name in (node.name, *node.output)}
    outside = [
        operation.get_friendly_name()
        for operation in model.get_ops()
        if operation.get_friendly_name().split("/")[0] not in inside and operation.get_type_name() in _COMPUTE
    ]
    with quiet():
        return nncf.quantize(
            model,
            nncf.Dataset(inputs),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(inputs),
            ignored_scope=nncf.IgnoredScope(names=outside, validate=False),
        )


def _import_openvino(purpose: str) -> Any:
    try:
        import openvino
    except ImportError as error:
        raise MissingExtra(purpose, "openvino") from error
    return openvino


def _import_nncf() -> Any:
    try:
        import nncf
    except ImportError as error:
        raise MissingExtra("int8 for OpenVINO", "openvino") from error
    return nncf
