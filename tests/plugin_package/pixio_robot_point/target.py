from pathlib import Path

import torch

from pixio_robot.deploy.export.program import Program
from pixio_robot.deploy.manifest import Manifest
from pixio_robot.deploy.targets import target
from pixio_robot.errors import BadInput


class Pt2Target(target.Target):
    """Programs of `torch.export`, which run without the code that they were made from."""

    program_file, library = "program.pt2", "torch"
    unsupported = dict.fromkeys(("fp16", "bf16", "int8"), "target=pt2 writes fp32 only")

    def write(self, program: Program, folder: Path, options: target.ProgramOptions) -> dict:
        if options.batch is None:
            raise BadInput("target=pt2 needs a fixed number of observations; give batch=1")
        exported = torch.export.export(program, program.example(options.batch))
        torch.export.save(exported, folder / self.program_file)
        return {}

    def open(self, path: Path, manifest: Manifest, threads: int | None) -> target.LoadedProgram:
        return Pt2Program(path, manifest)


class Pt2Program(target.LoadedProgram):
    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.module, self.manifest = torch.export.load(path).module(), manifest

    def bind(self, inputs: target.Arrays, outputs: target.Arrays) -> target.ExecutionContext:
        return Pt2Context(self, inputs, outputs)


class Pt2Context(target.ExecutionContext):
    def __init__(self, program: Pt2Program, inputs: target.Arrays, outputs: target.Arrays) -> None:
        self.program, self.inputs, self.outputs = program, inputs, outputs

    def run(self) -> None:
        given = [torch.from_numpy(self.inputs[each.name]) for each in self.program.manifest.inputs]
        results = self.program.module(*given)
        for each, result in zip(self.program.manifest.outputs, results, strict=True):
            self.outputs[each.name][:] = result.numpy()
