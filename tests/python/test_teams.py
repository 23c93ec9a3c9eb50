"""Two teams on one server: neither sees or touches what the other has (control-plane 8.15)."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from conftest import Server
from e2b import NotFoundException, Sandbox


@pytest.fixture(scope="module")
def other_key(server: Server) -> str:
    return server.command("team", "add", "second").stdout.strip()


@pytest.fixture
def sandbox(server: Server) -> Iterator[Sandbox]:
    made = server.create(metadata={"session": "teams"})
    yield made
    made.kill()


def test_a_sandbox_of_another_team_does_not_exist(
        server: Server, other_key: str, sandbox: Sandbox) -> None:
    path = f"/sandboxes/{sandbox.sandbox_id}"
    with server.http(other_key) as api:
        calls = [("GET", path, None), ("DELETE", path, None),
                 ("POST", f"{path}/timeout", {"timeout": 10}), ("POST", f"{path}/refreshes", {}),
                 ("POST", f"{path}/connect", {"timeout": 10}), ("POST", f"/v2{path}/connect", {})]
        for method, url, body in calls:
            answer = api.request(method, url, json=body)
            assert (answer.status_code, answer.json()["code"]) == (404, 404), url
        assert api.get("/v2/sandboxes").json() == []
    with pytest.raises(NotFoundException):
        Sandbox.connect(sandbox.sandbox_id, **server.options(other_key))
    assert sandbox.is_running()


def test_a_session_is_named_within_its_team(server: Server, other_key: str, sandbox: Sandbox) -> None:
    """The name of another team's session is like one that nobody uses: that it is taken cannot be seen."""
    sandbox.files.write("/workspace/whose", "the first team's")
    metadata = {"session": "teams"}
    other = Sandbox.create("base", metadata=metadata, **server.options(other_key))
    try:
        assert other.commands.run("ls /workspace").stdout == "artifacts\nuploads\n"
        other.files.write("/workspace/whose", "the second team's")
        assert sandbox.files.read("/workspace/whose") == "the first team's"
    finally:
        assert other.kill()
    stored = server.s3().get_object(Bucket="sandyard", Key="teams/second/sessions/teams/whose")
    assert stored["Body"].read() == b"the second team's"
    again = Sandbox.create("base", metadata=metadata, **server.options(other_key))
    try:
        assert again.files.read("/workspace/whose") == "the second team's"
    finally:
        assert again.kill()


def test_a_team_name_is_taken_once(server: Server, other_key: str) -> None:
    assert other_key.startswith("e2b_")
    again = server.command("team", "add", "second", check=False)
    assert again.returncode != 0 and "already" in again.stderr
    bad = server.command("team", "add", "Not A Name", check=False)
    assert bad.returncode != 0 and "[a-z0-9-_]" in bad.stderr


def test_the_second_key_works_for_its_own(server: Server, other_key: str) -> None:
    own = Sandbox.create("base", **server.options(other_key))
    assert own.commands.run("echo mine").stdout == "mine\n"
    assert httpx.get(f"{server.api_url}/sandboxes/{own.sandbox_id}",
                     headers={"X-API-Key": server.api_key}).status_code == 404
    assert own.kill()
