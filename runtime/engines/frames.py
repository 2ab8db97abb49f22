"""How a process and its hosts talk: JSON objects over a stream socket, each behind its length."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any

_HEAD = struct.Struct(">I")
LONGEST = 1 << 30
"""Bytes of one message."""


def pack(message: dict[str, Any]) -> bytes:
    """Raises TypeError or ValueError for what is no data."""
    body = json.dumps(message, allow_nan=True).encode()
    if len(body) > LONGEST:
        raise ValueError(f"a message of {len(body):,} bytes is too long")
    return _HEAD.pack(len(body)) + body


async def read(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """The next message; None at the end of the stream, also in the midst of a message."""
    try:
        (size,) = _HEAD.unpack(await reader.readexactly(_HEAD.size))
        message: dict[str, Any] = json.loads(await reader.readexactly(size))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return message


def receive(ears: socket.socket) -> dict[str, Any] | None:
    """The same, blocking."""
    try:
        head = _exactly(ears, _HEAD.size)
        body = _exactly(ears, _HEAD.unpack(head)[0]) if head is not None else None
    except OSError:
        return None
    if body is None:
        return None
    message: dict[str, Any] = json.loads(body)
    return message


def _exactly(ears: socket.socket, size: int) -> bytes | None:
    got = bytearray()
    while len(got) < size:
        piece = ears.recv(min(size - len(got), 1 << 20))
        if not piece:
            return None
        got += piece
    return bytes(got)
