"""How a Machine launches others: by its engine, always; an intent is kept for nothing that the engine has answered."""

from __future__ import annotations

import logging
from typing import Any

from flatfleet.runtime.errors import StoreError
from flatmachines import FlatMachine
from flatmachines.backends import make_uri

logger = logging.getLogger(__name__)


class Launches:
    """The part of Machine that launches machines and does not wait for them."""

    async def _launch_fire_and_forget(self: Any, machines: list[str], input_data: dict[str, Any]) -> None:
        """Launch them one by one. Whoever is refused leaves no intent: that is an error to route, not one to repeat."""
        kept = list(self._pending_launches)
        try:
            await FlatMachine._launch_fire_and_forget(self, machines, input_data)
        finally:
            self._pending_launches = kept

    async def _resume_pending_launches(self: Any) -> None:
        """Launch by the engine what a snapshot has intents for: of the SDK's own class, or of an older version of ours.

        A refusal is logged and not tried again. Raises StoreError where the store is away: then the intents stay saved.
        """
        intents, self._pending_launches = self._pending_launches, []
        for intent in intents:
            if intent.launched or await self.result_backend.exists(make_uri(intent.execution_id, "result")):
                continue
            try:
                config, _ = self._resolve_machine_config(intent.machine)
                await self.invoker.launch(
                    caller_machine=self,
                    target_config=config,
                    input_data=intent.input,
                    execution_id=intent.execution_id,
                )
            except StoreError:
                raise
            except Exception as error:
                logger.error("%s cannot launch %s any more: %s", self.execution_id, intent.machine, error)
