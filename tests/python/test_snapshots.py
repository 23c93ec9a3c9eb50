"""Snapshots: taken, named, listed, started from, deleted (control-plane 3.5, 4.2, 8.27)."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from conftest import Server, until
from e2b import Sandbox
from e2b.exceptions import SandboxException
from lifecycle import STARTED, UNKNOWN, Rest, ask, serve_counter
from snapshots import delete, listed, quoted, read, take


def test_the_source_runs_on_and_files_are_in_the_copy(rest: Rest, server: Server) -> None:
    sandbox = rest.create(timeout=600, envVars={"FROM_CREATE": "source"}, metadata={"a": "b"})
    client = rest.sdk(sandbox)
    client.files.write("kept.txt", "kept")
    client.commands.run("sudo sh -c 'echo mine > /etc/mine'; chmod 640 kept.txt; ln -s kept.txt link")
    pid = serve_counter(client)
    before, boot = rest.detail(sandbox), client.commands.run(STARTED).stdout
    snapshot = take(rest, sandbox)
    assert snapshot["names"] == []
    template, _, tag = str(snapshot["snapshotID"]).partition(":")
    assert tag == "default" and len(template) == 20 and template.isalnum()
    # The source: same run, same time, same processes.
    assert rest.detail(sandbox) == before
    assert ask(server, sandbox).text == f"1 {pid}"
    # A change afterwards is not in it.
    client.files.write("kept.txt", "changed")
    for reference in (snapshot["snapshotID"], template):
        copy = rest.created(reference)
        # control-plane 8.27
        assert copy["templateID"] == template and copy["sandboxID"] != sandbox
        copied = rest.sdk(copy["sandboxID"])
        assert copied.files.read("kept.txt") == copied.files.read("link") == "kept"
        assert copied.commands.run("cat /etc/mine; stat -c '%U %a' kept.txt; id -un; pwd").stdout == (
            "mine\nuser 640\nuser\n/home/user\n")
        # What the create of the source asked for is not its template's.
        assert copied.commands.run("echo [$FROM_CREATE] $E2B_SANDBOX_ID").stdout == f"[] {copy['sandboxID']}\n"
        assert "metadata" not in rest.detail(copy["sandboxID"])
        assert copied.commands.run(STARTED).stdout != boot


def test_the_copy_shares_nothing_with_its_source(rest: Rest) -> None:
    source = rest.created()
    snapshot = take(rest, source["sandboxID"])["snapshotID"]
    first, second = rest.created(snapshot), rest.created(snapshot)
    tokens = {made["envdAccessToken"] for made in (source, first, second)}
    assert len(tokens) == 3
    look = "hostname; cat /etc/machine-id 2>/dev/null; true"
    names = {rest.sdk(made["sandboxID"]).commands.run(look).stdout for made in (source, first, second)}
    assert len(names) == 3
    rest.sdk(first["sandboxID"]).files.write("only", "here")
    assert not rest.sdk(second["sandboxID"]).files.exists("only")


@pytest.mark.parametrize("memory", [True, False])
def test_both_kinds_start(rest: Rest, memory: bool) -> None:
    sandbox = rest.create()
    rest.sdk(sandbox).files.write("version", "1")
    assert read(rest, str(take(rest, sandbox, memory=memory)["snapshotID"])) == "1"
    assert rest.state(sandbox) == "running"


def test_a_named_one_is_replaced_by_the_next(rest: Rest, name: str, slug: str) -> None:
    sandbox = rest.create()
    client = rest.sdk(sandbox)
    snapshots = []
    for version in ("1", "2"):
        client.files.write("version", version)
        snapshots.append(take(rest, sandbox, name=name))
        # The newest at once, by each of its names.
        for reference in (name, f"{name}:default", f"{slug}/{name}", snapshots[-1]["snapshotID"], name.upper()):
            assert read(rest, str(reference)) == version, reference
    assert snapshots[0] == snapshots[1] == {"snapshotID": f"{slug}/{name}:default", "names": [f"{slug}/{name}"]}
    template = rest.created(name)["templateID"]
    assert read(rest, str(template)) == "2"
    assert rest.http.post("/v2/sandboxes", json={"templateID": f"{slug}/{template}"}).status_code == 404


def test_tags_are_builds_of_one_template(rest: Rest, name: str, slug: str) -> None:
    sandbox = rest.create()
    client = rest.sdk(sandbox)
    for version in ("v1", "v2"):
        client.files.write("version", version)
        assert take(rest, sandbox, name=f"{slug}/{name}:{version}") == {
            "snapshotID": f"{slug}/{name}:{version}", "names": [f"{slug}/{name}"]}
    assert (read(rest, f"{name}:v1"), read(rest, f"{name}:v2")) == ("v1", "v2")
    assert rest.created(f"{name}:v1")["templateID"] == rest.created(f"{slug}/{name}:v2")["templateID"]
    missing = rest.http.post("/v2/sandboxes", json={"templateID": f"{name}:v3"})
    assert missing.status_code == 404
    assert missing.json()["message"] == f"tag 'v3' does not exist for template '{name}'"
    # No build has the tag `default` yet.
    assert rest.http.post("/v2/sandboxes", json={"templateID": name}).status_code == 404
    tags = rest.http.get(f"/templates/{quoted(f'{slug}/{name}')}/tags")
    if tags.status_code != 501:
        assert {tag["tag"] for tag in tags.json()} == {"v1", "v2"}


def test_the_list(rest: Rest, name: str, slug: str) -> None:
    one, two = rest.create(), rest.create()
    first, second = take(rest, one), take(rest, one, name=name)
    third, fourth = take(rest, two), take(rest, two, name=f"{name}:v2")
    # Newest first.
    assert listed(rest)[:4] == [fourth, third, second, first]
    assert listed(rest, sandboxID=one) == [second, first]
    assert listed(rest, sandboxID=two) == [fourth, third]
    assert listed(rest, sandboxID=UNKNOWN) == []
    # By name: one entry a template, its newest tag; with a tag, only that.
    for reference in (name, f"{slug}/{name}"):
        assert listed(rest, name=reference) == [fourth]
        assert listed(rest, name=f"{reference}:default") == [second]
        assert listed(rest, name=f"{reference}:v2") == [fourth]
    template = str(first["snapshotID"]).partition(":")[0]
    assert listed(rest, name=template) == listed(rest, name=f"{template}:default") == [first]
    for nothing in ("no-such-name", f"{name}:v9", f"{slug}/no-such-name"):
        assert listed(rest, name=nothing) == []
    assert rest.http.get("/snapshots", params={"name": f"foreign/{name}"}).status_code == 400
    # They outlive what they were taken from.
    rest.does("kill", one, 204)
    assert listed(rest, sandboxID=one) == [second, first]


def test_the_list_is_paged(rest: Rest) -> None:
    sandbox = rest.create()
    expected = [take(rest, sandbox) for _ in range(3)][::-1]
    query: dict[str, object] = {"sandboxID": sandbox, "limit": 1}
    seen: list[object] = []
    while True:
        answer = rest.http.get("/snapshots", params=query)
        assert len(answer.json()) == 1
        seen += answer.json()
        if not answer.headers.get("X-Next-Token"):
            break
        query["nextToken"] = answer.headers["X-Next-Token"]
    assert seen == expected
    for bad in ({"limit": 0}, {"limit": 101}, {"limit": "x"}, {"nextToken": "garbage"}):
        assert rest.http.get("/snapshots", params=bad).status_code == 400, bad


def test_a_deleted_one_is_gone(rest: Rest, name: str) -> None:
    sandbox = rest.create()
    for snapshot in (take(rest, sandbox), take(rest, sandbox, name=name)):
        reference = str(snapshot["snapshotID"])
        assert delete(rest, reference) == 204
        assert delete(rest, reference) == 404
        assert rest.http.post("/v2/sandboxes", json={"templateID": reference}).status_code == 404
    assert listed(rest, sandboxID=sandbox) == []


def test_one_that_sandboxes_were_started_from_stays_until_they_are_gone(rest: Rest) -> None:
    """control-plane 3.9: 400 while running or paused ones are based on it."""
    sandbox = rest.create()
    rest.sdk(sandbox).files.write("version", "1")
    snapshot = str(take(rest, sandbox)["snapshotID"])
    running, paused = rest.create(snapshot), rest.create(snapshot)
    for memory in (True, False):
        rest.does("pause", paused, 204, body={"memory": memory})
        assert delete(rest, snapshot) == 400
        rest.does("connect", paused, 201)
    rest.does("kill", running, 204)
    assert delete(rest, snapshot) == 400
    assert rest.sdk(paused).files.read("version") == "1"
    rest.does("kill", paused, 204)
    assert delete(rest, snapshot) == 204
    # Its source was never based on it.
    assert rest.state(sandbox) == "running"


def test_the_copy_of_a_copy_needs_only_its_own(rest: Rest) -> None:
    sandbox = rest.create()
    rest.sdk(sandbox).files.write("version", "1")
    first = str(take(rest, sandbox)["snapshotID"])
    copy = rest.create(first)
    second = str(take(rest, copy)["snapshotID"])
    rest.does("kill", copy, 204)
    assert delete(rest, first) == 204
    assert read(rest, second) == "1"


def test_by_each_of_its_references_it_is_deleted(rest: Rest, name: str, slug: str) -> None:
    sandbox = rest.create()
    for reference in (name, f"{slug}/{name}", f"{slug}/{name}:default"):
        take(rest, sandbox, name=name)
        assert delete(rest, reference) == 204
        assert listed(rest, name=name) == []
    template = str(take(rest, sandbox)["snapshotID"]).partition(":")[0]
    assert delete(rest, template) == 204


def test_a_snapshot_of_what_started_from_one(rest: Rest) -> None:
    sandbox = rest.create()
    for depth in range(4):
        rest.sdk(sandbox).commands.run(f"echo {depth} >> depths")
        sandbox = rest.create(str(take(rest, sandbox)["snapshotID"]))
    assert rest.sdk(sandbox).files.read("depths") == "0\n1\n2\n3\n"


def test_what_is_written_while_it_is_taken(rest: Rest) -> None:
    """Nothing is lost in the source, and the copy is a moment of it: lines without a gap."""
    sandbox = rest.create()
    client = rest.sdk(sandbox)
    writer = client.commands.run("n=0; while [ ! -e stop ]; do echo $((n += 1)) >> lines; done; echo end >> lines",
                                 background=True, timeout=0)
    until("it writes", lambda: client.files.exists("lines"))
    snapshots = [take(rest, sandbox)["snapshotID"] for _ in range(3)]
    client.files.write("stop", "")
    writer.wait()
    lines = client.files.read("lines").split()
    assert lines == [*map(str, range(1, len(lines))), "end"]
    lengths = []
    for snapshot in snapshots:
        text = read(rest, str(snapshot), "lines")
        whole = text.split("\n")[:-1]
        assert whole == [str(n) for n in range(1, len(whole) + 1)]
        lengths.append(len(whole))
    assert lengths == sorted(lengths) and lengths[0] < len(lines)


def test_while_it_is_taken_a_request_gets_its_answer(rest: Rest, server: Server) -> None:
    sandbox = rest.create()
    serve_counter(rest.sdk(sandbox))
    done = threading.Event()
    statuses: list[int] = []

    def request() -> None:
        while not done.is_set():
            statuses.append(ask(server, sandbox).status_code)

    background = threading.Thread(target=request)
    background.start()
    for _ in range(3):
        take(rest, sandbox)
    done.set()
    background.join(30)
    assert statuses and set(statuses) == {200}


def test_over_a_restart_of_the_server(own_server: Callable[..., Server], name: str) -> None:
    server = own_server()
    rest = Rest(server)
    sandbox = rest.create()
    rest.sdk(sandbox).files.write("version", "1")
    snapshot = take(rest, sandbox, name=name)
    server.kill9()
    server.start()
    again = Rest(server)
    assert listed(again, sandboxID=sandbox) == [snapshot]
    assert read(again, name) == "1"
    again.does("kill", sandbox, 204)
    assert delete(again, name) == 204


def test_the_sdks_calls(server: Server, name: str) -> None:
    options = server.options()
    sandbox = server.create()
    try:
        sandbox.files.write("version", "sdk")
        named = sandbox.create_snapshot(name=name)
        other = Sandbox.create_snapshot(sandbox.sandbox_id, mode="filesystem", **options)
        assert named.snapshot_id.endswith(f"/{name}:default") and other.names == []
        pages = sandbox.list_snapshots(limit=1)
        shown = []
        while pages.has_next:
            shown += pages.next_items()
        assert [s.snapshot_id for s in shown] == [other.snapshot_id, named.snapshot_id]
        assert [s.snapshot_id for s in Sandbox.list_snapshots(name=name, **options).next_items()] == [
            named.snapshot_id]
        for snapshot in (named, other):
            with Sandbox.create(snapshot.snapshot_id, **options) as copy:
                assert copy.files.read("version") == "sdk"
            assert Sandbox.delete_snapshot(snapshot.snapshot_id, **options)
            assert not Sandbox.delete_snapshot(snapshot.snapshot_id, **options)
        with pytest.raises(SandboxException, match="400"):
            sandbox.create_snapshot(name="foreign-team/x")
    finally:
        sandbox.kill()
