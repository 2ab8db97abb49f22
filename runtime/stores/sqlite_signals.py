"""The signal operations of the SQLite store: plain functions of one transaction."""

from __future__ import annotations

import json

from flatfleet.runtime.stores.group import Tx
from flatfleet.runtime.stores.records import DELIVERED
from flatfleet.runtime.stores.text import stamp
from flatmachines import Signal


def consume(tx: Tx, channel: str) -> Signal | None:
    row = tx.run("consume", (channel,)).fetchone()
    return _signal(row) if row else None


def peek(tx: Tx, channel: str) -> list[Signal]:
    return [_signal(row) for row in tx.run("peek", (channel,))]


def look(tx: Tx, channel: str, waiter: str, skip: str) -> tuple[Signal | None, bool]:
    """The oldest message in the inbox, and whether there are any in the channel; `skip` is a JSON list of ids."""
    row = tx.run("oldest", {"execution": waiter, "channel": channel, "skip": skip}).fetchone()
    return (_signal(row), True) if row else (None, tx.run("has_messages", (channel,)).fetchone() is not None)


def take(tx: Tx, channel: str, waiter: str, skip: str) -> Signal | None:
    found, more = look(tx, channel, waiter, skip)
    if found is not None or not more:
        return found
    _hand_out(tx, channel, waiter)
    return look(tx, channel, waiter, skip)[0]


def due(tx: Tx, skip: str) -> tuple[list[str], list[str]]:
    """The channels that have something for somebody, and the executions, but for `skip`, that have to wake up for it."""
    channels = [row[0] for row in tx.run("due_channels")]
    return channels, [row[0] for row in tx.run("woken", {"skip": skip, "n": DELIVERED})]


def deliver(tx: Tx, skip: str) -> list[str]:
    for channel in due(tx, skip)[0]:
        _hand_out(tx, channel)
    return due(tx, skip)[1]


def _hand_out(tx: Tx, channel: str, waiter: str | None = None) -> None:
    """Move the channel's oldest message into the inboxes of its waiters, and of this one."""
    tx.run("hand_out", {"channel": channel, "execution": waiter})
    tx.run("keep_message", (channel,))
    tx.run("leave_channel", (channel,))


def _signal(row: tuple[str, str, str, float]) -> Signal:
    return Signal(id=row[0], channel=row[1], data=json.loads(row[2]), created_at=stamp(row[3]))
