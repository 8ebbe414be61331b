"""TensorRT: engines built from typed ONNX for one kind of GPU and one version of TensorRT."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import BadInput, CheckpointError
from ..manifest import Manifest
from .onnx import OPSET, write_onnx, write_quantised_onnx
from .target import HALF_PRECISIONS, Arrays, ExecutionContext, LoadedProgram, ProgramOptions, Target, import_torch

if TYPE_CHECKING:
    from ..export.program import Program

_LARGEST_BATCH = 32  # of an engine with batch=null


class TensorRtTarget(Target):
    """Engines; TensorRT 10 and 11 both take every number's type from the graph."""

    program_file = "program.engine"
    library = "torch"

    def check(self, program: "Program", precision: str) -> None:
        super().check(program, precision)
        _import_tensorrt()

    def write(self, program: "Program", folder: Path, options: ProgramOptions) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            source = Path(scratch) / "typed.onnx"
            if options.precision == "int8":
                write_quantised_onnx(program, source, options, symmetric=True)
            else:
                if options.precision in HALF_PRECISIONS:
                    from ..export.precision import to_half

                    to_half(program, options.precision)
                write_onnx(program, source, options.batch)
            build_engine(source, folder / self.program_file, options.batch)
        return {"opset": OPSET}

    def open(self, path: Path, manifest: Manifest, threads: int | None) -> "TensorRtProgram":
        return TensorRtProgram(path)


class TensorRtProgram(LoadedProgram):
    """An engine; torch holds its arrays on the GPU."""

    def __init__(self, path: Path) -> None:
        self._torch = import_torch("running a TensorRT bundle")
        try:
            import tensorrt
        except ImportError as error:
            raise BadInput(
                "this bundle is a TensorRT engine and TensorRT is not installed here; export it on this machine"
            ) from error
        runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
        self._engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise CheckpointError(
                f"TensorRT {tensorrt.__version__} cannot read this engine; it fits one GPU and version: export it again"
            )

    def bind(self, inputs: Arrays, outputs: Arrays) -> ExecutionContext:
        return _TensorRtContext(self._torch, self._engine, inputs, outputs)


class _TensorRtContext(ExecutionContext):
    def __init__(self, torch: Any, engine: Any, inputs: Arrays, outputs: Arrays) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._stream = torch.cuda.Stream()
        self._context = engine.create_execution_context()
        self._given: list[tuple[Any, Any]] = []  # on the host, on the GPU
        self._results: list[tuple[Any, Any]] = []
        for arrays, pairs in ((inputs, self._given), (outputs, self._results)):
            for name, value in arrays.items():
                host = torch.from_numpy(value)
                there = host.to("cuda")
                if arrays is inputs:
                    self._context.set_input_shape(name, tuple(value.shape))
                self._context.set_tensor_address(name, there.data_ptr())
                pairs.append((host, there))
        self._torch = torch

    def run(self) -> None:
        with self._torch.cuda.stream(self._stream):
            for host, there in self._given:
                there.copy_(host, non_blocking=True)
            self._context.execute_async_v3(self._stream.cuda_stream)
            for host, there in self._results:
                host.copy_(there, non_blocking=True)
        self._stream.synchronize()


def build_engine(source: Path, path: Path, batch: int | None) -> None:
    """Build an engine from a typed ONNX file.

    Args:
        batch: observations per call; None is any number up to 32.

    Raises:
        BadInput: if TensorRT is not installed, or does not take the program.
    """
    tensorrt = _import_tensorrt()
    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    typed = getattr(tensorrt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # 11 knows nothing else
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(source)):
        errors = "; ".join(str(parser.get_error(index).desc()) for index in range(parser.num_errors))
        raise BadInput(f"TensorRT {tensorrt.__version__} does not take this program: {errors}")
    config = builder.create_builder_config()
    if batch is None:
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            rest = tuple(tensor.shape)[1:]
            profile.set_shape(tensor.name, (1, *rest), (1, *rest), (_LARGEST_BATCH, *rest))
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BadInput(f"TensorRT {tensorrt.__version__} could not build an engine; its own messages are above")
    path.write_bytes(bytes(engine))


def _import_tensorrt() -> Any:
    try:
        import tensorrt
    except ImportError as error:
        raise BadInput(
            "TensorRT is not installed here. An engine fits one kind of GPU and one version of TensorRT: run this "
            "command on the machine that will use it (Jetsons have TensorRT from JetPack, elsewhere: pip install "
            "tensorrt). target=onnx writes the typed ONNX that it is built from"
        ) from error
    return tensorrt
