"""Clients that give up right after they have sent a request, through the proxy."""

from __future__ import annotations

import json
import socket
import struct
import urllib.parse
from collections.abc import Callable

import h2.config
import h2.connection
import h2.errors
import pytest
from conftest import Server, module_sandbox, until
from e2b import Sandbox

START = "/process.Process/Start"
# As many streams as may be reset before they are taken up: HTTP/2 servers close the connection at more.
CLIENTS = 20


shared = module_sandbox()


def start_request(tag: str) -> bytes:
    process = {"cmd": "/bin/sleep", "args": ["60"]}
    message = json.dumps({"process": process, "tag": tag, "stdin": False}).encode()
    return struct.pack(">BI", 0, len(message)) + message


def headers(box: Sandbox, length: int) -> dict[str, str]:
    return {"content-type": "application/connect+json", "content-length": str(length),
            "e2b-sandbox-id": box.sandbox_id, "e2b-sandbox-port": "49983",
            "x-access-token": box._envd_access_token or "",
            # A user who has to be looked up first.
            "authorization": "Basic dXNlcjo="}


def by_closing_http_1(box: Sandbox, address: tuple[str, int], abruptly: bool = False) -> None:
    for number in range(CLIENTS):
        body = start_request(f"left-{number}")
        lines = [f"POST {START} HTTP/1.1", "host: sandbox"]
        lines += [f"{name}: {value}" for name, value in headers(box, len(body)).items()]
        with socket.create_connection(address, timeout=20) as client:
            client.sendall("\r\n".join([*lines, "", ""]).encode() + body)
            if abruptly:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def by_breaking_http_1(box: Sandbox, address: tuple[str, int]) -> None:
    """As the system does for a client that is killed with something unread."""
    by_closing_http_1(box, address, abruptly=True)


def by_resetting_http_2(box: Sandbox, address: tuple[str, int]) -> socket.socket:
    """Each reset comes in the same packet as the request; the connection goes on."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    connection = socket.create_connection(address, timeout=20)
    client.initiate_connection()
    for number in range(CLIENTS):
        body = start_request(f"left-{number}")
        stream = client.get_next_available_stream_id()
        head = {":method": "POST", ":path": START, ":scheme": "http", ":authority": "sandbox"}
        client.send_headers(stream, [*head.items(), *headers(box, len(body)).items()])
        client.send_data(stream, body, end_stream=True)
        client.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
        connection.sendall(client.data_to_send())
    return connection


@pytest.mark.parametrize("leave", [by_closing_http_1, by_breaking_http_1, by_resetting_http_2])
def test_a_process_starts_though_its_client_has_given_up(
        box: Sandbox, server: Server,
        leave: Callable[[Sandbox, tuple[str, int]], socket.socket | None]) -> None:
    """executor 2.7: "cancel before the start event was sent: the process still starts"."""
    url = urllib.parse.urlsplit(server.sandbox_url)
    assert url.hostname and url.port
    connection = leave(box, (url.hostname, url.port))
    expected = {f"left-{number}" for number in range(CLIENTS)}
    until("all that were asked for run",
          lambda: {process.tag for process in box.commands.list()} == expected)
    if connection:
        connection.close()
    for process in box.commands.list():
        assert box.commands.kill(process.pid)
