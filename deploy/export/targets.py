"""One program, four targets: ONNX Runtime, OpenVINO, AOTInductor, TensorRT."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from ...errors import BadInput, MissingExtra
from .int8 import feeds, quantise_onnx, quantise_openvino
from .onnx_file import OPSET, quiet, write_onnx
from .precision import HALVES, stage_of, to_half
from .program import Program
from .recorded import Recorded

PROGRAMS = {"onnx": "program.onnx", "openvino": "program.xml", "aoti": "program.pt2", "tensorrt": "program.engine"}
_REFUSED = {
    (
        "onnx",
        "bf16",
    ): "ONNX Runtime multiplies no bf16 on CPUs; use target=openvino, aoti or tensorrt, or fp16",
    ("aoti", "int8"): "AOTInductor programs are not quantised here; use target=openvino or onnx",
}
_LARGEST_BATCH = 32  # of a TensorRT engine with batch=null


def check_target(program: Program, target: str, precision: str) -> None:
    """Refuse what cannot be written, before anything is.

    Raises:
        BadInput: naming what to use instead.
        MissingExtra: if a library is not installed.
    """
    if (target, precision) in _REFUSED:
        raise BadInput(_REFUSED[target, precision])
    if precision != "fp32":
        stage_of(program, precision)
    if target == "tensorrt":
        _tensorrt()
    if target == "openvino":
        _openvino()
        if precision == "int8":
            try:
                import nncf  # noqa: F401
            except ImportError as error:
                raise MissingExtra("int8 for OpenVINO", "openvino") from error


def write_program(
    program: Program,
    folder: Path,
    target: str,
    precision: str,
    batch: int | None,
    device: str,
    calibration: Recorded | None,
) -> tuple[list[str], dict[str, Any]]:
    """Write a program for a target into a folder.

    Args:
        program: in fp32; it may be changed.
        batch: observations a call; None is any number.
        device: where an AOTInductor program will run: cpu, cuda.
        calibration: frames for int8.

    Returns:
        The names of its files, and options for the card.
    """
    path = folder / PROGRAMS[target]
    options: dict[str, Any] = {}
    if target == "aoti":
        if precision in HALVES:
            to_half(program, precision)
        _write_aoti(program, path, batch, device)
        return [path.name], {"device": device}
    inputs = feeds(program, calibration) if calibration is not None else []
    if precision in HALVES and target != "openvino":
        to_half(program, precision)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        source = Path(scratch) / "fp32.onnx"
        if target == "onnx" and precision != "int8":
            return write_onnx(program, path, batch), {"opset": OPSET}
        write_onnx(program, source, batch)
        if target == "openvino":
            options = _write_openvino(source, path, precision, inputs)
        else:
            if precision == "int8":
                typed = path if target == "onnx" else Path(scratch) / "int8.onnx"
                quantise_onnx(source, typed, inputs, symmetric=target == "tensorrt")
                source = typed
            if target == "tensorrt":
                _write_tensorrt(source, path, batch)
            options = {"opset": OPSET}
    return sorted(file.name for file in folder.iterdir()), options


def _write_aoti(program: Program, path: Path, batch: int | None, device: str) -> None:
    """Compile with AOTInductor into a package that torch loads without Python code of ours."""
    if device == "cuda" and not torch.cuda.is_available():
        raise BadInput("device=cuda: AOTInductor compiles where the program will run, and this machine has no GPU")
    from torch import _inductor

    dynamic = None
    if batch is None:
        free = torch.export.Dim("batch", min=1, max=4096)
        dynamic = {"values": tuple({0: free} for _ in program.inputs)}
    program.to(device)
    example = tuple(value.to(device) for value in program.example(batch or 2))
    with quiet():
        exported = torch.export.export(program, example, dynamic_shapes=dynamic)
        _inductor.aoti_compile_and_package(exported, package_path=str(path))


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise MissingExtra("target=openvino", "openvino") from error
    return openvino


def _write_openvino(source: Path, path: Path, precision: str, inputs: list[dict[str, Any]]) -> dict[str, Any]:
    openvino = _openvino()
    model = openvino.convert_model(str(source))
    if precision == "int8":
        model = quantise_openvino(model, source, inputs)
    half = precision in HALVES
    openvino.save_model(model, str(path), compress_to_fp16=half)
    hint = {"fp16": "f16", "bf16": "bf16"}.get(precision, "f32")
    return {"inference_precision": hint, "opset": OPSET}


def _tensorrt() -> Any:
    try:
        import tensorrt
    except ImportError as error:
        raise BadInput(
            "TensorRT is not installed here. An engine fits one kind of GPU and one version of TensorRT: run this "
            "command on the machine that will use it (Jetsons have TensorRT from JetPack, elsewhere: pip install "
            "tensorrt). target=onnx writes the typed ONNX that it is built from"
        ) from error
    return tensorrt


def _write_tensorrt(source: Path, path: Path, batch: int | None) -> None:
    """Build an engine from typed ONNX: TensorRT 10 and 11 both take every number's type from the graph."""
    tensorrt = _tensorrt()
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
