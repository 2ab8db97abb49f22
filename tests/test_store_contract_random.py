"""The store contract, part 3: long random lives of a few items, compared after every step with a model of 60 lines."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from flatfleet.runtime.errors import LeaseLost
from flatfleet.runtime.stores.backoff import PROVIDER_WAIT, backoff
from flatfleet.runtime.stores.records import SUSPECT, Counts, Failure, NewItem
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

LEASE = 60.0
ATTEMPTS, CRASHES = 3, 5
OWNERS = st.sampled_from(["o1", "o2"])


@dataclass
class Model:
    """What is known of one item."""

    sequence: int
    priority: int
    gpu: bool
    state: str
    due: float
    token: int = 0
    attempts: int = 0
    crashes: int = 0
    owner: str | None = None
    history: list[tuple[int, str]] = field(default_factory=list)

    def may_run(self, now: float) -> bool:
        return self.state == "ready" or (self.state == "delayed" and self.due <= now)

    @property
    def suspect(self) -> bool:
        return self.crashes >= SUSPECT

    def end(self, outcome: str, state: str, due: float = 0.0) -> None:
        self.history.append((self.token, outcome))
        self.state, self.due, self.owner = state, due, None

    def crash(self) -> None:
        self.crashes += 1
        self.end("crashed", "dead" if self.crashes >= CRASHES else "ready")


def lives(open_driver: Any, clock_type: type) -> type[RuleBasedStateMachine]:
    class Lives(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.clock = clock_type()
            self.runner = asyncio.Runner()
            self.driver = open_driver(self.clock)
            self.left_open: list[Any] = []
            self.model: dict[str, Model] = {}

        def teardown(self) -> None:
            for driver in (*self.left_open, self.driver):
                self.run(driver.close())
            self.runner.close()

        def run(self, call: Any) -> Any:
            return self.runner.run(call)

        def pick(self, number: int) -> tuple[str, Model]:
            return list(self.model.items())[number % len(self.model)]

        def attempt(self, call: Any, allowed: bool) -> bool:
            """Await the call; it raises LeaseLost exactly where the model does not allow it."""
            if allowed:
                self.result = self.run(call)
            else:
                with pytest.raises(LeaseLost):
                    self.run(call)
            return allowed

        @rule(
            numbers=st.lists(st.integers(0, 9), max_size=4),
            priority=st.integers(0, 2),
            gpu=st.booleans(),
            wait=st.sampled_from([0, 0, 7]),
        )
        def push(self, numbers: list[int], priority: int, gpu: bool, wait: int) -> None:
            due = self.clock.now + wait if wait else 0.0
            needs = ("gpu",) if gpu else ()
            limits = {"max_attempts": ATTEMPTS, "max_crashes": CRASHES}
            items = [NewItem(f"p:{n}", str(n), n, priority, due, needs, **limits) for n in numbers]
            added = [
                item.id not in self.model and item.id not in [i.id for i in items[:at]] for at, item in enumerate(items)
            ]
            assert self.run(self.driver.push("p", items)) == added
            for item, new in zip(items, added, strict=True):
                if new:
                    state = "delayed" if wait else "ready"
                    self.model[item.id] = Model(len(self.model), priority, gpu, state, due)

        @rule(owner=OWNERS, n=st.integers(1, 4), gpu=st.booleans())
        def claim(self, owner: str, n: int, gpu: bool) -> None:
            now = self.clock.now
            for item in self.model.values():
                if item.state == "claimed" and item.due <= now:
                    item.crash()
            able = [(i.sequence, name) for name, i in self.model.items() if i.may_run(now) and (gpu or not i.gpu)]
            able.sort(key=lambda pair: (-self.model[pair[1]].priority, pair[0]))
            alone = [i for i in self.model.values() if i.state == "claimed" and i.owner == owner and i.suspect]
            suspects = [name for _, name in able if self.model[name].suspect]
            barred = suspects if alone else suspects[1:]
            wanted = [name for _, name in able if name not in barred][:n]
            claims = self.run(self.driver.claim("p", "w", owner, n, LEASE, ["gpu"] if gpu else []))
            assert [claim.id for claim in claims] == wanted
            for claim in claims:
                item = self.model[claim.id]
                item.token += 1
                assert (claim.token, claim.attempts, claim.crashes) == (item.token, item.attempts, item.crashes)
                item.state, item.due, item.owner = "claimed", now + LEASE, owner

        @precondition(lambda self: self.model)
        @rule(number=st.integers(0, 9), token=st.sampled_from(["right", "none", "old", "new"]), how=st.integers(0, 5))
        def finish(self, number: int, token: str, how: int) -> None:
            name, item = self.pick(number)
            given = {"right": item.token, "none": None, "old": item.token - 1, "new": item.token + 1}[token]
            allowed = item.state == "claimed" and token in ("right", "none")
            if how <= 1:
                if self.attempt(self.driver.complete(name, {"n": number}, given, 0.0), allowed):
                    item.end("completed", "completed")
            elif how == 2:
                if self.attempt(self.driver.release(name, given), allowed):
                    item.end("released", "ready")
            elif how == 3:
                if self.attempt(self.driver.fail(name, Failure("P", "x", consume=False), given, 0.0), allowed):
                    item.end("provider", "delayed", self.clock.now + PROVIDER_WAIT)
            else:
                after = 0 if how == 5 else None
                if self.attempt(self.driver.fail(name, Failure("E", "x", retry_after=after), given, 0.0), allowed):
                    item.attempts += 1
                    wait = backoff(item.attempts, name) if after is None else 0
                    state = "dead" if item.attempts >= ATTEMPTS else "delayed" if wait else "ready"
                    item.end("failed", state, self.clock.now + wait if state == "delayed" else 0.0)
                    assert self.result == state

        @rule(owner=OWNERS, crashed=st.booleans())
        def hand_back(self, owner: str, crashed: bool) -> None:
            held = [item for item in self.model.values() if item.state == "claimed" and item.owner == owner]
            assert self.run(self.driver.hand_back(owner=owner, crashed=crashed)) == len(held)
            for item in held:
                item.crash() if crashed else item.end("released", "ready")

        @rule(everything=st.booleans(), numbers=st.sets(st.integers(0, 9)))
        def retry(self, everything: bool, numbers: set[int]) -> None:
            names = [f"p:{n}" for n in numbers if f"p:{n}" in self.model]
            dead = [i for name, i in self.model.items() if i.state == "dead" and (everything or name in names)]
            assert self.run(self.driver.retry("p", None if everything else names)) == len(dead)
            for item in dead:
                item.state, item.attempts, item.crashes = "ready", 0, 0

        @rule(owner=OWNERS, stale=st.booleans())
        def beat(self, owner: str, stale: bool) -> None:
            leases = {name: item.token - stale for name, item in self.model.items()}
            beat = self.run(self.driver.beat(owner, [], leases, LEASE))
            held = {name for name, item in self.model.items() if item.state == "claimed" and not stale}
            assert set(beat.lost) == set(leases) - held
            for name in held:
                self.model[name].due = self.clock.now + LEASE

        @precondition(lambda self: self.driver.durable)
        @rule(closed=st.booleans())
        def restart(self, closed: bool) -> None:
            """Another process opens the store, with or without the first having closed it."""
            old, self.driver = self.driver, open_driver.again(self.driver, self.clock)
            if closed:
                self.run(old.close())
            else:
                self.left_open.append(old)

        @rule(seconds=st.sampled_from([0.5, 5, 31, LEASE + 1]))
        def advance(self, seconds: float) -> None:
            self.clock.advance(seconds)

        @invariant()
        def every_item_is_as_the_model_says(self) -> None:
            now, items = self.clock.now, self.run(self.driver.items("p", None, 100, None))
            assert [item.id for item in items] == list(self.model)
            for item in items:
                known = self.model[item.id]
                assert (item.token, item.attempts, item.crashes) == (known.token, known.attempts, known.crashes)
                assert (item.state == "ready" or (item.state == "delayed" and item.due <= now)) == known.may_run(now)
                assert known.may_run(now) or item.state == known.state
                assert item.owner == known.owner or known.state == "completed"
                if known.state in ("delayed", "claimed"):
                    assert item.due == pytest.approx(known.due)
                history = [(attempt.token, attempt.outcome) for attempt in self.run(self.driver.attempts(item.id))]
                assert history == known.history
                assert [token for token, _ in history] == sorted({token for token, _ in history})

        @invariant()
        def counters_equal_a_recount(self) -> None:
            now, states = self.clock.now, [(i.state, i.due, i.may_run(self.clock.now)) for i in self.model.values()]
            recount = Counts(
                waiting=sum(may_run for _, _, may_run in states),
                delayed=sum(state == "delayed" and due > now for state, due, _ in states),
                claimed=sum(state == "claimed" and due > now for state, due, _ in states),
                expired=sum(state == "claimed" and due <= now for state, due, _ in states),
                completed=sum(state == "completed" for state, _, _ in states),
                dead=sum(state == "dead" for state, _, _ in states),
            )
            assert self.run(self.driver.counts("p")) == recount
            assert sum(self.run(self.driver.errors("p")).values()) == recount.dead
            needy = sum(item.gpu and item.state in ("ready", "delayed") for item in self.model.values())
            assert self.run(self.driver.requirements("p")) == ({("gpu",): needy} if needy else {})

    return Lives


def test_random_lives_agree_with_the_model(open_driver, clock):
    run_state_machine_as_test(
        lives(open_driver, type(clock)),
        settings=settings(
            max_examples=min(25, open_driver.lives),
            stateful_step_count=60,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
