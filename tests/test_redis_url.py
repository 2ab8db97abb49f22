"""URLs of Redis stores: what they say, what is wrong with them, and that no password is ever shown."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import signal
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flatfleet.runtime.errors import StoreUnavailable, StoreUrlError
from flatfleet.runtime.redact import shown
from flatfleet.runtime.stores import open_store, redis_faults, redis_session
from flatfleet.runtime.stores.redis_url import Target, parse

ROOT = Path(__file__).parents[1]
SECRET = "s3cr3t/+%"
QUOTED = "s3cr3t%2F%2B%25"
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBnDCCAUGgAwIBAgIUYMPM3Fai7gBuAeKf4NjMiCCauxMwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMTE5NTUzNloYDzIxMjYxMDI4
MTk1NTM2WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAT1bHRhxp+pd4DSNTBCojLSgGj4W5QJq+cJjCNFLREYAXhk0twd+Ma1
mirU7RQyzv4wXkPP+z1y7LMdpIuKnrbdo28wbTAdBgNVHQ4EFgQUX+nmfCrzrpLR
tOycneZ0AlTjZi8wHwYDVR0jBBgwFoAUX+nmfCrzrpLRtOycneZ0AlTjZi8wDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
zj0EAwIDSQAwRgIhAKIWmNvdlb0nb1zk2C4tJeDNCl06BaMqMRWHacVmGUC/AiEA
8LKMIs1TV0GfLcxZ+yX/pYj0Hd6bFq0mozU3HmNwbIo=
-----END CERTIFICATE-----
"""
KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg++KpcZfhnoWJdo+d
ytuupDgKQj7PbxACZUKh1GLSNYKhRANCAAT1bHRhxp+pd4DSNTBCojLSgGj4W5QJ
q+cJjCNFLREYAXhk0twd+Ma1mirU7RQyzv4wXkPP+z1y7LMdpIuKnrbd
-----END PRIVATE KEY-----
"""


async def use(url: str, **options: Any) -> int:
    store = open_store(url, **options)
    try:
        return len(await store.driver.pools())
    finally:
        await store.close()


# -- what they say -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("redis://h", {"host": "h", "port": 6379, "db": 0, "user": None, "password": None, "tls": False}),
        ("redis://h:7/3", {"port": 7, "db": 3, "fleet": "flatfleet", "tag": "{flatfleet}"}),
        (f"redis://:{QUOTED}@h", {"user": None, "password": SECRET, "host": "h"}),
        (f"rediss://me:{QUOTED}@h:7", {"user": "me", "password": SECRET, "tls": True}),
        ("redis://h?fleet=night&timeout=2.5&patience=9", {"tag": "{night}", "timeout": 2.5, "patience": 9.0}),
        ("redis://[::1]:7", {"host": "::1", "port": 7, "place": "::1:7"}),
        ("unix:///run/redis.sock?db=2&fleet=x", {"path": "/run/redis.sock", "db": 2, "place": "/run/redis.sock"}),
    ],
)
def test_a_url_is_read(url, told):
    target = parse(url)
    assert {name: getattr(target, name) for name in told} == told


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis:h:6379", r"write redis://host"),
        ("redis://", r"names no host.*redis://127.0.0.1:6379/0"),
        ("redis://h:x", r"its port cannot be read"),
        ("redis://h:99999", r"its port cannot be read"),
        ("redis://h:0/0", r"port 0 is none"),
        ("redis://:x@[::1/0", r"its host cannot be read; an IPv6 address stands in brackets"),
        (" redis://h", r"has blanks or quotes around it"),
        ("'redis://h'", r"has blanks or quotes around it"),
        ("redis://h/0 x", r"a blank in it"),
        ("redis://me:1/x@h", r"an @ behind the host; write %40"),
        ("redis://h?x=1&fleet", r"unknown option 'x'"),
        ("redis://h/papers", r"'papers' is no number of a database"),
        ("redis://h?flet=x", r"unknown option 'flet'.*Did you mean 'fleet'"),
        ("redis://h?ca=x", r"unknown option 'ca'"),
        ("rediss://h?ca=/nowhere/ca.pem", r"/nowhere/ca.pem: there is no such file"),
        ("redis://h?fleet=", r"fleet=''"),
        ("redis://h?fleet={x}", r"fleet='\{x\}'"),
        ("redis://h?timeout=soon", r"timeout=soon: write a number of seconds"),
        ("redis://h?patience=0", r"patience=0"),
        ("redsi://h", r"unknown kind 'redsi'.*Did you mean 'redis'"),
        ("unix://", r"names no socket"),
    ],
)
def test_a_typo_is_told_at_once(url, words):
    with pytest.raises(StoreUrlError, match=f"(?s){words}"):
        open_store(url)


# -- no password is shown ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("redis://:secret@h:1/0?fleet=x", "redis://:***@h:1/0?fleet=x"),
        ("redis://me:secret@h", "redis://me:***@h"),
        ("redis://Secret@h", "redis://***@h"),
        ("redis://", "redis://"),
        (" redis://:Secret@h", " redis://:***@h"),
        ("\tredis://:Secret@h", "\tredis://:***@h"),
        ('"redis://:Secret@h"', '"redis://:***@h"'),
        ("redis//:Secret@h", "redis//:***@h"),
        (":Secret@h", "***@h"),
        ("Sec:ret@h", "***@h"),
        ("Secret@h:1", "***@h:1"),
        ("redis://:Sec ret@h", "redis://:***@h"),
        ("redis://:Secret", "redis://:***"),
        ("redis://h:1/0?fleet=x&passwrd=Secret&Secret", "redis://h:1/0?fleet=x&passwrd=***&***"),
        ("redis://[::1]:7/0?fleet=x", "redis://[::1]:7/0?fleet=x"),
        ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock?db=1"),
        ("sqlite:a.db?synchronous=FULL", "sqlite:a.db?synchronous=FULL"),
        ("redis://:sec/r@et:@h", "redis://:***@h"),
        ("redsi::secret@h", "***@h"),
        ("redis://h:1/0", "redis://h:1/0"),
        ("sqlite:a/b@c.db", "sqlite:a/b@c.db"),
        ("sqlite:fleet.db", "sqlite:fleet.db"),
    ],
)
def test_the_password_is_left_out_of_what_is_shown(url, seen):
    assert shown(url) == seen


@pytest.mark.parametrize(
    "url",
    [
        *(
            "redis://:{}@h:x",
            "redis://:{}@",
            "redsi://:{}@h",
            "redis::{}@h",
            "redis://me:{}@h?flet=1",
            "redis://:{}@h/x",
        ),
        *(" redis://:{}@h", "\tredis://:{}@h", "redis://:{}@h\n", '"redis://:{}@h"', "'redis://:{}@h'", "redis//:{}@h"),
        *(
            "{}@h",
            ":{}@h:1/0",
            "redis://:{}@[::1/0",
            "ray://:{}@[::1/0",
            "ray:x?p={}",
            "sqlite:x?p={}",
            "memory:x?p={}",
        ),
        *("redis://h/0?passwrd={}", "redis://h/0?password={}", "redis://h?{}", "redis://:{}@h:0", "redis://me:1/{}@h"),
        *("redis://me:1?{}@h", "redis://me:1#{}@h", "redis://me:{} x@h"),
    ],
)
@pytest.mark.parametrize("secret", ["Secret", "Sec/ret", "Sec@ret:7", "Sec:ret"])
def test_no_error_about_a_url_shows_a_password(url, secret):
    with pytest.raises(StoreUrlError) as found:
        open_store(url.format(secret))
    assert "Sec" not in str(found.value)
    assert "ret" not in str(found.value).replace("letters", "")


def test_the_parts_that_are_printed_do_not_have_it():
    target = parse(f"redis://me:{QUOTED}@h")
    assert "s3cr3t" not in repr(target) + target.shown
    assert target.scrub(f"cannot use {SECRET}") == "cannot use ***"
    store = open_store(f"redis://me:{QUOTED}@h")
    assert (store.shown, "s3cr3t" in store.url) == ("redis://me:***@h", True)


def test_no_command_shows_the_url_itself():
    found = [path.name for path in (ROOT / "commands").glob("*.py") if re.search(r"store\.url\b", path.read_text())]
    assert found == []


@pytest.mark.slow
def test_neither_a_status_nor_a_help_nor_an_error_prints_the_password(own_redis):
    server = own_redis("--requirepass", SECRET)
    url = f"redis://:{QUOTED}@127.0.0.1:{server.port}/0"

    def said(*words: str, store: str = url) -> tuple[int, str]:
        argv = [sys.executable, "run.py", *words]
        done = subprocess.run(
            argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, env={"FLATFLEET_STORE": store}
        )
        assert "s3cr3t" not in done.stdout + done.stderr
        return done.returncode, done.stdout if "--json" in words else done.stdout + done.stderr

    async def push() -> None:
        store = open_store(url)
        await store.work.pool("papers").push(1, {"key": "a"})
        await store.close()

    asyncio.run(push())
    code, out = said("status", "--json")
    assert (code, json.loads(out)["store"]) == (0, f"redis://:***@127.0.0.1:{server.port}/0")
    assert "***" in said("items", "--help")[1]
    code, out = said("status", store=url.replace("s3cr3t", "wr0ng"))
    assert code == 3
    assert "password" in out
    assert "wr0ng" not in out
    server.kill()
    code, out = said("status")
    assert code == 3
    assert "Check that the server runs" in out
    assert "Traceback" not in out


# -- what is wrong at the start ------------------------------------------------------------------------------------------


async def test_a_server_that_is_down_is_told_at_once(own_redis):
    server = own_redis()
    server.kill()
    async with asyncio.timeout(20):
        with pytest.raises(StoreUnavailable, match=rf"127.0.0.1:{server.port}.*cannot be used.*Check that the server"):
            await use(server.url)


async def test_a_wrong_password_or_none_is_told_at_once(own_redis):
    server = own_redis("--requirepass", SECRET)
    async with asyncio.timeout(20):
        for url in (server.url, server.url.replace("//", "//:wrong@"), server.url.replace("//", "//me:wrong@")):
            with pytest.raises(StoreUnavailable, match=r"(?i)cannot be used.*(password|authentication)") as found:
                await use(url)
            assert "wrong@" not in str(found.value)
        assert await use(server.url.replace("//", f"//:{QUOTED}@")) == 0


async def test_a_user_with_the_rights_of_the_docs_can_do_all(own_redis):
    rights = "~{night}* resetchannels &{night}* +@all -@dangerous +info +client"
    server = own_redis("--user", *f"me on >{SECRET} {rights}".split(), "--user", "default", "off")
    url = server.url.replace("//", f"//me:{QUOTED}@")
    store = open_store(f"{url}?fleet=night", owner="o")
    store.bell.open()
    pool = store.work.pool("p")
    await pool.push(1, {"key": "a"})
    claim = await pool.claim("w")
    await store.driver.beat("o", [], {claim.id: claim.token}, 60.0)
    await pool.complete(claim.id, 1, token=claim.token)
    await store.signals.send("ch", 1)
    assert (await store.driver.take("ch", "x")).data == 1
    assert await store.driver.gc(0.0) == dict.fromkeys(("workers", "executions", "decisions", "attempts", "configs"), 0)
    async with asyncio.timeout(20):
        while not store.bell.hears:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await store.close()
    with pytest.raises(StoreUnavailable, match=r"(?i)permission.*lacks rights"):
        await use(f"{url}?fleet=day")


async def test_a_database_that_the_server_does_not_have(own_redis):
    server = own_redis("--databases", "2")
    with pytest.raises(StoreUnavailable, match=r"(?i)DB index.*Name a database"):
        await use(f"{server.url}/7")


async def test_a_server_that_speaks_no_tls(own_redis):
    server = own_redis()
    with pytest.raises(StoreUnavailable, match=r"(no answer within 1 s|SSL).*speaks TLS on this port"):
        await use(server.url.replace("redis:", "rediss:") + "?timeout=1")


async def test_a_server_that_has_never_answered_is_not_waited_for_again(own_redis, monkeypatch):
    server, opened, really = own_redis(), [], redis_session.Session.open

    async def counted(*args: Any) -> Any:
        opened.append(1)
        return await really(*args)

    monkeypatch.setattr(redis_session.Session, "open", counted)
    server.signal(signal.SIGSTOP)
    store = open_store(server.url + "?timeout=0.2&patience=900")
    said = set()
    for _ in range(5):
        with pytest.raises(StoreUnavailable, match=r"no answer within 0.2 s\. ") as found:
            await store.driver.pools()
        said.add(str(found.value))
    server.signal(signal.SIGCONT)
    assert (len(opened), len(said)) == (1, 1)
    await store.close()


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (
            "Error running script (call to f_871b): @user_script:48: @user_script: 48: -OOM command not allowed when "
            "used memory > 'maxmemory'.",
            "OOM command not allowed when used memory > 'maxmemory'",
        ),
        (
            "OOM command not allowed when used memory > 'maxmemory'. script: 871b, on @user_script:48.",
            "OOM command not allowed when used memory > 'maxmemory'",
        ),
        ("invalid password.", "invalid password"),
        ("DB index is out of range", "DB index is out of range"),
    ],
)
def test_what_a_server_says_is_told_without_its_noise(text, clean):
    assert redis_faults.words(Exception(text)) == clean


@contextlib.asynccontextmanager
async def encrypted(port: int, files: Path) -> Any:
    """The port of a way to a server that speaks TLS, as localhost and 127.0.0.1."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files / "cert.pem", files / "key.pem")
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up, down = await asyncio.open_connection("127.0.0.1", port)
        tasks.update(asyncio.ensure_future(each) for each in (pump(reader, down), pump(up, writer)))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.wait(tasks, timeout=5)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A certificate of localhost, good for a hundred years, and its key."""
    (tmp_path / "cert.pem").write_text(CERTIFICATE)
    (tmp_path / "key.pem").write_text(KEY)
    return tmp_path


async def test_a_server_that_speaks_tls(own_redis, files):
    server = own_redis("--requirepass", SECRET)
    async with encrypted(server.port, files) as port:
        url = f"rediss://:{QUOTED}@127.0.0.1:{port}/0"
        assert await use(f"{url}?ca={files}/cert.pem") == 0
        with pytest.raises(StoreUnavailable, match=r"(?i)certificate.*Check ca="):
            await use(url)


async def test_a_unix_socket(own_redis, tmp_path):
    server = own_redis("--unixsocket", "redis.sock")
    assert await use(f"unix://{server.folder}/redis.sock") == 0


@pytest.mark.parametrize(("version", "fine"), [("5.0.14", False), ("6.0.9", False), ("6.2.0", True), ("7.4.1", True)])
def test_an_old_server_is_refused(version, fine):
    about = {"redis_version": version, "aof_enabled": "1"}
    if fine:
        redis_session.check(Target("redis://h"), about)
    else:
        with pytest.raises(StoreUnavailable, match=rf"Redis {version}: 6.2 or later is needed"):
            redis_session.check(Target("redis://h"), about)


async def test_who_keeps_nothing_is_warned_of_once(own_redis, caplog):
    server, keeps = own_redis("--maxmemory-policy", "allkeys-lru"), own_redis("--appendonly", "yes")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            await use(server.url)
        await use(keeps.url)
    assert (
        sorted(record.getMessage().split(" keeps")[0].split(" may")[0] for record in caplog.records)
        == [f"the Redis server 127.0.0.1:{server.port}"] * 2
    )


async def test_a_store_that_has_to_exist(redis):
    url = redis()
    with pytest.raises(StoreUnavailable, match=r"there is no store redis://.*run a launcher first"):
        await use(url, must_exist=True)
    assert await use(url) == 0
    assert await use(url, must_exist=True) == 0


async def test_stores_of_other_names_on_one_server_do_not_meet(redis):
    one, other = open_store(redis()), open_store(redis())
    await one.work.pool("p").push(1, {"key": "a"})
    assert (await one.driver.pools(), await other.driver.pools()) == (["p"], [])
    await one.close()
    await other.close()


def test_without_the_library_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "redis.asyncio.connection", None)
    redis_faults.library.cache_clear()
    try:
        with pytest.raises(StoreUnavailable, match=r'pip install "flatfleet\[redis\]"'):
            open_store("redis://h")
    finally:
        redis_faults.library.cache_clear()
