"""Serve a policy over WebSocket: several clients, each with its own history, one computation at a time."""

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from http import HTTPStatus
from time import perf_counter
from types import TracebackType
from typing import Any

import numpy as np

from ...errors import BadInput, MissingExtra, RemoteError
from ..runtime import RunningPolicy
from .messages import HEADER_LIMIT, REPLY_LIMIT, VERSION, pack, unpack
from .served import Served

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClientLimits:
    """How much clients may use."""

    clients: int = 4  # at a time
    idle: float = 300.0  # wait for a whole message [s]
    send: float = 5.0  # wait for a client to take an answer [s]
    open: float = 5.0  # wait for a connection's handshake [s]


class PolicyServer:
    """Serves a policy; use as a context manager, or `start` and `close`.

    A client's next message is not read before its last one is answered, so a client that sends faster is slowed down by
    its own connection. A client can make the server hold a few messages of the manifest's size.

    Args:
        served: the policy; sessions are made at most once for each of the `clients` places.
        host: address to listen on.
        port: 0 is any free one.
        token: that clients must send; required unless `host` is a loopback address.
        limits: on clients.

    Raises:
        BadInput: if other machines could connect without a token.
        MissingExtra: if websockets is not installed.
    """

    def __init__(
        self,
        served: Served,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        limits: ClientLimits = ClientLimits(),
    ) -> None:
        _need_websockets()
        if not token and not _is_loopback(host):
            raise BadInput(
                f"host={host} lets other machines connect: give token_file= with a secret in it, or keep "
                "host=127.0.0.1 and come through an SSH tunnel"
            )
        self.manifest, self.host, self.port, self.limits = served.manifest, host, port, limits
        self._new_session, self._token, self._idle_sessions = served.new_session, token, list[RunningPolicy]()
        self._clients = 0
        self._worker = ThreadPoolExecutor(1, "policy")
        self._thread = threading.Thread(target=self._run, daemon=True, name="policy server")
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    @property
    def message_limit(self) -> int:
        """The largest message that is taken [bytes]: a header and one observation."""
        sizes = (math.prod(each.shape) * np.dtype(each.dtype).itemsize for each in self.manifest.observation)
        return 4 + HEADER_LIMIT + sum(sizes)

    def start(self) -> "PolicyServer":
        """Start to listen.

        Raises:
            RemoteError: if it cannot, e.g. because the port is taken.
        """
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            self._worker.shutdown()
            raise RemoteError(f"cannot listen on {self.host}:{self.port}: {self._error}") from self._error
        return self

    def wait(self) -> None:
        """Wait until the server ends.

        Raises:
            RemoteError: if it ended with an error.
        """
        while self._thread.is_alive():
            self._thread.join(0.5)
        if self._error is not None:
            raise RemoteError(f"the server ended: {self._error!r}") from self._error

    def close(self) -> None:
        """Stop listening and disconnect the clients."""
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
        self._worker.shutdown()

    def __enter__(self) -> "PolicyServer":
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:  # `start` and `wait` raise it
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        from websockets.asyncio.server import serve

        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        listening = serve(
            self._client,
            self.host,
            self.port,
            origins=[None],  # no browser: a web page must not reach a robot
            select_subprotocol=_same_version,
            process_request=self._admit,
            compression=None,  # a compressed message could exceed max_size
            create_connection=_connection_type(),
            max_size=self.message_limit,
            max_queue=1,
            open_timeout=self.limits.open,
            close_timeout=2,
            server_header=None,
            logger=_quiet(),
        )
        async with listening as server:
            self.port = server.sockets[0].getsockname()[1]
            self._ready.set()
            await self._stop.wait()

    def _admit(self, connection: Any, request: Any) -> Any:
        if self._token is None:
            return None
        given = request.headers.get_all("Authorization")
        if len(given) == 1 and hmac.compare_digest(_hash(given[0]), _hash(f"Bearer {self._token}")):
            return None
        return connection.respond(HTTPStatus.UNAUTHORIZED, "this server requires a token\n")

    async def _client(self, socket: Any) -> None:
        from websockets.exceptions import ConnectionClosed

        if self._clients >= self.limits.clients:
            await socket.close(1013, f"all {self.limits.clients} places are taken")
            return
        self._clients += 1
        policy: RunningPolicy | None = None
        try:
            policy = self._idle_sessions.pop() if self._idle_sessions else await self._compute(self._new_session)
            await self._compute(policy.reset)  # the history of the client before must not leak
            await self._send(socket, pack({"kind": "manifest", "manifest": asdict(self.manifest)}))
            while True:
                await self._send(socket, await self._answer(policy, await self._message(socket)))
        except ConnectionClosed:
            pass
        except TimeoutError:
            await socket.close(1008, f"no whole message within {self.limits.idle:g} s, or an answer not taken")
        except BadInput as error:
            log.warning("refused: %s", error)
            await self._refuse(socket, str(error))
        except Exception:  # a policy may fail in any way, and the other clients continue
            log.exception("the policy failed")
            await self._refuse(socket, "the policy failed; see the server's log")
        finally:
            self._clients -= 1
            if policy is not None:
                self._idle_sessions.append(policy)

    async def _refuse(self, socket: Any, why: str) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            await self._send(socket, pack({"kind": "error", "error": why[:1000]}))
            await socket.close(1008, "refused")
        except (ConnectionClosed, TimeoutError):
            pass

    async def _message(self, socket: Any) -> bytes:
        """Return the next message; one in fragments is refused, since their number has no limit."""
        whole: bytes | None = None
        async with asyncio.timeout(self.limits.idle):
            async for part in socket.recv_streaming():
                if whole is not None or not isinstance(part, bytes):
                    raise BadInput("a message is one binary frame")
                whole = part
        assert whole is not None
        return whole

    async def _send(self, socket: Any, data: bytes) -> None:
        async with asyncio.timeout(self.limits.send):
            await socket.send(data)

    async def _answer(self, policy: RunningPolicy, data: bytes) -> bytes:
        header, arrays = unpack(data)
        number, is_first = header.get("id"), header.get("starts")
        if header.get("kind") != "act" or type(number) is not int or type(is_first) is not bool:
            raise BadInput('the header must have "kind": "act", "id": a number, "starts": true or false')
        self.manifest.check(arrays)
        chunk, seconds = await self._compute(_act, policy, arrays, is_first)
        return pack({"kind": "chunk", "id": number, "seconds": seconds}, {"action": chunk})

    async def _compute(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function in the one thread that computes."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, function, *arguments)


def _act(policy: RunningPolicy, observation: dict[str, np.ndarray], is_first: bool) -> tuple[np.ndarray, float]:
    began = perf_counter()
    if is_first:
        policy.reset()
    chunk = np.asarray(policy.act(observation), np.float32)
    return chunk, perf_counter() - began


def _connection_type() -> Any:
    from websockets.asyncio.server import ServerConnection

    class Connection(ServerConnection):
        """A connection that is closed when unread replies (pongs included) pile up."""

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.transport.get_write_buffer_size() > 2 * REPLY_LIMIT:
                self.transport.abort()

    return Connection


def _same_version(connection: Any, offered: Any) -> Any:
    from websockets.exceptions import NegotiationError

    if VERSION not in offered:
        raise NegotiationError(f"this server speaks {VERSION}, the client {', '.join(offered) or 'no version'}")
    return VERSION


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _quiet() -> logging.Logger:
    """Return a logger for the library, which otherwise logs a traceback for every port scan."""
    logger = logging.getLogger(f"{__name__}.websockets")
    logger.setLevel(logging.CRITICAL)
    return logger


def _need_websockets() -> None:
    try:
        import websockets  # noqa: F401
    except ImportError as error:
        raise MissingExtra("a remote policy", "remote") from error
