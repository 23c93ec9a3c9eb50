"""`get_host` of the official Python SDK: servers inside a sandbox, from outside, under the name it gives.

Without TLS; a name is sent as `Host` to the proxy's address, as a client that resolves it would.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator

import httpx
import pytest
from conftest import Server, until
from e2b import AsyncSandbox, Sandbox

# Answers with what it was asked: method, path, host, body.
ECHO = """
import http.server, socket, sys


class Echo(http.server.BaseHTTPRequestHandler):
    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        told = f"{self.command} {self.path} {self.headers['Host']} ".encode() + body
        self.send_response(200)
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    do_GET = do_POST = answer


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET


Server((sys.argv[1], int(sys.argv[2])), Echo).serve_forever()
"""


@pytest.fixture(scope="module")
def box(server: Server) -> Iterator[Sandbox]:
    sandbox = server.create()
    sandbox.files.write("echo.py", ECHO)
    yield sandbox
    sandbox.kill()


def ask(server: Server, host: str, path: str = "/", **options: object) -> httpx.Response:
    method = "POST" if "content" in options else "GET"
    return httpx.request(method, f"{server.sandbox_url}{path}", headers={"Host": host}, **options)


async def test_both_clients_give_the_contracts_name(server: Server, box: Sandbox) -> None:
    # control-plane 5.2: port, id and the domain that the server tells, with the proxy's port.
    port = urllib.parse.urlsplit(server.sandbox_url).port
    expected = f"8000-{box.sandbox_id}.sbx.localhost:{port}"
    assert box.get_host(8000) == expected
    again = await AsyncSandbox.connect(box.sandbox_id, **server.options())
    assert again.get_host(8000) == expected
    # A sandbox that an older or another client made may be known with a client's suffix (8.43).
    assert ask(server, expected.replace(".", "-6532622b.", 1)).json()["port"] == 8000


@pytest.mark.parametrize(("address", "port"), [
    ("0.0.0.0", 3210), ("::", 3211), ("127.0.0.1", 3212), ("::1", 3213)])
def test_a_server_is_reached_wherever_it_listens(
        server: Server, box: Sandbox, address: str, port: int) -> None:
    # executor 9.3, 11.33: as soon as it listens, on loopback too.
    host = box.get_host(port)
    closed = ask(server, host)
    assert (closed.status_code, closed.headers["Content-Type"]) == (
        502, "application/json; charset=utf-8")
    assert closed.json() == {"sandboxId": box.sandbox_id, "port": port, "code": 502,
                             "message": "The sandbox is running but port is not open"}
    handle = box.commands.run(f"python3 echo.py {address} {port}", background=True, timeout=0)
    until("the server listens", lambda: box.commands.run(
        f"ss -Hltn 'sport = :{port}'").stdout != "")
    # The service sees the name it was asked under (control-plane 8.44).
    answer = ask(server, host, "/a%20b?c=d", content=b"body")
    assert (answer.status_code, answer.text) == (200, f"POST /a%20b?c=d {host} body")
    assert box.commands.kill(handle.pid)
    until("the port is closed again", lambda: ask(server, host).status_code == 502)


def test_the_sdks_own_port_answers_under_its_name(server: Server, box: Sandbox) -> None:
    # control-plane 5.2: what a client without E2B_SANDBOX_URL talks to.
    assert ask(server, box.get_host(49983), "/health").status_code == 204
    # What is for the server only is hidden under the name too (executor 6.7).
    assert ask(server, box.get_host(49983), "/init", content=b"{}").status_code == 404


def test_a_name_that_leads_nowhere_says_why(server: Server, box: Sandbox) -> None:
    domain = box.get_host(80).partition(".")[2]
    for label, status, message in [
            ("8000-inothere", 502, "The sandbox was not found"),
            (f"0-{box.sandbox_id}", 400, None), (f"x-{box.sandbox_id}", 400, None),
            ("8000-UPPER", 400, None), (box.sandbox_id, 400, None)]:
        answer = ask(server, f"{label}.{domain}")
        assert answer.status_code == status, label
        if message:
            assert answer.json()["message"] == message


def test_a_dead_sandbox_answers_as_a_page_to_browsers(server: Server) -> None:
    sandbox = server.create()
    host = sandbox.get_host(8000)
    sandbox.kill()
    # control-plane 5.6, 8.41, 8.42
    plain = ask(server, host)
    assert (plain.status_code, plain.json()) == (502, {
        "message": "The sandbox was not found", "sandboxId": sandbox.sandbox_id, "code": 502})
    page = httpx.get(server.sandbox_url, headers={"Host": host, "User-Agent": "Mozilla/5.0"})
    assert (page.status_code, page.headers["Content-Type"]) == (502, "text/html; charset=utf-8")
    assert page.text.startswith("<html") and page.text.endswith("</html>")
    assert "Sandbox Not Found" in page.text and sandbox.sandbox_id in page.text
