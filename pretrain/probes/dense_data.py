"""Images with a depth or a class for every pixel: demonstrations in HDF5, folders of images, tar shards.

Shapes: N images, G sequences, T frames of a demonstration, H height, W width.
"""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import cv2
import h5py
import numpy as np

from ...errors import BadInput, DataError, UnknownName, closest
from ..images.decoding import decode
from ..images.handles import Handles
from ..images.image_set import files_fingerprint
from ..images.shards import IMAGE_SUFFIXES
from ..images.tar_walk import Member, TarWalk
from ..order import hold_out

KINDS = ("depth", "segmentation")
IGNORED = 255  # label of pixels without a class
LAYOUTS = """dense images come as one of
  FILE.hdf5 or a folder of them   data/DEMO/obs/CAMERA_image (T, H, W, 3) uint8 beside CAMERA_depth (T, H, W, 1)
                                  float [m], 0 unknown, or CAMERA_segmentation (T, H, W, 1) integers, 255 ignored
  a folder                        images/x.jpg (or .png) beside depth/x.png (uint16 [mm], 0 unknown) or labels/x.png
                                  (uint8, 255 ignored); images in one sub-folder of images/ are one sequence
  FILE.tar or a folder of them    x.jpg beside x.depth.png or x.seg.png, as above; one folder of keys, one sequence"""
_OPEN_FILES = 16


class Pair(NamedTuple):
    """One image and its target."""

    image: np.ndarray  # (H, W, 3) uint8
    target: np.ndarray  # (H, W): float32 depth [m], 0 where unknown; or uint8 labels, 255 where ignored


class DenseSet(ABC):
    """Images by number, each with its target."""

    kind: str  # of KINDS
    fingerprint: str  # of the files; only for sets from `open_dense`
    groups: np.ndarray | None = None  # (G + 1,) int64 offsets of sequences of near duplicates; None for still images

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def read(self, index: int) -> Pair:
        """Return one image and its target.

        Raises:
            DataError: if it is damaged, or image and target differ in size.
        """


class DenseSubset(DenseSet):
    """Some images of a set, with the remaining parts of its sequences.

    Args:
        whole: the set.
        indices: (n,) sorted.
    """

    def __init__(self, whole: DenseSet, indices: np.ndarray) -> None:
        self.whole, self.indices, self.kind = whole, np.asarray(indices, np.int64), whole.kind
        if whole.groups is not None:
            offsets = np.searchsorted(self.indices, whole.groups)
            self.groups = np.unique(offsets).astype(np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Pair:
        return self.whole.read(int(self.indices[index]))


def thinned(images: DenseSet, count: int) -> DenseSet:
    """Return at most `count` images, evenly spaced."""
    if len(images) <= count:
        return images
    return DenseSubset(images, np.linspace(0, len(images) - 1, count).round().astype(np.int64))


def split_dense(images: DenseSet, share: float, seed: int) -> tuple[DenseSet, DenseSet]:
    """Return training and test images. Whole sequences are test images; of a single sequence, its end.

    Args:
        images: the set.
        share: approximate share of test images; above 0, at most 0.5.
        seed: another seed, other images.

    Raises:
        BadInput: for a share out of range, or fewer than two images.
    """
    if not 0 < share <= 0.5 or len(images) < 2:
        raise BadInput(
            f"a share above 0 and at most 0.5 of two or more images can be tested on; got {share} of {len(images)}"
        )
    split = hold_out(images, max(1, min(round(share * len(images)), len(images) // 2)), seed)
    return DenseSubset(images, split.index(np.arange(split.training))), DenseSubset(images, split.val_images)


def open_dense(source: str | Path, kind: str) -> DenseSet:
    """Open images with their targets.

    Args:
        source: a file or folder in one of the `LAYOUTS`.
        kind: "depth" or "segmentation".

    Raises:
        UnknownName: for another kind.
        DataError: if there is nothing of that kind; names what was found.
    """
    if kind not in KINDS:
        raise UnknownName(f"no kind {kind!r} of dense images; there are: {', '.join(KINDS)}{closest(kind, KINDS)}")
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(f"there is no {path}; {LAYOUTS}")
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    images = _opened(path, files, kind)
    images.fingerprint = files_fingerprint(path if path.is_dir() else path.parent, files)
    return images


def _opened(path: Path, files: Sequence[Path], kind: str) -> DenseSet:
    if path.is_dir() and (path / "images").is_dir():
        return DenseFolder(path, kind)
    demonstrations = [file for file in files if file.suffix in (".hdf5", ".h5")]
    if demonstrations:
        return DenseDemos(demonstrations, kind)
    shards = [file for file in files if file.suffix == ".tar"]
    if shards:
        return DenseShards(shards, kind)
    names = ", ".join(file.name for file in files[:3]) or "nothing"
    raise DataError(f"{path} holds no dense images but {len(files)} other files ({names}); {LAYOUTS}")


class DenseDemos(DenseSet):
    """Demonstrations in HDF5; all cameras of one demonstration are one sequence.

    Args:
        files: the HDF5 files.
        kind: of KINDS.
    """

    def __init__(self, files: Sequence[Path], kind: str) -> None:
        self.kind = kind
        self._pairs: list[tuple[Path, str, str]] = []  # file, image and target datasets
        offsets, groups, seen = [0], [0], set[str]()
        for file in files:
            for cameras in _pairs_of(file, kind, seen):
                for image, target, length in cameras:
                    self._pairs.append((file, image, target))
                    offsets.append(offsets[-1] + length)
                groups.append(offsets[-1])
        if not self._pairs:
            names = ", ".join(sorted(seen)) or "none"
            raise DataError(f"{_what(files)}: no observation *_image beside *_{kind} but only {names}; {LAYOUTS}")
        self._starts = np.array(offsets)
        self.groups = np.array(groups, np.int64)
        self._open: Handles[Path, h5py.File] = Handles(h5py.File, h5py.File.close, _OPEN_FILES)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, index: int) -> Pair:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        file, source, target = self._pairs[number]
        frame, where = index - int(self._starts[number]), f"{file}:{target}#{index - int(self._starts[number])}"
        try:
            values = np.asarray(self._open.get(file)[target][frame])
            image = np.asarray(self._open.get(file)[source][frame])
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{where} cannot be read: {error}") from error
        values = values[..., 0] if values.ndim == 3 else values
        if self.kind == "segmentation":
            return _pair(image, _labels(values, where), where)
        if values.dtype.kind != "f":
            raise DataError(f"{where} is {values.dtype}; depth in HDF5 is floating point [m]")
        return _pair(image, values, where)


def _pairs_of(path: Path, kind: str, seen: set[str]) -> list[list[tuple[str, str, int]]]:
    """Return image dataset, target dataset and length of each camera of each demonstration, in natural order."""
    found: list[list[tuple[str, str, int]]] = []
    try:
        with h5py.File(path) as file:
            demos = file.get("data", {})
            for demo in sorted(demos, key=_natural):
                observations = demos[demo].get("obs", {})
                seen.update(observations)
                cameras = [name[: -len("_image")] for name in observations if name.endswith("_image")]
                both = [camera for camera in sorted(cameras) if f"{camera}_{kind}" in observations]
                places = [[f"data/{demo}/obs/{camera}_{what}" for what in ("image", kind)] for camera in both]
                if lengths := [(image, target, min(len(file[image]), len(file[target]))) for image, target in places]:
                    found.append(lengths)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path} is not a complete HDF5 file: {error}") from error
    return found


class DenseFolder(DenseSet):
    """Images in ``images/`` with targets of the same name in ``depth/`` or ``labels/``.

    Args:
        root: the folder of these.
        kind: of KINDS.
    """

    def __init__(self, root: Path, kind: str) -> None:
        self.kind = kind
        folder = root / ("depth" if kind == "depth" else "labels")
        images = [file for file in (root / "images").rglob("*") if file.suffix[1:].lower() in IMAGE_SUFFIXES]
        images.sort(key=lambda file: _natural(file.relative_to(root).as_posix()))
        targets = [folder / file.relative_to(root / "images").with_suffix(".png") for file in images]
        self._files = [(image, target) for image, target in zip(images, targets, strict=True) if target.is_file()]
        if not self._files:
            there = ", ".join(sorted(f"{each.name}/" for each in root.iterdir() if each.is_dir()))
            raise DataError(f"{root} has {there}: {len(images)} images, none with a {folder.name}/*.png; {LAYOUTS}")
        self.groups = _by_folder([str(image.parent.relative_to(root)) for image, _ in self._files])

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> Pair:
        image, target = self._files[index]
        return _decoded(image.read_bytes(), target.read_bytes(), self.kind, str(target))


class DenseShards(DenseSet):
    """Tar shards: ``key.jpg`` beside ``key.depth.png`` or ``key.seg.png``.

    Args:
        shards: uncompressed tar files.
        kind: of KINDS.
    """

    def __init__(self, shards: Sequence[Path], kind: str) -> None:
        self.kind = kind
        suffix = "depth.png" if kind == "depth" else "seg.png"
        self._files: Handles[Path, int] = Handles(lambda path: os.open(path, os.O_RDONLY), os.close, _OPEN_FILES)
        self._rows: list[tuple[Path, Member, Member]] = []
        folders, seen = [], set[str]()
        for shard in shards:
            images: dict[str, Member] = {}
            targets: dict[str, Member] = {}
            for member in TarWalk(shard):
                folder, _, base = member.name.rpartition("/")
                stem, _, ending = base.partition(".")
                seen.add(ending)
                if ending.lower() in IMAGE_SUFFIXES:
                    images[f"{folder}/{stem}"] = member
                elif ending == suffix:
                    targets[f"{folder}/{stem}"] = member
            for key in sorted(images.keys() & targets.keys(), key=_natural):
                self._rows.append((shard, images[key], targets[key]))
                folders.append(key.rpartition("/")[0])
        if not self._rows:
            endings = ", ".join(f".{each}" for each in sorted(seen)[:6]) or "nothing"
            raise DataError(f"{_what(shards)}: no image beside a .{suffix} but only {endings}; {LAYOUTS}")
        if any(folders):  # a sequence may continue in the next shard
            order = sorted(range(len(folders)), key=lambda row: _natural(folders[row]))
            self._rows, folders = [self._rows[row] for row in order], [folders[row] for row in order]
        self.groups = _by_folder(folders)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> Pair:
        shard, image, target = self._rows[index]
        file = self._files.get(shard)
        data = [os.pread(file, member.size, member.offset) for member in (image, target)]
        return _decoded(data[0], data[1], self.kind, f"{shard}:{target.name}")


def _decoded(image: bytes, target: bytes, kind: str, where: str) -> Pair:
    values = cv2.imdecode(np.frombuffer(target, np.uint8), cv2.IMREAD_UNCHANGED) if target else None
    if values is None or values.ndim != 2:
        what = "no image" if values is None else "an image in colour or with a palette"
        raise DataError(f"{where} is {what}; a grey PNG is needed, of uint16 [mm] for depth, of uint8 for labels")
    if kind == "segmentation":
        return _pair(decode(image), _labels(values, where), where)
    if values.dtype != np.uint16:
        raise DataError(f"{where} is {values.dtype}; a depth image is uint16 [mm]")
    return _pair(decode(image), values.astype(np.float32) / 1000, where)


def _labels(values: np.ndarray, where: str) -> np.ndarray:
    if values.dtype.kind not in "iu" or values.max(initial=0) > IGNORED:
        raise DataError(
            f"{where} holds {values.dtype} up to {values.max()}; labels are integers from 0 to 255 (ignored)"
        )
    return np.where(values < 0, IGNORED, values).astype(np.uint8)


def _pair(image: np.ndarray, target: np.ndarray, where: str) -> Pair:
    if image.shape[:2] != target.shape:
        raise DataError(f"{where} has {target.shape} pixels and its image {image.shape[:2]}; they must be the same")
    if target.dtype.kind == "f":
        known = np.isfinite(target) & (target > 0)
        target = np.where(known, target, 0).astype(np.float32)
    return Pair(image, target)


def _by_folder(folders: Sequence[str]) -> np.ndarray | None:
    """Return the offsets of runs of one folder, None if there is only one."""
    lengths = [len(list(run)) for _, run in groupby(folders)]
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64) if len(lengths) > 1 else None


def _what(files: Sequence[Path]) -> str:
    return str(files[0]) if len(files) == 1 else f"the {len(files)} files from {files[0]} on"


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort demo_10 after demo_9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
