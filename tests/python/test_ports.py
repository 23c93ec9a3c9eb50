"""Ports of a sandbox through the proxy: protocols, large bodies, access. Names and closed ports are
in test_get_host.py, TLS in test_tls.py."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import pathlib
import socket
import struct
import tarfile
import urllib.parse
from collections.abc import Iterator

import h2.config
import h2.connection
import h2.events
import hpack
import httpx
import hyperframe
import pytest
from conftest import Server, until
from e2b import AuthenticationException, ConnectionConfig, Sandbox

# A server that a user could have written: WebSocket, server-sent events, uploads, half-closed clients.
SERVICE = r"""
import base64, hashlib, http.server, socket, sys, threading

following = threading.Event()


class Service(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, body, status=200):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/socket":
            return self.web_socket()
        if self.path == "/events":
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write(b"data: first\n\n")
            following.wait(20)
            self.wfile.write(b"data: second\n\n")
            self.close_connection = True
            return
        if self.path == "/next":
            following.set()
        seen = [self.headers["Host"], self.headers["X-Forwarded-Host"] or "-"]
        self.answer(" ".join(seen).encode())

    def do_POST(self):
        digest, left = hashlib.sha256(), int(self.headers["Content-Length"])
        while left:
            piece = self.rfile.read(min(left, 1 << 20))
            if not piece:
                break
            digest.update(piece)
            left -= len(piece)
        self.answer(digest.hexdigest().encode())

    def web_socket(self):
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.send_header("Sec-WebSocket-Accept", accept)
        self.end_headers()
        while head := self.rfile.read(2):
            length = head[1] & 127
            mask = self.rfile.read(4)
            text = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(length)))
            self.wfile.write(bytes([head[0], len(text)]) + text)
            self.wfile.flush()
        # The client's half is closed; ours says so and ends.
        self.wfile.write(b"\x88\x00")
        self.close_connection = True


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET


Server((sys.argv[1], int(sys.argv[2])), Service).serve_forever()
"""

# HTTP/2 without TLS and nothing else, as gRPC servers: sends pieces back as they come, then trailers.
GRPC_SERVICE = """
import socket, sys, threading
sys.path.insert(0, "/home/user/packages")
import h2.config, h2.connection, h2.events


def serve(peer):
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    connection.initiate_connection()
    peer.sendall(connection.data_to_send())
    while data := peer.recv(65536):
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                headers = dict(event.headers)
                authority = headers[b":authority"]
                connection.send_headers(event.stream_id, [
                    (b":status", b"200"), (b"content-type", b"application/grpc"),
                    (b"x-authority", authority), (b"x-te", headers.get(b"te", b"-"))])
            elif isinstance(event, h2.events.DataReceived) and event.data:
                connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                connection.send_data(event.stream_id, event.data)
            elif isinstance(event, h2.events.StreamEnded):
                connection.send_headers(event.stream_id, [(b"grpc-status", b"0")], end_stream=True)
        peer.sendall(connection.data_to_send())


listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    threading.Thread(target=serve, args=[listener.accept()[0]], daemon=True).start()
"""


def start(box: Sandbox, command: str, port: int) -> None:
    box.commands.run(command, background=True, timeout=0)
    until("the service listens",
          lambda: box.commands.run(f"ss -Hltn 'sport = :{port}'").stdout != "")


@pytest.fixture(scope="module")
def box(server: Server) -> Iterator[Sandbox]:
    sandbox = server.create()
    sandbox.files.write("service.py", SERVICE)
    start(sandbox, "python3 service.py localhost 8000", 8000)
    yield sandbox
    sandbox.kill()


def address(server: Server) -> tuple[str, int]:
    url = urllib.parse.urlsplit(server.sandbox_url)
    return url.hostname, url.port


def ask(server: Server, host: str, path: str = "/", **headers: str) -> httpx.Response:
    return httpx.get(f"{server.sandbox_url}{path}", headers={"Host": host, **headers})


def frame(text: bytes) -> bytes:
    """A client's WebSocket frame, which is masked."""
    mask = os.urandom(4)
    masked = bytes(b ^ mask[i % 4] for i, b in enumerate(text))
    return bytes([0x81, 0x80 | len(text)]) + mask + masked


def test_a_web_socket_with_half_a_close(server: Server, box: Sandbox) -> None:
    # control-plane 5.5: upgrades pass through; executor 9.3: to a server on `localhost`.
    key = base64.b64encode(os.urandom(16)).decode()
    head = (f"GET /socket HTTP/1.1\r\nHost: {box.get_host(8000)}\r\nConnection: Upgrade\r\n"
            f"Upgrade: websocket\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n")
    with socket.create_connection(address(server), timeout=20) as client:
        client.sendall(head.encode())
        stream = client.makefile("rb")
        assert stream.readline().startswith(b"HTTP/1.1 101")
        answered = {}
        while (line := stream.readline()) != b"\r\n":
            name, _, value = line.decode().partition(":")
            answered[name.lower()] = value.strip()
        expected = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
        assert answered["sec-websocket-accept"] == base64.b64encode(expected).decode()
        for text in (b"one", b"two"):
            client.sendall(frame(text))
            assert stream.read(2 + len(text)) == bytes([0x81, len(text)]) + text
        client.shutdown(socket.SHUT_WR)
        assert stream.read() == b"\x88\x00"


def test_events_arrive_as_they_are_sent(server: Server, box: Sandbox) -> None:
    # control-plane 5.5: streaming bodies pass through.
    host = box.get_host(8000)
    with httpx.stream("GET", f"{server.sandbox_url}/events", headers={"Host": host}) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        lines = answer.iter_lines()
        assert [next(lines), next(lines)] == ["data: first", ""]
        # The second one waits for this.
        assert ask(server, host, "/next").status_code == 200
        assert list(lines) == ["data: second", ""]


def test_a_client_that_closes_its_half_gets_its_answer(server: Server, box: Sandbox) -> None:
    with socket.create_connection(address(server), timeout=20) as client:
        client.sendall(f"POST / HTTP/1.1\r\nHost: {box.get_host(8000)}\r\nConnection: close\r\n"
                       "Content-Length: 4\r\n\r\nbody".encode())
        client.shutdown(socket.SHUT_WR)
        answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(hashlib.sha256(b"body").hexdigest().encode())


def peak(server: Server) -> int:
    """The most memory that the server has had, in MiB."""
    status = pathlib.Path(f"/proc/{server.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) >> 10


def test_a_large_upload_is_streamed(server: Server, box: Sandbox) -> None:
    # control-plane 5.5: without limit; and never held in memory.
    piece, pieces, before = os.urandom(1 << 20), 200, peak(server)
    answer = httpx.post(server.sandbox_url, content=(piece for _ in range(pieces)), timeout=60,
                        headers={"Host": box.get_host(8000), "Content-Length": str(pieces << 20)})
    assert answer.text == hashlib.sha256(piece * pieces).hexdigest()
    assert peak(server) - before < 16


def packages() -> bytes:
    """The HTTP/2 library of the tests' own Python, which is Python only."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for package in (h2, hpack, hyperframe):
            archive.add(pathlib.Path(package.__file__).parent, package.__name__)
    return buffer.getvalue()


def grpc_call(stream: socket.socket, authority: str) -> tuple[dict[bytes, bytes], bytes]:
    """One call that sends two pieces, each after the one before has come back; headers and trailers."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration())
    connection.initiate_connection()
    connection.send_headers(1, [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/pkg.Service/Method"),
        (b":authority", authority.encode()), (b"content-type", b"application/grpc+proto"),
        (b"te", b"trailers")])
    headers, seen, waiting = {}, b"", [b"first", b"second"]
    connection.send_data(1, waiting[0])
    stream.sendall(connection.data_to_send())
    while data := stream.recv(65536):
        for event in connection.receive_data(data):
            if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
                headers |= dict(event.headers)
            elif isinstance(event, h2.events.DataReceived):
                seen += event.data
                if waiting and seen.endswith(waiting[0]):
                    waiting.pop(0)
                    if waiting:
                        connection.send_data(1, waiting[0])
                    else:
                        connection.end_stream(1)
            elif isinstance(event, h2.events.StreamEnded):
                return headers, seen
        stream.sendall(connection.data_to_send())
    raise AssertionError("the connection ended before the call")


def test_grpc_without_tls(server: Server, box: Sandbox) -> None:
    # Issue 4 (4): services that speak HTTP/2 only, with trailers, both ways at once.
    box.files.write("grpc.tar", packages())
    box.files.write("grpc_service.py", GRPC_SERVICE)
    box.commands.run("mkdir packages && tar -xf grpc.tar -C packages")
    start(box, "python3 grpc_service.py 50051", 50051)
    host = box.get_host(50051)
    with socket.create_connection(address(server), timeout=20) as stream:
        headers, seen = grpc_call(stream, host)
    assert seen == b"firstsecond"
    assert headers[b"grpc-status"] == b"0"
    # The service sees what was asked for (control-plane 5.5).
    assert (headers[b"x-authority"], headers[b"x-te"]) == (host.encode(), b"trailers")


def test_ports_that_are_not_public(server: Server) -> None:
    # control-plane 3.1, 5.5 (5), 5.6, 8.19
    network = {"allow_public_traffic": False, "mask_request_host": "localhost:${PORT}"}
    box = server.create(network=network)
    try:
        # Port 49983 is exempt: the SDK works as ever.
        box.files.write("service.py", SERVICE)
        start(box, "python3 service.py 127.0.0.1 8000", 8000)
        host, token = box.get_host(8000), box.traffic_access_token
        message = "Sandbox is secured with traffic access token. "
        for headers, text, title in [
                ({}, "Token header 'e2b-traffic-access-token' is missing", "Missing"),
                ({"e2b-traffic-access-token": "x"},
                 "Provided token in header 'e2b-traffic-access-token' is invalid", "Invalid")]:
            refused = ask(server, host, **headers)
            assert (refused.status_code, refused.headers["Content-Type"]) == (
                403, "application/json; charset=utf-8")
            assert refused.json() == {"code": 403, "sandboxId": box.sandbox_id,
                                      "message": message + text}
            page = ask(server, host, **headers, **{"User-Agent": "Mozilla/5.0"})
            assert (page.status_code, page.headers["Content-Type"]) == (
                403, "text/html; charset=utf-8")
            assert f"{title} Traffic Access Token" in page.text and box.sandbox_id in page.text
        allowed = ask(server, host, **{"e2b-traffic-access-token": token})
        # The mask, and what was asked for (control-plane 5.5, 8.44).
        assert (allowed.status_code, allowed.text) == (200, f"localhost:8000 {host}")
        again = Sandbox.connect(box.sandbox_id, **server.options())
        assert again.traffic_access_token == token
        with server.http() as api:
            detail = api.get(f"/sandboxes/{box.sandbox_id}").json()
        assert detail["network"] == {"allowPublicTraffic": False,
                                     "maskRequestHost": "localhost:${PORT}"}
        assert "trafficAccessToken" not in detail
    finally:
        box.kill()


def test_public_sandboxes_have_no_traffic_token(box: Sandbox) -> None:
    assert box.traffic_access_token is None


def raw_rpc(server: Server, sandbox_id: str, token: str | None) -> httpx.Response:
    headers = {"E2b-Sandbox-Id": sandbox_id, "E2b-Sandbox-Port": "49983",
               **({"X-Access-Token": token} if token else {})}
    return httpx.post(f"{server.sandbox_url}/process.Process/List", headers=headers, json={})


def raw_file(server: Server, sandbox_id: str, token: str | None) -> httpx.Response:
    headers = {"E2b-Sandbox-Id": sandbox_id, "E2b-Sandbox-Port": "49983",
               **({"X-Access-Token": token} if token else {})}
    return httpx.get(f"{server.sandbox_url}/files", headers=headers, params={"path": "/etc/hostname"})


@pytest.mark.parametrize(("path", "member", "secured"), [
    ("/v2/sandboxes", {}, True), ("/v2/sandboxes", {"secure": False}, True),
    ("/sandboxes", {"secure": True}, True), ("/sandboxes", {}, False)])
def test_secured_sandboxes_demand_their_token(
        server: Server, path: str, member: dict[str, bool], secured: bool) -> None:
    # control-plane 3.3, 8.16; executor 3.2: 401 for RPC and files.
    with server.http() as api:
        made = api.post(path, json={"templateID": "base", "timeout": 60, **member}).json()
        sandbox, token = made["sandboxID"], made.get("envdAccessToken")
        assert (token is not None) == secured
        assert api.get(f"/sandboxes/{sandbox}").json().get("envdAccessToken") == token
        for ask_raw in (raw_rpc, raw_file):
            for given in (None, "wrong"):
                refused = ask_raw(server, sandbox, given)
                assert refused.status_code == (401 if secured else 200), refused.text
            assert ask_raw(server, sandbox, token).status_code == 200
        assert api.delete(f"/sandboxes/{sandbox}").status_code == 204


def test_the_sdk_calls_a_wrong_token_an_authentication_error(server: Server, box: Sandbox) -> None:
    # executor 10: 401 becomes AuthenticationException.
    headers = {"E2b-Sandbox-Id": box.sandbox_id, "E2b-Sandbox-Port": "49983", "X-Access-Token": "wrong"}
    stranger = Sandbox(
        sandbox_id=box.sandbox_id, sandbox_domain=box.sandbox_domain, envd_version=box._envd_version,
        envd_access_token="wrong",
        connection_config=ConnectionConfig(extra_sandbox_headers=headers, **server.options()))
    with pytest.raises(AuthenticationException):
        stranger.commands.run("true")
    with pytest.raises(AuthenticationException):
        stranger.files.read("/etc/hostname")


def test_a_client_that_sends_everything_first_gets_its_refusal(server: Server, box: Sandbox) -> None:
    # No reset connection, and no 502 of the proxy, in place of what is wrong.
    headers = {"E2b-Sandbox-Id": box.sandbox_id, "E2b-Sandbox-Port": "49983",
               "X-Access-Token": box._envd_access_token or "", "Content-Type": "application/octet-stream"}
    with httpx.Client(base_url=server.sandbox_url, headers=headers, timeout=60) as client:
        for path, status in (("/nothing", 404), ("/process.Process/List", 415), ("/files?path=/tmp", 400),
                             ("/files?path=/tmp/x&username=nobody-at-all", 401)):
            for _ in range(5):
                assert client.post(path, content=bytes(16 << 20)).status_code == status, path
