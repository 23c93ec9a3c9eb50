"""Templates of the configuration: limits, privileges, directories, what a container gets (design 3.1)."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator

import httpx
import pytest
from conftest import NO_POOL, Server, inspect
from e2b import CommandExitException, Sandbox

CONFIG = """
[[templates]]
name = "platform"
image = "sandyard/base:latest"
cpu_count = 1
memory_mib = 256
pids = 200
sudo = false
workspace_target = "/workspace/sessions/{session_id}"
workdir = "/tmp"
[templates.env]
FROM_TEMPLATE = "yes"
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("t")
    config = folder / "sandyard.toml"
    config.write_text(CONFIG)
    running = Server(folder / "data", NO_POOL, ("--config", str(config)))
    yield running
    running.down()


@pytest.fixture(scope="module")
def sandbox(server: Server) -> Iterator[Sandbox]:
    made = server.create("platform", metadata={"session": "s-1"}, envs={"FROM_CREATE": "yes"})
    yield made
    made.kill()


def test_limits_and_privileges_are_the_containers(server: Server, sandbox: Sandbox) -> None:
    host = inspect(server.container(sandbox))["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == 256 << 20
    assert (host["NanoCpus"], host["PidsLimit"]) == (1_000_000_000, 200)
    assert "no-new-privileges" in host["SecurityOpt"]
    assert host["Privileged"] is False and not host["Binds"]
    info = sandbox.get_info()
    assert (info.name, info.cpu_count, info.memory_mb) == ("platform", 1, 256)
    # executor 6.2: what the sandbox tells of itself is the container's, not the machine's.
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983",
               "X-Access-Token": sandbox._envd_access_token or ""}
    metrics = httpx.get(f"{server.sandbox_url}/metrics", headers=headers).json()
    assert (metrics["mem_total"], metrics["mem_total_mib"], metrics["cpu_count"]) == (256 << 20, 256, 1)
    assert 0 < metrics["mem_used"] < metrics["mem_total"]


def test_directory_environment_and_no_sudo(sandbox: Sandbox) -> None:
    run = sandbox.commands.run
    assert run("pwd; echo $FROM_TEMPLATE $FROM_CREATE").stdout == "/tmp\nyes yes\n"
    with pytest.raises(CommandExitException):
        run("sudo true")


def test_the_workspace_is_where_the_template_says(server: Server, sandbox: Sandbox) -> None:
    path = "/workspace/sessions/s-1"
    sandbox.files.write(f"{path}/artifacts/out.txt", "out")
    assert sandbox.commands.run(f"ls {path}").stdout == "artifacts\nuploads\n"
    stored = server.s3().get_object(Bucket="sandyard", Key="sessions/s-1/artifacts/out.txt")
    assert stored["Body"].read() == b"out"


def test_a_command_over_the_memory_limit_dies_alone(sandbox: Sandbox) -> None:
    with pytest.raises(CommandExitException) as failure:
        sandbox.commands.run("python3 -c 'x = b\"x\" * (600 << 20)'")
    assert failure.value.exit_code != 0
    assert sandbox.commands.run("ls /workspace/sessions/s-1/artifacts").stdout == "out.txt\n"


def test_devices_and_capabilities_only_with_a_workspace(server: Server, sandbox: Sandbox) -> None:
    with_workspace = inspect(server.container(sandbox))["HostConfig"]
    assert "SYS_ADMIN" in str(with_workspace["CapAdd"])
    assert [d["PathInContainer"] for d in with_workspace["Devices"]] == ["/dev/fuse"]
    plain = server.create("platform")
    try:
        without = inspect(server.container(plain))["HostConfig"]
        assert "SYS_ADMIN" not in str(without["CapAdd"]) and "MKNOD" not in str(without["CapAdd"])
        assert not without["Devices"]
        assert plain.commands.run("ls /dev/fuse 2>&1 || true").stdout.startswith("ls: cannot")
    finally:
        plain.kill()


def test_a_host_without_fuse_is_told_and_nothing_is_left(server: Server) -> None:
    fuse, away = pathlib.Path("/dev/fuse"), pathlib.Path("/dev/fuse.away")
    before = server.containers()
    fuse.rename(away)
    try:
        with server.http() as api:
            body = {"templateID": "platform", "metadata": {"session": "s-2"}}
            answer = api.post("/v2/sandboxes", json=body)
    finally:
        away.rename(fuse)
    assert answer.status_code == 500
    assert "/dev/fuse" in answer.json()["message"]
    assert server.containers() == before


def test_doctor_finds_everything_here(server: Server) -> None:
    found = server.command("doctor")
    assert "everything a sandbox needs is there" in found.stdout
    assert found.stdout.count("ok  ") == 8, found.stdout
    limit = int(pathlib.Path("/proc/sys/fs/inotify/max_user_instances").read_text())
    assert (f"{limit} at once, shared by all sandboxes" in found.stdout) == (limit < 1024)


def test_doctor_names_what_is_missing(server: Server, tmp_path: pathlib.Path) -> None:
    missing = f"docker.host=unix://{tmp_path}/no.sock"
    found = server.command("doctor", "--set", missing, check=False)
    assert found.returncode != 0
    assert "MISSING  container engine" in found.stdout and "no.sock" in found.stdout


def test_ls_and_kill_of_the_command_line(server: Server) -> None:
    made = server.create()
    assert made.sandbox_id in server.command("ls").stdout
    assert server.command("kill", made.sandbox_id).stdout == f"killed {made.sandbox_id}\n"
    assert made.sandbox_id not in server.command("ls").stdout
    again = server.command("kill", made.sandbox_id, check=False)
    assert again.returncode != 0 and "doesn't exist" in again.stderr
