"""The life cycle's rows of `scripts/bench`: creates from the pool, pause, resume, snapshots, forks, waking by traffic.

They run on servers of their own, one without a pool and one with a large one, so that each row knows what it measures.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import pathlib
import statistics
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from bench_sandbox import milliseconds
from bench_server import Server, at_once, wait
from bench_table import Table
from containers import container_of
from e2b import Sandbox

if TYPE_CHECKING:
    from bench import Engine

AT_ONCE = 50
IDLE = 100


def measure_pool(table: Table, engine: Engine, server: Server, rounds: int) -> None:
    sample = server.create()
    request = engine.like(container_of(sample.sandbox_id, server.folder))
    sample.kill()
    for label, metadata, limit, ratio in (("", {}, 30, 0.12), (", workspace", {"session": "bench"}, 60, None)):
        ours, raw = [], []
        for _ in range(rounds):
            server.filled(2)
            made: list[Sandbox] = []

            def first_output() -> None:
                made.append(server.create(metadata=metadata))
                if made[0].commands.run("echo ready").stdout != "ready\n":
                    raise RuntimeError("no output")

            ours.append(milliseconds(first_output))
            made[0].kill()
            server.filled(2)
            containers: list[str] = []
            raw.append(milliseconds(lambda: containers.append(engine.create_and_start(request))))
            engine.remove(containers[0])
        median = statistics.median(ours)
        table.bound(f"create → first output from the pool{label}", "ms", median, limit)
        if ratio:
            table.ratio("create → first output from the pool / engine create + start", "ms", median,
                        statistics.median(raw), ratio)


def created(server: Server, ids: list[str]) -> Callable[[int], None]:
    def create(_: int) -> None:
        status, body = server.call("POST", "/v2/sandboxes", {"templateID": "base", "timeout": 1200})
        if status != 201:
            raise RuntimeError(f"a create answered {status}: {body}")
        ids.append(body["sandboxID"])

    return create


def kill_all(server: Server, ids: list[str]) -> None:
    for sandbox_id in ids:
        server.call("DELETE", f"/sandboxes/{sandbox_id}")
    ids.clear()


def measure_bursts(table: Table, engine: Engine, folder: pathlib.Path) -> None:
    ids: list[str] = []
    large = {"SANDYARD_BASE__POOL": str(AT_ONCE), "SANDYARD_POOL__MAX": str(AT_ONCE),
             "SANDYARD_POOL__MEMORY_MIB": "8192", "SANDYARD_LIMITS__MAX_SANDBOXES": "1000", "SANDYARD_CODE_INTERPRETER__POOL": "0"}
    with Server(folder / "large", large) as server:
        wait(f"{AT_ONCE} containers are in the pool", lambda: server.pool()["plain"] >= AT_ONCE)
        times, _ = at_once(AT_ONCE, created(server, ids))
        kill_all(server, ids)
        table.bound(f"{AT_ONCE} creates at once, pool of {AT_ONCE}, p95", "ms",
                    sorted(times)[int(0.95 * AT_ONCE) - 1], 150)
    small = {"SANDYARD_BASE__POOL": "2", "SANDYARD_LIMITS__MAX_SANDBOXES": "1000", "SANDYARD_CODE_INTERPRETER__POOL": "0"}
    with Server(folder / "small", small) as server:
        server.filled(2)
        sample = server.create()
        request = engine.like(container_of(sample.sandbox_id, server.folder))
        sample.kill()
        server.filled(2)
        _, ours = at_once(AT_ONCE, created(server, ids))
        kill_all(server, ids)
        server.filled(2)
        containers: list[str] = []

        def raw(_: int) -> None:
            from bench import Engine

            containers.append(Engine().create_and_start(request))

        _, theirs = at_once(AT_ONCE, raw)
        for container in containers:
            engine.remove(container)
        table.ratio(f"{AT_ONCE} creates at once, pool of 2 / the engine making {AT_ONCE}", "ms", ours,
                    theirs, 1.1)


def alternate(rounds: int, *calls: Callable[[], float]) -> list[float]:
    """The medians of calls that are made in turn."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for kept, call in zip(times, calls, strict=True):
            kept.append(call())
    return [statistics.median(kept) for kept in times]


def measure_pauses(table: Table, engine: Engine, server: Server, rounds: int) -> None:
    for label, metadata, limit in (("no workspace", {}, 30), ("workspace", {"session": "bench"}, None)):
        sandbox = server.create(metadata=metadata)
        path = f"/sandboxes/{sandbox.sandbox_id}"

        def timed(route: str, body: object, expected: int) -> float:
            return milliseconds(lambda: expect(server.call("POST", route, body), expected))

        pause, resume = alternate(rounds, lambda: timed(f"{path}/pause", {}, 204),
                                  lambda: timed(f"/v2{path}/connect", {"timeout": 1200}, 201))
        for what, value in (("pause", pause), ("resume", resume)):
            if limit:
                table.bound(f"{what}, memory kept, {label}", "ms", value, limit)
            else:
                table.floor(f"{what}, memory kept, {label}", "ms", value)
        sandbox.kill()

    sandbox = server.create()
    path = f"/sandboxes/{sandbox.sandbox_id}"
    container = engine.create_and_start(engine.like(container_of(sandbox.sandbox_id, server.folder)))

    def start_raw() -> float:
        engine.call("POST", f"/containers/{container}/kill")
        engine.call("POST", f"/containers/{container}/wait")
        return milliseconds(lambda: engine.call("POST", f"/containers/{container}/start"))

    def from_files() -> float:
        expect(server.call("POST", f"{path}/pause", {"memory": False}), 204)
        return milliseconds(lambda: expect(server.call("POST", f"/v2{path}/connect", {"timeout": 1200}), 201))

    ours, theirs = alternate(rounds, from_files, start_raw)
    engine.remove(container)
    table.ratio("resume from files / engine start", "ms", ours, theirs, 1.1)
    sandbox.kill()


def expect(answer: tuple[int, object], status: int) -> object:
    if answer[0] != status:
        raise RuntimeError(f"answered {answer}, not {status}")
    return answer[1]


def measure_images(table: Table, engine: Engine, server: Server, rounds: int) -> None:
    sandbox = server.create()
    sandbox.files.write("/home/user/notes.txt", "x" * 10_000)
    path = f"/sandboxes/{sandbox.sandbox_id}"
    container = container_of(sandbox.sandbox_id, server.folder)
    images: list[str] = []

    def raw() -> float:
        def commit() -> None:
            engine.call("POST", f"/containers/{container}/pause")
            made = engine.call("POST", f"/commit?container={container}&pause=false", {})
            images.append(made["Id"])
            engine.call("POST", f"/containers/{container}/unpause")

        return milliseconds(commit)

    def cold() -> float:
        made: list[Sandbox] = []
        took = milliseconds(lambda: made.append(server.create()))
        made[0].kill()
        return took

    def snapshot() -> float:
        taken: list[object] = []
        took = milliseconds(lambda: taken.append(expect(server.call("POST", f"{path}/snapshots"), 201)))
        expect(server.call("DELETE", f"/templates/{urllib.parse.quote(taken[0]['snapshotID'], safe='')}"), 204)
        return took

    def fork() -> float:
        made: list[object] = []
        took = milliseconds(lambda: made.append(expect(server.call("POST", f"{path}/fork", {"timeout": 300}), 201)))
        expect(server.call("DELETE", f"/sandboxes/{made[0][0]['sandbox']['sandboxID']}"), 204)
        return took

    ours, forked, theirs, created_cold = alternate(rounds, snapshot, fork, raw, cold)
    for image in images:
        with contextlib.suppress(RuntimeError):
            engine.call("DELETE", f"/images/{image}")
    sandbox.kill()
    table.ratio("snapshot / engine pause + commit + unpause", "ms", ours, theirs, 1.3)
    table.ratio("fork into 1 / (1.3 × engine pause + commit + unpause) + cold create", "ms", forked,
                1.3 * theirs + created_cold, 1.0)


def measure_waking(table: Table, server: Server, rounds: int) -> None:
    sandbox = server.create(lifecycle={"on_timeout": "pause", "auto_resume": True})
    sandbox.commands.run("python3 -m http.server 8000 --bind 127.0.0.1", background=True)
    address = urllib.parse.urlsplit(server.options["sandbox_url"])

    def request() -> float:
        def ask() -> None:
            connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
            connection.request("GET", "/", headers={"Host": f"8000-{sandbox.sandbox_id}.sbx.localhost"})
            response = connection.getresponse()
            response.read()
            connection.close()
            if response.status != 200:
                raise RuntimeError(f"the service answered {response.status}")

        return milliseconds(ask)

    def woken() -> float:
        expect(server.call("POST", f"/sandboxes/{sandbox.sandbox_id}/pause"), 204)
        return request()

    wait("the service answers", lambda: works(request))
    paused, running = alternate(rounds, woken, request)
    sandbox.kill()
    table.bound("HTTP request to a paused sandbox, more than to a running one", "ms", paused - running, 50)


def works(call: Callable[[], object]) -> bool:
    try:
        call()
    except RuntimeError:
        return False
    return True


def measure_idle(table: Table, server: Server, rounds: int) -> None:
    """What many idle sandboxes cost."""
    from bench import resident_mib

    def create() -> float:
        made: list[Sandbox] = []
        took = milliseconds(lambda: made.append(server.create()))
        made[0].kill()
        return took

    alone = [create() for _ in range(rounds)]
    before = used_mib()
    ids: list[str] = []
    make = created(server, ids)
    for index in range(IDLE):
        make(index)
    table.floor("an idle sandbox in all, the engine's part too", "MiB", (used_mib() - before) / IDLE)
    pid = json.loads((server.folder / "server.json").read_text())["pid"]
    table.bound(f"server resident, {IDLE} sandboxes", "MiB", resident_mib([pid]), 60)
    crowded = [create() for _ in range(rounds)]
    kill_all(server, ids)
    table.ratio(f"create with {IDLE} idle sandboxes / with none", "ms", statistics.median(crowded),
                statistics.median(alone), 1.1)


def used_mib() -> float:
    """Memory of this machine that is not available to anybody else."""
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    fields = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return (fields["MemTotal"] - fields["MemAvailable"]) / 1024


@contextlib.contextmanager
def scratch() -> Iterator[pathlib.Path]:
    with tempfile.TemporaryDirectory(prefix="sandyard-bench-") as folder:
        yield pathlib.Path(folder)


def measure_lifecycle(table: Table, engine: Engine, rounds: int) -> None:
    many = {"SANDYARD_LIMITS__MAX_SANDBOXES": "1000", "SANDYARD_CODE_INTERPRETER__POOL": "0"}
    with scratch() as folder:
        with Server(folder / "pool", many) as server:
            measure_pool(table, engine, server, rounds)
            measure_waking(table, server, rounds)
        with Server(folder / "cold", many | {"SANDYARD_POOL__MAX": "0"}) as server:
            measure_pauses(table, engine, server, rounds)
            measure_images(table, engine, server, rounds)
            measure_idle(table, server, rounds)
        measure_bursts(table, engine, folder)
    print("# the life cycle is measured", file=sys.stderr)
