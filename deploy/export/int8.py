"""Eight-bit programs: ranges are calibrated on recorded frames, only the encoder's blocks are quantised.

Preprocessing, patch embedding, fusion and head stay as they are: they are small, and they broke first when they did not
(docs/log.md).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import MissingExtra
from ..runtime.bundle import STARTS
from .onnx_file import quiet
from .program import Program
from .recorded import Recorded

_COMPUTE = {"MatMul", "Convolution", "Multiply", "Add", "Subtract", "Divide", "ReduceMean", "Concat", "MVN", "Select"}

Feed = dict[str, np.ndarray]


@torch.inference_mode()
def feeds(program: Program, recorded: Recorded) -> list[Feed]:
    """Return the program's inputs, batch 1, at every recorded frame, histories included."""
    found: list[Feed] = []
    for stretch in recorded.clips:
        kept: Feed = {}
        for step, observation in enumerate(stretch):
            feed = {port.name: observation[port.name][None] for port in program.observation}
            for port in program.inputs[len(feed) :]:
                if port.name == STARTS:
                    feed[port.name] = np.array([step == 0])
                else:
                    feed[port.name] = kept.get(port.name, np.zeros((1, *port.shape), np.float32))
            found.append(feed)
            if not program.memory:
                continue
            _, *newest = program(*(torch.from_numpy(feed[port.name]) for port in program.inputs))
            for memory, value in zip(program.memory, newest, strict=True):
                name, new = memory.history.name, value.numpy()[:, None]
                past = kept.get(name, np.repeat(new, memory.frames - 1, axis=1))
                kept[name] = np.concatenate([past, new], axis=1)[:, 1:]
    return found


def quantise_onnx(source: Path, target: Path, feeds: list[Feed], symmetric: bool) -> None:
    """Write an ONNX program with Q/DQ pairs around the encoder's linear layers; weights are int8 a channel.

    Products of activations, attention's two, stay in fp32: quantised too, tokens were twice as far off and slower.

    Args:
        symmetric: activations as int8 with zero point 0, which TensorRT wants; else uint8, which x86 multiplies faster.

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
            self._feeds: Iterator[Feed] = iter(feeds)

        def get_next(self) -> Feed | None:
            return next(self._feeds, None)

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


def quantise_openvino(model: Any, source: Path, feeds: list[Feed]) -> Any:
    """Return an OpenVINO model quantised by NNCF: post-training, for transformers (SmoothQuant, bias correction).

    Args:
        model: converted from `source`.
        source: the ONNX file, which knows what belongs to the encoder's blocks.

    Raises:
        MissingExtra: if NNCF is not installed.
    """
    try:
        import nncf
    except ImportError as error:
        raise MissingExtra("int8 for OpenVINO", "openvino") from error
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
            nncf.Dataset(feeds),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(feeds),
            ignored_scope=nncf.IgnoredScope(names=outside, validate=False),
        )


def in_blocks(node: Any) -> bool:
    """Tell whether an ONNX node belongs to a block of the encoder, by the module it came from."""
    scopes = next((each.value for each in node.metadata_props if each.key == "pkg.torch.onnx.name_scopes"), "")
    return "network.blocks" in scopes
