"""The life cycle over raw HTTP, for tests that a client library's opinion would be in the way of, and what they put
into sandboxes to see whether its state was kept."""

from __future__ import annotations

import datetime
import pathlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest
from conftest import NO_POOL, Server, until
from e2b import Sandbox
from engine_proxy import EngineProxy, Rule

UNKNOWN = "inothere000000000000"

# What the operations of the table are on the wire (control-plane 3.2 to 3.5).
OPERATIONS: dict[str, tuple[str, str, object]] = {
    "get": ("GET", "/sandboxes/{id}", None),
    "pause": ("POST", "/sandboxes/{id}/pause", {}),
    "kill": ("DELETE", "/sandboxes/{id}", None),
    "connect": ("POST", "/v2/sandboxes/{id}/connect", {}),
    "connect v1": ("POST", "/sandboxes/{id}/connect", {"timeout": 300}),
    "resume": ("POST", "/sandboxes/{id}/resume", {}),
    "timeout": ("POST", "/sandboxes/{id}/timeout", {"timeout": 300}),
    "refreshes": ("POST", "/sandboxes/{id}/refreshes", {"duration": 300}),
    "snapshot": ("POST", "/sandboxes/{id}/snapshots", {}),
    "fork": ("POST", "/sandboxes/{id}/fork", {}),
}

# A service with state in memory: how often it was asked, and which process it is.
COUNTER = """
import http.server, itertools, os, sys

count = itertools.count(1)


class Counter(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        told = f"{next(count)} {os.getpid()}".encode()
        self.answer(told)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(f"{next(count)} {os.getpid()} {len(body)}".encode())

    def answer(self, told):
        self.send_response(200)
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)


http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Counter).serve_forever()
"""

# When the first process began: another value after each start, and the same over a pause with memory.
STARTED = "cut -d' ' -f22 /proc/1/stat"
# Another one after each start too, but the sandbox's own only where it has a workspace (docs/decisions/security.md).
BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


class Rest:
    """The REST API as one team sees it. Kills at its end what it has made."""

    def __init__(self, server: Server, api_key: str | None = "") -> None:
        self.server = server
        self.api_key = api_key or None
        self.http = server.http(api_key)
        self.made: list[str] = []
        self.templates: list[str] = []

    def create(self, template: str = "base", **body: object) -> str:
        return self.created(template, **body)["sandboxID"]

    def created(self, template: str = "base", **body: object) -> dict[str, object]:
        """The whole answer to a create."""
        answer = self.http.post("/v2/sandboxes", json={"templateID": template, "timeout": 300} | body)
        assert answer.status_code == 201, answer.text
        self.made.append(answer.json()["sandboxID"])
        return answer.json()

    def call(self, operation: str, sandbox: str, body: object = None) -> httpx.Response:
        """One operation of the table; `body` in place of its usual one."""
        method, path, usual = OPERATIONS[operation]
        answer = self.http.request(method, path.format(id=sandbox), json=usual if body is None else body)
        if operation == "fork" and answer.status_code == 201:
            self.made += [entry["sandbox"]["sandboxID"] for entry in answer.json() if "sandbox" in entry]
        if operation == "snapshot" and answer.status_code == 201:
            self.templates.append(answer.json()["snapshotID"])
        return answer

    def does(self, operation: str, sandbox: str, *expected: int, body: object = None) -> httpx.Response:
        """A call whose status is checked, and whose body if it is an error (control-plane 2.1)."""
        answer = self.call(operation, sandbox, body)
        assert answer.status_code in expected, f"{operation}: {answer.status_code} {answer.text}"
        if answer.status_code >= 400:
            assert answer.json()["code"] == answer.status_code and answer.json()["message"], answer.text
        elif answer.status_code == 204:
            assert answer.content == b""
        return answer

    def detail(self, sandbox: str) -> dict[str, object]:
        return self.does("get", sandbox, 200).json()

    def state(self, sandbox: str) -> str:
        """`running`, `paused`, or `gone`."""
        answer = self.does("get", sandbox, 200, 404)
        return answer.json()["state"] if answer.status_code == 200 else "gone"

    def times(self, sandbox: str) -> tuple[datetime.datetime, datetime.datetime]:
        shown = self.detail(sandbox)
        return parse_time(shown["startedAt"]), parse_time(shown["endAt"])

    def listed(self, **query: object) -> list[dict[str, object]]:
        answer = self.http.get("/v2/sandboxes", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def sdk(self, sandbox: str) -> Sandbox:
        """The official client's object for a running sandbox."""
        return Sandbox.connect(sandbox, **self.server.options(self.api_key))

    def close(self) -> None:
        for sandbox in self.made:
            self.does("kill", sandbox, 204, 404)
        for template in self.templates:
            answer = self.http.delete(f"/templates/{template.replace('/', '%2F').replace(':', '%3A')}")
            assert answer.status_code in (204, 404), answer.text
        self.http.close()


def parse_time(text: object) -> datetime.datetime:
    return datetime.datetime.fromisoformat(str(text))


def seconds_left(rest: Rest, sandbox: str) -> float:
    return (rest.times(sandbox)[1] - datetime.datetime.now(datetime.timezone.utc)).total_seconds()


def in_parallel(count: int, call: Callable[[], httpx.Response]) -> list[httpx.Response]:
    """The answers to calls that all start at once."""
    barrier = threading.Barrier(count)

    def one() -> httpx.Response:
        barrier.wait(20)
        return call()

    with ThreadPoolExecutor(count) as pool:
        return [done.result(60) for done in [pool.submit(one) for _ in range(count)]]


def serve_counter(sandbox: Sandbox, port: int = 8000) -> int:
    """Starts the counter; its process id."""
    sandbox.files.write("counter.py", COUNTER)
    handle = sandbox.commands.run(f"exec python3 counter.py {port}", background=True, timeout=0)
    handle.disconnect()
    until("the counter listens", lambda: sandbox.commands.run(f"ss -Hltn 'sport = :{port}'").stdout != "")
    return handle.pid


def ask(server: Server, sandbox: Sandbox | str, port: int = 8000, **headers: str) -> httpx.Response:
    """A request to a port of a sandbox, as anybody sends it."""
    sandbox_id = sandbox if isinstance(sandbox, str) else sandbox.sandbox_id
    host = f"{port}-{sandbox_id}.sbx.localhost"
    return httpx.get(server.sandbox_url, headers={"Host": host, **headers}, timeout=60)


class HeldEngine:
    """A server whose calls to the engine can be held, so that a transition lasts as long as a test wants."""

    def __init__(self, folder: pathlib.Path, **settings: str) -> None:
        self.engine = EngineProxy(folder / "engine.sock")
        self.server = Server(folder / "data", {"SANDYARD_DOCKER__HOST": self.engine.host, **NO_POOL, **settings})
        self.pool = ThreadPoolExecutor(16)

    def hold(self, pattern: str) -> Held:
        """Holds the next call to the engine whose request line matches."""
        release = threading.Event()
        rule = self.engine.at(pattern, lambda: release.wait(60), before=True)
        return Held(rule, release)

    def begin(self, call: Callable[[], httpx.Response]) -> Future[httpx.Response]:
        """A call that runs in the background of the test."""
        return self.pool.submit(call)

    def close(self) -> None:
        for rule in self.engine.rules:
            # Nothing is held any more when the server ends.
            rule.fired.set()
        self.pool.shutdown()
        self.server.down()
        self.engine.close()


class Held:
    """A call to the engine that waits for a test. As a context: until its end."""

    def __init__(self, rule: Rule, release: threading.Event) -> None:
        self.rule, self.release = rule, release

    def reached(self, call: Future[httpx.Response]) -> None:
        """Waits until `call` has come to the held point; fails if it has ended without."""
        until(f"the engine is asked for {self.rule.pattern}", lambda: self.rule.fired.is_set() or call.done(), 30)
        assert self.rule.fired.is_set(), f"ended before: {call.result().status_code} {call.result().text}"

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self.rule.fired.set()
        self.release.set()


@pytest.fixture
def rest(server: Server) -> Iterator[Rest]:
    made = Rest(server)
    yield made
    made.close()


@pytest.fixture
def counted(poolless_server: Server) -> Iterator[Rest]:
    """Where no container is that no sandbox has."""
    made = Rest(poolless_server)
    yield made
    made.close()


@pytest.fixture(scope="module")
def held_engine() -> Iterator[HeldEngine]:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="sy-"))
    made = HeldEngine(folder)
    yield made
    made.close()
    shutil.rmtree(folder)
