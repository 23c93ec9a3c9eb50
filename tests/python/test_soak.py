"""A sandbox after much use: nothing is left of it.

Short by default; SOAK=full runs the issue's 2,000 commands at 32 at a time, 200 terminals, 1,000 files
and 60 s of watching.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from conftest import Server, docker, until
from e2b import Sandbox

FULL = os.environ.get("SOAK") == "full"
# Commands, terminals, files, seconds of watching.
AMOUNTS = (2000, 200, 1000, 60) if FULL else (200, 20, 100, 5)
GROWTH_KIB = 2048
# How long the proxy keeps idle connections to an executor for the next request: it looks after them once
# in 10 s.
KEPT_SECONDS = 2 * 10


@dataclass
class Use:
    """What the executor and the server hold."""

    processes: Counter[str]
    executor_kib: int
    executor_sockets: int
    executor_others: int
    server: int


def links(pid: int) -> list[str]:
    """What the descriptors of a process are, as the kernel names it; only root may look at all of them."""
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    found: list[str] = []

    def stood_still() -> bool:
        # It fails for one that is closed while it looks.
        listed = subprocess.run([*prefix, "find", f"/proc/{pid}/fd", "-type", "l", "-printf", "%l\\n"],
                                check=False, capture_output=True, text=True)
        found[:] = listed.stdout.splitlines()
        return listed.returncode == 0

    until(f"the descriptors of {pid} can be listed", stood_still)
    return found


def look(server: Server, sandbox: Sandbox) -> Use:
    rows = [row.split(None, 1) for row in
            docker("top", server.container(sandbox), "-eo", "pid,args").splitlines()[1:]]
    executor = next(int(pid) for pid, command in rows if command.startswith("/.sandyard/executor"))
    status = pathlib.Path(f"/proc/{executor}/status").read_text().splitlines()
    descriptors = links(executor)
    sockets = sum(link.startswith("socket:") for link in descriptors)
    return Use(processes=Counter(command for _, command in rows),
               executor_kib=next(int(line.split()[1]) for line in status if line.startswith("VmRSS:")),
               executor_sockets=sockets, executor_others=len(descriptors) - sockets,
               server=len(links(server.pid)))


@pytest.mark.timeout(1500)
def test_nothing_is_left_of_much_use(own_server: Callable[..., Server],
                                     capfd: pytest.CaptureFixture[str]) -> None:
    server = own_server()
    sandbox = server.create(timeout=3600)
    environment = server.environment() | server.variables

    def load(*amounts: int) -> None:
        program = pathlib.Path(__file__).with_name("soak_load.py")
        # Only the long form is worth watching.
        with capfd.disabled() if FULL else contextlib.nullcontext():
            subprocess.run([sys.executable, program, sandbox.sandbox_id, *map(str, amounts)],
                           check=True, env=environment)

    # One of each: what is made once stays, as it should.
    load(5, 1, 1, 0)
    before = look(server, sandbox)
    load(*AMOUNTS)

    after = look(server, sandbox)

    def settled(condition: Callable[[Use], bool]) -> Callable[[], bool]:
        def holds() -> bool:
            nonlocal after
            after = look(server, sandbox)
            return condition(after)

        return holds

    conditions: dict[str, Callable[[Use], bool]] = {
        "no process is left": lambda use: use.processes == before.processes,
        "no other descriptor of the executor is left":
            lambda use: use.executor_others <= before.executor_others,
        "no connection of the executor is left":
            lambda use: use.executor_sockets <= before.executor_sockets,
        "no descriptor of the server is left": lambda use: use.server <= before.server,
        "the executor's memory is back":
            lambda use: use.executor_kib <= before.executor_kib + GROWTH_KIB,
    }
    try:
        for what, condition in conditions.items():
            until(what, settled(condition), KEPT_SECONDS + 30)
        assert sandbox.commands.list() == []
    except AssertionError as failure:
        raise AssertionError(f"{failure}\nbefore: {before}\nafter:  {after}") from failure
    finally:
        sandbox.kill()
