"""What `scripts/bench` needs to see where time goes: a bare socket in the SDK's place, and a server that
only replays a recorded answer in sandyard's."""

from __future__ import annotations

import json
import multiprocessing
import socket
import threading
from typing import Self

SOME = 1 << 20
END_OF_HEAD = b"\r\n\r\n"
LAST_CHUNK = b"\r\n0\r\n\r\n"


class Peer:
    """One kept-alive HTTP/1.1 connection without a library."""

    def __init__(self, address: tuple[str, int], headers: dict[str, str]) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        lines = {"Host": f"{address[0]}:{address[1]}", "Accept-Encoding": "identity", **headers}
        self.headers = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.buffer = bytearray(SOME)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def request(self, method: str, target: str, content_type: str = "text/plain",
                body: bytes = b"", keep: bool = False) -> bytes:
        """Sends a request and reads its answer to the end; returns the answer as it was on the wire,
        without its body unless that is to be kept."""
        head = (f"{method} {target} HTTP/1.1\r\n{self.headers}Content-Type: {content_type}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n").encode()
        if len(body) < SOME:
            self.socket.sendall(head + body)
        else:
            self.socket.sendall(head)
            self.socket.sendall(body)
        got = bytearray()
        while END_OF_HEAD not in got:
            got += self.receive()
        end = got.index(END_OF_HEAD) + len(END_OF_HEAD)
        lines = got[:end].decode("latin-1").split("\r\n")
        if int(lines[0].split()[1]) >= 300:
            raise RuntimeError(f"{method} {target}: {bytes(got)!r}")
        fields = dict(line.lower().split(": ", 1) for line in lines[1:-2])
        if "chunked" in fields.get("transfer-encoding", ""):
            tail = bytes(got[-len(LAST_CHUNK):])
            while tail != LAST_CHUNK:
                some = self.receive()
                tail = (tail + some[-len(LAST_CHUNK):])[-len(LAST_CHUNK):]
                if keep:
                    got += some
        else:
            left = int(fields.get("content-length", 0)) - (len(got) - end)
            while left > 0:
                some = self.receive()
                left -= len(some)
                if keep:
                    got += some
        return bytes(got)

    def receive(self) -> memoryview:
        count = self.socket.recv_into(self.buffer)
        if count == 0:
            raise RuntimeError("the connection was closed before the answer's end")
        return memoryview(self.buffer)[:count]

    def start(self, command: str, keep: bool = False) -> bytes:
        """Runs a command as the SDKs do, to its end."""
        message = json.dumps({"process": {"cmd": "/bin/bash", "args": ["-l", "-c", command]},
                              "stdin": False}).encode()
        envelope = b"\0" + len(message).to_bytes(4, "big") + message
        return self.request("POST", "/process.Process/Start", "application/connect+json", envelope,
                            keep)


class Replay:
    """A server in a process of its own that answers whatever it is asked with one recorded answer: what
    a client's call takes when the server takes nothing."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address: tuple[str, int] = self.listener.getsockname()
        # By fork: a spawned interpreter would run the main program again.
        self.process = multiprocessing.get_context("fork").Process(target=self.serve, daemon=True)

    def __enter__(self) -> Self:
        self.process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()
        self.listener.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.address[1]}"

    def serve(self) -> None:
        while True:
            accepted, _ = self.listener.accept()
            threading.Thread(target=self.converse, args=(accepted,), daemon=True).start()

    def converse(self, accepted: socket.socket) -> None:
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        buffer = bytearray(SOME)
        got = b""
        while True:
            while END_OF_HEAD not in got:
                count = accepted.recv_into(buffer)
                if count == 0:
                    return
                got += buffer[:count]
            head, _, rest = got.partition(END_OF_HEAD)
            lines = head.decode("latin-1").split("\r\n")
            fields = dict(line.lower().split(": ", 1) for line in lines[1:])
            if "chunked" in fields.get("transfer-encoding", ""):
                tail = (b"\r\n" + rest)[-len(LAST_CHUNK):]
                while tail != LAST_CHUNK:
                    count = accepted.recv_into(buffer)
                    if count == 0:
                        return
                    tail = (tail + buffer[max(0, count - len(LAST_CHUNK)):count])[-len(LAST_CHUNK):]
            else:
                left = int(fields.get("content-length", 0)) - len(rest)
                while left > 0:
                    count = accepted.recv_into(buffer)
                    if count == 0:
                        return
                    left -= count
            got = b""
            accepted.sendall(self.answer)
