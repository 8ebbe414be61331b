"""Programs of bundles behind one call: arrays are bound once, and `run` computes from one set into the other.

Each library is imported where its programs are opened; only ``aoti`` and ``tensorrt`` need torch.
"""

import abc
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BadInput, CheckpointError, MissingExtra
from .bundle import Manifest

Arrays = dict[str, np.ndarray]


class ExecutionContext(abc.ABC):
    """A program with its arrays: fill the inputs in place, `run`, read the outputs."""

    inputs: Arrays
    outputs: Arrays

    @abc.abstractmethod
    def run(self) -> None:
        """Compute the outputs of the present inputs."""


class Program(abc.ABC):
    """A loaded program; several may be bound to it, each with arrays of its own."""

    @abc.abstractmethod
    def bind(self, inputs: Arrays, outputs: Arrays) -> ExecutionContext:
        """Bind arrays of fixed shapes, batch axis included."""


def open_program(card: Manifest, folder: Path, threads: int | None) -> Program:
    """Load a bundle's program.

    Args:
        threads: CPU threads; None is the library's choice.

    Raises:
        MissingExtra: if the library is not installed.
        BadInput: for a target that does not exist.
    """
    makers: dict[str, Any] = {
        "onnx": OnnxProgram,
        "openvino": OpenVinoProgram,
        "aoti": AotiProgram,
        "tensorrt": TensorRtProgram,
    }
    if card.target not in makers:
        raise BadInput(f"no target {card.target!r}; there are: {', '.join(makers)}")
    return makers[card.target](folder / card.program, card, threads)


class OnnxProgram(Program):
    """ONNX Runtime; on a GPU where its package was built for one."""

    def __init__(self, path: Path, card: Manifest, threads: int | None) -> None:
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

    def bind(self, inputs: Arrays, outputs: Arrays) -> "ExecutionContext":
        """Bind arrays."""
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


class OpenVinoProgram(Program):
    """OpenVINO on the CPU, or another of its devices where the card names one."""

    def __init__(self, path: Path, card: Manifest, threads: int | None) -> None:
        try:
            import openvino
        except ImportError as error:
            raise MissingExtra("running an OpenVINO bundle", "openvino") from error
        self._openvino = openvino
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        if "inference_precision" in card.options:
            settings["INFERENCE_PRECISION_HINT"] = card.options["inference_precision"]
        self.model = openvino.Core().compile_model(str(path), card.options.get("device", "CPU"), settings)

    def bind(self, inputs: Arrays, outputs: Arrays) -> "ExecutionContext":
        """Bind arrays."""
        return _OpenVinoContext(self._openvino, self.model, inputs, outputs)


class _OpenVinoContext(ExecutionContext):
    def __init__(self, openvino: Any, model: Any, inputs: Arrays, outputs: Arrays) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._request = model.create_infer_request()
        for name, value in inputs.items():
            self._request.set_tensor(name, openvino.Tensor(value, shared_memory=True))
        for name, value in outputs.items():
            self._request.set_tensor(name, openvino.Tensor(value, shared_memory=True))

    def run(self) -> None:
        self._request.infer()


class AotiProgram(Program):
    """A package of AOTInductor, which torch runs on the device it was compiled for."""

    def __init__(self, path: Path, card: Manifest, threads: int | None) -> None:
        torch = _torch("running an AOTInductor bundle")
        from torch import _inductor

        if threads is not None:
            torch.set_num_threads(threads)
        self._order = [port.name for port in card.inputs], [port.name for port in card.outputs]
        self._device = torch.device(card.options.get("device", "cpu"))
        self._package = _inductor.aoti_load_package(str(path))

    def bind(self, inputs: Arrays, outputs: Arrays) -> "ExecutionContext":
        """Bind arrays."""
        return _AotiContext(self._package, self._device, self._order, inputs, outputs)


class _AotiContext(ExecutionContext):
    def __init__(
        self, package: Any, device: Any, order: tuple[list[str], list[str]], inputs: Arrays, outputs: Arrays
    ) -> None:
        import torch

        self.inputs, self.outputs, self._package, self._device = inputs, outputs, package, device
        self._given = [torch.from_numpy(inputs[name]) for name in order[0]]
        self._taken = [torch.from_numpy(outputs[name]) for name in order[1]]
        self._mode = torch.inference_mode

    def run(self) -> None:
        with self._mode():
            given = [each.to(self._device, non_blocking=True) for each in self._given]
            for place, value in zip(self._taken, self._package(*given), strict=True):
                place.copy_(value)


class TensorRtProgram(Program):
    """A TensorRT engine; torch holds its arrays on the GPU."""

    def __init__(self, path: Path, card: Manifest, threads: int | None) -> None:
        self._torch = _torch("running a TensorRT bundle")
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

    def bind(self, inputs: Arrays, outputs: Arrays) -> "ExecutionContext":
        """Bind arrays."""
        return _TensorRtContext(self._torch, self._engine, inputs, outputs)


class _TensorRtContext(ExecutionContext):
    def __init__(self, torch: Any, engine: Any, inputs: Arrays, outputs: Arrays) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._stream = torch.cuda.Stream()
        self._context = engine.create_execution_context()
        self._given: list[tuple[Any, Any]] = []  # on the host, on the GPU
        self._taken: list[tuple[Any, Any]] = []
        for arrays, pairs in ((inputs, self._given), (outputs, self._taken)):
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
            for host, there in self._taken:
                host.copy_(there, non_blocking=True)
        self._stream.synchronize()


def _torch(what: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise BadInput(f"{what} needs torch: pip install torch; ONNX and OpenVINO bundles do without") from error
    return torch
