"""Stands between the server and the real engine, so that a test can act at a named point of a call."""

from __future__ import annotations

import json
import pathlib
import re
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

ENGINE = "/var/run/docker.sock"


@dataclass
class Rule:
    """What happens at the first call whose request line matches."""

    pattern: str
    # Whether it happens before the engine sees the call, or after it has answered and before the
    # server sees that.
    before: bool
    action: Callable[[], None]
    # What the server is told in the engine's place; the engine then never sees the call.
    answer: bytes = b""
    fired: threading.Event = field(default_factory=threading.Event)

    def matches(self, line: str) -> bool:
        return not self.fired.is_set() and re.search(self.pattern, line) is not None


class EngineProxy:
    """A Unix socket that leads to the engine. Every call has a connection of its own."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.rules: list[Rule] = []
        self.firing = threading.Lock()
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(path))
        self.listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def host(self) -> str:
        return f"unix://{self.path}"

    def at(self, pattern: str, action: Callable[[], None], *, before: bool) -> Rule:
        rule = Rule(pattern, before, action)
        self.rules.append(rule)
        return rule

    def refuse(self, pattern: str, status: str, message: str) -> Rule:
        """Answers a call as an engine would that cannot do it."""
        body = json.dumps({"message": message}).encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        rule = Rule(pattern, True, lambda: None, f"{head}Connection: close\r\n\r\n".encode() + body)
        self.rules.append(rule)
        return rule

    def close(self) -> None:
        """From now on nobody answers."""
        # Closing alone does not wake the thread that accepts.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        engine = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with client, engine:
            head = b""
            while b"\r\n\r\n" not in head:
                received = client.recv(65536)
                if not received:
                    return
                head += received
            line, rest = head.split(b"\r\n", 1)
            hit = [rule for rule in self.rules if rule.matches(line.decode())]
            self._fire(rule for rule in hit if rule.before)
            for rule in hit:
                if rule.answer:
                    client.sendall(rule.answer)
                    return
            engine.connect(ENGINE)
            engine.sendall(line + b"\r\nConnection: close\r\n" + rest)
            upload = threading.Thread(target=_relay, args=(client, engine), daemon=True)
            upload.start()
            first = engine.recv(65536)
            self._fire(rule for rule in hit if not rule.before)
            try:
                client.sendall(first)
            except OSError:
                return
            _relay(engine, client)

    def _fire(self, rules: Iterable[Rule]) -> None:
        for rule in rules:
            # Two calls at once may both match.
            with self.firing:
                first = not rule.fired.is_set()
                rule.fired.set()
            if first:
                rule.action()


def _relay(source: socket.socket, target: socket.socket) -> None:
    try:
        while received := source.recv(65536):
            target.sendall(received)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        # One side has gone; the other is closed by whoever owns it.
        return
