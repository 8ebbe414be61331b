"""Programs of bundles behind one call: arrays are bound once, and `run` computes from one set into the other.

Each library is imported where its programs are opened; only ``aoti`` and ``tensorrt`` need torch.
"""

import abc
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BadInput, MissingExtra
from .bundle import Card

Arrays = dict[str, np.ndarray]


class Bound(abc.ABC):
    """A program with its arrays: fill the inputs in place, `run`, read the outputs."""

    inputs: Arrays
    outputs: Arrays

    @abc.abstractmethod
    def run(self) -> None:
        """Compute the outputs of the present inputs."""


class Program(abc.ABC):
    """A loaded program; several may be bound to it, each with arrays of its own."""

    @abc.abstractmethod
    def bind(self, inputs: Arrays, outputs: Arrays) -> Bound:
        """Bind arrays of fixed shapes, batch axis included."""


def open_program(card: Card, folder: Path, threads: int | None) -> Program:
    """Load a bundle's program.

    Args:
        threads: CPU threads; None is the library's choice.

    Raises:
        MissingExtra: if the library is not installed.
        BadInput: for a target that does not exist.
    """
    makers = {"onnx": OnnxProgram, "openvino": OpenVinoProgram}
    if card.target not in makers:
        raise BadInput(f"no target {card.target!r}; there are: {', '.join(makers)}")
    return makers[card.target](folder / card.program, card, threads)


class OnnxProgram(Program):
    """ONNX Runtime; on a GPU where its package was built for one."""

    def __init__(self, path: Path, card: Card, threads: int | None) -> None:
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
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)

    def bind(self, inputs: Arrays, outputs: Arrays) -> "Bound":
        """Bind arrays."""
        return _OnnxBound(self.session, inputs, outputs)


class _OnnxBound(Bound):
    def __init__(self, session: Any, inputs: Arrays, outputs: Arrays) -> None:
        self.inputs, self.outputs, self._session = inputs, outputs, session
        self._binding = session.io_binding()
        for name, value in inputs.items():
            self._binding.bind_input(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
        for name, value in outputs.items():
            self._binding.bind_output(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding)


class OpenVinoProgram(Program):
    """OpenVINO on the CPU, or another of its devices where the card names one."""

    def __init__(self, path: Path, card: Card, threads: int | None) -> None:
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

    def bind(self, inputs: Arrays, outputs: Arrays) -> "Bound":
        """Bind arrays."""
        return _OpenVinoBound(self._openvino, self.model, inputs, outputs)


class _OpenVinoBound(Bound):
    def __init__(self, openvino: Any, model: Any, inputs: Arrays, outputs: Arrays) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._request = model.create_infer_request()
        for name, value in inputs.items():
            self._request.set_tensor(name, openvino.Tensor(value, shared_memory=True))
        for name, value in outputs.items():
            self._request.set_tensor(name, openvino.Tensor(value, shared_memory=True))

    def run(self) -> None:
        self._request.infer()
