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


def test_a_session_stays_with_its_team(server: Server, other_key: str, sandbox: Sandbox) -> None:
    with server.http(other_key) as api:
        body = {"templateID": "base", "metadata": {"session": "teams"}}
        answer = api.post("/v2/sandboxes", json=body)
    assert (answer.status_code, answer.json()["message"]) == (
        403, "session 'teams' belongs to another team")
    assert server.containers() == [sandbox.sandbox_id]


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
