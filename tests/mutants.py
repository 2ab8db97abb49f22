"""Break the promises one by one, in a copy of the package, and see that a test notices: `python tests/mutants.py [WORD]`.

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

ITEMS = "runtime/stores/sqlite_items.py"
SQL = "runtime/stores/sqlite.sql"
GROUP = "runtime/stores/group.py"
CONTRACT = "tests/test_store_contract.py::test_"
RECORDS = "tests/test_store_contract_records.py::test_"
LEASE = "tests/promises/test_promises_lease.py::test_promise_"
POINTS = "tests/promises/test_promises_crash_points.py"
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
        "complete accepts anyone",
        SQL,
        "WHERE id = :id AND state = 'claimed' AND (:token IS NULL OR token = :token)\nRETURNING",
        "WHERE id = :id AND state = 'claimed' AND (:token IS NULL OR token >= 0)\nRETURNING",
        f"{CONTRACT}a_zombie_is_refused_and_changes_nothing",
    ),
    Mutant(
        "tokens restart at each claim",
        SQL,
        "token = token + 1",
        "token = 1",
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
        '_end(tx, _claimed(tx, item_id, token), "released", "ready")',
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
        "runtime/stores/sqlite.py",
        "if fence is not None and tx.run",
        "if fence is None and tx.run",
        f"{RECORDS}a_fenced_snapshot_needs_the_live_claim",
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
        '"suspect": SUSPECT,',
        '"suspect": 999,',
        f"{CONTRACT}suspects_are_claimed_one_at_a_time_by_each_process",
    ),
    Mutant(
        "renewal stops",
        "runtime/fleet.py",
        "            await self.beat()\n\n    async def catch_up",
        "            return\n\n    async def catch_up",
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
        "runtime/fleet.py",
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
        "the store's fault costs an attempt",
        "runtime/faults.py",
        "isinstance(error, StoreError | OutputError)",
        "False",
        f"{LEASE}01_the_stores_fault_burns_no_attempt",
    ),
]


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
            return process.wait(LIMIT)
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


def main(word: str = "") -> int:
    chosen = [mutant for mutant in MUTANTS if word in mutant.name]
    with ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as threads:
        quick = {mutant.test for mutant in chosen if not mutant.test.startswith((POINTS, ZOMBIE))}
        plain = threads.submit(unchanged, sorted(quick))
        verdicts = list(threads.map(try_out, chosen))
    wide = max(len(mutant.name) for mutant in chosen)
    say = sys.stdout.write
    say(f"{'no mutant':{wide}}  {plain.result():8}        all of the quick tests below\n")
    for mutant, (verdict, seconds) in zip(chosen, verdicts, strict=True):
        say(f"{mutant.name:{wide}}  {verdict:8} {seconds:4.1f} s  {mutant.test.rpartition('::')[2]}\n")
    return int(plain.result() != "pass" or any(verdict != "killed" for verdict, _ in verdicts))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
