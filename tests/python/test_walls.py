"""Attacks of one sandbox on another, on the server and on its own template's rules: each failed to fail before.

Two teams on one server. The same in compose's form of the server is in test_compose.py; floods before anything is
proven are tests of the executor, which can let containers reach each other.
"""

from __future__ import annotations

import base64
import json
import os
import pathlib
import resource
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from conftest import BIN, ROOT, Server, docker, inspect, until
from e2b import CommandExitException, Sandbox, SandboxException
from walls import DAEMON_PORT, address_of, assert_apart, assert_unnamed, attack_before_claims, start_process

PROBES = ROOT / "crates" / "executor" / "tests" / "boundary"

# A template whose users cannot become root.
CLOSED = """
[base]
disk_mib = 64

[[templates]]
name = "closed"
image = "sandyard/base:latest"
sudo = false
memory_mib = 512
"""


@pytest.fixture(scope="module")
def walls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("walls")
    configuration = folder / "sandyard.toml"
    configuration.write_text(CLOSED)
    running = Server(pathlib.Path(f"/tmp/sy-{folder.name}-{time.time_ns()}"), {"SANDYARD_LIMITS__DISK_WATCH_SECS": "1"},
                     ("--config", str(configuration)))
    yield running
    running.down()
    subprocess.run(["rm", "-rf", running.folder, running.log], check=True)


@pytest.fixture(scope="module")
def other_key(walls: Server) -> str:
    return walls.command("team", "add", "second").stdout.strip()


@pytest.fixture
def make(walls: Server) -> Iterator[Callable[..., Sandbox]]:
    made: list[Sandbox] = []

    def create(template: str = "base", **options: object) -> Sandbox:
        made.append(walls.create(template, **options))
        return made[-1]

    yield create
    for sandbox in made:
        sandbox.kill()


# ---- neighbours -----------------------------------------------------------------------------


@pytest.mark.parametrize("session", [False, True], ids=["plain", "workspace"])
def test_neighbours_do_not_reach_each_other(
        walls: Server, other_key: str, make: Callable[..., Sandbox], session: bool) -> None:
    metadata = {"session": "apart"} if session else {}
    one = make(metadata=metadata)
    other = make(metadata=metadata, api_key=other_key)
    assert_apart(one, other, address_of(walls.container(other)))
    assert_apart(other, one, address_of(walls.container(one)))


def test_the_engines_names_tell_no_sandbox_ids(
        walls: Server, other_key: str, make: Callable[..., Sandbox]) -> None:
    one, other = make(), make(api_key=other_key)
    assert_unnamed(one, other, walls.container(other))


def test_nobody_gets_into_a_container_before_its_claim(walls: Server, make: Callable[..., Sandbox]) -> None:
    """From this machine, which reaches all of them: addresses are given in order."""
    first = make(metadata={"session": "claims"})
    attack_before_claims(address_of(walls.container(first)), lambda: make(metadata={"session": "claims"}))


# ---- tokens ---------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["base", "closed"])
def test_a_sandbox_whose_client_shows_no_token_has_one(
        walls: Server, make: Callable[..., Sandbox], template: str) -> None:
    with walls.http() as api:
        made = api.post("/sandboxes", json={"templateID": template, "secure": False, "timeout": 300}).json()
    assert "envdAccessToken" not in made or made["envdAccessToken"] is None
    sandbox = Sandbox.connect(made["sandboxID"], **walls.options())
    try:
        # Its client needs none: the proxy shows it.
        assert sandbox.commands.run("echo in").stdout == "in\n"
        sandbox.files.write("a", "b")
        assert sandbox.files.read("a") == "b"
        # A program inside, and whoever reaches the address, is nobody.
        inside = sandbox.commands.run(
            "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:49983/envs").stdout
        assert inside == "401"
        address = address_of(walls.container(sandbox))
        assert httpx.get(f"http://{address}:{DAEMON_PORT}/envs").status_code == 401
        assert not start_process(address)
    finally:
        assert sandbox.kill()


class OpenServer(Server):
    """One whose proxy sandboxes reach too."""

    listen = {**Server.listen, "proxy": "0.0.0.0:0"}


def test_the_proxy_shows_no_token_for_code_in_a_sandbox(folder: pathlib.Path) -> None:
    """By a proxy that sandboxes reach, a program without rights was root in its own sandbox."""
    server = OpenServer(folder / "data", {"SANDYARD_API__KEY": "e2b_" + "5" * 40})
    try:
        with server.http() as api:
            made = api.post("/sandboxes", json={"templateID": "base", "secure": False, "timeout": 300}).json()
        sandbox = Sandbox.connect(made["sandboxID"], **server.options())
        assert sandbox.commands.run("echo in").stdout == "in\n"
        host = sandbox.commands.run("ip route | awk '$1 == \"default\" { print $3 }'").stdout.strip()
        port = server.sandbox_url.rsplit(":", 1)[1]
        envs = (f"curl -s -o /dev/null -w '%{{http_code}}' -H 'E2b-Sandbox-Port: {DAEMON_PORT}' "
                f"-H 'E2b-Sandbox-Id: {sandbox.sandbox_id}' http://{host}:{port}/envs")
        assert sandbox.commands.run(envs).stdout == "401"
    finally:
        server.down()


def test_what_names_or_opens_a_sandbox_comes_once(walls: Server, make: Callable[..., Sandbox]) -> None:
    sandbox = make()
    keys = [("X-API-Key", walls.api_key), ("X-API-Key", walls.api_key)]
    assert httpx.get(f"{walls.api_url}/v2/sandboxes", headers=keys).status_code == 400
    headers = [("E2b-Sandbox-Id", sandbox.sandbox_id), ("E2b-Sandbox-Port", "49983"),
               ("X-Access-Token", sandbox._envd_access_token or "")]
    assert httpx.get(f"{walls.sandbox_url}/envs", headers=headers).status_code == 200
    for header in headers:
        answer = httpx.get(f"{walls.sandbox_url}/envs", headers=[*headers, header])
        assert answer.status_code == 400 and header[0].lower() in answer.text, header


# ---- user code and the daemon's rights ------------------------------------------------------


def test_an_upload_through_a_planted_link_changes_nothing(make: Callable[..., Sandbox]) -> None:
    sandbox = make("closed")
    run = sandbox.commands.run
    before = run("stat -c '%U %a %Y' /etc/passwd /etc").stdout
    run("ln -s /etc/passwd upload; ln -s /etc linked; mkdir -p d && ln -s /root d/root")
    for path in ("upload", "linked/passwd", "linked/new", "/etc/new"):
        with pytest.raises(SandboxException):
            sandbox.files.write(path, "user::0:0::/:/bin/sh\n")
    for call in (lambda: sandbox.files.make_dir("linked/made"), lambda: sandbox.files.rename("linked/hosts", "mine"),
                 lambda: sandbox.files.remove("linked/hosts"), lambda: sandbox.files.read("/etc/shadow"),
                 lambda: sandbox.files.list("d/root")):
        with pytest.raises(SandboxException):
            call()
    assert run("stat -c '%U %a %Y' /etc/passwd /etc").stdout == before
    with pytest.raises(CommandExitException):
        run("test -w /etc/passwd")
    # Root's calls keep root's rights, and a user its own.
    sandbox.files.write("/etc/new", "root's", user="root")
    assert run("stat -c %U /etc/new").stdout == "root\n"
    sandbox.files.write("own/file", "x")
    assert run("stat -c '%U %a' own own/file").stdout == "user 755\nuser 644\n"


def test_no_password_opens_an_account_of_the_base_image(make: Callable[..., Sandbox]) -> None:
    shadow = make().commands.run("sudo getent shadow root user").stdout
    assert [line.split(":")[:2] for line in shadow.splitlines()] == [["root", "*"], ["user", "*"]]


EXPECTED = json.loads((PROBES / "probes.json").read_text())
# What the probes look for is made up: nothing here has a key.
SECRET = "no-such-secret"


@pytest.mark.parametrize("template", ["base", "closed"])
@pytest.mark.parametrize("user", ["user", "root"])
@pytest.mark.parametrize("session", [False, True], ids=["plain", "workspace"])
def test_the_boundary_is_the_same_in_both_profiles(
        make: Callable[..., Sandbox], template: str, user: str, session: bool) -> None:
    """The probe list of the sandbox boundary, in sandboxes as the server makes them."""
    sandbox = make(template, metadata={"session": "probes"} if session else {})
    program = base64.b64encode((PROBES / "probes.py").read_bytes()).decode()
    run = f"echo {program} | base64 -d >/tmp/probes.py; python3 /tmp/probes.py {SECRET[::-1]}"
    printed = sandbox.commands.run(run, user=user, timeout=120).stdout
    got = dict(line.split("\t", 1) for line in printed.splitlines())
    wrong = []
    for probe in EXPECTED["probes"]:
        name, allowed = probe["probe"], EXPECTED["outcomes"][probe[user]]
        # Without a workspace nothing is mounted there, and no volume has a folder for a cache.
        if got.get(name) not in allowed and not (not session and name == "cache-tree" and got.get(name) == "ENOENT"):
            wrong.append(f"{name}: {got.get(name)}, not one of {allowed}")
    assert not wrong, "\n".join(wrong)
    assert sandbox.commands.run("echo still").stdout == "still\n"


def test_what_one_sandbox_may_take_of_the_kernels_shares(walls: Server, make: Callable[..., Sandbox]) -> None:
    sandbox = make()
    limits = {limit["Name"]: limit["Hard"] for limit in inspect(walls.container(sandbox))["HostConfig"]["Ulimits"]}
    assert limits == {"sigpending": 1024, "msgqueue": 256 << 10}
    assert sandbox.commands.run("ulimit -Hi; ulimit -Hq", user="root").stdout == "1024\n262144\n"


# ---- the server -----------------------------------------------------------------------------


def gateway_of(server: Server, sandbox: Sandbox) -> tuple[str, int]:
    """The gateway as sandboxes reach it."""
    host = sandbox.commands.run("ip route | awk '$1 == \"default\" { print $3 }'").stdout.strip()
    return host, int((server.folder / "gateway.port").read_text())


IDLE = """
import socket, sys, time
held = []
for _ in range(int(sys.argv[3])):
    try:
        held.append(socket.create_connection((sys.argv[1], int(sys.argv[2])), 2))
    except OSError:
        break


def alive():
    still = 0
    for s in held:
        s.setblocking(False)
        try:
            still += s.recv(1) != b""
        except BlockingIOError:
            still += 1
        except OSError:
            pass
    return still


end = time.monotonic() + 20
while alive() > int(sys.argv[4]) and time.monotonic() < end:
    time.sleep(0.05)
print(len(held), alive(), flush=True)
time.sleep(60)
"""


def test_idle_connections_to_the_gateway_stop_nobody(own_server: Callable[..., Server]) -> None:
    """1,100 of them stopped the API for all, and the next `ls` ended the server."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
    try:
        # As most systems start a program: few for the moment, more if it asks.
        server = own_server()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert open_files_limit(server.pid) == hard
    attacker = server.create(metadata={"session": "idle"})
    host, port = gateway_of(server, attacker)
    attacker.files.write("/tmp/idle.py", IDLE)
    share = 128
    idle = attacker.commands.run(
        f"ulimit -n 4096; python3 /tmp/idle.py {host} {port} 1100 {share}", background=True, timeout=0, user="root")
    made, alive = next(map(int, out.split()) for out, _, _ in idle if out)
    # One sandbox has its share, and its own workspace goes on with what it has.
    assert made > 1000 and alive <= share
    other = server.create(metadata={"session": "idle-2"})
    other.files.write("/workspace/a", "b")
    assert server.s3().get_object(Bucket="sandyard", Key="sessions/idle-2/a")["Body"].read() == b"b"
    assert other.sandbox_id in server.command("ls").stdout
    assert server.process.poll() is None
    idle.kill()


def test_a_server_without_descriptors_waits_and_goes_on(own_server: Callable[..., Server]) -> None:
    """Accept errors end nothing, on no listener."""
    server = own_server()
    # Less than it has open: every accept fails now.
    limit(server.pid, 8)
    clients = [socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) for url in
               (server.api_url, server.sandbox_url, server.variables["SANDYARD_S3_ENDPOINT"])]
    control = socket.socket(socket.AF_UNIX)
    control.connect(str(server.folder / "control.sock"))
    until("an accept failed", lambda: "cannot accept a connection" in server.log.read_text())
    assert server.process.poll() is None
    limit(server.pid, 1024)
    with server.http() as api:
        assert api.get("/v2/sandboxes").status_code == 200
    assert server.command("ls").returncode == 0
    for client in (*clients, control):
        client.close()


def open_files_limit(pid: int) -> int:
    lines = pathlib.Path(f"/proc/{pid}/limits").read_text().splitlines()
    return int(next(line.split()[3] for line in lines if line.startswith("Max open files")))


def limit(pid: int, soft: int) -> None:
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


def test_a_sandbox_that_fills_the_disk_is_ended(walls: Server, make: Callable[..., Sandbox]) -> None:
    within, beyond = make(), make()
    within.commands.run("head -c 20000000 /dev/zero > small")
    beyond.commands.run("head -c 100000000 /dev/zero > large")
    until("it is gone", lambda: not beyond.is_running(), 30)
    log = next(line for line in walls.log.read_text().splitlines() if "has written" in line)
    assert beyond.sandbox_id in log and "its limit is 64 MiB" in log
    assert within.is_running()


def test_a_workspace_that_fills_the_stores_disk_is_refused_and_ends_nobody(folder: pathlib.Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "none", folder], check=True)
    server = None
    try:
        server = Server(folder / "data")
        neighbour, filler = server.create(), server.create(metadata={"session": "filler"})
        filler.files.write("/workspace/kept", "kept")
        filled = "for n in $(seq 20); do head -c 8000000 /dev/urandom > /workspace/$n || exit 7; done"
        with pytest.raises(CommandExitException):
            filler.commands.run(filled, timeout=120)
        disk = os.statvfs(folder)
        assert disk.f_bavail > disk.f_blocks / 100
        assert neighbour.is_running() and filler.is_running()
        # What was there is; what is removed makes room again.
        assert server.s3().get_object(Bucket="sandyard", Key="sessions/filler/kept")["Body"].read() == b"kept"
        filler.commands.run("rm /workspace/[0-9]*")
        filler.files.write("/workspace/again", "again")
        assert server.s3().get_object(Bucket="sandyard", Key="sessions/filler/again")["Body"].read() == b"again"
    finally:
        if server is not None:
            server.down()
        subprocess.run(["umount", "-l", folder], check=True)


# ---- what belongs to several servers --------------------------------------------------------


def executor_volumes() -> set[str]:
    return set(docker("volume", "ls", "-q", "--filter", "label=dev.sandyard.role=executor").split())


def test_the_executors_volume_stays_while_a_server_needs_it(
        walls: Server, make: Callable[..., Sandbox], folder: pathlib.Path) -> None:
    make().kill()
    held = {mount["Name"] for mount in inspect(f"sandyard-hold-{walls.installation}")["Mounts"]}
    assert len(held) == 1 and executor_volumes() >= held
    # Of another installation, and of its own while it runs.
    subprocess.run([BIN / "sandyard", "gc", "--all", "--data-dir", folder / "other"], check=True,
                   env=walls.environment())
    walls.command("gc", "--all")
    assert executor_volumes() >= held
    assert make().commands.run("echo here").stdout == "here\n"


def test_a_volume_that_somebody_removed_is_made_again(
        own_server: Callable[..., Server], folder: pathlib.Path) -> None:
    # A bundle of its own, so that no other server has the volume: zeros at the end mean nothing.
    bundle = folder / "bundle.tar"
    bundle.write_bytes((BIN / "sandyard-bundle.tar").read_bytes() + bytes(512 * (1 + time.time_ns() % 4000)))
    before = executor_volumes()
    server = own_server("--set", f"executor.bundle={bundle}")
    server.create().kill()
    made = executor_volumes() - before
    assert len(made) == 1
    docker("rm", "-f", f"sandyard-hold-{server.installation}")
    docker("volume", "rm", *made)
    sandbox = server.create(metadata={"session": "again"})
    assert sandbox.commands.run("ls /workspace").stdout == "artifacts\nuploads\n"
    sandbox.kill()
    server.stop()
    assert "removed volume" in server.command("gc", "--all").stdout
    assert executor_volumes() == before
    server.start()


def test_a_network_from_before_is_replaced_if_nothing_is_on_it(own_server: Callable[..., Server]) -> None:
    server = own_server()
    network, label = f"sandyard-{server.installation}", f"dev.sandyard.installation={server.installation}"
    server.stop()
    docker("network", "rm", network)
    docker("network", "create", "--label", label, network)
    server.start()
    options = json.loads(docker("network", "inspect", network))[0]["Options"]
    assert options["com.docker.network.bridge.enable_icc"] == "false"
    # With something on it, it stays, and both say so.
    server.stop()
    docker("network", "rm", network)
    docker("network", "create", "--label", label, network)
    guest = docker("run", "-d", "--rm", "--network", network, "--entrypoint", "sleep", "sandyard/base:latest", "600")
    try:
        server.start()
        assert "can reach each other's addresses" in server.log.read_text()
        doctor = server.command("doctor", check=False)
        assert doctor.returncode != 0
        assert "MISSING  sandboxes apart from each other" in doctor.stdout
    finally:
        docker("rm", "-f", guest.strip())


def test_a_container_that_an_earlier_version_named_is_ended_like_any_other(own_server: Callable[..., Server]) -> None:
    server = own_server()
    sandbox = server.create()
    docker("rename", server.container(sandbox), sandbox.sandbox_id)
    server.stop()
    server.start()
    assert sandbox.sandbox_id not in server.containers()
    assert Sandbox.kill(sandbox.sandbox_id, **server.options())
    assert server.containers() == []


def test_a_doctor_that_finds_something_missing_leaves_nothing(walls: Server, folder: pathlib.Path) -> None:
    # Not the containers one by one: the other servers' pools may just be filled.
    def there() -> set[str]:
        label = '{{.Label "dev.sandyard.installation"}}'
        lists = (("network", "ls"), ("ps", "-a"), ("volume", "ls"))
        return {name for words in lists for name in docker(*words, "--format", label).split()}

    before, volumes = there(), executor_volumes()
    for wrong in ("base.image=no-such/image:1", "executor.bundle=/nonexistent"):
        done = subprocess.run([BIN / "sandyard", "doctor", "--data-dir", folder / "d", "--set", wrong],
                              capture_output=True, text=True, env=walls.environment())
        assert done.returncode != 0, done.stdout
    assert there() == before
    assert executor_volumes() == volumes
