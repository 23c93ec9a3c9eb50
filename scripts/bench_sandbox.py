"""The measurements of `scripts/bench` inside a sandbox: commands, files, and the executor's start.

Each absolute figure comes with where its time goes: the SDK alone, the proxy, the executor, the shell.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import pathlib
import statistics
import subprocess
import time
import urllib.parse
from collections.abc import Callable

import httpx
from bench_table import Table
from bench_wire import Peer, Replay
from e2b import Sandbox
from e2b.connection_config import ConnectionConfig

MB = 1_000_000
THREADS, COMMANDS = 16, 400
STDOUT_BYTES = 32 * MB
BIG = 64 * MB
EXECUTOR_PORT = 49983

# Runs inside the sandbox: what a shell costs there, started as an executor starts it.
FORKS = """
import os, statistics, sys, time

for arguments in (["/bin/bash", "-l", "-c", "true"], ["/bin/bash", "-c", "true"], ["/bin/true"]):
    times = []
    for _ in range(int(sys.argv[1])):
        begun = time.perf_counter()
        child = os.posix_spawn(arguments[0], arguments, os.environ)
        os.waitpid(child, 0)
        times.append((time.perf_counter() - begun) * 1000)
    print(statistics.median(times))
"""

# Runs as the first process of a container that is made as sandboxes are: how long the executor takes from
# its execution to its first answer.
READY = """
import os, socket, sys, time

for _ in range(int(sys.argv[1])):
    begun = time.perf_counter()
    child = os.posix_spawn(sys.argv[2], sys.argv[2:], {})
    while True:
        try:
            peer = socket.create_connection(("127.0.0.1", 49983))
            break
        except ConnectionRefusedError:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "the executor ended"
    peer.sendall(b"GET /health HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    assert peer.recv(100).startswith(b"HTTP/1.1 204")
    print((time.perf_counter() - begun) * 1000, flush=True)
    peer.close()
    os.kill(child, 9)
    os.waitpid(child, 0)
"""


def milliseconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return (time.perf_counter() - begun) * 1000


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout


def address_of(container: str) -> str:
    networks = json.loads(docker("inspect", container))[0]["NetworkSettings"]["Networks"]
    return next(network["IPAddress"] for network in networks.values())


class Sides:
    """The ways to one sandbox that are compared."""

    def __init__(self, sandbox: Sandbox, container: str) -> None:
        self.sandbox = sandbox
        self.container = container
        api = httpx.get(f"{os.environ['E2B_API_URL']}/sandboxes/{sandbox.sandbox_id}",
                        headers={"X-API-Key": os.environ["E2B_API_KEY"]}).raise_for_status().json()
        self.headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": str(EXECUTOR_PORT),
                        "X-Access-Token": api["envdAccessToken"]}
        proxy = urllib.parse.urlsplit(os.environ["E2B_SANDBOX_URL"])
        self.proxy = (proxy.hostname, proxy.port)
        self.executor = (address_of(container), EXECUTOR_PORT)

    def peer(self, address: tuple[str, int]) -> Peer:
        return Peer(address, self.headers)

    def sdk_at(self, url: str) -> Sandbox:
        """The SDK's client of this sandbox, which believes to find it at another address."""
        return Sandbox(
            sandbox_id=self.sandbox.sandbox_id, envd_version=self.sandbox._envd_version,
            envd_access_token=None, sandbox_domain=None, traffic_access_token=None,
            connection_config=ConnectionConfig(api_key=os.environ["E2B_API_KEY"], sandbox_url=url))

    def medians(self, rounds: int, sdk: Callable[[Sandbox], object], raw: Callable[[Peer], object],
                record: Callable[[Peer], bytes]) -> list[float]:
        """Milliseconds of the same call on each side, in turn."""
        with self.peer(self.proxy) as proxy, self.peer(self.executor) as executor:
            with Replay(record(executor)) as replay:
                alone = self.sdk_at(replay.url)
                calls = (lambda: sdk(self.sandbox), lambda: sdk(alone), lambda: raw(proxy),
                         lambda: raw(executor))
                times: list[list[float]] = [[] for _ in calls]
                for call in calls:
                    call()
                for _ in range(rounds):
                    for side, call in enumerate(calls):
                        times[side].append(milliseconds(call))
        return [statistics.median(values) for values in times]


def measure_floors(table: Table, sides: Sides, rounds: int) -> None:
    """A round trip and a shell: what no implementation is without."""
    answer = b"HTTP/1.1 204 No Content\r\n\r\n"
    with (Replay(answer) as replay, Peer(replay.address, {}) as bare, sides.peer(sides.proxy) as proxy,
          sides.peer(sides.executor) as executor):
        for what, peer in (("loop-back HTTP round trip, bare server", bare),
                           ("GET /health through the proxy", proxy),
                           ("GET /health at the executor", executor)):
            peer.request("GET", "/health")
            table.floor(what, "ms", statistics.median(
                milliseconds(lambda: peer.request("GET", "/health")) for _ in range(rounds * 10)))
    sides.sandbox.files.write("forks.py", FORKS)
    forks = sides.sandbox.commands.run(f"python3 forks.py {rounds * 5}").stdout.split()
    for what, value in zip(("bash -l -c true", "bash -c true", "true"), forks, strict=True):
        table.floor(f"fork and exec of `{what}` in the sandbox", "ms", float(value))


def measure_commands(table: Table, sides: Sides, rounds: int) -> None:
    sandbox = sides.sandbox
    ours, exec_times = [], []
    sandbox.commands.run("true")
    for _ in range(rounds * 5):
        ours.append(milliseconds(lambda: sandbox.commands.run("true")))
        exec_times.append(milliseconds(lambda: docker("exec", sides.container, "true")))
    table.ratio("commands.run(\"true\") / docker exec true", "ms",
                statistics.median(ours), statistics.median(exec_times), 0.15)
    what = "commands.run(\"true\")"
    parts = sides.medians(rounds * 5, lambda box: box.commands.run("true"),
                          lambda peer: peer.start("true"), lambda peer: peer.start("true", keep=True))
    table.bound(what, "ms", parts[0], 5)
    table.part(what, "ms", parts)

    what = f"{COMMANDS} commands on {THREADS} threads"
    rates = measure_command_rates(sides, max(1, rounds // 5))
    table.rate(what, "/s", rates[0], 350)
    table.part(what, "/s", rates)

    sandbox.commands.run(f"head -c {STDOUT_BYTES} /dev/zero | tr '\\0' x > output")
    what = "32 MB of stdout"
    parts = sides.medians(max(3, rounds // 4), read_stdout, lambda peer: peer.start("cat output"),
                          lambda peer: peer.start("cat output", keep=True))
    speeds = [STDOUT_BYTES / MB / (time / 1000) for time in parts]
    table.rate(what, "MB/s", speeds[0], 120)
    table.part(what, "MB/s", speeds)


def read_stdout(box: Sandbox) -> None:
    length = len(box.commands.run("cat output").stdout)
    if length != STDOUT_BYTES:
        raise RuntimeError(f"{length} of {STDOUT_BYTES} characters of output arrived")


def measure_command_rates(sides: Sides, rounds: int) -> list[float]:
    """Commands a second on each side, as many at once as there are threads."""
    def sdk(box: Sandbox) -> None:
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            for result in pool.map(lambda _: box.commands.run("true"), range(COMMANDS)):
                if result.exit_code != 0:
                    raise RuntimeError(f"exit code {result.exit_code}")

    def raw(address: tuple[str, int]) -> None:
        def some(count: int) -> None:
            with sides.peer(address) as peer:
                for _ in range(count):
                    peer.start("true")

        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(some, [COMMANDS // THREADS] * THREADS))

    with sides.peer(sides.executor) as executor:
        recorded = executor.start("true", keep=True)
    with Replay(recorded) as replay:
        alone = sides.sdk_at(replay.url)
        calls = (lambda: sdk(sides.sandbox), lambda: sdk(alone), lambda: raw(sides.proxy),
                 lambda: raw(sides.executor))
        times: list[list[float]] = [[] for _ in calls]
        for _ in range(rounds):
            for side, call in enumerate(calls):
                times[side].append(milliseconds(call))
    return [COMMANDS / (statistics.median(values) / 1000) for values in times]


def measure_files(table: Table, sides: Sides, folder: pathlib.Path, rounds: int) -> None:
    measure_copies(table, sides, folder, rounds)
    target = "/files?path=%2Fhome%2Fuser%2Fcontent"
    path = "/home/user/content"

    def compare(content: bytes, count: int) -> tuple[list[float], list[float]]:
        octets = "application/octet-stream"
        written = sides.medians(
            count, lambda box: box.files.write(path, content),
            lambda peer: peer.request("POST", target, octets, content),
            lambda peer: peer.request("POST", target, octets, content, keep=True))
        read = sides.medians(
            count, lambda box: box.files.read(path, format="bytes"),
            lambda peer: peer.request("GET", target),
            lambda peer: peer.request("GET", target, keep=True))
        return written, read

    for what, parts in zip(("files.write 1 KB", "files.read 1 KB"),
                           compare(os.urandom(1024), rounds * 5), strict=True):
        table.bound(what, "ms", parts[0], 1)
        table.part(what, "ms", parts)
    for what, parts in zip(("64 MB upload", "64 MB download, incompressible"),
                           compare(os.urandom(BIG), max(5, rounds // 2)), strict=True):
        speeds = [BIG / MB / (time / 1000) for time in parts]
        table.rate(what, "MB/s", speeds[0], 350)
        table.part(what, "MB/s", speeds)

    sides.sandbox.commands.run("mkdir many && touch many/file-{1..1000}")
    message = json.dumps({"path": "/home/user/many", "depth": 1}).encode()

    def list_raw(peer: Peer, keep: bool = False) -> bytes:
        return peer.request("POST", "/filesystem.Filesystem/ListDir", "application/json", message, keep)

    what = "list of 1,000 entries"
    parts = sides.medians(rounds, list_thousand, list_raw, lambda peer: list_raw(peer, keep=True))
    table.bound(what, "ms", parts[0], 15)
    table.part(what, "ms", parts)


def list_thousand(box: Sandbox) -> None:
    found = len(box.files.list("/home/user/many"))
    if found != 1000:
        raise RuntimeError(f"{found} of 1000 entries were listed")


def measure_copies(table: Table, sides: Sides, folder: pathlib.Path, rounds: int) -> None:
    sandbox = sides.sandbox
    for label, size, count in (("1 KB", 1024, rounds), ("64 MB", BIG, max(3, rounds // 5))):
        content = os.urandom(size)
        local = folder / "content"
        local.write_bytes(content)
        target = f"{sides.container}:/home/user/copied"
        times: dict[str, list[float]] = {k: [] for k in ("write", "cp in", "read", "cp out")}
        for _ in range(count):
            times["write"].append(milliseconds(
                lambda: sandbox.files.write("/home/user/content", content)))
            times["cp in"].append(milliseconds(lambda: docker("cp", "-q", str(local), target)))
            read: list[bytearray] = []
            times["read"].append(milliseconds(
                lambda: read.append(sandbox.files.read("/home/user/content", format="bytes"))))
            if bytes(read[0]) != content:
                raise RuntimeError(f"{label} came back different")
            times["cp out"].append(milliseconds(
                lambda: docker("cp", "-q", target, str(folder / "back"))))
        median = {kind: statistics.median(values) for kind, values in times.items()}
        table.ratio(f"files.write {label} / docker cp", "ms", median["write"], median["cp in"], None)
        table.ratio(f"files.read {label} / docker cp", "ms", median["read"], median["cp out"], None)
