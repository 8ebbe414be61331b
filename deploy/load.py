"""Load the policy of a robot: a bundle, a server, or a checkpoint, the only one that needs torch."""

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import BadInput
from ..files import sha256_of
from ..run_folder import digest
from .manifest import MANIFEST, Manifest, check_verified
from .runtime import RunningPolicy


@dataclass(frozen=True)
class PolicySource:
    """Where a policy comes from; exactly one of bundle, checkpoint and server is given."""

    bundle: str | None = None  # folder that pixio-robot export wrote
    checkpoint: str | None = None  # file, run by torch
    server: str | None = None  # HOST:PORT or a ws:// or wss:// address
    token_file: str | None = None  # file with the server's secret
    allow_unverified: bool = False  # use an int8 bundle that did not pass verification
    threads: int | None = None  # CPU threads of a bundle
    device: str = "cpu"  # of a checkpoint


class LoadedSource(NamedTuple):
    """A policy that is ready to act."""

    manifest: Manifest
    policy: RunningPolicy
    fingerprint: str  # hash of the policy and its manifest


def load_policy_source(source: PolicySource, stack: ExitStack) -> LoadedSource:
    """Load a policy.

    Args:
        stack: closes what was opened.

    Raises:
        BadInput: unless one of bundle, checkpoint and server is given.
        CheckpointError: for a bundle that is damaged, or is int8 and did not pass verification.
        RemoteError: if the server cannot be reached, or refuses.
    """
    given = [name for name in ("bundle", "checkpoint", "server") if getattr(source, name) is not None]
    if len(given) != 1:
        raise BadInput(
            "one policy is needed: bundle=FOLDER (of pixio-robot export), checkpoint=FILE or server=HOST:PORT; got "
            f"{', '.join(given) or 'none'}"
        )
    if source.bundle is not None:
        from .runtime import Runtime

        check_verified(source.bundle, source.allow_unverified)
        runtime = Runtime.load(source.bundle, source.threads)
        return LoadedSource(runtime.manifest, runtime, sha256_of(Path(source.bundle) / MANIFEST))
    if source.server is not None:
        from .serve.client import RemotePolicy
        from .serve.token_file import read_token

        token = None if source.token_file is None else read_token(Path(source.token_file))
        remote = stack.enter_context(RemotePolicy(source.server, token))
        return LoadedSource(remote.manifest, remote, digest(asdict(remote.manifest)))
    from ..hardware import choose_device
    from .eager import eager_policies

    manifest, policies, fingerprint = eager_policies(str(source.checkpoint), choose_device(source.device))
    return LoadedSource(manifest, policies(), fingerprint)
