"""The load of test_soak.py, as a program: its client's connections end with it.

    soak_load.py SANDBOX-ID COMMANDS TERMINALS FILES WATCH-SECONDS

The environment holds what the SDK needs. Every answer is checked; progress goes to standard output.
"""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from e2b import CommandExitException, FilesystemEventType, PtySize, Sandbox

CONCURRENCY = 32
SIZES = (0, 1, 1000, 40_000, 300_000, 2_000_000)


def check(condition: bool, what: str) -> None:
    if not condition:
        raise AssertionError(what)


class Progress:
    """Says every few seconds how far a phase is."""

    def __init__(self, what: str, total: int | None) -> None:
        self.what, self.total, self.done = what, total, 0
        self.lock = threading.Lock()
        self.said = self.begun = time.monotonic()

    def step(self) -> None:
        with self.lock:
            self.done += 1
            now = time.monotonic()
            if now - self.said >= 5 or self.done == self.total:
                self.said = now
                of = f" of {self.total}" if self.total else ""
                print(f"[soak] {self.what}: {self.done}{of}, {now - self.begun:.0f} s", flush=True)


def in_parallel(what: str, count: int, width: int, call: Callable[[int], None]) -> None:
    progress = Progress(what, count)

    def one(index: int) -> None:
        call(index)
        progress.step()

    with ThreadPoolExecutor(width) as pool:
        for done in [pool.submit(one, index) for index in range(count)]:
            done.result()


def command(sandbox: Sandbox, index: int) -> None:
    """One of the ways that a command is used."""
    run = sandbox.commands.run
    match index % 5:
        case 0:
            check(run(f"echo {index}").stdout == f"{index}\n", "echo")
        case 1:
            try:
                run(f"echo {index} >&2; exit 3")
            except CommandExitException as failure:
                check((failure.exit_code, failure.stderr) == (3, f"{index}\n"), "a failing command")
            else:
                check(False, "a failing command did not fail")
        case 2:
            length = len(run("head -c 200000 /dev/zero | tr '\\0' x").stdout)
            check(length == 200_000, f"{length} of 200000 characters of output")
        case 3:
            handle = run("cat", background=True, stdin=True)
            sandbox.commands.send_stdin(handle.pid, f"{index}\n")
            sandbox.commands.close_stdin(handle.pid)
            check(handle.wait().stdout == f"{index}\n", "input")
        case 4:
            # The client leaves, the process stays, and another call ends it.
            handle = run("sleep 600", background=True, timeout=0)
            handle.disconnect()
            check(sandbox.commands.kill(handle.pid), "kill")


def terminal(sandbox: Sandbox, index: int) -> None:
    """Opens a terminal, uses it, and leaves it in one of three ways."""
    shell = sandbox.pty.create(PtySize(rows=24, cols=80), timeout=0)
    sandbox.pty.resize(shell.pid, PtySize(rows=30, cols=100 + index % 10))
    sandbox.pty.send_stdin(shell.pid, f"echo [$((21 * 2))-{index}-$(tput cols)]\n".encode())
    seen, wanted = b"", f"[42-{index}-{100 + index % 10}]".encode()
    for _, _, data in shell:
        seen += data or b""
        if wanted in seen:
            break
    check(wanted in seen, f"the terminal said {seen!r}")
    match index % 3:
        case 0:
            sandbox.pty.send_stdin(shell.pid, b"exit\n")
            check(sandbox.pty.connect(shell.pid).wait().exit_code == 0, "exit")
            shell.disconnect()
        case 1:
            check(shell.kill(), "kill of a terminal")
            shell.disconnect()
        case 2:
            shell.disconnect()
            check(sandbox.pty.kill(shell.pid), "kill of a terminal that was left")


def file(sandbox: Sandbox, index: int) -> None:
    size = SIZES[index % len(SIZES)]
    content = (hashlib.sha256(str(index).encode()).digest() * (size // 32 + 1))[:size]
    path = f"soak/{index % 7}/{index}"
    sandbox.files.write(path, content)
    check(bytes(sandbox.files.read(path, format="bytes")) == content, f"{path} of {size} bytes")
    sandbox.files.remove(path)


def watch(sandbox: Sandbox, seconds: int) -> None:
    """Files come and go below a watched directory while commands run; every one has to be told."""
    sandbox.files.make_dir("watched/deep")
    handle = sandbox.files.watch_dir("watched", recursive=True)
    progress = Progress("rounds of watching", None)
    made: set[str] = set()
    told: set[str] = set()
    stop = threading.Event()

    def load() -> None:
        index = 0
        while not stop.is_set():
            command(sandbox, index)
            index += 1

    def collect() -> None:
        told.update(event.name for event in handle.get_new_events()
                    if event.type == FilesystemEventType.CREATE)

    loaders = ThreadPoolExecutor(4)
    running = [loaders.submit(load) for _ in range(4)]
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        name = f"deep/{progress.done}"
        sandbox.files.write(f"watched/{name}", b"x" * 1000)
        sandbox.files.remove(f"watched/{name}")
        made.add(name)
        collect()
        progress.step()
    stop.set()
    loaders.shutdown()
    for load_of_one in running:
        load_of_one.result()
    until = time.monotonic() + 20
    while not made <= told:
        check(time.monotonic() < until, f"never told of {sorted(made - told)[:5]}")
        collect()
    handle.stop()


def main() -> None:
    sandbox = Sandbox.connect(sys.argv[1])
    commands, terminals, files, seconds = map(int, sys.argv[2:])
    in_parallel("commands", commands, CONCURRENCY, lambda index: command(sandbox, index))
    in_parallel("terminals", terminals, 8, lambda index: terminal(sandbox, index))
    in_parallel("files", files, 8, lambda index: file(sandbox, index))
    watch(sandbox, seconds)


main()
