"""The keys of the commands that make and check bundles for robots."""

from dataclasses import dataclass

from .keys import MISSING, key

TARGETS = ("onnx", "openvino", "aoti", "tensorrt")
BUNDLE_PRECISIONS = ("fp32", "fp16", "bf16", "int8")


@dataclass
class Gate:
    """What an exported program is compared with, and on what."""

    demos: str | None = key(None, "demonstration file whose frames it is compared on; what it was trained on will do")
    frames: int = key(128, "frames of demos to compare tokens and actions on, in clips evenly spaced", least=8)
    episodes: int = key(100, "episodes that it and the eager policy both run; 0 runs none", least=0)
    first_seed: int = key(10_000, "seed of the first of these", least=0)
    envs: int | None = key(None, "environments in parallel; null means twice the cores", least=1, free=True)
    cache: str = key("runs/cache", "folder where the eager policy's episodes are kept for the next bundle", free=True)
    threads: int | None = key(None, "CPU threads of the program; null is the library's choice", least=1, free=True)


@dataclass
class Export(Gate):
    """Export a policy, or an encoder alone, as one program for a robot, and compare it with the eager one."""

    checkpoint: str | None = key(None, "policy checkpoint, e.g. runs/.../checkpoints/bc/last.safetensors")
    encoder: str | None = key(None, "instead of a checkpoint: an encoder, as load_encoder takes it; tokens come out")
    target: str = key("onnx", f"what runs it: {', '.join(TARGETS)}")
    precision: str = key("fp32", f"arithmetic: {', '.join(BUNDLE_PRECISIONS)}")
    batch: int | None = key(1, "observations a call; null is any number", least=1)
    image_size: int | None = key(None, "side of the images of an encoder [px]; null is its own", least=16)
    calibration: str | None = key(None, "demonstrations or recording whose frames give int8 its ranges; null is demos")
    calibration_frames: int = key(256, "frames of these", least=8)
    device: str = key("cpu", "where an aoti program will run: cpu, cuda")
    gate: bool = key(True, "compare with the eager policy before the bundle is put in place")
    force: bool = key(False, "put a bundle in place that does not pass", free=True)
    out: str | None = key(None, "folder of the bundle; null means runs/export/<digest of the settings>", free=True)
    debug: bool = key(False, "show tracebacks", free=True)


@dataclass
class Verify(Gate):
    """Compare an existing bundle with the eager policy it was exported from; exits with 0 if it passes."""

    bundle: str = key(MISSING, "folder that pixio-robot export wrote")
    checkpoint: str | None = key(None, "policy checkpoint that it was exported from")
    debug: bool = key(False, "show tracebacks", free=True)
