"""What may be shown of a store's URL: all but its password, however badly the URL is written."""

from __future__ import annotations

import re

_HEAD = re.compile(r"""[\s"']*(?:[A-Za-z][\w+.-]*://|(?:rediss?|unix|ray)(?::/{0,2}|/{1,2}))?""")
_USER = re.compile(r"""[^:@/?#\s"'\[\]]*(?=:)""")
_NO_PORT = re.compile(r"""([^:/?#\[\]]*):(?!\d*["'\s]*(?:[/?#]|$)).*""", re.DOTALL)
_PLAIN = re.compile(r"sqlite:|memory:")
_OPTIONS = ("fleet", "timeout", "patience", "ca", "cert", "key", "db", "synchronous", "path")
"""Those whose values are no secrets."""


def shown(url: str) -> str:
    """Any URL without its password: that is whatever stands between its scheme and the last @, but for a user's name.

    The values of options that are not known may be passwords, too.
    """
    if _PLAIN.match(url):
        place, _, query = url.partition("?")
        return place + _options(query)
    head = _HEAD.match(url)
    start = head.end() if head else 0
    front, rest = url[:start], url[start:]
    secret, at, rest = rest.rpartition("@")
    if at:
        user = _USER.match(secret) if front.strip(" \"'") else None
        front += f"{user[0]}:***@" if user else "***@"
        if "?" in secret:  # it is an option's, maybe, and so is what follows
            return f"{front}***"
    elif front.endswith("//") and (found := _NO_PORT.fullmatch(rest)):
        return f"{front}{found[1]}:***"
    place, _, query = rest.partition("?")
    return front + place + _options(query)


def _options(query: str) -> str:
    """`?` and the options, those that are not known without their values."""
    if not query:
        return ""
    told = []
    for part in query.split("&"):
        name, _, _ = part.partition("=")
        told.append(part if name in _OPTIONS else f"{name}=***" if "=" in part else "***")
    return "?" + "&".join(told)
