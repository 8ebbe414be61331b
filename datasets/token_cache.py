"""The token cache: every frame encoded once, found again by what made it.

A cache is a folder named after the digest of encoder weights, preprocessing, precision and data, holding
``cls.npy`` (F, K, D) float16, ``patches.npy`` (F, N, D) on request, and ``manifest.json``, which is written last.

Shapes: F frames, K class tokens, N patches, D width.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from ..depth.encoding import depth_images
from ..encoders import token_statistics
from ..encoders.load import Backbone
from ..encoders.pixio import Tokens
from ..errors import DataError
from ..files import require_space, reserve, sha256_of
from ..hardware import autocast
from ..progress import stage
from ..run_folder import digest, read_json, write_json
from .robomimic import DemoSet


@dataclass
class TokenCache:
    """Memory-mapped tokens of a demonstration file, row by row as its frames."""

    folder: Path
    cls: np.ndarray  # (F, K, D) float16
    patches: np.ndarray | None  # (F, N, D) float16
    manifest: dict[str, Any]
    reused: bool = False
    seconds: dict[str, float] = field(default_factory=dict)  # reading and encoding [s]


def encode(
    backbone: Backbone, images: Tensor, normed: bool, precision: str, added: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Encode images (B, H, W, 3) uint8 as the cache stores them: class and patch tokens in float16.

    Evaluation calls this too, so that a policy sees live what it was trained on.
    """
    with torch.inference_mode():
        tokens = tokens_of(backbone, images, normed, precision, added)
    return tokens.cls.half(), tokens.patches.half()


def tokens_of(backbone: Backbone, images: Tensor, normed: bool, precision: str, added: Tensor | None = None) -> Tokens:
    """Encode images (B, H, W, 3) uint8; gradients lead to what is `added` (B, N, D) to a Pixio encoder's patches."""
    with autocast(images.device, precision):
        pixels = backbone.preprocess(images)
        return backbone(pixels, normed=normed, patch_residual=added)


def token_cache(
    root: Path,
    backbone: Backbone,
    demos: DemoSet,
    *,
    image_key: str = "rgb",
    normed: bool = True,
    patches: bool = False,
    precision: str = "fp32",
    depth_code: tuple[str, float, float] = ("inverse", 0.25, 4.0),
    device: torch.device | None = None,
    batch: int | None = None,
) -> TokenCache:
    """Return the cache of `demos` under `backbone`, filling what is missing.

    An interrupted fill goes on where it stopped. A finished cache is checked against its manifest.

    Args:
        root: folder of all caches.
        image_key: which camera, e.g. "rgb" or "rgb_side"; "depth" or "depth_side" for its depth.
        normed: tokens after the encoder's final norm.
        patches: store patch tokens too.
        precision: "fp32" or "bf16", how the encoder computes.
        depth_code: how the depth of an `image_key` such as "depth" becomes images: code, nearest, farthest [m].
        batch: images an encoder call, not part of the cache's identity; None is 8 on a CPU, where activations then
            stay in its caches, and 128 elsewhere.

    Raises:
        DataError: if a finished cache is damaged.
    """
    identity = dict(
        encoder=backbone.fingerprint(),
        preprocessing=backbone.preprocessing._asdict(),
        precision=precision,
        normed=normed,
        patches=patches,
        data=demos.sha256(),
        image_key=image_key,
    )
    if image_key.startswith("depth"):
        identity["depth_code"] = list(depth_code)
    device = device or torch.device("cpu")
    batch = batch or (8 if device.type == "cpu" else 128)
    folder = root / digest(identity)
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # one process fills, others wait and find it filled
        if folder.is_dir():
            return open_cache(folder, identity)
        partial = folder.with_suffix(".partial")
        seconds = _fill(partial, backbone, demos, identity, device, batch)
        files = sorted(partial.glob("*.npy"))
        manifest = {**identity, "encoder_name": backbone.name, "sha256": {file.name: sha256_of(file) for file in files}}
        (partial / "progress.json").unlink()
        write_json(partial / "manifest.json", manifest)
        partial.rename(folder)
    cache = open_cache(folder, identity)
    return TokenCache(cache.folder, cache.cls, cache.patches, cache.manifest, reused=False, seconds=seconds)


def side_by_side(caches: Sequence[TokenCache]) -> TokenCache:
    """Return the tokens of several cameras as one cache, joined along their width and then in memory."""
    if len(caches) == 1:
        return caches[0]
    patches = None if caches[0].patches is None else np.concatenate([each.patches for each in caches], axis=2)
    spent = {key: sum(each.seconds.get(key, 0.0) for each in caches) for key in ("reading", "encoding")}
    seconds = spent if any(each.seconds for each in caches) else {}
    return TokenCache(
        caches[0].folder.with_name("+".join(each.folder.name for each in caches)),
        np.concatenate([each.cls for each in caches], axis=2),
        patches,
        caches[0].manifest,
        all(each.reused for each in caches),
        seconds,
    )


def open_cache(folder: Path, identity: dict[str, Any]) -> TokenCache:
    """Open a finished cache.

    Raises:
        DataError: if it was made from something else, or a file is missing or was changed.
    """
    manifest = read_json(folder / "manifest.json")
    advice = f"delete {folder} and run again"
    stale = [name for name, value in identity.items() if manifest.get(name) != json.loads(json.dumps(value))]
    if stale:
        raise DataError(f"token cache {folder} does not fit: {', '.join(stale)} differ; {advice}")
    for name, expected in manifest["sha256"].items():
        file = folder / name
        if not file.is_file() or sha256_of(file) != expected:
            raise DataError(f"token cache {file} is damaged (its SHA-256 is not the manifest's); {advice}")
    patches = np.load(folder / "patches.npy", mmap_mode="r") if manifest["patches"] else None
    return TokenCache(folder, np.load(folder / "cls.npy", mmap_mode="r"), patches, manifest, reused=True)


def class_token_cosine(cache: TokenCache, frames: int = 512) -> list[list[float]]:
    """Return the mean cosine between the class tokens of a frame, (K, K), over evenly spaced frames of the cache."""
    rows = np.linspace(0, len(cache.cls) - 1, min(frames, len(cache.cls))).astype(int)
    return token_statistics.class_token_cosine(cache.cls[rows]).round(4).tolist()


def _fill(
    partial: Path,
    backbone: Backbone,
    demos: DemoSet,
    identity: dict[str, Any],
    device: torch.device,
    batch: int,
) -> dict[str, float]:
    total = int(demos.lengths.sum())
    shape = backbone.token_shape
    shapes = {"cls": (total, shape.cls, shape.dim)}
    if identity["patches"]:
        shapes["patches"] = (total, shape.grid[0] * shape.grid[1], shape.dim)
    partial.mkdir(parents=True, exist_ok=True)
    done = int(read_json(partial / "progress.json").get("rows", 0))
    if not done:
        require_space(partial / "cls.npy", sum(2 * int(np.prod(each)) for each in shapes.values()))
    arrays = {
        name: np.lib.format.open_memmap(
            partial / f"{name}.npy", mode="r+" if done else "w+", dtype=np.float16, shape=shape_
        )
        for name, shape_ in shapes.items()
    }
    for name in arrays:
        reserve(partial / f"{name}.npy")  # writing to a memory map on a full disk would end the process
    backbone.to(device)
    seconds, saved = {"reading": 0.0, "encoding": 0.0}, done
    with stage("encode", total) as bar:
        bar.advance(done)
        began = perf_counter()
        for images in demos.batches(identity["image_key"], done, batch):
            if "depth_code" in identity:
                images = depth_images(images, *identity["depth_code"])
            read = perf_counter()
            tokens = encode(backbone, torch.from_numpy(images).to(device), identity["normed"], identity["precision"])
            for name, values in zip(("cls", "patches"), tokens, strict=True):
                if name in arrays:
                    arrays[name][done : done + len(images)] = values.cpu().numpy()
            done += len(images)
            bar.advance(len(images))
            if done - saved >= 32 * batch:  # now and then, so that little is lost
                _save_progress(partial, arrays, done)
                saved = done
            seconds["reading"] += read - began
            began = perf_counter()
            seconds["encoding"] += began - read
    _save_progress(partial, arrays, done)
    return seconds


def _save_progress(partial: Path, arrays: dict[str, np.memmap], done: int) -> None:
    for array in arrays.values():
        array.flush()
    write_json(partial / "progress.json", {"rows": done})
