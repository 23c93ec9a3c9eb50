"""A pause that keeps the file system only: a resume is a new start with the same files and the same identity
(control-plane 3.4, 8.13)."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from conftest import Server, docker, until
from e2b import Sandbox
from e2b.exceptions import NotFoundException, SandboxException
from lifecycle import BOOT_ID, STARTED, Rest, ask, serve_counter


@pytest.fixture
def sandbox(server: Server) -> Iterator[Sandbox]:
    made = server.create(timeout=600, envs={"FROM_CREATE": "yes"}, metadata={"a": "b"})
    yield made
    made.kill()


def pause_and_connect(server: Server, sandbox: Sandbox) -> Sandbox:
    assert sandbox.pause(mode="filesystem")
    return Sandbox.connect(sandbox.sandbox_id, timeout=600, **server.options())


def test_files_stay_and_processes_do_not(server: Server, sandbox: Sandbox) -> None:
    sandbox.files.write("kept.txt", "kept")
    sandbox.commands.run("sudo sh -c 'echo mine > /etc/mine'; ln -s kept.txt link; mkdir -m 700 own; "
                         "echo x > /dev/shm/in-memory; chmod +x kept.txt")
    before = sandbox.commands.run("stat -c '%n %U %a' kept.txt own link").stdout
    pid = serve_counter(sandbox)
    boot = sandbox.commands.run(STARTED).stdout
    again = pause_and_connect(server, sandbox)
    assert again.commands.list() == []
    assert again.files.read("kept.txt") == again.files.read("link") == "kept"
    assert again.commands.run("stat -c '%n %U %a' kept.txt own link; cat /etc/mine").stdout == before + "mine\n"
    assert not again.files.exists("/dev/shm/in-memory")
    assert again.commands.run(STARTED).stdout not in ("", boot)
    with pytest.raises(NotFoundException):
        again.commands.connect(pid)
    assert ask(server, again).json()["message"] == "The sandbox is running but port is not open"


@pytest.mark.parametrize("memory", [True, False], ids=["memory kept", "file system only"])
def test_the_boot_id_tells_a_start_from_a_resume(server: Server, memory: bool) -> None:
    """control-plane 8.13, read by a command, by root, and by the files API."""
    sandbox = server.create(metadata={"session": uuid.uuid4().hex})
    try:
        seen = [sandbox.commands.run(BOOT_ID).stdout]
        for _ in range(3):
            assert sandbox.pause(mode="full" if memory else "filesystem")
            sandbox.connect(timeout=600)
            boot = sandbox.commands.run(BOOT_ID).stdout
            assert uuid.UUID(boot.strip())
            assert sandbox.commands.run(BOOT_ID, user="root").stdout == boot
            assert sandbox.files.read("/proc/sys/kernel/random/boot_id") == boot
            seen.append(boot)
        assert len(set(seen)) == (1 if memory else 4), seen
    finally:
        sandbox.kill()


def test_user_directory_and_environment_are_the_creates(server: Server, sandbox: Sandbox) -> None:
    ask_who = "id -un; pwd; echo $FROM_CREATE; echo $E2B_SANDBOX_ID; hostname"
    before = sandbox.commands.run(ask_who).stdout
    again = pause_and_connect(server, sandbox)
    assert again.commands.run(ask_who).stdout == before
    assert before.split()[:4] == ["user", "/home/user", "yes", sandbox.sandbox_id]
    info = again.get_info()
    assert (info.name, info.metadata) == ("base", {"a": "b"})
    assert again._envd_access_token == sandbox._envd_access_token
    assert sandbox.commands.run("sudo id -u").stdout == "0\n"


def test_limits_and_boundary_are_the_same(server: Server, sandbox: Sandbox) -> None:
    look = ("nproc; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max 2>/dev/null; df -k --output=size /dev/shm; "
            "grep -E '^(Cap|Seccomp|NoNewPrivs)' /proc/self/status; cat /etc/hosts /etc/resolv.conf; "
            "stat -c %a /tmp; ls /.sandyard 2>&1")
    before = sandbox.commands.run(look).stdout
    assert pause_and_connect(server, sandbox).commands.run(look).stdout == before


def test_no_container_runs_meanwhile_and_none_is_left(server: Server, rest: Rest) -> None:
    sandbox = rest.create()
    container = server.container(sandbox)
    rest.does("pause", sandbox, 204, body={"memory": False})
    assert docker("inspect", "--format", "{{.State.Running}}", container) == "false\n"
    rest.does("kill", sandbox, 204)
    until("its container is gone", lambda: container not in server.containers())


def test_many_times_and_after_pauses_of_the_other_kind(server: Server, sandbox: Sandbox) -> None:
    for n, mode in enumerate(["filesystem", "full", "filesystem", "full", "full", "filesystem"]):
        sandbox.commands.run(f"echo {n} >> turns")
        serve_counter(sandbox)
        assert sandbox.pause(mode=mode)
        sandbox.connect(timeout=600)
        if mode == "full":
            assert ask(server, sandbox).text.startswith("1 ")
            sandbox.commands.run("pkill -f counter.py")
            until("the counter ended", lambda: sandbox.commands.list() == [])
        else:
            assert sandbox.commands.list() == []
    assert sandbox.files.read("turns") == "".join(f"{n}\n" for n in range(6))


def test_a_reboot_of_one_with_memory(server: Server, sandbox: Sandbox) -> None:
    """control-plane 3.4, `memory: false` at connect: a cold boot, or a refusal; never silently the memory."""
    sandbox.files.write("kept.txt", "kept")
    boot = sandbox.commands.run(STARTED).stdout
    serve_counter(sandbox)
    assert sandbox.pause()
    try:
        again = Sandbox.connect(sandbox.sandbox_id, on_resume="reboot", **server.options())
    except SandboxException as refused:
        assert getattr(refused, "status_code", None) == 400, refused
        assert Rest(server).state(sandbox.sandbox_id) == "paused"
        return
    assert again.commands.list() == []
    assert again.files.read("kept.txt") == "kept"
    assert again.commands.run(STARTED).stdout != boot


def test_a_reboot_of_a_running_one_changes_nothing(server: Server, sandbox: Sandbox) -> None:
    boot = sandbox.commands.run(STARTED).stdout
    again = Sandbox.connect(sandbox.sandbox_id, on_resume="reboot", **server.options())
    assert again.commands.run(STARTED).stdout == boot


def test_the_deprecated_words_for_it(server: Server, sandbox: Sandbox) -> None:
    boot = sandbox.commands.run(STARTED).stdout
    assert sandbox.pause(keep_memory=False)
    assert Sandbox.connect(sandbox.sandbox_id, **server.options()).commands.run(STARTED).stdout != boot
