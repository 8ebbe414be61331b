"""Settings shared by the commands that export and verify."""

from dataclasses import dataclass

from ..settings import key

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
