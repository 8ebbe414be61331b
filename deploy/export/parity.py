"""The parity gate: is an exported program the eager policy, token for token, action for action, episode for episode?

Shapes: F frames, N tokens of a frame, D width, C chunk, A action.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from ...datasets.token_cache import encode
from ...encoders.load import Backbone
from ...metrics import EpisodeRecord, mcnemar, mean_score, paired_test
from ...policies.agent import Agent, Perception
from ...policies.visuomotor import LoadedPolicy
from ..eager import EagerPolicy
from ..runtime.runtime import Runtime
from .recorded import Recorded

SIGNIFICANT = 0.05


class Limits(NamedTuple):
    """What a precision may cost."""

    token_error: float  # relative L2 error of the tokens, over all frames
    cosine: float  # smallest between a token and its eager self
    action_error: float  # root mean square, as a share of the eager actions' own spread
    drop: float  # of closed-loop success, or of the suite's score [points of 100]
    episodes: int  # fewest closed-loop episodes without which there is no pass


# Half-precision rows are two to five times what a ViT-B/16 loses in these precisions (relative error: fp16 0.7e-3 to
# 1.8e-3, bf16 0.7e-2 to 1.4e-2; cosine 0.9999); int8 is twice its 3.2e-2 to 3.5e-2, and half of the 13 % to 18 % with
# which outliers in the activations break it. The fp32 row is the rounding of tokens to fp16, which falls otherwise now
# and then. NVIDIA's GR00T engines are accepted from a cosine of 0.999 on. docs/deployment.md has the measurements.
LIMITS = {
    "fp32": Limits(1e-3, 0.9999, 0.01, 5.0, 0),
    "fp16": Limits(5e-3, 0.9999, 0.02, 5.0, 0),
    "bf16": Limits(3e-2, 0.999, 0.10, 5.0, 0),
    "int8": Limits(6e-2, 0.99, 0.15, 5.0, 50),
}


@dataclass
class Check:
    """One figure and what it must keep to."""

    name: str
    value: float
    limit: float
    passed: bool


@dataclass
class Parity:
    """What the gate found; ``parity.json``."""

    precision: str
    checks: list[Check] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether something was compared and all of it kept its limit."""
        return bool(self.checks) and all(each.passed for each in self.checks)

    @property
    def closed_loop_shown(self) -> bool:
        """Whether episodes were run, and enough of them succeed for a drop to be seen."""
        return bool(self.details.get("closed_loop", {}).get("shows"))

    def most(self, name: str, value: float, limit: float) -> None:
        """Add a figure that may be at most `limit`; what is no number fails."""
        self.checks.append(Check(name, value, limit, bool(value <= limit)))

    def least(self, name: str, value: float, limit: float) -> None:
        """Add a figure that must be at least `limit`."""
        self.checks.append(Check(name, value, limit, bool(value >= limit)))

    def as_json(self) -> dict[str, Any]:
        """Return what is written."""
        return {"passed": self.passed, "closed_loop_shown": self.closed_loop_shown, **asdict(self)}


def compare_tokens(parity: Parity, name: str, exported: np.ndarray, eager: np.ndarray) -> None:
    """Compare tokens (F, N, D)."""
    limits = LIMITS[parity.precision]
    ours, theirs = exported.astype(np.float64), eager.astype(np.float64)
    lengths = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    cosines = (ours * theirs).sum(-1) / np.where(lengths > 0, lengths, 1)
    worst = np.linalg.norm(ours - theirs, axis=(1, 2)) / np.linalg.norm(theirs, axis=(1, 2))
    error = float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
    parity.most(f"{name}, relative error", error, limits.token_error)
    parity.least(f"{name}, smallest cosine", float(cosines.min()), limits.cosine)
    parity.details[name] = dict(worst_frame=float(worst.max()), mean_cosine=float(cosines.mean()), frames=len(eager))


def compare_actions(
    parity: Parity, exported: np.ndarray, eager: np.ndarray, recorded: np.ndarray | None = None
) -> None:
    """Compare actions (F, C, A), beside those recorded (F, A) where there are any."""
    spread = float(np.sqrt(((eager - eager.mean(axis=0)) ** 2).mean()))
    difference = float(np.sqrt(((exported - eager) ** 2).mean()))
    relative = difference / spread if spread > 0 else difference
    parity.most("actions, error of their spread", relative, LIMITS[parity.precision].action_error)
    details = dict(rms=difference, largest=float(np.abs(exported - eager).max()), spread=spread)
    if recorded is not None:
        for name, actions in (("eager", eager), ("exported", exported)):
            details[f"{name}_mse_to_recorded"] = float(((actions[:, 0] - recorded) ** 2).mean())
    parity.details["actions"] = details


def compare_recorded(
    parity: Parity, runtime: Runtime, loaded: LoadedPolicy, backbone: Backbone | None, recorded: Recorded
) -> None:
    """Compare a policy's tokens and actions on recorded frames; each stretch is an episode to both."""
    cpu = torch.device("cpu")
    eager = EagerPolicy(Agent(loaded, backbone, cpu))
    precision = "fp32" if loaded.encoder is None else loaded.encoder.precision
    perception = Perception(loaded.policy, backbone if loaded.encoder else None, precision, cpu)
    ours: list[np.ndarray] = []
    theirs: list[np.ndarray] = []
    our_tokens: list[np.ndarray] = []
    their_tokens: list[np.ndarray] = []
    for stretch in recorded.clips:
        eager.reset()
        runtime.reset()
        for observation in stretch:
            theirs.append(eager.act(observation))
            ours.append(runtime.act(observation))
            seen = runtime.seen()
            our_tokens += [seen["tokens"]] if "tokens" in seen else []
        if perception.backbone is not None:
            batch = {key: np.stack([each[key] for each in stretch]) for key in loaded.policy.images}
            their_tokens.append(perception.newest(batch).float().numpy())
    if their_tokens:
        compare_tokens(parity, "tokens", np.stack(our_tokens), np.concatenate(their_tokens))
    compare_actions(parity, np.stack(ours), np.stack(theirs), recorded.actions)
    parity.words.append(f"compared on {recorded.frames} frames of {recorded.source}")


def compare_encoder(parity: Parity, runtime: Runtime, backbone: Backbone, recorded: Recorded) -> None:
    """Compare the tokens of an encoder alone."""
    found: dict[str, list[np.ndarray]] = {"cls": [], "patches": []}
    wanted: dict[str, list[np.ndarray]] = {"cls": [], "patches": []}
    for stretch in recorded.clips:
        images = torch.from_numpy(np.stack([each["rgb"] for each in stretch]))
        for name, values in zip(("cls", "patches"), encode(backbone, images, True, "fp32"), strict=True):
            wanted[name].append(values.float().numpy())
        for observation in stretch:
            for name, value in runtime.encode(observation["rgb"]).items():
                found[name].append(value)
    for name in found:
        compare_tokens(parity, name, np.stack(found[name]), np.concatenate(wanted[name]))
    parity.words.append(f"compared on {recorded.frames} frames of {recorded.source}")


def compare_episodes(parity: Parity, exported: Sequence[EpisodeRecord], eager: Sequence[EpisodeRecord]) -> None:
    """Compare closed-loop episodes of equal starts, and say in words what they can show.

    Success at the last step is compared where episodes succeed or fail, else the suite's score.
    """
    limits, count = LIMITS[parity.precision], len(eager)
    ours, theirs = [row.success_last for row in exported], [row.success_last for row in eager]
    test = paired_test(eager, exported, "last")
    assert test is not None and [row.start for row in exported] == [row.start for row in eager]
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
        parity.words.append(
            f"closed loop: the score changes by {difference.value:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}]"
            f" points over {count} common episodes"
        )
    else:
        drop = 100 * (sum(theirs) - sum(ours)) / count
        worse = test.p < SIGNIFICANT and test.only_first > test.only_second
        parity.words += [
            f"closed loop: eager {sum(theirs)} of {count}, exported {sum(ours)} of {count}; {test.only_first} lost and "
            f"{test.only_second} gained (McNemar p = {test.p:.2g})",
            (f"{count} episodes show a drop from {100 * needed / count:.0f} points on" if count >= needed else few)
            + f", none gained by chance; with 95 % confidence at most {100 * bound:.1f} % are lost by exporting",
        ]
        if sum(theirs) < needed:
            parity.words.append(
                f"the eager policy itself succeeds {sum(theirs)} times: too seldom for a drop to be seen in success"
            )
            if limits.episodes:
                parity.least("closed loop, successes of the eager policy", float(sum(theirs)), float(needed))
    parity.most("closed loop, drop in points", float(drop), limits.drop)
    parity.most("closed loop, significantly worse", float(worse), 0.0)
    parity.details["closed_loop"] = details


def check_episodes(parity: Parity, count: int) -> None:
    """Fail where a precision is not trusted without closed-loop episodes and there are too few."""
    if needed := LIMITS[parity.precision].episodes:
        parity.least("closed loop, episodes", float(count), float(needed))
    elif not count:
        parity.words.append("no closed-loop episodes were run (episodes=0)")


def significant_losses() -> int:
    """Return how many episodes must be lost, with none gained, for McNemar's test to see it.

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
