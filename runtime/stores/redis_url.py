"""URLs of Redis stores: where the server is, which store on it, and how patiently it is asked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from flatfleet.runtime.errors import StoreUrlError, did_you_mean
from flatfleet.runtime.redact import shown

SCHEMES = ("redis", "rediss", "unix")
PORT = 6379
FLEET = "flatfleet"
TIMEOUT, PATIENCE = 15.0, 60.0
_FLEET = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}")
_NUMBERS = ("timeout", "patience")
_FILES = ("ca", "cert", "key")
OPTIONS = {
    "redis": ("fleet", *_NUMBERS),
    "rediss": ("fleet", *_NUMBERS, *_FILES),
    "unix": ("db", "fleet", *_NUMBERS),
}


@dataclass(frozen=True, slots=True)
class Target:
    """A server and a store on it. `shown` is the URL without its password.

    `timeout` is seconds without an answer after which a connection is given up, `patience` those for which an operation
    is tried again before it fails.
    """

    shown: str
    fleet: str = FLEET
    host: str = ""
    port: int = PORT
    path: str = ""
    db: int = 0
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    files: Mapping[str, str] = field(default_factory=dict)
    timeout: float = TIMEOUT
    patience: float = PATIENCE

    @property
    def tag(self) -> str:
        """What all keys of the store begin with: its hash tag."""
        return f"{{{self.fleet}}}"

    @property
    def place(self) -> str:
        """Where the server is, for people."""
        return self.path or f"{self.host}:{self.port}"

    def arguments(self) -> dict[str, Any]:
        """What the library's connection of this kind is made with; whoever uses it watches the time by himself."""
        found: dict[str, Any] = {"db": self.db, "username": self.user, "password": self.password, "protocol": 2}
        found |= {"socket_timeout": None, "socket_connect_timeout": None}
        if self.path:
            return found | {"path": self.path}
        found |= {"host": self.host, "port": self.port, "socket_keepalive": True}
        if self.tls:
            found |= {"ssl_ca_certs": self.files.get("ca"), "ssl_check_hostname": True}
            found |= {"ssl_certfile": self.files.get("cert"), "ssl_keyfile": self.files.get("key")}
        return found

    def scrub(self, text: str) -> str:
        """The text without the password."""
        return text.replace(self.password, "***") if self.password else text


def parse(url: str) -> Target:
    """The target of `redis://`, `rediss://` (TLS) or `unix://`; StoreUrlError says what is wrong with it."""
    visible, kind = shown(url), url.partition(":")[0]

    def wrong(what: str) -> StoreUrlError:
        return StoreUrlError(f"store URL '{visible}': {what}")

    if not url.startswith(f"{kind}://"):
        raise wrong(f"write {kind}://" + ("/path/of/the/socket" if kind == "unix" else "host:6379/0"))
    if re.search(r"\s", url):
        raise wrong("it has a blank in it; write %20 for one in a password")
    try:
        parts = urlsplit(url)
        port = PORT if parts.port is None else parts.port
    except ValueError:  # whose text may hold a part of the password
        raise wrong(
            f"its host or its port cannot be read; as in {kind}://:password@host:6379/0 (write %2F for / in a password)"
        ) from None
    if "@" in url.partition("://")[2].removeprefix(parts.netloc):
        raise wrong("an @ behind the host; write %40 for @, %2F for /, %3F for ? and %23 for # in a password or a name")
    if not port:
        raise wrong(f"port 0 is none that a server has; leave it out for {PORT}")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in options:
        if name not in OPTIONS[kind]:
            told = name if f"{name}=" in parts.query else "***"
            raise wrong(f"unknown option '{told}'{did_you_mean(told, OPTIONS[kind])}")
    fleet = options.get("fleet", FLEET)
    if not _FLEET.fullmatch(fleet):
        raise wrong(
            f"fleet={fleet!r}: use 1 to 64 letters, digits, '_', '-', '.' or ':', beginning with a letter or digit"
        )
    common: dict[str, Any] = {"shown": visible, "fleet": fleet, "tls": kind == "rediss"}
    for name in _NUMBERS:
        common[name] = _seconds(options, name, wrong)
    common["files"] = {name: options[name] for name in _FILES if name in options}
    for name, file in common["files"].items():
        if not Path(file).is_file():
            raise wrong(f"{name}={file}: there is no such file")
    common |= {"user": _told(parts.username), "password": _told(parts.password)}
    if kind == "unix" and not parts.path.strip("/"):
        raise wrong("it names no socket; write for example unix:///run/redis.sock")
    if kind == "unix":
        return Target(path=unquote(parts.path), db=_db(options.get("db", ""), wrong), **common)
    if not parts.hostname:
        raise wrong("it names no host; write for example redis://127.0.0.1:6379/0")
    return Target(host=parts.hostname, port=port, db=_db(parts.path, wrong), **common)


def _told(text: str | None) -> str | None:
    return unquote(text) if text else None


def _db(path: str, wrong: Any) -> int:
    number = path.strip("/")
    if number and not number.isdecimal():
        raise wrong(f"'{number}' is no number of a database; write for example redis://127.0.0.1:6379/0")
    return int(number or 0)


def _seconds(options: Mapping[str, str], name: str, wrong: Any) -> float:
    try:
        seconds = float(options.get(name, TIMEOUT if name == "timeout" else PATIENCE))
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e6:
        raise wrong(f"{name}={options[name]}: write a number of seconds, more than 0")
    return seconds
