"""AOTInductor: programs that torch compiles ahead of time for one device."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import BadInput
from ..manifest import Manifest
from .onnx import quiet
from .target import HALF_PRECISIONS, Arrays, ExecutionContext, LoadedProgram, ProgramOptions, Target, import_torch

if TYPE_CHECKING:
    from ..export.program import Program


class AotiTarget(Target):
    """Packages that torch loads without Python code of ours."""

    program_file = "program.pt2"
    library = "torch"
    unsupported: ClassVar[dict[str, str]] = {
        "int8": "int8 is not supported for AOTInductor; use target=openvino or onnx"
    }

    def write(self, program: "Program", folder: Path, options: ProgramOptions) -> dict[str, Any]:
        import torch

        if options.device == "cuda" and not torch.cuda.is_available():
            raise BadInput("device=cuda: AOTInductor compiles where the program will run, and this machine has no GPU")
        from torch import _inductor

        if options.precision in HALF_PRECISIONS:
            from ..export.precision import to_half

            to_half(program, options.precision)
        dynamic = None
        if options.batch is None:
            free = torch.export.Dim("batch", min=1, max=4096)
            dynamic = {"values": tuple({0: free} for _ in program.inputs)}
        program.to(options.device)
        example = tuple(value.to(options.device) for value in program.example(options.batch or 2))
        with quiet():
            exported = torch.export.export(program, example, dynamic_shapes=dynamic)
            _inductor.aoti_compile_and_package(exported, package_path=str(folder / self.program_file))
        return {"device": options.device}

    def open(self, path: Path, manifest: Manifest, threads: int | None) -> "AotiProgram":
        return AotiProgram(path, manifest, threads)


class AotiProgram(LoadedProgram):
    """A package, run by torch on the device it was compiled for."""

    def __init__(self, path: Path, manifest: Manifest, threads: int | None) -> None:
        torch = import_torch("running an AOTInductor bundle")
        from torch import _inductor

        if threads is not None:
            torch.set_num_threads(threads)
        self._order = [each.name for each in manifest.inputs], [each.name for each in manifest.outputs]
        self._device = torch.device(manifest.options.get("device", "cpu"))
        self._package = _inductor.aoti_load_package(str(path))

    def bind(self, inputs: Arrays, outputs: Arrays) -> ExecutionContext:
        ordered = {name: inputs[name] for name in self._order[0]}, {name: outputs[name] for name in self._order[1]}
        return _AotiContext(self._package, self._device, *ordered)


class _AotiContext(ExecutionContext):
    """Arrays are in the program's order."""

    def __init__(self, package: Any, device: Any, inputs: Arrays, outputs: Arrays) -> None:
        import torch

        self.inputs, self.outputs, self._package, self._device = inputs, outputs, package, device
        self._given = [torch.from_numpy(value) for value in inputs.values()]
        self._results = [torch.from_numpy(value) for value in outputs.values()]
        self._inference_mode = torch.inference_mode

    def run(self) -> None:
        with self._inference_mode():
            given = [each.to(self._device, non_blocking=True) for each in self._given]
            for result, value in zip(self._results, self._package(*given), strict=True):
                result.copy_(value)
