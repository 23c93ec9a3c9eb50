"""What tests of the walls between sandboxes share, whatever form the server has."""

from __future__ import annotations

import json

from conftest import docker, until
from e2b import Sandbox

# What a neighbour would try: the control port, the daemon, and a service of the user's own.
CONTROL_PORT, DAEMON_PORT, SERVICE_PORT = 49982, 49983, 8000

CONNECT = """
import socket, sys
host, reached = sys.argv[1], []
for port in map(int, sys.argv[2:]):
    try:
        socket.create_connection((host, port), 1.5).close()
        reached.append(port)
    except OSError:
        pass
print(*reached)
"""


def address_of(container: str) -> str:
    """A container's address on the only network it is on."""
    networks = json.loads(docker("inspect", container))[0]["NetworkSettings"]["Networks"]
    return next(iter(networks.values()))["IPAddress"]


def reached(sandbox: Sandbox, address: str, *ports: int) -> list[int]:
    """Those of the ports that can be connected to from inside the sandbox."""
    sandbox.files.write("/tmp/connect.py", CONNECT)
    found = sandbox.commands.run(f"python3 /tmp/connect.py {address} {' '.join(map(str, ports))}")
    return [int(port) for port in found.stdout.split()]


def assert_apart(sandbox: Sandbox, neighbour: Sandbox, address: str) -> None:
    """Nothing of the neighbour, which has this address, is reached from the sandbox."""
    service = neighbour.commands.run(f"python3 -m http.server {SERVICE_PORT}", background=True)
    try:
        until("the neighbour's service listens", lambda: reached(neighbour, "127.0.0.1", SERVICE_PORT))
        # The neighbour itself reaches its own address, so that the ports are open there.
        assert SERVICE_PORT in reached(neighbour, address, SERVICE_PORT, DAEMON_PORT)
        assert reached(sandbox, address, SERVICE_PORT, DAEMON_PORT, CONTROL_PORT) == []
        assert sandbox.commands.run(f"ping -c 1 -W 1 {address} >/dev/null && echo answer || echo none").stdout == "none\n"
    finally:
        service.kill()
