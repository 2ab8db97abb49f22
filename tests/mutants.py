"""Break the promises one by one, in a copy of the package, and see that a test notices: `python tests/mutants.py [WORD]`.

With `--short` only those of SHORT, as in CI; `make soak` tries them all.

Each mutant is one change of the source, with the tests that must fail under it. A mutant that survives, whose change
does not fit the source any more, or whose tests cannot even start, is an error. Prints a table; exit code 1 on an error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("hooks", "runtime", "commands", "machines", "agents", "schemas")
LIMIT = 30.0
"""Seconds that one test may take, or four of them together."""

ITEMS = "runtime/stores/sqlite_items.py"
SQL = "runtime/stores/sqlite.sql"
GROUP = "runtime/stores/group.py"
LUA_ITEMS = "runtime/stores/lua/items.lua"
LUA_SHARED = "runtime/stores/lua/shared.lua"
LINK = "tests/test_redis_link.py::test_"
CONTRACT = "tests/test_store_contract.py::test_"
STEERING = "tests/test_store_contract_steering.py::test_"
STEERED = "tests/test_steering.py::test_"
BATCH = "tests/test_coordinator.py::test_"
RECORDS = "tests/test_store_contract_records.py::test_"
LEASE = "tests/promises/test_promises_lease.py::test_promise_"
POINTS = "tests/promises/test_promises_crash_points.py"
SIGNALS = "tests/test_store_contract_signals.py::test_"
DISPATCHER = "tests/test_dispatcher.py::test_"
WAITERS = "tests/promises/test_promises_signals.py::test_promise_"
ZOMBIE = "tests/promises/test_promises_zombie.py::test_promise_"


@dataclass(frozen=True)
class Mutant:
    """`old`, which stands once in `file`, becomes `new`; `test` has to fail then."""

    name: str
    file: str
    old: str
    new: str
    test: str


MUTANTS = [
    Mutant(
        "a registration is taken over by anyone",
        "runtime/stores/sqlite_workers.py",
        '(until > tx.now and before.get("booked"))',
        "until > tx.now",
        f"{RECORDS}only_a_booking_is_taken_over_and_only_once",
    ),
    Mutant(
        "who comes last to a pool of hosts is served first",
        "runtime/engines/pool.py",
        "            waiter = self._waiting.popleft()\n            if not waiter.done():\n                place.enter()",
        "            waiter = self._waiting.pop()\n            if not waiter.done():\n                place.enter()",
        "tests/test_engine_pool.py::test_beyond_max_size_requests_queue_first_come_first_served",
    ),
    Mutant(
        "complete accepts anyone",
        SQL,
        "WHERE id = :id AND state = 'claimed' AND (:token IS NULL OR token = :token)\nRETURNING",
        "WHERE id = :id AND state = 'claimed' AND (:token IS NULL OR token >= 0)\nRETURNING",
        f"{CONTRACT}a_zombie_is_refused_and_changes_nothing",
    ),
    Mutant(
        "tokens restart at each claim",
        SQL,
        "-- name: claim\nUPDATE items SET state = 'claimed', token = token + 1",
        "-- name: claim\nUPDATE items SET state = 'claimed', token = 1",
        f"{CONTRACT}tokens_strictly_increase_over_every_way_back",
    ),
    Mutant(
        "tokens restart at a redrive",
        SQL,
        "SET state = 'ready', attempts = 0,",
        "SET state = 'ready', token = 0, attempts = 0,",
        f"{CONTRACT}tokens_strictly_increase_over_every_way_back",
    ),
    Mutant(
        "release frees everyone's",
        ITEMS,
        '_end(tx, _claimed(tx, item_id, token), "released"',
        '_end(tx, _claimed(tx, item_id, None), "released"',
        f"{CONTRACT}a_zombie_is_refused_and_changes_nothing",
    ),
    Mutant(
        "release burns a crash",
        ITEMS,
        '_end(tx, _claimed(tx, item_id, token), "released", "ready", walked=walked)',
        '_crash(tx, _claimed(tx, item_id, token), "it was handed back")',
        f"{CONTRACT}release_hands_back_unburnt",
    ),
    Mutant(
        "poison never",
        ITEMS,
        '"dead" if held.crashes >= held.max_crashes else "ready"',
        '"ready"',
        f"{CONTRACT}a_job_that_kills_its_workers_is_dead_after_max_crashes",
    ),
    Mutant(
        "attempts always 0",
        ITEMS,
        "attempts = held.attempts + failure.consume",
        "attempts = 0",
        f"{CONTRACT}an_item_is_dead_when_its_attempts_are_used_up",
    ),
    Mutant(
        "the state commits before its result",
        ITEMS,
        '    tx.run("put_result"',
        '    tx.db.execute("COMMIT")\n    tx.db.execute("BEGIN IMMEDIATE")\n    tx.run("put_result"',
        POINTS,
    ),
    Mutant(
        "the counters commit apart",
        GROUP,
        "            if moved:\n",
        '            db.execute("COMMIT")\n            db.execute("BEGIN IMMEDIATE")\n            if moved:\n',
        POINTS,
    ),
    Mutant("a busy database surfaces", "runtime/stores/busy.py", "if not is_busy(error) or", "if True or", POINTS),
    Mutant(
        "the fence of a snapshot is ignored",
        "runtime/stores/sqlite_executions.py",
        "if fence is not None and tx.run",
        "if fence is None and tx.run",
        f"{RECORDS}a_fenced_snapshot_needs_the_live_claim",
    ),
    Mutant(
        "a claim limit is ignored",
        ITEMS,
        "n = min(n, limit -",
        "n = max(n, limit -",
        f"{STEERING}no_more_are_claimed_than_the_limit",
    ),
    Mutant(
        "a pause is ignored",
        ITEMS,
        "if n < 1 or not _is_open",
        "if n < 1 and not _is_open",
        f"{STEERING}nobody_claims_from_a_paused_pool_until_it_is_resumed",
    ),
    Mutant(
        "a cancelled item stays claimed",
        ITEMS,
        '_end(tx, held, "cancelled", "dead",',
        '_end(tx, held, "cancelled", "claimed",',
        f"{STEERING}the_holder_of_a_cancelled_item_has_lost_it",
    ),
    Mutant(
        "expired leases are not recovered",
        ITEMS,
        'for row in tx.run("expired", (pool, tx.now)).fetchall():',
        "for row in ():",
        f"{CONTRACT}an_expired_lease_alone_brings_the_item_back",
    ),
    Mutant(
        "a duplicate push adds",
        SQL,
        "ON CONFLICT (id) DO NOTHING",
        "ON CONFLICT (id) DO UPDATE SET state = 'ready'",
        f"{CONTRACT}push_answers_for_each_item_whether_it_was_added",
    ),
    Mutant(
        "suspects are claimed together",
        ITEMS,
        '"suspect": SUSPECT}',
        '"suspect": 999}',
        f"{CONTRACT}suspects_are_claimed_one_at_a_time_by_each_process",
    ),
    Mutant(
        "renewal stops",
        "runtime/heart.py",
        "                    await self._body.beat()\n",
        "                    pass\n",
        f"{LEASE}07_the_lease_is_renewed_while_a_state_is_busy[memory-await]",
    ),
    Mutant(
        "renewal stops while the loop is blocked",
        "runtime/guard.py",
        "self._beat(now - self._heart)",
        "pass",
        f"{ZOMBIE}07_a_blocked_event_loop_does_not_lose_its_lease",
    ),
    Mutant(
        "a late heart does not catch up",
        "runtime/fleet.py",
        "if self.guard.late() and self.leases:",
        "if False:",
        f"{LEASE}07_a_blocked_event_loop_is_not_taken_for_dead_by_its_own_workers[memory]",
    ),
    Mutant(
        "a lost lease does not cancel",
        "runtime/lease.py",
        "            self.task.cancel(why)\n",
        "            pass\n",
        f"{LEASE}04_a_worker_never_acts_under_the_lease_of_its_neighbour",
    ),
    Mutant(
        "a neighbour's lease is as good as one's own",
        "runtime/fleet.py",
        "if lease is None or worker not in (None, lease.worker):",
        "if lease is None:",
        f"{LEASE}04_a_worker_never_acts_under_the_lease_of_its_neighbour",
    ),
    Mutant(
        "checkpoints take the newest token",
        "runtime/journal.py",
        "        fence = (self._lease.item_id, self._lease.token) if self._lease is not None else None\n",
        "        fence = None\n",
        f"{LEASE}04_a_checkpoint_keeps_the_token_that_it_began_with",
    ),
    Mutant(
        "a worker told to end goes on claiming",
        "runtime/fleet.py",
        'return self.draining or self.workers.get(worker_id, "active") != "active"',
        "return self.draining",
        f"{STEERED}a_busy_worker_finishes_its_item_and_claims_no_other",
    ),
    Mutant(
        "the time of a drain is never up",
        "runtime/fleet.py",
        "if until is not None and until <= now:",
        "if until is not None and until <= 0:",
        f"{STEERED}when_its_time_is_up_a_worker_hands_its_item_back_unburnt_and_the_others_go_on",
    ),
    Mutant(
        "what is taken back goes on being worked on",
        "runtime/fleet.py",
        '            lease.lose(f"worker {lease.worker} was told',
        '            logger.info(f"worker {lease.worker} was told',
        f"{STEERED}when_its_time_is_up_a_worker_hands_its_item_back_unburnt_and_the_others_go_on",
    ),
    Mutant(
        "a claim that is cut off is left behind",
        "hooks/work.py",
        "        if not claiming.cancelled() and claiming.exception() is None:\n",
        "        if False:\n",
        f"{STEERED}whenever_a_claim_is_cut_off_nothing_stays_claimed",
    ),
    Mutant(
        "an item that is being given back is let go of first",
        "runtime/fleet.py",
        "            n += await self._release(lease)\n            self.let_go(lease.item_id, lease.worker)\n",
        "            self.let_go(lease.item_id, lease.worker)\n            n += await self._release(lease)\n",
        f"{STEERED}whenever_a_claim_is_cut_off_nothing_stays_claimed",
    ),
    Mutant(
        "a cancelled item is worked on to its end",
        "runtime/stores/pool.py",
        'self._bell.announce(self.name, "workers")',
        "self._bell.announce(self.name)",
        f"{STEERED}the_work_of_a_cancelled_item_is_cancelled_and_its_worker_goes_on",
    ),
    Mutant(
        "a pause wakes who waits",
        "runtime/lounge.py",
        "until = await pool.paused() if ready else None",
        "until = None",
        f"{STEERED}a_batch_is_not_over_while_items_are_left_that_nobody_may_claim_yet",
    ),
    Mutant(
        "nobody is told of a resumption",
        "runtime/stores/pool.py",
        "        await self._driver.pause(self.name, until)\n        self._bell.announce(self.name)\n",
        "        await self._driver.pause(self.name, until)\n",
        f"{STEERED}a_paused_pool_wakes_nobody_until_it_is_resumed",
    ),
    Mutant(
        "a batch ends before the pools that fill it",
        "runtime/lounge.py",
        "for each in (*upstream, name):",
        "for each in (name,):",
        f"{STEERED}a_batch_is_not_over_before_the_pools_that_fill_it_are_settled",
    ),
    Mutant(
        "workers forget the limit of their pool",
        "hooks/work.py",
        'return (whole(context, "pool_size", 0) or None)',
        "return None",
        f"{STEERED}no_more_items_are_claimed_than_the_pool_may_have_in_work",
    ),
    Mutant(
        "coordinators forget the limit of their pool",
        "hooks/batch.py",
        'limit=whole(context, "pool_size", 0) or None',
        "limit=None",
        f"{BATCH}two_coordinators_never_run_more_than_the_pools_size_together",
    ),
    Mutant(
        "a child that broke has a result",
        "hooks/batch.py",
        'await pool.fail(item_id, outcome["_error"], token=lease.token, **told)',
        "await pool.complete(item_id, told, token=lease.token)",
        f"{BATCH}an_item_whose_machine_breaks_has_failed_and_the_batch_goes_on",
    ),
    Mutant(
        "one lost lease ends the batch",
        "runtime/children.py",
        "(isinstance(error, LeaseLost) and key not in held)",
        "isinstance(error, LeaseLost)",
        f"{BATCH}a_lost_lease_is_that_childs_failure_and_no_others",
    ),
    Mutant(
        "nothing is said of the states that were walked",
        "runtime/machine.py",
        "            self._walked.append(state_name)\n",
        "            pass\n",
        f"{STEERED}an_attempt_tells_the_states_that_its_machine_walked",
    ),
    Mutant(
        "the store's fault costs an attempt",
        "runtime/faults.py",
        "isinstance(error, StoreError | OutputError)",
        "False",
        f"{LEASE}01_the_stores_fault_burns_no_attempt",
    ),
    Mutant(
        "who is busy with a message is no waiter",
        "runtime/journal.py",
        "event=WOKEN, channel=self._heard()",
        "event=WOKEN",
        f"{DISPATCHER}who_is_slow_has_all_that_another_waiter_had_in_order",
    ),
    Mutant(
        "a message is handed to woken machines only",
        SQL,
        "SELECT execution_id, channel, seq FROM snapshots, oldest WHERE event = 'waiting' AND channel = :channel\nUNION ",
        "",
        f"{SIGNALS}who_is_slow_misses_nothing_that_another_is_given",
    ),
    Mutant(
        "an end leaves its inbox",
        "runtime/stores/sqlite_executions.py",
        'if row.event == "machine_end" and',
        'if row.event == "" and',
        f"{DISPATCHER}a_machine_that_ends_by_its_message_leaves_nothing_that_came_meanwhile",
    ),
    Mutant(
        "a checkpoint acknowledges nothing",
        "runtime/journal.py",
        "save_snapshot(row, fence, self.drop, acks)",
        "save_snapshot(row, fence, self.drop)",
        f"{WAITERS}10_each_message_has_one_effect_per_waiter_whatever_is_killed_when",
    ),
    Mutant(
        "two processes run one machine",
        "runtime/engines/hold.py",
        "yield Hold(store, key) if taken else None",
        "yield Hold(store, key)",
        f"{WAITERS}11_two_dispatchers_resume_no_machine_twice",
    ),
    Mutant(
        "a resumed machine is kept",
        "runtime/dispatcher.py",
        "                started.append(task)\n",
        "                started.append(task)\n                self.__dict__.setdefault('kept', []).append(task)\n",
        f"{WAITERS}10_ten_thousand_wakings_leave_nothing_behind",
    ),
    Mutant(
        "a message is announced to nobody",
        "runtime/stores/store.py",
        'self._bell.announce(channel, "signals")',
        'self._bell.ring(channel, "signals")',
        f"{WAITERS}10_a_message_wakes_a_machine_of_another_process_at_once",
    ),
    Mutant(
        "those whom nobody can resume come first",
        "runtime/dispatcher.py",
        "                skip.update(found)\n",
        "                break\n",
        f"{DISPATCHER}thousands_that_nobody_here_can_resume_do_not_keep_the_others_from_their_turn",
    ),
    Mutant(
        "redis: complete accepts anyone",
        LUA_ITEMS,
        'if found[1] ~= "claimed" or (token ~= "" and token ~= newest) then\n    if again and',
        'if found[1] ~= "claimed" then\n    if again and',
        f"{CONTRACT}a_zombie_is_refused_and_changes_nothing",
    ),
    Mutant(
        "redis: tokens restart at each claim",
        LUA_ITEMS,
        "local token = (found[1] or 0) + 1",
        "local token = 1",
        f"{CONTRACT}tokens_strictly_increase_over_every_way_back",
    ),
    Mutant(
        "redis: a lease never runs out",
        LUA_ITEMS,
        'call("ZRANGEBYSCORE", leases, "-inf", now,',
        'call("ZRANGEBYSCORE", leases, "-inf", 0,',
        f"{CONTRACT}an_expired_lease_alone_brings_the_item_back",
    ),
    Mutant(
        "redis: a checkpoint needs no lease",
        "runtime/stores/lua/executions.lua",
        'if found[1] ~= "claimed" or found[2] ~= ARGV[9] then',
        'if found[1] ~= "claimed" then',
        f"{RECORDS}a_fenced_snapshot_needs_the_live_claim",
    ),
    Mutant(
        "redis: a message that moves reaches one waiter",
        LUA_SHARED,
        "for i = 1, #parked, 2 do",
        "for i = 1, math.min(2, #parked), 2 do",
        f"{SIGNALS}deliver_gives_one_message_of_each_channel_to_all_parked_there",
    ),
    Mutant(
        "redis: a suspect is claimed beside another",
        LUA_ITEMS,
        'barred = call("HEXISTS", T .. SUSPECTS, owner) == 1',
        "barred = false",
        f"{CONTRACT}suspects_are_claimed_one_at_a_time_by_each_process",
    ),
    Mutant(
        "redis: a commit whose answer was lost is a lost lease",
        LUA_ITEMS,
        'if again and found[1] == "completed"',
        'if false and found[1] == "completed"',
        f"{LINK}a_completion_whose_answer_was_lost_is_no_lost_lease",
    ),
    Mutant(
        "redis: a claim whose answer was lost is left",
        LUA_ITEMS,
        "if again then\n    local held",
        "if false then\n    local held",
        f"{LINK}a_claim_whose_answer_was_lost_is_the_same_claim",
    ),
    Mutant(
        "redis: what is sent again does not say so",
        "runtime/stores/redis_link.py",
        'again = (b"1" if call.sent else b"0") + session.store',
        'again = b"0" + session.store',
        f"{LINK}a_push_whose_answer_was_lost_says_what_it_added",
    ),
    Mutant(
        "redis: the claim of who has gone is kept",
        "runtime/stores/redis_link.py",
        "elif call.undo is not None:",
        "elif call.undo is None:",
        f"{LINK}the_claim_that_is_under_way_when_its_caller_goes_is_given_back",
    ),
    Mutant(
        "redis: a connection that was given up lives on",
        "runtime/stores/redis_session.py",
        "if before:\n                    with",
        "if before < 0:\n                    with",
        f"{LINK}nothing_of_a_connection_that_was_given_up_is_done_later",
    ),
    Mutant(
        "redis: what was missed is not rung",
        "runtime/stores/redis_wire.py",
        "self._missed = True",
        "self._missed = False",
        "tests/test_redis_wire.py::test_a_subscription_that_breaks_is_made_again_and_anything_is_rung",
    ),
    Mutant(
        "workers of hosts whose launcher has died are ended, not lost",
        "runtime/engines/serving.py",
        "if self._orphan.locked():",
        "if False:",
        "tests/promises/test_promises_process.py"
        "::test_promise_8_the_workers_of_a_dead_launchers_hosts_are_replaced_by_another_launcher",
    ),
    Mutant(
        "a host outlives its launcher in the eyes of others",
        "runtime/owner.py",
        'any(map(_ended, owner.split("|")))',
        '_ended(owner.split("|")[0])',
        "tests/test_fleet.py::test_who_works_for_a_dead_process_is_dead_and_who_works_elsewhere_may_live",
    ),
    Mutant(
        "hosts take every fleet for a batch",
        "runtime/engines/hosting.py",
        "self._parts.fleet.served = order.served",
        "self._parts.fleet.served = False",
        "tests/test_process_engine.py::test_a_host_has_what_its_parent_has_and_a_session_and_an_owner_of_its_own",
    ),
]

SHORT = (
    "redis: complete accepts anyone",
    "redis: a commit whose answer was lost is a lost lease",
    "complete accepts anyone",
    "tokens restart at each claim",
    "release frees everyone's",
    "poison never",
    "attempts always 0",
    "the state commits before its result",
    "renewal stops",
    "a lost lease does not cancel",
    "expired leases are not recovered",
    "a duplicate push adds",
    "a claim limit is ignored",
    "a pause is ignored",
    "a message is handed to woken machines only",
    "two processes run one machine",
)
"""Mutants that CI tries, at least one for each promise that a line can break; that the others fit the source it sees, too."""


def copy(folder: Path) -> Path:
    """Copy the package to `folder/flatfleet`."""
    package = folder / "flatfleet"
    for room in ROOMS:
        shutil.copytree(ROOT / room, package / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "run.py", "py.typed"):
        shutil.copy(ROOT / name, package / name)
    return package


def run(folder: Path, *tests: str) -> int:
    """Run tests against the package in `folder`; pytest's exit code (0 passed, 1 failed, more: they did not run)."""
    env = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    check = "import flatfleet, sys; sys.exit(not flatfleet.__file__.startswith(sys.argv[1]))"
    subprocess.run([sys.executable, "-P", "-c", check, str(folder)], env=env, check=True)
    command = [sys.executable, "-P", "-m", "pytest", "-x", "-p", "no:cacheprovider", *tests]
    with tempfile.TemporaryDirectory() as place:
        process = subprocess.Popen(
            [*command, "--basetemp", f"{place}/t"],
            cwd=ROOT,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return process.wait(LIMIT * max(1, len(tests) // 4))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return 1


def try_out(mutant: Mutant) -> tuple[str, float]:
    """(killed | SURVIVED | STALE | BROKEN, seconds)."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        file = copy(Path(place)) / mutant.file
        text = file.read_text(encoding="utf-8")
        if text.count(mutant.old) != 1:
            return "STALE", 0.0
        file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        code = run(Path(place), mutant.test)
    return {0: "SURVIVED", 1: "killed"}.get(code, "BROKEN"), time.monotonic() - begun


def unchanged(tests: list[str]) -> str:
    """Whether the tests pass on an unchanged copy."""
    if not tests:
        return "pass"
    with tempfile.TemporaryDirectory() as place:
        copy(Path(place))
        return "pass" if run(Path(place), *tests) == 0 else "FAIL"


def stale(mutant: Mutant) -> bool:
    return (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old) != 1


def main(word: str = "") -> int:
    short = word == "--short"
    chosen = [each for each in MUTANTS if (each.name in SHORT if short else word in each.name) or stale(each)]
    with ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as threads:
        quick = {each.test for each in chosen if not each.test.startswith((POINTS, ZOMBIE))}
        plain = threads.submit(unchanged, [] if short else sorted(quick))  # CI runs them all by themselves
        verdicts = list(threads.map(try_out, chosen))
    wide = max(len(mutant.name) for mutant in chosen)
    say = sys.stdout.write
    say(f"{'no mutant':{wide}}  {plain.result():8}        all of the quick tests below\n")
    for mutant, (verdict, seconds) in zip(chosen, verdicts, strict=True):
        say(f"{mutant.name:{wide}}  {verdict:8} {seconds:4.1f} s  {mutant.test.rpartition('::')[2]}\n")
    wrong = plain.result() != "pass" or any(verdict != "killed" for verdict, _ in verdicts)
    return int(wrong or (short and {each.name for each in chosen} != set(SHORT)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
