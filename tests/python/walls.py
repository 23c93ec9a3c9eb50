"""What tests of the walls between sandboxes share, whatever form the server has."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable

import httpx
import pytest
from conftest import docker, until
from e2b import CommandExitException, Sandbox

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


NAMES = """
import ipaddress, socket, sys
own = ipaddress.ip_interface(sys.argv[1])
for host in list(own.network.hosts())[:16]:
    try:
        print(*socket.gethostbyaddr(str(host))[:2])
    except OSError:
        pass
"""


def assert_unnamed(sandbox: Sandbox, other: Sandbox, container: str) -> None:
    """Nothing that a sandbox can ask the engine's name server tells its id or that of another, in this container."""
    sandbox.files.write("/tmp/names.py", NAMES)
    own = sandbox.commands.run("ip -4 -o addr show eth0 | awk '{ print $4 }'").stdout.strip()
    names = sandbox.commands.run(f"python3 /tmp/names.py {own}", timeout=120).stdout
    # The name server does answer, with the containers' names.
    assert container in names
    for one in (sandbox, other):
        assert one.sandbox_id not in names
        assert one.sandbox_id not in docker("ps", "-a", "--format", "{{.Names}} {{.Labels}} {{.Networks}}")
        with pytest.raises(CommandExitException):
            sandbox.commands.run(f"getent hosts {one.sandbox_id}")


def start_process(address: str) -> bool:
    """What a neighbour did in 9 of 12 creates: root, in a container that has not been claimed yet."""
    message = json.dumps({"process": {"cmd": "/bin/sh", "args": ["-c", "touch /planted; sleep 600"]}}).encode()
    body = b"\0" + len(message).to_bytes(4, "big") + message
    with contextlib.suppress(httpx.HTTPError):
        with httpx.stream("POST", f"http://{address}:{DAEMON_PORT}/process.Process/Start", content=body, timeout=1,
                          headers={"Content-Type": "application/connect+json"}) as answer:
            return answer.status_code == 200
    return False


def attack_before_claims(address: str, create: Callable[[], Sandbox]) -> None:
    """Tries to start a process in each of the next containers, whose addresses follow this one, before its claim."""
    network, last = address.rsplit(".", 1)
    got_in, over = [], threading.Event()

    def attack(offset: int) -> None:
        while not over.is_set():
            next_one = f"{network}.{int(last) + offset}"
            if start_process(next_one):
                got_in.append(next_one)

    attackers = [threading.Thread(target=attack, args=(offset,)) for offset in range(6)]
    for attacker in attackers:
        attacker.start()
    try:
        for _ in range(6):
            sandbox = create()
            assert sandbox.commands.run("ls /planted 2>/dev/null; true").stdout == ""
            processes = sandbox.commands.run("ps -eo args").stdout
            assert "sleep 600" not in processes
            sandbox.kill()
    finally:
        over.set()
        for attacker in attackers:
            attacker.join()
    assert got_in == []
