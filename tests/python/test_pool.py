"""Sandboxes from the pool (issue 10, 3; design 5.2): one that was started before its create is like one that was not,
and the pool leaves nothing."""

from __future__ import annotations

import difflib
import json
import pathlib
import re
import tempfile
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from conftest import NO_POOL, Server, docker, inspect, until
from e2b import Sandbox
from lifecycle import ask
from pool import filled, shelves, spares

# What a program in a sandbox can see of where it is. Each line is one fact.
FACTS = r"""
id; umask; pwd; ulimit -a; nproc
env | grep -Ev '^(HOSTNAME|OLDPWD|_)=' | sort
cat /etc/hosts | grep -v "$(hostname)"; cat /etc/resolv.conf /etc/os-release /etc/passwd /etc/group
find / -maxdepth 2 -not -path '/proc/*' -not -path '/sys/*' -printf '%M %u %g %p %l\n' 2>&1 | sort
df -k --output=target,size /dev/shm /tmp 2>&1; awk '{ print $5, $6 }' /proc/self/mountinfo | sort
for f in memory.max memory.high memory.swap.max pids.max cpu.max cpu.weight; do echo $f $(cat /sys/fs/cgroup/$f 2>&1); done
grep -E '^(Cap|Seccomp|NoNewPrivs|Groups|Uid)' /proc/self/status
ps -eo user:20,args --no-headers | grep -Ev '(ps|grep|sort|bash|awk) ?' | sort
for f in /run/e2b/* /run/e2b/.[!.]*; do echo $f $(cat $f 2>&1); done
"""


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, Server]]:
    """One whose creates come from a pool, and one without."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="sy-"))
    pooled = Server(folder / "pooled", {"SANDYARD_CODE_INTERPRETER__POOL": "0"})
    plain = Server(folder / "plain", NO_POOL)
    yield pooled, plain
    pooled.down()
    plain.down()


def shown(server: Server, metadata: dict[str, str]) -> list[str]:
    """The facts, with the names of this one sandbox, container and server taken out."""
    sandbox = server.create(metadata=metadata, envs={"FROM_CREATE": "yes"})
    try:
        text = sandbox.commands.run(FACTS).stdout
        container = server.container(sandbox).removeprefix("sandyard-")
    finally:
        sandbox.kill()
    for name, stands_for in ((sandbox.sandbox_id, "ID"), (container, "CONTAINER"), (server.installation, "HERE"),
                             (urllib.parse.urlsplit(server.sandbox_url).netloc.partition(":")[2], "PORT")):
        text = text.replace(name, stands_for)
    # Whom the daemon obeys, which is the server's, not the sandbox's.
    return re.sub(r"--control-key \w+", "--control-key KEY", text).splitlines()


@pytest.mark.parametrize("session", [False, True], ids=["plain", "workspace"])
def test_inside_nothing_tells_that_it_waited(servers: tuple[Server, Server], session: bool) -> None:
    pooled, plain = servers
    before = filled(pooled)
    metadata = {"session": "facts"} if session else {}
    from_pool = shown(pooled, metadata)
    assert before - set(pooled.containers()), "the create took none of the pool"
    differences = difflib.unified_diff(shown(plain, metadata), from_pool, "made for its create", "from the pool", n=0)
    assert "\n".join(differences) == ""


def test_each_has_its_own_identity_and_randomness(servers: tuple[Server, Server]) -> None:
    pooled, _ = servers
    filled(pooled)
    look = "hostname; echo $E2B_SANDBOX_ID; head -c 16 /dev/urandom | xxd -p; python3 -c 'import uuid; print(uuid.uuid4())'"
    made = [pooled.create() for _ in range(4)]
    try:
        lines = [sandbox.commands.run(look).stdout.split() for sandbox in made]
        for values in zip(*lines, strict=True):
            assert len(set(values)) == len(made), values
        assert [line[1] for line in lines] == [sandbox.sandbox_id for sandbox in made]
        assert len({sandbox._envd_access_token for sandbox in made}) == len(made)
        # The clock of one that waited is right.
        now = float(made[0].commands.run("date +%s.%N").stdout)
        assert abs(now - time.time()) < 5
    finally:
        for sandbox in made:
            sandbox.kill()


def test_start_time_and_end_are_the_creates(servers: tuple[Server, Server]) -> None:
    pooled, _ = servers
    filled(pooled)
    with pooled.create(timeout=100) as sandbox:
        info = sandbox.get_info()
        assert (info.end_at - info.started_at).total_seconds() == 100
        assert abs(info.started_at.timestamp() - time.time()) < 5


def test_shared_memory_is_half_the_sandboxs(servers: tuple[Server, Server]) -> None:
    """64 MiB, an engine's default, break browsers and data loaders."""
    for server in servers:
        with server.create() as sandbox:
            size = int(sandbox.commands.run("df -k --output=size /dev/shm | tail -1").stdout)
            memory = inspect(server.container(sandbox))["HostConfig"]["Memory"]
            assert size * 1024 == memory // 2
            sandbox.commands.run(f"head -c {memory // 4} /dev/zero > /dev/shm/much")


def test_nobody_reaches_a_spare(servers: tuple[Server, Server]) -> None:
    """It has no id, no route and no token until it is claimed."""
    pooled, _ = servers
    filled(pooled)
    for name in spares(pooled):
        for guess in (name, name.removeprefix("sandyard-")):
            assert ask(pooled, guess.replace("-", "")[:21], 49983).status_code in (400, 502)
    with pooled.http() as api:
        assert api.get("/v2/sandboxes").json() == []


def test_many_creates_at_once_are_all_right(servers: tuple[Server, Server]) -> None:
    pooled, _ = servers
    filled(pooled)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: pooled.create(envs={"N": str(n)}), range(8)))
    try:
        assert [sandbox.commands.run("echo $N").stdout for sandbox in made] == [f"{n}\n" for n in range(8)]
        assert len({pooled.container(sandbox) for sandbox in made}) == 8
    finally:
        for sandbox in made:
            sandbox.kill()
    until("only the pool is left", lambda: len(pooled.containers()) == len(spares(pooled)))


def test_a_spare_that_dies_is_replaced_and_never_given(servers: tuple[Server, Server]) -> None:
    pooled, _ = servers
    for victim in filled(pooled):
        docker("kill", victim)
    with pooled.create() as sandbox:
        assert sandbox.commands.run("echo on").stdout == "on\n"
    filled(pooled)


def test_the_listing_shows_it(servers: tuple[Server, Server]) -> None:
    pooled, plain = servers
    waiting = filled(pooled)
    # Without and with a workspace.
    assert {("base", "plain"), ("base", "workspace")} <= shelves(pooled).keys()
    assert sum(ready for ready, _ in shelves(pooled).values()) == len(waiting) >= 4
    assert sum(ready for ready, _ in shelves(plain).values()) == 0 and not spares(plain)


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_over_a_restart_it_is_adopted_or_removed(own_server: Callable[..., Server], kill: bool) -> None:
    server = own_server(SANDYARD_POOL__MAX="10")
    before = filled(server)
    sandbox = server.create(metadata={"session": uuid.uuid4().hex})
    if kill:
        server.kill9()
        server.start()
    else:
        server.restart()
    after = filled(server)
    until("no more than a pool and one sandbox is there", lambda: len(server.containers()) == len(before) + 1)
    assert len(after) == len(before)
    with server.create() as other:
        assert other.commands.run("echo on").stdout == "on\n"
    assert Sandbox.connect(sandbox.sandbox_id, **server.options()).kill()
    # down(), at the end, makes sure that nothing is left of it.


def test_what_is_paused_and_the_pool_do_not_mix(servers: tuple[Server, Server]) -> None:
    pooled, _ = servers
    filled(pooled)
    sandbox = pooled.create()
    container = pooled.container(sandbox)
    sandbox.files.write("kept", "1")
    assert sandbox.pause(mode="filesystem")
    others = [pooled.create() for _ in range(3)]
    assert container not in {pooled.container(other) for other in others}
    sandbox.connect()
    assert sandbox.files.read("kept") == "1" and pooled.container(sandbox) == container
    for one in (sandbox, *others):
        one.kill()


def test_header_names_reach_services_in_title_case(servers: tuple[Server, Server]) -> None:
    """control-plane 5.5: as the original's proxy writes them; clients and tests look for `Host:`."""
    with servers[0].create() as sandbox:
        sandbox.files.write("raw.py", RAW)
        sandbox.commands.run("python3 raw.py", background=True, timeout=0)
        until("it listens", lambda: sandbox.commands.run("ss -Hltn 'sport = :8000'").stdout != "")
        headers = {"x-custom-header": "1", "user-agent": "tests"}
        answer: httpx.Response = ask(servers[0], sandbox, 8000, **headers)
        names = [line.partition(":")[0] for line in json.loads(answer.text)]
    assert {"Host", "User-Agent", "X-Custom-Header"} <= set(names), names
    assert all(name == name.title() for name in names), names


# Answers with the lines of the head as they came.
RAW = """
import json, socket
listener = socket.create_server(("127.0.0.1", 8000))
while True:
    peer, _ = listener.accept()
    head = b""
    while b"\\r\\n\\r\\n" not in head:
        head += peer.recv(4096)
    body = json.dumps(head.decode().split("\\r\\n")[1:-2]).encode()
    peer.sendall(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
    peer.close()
"""
