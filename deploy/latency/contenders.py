"""What is timed: a bundle, or an encoder under PyTorch, torch.compile, CUDA graphs or transformers.

Each takes one uint8 frame in CPU memory, and ends with tokens or actions in CPU memory.
"""

import importlib
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BadInput, MissingExtra
from ...plugins import find_plugin
from ..manifest import Manifest

BASELINES = ("eager", "compile", "graph", "transformers")
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Spec:
    """One thing to time."""

    kind: str  # "bundle" or one of `BASELINES`
    name: str  # folder of the bundle, or the encoder as load_encoder takes it
    precision: str = "fp32"
    device: str = "cpu"
    threads: int = 1

    @property
    def label(self) -> str:
        """Its name in tables."""
        return f"bundle {self.name}" if self.kind == "bundle" else f"{self.kind} {self.precision}"


def import_library(spec: Spec) -> None:
    """Import only the library that a contender computes with: the rest would count as its memory."""
    library = "torch"
    if spec.kind == "bundle":
        library = find_plugin("targets", Manifest.read(spec.name, check=False).target).library
    with suppress(ImportError):  # `opened` raises the error that explains it
        importlib.import_module(library)


def opened(spec: Spec) -> tuple[Callable[[], Any], int]:
    """Load one thing and return a function that runs it once on a fixed frame, and the bytes of its files or weights.

    Raises:
        MissingExtra: if its library is not installed.
        BadInput: if it cannot run on the device.
    """
    if spec.kind == "bundle":
        return _bundle(spec)
    import torch

    torch.set_num_threads(spec.threads)
    from ...encoders.load import load_encoder

    backbone = load_encoder(spec.name)
    preprocessing = backbone.preprocessing
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[spec.precision]
    device = torch.device(spec.device)
    network: Any = backbone.network
    size = sum(each.numel() for each in network.parameters()) * dtype.itemsize
    if spec.kind == "transformers":
        network = _transformers(backbone)
    network = network.to(device, dtype).eval()
    images = torch.from_numpy(frame(max(preprocessing.size)))[None]
    from ...encoders.preprocessing import preprocess

    def pixels() -> torch.Tensor:
        return preprocess(images.to(device), preprocessing).to(dtype)

    if spec.kind == "transformers":
        return _inferred(lambda: network(pixel_values=pixels()).last_hidden_state.float().cpu()), size
    if spec.kind == "compile":
        network = torch.compile(network, mode="reduce-overhead" if device.type == "cuda" else "default")
    if spec.kind == "graph":
        return _inferred(_captured(network, pixels())), size
    return _inferred(lambda: tuple(each.float().cpu() for each in network(pixels()))), size


def frame(side: int) -> np.ndarray:
    """Return a frame of noise, (S, S, 3) uint8, the same each time."""
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)


def _bundle(spec: Spec) -> tuple[Callable[[], Any], int]:
    from ..runtime import Runtime

    runtime = Runtime.load(spec.name, spec.threads)
    size = sum((Path(spec.name) / each).stat().st_size for each in runtime.manifest.files)
    if runtime.manifest.kind == "encoder":
        image = frame(runtime.manifest.observation[0].shape[0])
        return lambda: runtime.encode(image), size
    observation = {
        each.name: frame(each.shape[0]) if each.dtype == "uint8" else np.zeros(each.shape, each.dtype)
        for each in runtime.manifest.observation
    }
    return lambda: runtime.act(observation), size


def _inferred(call: Callable[[], Any]) -> Callable[[], Any]:
    import torch

    def run() -> Any:
        with torch.inference_mode():
            return call()

    return run


def _captured(network: Any, example: Any) -> Callable[[], Any]:
    """Return the network as a CUDA graph: one launch a call, all memory kept."""
    import torch

    place = example.clone()
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside), torch.inference_mode():
        for _ in range(3):
            network(place)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.inference_mode():
        tokens = network(place)

    def run() -> Any:
        place.copy_(example)
        graph.replay()
        return tuple(each.float().cpu() for each in tokens)

    return run


def _transformers(backbone: Any) -> Any:
    """Return transformers' own model with an encoder's weights."""
    from ...encoders.pixio import PixioEncoder
    from ...encoders.torchvision_guard import declare_missing_operators
    from ...encoders.transformers_folders import write_transformers

    if not isinstance(backbone.network, PixioEncoder):
        raise BadInput(f"{backbone.name} is not a Pixio encoder; leave transformers out of baselines=")
    declare_missing_operators()
    try:
        from transformers import PixioModel
        from transformers.utils.logging import disable_progress_bar
    except ImportError as error:
        raise MissingExtra("timing transformers' PixioModel", "hf") from error
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        write_transformers(backbone.network, backbone.preprocessing, Path(folder) / "pixio")
        return PixioModel.from_pretrained(Path(folder) / "pixio", attn_implementation="sdpa")
