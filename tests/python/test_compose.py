"""compose/compose.yaml, brought up for real with images made on this machine."""

from __future__ import annotations

import json
import os
import pathlib
import shlex
import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import boto3
import httpx
import pytest
from conftest import ROOT, docker, until
from e2b import CommandExitException, Sandbox
from test_tls import run as run_client
from walls import address_of, assert_apart, assert_unnamed, attack_before_claims

FILE = ROOT / "compose" / "compose.yaml"
USER, PASSWORD = "sandyard", "sandyard-local"

# Making the images may build the server first.
pytestmark = pytest.mark.timeout(900)


def compose_program() -> list[str]:
    """The plugin, or the older program; scripts/test installs one if there is none."""
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ["docker", "compose"]
    older = shutil.which("docker-compose")
    assert older, "neither 'docker compose' nor docker-compose is there: scripts/test installs it"
    return [older]


def free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def local_images() -> dict[str, str]:
    """The variables that name the images: as scripts/test made them, or made now."""
    names = ["SANDYARD_SERVER_IMAGE", "SANDYARD_MINIO_IMAGE"]
    if all(name in os.environ for name in names):
        return {name: os.environ[name] for name in names}
    script = subprocess.run([ROOT / "compose" / "build-offline.sh"], capture_output=True, text=True)
    assert script.returncode == 0, script.stderr
    words = [shlex.split(line)[1] for line in script.stdout.splitlines()]
    return dict(word.split("=", 1) for word in words)


@dataclass
class Project:
    """One compose project with a name and ports of its own."""

    name: str
    environment: dict[str, str]
    program: list[str] = field(default_factory=compose_program)

    def compose(self, *arguments: str) -> str:
        command = [*self.program, "-p", self.name, "-f", str(FILE), *arguments]
        done = subprocess.run(command, env=os.environ | self.environment, capture_output=True, text=True, timeout=170)
        assert done.returncode == 0, f"{shlex.join(arguments)}: {done.stderr}"
        return done.stdout

    def url(self, port: str) -> str:
        return f"http://127.0.0.1:{self.environment[port]}"

    def container(self, service: str) -> str:
        return self.compose("ps", "-q", service).strip()

    def sandbox_container(self, sandbox: Sandbox) -> str:
        lines = self.server("sandyard", "ls").splitlines()
        return next(line.split()[-1] for line in lines if line.startswith(sandbox.sandbox_id))

    def sandbox_containers(self) -> set[str]:
        """Those of all teams."""
        installation = self.server("cat", "/data/installation").strip()
        return set(docker("ps", "--format", "{{.Names}}", "--filter", "label=dev.sandyard.role=sandbox",
                          "--filter", f"label=dev.sandyard.installation={installation}").split())

    def server(self, *arguments: str) -> str:
        return docker("exec", self.container("server"), *arguments)

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url('SANDYARD_API_PORT')}/health", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    def sdk(self) -> dict[str, str]:
        return {
            "api_key": self.server("cat", "/data/api.key").strip(),
            "api_url": self.url("SANDYARD_API_PORT"),
            "sandbox_url": self.url("SANDYARD_PROXY_PORT"),
        }


@pytest.fixture(scope="module")
def project() -> Iterator[Project]:
    name = f"sytest{uuid.uuid4().hex[:8]}"
    ports = ["SANDYARD_API_PORT", "SANDYARD_PROXY_PORT", "SANDYARD_S3_PORT", "MINIO_PORT", "MINIO_CONSOLE_PORT"]
    environment = local_images() | dict(zip(ports, map(str, free_ports(len(ports))), strict=True))
    project = Project(name, environment)
    try:
        project.compose("up", "-d", "--no-build")
        until("the API answers", project.answers, 60)
        yield project
    finally:
        # Sandboxes first: compose knows nothing of them.
        ended = subprocess.run(["docker", "exec", project.container("server"), "sandyard", "down"],
                               capture_output=True, text=True)
        logs = subprocess.run(["docker", "logs", project.container("server")], capture_output=True, text=True)
        project.compose("down", "-v", "--timeout", "20")
    assert ended.returncode == 0, f"{ended.stderr}\n{logs.stderr[-4000:]}"
    for kind in ("container", "volume", "network"):
        everything = ["-a"] if kind == "container" else []
        left = docker(kind, "ls", *everything, "--filter", f"name={name}", "--format", "{{.Names}}{{.ID}}"
                      if kind == "container" else "{{.Name}}")
        assert not left, f"{kind} left: {left}"


@pytest.fixture(scope="module")
def sandbox(project: Project) -> Iterator[Sandbox]:
    sandbox = Sandbox.create(metadata={"session": "compose"}, **project.sdk())
    yield sandbox
    assert sandbox.kill()


def test_a_session_goes_through_to_minio(project: Project, sandbox: Sandbox) -> None:
    minio: Any = boto3.client(
        "s3", endpoint_url=project.url("MINIO_PORT"), region_name="us-east-1",
        aws_access_key_id=USER, aws_secret_access_key=PASSWORD)
    minio.put_object(Bucket="sandyard", Key="sessions/compose/uploads/in", Body=b"abc")
    assert sandbox.commands.run("rev /workspace/uploads/in | tee /workspace/artifacts/out").stdout.strip() == "cba"
    body = minio.get_object(Bucket="sandyard", Key="sessions/compose/artifacts/out")["Body"].read()
    assert body.strip() == b"cba"


def test_env_prints_what_works_on_the_host(project: Project, sandbox: Sandbox) -> None:
    lines = project.server("sandyard", "env").splitlines()
    variables = dict(shlex.split(line)[1].split("=", 1) for line in lines)
    assert variables["E2B_API_URL"] == project.url("SANDYARD_API_PORT")
    listed = Sandbox.list(api_key=variables["E2B_API_KEY"], api_url=variables["E2B_API_URL"]).next_items()
    assert sandbox.sandbox_id in {item.sandbox_id for item in listed}
    again = Sandbox.connect(
        sandbox.sandbox_id, api_key=variables["E2B_API_KEY"], api_url=variables["E2B_API_URL"],
        sandbox_url=variables["E2B_SANDBOX_URL"])
    again.files.write("/workspace/uploads/env", "1")
    again.commands.run("sync /workspace/uploads/env")
    store: Any = boto3.client(
        "s3", endpoint_url=variables["SANDYARD_S3_ENDPOINT"], region_name="us-east-1",
        aws_access_key_id=variables["SANDYARD_S3_ACCESS_KEY_ID"],
        aws_secret_access_key=variables["SANDYARD_S3_SECRET_ACCESS_KEY"])
    body = store.get_object(Bucket=variables["SANDYARD_S3_BUCKET"], Key="sessions/compose/uploads/env")["Body"]
    assert body.read() == b"1"
    # The commands beside the server do not go the clients' way: it does not lead into its own container.
    assert sandbox.sandbox_id in project.server("sandyard", "ls")


def test_clients_on_the_host_come_by_tls_too(project: Project, sandbox: Sandbox, folder: pathlib.Path) -> None:
    # README, "Over TLS": what is printed, and copies of the certificates.
    server = ["exec", "-T", "server"]
    printed = project.compose(*server, "sandyard", "env", "--tls", "--certificates", str(folder))
    exports = [line for line in printed.splitlines() if line.startswith("export ")]
    variables = dict(shlex.split(line)[1].split("=", 1) for line in exports)
    for file in ("ca.pem", "ca-bundle.pem"):
        (folder / file).write_text(project.compose(*server, "cat", f"/data/tls/{file}"))
    assert variables["E2B_DOMAIN"].endswith(f":{project.environment['SANDYARD_PROXY_PORT']}")
    run_client("from e2b import Sandbox\n"
               f"box = Sandbox.connect({sandbox.sandbox_id!r})\n"
               "assert box.commands.run('echo over; echo tls').stdout == 'over\\ntls\\n'\n"
               "box.files.write('x', b'x' * 100_000)\n"
               "assert len(box.files.read('x', format='bytes')) == 100_000\n", variables)


def test_only_the_server_has_the_docker_socket(project: Project, sandbox: Sandbox) -> None:
    containers = {name: project.container(name) for name in ("server", "minio")}
    containers["sandbox"] = project.sandbox_container(sandbox)
    mounts = {name: docker("inspect", "--format", "{{json .Mounts}}", id) for name, id in containers.items()}
    assert {name for name, text in mounts.items() if "docker.sock" in text} == {"server"}


def test_a_sandbox_reaches_neither_api_nor_store(project: Project, sandbox: Sandbox) -> None:
    host = sandbox.commands.run("ip route | awk '$1 == \"default\" { print $3 }'").stdout.strip()
    gateway, *closed = (project.environment[name] for name in
                        ("SANDYARD_S3_PORT", "SANDYARD_API_PORT", "SANDYARD_PROXY_PORT", "MINIO_PORT"))
    # The gateway is there, and wants a signature.
    assert sandbox.commands.run(f"curl -s -o /dev/null -w '%{{http_code}}' http://{host}:{gateway}/").stdout == "403"
    minio = json.loads(docker("inspect", project.container("minio")))[0]["NetworkSettings"]["Networks"]
    hosts = [(host, port) for port in closed] + [(n["IPAddress"], "9000") for n in minio.values()]
    for address, port in hosts:
        with pytest.raises(CommandExitException):
            sandbox.commands.run(f"curl -s --max-time 2 http://{address}:{port}/")


def test_another_teams_neighbours_are_apart_here_too(project: Project, sandbox: Sandbox) -> None:
    other_key = project.server("sandyard", "team", "add", "second").strip()
    neighbour = Sandbox.create(**project.sdk() | {"api_key": other_key})
    try:
        # `ls` shows the first team's sandboxes only.
        told = neighbour.commands.run("hostname -I").stdout.split()
        container, = (name for name in project.sandbox_containers() if address_of(name) in told)
        assert_apart(sandbox, neighbour, address_of(container))
        assert_unnamed(sandbox, neighbour, container)
    finally:
        neighbour.kill()


def test_nobody_gets_in_before_the_claim_here_either(project: Project, sandbox: Sandbox) -> None:
    address = address_of(project.sandbox_container(sandbox))
    attack_before_claims(address, lambda: Sandbox.create(**project.sdk(), metadata={"session": "claims"}))


def test_everything_lives_on_over_a_restart_of_the_server(project: Project, sandbox: Sandbox) -> None:
    sandbox.files.write("/workspace/uploads/before", "1")
    project.compose("restart", "server")
    until("the API answers", project.answers, 60)
    again = Sandbox.connect(sandbox.sandbox_id, **project.sdk())
    assert again.files.read("/workspace/uploads/before") == "1"
    again.files.write("/workspace/uploads/after", "2")
