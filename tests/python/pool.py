"""What the tests of the pool share: what is in it."""

from __future__ import annotations

from conftest import Server, until
from e2b import Sandbox


def spares(server: Server) -> set[str]:
    """Containers that nobody has claimed."""
    with_sandbox = {server.container(line.sandbox_id) for line in Sandbox.list(**server.options()).next_items()}
    return set(server.containers()) - with_sandbox


def shelves(server: Server) -> dict[tuple[str, str], tuple[int, int]]:
    """How many wait of each kind, and how many should."""
    lines = [line.split() for line in server.command("ls", "--pool").stdout.splitlines()]
    return {(template, kind): (int(ready), int(target)) for template, kind, ready, _, _, target in lines}


def filled(server: Server) -> set[str]:
    """The pool's containers, when there are as many as there should be."""
    until("the pool is filled", lambda: all(ready >= target for ready, target in shelves(server).values()), 60)
    return spares(server)
