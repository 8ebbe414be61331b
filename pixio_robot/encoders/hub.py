"""Download weights from the Hugging Face hub: JSON and safetensors files only, no pickles."""

import re
from pathlib import Path

from ..errors import CheckpointError, MissingExtra

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")  # owner/name
PATTERNS = ["*.json", "*.safetensors"]


def fetch(repository: str, patterns: list[str] | None = None) -> Path:
    """Return a local folder with the repository's JSON and safetensors files; download what is not cached.

    Args:
        repository: ``owner/name``.
        patterns: glob patterns of the files to fetch; JSON and safetensors unless given.

    Raises:
        MissingExtra: if huggingface_hub is not installed.
        CheckpointError: if the repository is gated, missing, unreachable or not cached while offline.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise MissingExtra(f"encoder {repository!r} from the Hugging Face hub", "hf") from error
    page = f"https://huggingface.co/{repository}"
    by_hand = "or download its files elsewhere and use their folder instead of the name"
    if patterns is not None:
        by_hand = "or copy the hub cache (HF_HOME) from a machine that has it"
    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=patterns or PATTERNS))
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{repository} is gated: accept its licence at {page}, then `hf auth login` (or set HF_TOKEN), {by_hand}"
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise CheckpointError(
            f"no folder {repository!r} and no such repository on the hub; check the name, "
            f"or `hf auth login` if {page} is private"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"{repository} is not in the local cache and the hub is out of reach (offline, or HF_HUB_OFFLINE is set); "
            f"connect once, {by_hand}"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        raise CheckpointError(f"the hub answered {status} for {repository}; try again later, {by_hand}") from error
    except Exception as error:  # the transport's errors; their classes depend on the version of the hub client
        raise CheckpointError(
            f"fetching {repository} from the hub failed ({type(error).__name__}: {error}); try again, {by_hand}"
        ) from error
