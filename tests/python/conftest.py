"""A real server on the real engine for every test, and the looks behind it.

The programs come from `scripts/setup`; `scripts/test` runs that first.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator

import boto3
import httpx
import pytest
import pytest_asyncio
from e2b import AsyncSandbox, Sandbox

# The fixtures of the life cycle's tests.
pytest_plugins = ["lifecycle", "snapshots"]

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = ROOT / ".sandyard" / "bin"
MINIO_USER, MINIO_PASSWORD, BUCKET = "sandyard", "sandyard-local", "sandyard"


def until(what: str, condition: Callable[[], object], limit: float = 20) -> None:
    """Waits for a condition; the failure names it."""
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"after {limit} s still not: {what}")
        time.sleep(0.02)


def docker(*arguments: str) -> str:
    result = subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True)
    return result.stdout


class Minio:
    """A real MinIO with the bucket in it."""

    def __init__(self, folder: pathlib.Path) -> None:
        program = shutil.which("minio") or str(BIN / "minio")
        assert pathlib.Path(program).exists(), "no MinIO: scripts/setup makes it"
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{port}"
        (folder / BUCKET).mkdir(parents=True)
        self.command = [program, "server", "--quiet", "--address", f"127.0.0.1:{port}", str(folder)]
        self.start()

    def start(self) -> None:
        """Also after a stop, with the same data."""
        environment = os.environ | {"MINIO_ROOT_USER": MINIO_USER,
                                    "MINIO_ROOT_PASSWORD": MINIO_PASSWORD,
                                    "MINIO_BROWSER": "off", "MINIO_UPDATE": "off"}
        self.process = subprocess.Popen(self.command, env=environment, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        until("MinIO is ready", self._ready)

    def _ready(self) -> bool:
        assert self.process.poll() is None, "MinIO ended"
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.endpoint}/minio/health/ready").status_code == 200
        return False

    def settings(self) -> dict[str, str]:
        """What a server needs to keep its workspaces here."""
        return {"SANDYARD_STORE__BACKEND": "upstream", "SANDYARD_STORE__ENDPOINT": self.endpoint,
                "SANDYARD_STORE__BUCKET": BUCKET, "SANDYARD_STORE__ACCESS_KEY_ID": MINIO_USER,
                "SANDYARD_STORE__SECRET_ACCESS_KEY": MINIO_PASSWORD}

    def s3(self) -> object:
        return boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1",
                            aws_access_key_id=MINIO_USER, aws_secret_access_key=MINIO_PASSWORD)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


class Server:
    """A real `sandyard up` on free ports, with a data folder of its own."""

    listen = {"api": "127.0.0.1:0", "proxy": "127.0.0.1:0", "gateway": "127.0.0.1:0"}

    def __init__(self, folder: pathlib.Path, settings: dict[str, str] | None = None,
                 arguments: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.settings = settings or {}
        # On every command line of this installation.
        self.arguments = arguments
        self.log = folder.parent / f"{folder.name}.log"
        self.start()

    def environment(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SANDYARD_", "E2B_"))}
        return clean | self.settings

    def command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        program = BIN / "sandyard"
        assert program.exists(), "no server program: scripts/setup builds it"
        return subprocess.run([program, *arguments, "--data-dir", self.folder, *self.arguments],
                              check=check, capture_output=True, text=True, env=self.environment())

    def start(self) -> None:
        assert (BIN / "sandyard").exists(), "no server program: scripts/setup builds it"
        (self.folder / "server.json").unlink(missing_ok=True)
        arguments = ["up", "--data-dir", str(self.folder), *self.arguments]
        for listener, address in self.listen.items():
            arguments += [f"--{listener}-listen", address]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([BIN / "sandyard", *arguments], stdout=log, stderr=log,
                                            env=self.environment(), start_new_session=True)
        until("the server is up", self._is_up)
        lines = self.command("env").stdout.splitlines()
        self.variables = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        self.api_url = self.variables["E2B_API_URL"]
        self.sandbox_url = self.variables["E2B_SANDBOX_URL"]
        self.api_key = self.variables["E2B_API_KEY"]
        self.pid = self.process.pid

    def _is_up(self) -> bool:
        assert self.process.poll() is None, f"the server ended:\n{self.tail()}"
        return (self.folder / "server.json").exists()

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text().splitlines()[-lines:])

    @property
    def installation(self) -> str:
        return (self.folder / "installation").read_text().strip()

    def options(self, api_key: str | None = None) -> dict[str, str]:
        """What the SDK is told, beside what a test is about."""
        return {"api_key": api_key or self.api_key, "api_url": self.api_url,
                "sandbox_url": self.sandbox_url}

    def create(self, template: str = "base", **options: object) -> Sandbox:
        return Sandbox.create(template, **{**self.options(), **options})

    def http(self, api_key: str | None = "") -> httpx.Client:
        key = self.api_key if api_key == "" else api_key
        return httpx.Client(base_url=self.api_url, timeout=60,
                            headers={} if key is None else {"X-API-Key": key})

    def s3(self) -> object:
        """The store as its owner sees it: an S3 client at the gateway."""
        v = self.variables
        return boto3.client("s3", endpoint_url=v["SANDYARD_S3_ENDPOINT"], region_name="us-east-1",
                            aws_access_key_id=v["SANDYARD_S3_ACCESS_KEY_ID"],
                            aws_secret_access_key=v["SANDYARD_S3_SECRET_ACCESS_KEY"])

    def containers(self) -> list[str]:
        """Names of this installation's sandboxes on the engine, whatever their state."""
        return docker("ps", "-a", "--format", "{{.Names}}", "--filter", "label=dev.sandyard.role=sandbox",
                      "--filter", f"label=dev.sandyard.installation={self.installation}").split()

    def container(self, sandbox: Sandbox | str) -> str:
        """The name of a sandbox's container, which only the server's owner learns."""
        wanted = sandbox if isinstance(sandbox, str) else sandbox.sandbox_id
        # Of all teams, while `ls` shows the first one's.
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(self.folder / "control.sock"))
            control.sendall(b"instances\n")
            lines = control.makefile().read().splitlines()
        instances = dict(line.split(" ", 1) for line in lines)
        return f"sandyard-{instances[wanted]}"

    def volumes(self) -> list[str]:
        """Names of this installation's volumes on the engine: caches of workspaces."""
        return docker("volume", "ls", "-q", "--filter",
                      f"label=dev.sandyard.installation={self.installation}").split()

    def stop(self) -> None:
        """SIGTERM: sandboxes stay."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def kill9(self) -> None:
        self.process.kill()
        self.process.wait(20)

    def restart(self) -> None:
        self.stop()
        self.start()

    def down(self) -> None:
        """Ends everything and makes sure that nothing is left on the engine."""
        ended = self.command("down", check=False)
        assert ended.returncode == 0, f"{ended.stdout}{ended.stderr}\n{self.tail()}"
        self.process.wait(60)
        label = f"label=dev.sandyard.installation={self.installation}"
        assert docker("ps", "-aq", "--filter", label) == ""
        assert self.volumes() == []
        assert docker("network", "ls", "-q", "--filter", label) == ""


def inspect(name: str) -> dict[str, object]:
    return json.loads(docker("inspect", name))[0]


@pytest.fixture
def folder() -> Iterator[pathlib.Path]:
    # Short: a Unix socket's path in it may not have more than 107 bytes.
    made = pathlib.Path(tempfile.mkdtemp(prefix="sy-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """One server that most tests share. Each leaves it as it was."""
    made = pathlib.Path(tempfile.mkdtemp(prefix="sy-"))
    running = Server(made / "data")
    yield running
    running.down()
    shutil.rmtree(made)


# Whoever counts containers, or acts at a named call to the engine, has none that nobody asked for.
NO_POOL = {"SANDYARD_POOL__MAX": "0", "SANDYARD_CODE_INTERPRETER__POOL": "0"}


@pytest.fixture(scope="session")
def poolless_server() -> Iterator[Server]:
    """As `server`, for tests that count containers."""
    made = pathlib.Path(tempfile.mkdtemp(prefix="sy-"))
    running = Server(made / "data", NO_POOL)
    yield running
    running.down()
    shutil.rmtree(made)


@pytest.fixture
def own_server(folder: pathlib.Path) -> Iterator[Callable[..., Server]]:
    """Makes servers for tests that stop, kill or configure them."""
    started: list[Server] = []

    def start(*arguments: str, **settings: str) -> Server:
        started.append(Server(folder / f"data-{len(started)}", NO_POOL | settings, arguments))
        return started[-1]

    yield start
    for running in started:
        running.down()


@pytest.fixture
def minio(folder: pathlib.Path) -> Iterator[Minio]:
    running = Minio(folder / "minio")
    yield running
    running.stop()


@pytest.fixture
def sandbox(server: Server) -> Iterator[Sandbox]:
    made = server.create()
    yield made
    made.kill()


def module_sandbox(session: str = "", **options: object) -> Callable[[Server], Iterator[Sandbox]]:
    """A fixture `shared` for a module: one sandbox, with a workspace if `session` begins its name."""

    @pytest.fixture(scope="module")
    def shared(server: Server) -> Iterator[Sandbox]:
        metadata = {"session": f"{session}-{time.time_ns()}"} if session else {}
        made = server.create(metadata=metadata, timeout=600, **options)
        yield made
        made.kill()

    return shared


@pytest.fixture
def box(shared: Sandbox) -> Iterator[Sandbox]:
    """A module's own `shared` sandbox, in which each test leaves no process."""
    yield shared
    until("no process is left", lambda: shared.commands.list() == [])


@pytest_asyncio.fixture
async def abox(server: Server, box: Sandbox) -> AsyncSandbox:
    """The asynchronous client of a module's own `box`."""
    return await AsyncSandbox.connect(box.sandbox_id, timeout=600, **server.options())


@pytest.fixture
def session_sandbox(server: Server) -> Iterator[Sandbox]:
    made = server.create(metadata={"session": f"test-{time.time_ns()}"})
    yield made
    made.kill()
