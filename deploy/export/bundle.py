"""Write a bundle: one program with its manifest, verified before it is put in place, complete or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...errors import BadInput, DataError
from ...plugins import find_plugin
from ...progress import stage
from ...run_folder import write_json
from ..manifest import VERIFICATION, Manifest
from ..recorded import Recorded, read_recorded
from ..targets.target import ProgramOptions, Target
from ..verify import Comparison, Verification, compare_bundle, comparison_frames, read_verification
from .describe import BundleOptions, describe
from .source import ExportSource


@dataclass(frozen=True)
class Calibration:
    """Which recorded frames int8 takes its ranges from."""

    source: str | None  # demonstration file or recording
    frames: int = 256


@dataclass
class Exported:
    """A bundle in its place, or refused, and how the comparison went."""

    out: Path
    verification: Verification | None  # None where it was not compared
    placed: bool
    reused: bool = False


def existing_bundle(out: Path, digest: str) -> Exported | None:
    """Return the bundle that a folder holds already, or None if there is no such folder.

    Raises:
        DataError: if it was exported with other settings or from another source.
    """
    if not out.exists():
        return None
    if (manifest := Manifest.read(out)).options.get("digest") != digest:
        what = f"another bundle ({manifest.target}, {manifest.precision})"
        raise DataError(f"{out} holds {what}; choose another out= or delete it")
    return Exported(out, read_verification(out), placed=True, reused=True)


def export_bundle(
    source: ExportSource,
    options: BundleOptions,
    out: Path,
    digest: str,
    comparison: Comparison | None,
    calibration: Calibration,
    force: bool = False,
) -> Exported:
    """Write a bundle, compare it with the eager policy, and put it in place if it passes.

    Args:
        out: folder of the bundle, which must not exist.
        digest: of all settings and inputs; kept in the manifest.
        comparison: None writes a bundle that is not compared.
        force: put it in place even if it does not pass.

    Raises:
        BadInput, UnknownName, DataError, MissingExtra: before anything is written, if it cannot be written.
    """
    target: Target = find_plugin("targets", options.target)()
    program, manifest = describe(source, options)
    target.check(program, options.precision)
    recorded = None if comparison is None else comparison_frames(comparison, manifest)
    frames = calibration_frames(calibration, manifest) if options.precision == "int8" else None
    with new_folder(out) as folder:
        with stage(f"export {options.target} {options.precision}", 1) as bar:
            how = ProgramOptions(options.precision, options.batch, options.device, frames)
            manifest.options = {**target.write(program, folder, how), "digest": digest}
            bar.advance(1)
        manifest.write(folder, sorted(file.name for file in folder.iterdir()))
        verification = None
        if comparison is not None and recorded is not None:
            verification = compare_bundle(folder, source, comparison, recorded)
            write_json(folder / VERIFICATION, verification.as_json())
            if not (verification.passed or force):
                refused = out.with_name(f"{out.name}-refused.json")
                write_json(refused, verification.as_json())
                return Exported(refused, verification, placed=False)
        folder.rename(out)
    return Exported(out, verification, placed=True)


def calibration_frames(calibration: Calibration, manifest: Manifest) -> Recorded:
    """Read the frames that int8 is calibrated on; from the same file, other clips than those of the comparison.

    Raises:
        BadInput: if none are given.
    """
    if calibration.source is None:
        raise BadInput("int8 takes its ranges from recorded frames: give calibration=FILE or demos=FILE")
    return read_recorded(calibration.source, manifest, calibration.frames, 0.0)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `out`, to be renamed; it is removed if it was not."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
