"""ONNX Runtime: programs as ONNX files of opset 20, with every number's type written into the graph."""

import contextlib
import io
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import BadInput, MissingExtra
from ..manifest import Manifest
from .target import HALF_PRECISIONS, Arrays, ExecutionContext, LoadedProgram, ProgramOptions, Target

if TYPE_CHECKING:
    from ..export.program import Program

OPSET = 20  # LayerNormalization and Gelu are one operator each; TensorRT 10 and 11 both read it
_LARGEST = 1_500_000_000  # bytes of weights up to which they fit beside the graph in one protobuf, 2 GiB at most


class OnnxTarget(Target):
    """Programs for ONNX Runtime; on a GPU if its package was built for one."""

    program_file = "program.onnx"
    library = "onnxruntime"
    unsupported: ClassVar[dict[str, str]] = {
        "bf16": "bf16 matmul unsupported on CPU by ONNX Runtime; use target=openvino, aoti or tensorrt, or fp16"
    }

    def write(self, program: "Program", folder: Path, options: ProgramOptions) -> dict[str, Any]:
        path = folder / self.program_file
        if options.precision == "int8":
            write_quantised_onnx(program, path, options, symmetric=False)
        else:
            if options.precision in HALF_PRECISIONS:
                from ..export.precision import to_half

                to_half(program, options.precision)
            write_onnx(program, path, options.batch)
        return {"opset": OPSET}

    def open(self, path: Path, manifest: Manifest, threads: int | None) -> "OnnxProgram":
        return OnnxProgram(path, threads)


class OnnxProgram(LoadedProgram):
    """A session of ONNX Runtime."""

    def __init__(self, path: Path, threads: int | None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtra("running an ONNX bundle", "export") from error
        options = onnxruntime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors
        wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
        self._options = onnxruntime.RunOptions
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)

    def bind(self, inputs: Arrays, outputs: Arrays) -> ExecutionContext:
        return _OnnxContext(self.session, self._options(), inputs, outputs)


class _OnnxContext(ExecutionContext):
    def __init__(self, session: Any, options: Any, inputs: Arrays, outputs: Arrays) -> None:
        self.inputs, self.outputs, self._session = inputs, outputs, session
        self._options = options  # made once: without them each call of ONNX Runtime 1.32 keeps some 120 bytes
        self._binding = session.io_binding()
        for name, value in inputs.items():
            self._binding.bind_input(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
        for name, value in outputs.items():
            self._binding.bind_output(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding, self._options)


def write_onnx(program: "Program", path: Path, batch: int | None) -> list[str]:
    """Write a program as ONNX.

    Args:
        batch: observations per call; None leaves it open.

    Returns:
        The names of the files written; large weights are beside the graph.

    Raises:
        MissingExtra: if onnx or onnxscript is not installed.
        BadInput: if torch cannot express the program in ONNX.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtra("exporting a program", "export") from error
    import torch

    inputs, outputs = ([tensor.name for tensor in tensors] for tensors in (program.inputs, program.outputs))
    dynamic = None
    if batch is None:
        free = torch.export.Dim("batch", min=1, max=4096)
        dynamic = {"values": tuple({0: free} for _ in inputs)}
    with quiet():
        try:
            exported = torch.onnx.export(
                program,
                program.example(batch or 2),
                dynamo=True,
                opset_version=OPSET,
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=dynamic,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise BadInput(
                f"torch cannot write this program as ONNX: {_cause(error)}. A torch transformer with an attention mask "
                "needs is_causal=False; other operations must have an ONNX form"
            ) from error
    if exported is None:
        raise BadInput("torch wrote no ONNX program; this version of torch is not supported")
    large = sum(each.numel() * each.element_size() for each in [*program.parameters(), *program.buffers()]) > _LARGEST
    exported.save(str(path), external_data=large)
    first = exported.model.graph.inputs[0].shape
    if batch is None and first is not None and isinstance(first[0], int):  # the exporter falls back without a warning
        raise BadInput("torch cannot leave this program's batch open; give batch=1")
    onnx.checker.check_model(str(path), full_check=True)  # types and shapes of every edge
    return sorted(file.name for file in path.parent.glob(f"{path.name}*"))


def write_quantised_onnx(program: "Program", path: Path, options: ProgramOptions, symmetric: bool) -> None:
    """Write a program as ONNX with int8 weights; arguments are those of `write_onnx` and `quantise_onnx`."""
    from ..export.calibration import calibration_inputs

    inputs = calibration_inputs(program, options.calibration)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        source = Path(scratch) / "fp32.onnx"
        write_onnx(program, source, options.batch)
        quantise_onnx(source, path, inputs, symmetric)


def quantise_onnx(source: Path, target: Path, inputs: list[Arrays], symmetric: bool) -> None:
    """Write an ONNX program with Q/DQ pairs around the encoder's linear layers; weights are int8 per channel.

    Products of activations, attention's two, stay in fp32: quantised too, tokens were twice as far off and slower.

    Args:
        inputs: of the program, one call each, to calibrate on.
        symmetric: activations as int8 with zero point 0, which TensorRT needs; else uint8, which x86 multiplies faster.

    Raises:
        MissingExtra: if ONNX Runtime is not installed.
    """
    try:
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    except ImportError as error:
        raise MissingExtra("int8 by calibration", "export") from error

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._inputs: Iterator[Arrays] = iter(inputs)

        def get_next(self) -> Arrays | None:
            return next(self._inputs, None)

    graph = onnx.load(str(source), load_external_data=False).graph
    known = {each.name for each in graph.initializer}
    linear = [
        node.name
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm") and in_blocks(node) and any(name in known for name in node.input)
    ]
    with quiet():
        quantize_static(
            str(source),
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_quantize=linear,
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            use_external_data_format=(source.parent / f"{source.name}.data").is_file(),
            extra_options={"ActivationSymmetric": symmetric},
        )


def in_blocks(node: Any) -> bool:
    """Return whether an ONNX node belongs to a block of the encoder, by the module it came from."""
    scopes = next((each.value for each in node.metadata_props if each.key == "pkg.torch.onnx.name_scopes"), "")
    return "network.blocks" in scopes


def _cause(error: BaseException) -> str:
    """Return the first line of the error at the root of a chain, without colours of a terminal."""
    while (deeper := error.__cause__) is not None:
        error = deeper
    lines = re.sub("\x1b\\[[0-9;]*m", "", str(error)).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress what exporters print, log and warn about their own internals."""
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
