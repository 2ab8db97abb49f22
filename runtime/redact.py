"""What may be shown of a store's URL: all but its password."""

from __future__ import annotations

import re

_SECRET = re.compile(r"^([A-Za-z][\w+.-]*:/{0,2})([^:@]*)(:.*)?@", re.DOTALL)


def shown(url: str) -> str:
    """Any URL without its password."""
    return _SECRET.sub(lambda found: f"{found[1]}{found[2]}{':***' if found[3] else ''}@", url)
