"""What a user does with the SDK, for any release of its 2.x line. Each call is tried by itself; the result is a line of
JSON: how many were tried, and what failed with what. test_releases.py runs it with one release after another."""

from __future__ import annotations

import inspect
import json
import ssl
import sys
import time
import urllib.request
from collections.abc import Callable
from typing import Any

from e2b import CommandExitException, PtySize, Sandbox

tried: list[str] = []
failed: dict[str, str] = {}


class Unset:
    """What a call returned that failed: nothing can be done with it, and those that try fail too."""


def call(name: str, work: Callable[[], Any]) -> Any:
    tried.append(name)
    try:
        return work()
    except Exception as error:
        failed[name] = f"{type(error).__name__}: {error}"[:300]
        return Unset()


def equal(got: object, expected: object) -> None:
    assert got == expected, f"{got!r} instead of {expected!r}"


def raises(expected: str, work: Callable[[], object]) -> None:
    try:
        work()
    except Exception as error:
        assert expected in {kind.__name__ for kind in type(error).__mro__}, f"{type(error).__name__}: {error}"
        return
    raise AssertionError(f"no {expected}")


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "not within 20 s"
        time.sleep(0.02)


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20, context=ssl.create_default_context()) as answer:
        return answer.read().decode()


def failing(sandbox: Sandbox) -> None:
    try:
        sandbox.commands.run("echo why >&2; exit 7")
    except CommandExitException as error:
        equal((error.exit_code, error.stderr), (7, "why\n"))
        return
    raise AssertionError("a failing command did not fail")


def streaming(sandbox: Sandbox) -> None:
    heard: list[str] = []
    sandbox.commands.run("echo out; echo err >&2", on_stdout=heard.append, on_stderr=heard.append)
    equal(sorted(heard), ["err\n", "out\n"])


def input_of(sandbox: Sandbox) -> None:
    # Releases that know no such option always give one.
    options = {"stdin": True} if "stdin" in inspect.signature(sandbox.commands._start).parameters else {}
    handle = sandbox.commands.run("read line; echo got $line", background=True, **options)
    sandbox.commands.send_stdin(handle.pid, "it\n")
    equal(handle.wait().stdout, "got it\n")


def joined(sandbox: Sandbox) -> None:
    started = sandbox.commands.run("sleep 100", background=True)
    assert started.pid in [process.pid for process in sandbox.commands.list()]
    again = sandbox.commands.connect(started.pid)
    assert sandbox.commands.kill(started.pid)
    raises("CommandExitException", again.wait)


def watched(sandbox: Sandbox, folder: str) -> None:
    sandbox.files.make_dir(folder)
    watch = sandbox.files.watch_dir(folder)
    sandbox.files.write(f"{folder}/new", "1")
    names: set[str] = set()

    def told() -> bool:
        names.update(event.name for event in watch.get_new_events())
        return "new" in names

    until(told)
    watch.stop()


def terminal(sandbox: Sandbox) -> None:
    shell = sandbox.pty.create(PtySize(rows=24, cols=80), timeout=0)
    sandbox.pty.resize(shell.pid, PtySize(rows=30, cols=101))
    sandbox.pty.send_stdin(shell.pid, b"echo [$((6 * 7))-$(tput cols)]\n")
    seen = b""
    for _, _, data in shell:
        seen += data or b""
        if b"[42-101]" in seen:
            break
    assert b"[42-101]" in seen, seen
    assert sandbox.pty.kill(shell.pid)


def use(who: str, box: Sandbox) -> None:
    """Everything inside a sandbox, by one object for it."""
    folder = f"of-{who}"
    for name, work in {
        "run": lambda: equal(box.commands.run("id -un; pwd").stdout, "user\n/home/user\n"),
        "run as root": lambda: equal(box.commands.run("id -un; echo $A", user="root", envs={"A": "1"}, cwd="/").stdout,
                                     "root\n1\n"),
        "a command fails": lambda: failing(box),
        "output arrives": lambda: streaming(box),
        "send_stdin": lambda: input_of(box),
        "list, connect, kill": lambda: joined(box),
        "write": lambda: box.files.write(f"{folder}/a", "text"),
        "write bytes": lambda: box.files.write(f"{folder}/b", bytes(range(256))),
        "write_files": lambda: box.files.write_files([{"path": f"{folder}/{n}", "data": str(n)} for n in range(3)]),
        "read": lambda: equal(box.files.read(f"{folder}/a"), "text"),
        "read bytes": lambda: equal(bytes(box.files.read(f"{folder}/b", format="bytes")), bytes(range(256))),
        "read a stream": lambda: equal(b"".join(box.files.read(f"{folder}/a", format="stream")), b"text"),
        "files.list": lambda: equal(sorted(entry.name for entry in box.files.list(folder)), ["0", "1", "2", "a", "b"]),
        "files.get_info": lambda: equal(box.files.get_info(f"{folder}/a").size, 4),
        "make_dir": lambda: equal((box.files.make_dir(f"{folder}/d"), box.files.make_dir(f"{folder}/d")), (True, False)),
        "rename": lambda: equal(box.files.rename(f"{folder}/a", f"{folder}/c").name, "c"),
        "exists": lambda: equal((box.files.exists(f"{folder}/c"), box.files.exists(f"{folder}/a")), (True, False)),
        "remove": lambda: box.files.remove(f"{folder}/c"),
        "read what is not there": lambda: raises("NotFoundException", lambda: box.files.read(f"{folder}/c")),
        "watch_dir": lambda: watched(box, f"{folder}/watched"),
        "pty": lambda: terminal(box),
        "is_running": lambda: equal(box.is_running(), True),
    }.items():
        call(f"{who}: {name}", work)


def signed(box: Sandbox) -> None:
    box.files.write("signed.txt", "signed")
    equal(fetch(box.download_url("signed.txt")), "signed")


def pause(box: Sandbox) -> object:
    # Its first name.
    return box.pause() if hasattr(box, "pause") else box.beta_pause()


def main() -> None:
    template = sys.argv[1]
    box = call("create", lambda: Sandbox.create(template, timeout=300, metadata={"sdk": "any"}, envs={"FROM_CREATE": "1"}))
    use("created", box)
    sandbox_id = getattr(box, "sandbox_id", "inone")
    call("get_info", lambda: equal(box.get_info().sandbox_id, sandbox_id))
    call("list", lambda: equal(sandbox_id in [item.sandbox_id for item in Sandbox.list().next_items()], True))
    call("set_timeout", lambda: box.set_timeout(600))
    call("get_host", lambda: equal(box.get_host(8000).startswith(f"8000-{sandbox_id}."), True))
    call("download_url", lambda: signed(box))
    use("static connect", call("Sandbox.connect", lambda: Sandbox.connect(sandbox_id, timeout=300)))
    use("instance connect", call("connect", lambda: box.connect(timeout=300)))
    call("envs of the create", lambda: equal(box.commands.run("echo $FROM_CREATE").stdout, "1\n"))
    if "pause" in sys.argv[2:]:
        call("pause", lambda: pause(box))
        resumed = call("Sandbox.connect, paused", lambda: Sandbox.connect(sandbox_id, timeout=300))
        call("run, resumed", lambda: equal(resumed.commands.run("ls of-created/b").stdout, "of-created/b\n"))
    call("kill", lambda: equal(box.kill(), True))
    call("kill what is gone", lambda: equal(Sandbox.kill(sandbox_id), False))
    call("connect to what is not there", lambda: raises("NotFoundException", lambda: Sandbox.connect(sandbox_id)))
    print(json.dumps({"tried": len(tried), "failed": failed}))


main()
