"""What a verb is about: the pool that is meant, and the items that are named."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Collection, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

from flatfleet.commands import cli
from flatfleet.runtime.errors import UsageError, did_you_mean
from flatfleet.runtime.scaling import pool_of

if TYPE_CHECKING:
    from flatfleet.runtime.stores.records import Item

SEARCHED = 2_000
"""Items of a pool that are looked through for one whose name is like an unknown one."""
LISTED = 12
"""Known names that a message lists at most; of more, those that are like what was typed."""
_HOST = "host/"


# -- pools -------------------------------------------------------------------------------------------------------------


def add_pool(made: cli.Parser, what: str = "the pool (default: the only one there is)") -> None:
    made.add_argument("--pool", metavar="NAME", help=what)


async def pools(store: Any) -> list[str]:
    """The names of all pools: of those with items, and of fleets that have none yet."""
    driver = store.driver
    names = {*await driver.pools(), *await driver.fleets()}
    names |= {key.removeprefix(_HOST).partition("/")[0] for key, _, _ in await driver.locks(_HOST)}
    if not any(map(_names_a_pool, names)):
        names = {pool_of(record) for record in await store.registration.list()}
    return sorted(filter(_names_a_pool, names))


async def pool(options: Any, store: Any) -> Any:
    """The pool named with --pool, or the only one; UsageError lists them if there are others, or none of that name."""
    known = await pools(store)
    if options.pool is None:
        if len(known) == 1:
            return store.work.pool(known[0])
        if not known:
            raise UsageError(f"{store.shown} is empty: run a launcher first, or name the right store with --store")
        raise UsageError(f"{store.shown} has several pools: {few(known)}; name one with --pool")
    if options.pool not in known and not await store.registration.list(pool=options.pool):
        raise UsageError(f"no pool '{options.pool}' in {store.shown}{like(options.pool, known) or ': it is empty'}")
    return store.work.pool(options.pool)


def _names_a_pool(name: str) -> bool:
    from flatfleet.runtime.stores.keys import check_pool

    with contextlib.suppress(UsageError):
        return bool(check_pool(name))
    return False


# -- items -------------------------------------------------------------------------------------------------------------


async def items(words: Iterable[str], options: Any, store: Any) -> list[Item]:
    """The items of these ids or keys, each once, in that order; they may be of several pools.

    UsageError for one that there is not (with a name that is like it), and for a key that several pools have.
    """
    found: dict[str, Item] = {}
    among = [(await pool(options, store)).name] if options.pool is not None else await pools(store)
    for word in dict.fromkeys(words):
        named = [item for name in _ids(word, among) if (item := await store.driver.item(name)) and item.pool in among]
        exact = [item for item in named if item.id == word]
        if len(named) > 1 and not exact:
            several = few(item.pool for item in named)
            raise UsageError(f"several pools have an item '{word}': {several}; name one with --pool")
        if not named:
            raise UsageError(await _unknown(word, among, store))
        item = (exact or named)[0]
        found[item.id] = item
    return list(found.values())


def _ids(word: str, among: Iterable[str]) -> list[str]:
    """The ids that a word may mean: it is one, or the key of an item of one of the pools."""
    from flatfleet.runtime.stores.keys import item_id

    ids = [word] if word.isascii() else []
    return list(dict.fromkeys([*ids, *(item_id(name, word) for name in among)]))


async def _unknown(word: str, among: list[str], store: Any) -> str:
    where = f"pool '{among[0]}'" if len(among) == 1 else f"the pools of {store.shown}"
    seen: list[str] = []
    for name in among:
        async with contextlib.aclosing(store.work.pool(name).items()) as found:
            async for item in found:
                seen += [item.key, item.id]
                if len(seen) >= 2 * SEARCHED:
                    break
    ends = (name for name in seen if word and name.endswith(("/" + word, ":" + word)))
    near = [*islice(ends, 1), *difflib.get_close_matches(word, seen, n=1, cutoff=0.6)]
    return f"no item '{word}' in {where}" + (f". Did you mean '{near[0]}'?" if near else "")


# -- names -------------------------------------------------------------------------------------------------------------


def like(got: str, known: Collection[str]) -> str:
    """`did_you_mean`, which of many known names lists those that are like `got`, and the first."""
    if len(known) <= LISTED:
        return did_you_mean(got, known)
    near = difflib.get_close_matches(got, known, n=LISTED // 2, cutoff=0.4)
    return did_you_mean(got, [*near, *islice((name for name in sorted(known) if name not in near), LISTED // 2)])


def few(names: Iterable[str], most: int = LISTED) -> str:
    """The first of some names, and how many more there are."""
    found = list(names)
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


def count(number: int, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"
