"""Places that a user names: what is behind `package:NAME/PATH`, and whether a folder can be written to."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from flatfleet.runtime.errors import SourceError, UsageError

PACKAGE = "package:"


def located(spec: str) -> str:
    """The path behind `package:NAME/PATH`; anything else as it is. Raises SourceError if there is no such package."""
    if not spec.startswith(PACKAGE):
        return spec
    package, _, rest = spec.removeprefix(PACKAGE).partition("/")
    if not package.isidentifier() or not rest:
        raise SourceError(f"'{spec}' is incomplete; write package:NAME/PATH, as in package:flatfleet/examples/papers")
    try:
        root = resources.files(package)
    except (ImportError, TypeError) as error:
        raise SourceError(f"'{spec}': no package '{package}' is installed here") from error
    if not isinstance(root, Path):
        raise SourceError(f"'{spec}': package '{package}' is inside an archive; install it unpacked")
    return str(root / rest)


def check_writable(out: str) -> None:
    """Raise UsageError if no files could be written into a folder: better before the work than after it."""
    path = Path(out).absolute() if out else None
    there = next((each for each in (path, *path.parents) if os.path.lexists(each)), None) if path else None
    if there is not None and not there.is_dir():
        raise UsageError(f"out is '{out}', and {there} is a file; name a folder that exists or can be made")
    if there is not None and not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"out is '{out}', and {there} cannot be written; change its mode or name another folder")
