"""What to do about a fault of a database: a sentence for whoever reads the error."""

from __future__ import annotations


def advice(text: str) -> str:
    """The advice that belongs to the text of an SQLite error."""
    for words, told in (
        ("readonly", "The file or its folder is read-only: change its permissions, or name another with --store"),
        ("unable to open", "Check that the folder exists and can be written, or name another file with --store"),
        ("full", "Free some disk space and run the same command again: what was acknowledged is kept"),
        ("locked", "Another process holds it for a minute already: end that process"),
        ("not a database", "The file is not an SQLite database: move it away, or name another with --store"),
        ("malformed", "The file is damaged: restore a copy, or `sqlite3 FILE .recover`; a new --store starts afresh"),
        ("denied", "Change its permissions, or name another file with --store"),
        ("Not a directory", "A part of the path is a file: name another path with --store"),
    ):
        if words.lower() in text.lower():
            return told + "."
    return "Check the disk and the file, then run the same command again."
