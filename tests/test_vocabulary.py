"""One word for one thing: words that the project does not use stand in no code, message or document.

`WORDS` are searched in whole files, also inside identifiers (``blind`` finds ``blind_policy``). `NAMES` are Python
identifiers alone, since the word itself is ordinary English ("over", "within").
"""

import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path
from typing import NamedTuple

import pytest

import pixio_robot

ROOT = Path(pixio_robot.__file__).resolve().parent.parent
EXEMPT = {"tests/test_vocabulary.py", "LICENSE"}
LONGEST = 100  # characters of a line of prose in Markdown

# what is not written (a regular expression for a whole word): what is written instead
WORDS = {
    r"pictures?|pictured": "image; frame, for an image of an episode or a stream",
    r"felt": "proprio, proprioception",
    r"told|tells? (what|how)": "given, distinguished; privileged state, for a policy with the simulator's state",
    r"known[ _]state": "privileged state",
    r"blind|blindly": "proprioception-only, encoder `none`",
    r"learns[ _]to[ _]see": "trained end to end; has_trainable_encoder",
    r"side_by_side": "concat_cameras",
    r"last_scale": "output_init_scale",
    r"policy\.squash": "policy.tanh_output",
    r"policy\.chunk": "policy.horizon",
    r"new_share": "chunk_blend",
    r"execute=": "n_action_steps=",
    r"recompute=": "activation_checkpointing=",
    r"own_look|own_camera": "keep_appearance_prob, scene_camera_prob",
    r"gates?|ungated": "verification; allow_unverified",
    r"stretches": "clips",
    r"Saboteur|Spoilt": "FaultInjector, FaultyPolicy",
    r"Metronome|Photographer|SteppedEyes": "Rate, FrameRenderer, FrameSource",
    r"under_way|take_up": "state_dict, load_state_dict",
    r"asked_policy": "load_policy_source",
    r"anew": "again",
    r"mend|mends|mended|mending": "fix",
    r"leant on|leans on": "relied on",
    r"by heart": "overfit",
    r"of (one's|its|their|his) own": "own, separate, custom",
    r"(go|goes|going|went|gone) on": "continue, resume",
    r"begun": "started",
    r"not a message we wrote": "unexpected error",
    r"honest|honestly": "held-out (final checkpoint)",
}

# Python identifiers that are not used: what is used instead
NAMES = {
    "starts": "initial states; initial_state_hash; episode_starts for row offsets",
    "starting": "reset_mask",
    "running": "active_mask",
    "newest": "latest, or encode()",
    "within": "action_is_pad (inverse)",
    "over": "terminated",
    "held_out": "val_images",
    "towers": "wrapped_modules",
    "recompute": "activation_checkpointing",
    "Journal": "MetricLogger",
    "card": "manifest",
    "Card": "Manifest",
    "Port": "TensorSpec",
    "Bound": "ExecutionContext",
    "halve": "to_half",
    "Cell": "RunSpec",
    "Places": "Paths",
    "Room": "ResourceBudget",
    "moments": "eval_epochs",
    "Faulty": "FaultInjectingCamera",
    "Eyes": "FrameSource",
    "Moment": "StepRecord",
    "Ending": "EpisodeEnd",
    "Borrowed": "DetachedExtractor",
    "Begun": "WarmStart",
    "FrozenSight": "FrozenEncoder",
    "LearningSight": "FinetunedEncoder",
    "patience": "startup_timeout",
    "visit": "frames_per_scene",
}

# a word ends at an underscore too; a capital letter is a letter like any other
_WORDS = [
    (re.compile(rf"(?<![a-zA-Z])(?:{word})(?![a-zA-Z])", _case), said)
    for word, said, _case in (
        (word, said, 0 if re.search("[A-Z]", word) else re.IGNORECASE) for word, said in WORDS.items()
    )
]

pytestmark = pytest.mark.skipif(not (ROOT / "Makefile").is_file(), reason="runs in a checkout")


class Place(NamedTuple):
    """Where a rule is broken."""

    rule: str  # "words" or "lines"
    file: str
    line: int
    text: str


def files() -> list[Path]:
    """Return the checkout's source files and documents."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    kinds = (".py", ".md", ".yaml", ".j2", ".sh")
    found = [name for name in listed.splitlines() if name.endswith(kinds) or name == "Makefile"]
    return [ROOT / name for name in found if name not in EXEMPT and (ROOT / name).is_file()]


def words(file: Path) -> list[Place]:
    """Return where a file uses a word that is not written."""
    text, name = file.read_text(encoding="utf-8"), str(file.relative_to(ROOT))
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if name == "CHANGELOG.md" and line.startswith("|"):  # the table of renamed keys has the old ones
            continue
        for pattern, said in _WORDS:
            if match := pattern.search(line):
                found.append(Place("words", name, number, f"{match[0]!r}: {said}"))
    if file.suffix == ".py":
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME and token.string in NAMES:
                found.append(Place("words", name, token.start[0], f"`{token.string}`: {NAMES[token.string]}"))
    return found


def long_lines(file: Path) -> list[Place]:
    """Return lines of prose that are too long; tables, code blocks and lines that are one link are left out."""
    found, code = [], False
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if line.lstrip().startswith("```"):
            code = not code
        alone = line.lstrip().startswith("|") or re.fullmatch(r"\S+", line.strip())
        if len(line) > LONGEST and not code and not alone:
            found.append(Place("lines", str(file.relative_to(ROOT)), number, f"{len(line)} characters"))
    return found


def places() -> list[Place]:
    every = files()
    return [place for file in every for place in words(file)] + [
        place for file in every if file.suffix == ".md" for place in long_lines(file)
    ]


def test_files_keep_to_the_vocabulary() -> None:
    broken = places()
    assert not broken, "\n".join(f"{each.file}:{each.line}: {each.text}" for each in broken)


def test_the_rules_find_words_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    file = tmp_path / "a.py"
    file.write_text('blind_policy = 1  # over\nover = "Anew, a gated repository"\n')
    assert [(each.line, each.text.partition(":")[0]) for each in words(file)] == [
        (1, "'blind'"),
        (2, "'Anew'"),
        (2, "`over`"),
    ]
    page = tmp_path / "a.md"
    page.write_text(f"{'a ' * 60}\n| {'a ' * 60}|\n```\n{'a ' * 60}\n```\nhttps://{'a' * 120}\n")
    assert [each.line for each in long_lines(page)] == [1]
