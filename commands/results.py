"""results: export every item of a pool with its result or its error, also during a run."""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from flatfleet.commands import cli, exits
from flatfleet.commands.terminal import finite
from flatfleet.runtime.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from flatfleet.runtime.stores.records import Item

STATES = ("ready", "delayed", "claimed", "completed", "dead")
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
COLUMNS = ("id", "key", "state", "attempts", "crashes", "error_type", "error")


def parse(argv: Sequence[str], known: cli.Known) -> argparse.Namespace:
    made = cli.parser("results", "Export every settled item with its result or error, one a line, as JSONL or CSV.")
    made.add_argument("--pool", help="the pool to export (default: papers, or the only one)")
    made.add_argument("--csv", action="store_true", help="CSV with one column for each field of the results")
    made.add_argument(
        "--state",
        type=cli.choice(*STATES, "all", "settled"),
        default="settled",
        help=f"items in this state: {', '.join(STATES)}, all or settled (default: settled, which is completed or dead)",
    )
    made.add_argument("-o", "--output", metavar="FILE", help="write to this file (whole or not at all)")
    return cli.on_store(made, argv, "results", command)


async def command(options: argparse.Namespace, parts: Any) -> int:
    pools = await parts.store.driver.pools()
    name = options.pool or (pools[0] if len(pools) == 1 else "papers")
    if name not in pools:
        raise UsageError(f"no pool '{name}' in {parts.store.shown}{did_you_mean(name, pools) or ': it is empty'}")
    wanted = {"all": STATES, "settled": ("completed", "dead")}.get(options.state, (options.state,))
    pool = parts.store.work.pool(name)
    state = options.state if options.state in STATES else None
    with _target(options.output) as out:
        if options.csv:
            fields: dict[str, None] = {}
            async for item in pool.items(state):
                if item.state in wanted and isinstance(item.result, dict):
                    fields.update(dict.fromkeys(item.result))
            extra = [name for name in fields if name not in COLUMNS]
            writer = csv.writer(out)
            writer.writerow([*COLUMNS, *map(_cell, extra)])
            async for item in pool.items(state):
                if item.state in wanted:
                    writer.writerow(_cells(item, extra))
        else:
            async for item in pool.items(state):
                if item.state in wanted:
                    out.write(json.dumps(finite(_row(item)), ensure_ascii=False) + "\n")
    return exits.DONE


def _row(item: Item) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(item, name) for name in COLUMNS}
    if item.state == "completed":
        del row["error_type"], row["error"]
        row["result"] = item.result
    return row


def _cells(item: Item, extra: list[str]) -> list[Any]:
    result = item.result if isinstance(item.result, dict) else {}
    return [_cell(getattr(item, name)) for name in COLUMNS] + [_cell(result.get(name)) for name in extra]


def _cell(value: Any) -> Any:
    """A cell; text that a spreadsheet would take for a formula is quoted."""
    if isinstance(value, dict | list):
        value = json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA):
        return "'" + value
    return "" if value is None else value


@contextlib.contextmanager
def _target(path: str | None) -> Iterator[TextIO]:
    """Standard output, or a file that appears when all of it is written; what is no regular file is written to."""
    if path is None:
        yield sys.stdout
        return
    if not path or Path(path).is_dir():
        raise UsageError(f"cannot write '{path}': it is a folder; name a file")
    if Path(path).exists() and not Path(path).is_file():
        with Path(path).open("w", encoding="utf-8", newline="") as out:
            yield out
        return
    target = Path(os.path.realpath(path))
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace", newline="") as out:
            yield out
        temporary.chmod(stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~_umask())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
