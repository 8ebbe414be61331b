"""The client of a remote policy; a `RunningPolicy` like any other."""

import socket
import threading
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from time import monotonic
from types import TracebackType
from typing import Any

import numpy as np

from ...errors import BadInput, MissingExtra, RemoteError
from ..manifest import Manifest
from .messages import REPLY_LIMIT, VERSION, Message, pack, unpack


class RemotePolicy:
    """A policy that a `PolicyServer` computes; a `RunningPolicy`; close it at the end.

    Args:
        address: the server's, e.g. 127.0.0.1:8770 or wss://robot.example:443.
        token: that it requires.
        timeout: for an observation to be sent and answered [s]; connecting may take as long.

    Raises:
        RemoteError: if there is no such server, it refuses, or it speaks another version.
        MissingExtra: if websockets is not installed.
    """

    def __init__(self, address: str, token: str | None = None, timeout: float = 5.0) -> None:
        self.address = address if "://" in address else f"ws://{address}"
        self.timeout, self.server_seconds = timeout, 0.0
        self._token, self._number, self._starts = token, 0, True
        self._socket: Any = None
        self._open = ExitStack()  # closed with the connection
        self.manifest = self._connect()

    def reset(self) -> None:
        """Forget the past: the next observation starts an episode. Connects again if the connection was lost.

        Raises:
            RemoteError: if that fails, or the server has another policy now.
        """
        self._starts = True
        if self._socket is None and (manifest := self._connect()) != self.manifest:
            self.close()
            raise RemoteError(
                f"{self.address} serves another policy now ({manifest.task}, {manifest.files or manifest.target})"
            )

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the next actions, (H, A) float32.

        After an error the server's history is unknown: call `reset` before the next episode.

        Raises:
            BadInput: if the observation does not fit the manifest; it is not sent.
            RemoteError: if the connection is lost, the answer is late or refuses.
        """
        self.manifest.check(observation)
        if self._socket is None:
            raise RemoteError(f"the connection to {self.address} was lost; reset to connect again")
        self._number += 1
        header = {"kind": "act", "id": self._number, "starts": self._starts}
        arrays = {tensor.name: observation[tensor.name] for tensor in self.manifest.observation}
        reply = self._exchange(pack(header, arrays))
        chunk = reply.arrays.get("action", np.zeros(0, np.float32))
        fits = chunk.shape[1:] == (self.manifest.actions,) and chunk.dtype == np.float32
        if reply.header.get("id") != self._number or not fits:
            raise self._lost("its reply does not match the request")
        self._starts = False
        self.server_seconds = float(reply.header.get("seconds", 0.0))
        return chunk

    def close(self) -> None:
        """End the connection."""
        self._socket = None
        self._open.close()

    def __enter__(self) -> "RemotePolicy":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _connect(self) -> Manifest:
        try:
            from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI
            from websockets.sync.client import connect
            from websockets.typing import Subprotocol
        except ImportError as error:
            raise MissingExtra("a remote policy", "remote") from error
        headers = None if self._token is None else {"Authorization": f"Bearer {self._token}"}
        try:
            connecting = connect(
                self.address,
                additional_headers=headers,
                subprotocols=[Subprotocol(VERSION)],
                compression=None,
                proxy=None,
                open_timeout=self.timeout,
                close_timeout=1,
                max_size=REPLY_LIMIT,
                user_agent_header=None,
            )
            self._socket = self._open.enter_context(connecting)
        except InvalidStatus as error:
            said = bytes(error.response.body or b"")[:300].decode(errors="replace").strip()
            raise RemoteError(f"{self.address} refuses (HTTP {error.response.status_code}): {said}") from error
        except InvalidURI as error:
            raise BadInput(f"{self.address} is no address; give HOST:PORT, e.g. 127.0.0.1:8770") from error
        except (OSError, InvalidHandshake) as error:
            raise RemoteError(f"no policy server answers at {self.address} ({error}); start one with: serve") from error
        if self._socket.subprotocol != VERSION:
            raise self._lost(f"it does not speak {VERSION}")
        try:
            return Manifest.of(self._exchange(None).header["manifest"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._lost(f"its manifest cannot be read ({error!r})") from error

    def _exchange(self, message: bytes | None) -> Message:
        """Send a message, if there is one, and return the next that comes."""
        from websockets.exceptions import ConnectionClosed

        try:
            end = monotonic() + self.timeout
            if message is not None:
                self._send(message)
            reply = unpack(self._socket.recv(max(0.0, end - monotonic()), decode=False), REPLY_LIMIT)
        except TimeoutError as error:
            self._cut()  # a closing handshake would take as long again
            raise self._lost(f"no answer within {self.timeout:g} s") from error
        except ConnectionClosed as error:
            raise self._lost(str(error.rcvd.reason) if error.rcvd else "the connection broke") from error
        except BadInput as error:
            raise self._lost(f"its answer cannot be read: {error}") from error
        if reply.header.get("kind") == "error":
            raise self._lost(f"it refuses: {str(reply.header.get('error'))[:1000]}")
        return reply

    def _send(self, message: bytes) -> None:
        """Send a message. The library has no time-out for a server that does not read; a timer thread cuts it off."""
        from websockets.exceptions import ConnectionClosed

        late = threading.Event()

        def cut() -> None:
            late.set()
            self._cut()

        timer = threading.Timer(self.timeout, cut)
        timer.daemon = True
        timer.start()
        try:
            self._socket.send(message)
        except ConnectionClosed as error:
            if late.is_set():
                raise TimeoutError from error
            raise
        finally:
            timer.cancel()

    def _cut(self) -> None:
        """Break off the connection."""
        with suppress(OSError):
            self._socket.socket.shutdown(socket.SHUT_RDWR)

    def _lost(self, why: str) -> RemoteError:
        self.close()
        return RemoteError(f"{self.address}: {why}")
