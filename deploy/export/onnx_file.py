"""Programs as ONNX files: opset 20, every number's type written into the graph."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from ...errors import BadInput, MissingExtra
from .program import Program

OPSET = 20  # LayerNormalization and Gelu are one operator each; what TensorRT 10 and 11 both read
_LARGEST = 1_500_000_000  # bytes of weights beside which a protobuf, 2 GiB at most, keeps room for the graph


def write_onnx(program: Program, path: Path, batch: int | None) -> list[str]:
    """Write a program as ONNX.

    Args:
        batch: observations a call; None leaves it open.

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
    inputs, outputs = ([port.name for port in ports] for ports in (program.inputs, program.outputs))
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
            raise BadInput(f"torch cannot write this program as ONNX: {str(error).splitlines()[0]}") from error
    assert exported is not None
    large = sum(each.numel() * each.element_size() for each in [*program.parameters(), *program.buffers()]) > _LARGEST
    exported.save(str(path), external_data=large)
    first = exported.model.graph.inputs[0].shape
    if batch is None and first is not None and isinstance(first[0], int):  # the exporter falls back in silence
        raise BadInput("torch cannot leave this program's batch open; give batch=1")
    onnx.checker.check_model(str(path), full_check=True)  # types and shapes of every edge
    return sorted(file.name for file in path.parent.glob(f"{path.name}*"))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what exporters print, log and warn of their own insides from the user."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
