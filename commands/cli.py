"""The command line: verbs, and the flags that all of them have."""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from flatfleet.commands import terminal
from flatfleet.runtime.errors import UsageError, did_you_mean
from flatfleet.runtime.redact import shown

VERBS = (
    "run", "check", "status", "workers", "items", "explain", "dead", "results",
    "scale", "drain", "pause", "resume", "retry", "cancel", "gc",
    "explain-scaling", "pause-scaling", "resume-scaling",
    "capacity", "replay",
)  # fmt: skip
HIDDEN = ("host",)
"""Verbs that only our own processes use."""
STORE = "sqlite:fleet.db"
ENGINE = "inline"

Known = Callable[[], Mapping[str, Collection[str]]]
"""Makes the names of all hooks with those of their actions; called only by a verb that checks machines."""

USAGE = """\
usage: flatfleet FILE [--input …]    run a machine (also: flatfleet run FILE …, python run.py FILE …)
       flatfleet FILE --help         what that machine takes
       flatfleet check [FILE …]      find mistakes in machine files

look   flatfleet status              items, workers, targets, and what was last decided
       flatfleet workers             the workers, with what they do
       flatfleet items [--state S]   the items of a pool
       flatfleet explain ITEM        all about an item: every attempt, the result
       flatfleet dead                the items that died, by their errors
       flatfleet results [--csv]     export the results, also during a run
       flatfleet explain-scaling [--last N]   what the autoscaler has decided, and why

steer  flatfleet scale N|+N|-N       that many workers, so many more or fewer
       flatfleet drain [WORKER …]    let these workers finish their items and end; all without a name
       flatfleet pause [--for 10m]   let nobody claim items for a time
       flatfleet resume              let them claim again
       flatfleet pause-scaling [--for 10m]   let the autoscaler leave the target alone
       flatfleet resume-scaling      let it decide again
       flatfleet retry [ITEM …]      try dead items again: these, --error X, --since 1d, or all
       flatfleet cancel ITEM …       give these items up
       flatfleet gc [--older 7d]     delete what has ended and nobody needs

plan   flatfleet capacity --arrival 100 --service 120 [--workers 1..8]   how long items would wait
       flatfleet replay --policy P --trace FILE   what a scaling policy would have done on a recorded day

       --store URL   where everything durable is: sqlite:fleet.db (default), memory:, redis://host:6379/0
       --json        one JSON document on standard output     -v   say more     --version

All of them work in a terminal of their own, while the fleet runs and after.
FILE is a path, or a machine of an installed package: package:flatfleet/launcher.yml
Exit codes: 0 done · 1 some items failed or were skipped, or a message was refused · 2 wrong input ·
            3 the store failed · 4 a machine failed · 130 interrupted or drained (the same command goes on)
"""


class Parser(argparse.ArgumentParser):
    """Raises UsageError instead of printing its usage and leaving."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "))


def parse(argv: Sequence[str], known: Known) -> Any:
    """Parse the whole command line into options; `options.command(options, parts)` runs it."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        if not argv:
            raise UsageError(f"a machine file or a command is missing\n{USAGE.rstrip()}")
        terminal.show(USAGE.rstrip())
        sys.exit(0)
    if argv[0] in ("--version", "-V"):
        terminal.show(f"flatfleet {_version()}")
        sys.exit(0)
    verb, rest = (argv[0], argv[1:]) if argv[0] in (*VERBS, *HIDDEN) else ("run", argv)
    if verb == "run" and (not rest or rest[0].startswith("-")) and not {"-h", "--help"} & set(rest[:1]):
        raise UsageError("run needs a machine file first, as in: flatfleet run machines/launcher.yml --workers 8")
    if verb == "run" and rest[0] in ("-h", "--help"):
        terminal.show(USAGE.rstrip())
        sys.exit(0)
    if verb == "run" and argv[0] != "run" and not _names_a_file(rest[0]):
        raise UsageError(_no_verb(rest[0]))
    module = importlib.import_module(f"flatfleet.commands.{verb.replace('-', '_')}")
    options: Any = module.parse(rest, known)
    return options


def parser(verb: str, description: str, takes: str = "") -> Parser:
    """A parser with the flags that every command has; `takes` are the words that come before them."""
    made = Parser(
        prog=f"flatfleet {verb}",
        usage=" ".join(filter(None, ("flatfleet", verb, takes, "[flags]"))).replace("%", "%%"),
        description=description,
        allow_abbrev=False,
    )
    store = os.environ.get("FLATFLEET_STORE") or STORE
    made.add_argument(
        "--store",
        default=store,
        metavar="URL",
        help=f"where everything durable is, or FLATFLEET_STORE (now: {shown(store).replace('%', '%%')})",
    )
    made.add_argument("--json", action="store_true", default=False, help="one JSON document on standard output")
    made.add_argument("-v", "--verbose", action="store_true", default=False, help="say more")
    return made


def add_engine(made: Parser) -> None:
    """Add the flag of verbs that host a fleet; run.py makes the engine, and says what is wrong with it."""
    made.add_argument(
        "--engine",
        default=os.environ.get("FLATFLEET_ENGINE") or ENGINE,
        metavar="SPEC",
        help="where launched machines run: inline, in this process; process, in a pool of others, such as "
        "process?max_size=4; ray (docs/engines.md); or FLATFLEET_ENGINE (now: %(default)s)",
    )


def prefer(made: Parser, **chosen: str | None) -> None:
    """Let what a machine file asks for take the place of a default, where no variable says otherwise."""
    asked = {name: text for name, text in chosen.items() if text and not os.environ.get(f"FLATFLEET_{name.upper()}")}
    made.set_defaults(**asked)


def choice(*names: str) -> Callable[[str], str]:
    """The type of a flag that takes one of `names`."""

    def check(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"'{text}' is none of them{did_you_mean(text, names)}")
        return text

    return check


def finish(made: argparse.ArgumentParser, argv: Sequence[str], what: str) -> argparse.Namespace:
    """Parse; an unknown flag is a UsageError with a suggestion."""
    options, unknown = made.parse_known_args(list(argv))
    if unknown:
        flags = [flag for action in made._actions for flag in action.option_strings if flag.startswith("--")]
        flag = unknown[0].partition("=")[0]
        if not flag.startswith("-"):
            hint = "; what to work through is named with --input (quote a glob)" if "--input" in flags else ""
            raise UsageError(f"unexpected argument '{flag}' for {what}{hint}")
        raise UsageError(
            f"unknown flag '{flag}' for {what}{did_you_mean(flag, flags)}{_dashed(made, what, unknown[0])}"
        )
    return options


def on_store(made: argparse.ArgumentParser, argv: Sequence[str], verb: str, command: Any) -> argparse.Namespace:
    """Finish the options of a verb that looks into, or steers, a store that is there: `await command(options, parts)`."""
    options = finish(made, argv, verb)
    options.needs_loop, options.must_exist, options.command = True, True, command
    return options


def again(options: Any, *words: str) -> str:
    """What to type next: `flatfleet` with these words, about the same store and pool."""
    pool = ["--pool", options.pool] if getattr(options, "pool", None) else []
    return " ".join([shlex.join(["flatfleet", *words, *pool]), *store_flag(options.store)])


def store_flag(url: str) -> list[str]:
    """The flag that leads to a store from this shell: none where a command finds it without; a password is not shown.

    In place of a URL with one stands the variable that a password belongs into, FLATFLEET_STORE.
    """
    if url == (os.environ.get("FLATFLEET_STORE") or STORE):
        return []
    return [f"--store {shlex.quote(url)}" if shown(url) == url else '--store "$FLATFLEET_STORE"']


def _dashed(made: argparse.ArgumentParser, what: str, word: str) -> str:
    """How to write a name that begins with a dash, for a verb that takes names."""
    names = any(not action.option_strings and action.type is None for action in made._actions)
    if word.startswith("--") or not names:
        return ""
    return f"; if that is a name, it comes after --, as in: {shlex.join(['flatfleet', what, '--', word])}"


def _names_a_file(word: str) -> bool:
    return word.startswith("package:") or "/" in word or os.sep in word or word.endswith((".yml", ".yaml", ".json"))


def _no_verb(word: str) -> str:
    shipped = sorted(path.stem for path in (Path(__file__).parents[1] / "machines").glob("*.yml"))
    if word in shipped:
        return f"'{word}' is a machine; name its file, such as package:flatfleet/{word}.yml"
    if Path(word).is_dir() and word:
        names = sorted(path.name for path in Path(word).iterdir() if path.suffix in (".yml", ".yaml"))
        return f"'{word}' is a folder; name a machine file in it ({', '.join(names[:8]) or 'it holds none'})"
    return f"'{word}' is neither a command nor a machine file{did_you_mean(word, VERBS)}"


def _version() -> str:
    from importlib.metadata import version

    return version("flatfleet")
