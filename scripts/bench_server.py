"""A server of a group's own for `scripts/bench`, so that each row knows what it measures."""

from __future__ import annotations

import http.client
import json
import os
import pathlib
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable

from bench_sandbox import milliseconds
from containers import PROGRAM
from e2b import Sandbox

LIMIT = 180


class Server:
    """A server of this group's own, and how to reach it."""

    def __init__(self, folder: pathlib.Path, settings: dict[str, str]) -> None:
        self.folder = folder
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("SANDYARD_", "E2B_"))}
        self.environment = clean | settings
        arguments = ["up", "--data-dir", str(folder)]
        for listener in ("api", "proxy", "gateway"):
            arguments += [f"--{listener}-listen", "127.0.0.1:0"]
        self.log = (folder.parent / f"{folder.name}.log").open("wb")
        self.process = subprocess.Popen([PROGRAM, *arguments], stdout=self.log, stderr=self.log,
                                        env=self.environment, start_new_session=True)
        wait("the server is up", (folder / "server.json").exists)
        lines = self.command("env").splitlines()
        self.variables = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        self.options = {"api_key": self.variables["E2B_API_KEY"],
                        "api_url": self.variables["E2B_API_URL"],
                        "sandbox_url": self.variables["E2B_SANDBOX_URL"]}

    def command(self, *arguments: str) -> str:
        result = subprocess.run([PROGRAM, *arguments, "--data-dir", self.folder], check=True,
                                capture_output=True, text=True, env=self.environment)
        return result.stdout

    def create(self, template: str = "base", **options: object) -> Sandbox:
        return Sandbox.create(template, timeout=1200, **options, **self.options)

    def pool(self, template: str = "base") -> dict[str, int]:
        """How many containers of a template, without and with a workspace, are ready."""
        rows = [line.split("  ") for line in self.command("ls", "--pool").splitlines()]
        return {profile: int(counts.split()[0]) for name, profile, counts in rows if name == template}

    def filled(self, number: int) -> None:
        wait(f"{number} containers are in the pool",
             lambda: min(self.pool().values()) >= number)

    def call(self, method: str, path: str, body: object = None) -> tuple[int, object]:
        """A request to the API without the SDK, whose own time in one interpreter would count 50 times at once."""
        address = urllib.parse.urlsplit(self.options["api_url"])
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=LIMIT)
        headers = {"X-API-Key": self.options["api_key"], "Content-Type": "application/json"}
        connection.request(method, path, json.dumps(body or {}), headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, json.loads(content) if content else None

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.command("down")
        self.process.wait(60)
        self.log.close()


def wait(what: str, condition: Callable[[], object]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"after {LIMIT} s still not: {what}")
        time.sleep(0.05)


def at_once(number: int, call: Callable[[int], object]) -> tuple[list[float], float]:
    """The time of each call in milliseconds, and that of all, when as many begin at the same moment."""
    times = [0.0] * number
    failures: list[BaseException] = []
    start = threading.Barrier(number + 1)

    def run(index: int) -> None:
        start.wait()
        try:
            times[index] = milliseconds(lambda: call(index))
        except BaseException as failure:  # noqa: BLE001
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    start.wait()
    begun = time.perf_counter()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return times, (time.perf_counter() - begun) * 1000
