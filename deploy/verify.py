"""Verification: compare an exported program with the eager policy in tokens, actions and closed-loop episodes.

Shapes: F frames, N tokens of a frame, D width, H horizon, A action.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..datasets.token_cache import encode
from ..encoders.encoder import Backbone
from ..envs.registry import tasks
from ..errors import BadInput, CheckpointError
from ..files import sha256_of
from ..metrics import EpisodeRecord, mcnemar, mean_score, paired_test
from ..policies.evaluate import task_of
from ..policies.loaded import LoadedPolicy
from ..progress import stage
from ..run_folder import read_json, write_json
from .closed_loop import EpisodePairs, run_episodes
from .eager import EagerPolicy
from .export.source import ExportSource
from .manifest import NOISE, VERIFICATION, Manifest
from .recorded import Recorded, read_recorded
from .runtime import Runtime

ROWS = "episodes.jsonl"

SIGNIFICANT = 0.05


class Tolerance(NamedTuple):
    """How far a program in a precision may be from the eager policy."""

    token_error: float  # relative L2 error of the tokens, over all frames
    cosine: float  # smallest between a token and the eager one
    action_error: float  # root mean square, as a share of the eager actions' own spread
    drop: float  # of closed-loop success, or of the suite's score [points of 100]
    episodes: int  # closed-loop episodes that are needed to pass


# Half-precision rows are two to five times what a ViT-B/16 loses in these precisions (relative error: fp16 0.7e-3 to
# 1.8e-3, bf16 0.7e-2 to 1.4e-2; cosine 0.9999); int8 is twice its 3.2e-2 to 3.5e-2, and half of the 13 % to 18 % with
# which outliers in the activations break it. The fp32 row is the rounding of tokens to fp16, which differs now
# and then. NVIDIA's GR00T engines are accepted from a cosine of 0.999 on. docs/deployment.md has the measurements.
TOLERANCES = {
    "fp32": Tolerance(1e-3, 0.9999, 0.01, 5.0, 0),
    "fp16": Tolerance(5e-3, 0.9999, 0.02, 5.0, 0),
    "bf16": Tolerance(3e-2, 0.999, 0.10, 5.0, 0),
    "int8": Tolerance(6e-2, 0.99, 0.15, 5.0, 50),
}


@dataclass
class Check:
    """One measured value and its limit."""

    name: str
    value: float
    limit: float
    passed: bool


@dataclass
class Verification:
    """The result of a comparison; ``verification.json``."""

    precision: str
    checks: list[Check] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether something was compared and every value kept its limit."""
        return bool(self.checks) and all(each.passed for each in self.checks)

    @property
    def closed_loop_shown(self) -> bool:
        """Whether episodes were run, and enough of them succeed for a drop to be visible."""
        return bool(self.details.get("closed_loop", {}).get("shows"))

    def check_at_most(self, name: str, value: float, limit: float) -> None:
        """Add a value that may be at most `limit`; NaN fails."""
        self.checks.append(Check(name, value, limit, bool(value <= limit)))

    def check_at_least(self, name: str, value: float, limit: float) -> None:
        """Add a value that must be at least `limit`; NaN fails."""
        self.checks.append(Check(name, value, limit, bool(value >= limit)))

    def as_json(self) -> dict[str, Any]:
        """Return the contents of ``verification.json``."""
        return {"passed": self.passed, "closed_loop_shown": self.closed_loop_shown, **asdict(self)}


@dataclass(frozen=True)
class Comparison:
    """What an exported program is compared on."""

    demos: str | None  # demonstration file or recording
    frames: int = 128  # of it, in clips evenly spaced
    episodes: int = 100  # closed-loop episodes that both run; 0 runs none
    first_seed: int = 10_000  # of the first of these
    envs: int | None = None  # environments in parallel; None is twice the cores
    cache: Path = Path("runs/cache")  # folder where the eager policy's episodes are kept
    threads: int | None = None  # CPU threads of the program; None is the library's choice


def verify_bundle(folder: Path, checkpoint: Path | None, comparison: Comparison) -> Verification:
    """Compare an existing bundle again and replace its ``verification.json``.

    Args:
        checkpoint: that a policy was exported from; None for an encoder alone.

    Raises:
        BadInput: if the checkpoint is missing from the call.
        CheckpointError: if the folder is no bundle, or was exported from another checkpoint or other weights.
    """
    source = source_of(folder, Manifest.read(folder), checkpoint)
    (folder / ROWS).unlink(missing_ok=True)
    recorded = comparison_frames(comparison, Manifest.read(folder, check=False))
    verification = compare_bundle(folder, source, comparison, recorded)
    write_json(folder / VERIFICATION, verification.as_json())
    return verification


def source_of(folder: Path, manifest: Manifest, checkpoint: Path | None) -> ExportSource:
    """Load the policy or the encoder that a bundle was exported from; raises as `verify_bundle` does."""
    if manifest.policy is not None:
        if checkpoint is None:
            raise BadInput("give checkpoint=FILE, the policy that the bundle was exported from")
        if sha256_of(checkpoint) != manifest.policy["sha256"]:
            raise CheckpointError(f"{folder} was exported from another checkpoint than {checkpoint}")
        return ExportSource.of_checkpoint(checkpoint)
    known = manifest.encoder or {}
    source = ExportSource.of_encoder(str(known.get("name")))
    if source.fingerprint != known.get("fingerprint"):
        raise CheckpointError(f"{folder} was exported from other weights than {known.get('name')!r} has now")
    return source


def comparison_frames(comparison: Comparison, manifest: Manifest) -> Recorded:
    """Read the frames that a program is compared on.

    Raises:
        BadInput: if none are given, or closed-loop episodes are requested and the task cannot be simulated.
    """
    if manifest.kind == "policy" and comparison.episodes and manifest.task not in tasks():
        raise BadInput(
            f"{manifest.task or 'what recorded the demonstrations'} cannot be simulated, so no episodes can be "
            "compared; give episodes=0 to compare tokens and actions only"
        )
    if comparison.demos is None:
        raise BadInput(
            "verification compares on recorded frames: give demos=FILE, e.g. what the policy was trained on; "
            "export with verify=false writes a bundle without comparing it"
        )
    return read_recorded(comparison.demos, manifest, comparison.frames, 0.5)


def compare_bundle(folder: Path, source: ExportSource, comparison: Comparison, recorded: Recorded) -> Verification:
    """Compare a bundle: recorded frames first, closed-loop episodes only if these pass."""
    runtime = Runtime.load(folder, comparison.threads, check=False)  # the hashes were checked, and this is the check
    verification = Verification(runtime.manifest.precision)
    if source.loaded is None:
        compare_encoder(verification, runtime, source.encoder, recorded)
        return verification
    with stage("compare actions", 1) as bar:
        compare_recorded(verification, runtime, source.loaded, recorded)
        bar.advance(1)
    if not verification.passed:
        verification.words.append("no episodes were run, because recorded frames already differ too much")
        return verification
    check_episodes(verification, comparison.episodes)
    if comparison.episodes:
        rows = run_episodes(
            runtime,
            source.loaded,
            task_of(source.loaded.provenance, "the checkpoint"),
            folder,
            EpisodePairs(comparison.episodes, comparison.first_seed, comparison.envs, comparison.cache),
        )
        compare_episodes(verification, *rows)
    return verification


def read_verification(folder: Path) -> Verification | None:
    """Return how the comparison of a bundle went; None if it was not compared."""
    if not (values := read_json(folder / VERIFICATION)):
        return None
    checks = [Check(**each) for each in values["checks"]]
    return Verification(values["precision"], checks, values["words"], values["details"])


def compare_tokens(verification: Verification, name: str, exported: np.ndarray, eager: np.ndarray) -> None:
    """Compare tokens (F, N, D)."""
    tolerance = TOLERANCES[verification.precision]
    ours, theirs = exported.astype(np.float64), eager.astype(np.float64)
    lengths = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    cosines = (ours * theirs).sum(-1) / np.where(lengths > 0, lengths, 1)
    worst = np.linalg.norm(ours - theirs, axis=(1, 2)) / np.linalg.norm(theirs, axis=(1, 2))
    error = float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
    verification.check_at_most(f"{name}, relative error", error, tolerance.token_error)
    verification.check_at_least(f"{name}, smallest cosine", float(cosines.min()), tolerance.cosine)
    verification.details[name] = dict(
        worst_frame=float(worst.max()), mean_cosine=float(cosines.mean()), frames=len(eager)
    )


def compare_actions(
    verification: Verification, exported: np.ndarray, eager: np.ndarray, recorded: np.ndarray | None = None
) -> None:
    """Compare actions (F, H, A), and both with the recorded ones (F, A) if there are any."""
    spread = float(np.sqrt(((eager - eager.mean(axis=0)) ** 2).mean()))
    difference = float(np.sqrt(((exported - eager) ** 2).mean()))
    relative = difference / spread if spread > 0 else difference
    verification.check_at_most(
        "actions, error of their spread", relative, TOLERANCES[verification.precision].action_error
    )
    details = dict(rms=difference, largest=float(np.abs(exported - eager).max()), spread=spread)
    if recorded is not None:
        for name, actions in (("eager", eager), ("exported", exported)):
            details[f"{name}_mse_to_recorded"] = float(((actions[:, 0] - recorded) ** 2).mean())
    verification.details["actions"] = details


def compare_recorded(verification: Verification, runtime: Runtime, loaded: LoadedPolicy, recorded: Recorded) -> None:
    """Compare a policy's tokens and actions on recorded frames; each clip is an episode for both, with equal noise."""
    eager, rng = EagerPolicy(loaded), np.random.default_rng(0)
    ours: list[np.ndarray] = []
    theirs: list[np.ndarray] = []
    names = [f"{key}.{kind}" for key in loaded.vision.spec.cameras for kind in loaded.vision.spec.kinds]
    our_tokens: dict[str, list[np.ndarray]] = {name: [] for name in names}
    their_tokens: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for clip in recorded.clips:
        eager.reset()
        runtime.reset()
        for observation in clip:
            if (noise := runtime.manifest.noise) is not None:
                drawn = rng.standard_normal(noise.shape).astype(np.float32)
                theirs.append(eager.act({**observation, NOISE: drawn}))
                ours.append(runtime.act({**observation, NOISE: drawn}))
            else:
                theirs.append(eager.act(observation))
                ours.append(runtime.act(observation))
            for name, values in runtime.other_outputs().items():
                if name in our_tokens:
                    our_tokens[name].append(values)
        if loaded.vision.encoder is not None:
            batch = {key: np.stack([each[key] for each in clip]) for key in loaded.vision.keys}
            for name, tokens in loaded.vision.encode(batch).items():
                if name in their_tokens:
                    their_tokens[name].append(tokens.float().numpy())
    if loaded.vision.encoder is not None:
        for name in names:
            label = "tokens" if len(names) == 1 else f"tokens {name}"
            compare_tokens(verification, label, np.stack(our_tokens[name]), np.concatenate(their_tokens[name]))
    compare_actions(verification, np.stack(ours), np.stack(theirs), recorded.actions)
    verification.words.append(f"compared on {recorded.frames} frames of {recorded.source}")


def compare_encoder(verification: Verification, runtime: Runtime, backbone: Backbone, recorded: Recorded) -> None:
    """Compare the tokens of an encoder alone."""
    found: dict[str, list[np.ndarray]] = {"cls": [], "patches": []}
    wanted: dict[str, list[np.ndarray]] = {"cls": [], "patches": []}
    for clip in recorded.clips:
        images = torch.from_numpy(np.stack([each["rgb"] for each in clip]))
        for name, values in zip(("cls", "patches"), encode(backbone, images, True, "fp32"), strict=True):
            wanted[name].append(values.float().numpy())
        for observation in clip:
            for name, value in runtime.encode(observation["rgb"]).items():
                found[name].append(value)
    for name in found:
        compare_tokens(verification, name, np.stack(found[name]), np.concatenate(wanted[name]))
    verification.words.append(f"compared on {recorded.frames} frames of {recorded.source}")


def compare_episodes(
    verification: Verification, exported: Sequence[EpisodeRecord], eager: Sequence[EpisodeRecord]
) -> None:
    """Compare closed-loop episodes with equal initial states, and say what they can show.

    Success at the last step is compared where episodes succeed or fail, else the suite's score.
    """
    tolerance, count = TOLERANCES[verification.precision], len(eager)
    ours, theirs = [row.success_last for row in exported], [row.success_last for row in eager]
    test = paired_test(eager, exported, "last")
    if test is None or [row.start for row in exported] != [row.start for row in eager]:
        raise BadInput("the episodes to compare do not have the same initial states")
    needed = significant_losses()
    scored = any(row.score not in (0.0, 100.0) for row in [*eager, *exported])
    bound, few = most_lost(test.only_first, count), f"{count} episodes are too few to show a drop"
    details: dict[str, Any] = dict(
        episodes=count,
        eager=sum(theirs),
        exported=sum(ours),
        lost=test.only_first,
        gained=test.only_second,
        p=test.p,
        most_lost=bound,
        shows=scored or min(count, sum(theirs)) >= needed,
    )
    if scored:
        difference = mean_score(b.score - a.score for a, b in zip(eager, exported, strict=True))
        details["score_difference"] = difference._asdict()
        worse, drop = difference.high < 0, -difference.value
        verification.words.append(
            f"closed loop: the score changes by {difference.value:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}]"
            f" points over {count} common episodes"
        )
    else:
        drop = 100 * (sum(theirs) - sum(ours)) / count
        worse = test.p < SIGNIFICANT and test.only_first > test.only_second
        verification.words += [
            f"closed loop: eager {sum(theirs)} of {count}, exported {sum(ours)} of {count}; {test.only_first} lost and "
            f"{test.only_second} gained (McNemar p = {test.p:.2g})",
            (f"{count} episodes show a drop from {100 * needed / count:.0f} points on" if count >= needed else few)
            + f", none gained by chance; with 95 % confidence at most {100 * bound:.1f} % are lost by exporting",
        ]
        if sum(theirs) < needed:
            verification.words.append(
                f"the eager policy itself succeeds {sum(theirs)} times: too rarely for a drop in success to be visible"
            )
            if tolerance.episodes:
                verification.check_at_least(
                    "closed loop, successes of the eager policy", float(sum(theirs)), float(needed)
                )
    verification.check_at_most("closed loop, drop in points", float(drop), tolerance.drop)
    verification.check_at_most("closed loop, significantly worse", float(worse), 0.0)
    verification.details["closed_loop"] = details


def check_episodes(verification: Verification, count: int) -> None:
    """Fail if the precision needs closed-loop episodes and there are too few."""
    if needed := TOLERANCES[verification.precision].episodes:
        verification.check_at_least("closed loop, episodes", float(count), float(needed))
    elif not count:
        verification.words.append("no closed-loop episodes were run (episodes=0)")


def significant_losses() -> int:
    """Return how many episodes must be lost, with none gained, for McNemar's test to be significant.

    >>> significant_losses()
    6
    """
    lost = 1
    while mcnemar([True] * lost, [False] * lost).p >= SIGNIFICANT:
        lost += 1
    return lost


def most_lost(lost: int, count: int) -> float:
    """Return the one-sided 95 % upper bound (Clopper and Pearson 1934) of the share of episodes lost.

    >>> round(most_lost(0, 100), 3)
    0.03
    """
    from scipy.stats import beta

    return 1.0 if lost >= count else float(beta.ppf(0.95, lost + 1, count - lost))
