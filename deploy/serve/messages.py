"""Messages between a robot and its policy: a JSON header and raw arrays, one binary WebSocket frame each.

A message is the header's length (4 bytes, little-endian), the header, and the arrays' bytes in the header's order,
little-endian and row by row. Nothing in it is code, and nothing is allocated before all lengths agree.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ...errors import BadInput

VERSION = "pixio-robot-policy.1"  # WebSocket subprotocol; another number is another protocol
HEADER_LIMIT = 16 * 1024  # [bytes]
REPLY_LIMIT = 1024 * 1024  # of what a server sends [bytes]
_DTYPES = ("uint8", "float32", "bool")
_AXES = 4


class Message(NamedTuple):
    """A header and arrays."""

    header: dict[str, Any]
    arrays: dict[str, np.ndarray]


def pack(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> bytes:
    """Return a message's bytes.

    Args:
        header: JSON values; "arrays" is added.
        arrays: uint8, float32 or bool, of at most four axes.
    """
    given = {name: np.asarray(value, order="C") for name, value in (arrays or {}).items()}
    described = [{"name": name, "dtype": str(each.dtype), "shape": each.shape} for name, each in given.items()]
    text = json.dumps({**header, "arrays": described}).encode()
    little = [each.astype(each.dtype.newbyteorder("<"), copy=False).tobytes() for each in given.values()]
    return b"".join([len(text).to_bytes(4, "little"), text, *little])


def unpack(data: bytes, header_limit: int = HEADER_LIMIT) -> Message:
    """Read a message.

    Raises:
        BadInput: naming what is wrong with it.
    """
    length = int.from_bytes(data[:4], "little")
    if len(data) < 4 or length > min(header_limit, len(data) - 4):
        raise BadInput(f"a header of {length} bytes in a message of {len(data)}; at most {header_limit}")
    try:
        header = json.loads(data[4 : 4 + length].decode())
        described = [(each["name"], each["dtype"], tuple(each["shape"])) for each in header.pop("arrays")]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(f"the header is no JSON object with arrays of name, dtype and shape ({error!r:.80})") from error
    place, arrays = 4 + length, {}
    for name, dtype, shape in described:
        sides = all(type(side) is int and 0 <= side < 2**31 for side in shape)
        if type(name) is not str or name in arrays or dtype not in _DTYPES or len(shape) > _AXES or not sides:
            raise BadInput(
                f"{name!r:.40} is not an array of {', '.join(_DTYPES)} with a unique name and at most {_AXES} axes"
            )
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size > len(data) - place:
            raise BadInput(f"{name!r:.40} has {size} bytes, the message {len(data) - place} more")
        little = np.dtype(dtype).newbyteorder("<")
        values = np.frombuffer(data, little, math.prod(shape), place).reshape(shape)
        arrays[name] = values.astype(dtype)  # a copy, aligned
        place += size
    if place != len(data):
        raise BadInput(f"{len(data) - place} bytes follow the last array")
    return Message(header, arrays)
