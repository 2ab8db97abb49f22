"""Machine: the SDK's FlatMachine with what the spec promises and the Python SDK leaves out — faster, bounded, resumable.

It overrides and copies nothing: the loop, the states and the hooks are the SDK's. A test pins the signatures used here.
"""

from __future__ import annotations

import asyncio
import copy
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from flatfleet.runtime import bundle
from flatfleet.runtime.children import Children
from flatfleet.runtime.errors import ItemTimeout, MachineError, StateTimeout, StepLimitReached, UsageError
from flatfleet.runtime.faults import describe
from flatfleet.runtime.journal import Journal
from flatfleet.runtime.launches import Launches
from flatfleet.runtime.lease import Lease
from flatfleet.runtime.stores.checkpoints import Checkpoints
from flatfleet.runtime.templates import Conditions, Render, compile_template
from flatfleet.runtime.waiting import Waiting, events
from flatmachines import FlatMachine, MachineHooks
from flatmachines.actions import HookAction
from flatmachines.expressions.simple import SimpleExpressionEngine

MAX_STEPS = 1000
"""`settings.max_steps` where a machine does not say; 0 there means unlimited."""

_PARSED = "parsed"
_PLAIN = frozenset({"type", "action", "hooks", "transitions", "on_error"})
_PASSED = {
    "on_machine_start": 0,
    "on_machine_end": 1,
    "on_state_enter": 1,
    "on_state_exit": 2,
    "on_transition": 1,
    "on_error": None,
    "on_tool_calls": 2,
    "on_tool_result": 2,
}
"""The argument that each callback of the SDK's MachineHooks returns by default."""


class Machine(Children, Launches, Waiting, FlatMachine):
    """A FlatMachine that is cheap to make (everything static is cached on its bundle), bounded, and resumable.

    Takes the SDK's arguments, and `leases`: the live leases of this process by item id. Children get the class, the
    engine and every backend of their parent.

    - `settings.max_steps` is honoured (0: unlimited); reaching it raises StepLimitReached.
    - `timeout` of any state is honoured: what runs is cancelled, and StateTimeout (ItemTimeout where the state has a
      `key`) can be routed by `on_error`.
    - A saved `state_enter` is a committed transition: a resumed machine enters that state again and repeats none before.
    - A message taken at `wait_for` is acknowledged by the next checkpoint; its id is `context.signal_id`. A machine that
      enters such a state is saved as `waiting` at once, so that a dispatcher finds it whenever it is killed; it does
      not park where `parks` is false, as in a child.
    """

    config: bundle.Bundle
    persistence: Any
    spec_version: str
    _expression_engine: Any
    _jinja_env: Any

    def __init__(
        self,
        config_file: str | None = None,
        config_dict: dict[str, Any] | None = None,
        *,
        leases: Mapping[str, Lease] | None = None,
        **parts: Any,
    ) -> None:
        self._leases: Mapping[str, Lease] = {} if leases is None else leases
        self._state = ""
        self._context: dict[str, Any] = {}
        self._left: str | None = None
        self._resumed = False
        self._revisit = False
        self._first_step: int | None = None
        self._limit: float = math.inf
        super().__init__(config_file=config_file, config_dict=config_dict, **parts)
        lease = self._leases.get(self.execution_id)
        self._walked = None if lease is None else lease.walked
        self._jinja_env = self.config.cache.setdefault("environment", self._jinja_env)
        if type(self._expression_engine) is SimpleExpressionEngine:
            self._expression_engine = self.config.cache.setdefault("conditions", Conditions())

    # -- construction: everything static comes from the bundle ---------------------------------------------------------

    def _load_config(self, config_file: str | None, config_dict: dict[str, Any] | None) -> None:
        if config_file is not None:
            self.config = bundle.load(config_file)
            self._config_dir = str(Path(config_file).expanduser().absolute().parent)
        elif config_dict is not None:
            self.config = bundle.Bundle.of(config_dict)
            self._config_dir = os.getcwd()  # noqa: PTH109
        else:
            raise UsageError("a Machine needs a config_file or a config_dict")

    def _resolve_agent_file_refs(self) -> None:
        """A bundle has its agents inside; a plain dict may still name files."""
        if not self.config.cache.get("resolved"):
            super()._resolve_agent_file_refs()
            self.config.cache["resolved"] = True

    def _capture_config_raw(self) -> str:
        return self.config.raw

    def _validate_spec(self) -> None:
        if "spec_version" not in self.config.cache:
            super()._validate_spec()
            self.config.cache["spec_version"] = self.spec_version
        self.spec_version = self.config.cache["spec_version"]

    def _parse_machine_config(self) -> None:
        parsed = self.config.cache.get(_PARSED)
        if parsed is None:
            before = set(vars(self))
            super()._parse_machine_config()
            self.config.cache[_PARSED] = {name: vars(self)[name] for name in vars(self).keys() - before}
        else:
            self.__dict__.update(parsed)

    def _initialize_persistence(self, persistence: Any, lock: Any) -> None:
        super()._initialize_persistence(persistence, lock)
        self.checkpoint_events = self.config.cache.setdefault("events", events(self.data))
        if isinstance(self.persistence, Journal):
            self.persistence = self.persistence._checkpoints
        self._checkpoints = self.persistence
        if self._config_store is None:
            self._config_hash = self.config.hash  # otherwise set by the SDK when it stores the config
        if self.checkpoint_events and isinstance(self.persistence, Checkpoints):
            self.persistence = Journal(self.persistence, self.execution_id, self._leases)

    # -- running -------------------------------------------------------------------------------------------------------

    async def run(self, input: Mapping[str, Any] | None = None, *, fresh: bool = False) -> Any:
        """Execute, or resume where a checkpoint of this execution under this very bundle exists (never if `fresh`)."""
        resume = None
        if not fresh and self.checkpoint_events and isinstance(self.persistence, Journal):
            resume = self.execution_id if await self.persistence.resumable(self.config.hash) else None
        return await self.execute(input=dict(input or {}), resume_from=resume)

    async def execute(
        self,
        input: dict[str, Any] | None = None,
        max_steps: int | None = None,
        max_agent_calls: int | None = None,
        resume_from: str | None = None,
    ) -> Any:
        """Run to a final state and return its output; raises StepLimitReached instead of ending early.

        `max_steps` overrides `settings.max_steps`; the count starts anew with each resume. Missing inputs take the
        defaults of `metadata.inputs`. However it ends, the lifecycle hooks hear of it (`on_machine_abort` where
        the SDK would stay silent).
        """
        limit = self.settings.get("max_steps", MAX_STEPS) if max_steps is None else max_steps
        self._limit = limit or math.inf
        self._resumed = self._revisit = resume_from is not None
        self._first_step, self._left, self._context = None, None, {}
        try:
            return await super().execute(
                input=self._with_defaults(input or {}) if resume_from is None or input is not None else {},
                max_steps=sys.maxsize,
                max_agent_calls=max_agent_calls,
                resume_from=resume_from,
            )
        except BaseException as error:
            abort = getattr(self._lifecycle_hooks, "on_machine_abort", None)
            if abort is not None:
                await abort(self._context, error)
            raise

    def _with_defaults(self, given: dict[str, Any]) -> dict[str, Any]:
        filled, cache = dict(given), self.config.cache
        if "inputs" not in cache:
            cache["inputs"] = tuple(bundle.inputs(self.config).values())
        for spec in cache["inputs"]:
            if filled.get(spec.name) is None:
                if spec.required:
                    raise UsageError(f"machine {self.machine_name} needs the input '{spec.name}': {spec.description}")
                filled[spec.name] = copy.deepcopy(spec.default) if _holds(spec.default) else spec.default
        return filled

    async def _execute_state(self, state_name: str, context: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        state = self.states.get(state_name)
        if state is None:
            self._stop(MachineError(f"machine {self.machine_name} has no state '{state_name}'"))
        if self._first_step is None:
            self._first_step = self._current_step
        if self._current_step - self._first_step >= self._limit:
            self._stop(
                StepLimitReached(
                    f"machine {self.machine_name} took {self._limit} steps without an end, now at '{state_name}'; "
                    "raise settings.max_steps (0 = unlimited) if that is meant"
                )
            )
        self._state, self._context = state_name, context
        if self._walked is not None:
            self._walked.append(state_name)
        timeout = state.get("timeout")
        execute = self._wait if "wait_for" in state else super()._execute_state
        if timeout is None:
            if state.keys() <= _PLAIN:
                done = await self._act(state, state_name, context), None
            else:
                done = await execute(state_name, context)
        else:
            try:
                async with asyncio.timeout(timeout) as scope:
                    done = await execute(state_name, context)
            except TimeoutError as error:
                if not scope.expired():
                    raise
                kind = ItemTimeout if "key" in state and "foreach" not in state else StateTimeout
                raise kind(f"state '{state_name}' of {self.machine_name} ran longer than {timeout} s") from error
        self._left, self._revisit = state_name, False
        return done

    async def _act(self, state: dict[str, Any], state_name: str, context: dict[str, Any]) -> dict[str, Any]:
        """Run a state that is nothing but an action (or nothing at all), without the SDK's look at all it might be."""
        if "action" not in state:
            return context
        hooks = self._get_state_hooks(state_name)
        if not getattr(hooks, "passes_through", False):  # hooks of others: the SDK knows how they may look
            return await HookAction(hooks, state_name).execute(state["action"], context, config={})
        result = hooks.on_action(state_name, state["action"], context)
        return await result if asyncio.iscoroutine(result) else result

    async def _run_hook(self, hooks: MachineHooks, method_name: str, *args: Any) -> Any:
        """Hooks that are known to pass everything through are not called."""
        if getattr(hooks, "passes_through", False) or type(hooks) is MachineHooks:
            passed = _PASSED[method_name]
            return None if passed is None else args[passed]
        return await super()._run_hook(hooks, method_name, *args)

    def _get_error_recovery_state(self, state_config: dict[str, Any], error: Exception) -> str | None:
        if isinstance(error, _Stop):
            raise error.cause from error.cause.__cause__
        self._context["error"] = describe(error)
        recovery: str | None = super()._get_error_recovery_state(state_config, error)
        self._revisit = recovery == self._state  # the same state with the same inputs: its finished children count
        self._left = None if self._revisit else self._state
        return recovery

    def _find_next_state(self, state_name: str, context: dict[str, Any]) -> str | None:
        following: str | None = super()._find_next_state(state_name, context)
        if following is None:
            raise MachineError(f"no transition of state '{state_name}' of machine {self.machine_name} matches")
        return following

    def _stop(self, error: Exception) -> NoReturn:
        """Raise an error that no `on_error` may route: the machine cannot go on."""
        raise _Stop(error)

    # -- templates, checkpoints ----------------------------------------------------------------------------------------

    def _render_template(self, template_str: Any, variables: Mapping[str, Any]) -> Any:
        if not isinstance(template_str, str):
            return template_str
        cache: dict[str, Render] = self.config.cache.setdefault("templates", {})
        render = cache.get(template_str)
        if render is None:
            render = cache[template_str] = compile_template(template_str, self._jinja_env)
        return render(variables)

    def _render_dict(self, data: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
        """What a machine does to its data must not reach the bundle, which other machines share."""
        rendered: dict[str, Any] = super()._render_dict(copy.deepcopy(data) if _nests(data) else data, variables)
        return rendered

    async def _save_checkpoint(
        self, event: str, state_name: str, step: int, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        self._context = context
        if event == "machine_start":
            self._resumed = self._revisit = False  # there was nothing to resume from
        if event not in self.checkpoint_events:
            return
        if event == "machine_start":
            state_name = self._initial_state
        if event == "state_enter" and self._resumed:
            self._resumed = False  # the SDK enters the resumed state anew: that transition is committed already
            return
        if event == "waiting" and not self.parks:
            return
        if isinstance(self.persistence, Journal):
            self.persistence.parks = self.parks
            if event == "machine_end":
                self.persistence.drop = f"{self.execution_id}:"
            elif event == "state_enter" and self._left is not None and "machine" in self.states[self._left]:
                self.persistence.drop = f"{self.execution_id}:{self._left}:"
            channel = self._channel(state_name, context) if event == "state_enter" and self.parks else None
            if channel is not None:
                event, kwargs = "waiting", {**kwargs, "waiting_channel": channel}
        await super()._save_checkpoint(event, state_name, step, context, *args, **kwargs)


def _nests(data: dict[str, Any]) -> bool:
    """True if a list of this config holds a list or a mapping, which the SDK hands out as it is."""
    return any(
        _nests(value) if isinstance(value, dict) else isinstance(value, list) and any(map(_holds, value))
        for value in data.values()
    )


def _holds(value: Any) -> bool:
    return isinstance(value, dict | list)


class _Stop(Exception):
    """Carries an error past `on_error`."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause
        super().__init__(str(cause))
