"""Snapshots of other teams, and names and bodies that are refused (control-plane 3.5, 4.2)."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from conftest import Server
from lifecycle import UNKNOWN, Rest
from snapshots import delete, listed, read, take


@pytest.fixture(scope="module")
def stranger(server: Server) -> Iterator[Rest]:
    made = Rest(server, server.command("team", "add", "snapshots").stdout.strip())
    yield made
    made.close()


def test_another_teams_does_not_exist(rest: Rest, stranger: Rest, name: str, slug: str) -> None:
    sandbox = rest.create()
    unnamed, named = take(rest, sandbox), take(rest, sandbox, name=name)
    template = str(unnamed["snapshotID"]).partition(":")[0]
    assert listed(stranger) == listed(stranger, sandboxID=sandbox) == []
    for reference in (name, f"{slug}/{name}", str(named["snapshotID"]), template, f"{template}:default"):
        refused = stranger.http.post("/v2/sandboxes", json={"templateID": reference})
        assert refused.status_code in (403, 404), reference
        assert delete(stranger, reference) in (400, 403, 404), reference
    # Two teams may use one name.
    own = stranger.create()
    stranger.sdk(own).files.write("version", "theirs")
    take(stranger, own, name=name)
    rest.sdk(sandbox).files.write("version", "ours")
    take(rest, sandbox, name=name)
    assert (read(rest, name), read(stranger, name)) == ("ours", "theirs")
    assert delete(stranger, name) == 204
    assert read(rest, name) == "ours"


@pytest.mark.parametrize("bad", [
    "foreign/name", "a/b/c", ":", "name:", ":tag", "na me", "name:t/g", "name:ta:g", "ünï", "../x", "x" * 129,
    "name:7c1b6a9e-4c5f-4c55-9d3c-111111111111", "a.b"])
def test_bad_names(rest: Rest, bad: str) -> None:
    sandbox = rest.create()
    before = listed(rest)
    message = rest.does("snapshot", sandbox, 400, body={"name": bad}).json()["message"]
    assert len(message) > 15, f"says nothing: {message}"
    assert listed(rest) == before and rest.state(sandbox) == "running"


def test_bad_bodies(rest: Rest) -> None:
    sandbox = rest.create()
    path = f"/sandboxes/{sandbox}/snapshots"
    for body in ('{"name": 7}', '{"memory": "yes"}', "[]", "{", ""):
        answer = rest.http.post(path, content=body, headers={"Content-Type": "application/json"})
        # An absent body may pass for an empty one.
        assert answer.status_code == 400 or (body == "" and answer.status_code == 201), (body, answer.text)
        if answer.status_code == 201:
            rest.templates.append(answer.json()["snapshotID"])


def test_the_name_of_a_template_of_the_configuration(rest: Rest) -> None:
    """`base` is everyone's: a team's own snapshot of that name is the team's, and nobody's else."""
    sandbox = rest.create()
    answer = rest.call("snapshot", sandbox, {"name": "base"})
    assert answer.status_code in (201, 400), answer.text
    if answer.status_code == 201:
        assert delete(rest, str(answer.json()["snapshotID"])) == 204
    # And it cannot be deleted by anybody.
    assert delete(rest, "base") in (400, 403, 404)
    assert rest.sdk(rest.create("base")).commands.run("echo on").stdout == "on\n"


def test_without_a_key(server: Server) -> None:
    with server.http(None) as api:
        for method, path in (("GET", "/snapshots"), ("POST", f"/sandboxes/{UNKNOWN}/snapshots"),
                             ("DELETE", "/templates/base"), ("POST", f"/sandboxes/{UNKNOWN}/fork"),
                             ("POST", f"/sandboxes/{UNKNOWN}/pause"), ("POST", f"/sandboxes/{UNKNOWN}/resume")):
            answer: httpx.Response = api.request(method, path)
            assert (answer.status_code, answer.json()["code"]) == (401, 401), path
