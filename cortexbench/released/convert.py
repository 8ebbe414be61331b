"""Converts a released file to our demonstrations, without loss.

A converted demonstration has the arrays of `datasets.writer`. Its group ``extra`` keeps everything that the source has,
under the source's names and in its dtypes; `source_of` returns it bit by bit.
"""

import json
import logging
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from ...datasets.dataset import open_dataset
from ...datasets.writer import Provenance, describe
from ...envs.registry import TaskSpec
from ...errors import BadInput, DataError
from ...files import replacing, require_space
from ...progress import stage
from .archive_files import files_of, identity
from .releases import OpenedRelease, Release, ReleasedDemo, TriFingerRelease, release_of
from .source_tree import get, put

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplitRequest:
    """Which demonstrations are used for what."""

    demos: int | None = None  # to train on, the first ones; None is CortexBench's number
    valid: int | None = None  # of validation, the next ones; None is the rest, for TriFinger 25
    file: str | None = None  # TriFinger's JSON of splits, instead of the numbers


class ConvertReport(NamedTuple):
    """What a conversion came to."""

    path: Path
    reused: bool
    demos: dict[str, int]  # in each split, and in all


def convert(task: str, source: Path, out: Path, request: SplitRequest = SplitRequest()) -> ConvertReport:
    """Convert one task's released demonstrations.

    Args:
        task: e.g. metaworld/hammer.
        source: the released archive, its unpacked folder, or the task's file in it.
        out: file to write; it is reused if it holds the same demonstrations.
        request: the splits.

    Raises:
        UnknownName: if the task has no released demonstrations.
        DataError: if the source does not hold them, or `out` holds others.
        OSError: before anything is written, if the disk has no room.
    """
    release = release_of(task)
    if out.is_dir():
        raise BadInput(f"out={out} is a folder; give the name of a file, e.g. {out}/demos.hdf5")
    collection: dict[str, Any] = dict(demos=request.demos, valid=request.valid, task=task)
    given: dict[str, list[int]] = {}
    if request.file is not None:
        release, given = _read_splits(Path(request.file), release)
        collection |= dict(splits=given, max_a=release.reach)
    files = release.find(files_of(source), source)
    collection |= dict(source=identity([file for _, file in files]))
    if out.exists():
        found = open_dataset(out).provenance["collection"]
        if found != collection:
            held = f"{out} holds other demonstrations: {found}; asked for {collection} of {source}"
            raise DataError(f"{held}; delete it or choose another out=")
        return _report(out, True)
    with release.read(files, out) as opened:
        splits = given or _splits(opened.numbers, request, release)
        _check_splits(splits, opened.numbers, source)
        require_space(out, opened.size)
        _write_file(out, task, release, opened, splits, collection)
    return _report(out, False)


def _write_file(
    out: Path,
    task: str,
    release: Release,
    opened: OpenedRelease,
    splits: dict[str, list[int]],
    collection: dict[str, Any],
) -> None:
    """Write all demonstrations of a release to one file, whole or not at all."""
    shown = stage(f"convert {task}", len(opened.numbers))
    with replacing(out) as temporary, h5py.File(temporary, "w") as file, shown as bar:
        data = file.create_group("data")
        for demo in opened.demos:
            group = data.create_group(f"demo_{demo.number}")
            _write(group, demo)
            bar.advance(1)
        side = int(group[f"obs/{release.cameras[0]}_image"].shape[1])
        proprio = ("proprio",) if release.proprio_dim else ()
        cameras = release.cameras if len(release.cameras) > 1 else ()  # one is the task's default
        environment = TaskSpec(task, ("rgb", *proprio), cameras, image_size=side)
        members = {split: [f"demo_{number}" for number in chosen] for split, chosen in splits.items()}
        describe(file, members, Provenance(task, asdict(environment), release.cameras), collection)


def _report(out: Path, reused: bool) -> ConvertReport:
    dataset = open_dataset(out)
    counts = {split: len(dataset.split(split)) for split in ("train", "valid")}
    return ConvertReport(out, reused, {**counts, "all": len(dataset.lengths)})


def source_of(path: Path | str, name: str) -> dict[str, Any]:
    """Return a converted demonstration as it was released, bit by bit.

    Args:
        path: a file by `convert`.
        name: the demonstration, e.g. "demo_0".

    Raises:
        DataError: if there is no such converted demonstration.
    """
    with h5py.File(path) as file:
        if f"data/{name}/extra" not in file:
            raise DataError(f"{path} has no converted demonstration {name!r}; it has: {', '.join(file['data'])}")
        return get(file[f"data/{name}/extra"])


def _write(group: h5py.Group, demo: ReleasedDemo) -> None:
    steps = len(demo.actions)
    dones = np.zeros(steps, np.int64)
    dones[-1] = 1
    group.attrs["num_samples"] = steps
    put(group, "extra", demo.source)
    values = dict(actions=demo.actions, dones=dones, rewards=demo.rewards, success=demo.success)
    for key, value in values.items():
        if value is not None:
            put(group, key, value)
    observed = group.create_group("obs")
    for key, values_or_key in demo.observations.items():
        if isinstance(values_or_key, str):
            observed[key] = group["extra"][values_or_key]  # a second name of the same data
        else:
            put(observed, key, values_or_key)


def _splits(numbers: list[int], request: SplitRequest, release: Release) -> dict[str, list[int]]:
    """Return the numbers of the train and valid demonstrations: the first ones, and the next ones."""
    end = release.train if request.demos is None else request.demos
    valid = release.valid if request.valid is None else request.valid
    last = max(numbers) + 1 if valid is None else end + valid
    splits = {"train": [n for n in numbers if n < end], "valid": [n for n in numbers if end <= n < last]}
    for key, asked in (("demos", request.demos), ("valid", request.valid)):
        have = splits["train" if key == "demos" else key]
        if asked is not None and len(have) < asked:
            raise DataError(f"{key}={asked} was asked for; there are {len(numbers)} in all, {len(have)} for it")
    if len(splits["train"]) < end:
        log.warning("the source has %d of the %d demonstrations to train on", len(splits["train"]), end)
    return splits


def _read_splits(path: Path, release: Release) -> tuple[TriFingerRelease, dict[str, list[int]]]:
    """Return the numbers of each split from TriFinger's JSON, and the release with the largest action it names."""
    if not isinstance(release, TriFingerRelease):
        raise BadInput(f"splits={path} is for TriFinger; other tasks are split by demos= and valid=")
    if not path.is_file():
        raise DataError(f"no file {path}")
    try:
        content = json.loads(path.read_text())
        splits: dict[str, list[int]] = {"train": [], "valid": []}
        for key, entries in content.items():
            split = "train" if "train" in key else "valid" if "test" in key or "val" in key else None
            if split and isinstance(entries, list) and all(isinstance(each, dict) for each in entries):
                splits[split] = sorted(_number(str(each["path"]), release.folder) for each in entries)
        if not splits["train"]:
            raise ValueError("no list of training demonstrations")
        return replace(release, reach=float(content.get("max_a", release.reach))), splits
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} does not split the demonstrations of {release.folder}: {error}") from error


def _number(path: str, folder: str) -> int:
    match = re.search(r"(\w+)/demo-(\d+)", path)
    if match is None or match[1] != folder:
        raise ValueError(f"{path} is not in {folder}/demo-XXXX")
    return int(match[2])


def _check_splits(splits: dict[str, list[int]], numbers: list[int], source: Path) -> None:
    if len(set(numbers)) < len(numbers):
        raise DataError(f"{source} has demonstrations of the same number more than once")
    if absent := sorted({each for chosen in splits.values() for each in chosen} - set(numbers)):
        raise DataError(f"{source} lacks the demonstrations {absent[:5]} that the splits name")
    if not splits["train"]:
        raise DataError(f"{source} has no demonstration to train on")
    if both := sorted(set(splits["train"]) & set(splits["valid"])):
        raise DataError(f"the demonstrations {both[:5]} are in both splits")
