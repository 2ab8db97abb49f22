"""The URL of a store in a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import SplitResult, parse_qsl, urlsplit

from flatfleet.runtime.errors import StoreUrlError, UsageError, did_you_mean
from flatfleet.runtime.redact import shown
from flatfleet.runtime.stores.keys import check_pool

OPTIONS = ("path", "synchronous")
FORM = "ray:NAME, or ray://HOST:PORT/NAME for the cluster whose head node is there"


@dataclass(frozen=True, slots=True)
class RayUrl:
    """`ray:[NAME]` or `ray://HOST:PORT[/NAME]`, with `path` (a file of the head node) and `synchronous` as options."""

    name: str = "fleet"
    address: str | None = None
    path: str | None = None
    synchronous: str = "NORMAL"

    @classmethod
    def parse(cls, url: str) -> RayUrl:
        """Raises StoreUrlError."""
        parts = _split(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        for option in options:
            if option not in OPTIONS:
                raise StoreUrlError(
                    f"store URL '{shown(url)}': unknown option '{option}'{did_you_mean(option, OPTIONS)}"
                )
        path, synchronous = options.get("path"), options.get("synchronous", "NORMAL").upper()
        if synchronous not in ("NORMAL", "FULL"):
            raise StoreUrlError(
                f"store URL '{shown(url)}': synchronous is NORMAL (survives kill -9) or FULL (and power loss)"
            )
        if path is not None and (not path.startswith(("/", "~")) or path.endswith("/") or not PurePosixPath(path).name):
            raise StoreUrlError(
                f"store URL '{shown(url)}': path={path} is no absolute file name; it is a file of the cluster's head node, "
                "which knows nothing of this working folder"
            )
        name = parts.path.strip("/") or "fleet"
        try:
            check_pool(name)
        except UsageError as error:
            raise StoreUrlError(
                f"store URL '{shown(url)}': the name after ray: is like a pool's: {error}; write {FORM}"
            ) from error
        return cls(name, cls.address_of(url), path, synchronous)

    @staticmethod
    def address_of(url: str) -> str | None:
        """The `HOST:PORT` of a URL, None if it has none; raises StoreUrlError for half of one."""
        parts = _split(url)
        if not parts.netloc:
            return None
        try:
            complete = parts.hostname and parts.port
        except ValueError:
            complete = False
        if not complete:
            raise StoreUrlError(f"'{shown(url)}': '{parts.netloc}' is not HOST:PORT of a Ray cluster; write {FORM}")
        return parts.netloc


def _split(url: str) -> SplitResult:
    if "@" in url.partition("?")[0]:
        raise StoreUrlError(f"'{shown(url)}': what has an @ is not HOST:PORT of a Ray cluster; write {FORM}")
    try:
        return urlsplit(url)
    except ValueError:
        raise StoreUrlError(f"'{shown(url)}': its host cannot be read; write {FORM}") from None
