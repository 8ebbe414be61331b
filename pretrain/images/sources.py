"""Image sources by name, of any format.

A source is a folder with any mixture of tar shards, images, HDF5, videos and recordings; one such file; a pattern such
as ``data/train-{000..003}.tar`` or ``data/train-*.tar``; ``procedural[:count[:seed]]``; or ``synthetic[:count]``.
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from glob import glob
from itertools import groupby
from pathlib import Path

from ...errors import BadInput, DataError, closest
from .image_folder import ImageFolder
from .image_set import Concatenation, ImageSet
from .shards import IMAGE_SUFFIXES, TarShards

log = logging.getLogger(__name__)

_SUFFIXES = {
    "image": IMAGE_SUFFIXES,
    "shard": ("tar",),
    "HDF5": ("hdf5", "h5"),
    "video": ("mp4", "mkv", "avi", "webm", "mov"),
    "recording": ("bag", "db3", "mcap"),
}
_KINDS = {suffix: kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes}
_KNOWN = "; ".join(f"{kind}s ({', '.join(suffixes)})" for kind, suffixes in _SUFFIXES.items())
_MADE = {"procedural": (100_000, 0), "synthetic": (100_000,)}  # generators and the defaults of their numbers


def open_images(source: str | Sequence[str], cache: Path) -> ImageSet:
    """Open one source of images, or several as one set.

    Args:
        source: as described above; several are joined in the given order.
        cache: folder of all caches; indexes of large files are kept below its ``images``.

    Raises:
        DataError: if a path is missing, holds no images, or holds none that can be used.
        BadInput: if no source is given, or the numbers of a generator are invalid.
        MissingExtra: for recordings without the package that reads them.
    """
    sources = [source] if isinstance(source, str) else list(source)
    sets = [each for text in sources for each in _open(text, cache)]
    if not sets:
        raise BadInput("no source of images was given; give a folder, a file, a pattern or 'procedural'")
    for each in sets:
        log.info("%s: %d images, %d classes", type(each).__name__, len(each), len(each.classes))
    return sets[0] if len(sets) == 1 else Concatenation(sets)


def shard_files(source: str | Sequence[str]) -> list[Path]:
    """Return the tar shards of one source or several, none opened yet.

    Raises:
        DataError: if a path is missing, or a source holds no tar shard.
    """
    found: list[Path] = []
    for text in [source] if isinstance(source, str) else source:
        if text.split(":")[0] in _MADE:
            raise DataError(
                f"{text!r} is computed, not stored in tar shards; give a folder, a file or a pattern of .tar"
            )
        files = _find(text)[1]
        shards = [file for file in files if _KINDS.get(_suffix(file)) == "shard"]
        if not shards:
            raise DataError(
                f"{text} holds {len(files)} file(s) of images but no tar shard; pack them into .tar files, 0001.jpg "
                "0002.jpg ... (`tar --sort=name -cf shard-000.tar -C folder .`)"
            )
        if len(shards) < len(files):
            log.warning("%s: %d file(s) that are not tar shards are ignored", text, len(files) - len(shards))
        found += shards
    return list(dict.fromkeys(found))


def _open(source: str, cache: Path) -> list[ImageSet]:
    kind, *numbers = source.split(":")
    if kind in _MADE:
        return [_made(source, kind, numbers)]
    return _of_files(*_find(source), cache)


def _find(source: str) -> tuple[Path, list[Path]]:
    """Return the common folder of a source's files, and the files."""
    if "{" in source and not os.path.lexists(source):
        files = [Path(each) for each in expand_braces(source)]
        if missing := [str(each) for each in files if not each.exists()]:
            raise DataError(f"{source} stands for {len(files)} files, {len(missing)} are missing: {_few(missing)}")
        return Path(os.path.commonpath([file.parent for file in files])), files
    path = Path(source)
    if any(sign in source for sign in "*?[") and not path.exists() and (matches := sorted(glob(source))):
        return Path(os.path.commonpath([Path(each).parent for each in matches])), list(map(Path, matches))
    if not path.exists():
        there = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        where = f"{path.parent} has: {_few(sorted(there))}{closest(path.name, there)}" if there else "nor its folder"
        raise DataError(f"no images at {source}; {where}. Give a folder, a file, 'procedural' or 'synthetic'")
    if path.is_file():
        return path.parent, [path]
    files = list(_walk(path))
    if not files:
        raise DataError(f"{path} is an empty folder; images are: {_KNOWN}")
    known = [file for file in files if file.is_dir() or _suffix(file) in _KINDS]
    if not known:
        kinds = Counter(_suffix(file) or "no suffix" for file in files).most_common(5)
        found = ", ".join(f"{count} of {suffix}" for suffix, count in kinds)
        raise DataError(f"{path} holds no images among its files ({found}); images are: {_KNOWN}")
    return path, known


def _of_files(root: Path, files: Sequence[Path], cache: Path) -> list[ImageSet]:
    """Open files of any kind, images first. Shards are grouped by folder, since each folder may name its classes."""
    by_kind: dict[str, list[Path]] = {kind: [] for kind in _SUFFIXES}
    for file in files:
        kind = "recording" if file.is_dir() else _KINDS.get(_suffix(file))
        if kind is None:
            advice = "; unpack it first" if _suffix(file) in ("gz", "tgz", "zst", "xz", "zip") else ""
            raise DataError(f"{file} is not an image source{advice}. Images are: {_KNOWN}")
        by_kind[kind].append(file)
    sets: list[ImageSet] = [ImageFolder(root, by_kind["image"])] if by_kind["image"] else []
    openers: list[tuple[str, Callable[[Path, Sequence[Path], Path], ImageSet]]] = [
        ("shard", TarShards),
        ("HDF5", _hdf5),
        ("video", _videos),
        ("recording", _recordings),
    ]
    errors: list[DataError] = []
    for kind, opener in openers:
        parts = [list(part) for _, part in groupby(by_kind[kind], key=lambda file: file.parent)]
        for part in parts if kind == "shard" else filter(None, [by_kind[kind]]):
            try:
                sets.append(opener(root, part, cache))
            except DataError as error:
                errors.append(error)
    if errors and not sets:
        raise errors[0]
    for each in errors:
        log.warning("not used: %s", each)
    return sets


def _hdf5(root: Path, files: Sequence[Path], cache: Path) -> ImageSet:
    from .hdf5_frames import Hdf5Frames

    return Hdf5Frames(root, files, cache)


def _videos(root: Path, files: Sequence[Path], cache: Path) -> ImageSet:
    from .video_frames import VideoFrames

    return VideoFrames(root, files, cache)


def _recordings(root: Path, files: Sequence[Path], cache: Path) -> ImageSet:
    from .recordings import Recordings

    return Recordings(root, files, cache)


def _made(source: str, kind: str, numbers: Sequence[str]) -> ImageSet:
    from .procedural import Procedural, Synthetic

    defaults = _MADE[kind]
    if len(numbers) > len(defaults) or not all(number.isdecimal() for number in numbers) or numbers[:1] == ["0"]:
        usage = "procedural[:count[:seed]]" if kind == "procedural" else "synthetic[:count]"
        raise BadInput(f"{source!r} is invalid; write {usage} with whole numbers, e.g. {kind}:1000")
    values = [*map(int, numbers), *defaults[len(numbers) :]]
    return Procedural(*values) if kind == "procedural" else Synthetic(*values)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder in order of their paths, and folders that are ROS 2 recordings."""
    seen = {os.path.realpath(folder)}
    if _is_recording(folder):
        yield folder
        return
    for place, folders, files in os.walk(folder, followlinks=True):
        here = Path(place)
        for name in list(folders):
            real = os.path.realpath(here / name)
            if name.startswith(".") or real in seen:  # a link may point to a parent folder
                folders.remove(name)
                continue
            seen.add(real)
            if _is_recording(here / name):
                folders.remove(name)
                yield here / name
        folders.sort()
        yield from (here / name for name in sorted(files) if not name.startswith("."))


def _is_recording(folder: Path) -> bool:
    """Return whether a folder is one ROS 2 recording."""
    return (folder / "metadata.yaml").is_file() and any(
        file.name.endswith((".db3", ".mcap", ".zstd")) for file in folder.iterdir()
    )


def expand_braces(pattern: str) -> list[str]:
    """Expand ``{000..003}`` and ``{a,b}`` as a shell does.

    >>> expand_braces("{a,b}-{08..10}.tar")
    ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar', 'b-09.tar', 'b-10.tar']
    """
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if match is None:
        return [pattern]
    first, last, words = match.groups()
    if words is not None:
        middles = words.split(",")
    else:
        step = 1 if int(first) <= int(last) else -1
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
        middles = [f"{number:0{width}d}" for number in range(int(first), int(last) + step, step)]
    head, tail = pattern[: match.start()], expand_braces(pattern[match.end() :])
    return [f"{head}{middle}{end}" for middle in middles for end in tail]


def _suffix(path: Path) -> str:
    return path.suffix.lower().removeprefix(".")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
