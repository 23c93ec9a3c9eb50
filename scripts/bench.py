"""The measurements behind `scripts/bench`: sandyard and what it stands on, in turn, in one run.

Times are medians of alternating runs, so that a machine that gets slower does so for both sides.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import pathlib
import platform
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator

from bench_interpreter import measure_interpreter
from bench_lifecycle import measure_lifecycle
from bench_sandbox import (EXECUTOR_PORT, READY, Sides, measure_commands, measure_files,
                           measure_floors, milliseconds)
from bench_table import Table
from bench_wire import Peer
from containers import container_of
from e2b import Sandbox

MIB = 1 << 20
# Connections whose requests never end: a thousand was enough to stop a server.
UNFINISHED = 3000
GROUPS = ("creates", "ready", "commands", "files", "memory", "gateway", "lifecycle", "interpreter")


class UnixConnection(http.client.HTTPConnection):
    """The engine's API: the raw side of a create is what the engine itself takes for it."""

    def __init__(self) -> None:
        super().__init__("engine")

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
        self.sock.connect(host.removeprefix("unix://"))


class Engine:
    def __init__(self) -> None:
        self.connection = UnixConnection()

    def call(self, method: str, path: str, body: object = None) -> object:
        text = None if body is None else json.dumps(body)
        self.connection.request(method, f"/v1.41{path}", text, {"Content-Type": "application/json"})
        response = self.connection.getresponse()
        content = response.read()
        if response.status >= 300:
            raise RuntimeError(f"{method} {path}: {response.status} {content.decode()}")
        return json.loads(content) if content else None

    def like(self, name: str) -> dict[str, object]:
        """A create request for a container as one of ours is."""
        found = self.call("GET", f"/containers/{name}/json")
        config = {key: found["Config"][key]
                  for key in ("Image", "Entrypoint", "Cmd", "User", "WorkingDir", "Healthcheck")}
        host = dict(found["HostConfig"])
        network = host["NetworkMode"]
        return config | {"HostConfig": host,
                         "NetworkingConfig": {"EndpointsConfig": {network: {}}}}

    def create_and_start(self, request: dict[str, object]) -> str:
        made = self.call("POST", "/containers/create", request)
        self.call("POST", f"/containers/{made['Id']}/start")
        return made["Id"]

    def remove(self, container: str) -> None:
        self.call("DELETE", f"/containers/{container}?force=true&v=true")


def measure_creates(table: Table, engine: Engine, folder: pathlib.Path, rounds: int) -> None:
    def requests() -> tuple[dict[str, object], dict[str, object]]:
        plain = Sandbox.create("base")
        mounted = Sandbox.create("base", metadata={"session": "bench"})
        try:
            plain_name, mounted_name = (container_of(box.sandbox_id, folder) for box in (plain, mounted))
            return engine.like(plain_name), engine.like(mounted_name)
        finally:
            plain.kill()
            mounted.kill()

    raw_plain, raw_mounted = requests()
    times: dict[str, list[float]] = {k: [] for k in ("plain", "raw", "mounted", "raw mounted")}

    def ours(kind: str, **options: object) -> None:
        made: list[Sandbox] = []
        times[kind].append(milliseconds(lambda: made.append(Sandbox.create("base", **options))))
        made[0].kill()

    def raw(kind: str, request: dict[str, object]) -> None:
        made: list[str] = []
        times[kind].append(milliseconds(lambda: made.append(engine.create_and_start(request))))
        engine.remove(made[0])

    for _ in range(rounds):
        ours("plain")
        raw("raw", raw_plain)
        ours("mounted", metadata={"session": "bench"})
        raw("raw mounted", raw_mounted)
    median = {kind: statistics.median(values) for kind, values in times.items()}
    table.ratio("create, no workspace / engine create + start", "ms",
                median["plain"], median["raw"], 1.25)
    table.ratio("create, workspace / engine create + start of the same container", "ms",
                median["mounted"], median["raw mounted"], None)
    table.bound("workspace adds to a create", "ms", median["mounted"] - median["plain"], 60)


def measure_ready(table: Table, engine: Engine, folder: pathlib.Path, rounds: int) -> None:
    """How long the executor takes from its execution to its first answer, in containers as sandboxes are."""
    sandbox = Sandbox.create("base")
    try:
        request = engine.like(container_of(sandbox.sandbox_id, folder))
    finally:
        sandbox.kill()
    program = [*(request["Entrypoint"] or []), *(request["Cmd"] or [])]
    measuring = request | {"Entrypoint": ["python3", "-c", READY, str(rounds)], "Cmd": program}
    container = engine.create_and_start(measuring)
    try:
        code = engine.call("POST", f"/containers/{container}/wait")["StatusCode"]
        output = subprocess.run(["docker", "logs", container], check=True, capture_output=True,
                                text=True)
        if code != 0:
            raise RuntimeError(f"measuring ended with {code}: {output.stderr}")
    finally:
        engine.remove(container)
    times = [float(line) for line in output.stdout.split()]
    table.bound("executor ready after its execution in the container", "ms",
                statistics.median(times), 15)

    seen: list[float] = []
    for _ in range(rounds):
        container = engine.create_and_start(request)
        begun = time.perf_counter()
        try:
            networks = engine.call("GET", f"/containers/{container}/json")["NetworkSettings"]["Networks"]
            address = next(network["IPAddress"] for network in networks.values())
            health = None
            while health is None:
                with contextlib.suppress(ConnectionRefusedError):
                    health = Peer((address, EXECUTOR_PORT), {})
            with health:
                health.request("GET", "/health")
            seen.append((time.perf_counter() - begun) * 1000)
        finally:
            engine.remove(container)
    table.bound("executor answers after the engine's start call returned", "ms",
                statistics.median(seen), 15)


@contextlib.contextmanager
def s3fs_mount(folder: pathlib.Path, name: str, bucket: str, endpoint: str, key: str,
               secret: str) -> Iterator[pathlib.Path]:
    """s3fs on this machine, with the options that sandboxes get."""
    point, cache, passwd = folder / name, folder / f"{name}.cache", folder / f"{name}.key"
    point.mkdir()
    cache.mkdir()
    passwd.write_text(f"{key}:{secret}\n")
    passwd.chmod(0o600)
    options = (f"passwd_file={passwd},url={endpoint},use_path_request_style,use_cache={cache},"
               "ensure_diskfree=20,multireq_max=32,parallel_count=8,multipart_size=16,"
               "stat_cache_expire=5,max_stat_cache_size=100000,retries=5,connect_timeout=5")
    # Its log is no part of the table on standard output.
    program = subprocess.Popen(["s3fs", f"{bucket}:/bench", str(point), "-f", "-o", options],
                               stdout=sys.stderr)
    try:
        until = time.monotonic() + 20
        while not os.path.ismount(point):
            if program.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"s3fs did not mount {endpoint}")
            time.sleep(0.02)
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=False)
        program.wait(30)


def measure_gateway(table: Table, folder: pathlib.Path, arguments: argparse.Namespace,
                    rounds: int) -> None:
    bucket = os.environ["SANDYARD_S3_BUCKET"]
    direct = (arguments.minio_endpoint, arguments.minio_user, arguments.minio_password)
    through = (os.environ["SANDYARD_S3_ENDPOINT"], os.environ["SANDYARD_S3_ACCESS_KEY_ID"],
               os.environ["SANDYARD_S3_SECRET_ACCESS_KEY"])
    import boto3

    client = boto3.client("s3", endpoint_url=direct[0], aws_access_key_id=direct[1],
                          aws_secret_access_key=direct[2], region_name="us-east-1")
    client.put_object(Bucket=bucket, Key="bench/", Body=b"")
    big = os.urandom(200 * MIB)
    small = os.urandom(1024)
    times: dict[str, list[float]] = {}

    def note(key: str, call: Callable[[], object]) -> None:
        times.setdefault(key, []).append(milliseconds(call) / 1000)

    def write_small(point: pathlib.Path) -> None:
        (point / "small").mkdir()
        for index in range(500):
            (point / "small" / f"{index}").write_bytes(small)

    def read_big(point: pathlib.Path) -> None:
        if (point / "big").read_bytes() != big:
            raise RuntimeError("200 MB came back different")

    def clear() -> None:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="bench/")
        for page in pages:
            keys = [{"Key": o["Key"]} for o in page.get("Contents", []) if o["Key"] != "bench/"]
            if keys:
                client.delete_objects(Bucket=bucket, Delete={"Objects": keys})

    for number in range(rounds):
        for side, (endpoint, key, secret) in (("ours", through), ("direct", direct)):
            name = f"{side}-{number}"
            with s3fs_mount(folder, name, bucket, endpoint, key, secret) as point:
                note(f"small {side}", lambda: write_small(point))
                note(f"write {side}", lambda: (point / "big").write_bytes(big))
            # Another mount with an empty cache, so that the read goes to the store.
            with s3fs_mount(folder, f"{name}-read", bucket, endpoint, key, secret) as point:
                note(f"read {side}", lambda: read_big(point))
            clear()
    for label, kind in (("write 500 × 1 KB", "small"), ("write 200 MB", "write"),
                        ("read 200 MB", "read")):
        table.pairs(f"s3fs through the gateway / to MinIO directly: {label}", "s",
                    times[f"{kind} ours"], times[f"{kind} direct"], 1.30)


def resident_mib(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        total += next(int(line.split()[1]) for line in status.splitlines()
                      if line.startswith("VmRSS:"))
    return total / 1024


def executor_pids(container: str) -> list[int]:
    """The executor's processes of a container: init and the daemon."""
    top = subprocess.run(["docker", "top", container, "-eo", "pid,args"], check=True,
                         capture_output=True, text=True).stdout.splitlines()[1:]
    rows = [line.split(None, 1) for line in top]
    return [int(pid) for pid, command in rows if command.startswith("/.sandyard/executor")]


def streaming_mib(sandbox: Sandbox, pids: list[int]) -> float:
    """The most that the executor holds while 50 clients read what 50 commands write."""
    streams = [sandbox.commands.run("while echo x; do sleep 0.05; done", background=True, timeout=0)
               for _ in range(50)]
    counts = [0] * len(streams)

    def read(index: int) -> None:
        for _ in streams[index]:
            counts[index] += 1
            if counts[index] == 40:
                break
        streams[index].disconnect()

    readers = [threading.Thread(target=read, args=(index,)) for index in range(len(streams))]
    for reader in readers:
        reader.start()
    most = 0.0
    while any(reader.is_alive() for reader in readers):
        most = max(most, resident_mib(pids))
        readers[-1].join(0.05)
    if counts != [40] * len(streams):
        raise RuntimeError(f"not every stream was read: {counts}")
    return most


def measure_memory(table: Table, arguments: argparse.Namespace, idle_mib: float) -> None:
    size = pathlib.Path(arguments.executor).stat().st_size
    table.bound("executor binary", "MiB", size / MIB, 10)
    for label, metadata in (("no workspace", {}), ("workspace", {"session": "bench"})):
        sandbox = Sandbox.create("base", metadata=metadata)
        sandbox.commands.run("true")
        pids = executor_pids(container_of(sandbox.sandbox_id, arguments.folder))
        if not pids:
            raise RuntimeError("no executor process found")
        table.bound(f"executor resident, idle, {label}", "MiB", resident_mib(pids), 5)
        table.bound(f"executor resident, 50 streaming commands, {label}", "MiB",
                    streaming_mib(sandbox, pids), 9)
        sandbox.kill()
    server = arguments.server_pid
    table.bound("server resident, 0 sandboxes", "MiB", idle_mib, 60)
    sandboxes = [Sandbox.create("base") for _ in range(30)]
    table.bound("server resident, 30 sandboxes", "MiB", resident_mib([server]), 60)
    for sandbox in sandboxes:
        sandbox.kill()
    # Last: what it leaves behind is part of what it costs.
    before = resident_mib([server])
    table.bound(f"server resident after {UNFINISHED} unfinished heads at the gateway, more than before", "MiB",
                max(0.0, unfinished_heads_mib(server, arguments.folder) - before), 64)


def unfinished_heads_mib(server: int, folder: str) -> float:
    """The most that the server holds for clients that never finish their requests, and when they have gone again."""
    data = pathlib.Path(folder)
    network = f"sandyard-{(data / 'installation').read_text().strip()}"
    host = subprocess.run(["docker", "network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", network],
                          check=True, capture_output=True, text=True).stdout.strip()
    port = int((data / "gateway.port").read_text())
    # Of a size that is refused, and of the largest that is waited for.
    heads = [b"GET / HTTP/1.1\r\nHost: x\r\nX-Padding: " + b"x" * size for size in (400_000, 16_000)]
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    held = []
    for number in range(UNFINISHED):
        # From many addresses, as many sandboxes would: one address has few connections.
        source = f"127.0.{1 + number // 250}.{1 + number % 250}"
        client = socket.create_connection((host, port), 5, (source, 0))
        client.setblocking(False)
        with contextlib.suppress(OSError):
            client.send(heads[number % 2])
        held.append(client)
    most = resident_mib([server])
    print(f"# {sum(map(is_open, held))} of {UNFINISHED} clients with unfinished heads were kept at once", file=sys.stderr)
    for client in held:
        client.close()
    # Nothing tells when the server has seen the last of them go.
    time.sleep(2)
    return max(most, resident_mib([server]))


def is_open(client: socket.socket) -> bool:
    try:
        return client.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def groups(text: str) -> list[str]:
    chosen = text.split(",")
    for name in chosen:
        if name not in GROUPS:
            raise argparse.ArgumentTypeError(f"unknown group '{name}': {', '.join(GROUPS)}")
    return chosen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--executor", required=True)
    for name in ("minio-endpoint", "minio-user", "minio-password"):
        parser.add_argument(f"--{name}", help="needed for the group gateway")
    parser.add_argument("--folder", required=True, type=pathlib.Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", type=groups, default=list(GROUPS))
    arguments = parser.parse_args()
    rounds = 5 if arguments.quick else 20
    # Where a running server says what it is.
    arguments.server_pid = json.loads((arguments.folder / "server.json").read_text())["pid"]
    idle_mib = resident_mib([arguments.server_pid])
    table, engine = Table(), Engine()
    if "creates" in arguments.only:
        measure_creates(table, engine, arguments.folder, rounds)
    if "ready" in arguments.only:
        measure_ready(table, engine, arguments.folder, rounds)
    if "commands" in arguments.only or "files" in arguments.only:
        sandbox = Sandbox.create("base", timeout=1200)
        sides = Sides(sandbox, container_of(sandbox.sandbox_id, arguments.folder))
        measure_floors(table, sides, rounds)
        if "commands" in arguments.only:
            measure_commands(table, sides, rounds)
        if "files" in arguments.only:
            measure_files(table, sides, arguments.folder, rounds)
        sandbox.kill()
    if "memory" in arguments.only:
        measure_memory(table, arguments, idle_mib)
    if "lifecycle" in arguments.only:
        measure_lifecycle(table, engine, rounds)
    if "interpreter" in arguments.only:
        measure_interpreter(table, rounds)
    if "gateway" in arguments.only:
        measure_gateway(table, arguments.folder, arguments, 2 if arguments.quick else 7)
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, {platform.system()} "
          f"{platform.release()}, {platform.machine()}\n")
    table.print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
