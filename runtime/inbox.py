"""The inbox of one machine: messages are taken out of it, and are gone with the checkpoint that holds their effect."""

from __future__ import annotations

from typing import Any

from flatfleet.runtime.stores.bell import Bell
from flatfleet.runtime.stores.contract import Driver
from flatfleet.runtime.stores.store import Signals


class Inbox(Signals):
    """The SignalBackend of a machine that has checkpoints.

    `consume` leaves the message in the store and notes its id in `acks`; the Journal deletes those messages in the
    transaction of its next save. So a machine that is killed in between is given the same message again, and one
    whose checkpoint was committed never is. `last` is the id of the message taken last, and `channel` where it came from.
    """

    def __init__(self, driver: Driver, bell: Bell, execution_id: str) -> None:
        super().__init__(driver, bell)
        self._id = execution_id
        self.acks: list[str] = []
        self.last: str | None = None
        self.channel: str | None = None

    @classmethod
    def of(cls, signals: Signals, execution_id: str) -> Inbox:
        """The inbox of an execution behind the store's signals."""
        return cls(signals._driver, signals._bell, execution_id)

    async def consume(self, channel: str) -> Any:
        """Return the oldest message for this machine that it has not seen; None if there is none."""
        signal = await self._driver.take(channel, self._id, self.acks)
        if signal is not None:
            self.last, self.channel = signal.id, channel
            self.acks.append(signal.id)
        return signal
