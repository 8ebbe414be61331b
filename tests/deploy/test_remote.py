"""A remote policy: the same actions, clients do not disturb each other, malformed input is refused."""

import base64
import hashlib
import json
import os
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

pytest.importorskip("websockets", reason="needs the extra remote")

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from pixio_robot import cli
from pixio_robot.datasets.dataset import open_dataset
from pixio_robot.deploy.commands import Serve, new_server
from pixio_robot.deploy.manifest import Manifest, TensorSpec
from pixio_robot.deploy.serve.client import RemotePolicy
from pixio_robot.deploy.serve.messages import HEADER_LIMIT, VERSION, pack, unpack
from pixio_robot.deploy.serve.served import Served
from pixio_robot.deploy.serve.server import ClientLimits, PolicyServer
from pixio_robot.errors import BadInput, DataError, RemoteError

SIDE = 8
MANIFEST = Manifest(
    kind="policy",
    target="onnx",
    precision="fp32",
    program="program.onnx",
    observation=[TensorSpec("rgb", (SIDE, SIDE, 3), "uint8", "RGB"), TensorSpec("proprio", (2,), "float32")],
    outputs=[TensorSpec("action", (3, 2), "float32")],
    task="toy/reach",
    horizon=3,
    action_low=[-1.0] * 2,
    action_high=[1.0] * 2,
)


class Counting:
    """Says how many observations it saw since it was reset, and what they were."""

    made: ClassVar[list["Counting"]] = []
    busy = 0

    def __init__(self) -> None:
        self.seen = self.calls = 0
        self.sleep = 0.0
        Counting.made.append(self)

    def reset(self) -> None:
        self.seen = 0

    def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        Counting.busy += 1
        assert Counting.busy == 1, "two computations at a time"
        time.sleep(self.sleep)
        if observation["proprio"][0] == 99:
            Counting.busy -= 1
            raise ValueError("a bug")
        self.seen += 1
        self.calls += 1
        Counting.busy -= 1
        return np.array([[self.seen, float(observation["rgb"].sum()) + observation["proprio"][1]]] * 3, np.float32)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Counting.made, Counting.busy = [], 0


@pytest.fixture
def serve() -> Iterator[Callable[..., PolicyServer]]:
    servers = []

    def start(**how: Any) -> PolicyServer:
        servers.append(PolicyServer(Served(MANIFEST, Counting), **how).start())
        return servers[-1]

    yield start
    for each in servers:
        each.close()
        assert not each._thread.is_alive()


def _address(server: PolicyServer) -> str:
    return f"127.0.0.1:{server.port}"


def _observation(value: int = 1, proprio: float = 0.0) -> dict[str, np.ndarray]:
    return {"rgb": np.full((SIDE, SIDE, 3), value, np.uint8), "proprio": np.array([0, proprio], np.float32)}


def _raw(server: PolicyServer, **how: Any) -> ClientConnection:
    """Connect as one who keeps to the handshake and then does as he likes; the manifest is read."""
    client = connect(
        f"ws://{_address(server)}",
        subprotocols=[VERSION],
        compression=None,
        proxy=None,
        open_timeout=30,
        close_timeout=0.2,
        **how,
    ).__enter__()
    assert unpack(client.recv(30, decode=False)).header["kind"] == "manifest"
    return client


def _request(number: int = 1, is_first: bool = True, **arrays: np.ndarray) -> bytes:
    return pack({"kind": "act", "id": number, "starts": is_first}, {**_observation(), **arrays})


def _still_serves(server: PolicyServer) -> None:
    with RemotePolicy(_address(server), timeout=30) as policy:
        assert policy.act(_observation(2))[0].tolist() == [1, 2 * SIDE * SIDE * 3]


# messages


def test_messages_survive_a_round_trip() -> None:
    random = np.random.default_rng(0)
    arrays = {
        "rgb": random.integers(0, 255, (5, 7, 3), dtype=np.uint8),
        "proprio": random.normal(size=3).astype(np.float32),
        "depth": random.normal(size=(4, 6)).astype(np.float32).T,  # not row by row
        "empty": np.zeros((0, 3), np.float32),
        "starts": np.array(True),
    }
    header, found = unpack(pack({"kind": "act", "id": 3}, arrays))
    assert header == {"kind": "act", "id": 3} and list(found) == list(arrays)
    for name, value in arrays.items():
        assert found[name].dtype == value.dtype and np.array_equal(found[name], value) and found[name].flags.writeable


def _broken(arrays: Any, body: bytes = b"", **header: Any) -> bytes:
    text = json.dumps({"kind": "act", "id": 1, "starts": True, **header, "arrays": arrays}).encode()
    return len(text).to_bytes(4, "little") + text + body


MALFORMED = {
    "nothing": b"",
    "three bytes": b"abc",
    "length beyond the end": (500).to_bytes(4, "little") + b"{}",
    "header too long": (HEADER_LIMIT + 1).to_bytes(4, "little") + b" " * (HEADER_LIMIT + 1),
    "no JSON": (4).to_bytes(4, "little") + b"{{{{",
    "no text": (2).to_bytes(4, "little") + b"\xff\xfe",
    "pickle": (10).to_bytes(4, "little") + b"\x80\x04cos\nsystem"[:10],
    "deep": (16000).to_bytes(4, "little") + b"[" * 16000,
    "long number": (8000).to_bytes(4, "little") + b'{"arrays":' + b"9" * 7989 + b"}",
    "a list": (2).to_bytes(4, "little") + b"[]",
    "no arrays": (2).to_bytes(4, "little") + b"{}",
    "arrays of numbers": _broken([1, 2]),
    "shape of text": _broken([{"name": "rgb", "dtype": "uint8", "shape": "88"}]),
    "negative side": _broken([{"name": "rgb", "dtype": "uint8", "shape": [-8, -8]}], b"0" * 64),
    "side of truth": _broken([{"name": "rgb", "dtype": "uint8", "shape": [True]}], b"0"),
    "broken side": _broken([{"name": "rgb", "dtype": "uint8", "shape": [1.0]}], b"0"),
    "terabytes": _broken([{"name": "rgb", "dtype": "float32", "shape": [2**30, 2**30, 2**30]}]),
    "overflow": _broken([{"name": "rgb", "dtype": "float32", "shape": [2**31 - 1] * 4}], b"0" * 64),
    "five axes": _broken([{"name": "rgb", "dtype": "uint8", "shape": [1] * 5}], b"0"),
    "objects": _broken([{"name": "rgb", "dtype": "object", "shape": [1]}], b"0" * 8),
    "unknown type": _broken([{"name": "rgb", "dtype": ["uint8"], "shape": [1]}], b"0"),
    "twice": _broken([{"name": "rgb", "dtype": "uint8", "shape": [1]}] * 2, b"00"),
    "bytes left": _broken([], b"0"),
    "bytes missing": _broken([{"name": "rgb", "dtype": "uint8", "shape": [3]}], b"00"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_messages_are_refused_before_allocation(what: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadInput):
            unpack(MALFORMED[what])
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


# server and client


def test_each_client_has_its_own_history(serve: Callable[..., PolicyServer]) -> None:
    server = serve()
    with RemotePolicy(_address(server), timeout=30) as one, RemotePolicy(_address(server), timeout=30) as other:
        assert one.manifest == MANIFEST and one.server_seconds == 0
        pixels = SIDE * SIDE * 3
        assert one.act(_observation(1)).shape == (3, 2)
        assert other.act(_observation(2, 0.5))[0].tolist() == [1, 2 * pixels + 0.5]
        assert one.act(_observation(3))[0].tolist() == [2, 3 * pixels]
        other.reset()
        assert other.act(_observation(0))[0].tolist() == [1, 0] and one.act(_observation(0))[0].tolist() == [3, 0]
        assert one.server_seconds > 0
    assert len(Counting.made) == 2


def test_many_clients_at_once_are_computed_one_at_a_time(serve: Callable[..., PolicyServer]) -> None:
    server, wrong = serve(), []

    def drive(value: int) -> None:
        with RemotePolicy(_address(server), timeout=30) as policy:
            for step in range(20):
                if policy.act(_observation(value))[0].tolist() != [step + 1, value * SIDE * SIDE * 3]:
                    wrong.append(value)

    threads = [threading.Thread(target=drive, args=(value,)) for value in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong and sum(each.calls for each in Counting.made) == 80


def test_clients_are_limited_and_sessions_reused(serve: Callable[..., PolicyServer]) -> None:
    server = serve(limits=ClientLimits(clients=1))
    for _ in range(3):
        with RemotePolicy(_address(server), timeout=30) as policy:
            assert policy.act(_observation())[0, 0] == 1
            with pytest.raises(RemoteError, match="all 1 places are taken"):
                RemotePolicy(_address(server), timeout=30)
        _wait(lambda: server._clients == 0)
    assert len(Counting.made) == 1


def test_a_session_keeps_no_history_of_the_client_before(serve: Callable[..., PolicyServer]) -> None:
    server = serve(limits=ClientLimits(clients=1))
    with RemotePolicy(_address(server), timeout=30) as policy:
        for _ in range(3):
            policy.act(_observation())
    _wait(lambda: server._clients == 0)
    curious = _raw(server)
    curious.send(_request(is_first=False))
    assert unpack(curious.recv(30, decode=False)).arrays["action"][0, 0] == 1
    curious.close()


def _wait(until: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_a_token_is_required_and_compared(serve: Callable[..., PolicyServer]) -> None:
    server = serve(token="a secret of some length")
    for wrong in (None, "", "a secret of some lengtH", "a secret of some lengt"):
        with pytest.raises(RemoteError, match=r"HTTP 401.*requires a token"):
            RemotePolicy(_address(server), token=wrong)
    twice = [("Authorization", "Bearer a secret of some length")] * 2
    with pytest.raises(InvalidStatus):
        _raw(server, additional_headers=twice)
    with RemotePolicy(_address(server), token="a secret of some length") as policy:
        assert policy.act(_observation())[0, 0] == 1
    assert len(Counting.made) == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "robot.example", ""])
def test_other_machines_need_a_token(host: str) -> None:
    with pytest.raises(BadInput, match="token_file"):
        PolicyServer(Served(MANIFEST, Counting), host=host)


def test_other_versions_and_browsers_are_refused(serve: Callable[..., PolicyServer]) -> None:
    server = serve()
    for protocols in (["pixio-robot-policy.2"], None):
        with pytest.raises(InvalidStatus) as caught:
            connect(f"ws://{_address(server)}", subprotocols=protocols, proxy=None).__enter__()
        assert caught.value.response.status_code == 400 and VERSION.encode() in (caught.value.response.body or b"")
    with pytest.raises(InvalidStatus) as caught:
        _raw(server, origin="http://evil.example")
    assert caught.value.response.status_code == 403 and not Counting.made


def test_a_wrong_or_missing_server_is_reported() -> None:
    from websockets.sync.server import serve as other_server

    with other_server(lambda socket: None, "127.0.0.1", 0) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        port = other.socket.getsockname()[1]
        with pytest.raises(RemoteError, match=f"does not speak {VERSION}"):
            RemotePolicy(f"127.0.0.1:{port}", timeout=2)
        other.shutdown()
        thread.join()
    with pytest.raises(RemoteError, match="no policy server answers"):
        RemotePolicy(f"127.0.0.1:{port}", timeout=1)
    with pytest.raises(BadInput, match="HOST:PORT"):
        RemotePolicy("http://nowhere")


def test_an_observation_that_does_not_fit_is_not_sent(serve: Callable[..., PolicyServer]) -> None:
    with RemotePolicy(_address(serve()), timeout=30) as policy:
        for wrong in ({"rgb": np.zeros((9, 8, 3), np.uint8)}, {"proprio": np.zeros(2)}):
            with pytest.raises(BadInput, match="is needed; got"):
                policy.act({**_observation(), **wrong})
        assert policy.act(_observation())[0, 0] == 1


# the hostile


@pytest.mark.parametrize("what", [*MALFORMED, "text", "wrong shape", "no id", "array missing", "unknown kind"])
def test_malformed_messages_are_refused_and_other_clients_continue(
    serve: Callable[..., PolicyServer], what: str
) -> None:
    server = serve()
    more: dict[str, bytes | str] = {
        "text": "act!",
        "wrong shape": _request(rgb=np.zeros((SIDE, SIDE), np.uint8)),
        "no id": pack({"kind": "act", "starts": True}, _observation()),
        "array missing": pack({"kind": "act", "id": 1, "starts": True}, {"rgb": _observation()["rgb"]}),
        "unknown kind": pack({"kind": "shutdown", "id": 1, "starts": True}, _observation()),
    }
    with RemotePolicy(_address(server), timeout=30) as good:
        good.act(_observation())
        bad = _raw(server)
        bad.send(more[what] if what in more else MALFORMED[what])
        try:
            assert unpack(bad.recv(30, decode=False)).header["kind"] == "error"
            with pytest.raises(ConnectionClosed):
                bad.recv(30)
        except ConnectionClosed as closed:  # larger than any message may be
            assert closed.rcvd is not None and closed.rcvd.code == 1009 and what == "header too long"
        assert good.act(_observation())[0, 0] == 2
    assert sum(each.calls for each in Counting.made) == 2


def _frame(opcode: int, claimed: int, payload: bytes = b"", last: bool = True) -> bytes:
    """Return a client's frame whose header claims a length."""
    mask = b"\0\0\0\0"
    return struct.pack("!BBQ", (0x80 if last else 0) | opcode, 0x80 | 127, claimed) + mask + payload


def test_a_message_with_a_huge_announced_length_is_refused(serve: Callable[..., PolicyServer]) -> None:
    server = serve()
    assert server.message_limit == 4 + HEADER_LIMIT + SIDE * SIDE * 3 + 8
    for claimed in (server.message_limit + 1, 2**40):
        bad = _raw(server)
        bad.socket.sendall(_frame(2, claimed))
        with pytest.raises(ConnectionClosed) as closed:
            bad.recv(30)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009
    _still_serves(server)


def test_fragmented_messages_are_refused(serve: Callable[..., PolicyServer]) -> None:
    server = serve()
    bad = _raw(server)
    bad.socket.sendall(_frame(2, 0, last=False) + _frame(0, 0, last=False) * 1000)
    assert "one binary frame" in unpack(bad.recv(30, decode=False)).header["error"]
    _wait(lambda: server._clients == 0)
    _still_serves(server)


def test_compressed_messages_are_refused(serve: Callable[..., PolicyServer]) -> None:
    server = serve()
    bad = _raw(server)
    bad.socket.sendall(_frame(0x40 | 2, 4, b"bomb"))
    with pytest.raises(ConnectionClosed) as closed:
        bad.recv(30)
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1002 and Counting.made[0].calls == 0
    _still_serves(server)


def test_slow_clients_are_disconnected(serve: Callable[..., PolicyServer]) -> None:
    server = serve(limits=ClientLimits(clients=2, idle=2.0, open=2.0))
    half, silent = _raw(server), socket.create_connection(("127.0.0.1", server.port))
    whole = _request()
    half.socket.sendall(_frame(2, len(whole), whole[: len(whole) // 2]))
    _still_serves(server)
    with pytest.raises(ConnectionClosed) as closed:
        half.recv(30)
    assert closed.value.rcvd is not None and "no whole message within" in closed.value.rcvd.reason
    silent.settimeout(30)
    assert silent.recv(1000) == b"" or silent.recv(1000) == b""  # perhaps after a line that says so
    silent.close()
    _wait(lambda: server._clients == 0)


def test_a_client_that_sends_ahead_is_answered_in_order(serve: Callable[..., PolicyServer]) -> None:
    server = serve()
    eager = _raw(server)
    _wait(lambda: bool(Counting.made))
    Counting.made[0].sleep = 0.01
    sent = 0

    def send() -> None:
        nonlocal sent
        for number in range(200):
            eager.send(_request(number, number == 0))
            sent += 1

    thread = threading.Thread(target=send)
    thread.start()
    numbers = []
    for _ in range(200):
        header, arrays = unpack(eager.recv(10, decode=False))
        numbers.append((header["id"], int(arrays["action"][0, 0])))
    thread.join()
    assert numbers == [(number, number + 1) for number in range(200)]
    eager.close()


@pytest.mark.slow
def test_unread_pongs_disconnect_the_client(serve: Callable[..., PolicyServer]) -> None:
    server = serve()
    flooder = socket.create_connection(("127.0.0.1", server.port))
    flooder.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    flooder.sendall(
        f"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: {VERSION}\r\n\r\n".encode()
    )
    ping = bytes([0x89, 0x80 | 125, 0, 0, 0, 0]) + b"x" * 125
    flooder.settimeout(30)
    with pytest.raises(OSError):
        for _ in range(400):
            flooder.sendall(ping * 1000)  # 52 MB in all
    flooder.close()
    _still_serves(server)


def test_random_bytes_and_other_protocols_are_survived(serve: Callable[..., PolicyServer]) -> None:
    server, random = serve(), np.random.default_rng(0)
    for said in (random.bytes(4096), b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00", b"A" * 100_000):
        with socket.create_connection(("127.0.0.1", server.port)) as stranger:
            stranger.settimeout(10)
            try:
                stranger.sendall(said)
                stranger.shutdown(socket.SHUT_WR)
                while stranger.recv(4096):
                    pass
            except OSError:
                pass
    whole = bytearray(_request())
    for _ in range(20):  # bits turned over in a good message
        bad = _raw(server)
        changed = bytearray(whole)
        changed[random.integers(0, 120)] ^= 1 << int(random.integers(0, 8))
        bad.send(bytes(changed))
        with suppress(ConnectionClosed):
            unpack(bad.recv(30, decode=False))
        bad.close()
        _wait(lambda: server._clients == 0)
    _still_serves(server)


# what may go wrong


def test_a_server_that_does_not_read_times_out() -> None:
    side = 1700
    manifest = replace(
        MANIFEST, observation=[TensorSpec("rgb", (side, side, 3), "uint8")]
    )  # more than fits between the two
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        done = threading.Event()

        def deaf() -> None:
            client, _ = listening.accept()
            said = b""
            while b"\r\n\r\n" not in said:
                said += client.recv(4096)
            key = next(line.split(b": ")[1] for line in said.split(b"\r\n") if b"websocket-key" in line.lower())
            accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
            hello = pack({"kind": "manifest", "manifest": asdict(manifest)})
            client.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: "
                + accept
                + b"\r\nSec-WebSocket-Protocol: "
                + VERSION.encode()
                + b"\r\n\r\n"
                + bytes([0x82, 126])
                + struct.pack(">H", len(hello))
                + hello
            )
            done.wait(30)
            client.close()

        threading.Thread(target=deaf, daemon=True).start()
        policy = RemotePolicy(f"127.0.0.1:{listening.getsockname()[1]}", timeout=5)
        policy.timeout, began = 0.2, time.monotonic()
        with pytest.raises(RemoteError, match=r"no answer within 0\.2 s"):
            policy.act({"rgb": np.zeros((side, side, 3), np.uint8)})
        assert time.monotonic() - began < 5
        done.set()


def test_a_failing_policy_is_reported_and_other_clients_continue(
    serve: Callable[..., PolicyServer], caplog: pytest.LogCaptureFixture
) -> None:
    server = serve()
    with RemotePolicy(_address(server), timeout=30) as good, RemotePolicy(_address(server), timeout=30) as bad:
        good.act(_observation())
        with pytest.raises(RemoteError, match="the policy failed"):
            bad.act({**_observation(), "proprio": np.array([99, 0], np.float32)})
        with pytest.raises(RemoteError, match="reset to connect again"):
            bad.act(_observation())
        bad.reset()
        assert bad.act(_observation())[0, 0] == 1 and good.act(_observation())[0, 0] == 2
    assert "a bug" in caplog.text


def test_a_late_reply_is_not_used_for_the_next_request(serve: Callable[..., PolicyServer]) -> None:
    server = serve()
    with RemotePolicy(_address(server), timeout=30) as policy:
        policy.act(_observation(1))
        policy.timeout = 0.15
        Counting.made[0].sleep = 0.4
        with pytest.raises(RemoteError, match=r"no answer within 0\.15 s"):
            policy.act(_observation(2))
        Counting.made[0].sleep = 0.0
        policy.timeout = 30
        policy.reset()
        assert policy.act(_observation(3))[0].tolist() == [1, 3 * SIDE * SIDE * 3]


def test_a_stopped_server_is_detected(serve: Callable[..., PolicyServer]) -> None:
    server = serve()
    policy = RemotePolicy(_address(server), timeout=1)
    policy.act(_observation())
    server.close()
    with pytest.raises(RemoteError):
        policy.act(_observation())
    with pytest.raises(RemoteError, match="no policy server answers"):
        policy.reset()


def test_a_port_in_use_is_reported(serve: Callable[..., PolicyServer]) -> None:
    server = serve()
    for port in (server.port, 70_000):
        with pytest.raises(RemoteError, match=f"cannot listen on 127.0.0.1:{port}"):
            PolicyServer(Served(MANIFEST, Counting), port=port).start()


# the command


def test_a_recorded_episode_is_served_without_a_model(toy_file: Path) -> None:
    demos = open_dataset(toy_file)
    length = demos.lengths[0]
    actions = demos.column("action")[length : length + demos.lengths[1]]
    command = Serve(replay=str(toy_file), episode=1, horizon=4, stride=2, port=0)
    with new_server(command) as server, RemotePolicy(_address(server), timeout=30) as policy:
        assert policy.manifest.horizon == 4 and policy.manifest.task == "toy/reach"
        seen = {port.name: np.zeros(port.shape, port.dtype) for port in policy.manifest.observation}
        assert set(seen) == {"rgb", "proprio"}
        for _ in range(2):
            for step in range(0, 40, 2):
                rows = np.minimum(np.arange(step, step + 4), len(actions) - 1)
                assert np.array_equal(policy.act(seen), actions[rows])
            policy.reset()
    with pytest.raises(DataError, match="has 5 episodes"):
        new_server(Serve(replay=str(toy_file), episode=5))


@pytest.mark.parametrize("how", ["bundle", pytest.param("checkpoint", marks=pytest.mark.slow)])
def test_a_remote_policy_returns_the_same_actions(toy_file: Path, tiny_file: Path, how: str) -> None:
    import torch

    from pixio_robot.deploy.commands import Export, run_export
    from pixio_robot.deploy.eager import EagerPolicy
    from pixio_robot.policies.commands import TrainBC, train_bc
    from pixio_robot.policies.mlp import MlpConfig
    from pixio_robot.policies.settings import TrainingSettings

    if how == "bundle":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    command = TrainBC(
        demos=str(toy_file),
        encoder=str(tiny_file),
        cache="cache",
        out="bc",
        policy=MlpConfig(layers=[16]),
        horizon=3,
        training=TrainingSettings(batch=32, epochs=1),
    )
    checkpoint = train_bc(command)[1].last
    here: Any = EagerPolicy.load(checkpoint, torch.device("cpu"))
    serving = Serve(checkpoint=str(checkpoint), device="cpu", port=0)
    if how == "bundle":
        from pixio_robot.deploy.runtime import Runtime

        assert run_export(Export(checkpoint=str(checkpoint), verify=False, out="bundle")) == 0
        here = Runtime.load("bundle", threads=1)
        serving = Serve(bundle="bundle", threads=1, port=0)
    images = [np.concatenate([*open_dataset(toy_file).batches("rgb", 0, 4)][:1])[row] for row in range(4)]
    proprio = open_dataset(toy_file).column("proprio").astype(np.float32)
    with new_server(serving) as server, RemotePolicy(_address(server), timeout=20) as policy:
        for is_first in (True, False):
            if is_first:
                policy.reset()
            for row, image in enumerate(images):
                seen = {"rgb": image, "proprio": proprio[row]}
                assert np.array_equal(policy.act(seen), here.act(seen)) and policy.manifest.horizon == 3


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "serve one thing.*got none"),
        ({"bundle": "a", "replay": "b"}, "got bundle, replay"),
        ({"replay": "x", "token_file": "nowhere"}, "at least 16 letters"),
    ],
)
def test_impossible_servers_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        new_server(Serve(**keys))


def test_a_token_file_authenticates(toy_file: Path, tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("0123456789abcdef0123\n")
    os.chmod(secret, 0o600)
    with new_server(Serve(replay=str(toy_file), token_file=str(secret), port=0)) as server:
        with pytest.raises(RemoteError, match="401"):
            RemotePolicy(_address(server), timeout=30)
        RemotePolicy(_address(server), token="0123456789abcdef0123").close()


def test_a_remote_policy_drives_a_robot_like_the_checkpoint(
    toy_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import h5py

    drive = ["run", "robot=task:toy/reach", "time=stepped", "steps=6", "depth_sensor=exact"]
    assert cli.run([*drive, f"checkpoint={toy_checkpoint}", "out=here"]) == 0, capsys.readouterr().err
    with new_server(Serve(checkpoint=str(toy_checkpoint), port=0, device="cpu")) as server:
        assert cli.run([*drive, f"server={_address(server)}", "out=there"]) == 0, capsys.readouterr().err
    sent = []
    for folder in ("here", "there"):
        with h5py.File(next(Path(folder).glob("*.hdf5"))) as file:
            sent.append([np.array(each["actions"]) for each in file["data"].values()])
    assert len(sent[0][0]) == 6 and all(np.array_equal(one, other) for one, other in zip(*sent, strict=True))
    assert cli.run([*drive, "server=127.0.0.1:1", "out=nowhere"]) == 1
    assert cli.run(drive) == 1
    shown = capsys.readouterr().err
    assert "127.0.0.1:1" in shown and "one policy is needed" in shown and "Traceback" not in shown


def test_a_remote_policy_of_two_cameras_drives_a_robot(capsys: pytest.CaptureFixture[str]) -> None:
    side = 32
    images = [TensorSpec(name, (side, side, 3), "uint8", "RGB") for name in ("rgb", "rgb_front")]
    manifest = replace(
        MANIFEST,
        observation=[
            *images,
            TensorSpec("depth_front", (side, side), "float32"),
            TensorSpec("proprio", (3,), "float32"),
        ],
        outputs=[TensorSpec("action", (1, 3), "float32")],
        image_size=side,
        horizon=1,
        control_period=0.05,
        action_low=[-1.0] * 3,
        action_high=[1.0] * 3,
    )
    seen: list[Mapping[str, np.ndarray]] = []

    class Watching:
        def reset(self) -> None:
            pass

        def act(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
            seen.append(observation)
            return np.zeros((1, 3), np.float32)

    with PolicyServer(Served(manifest, Watching)) as server:
        words = ["run", "robot=task:toy/reach@top", f"server={_address(server)}", "time=stepped", "steps=4", "out=run"]
        assert cli.run(words) == 0, capsys.readouterr().err
    assert len(seen) == 4 and all(set(each) == {tensor.name for tensor in manifest.observation} for each in seen)
    assert all((each["rgb"] != each["rgb_front"]).any() and each["depth_front"].max() > 0 for each in seen)
