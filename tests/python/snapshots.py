"""What the tests of snapshots share: their calls over raw HTTP, and names that nobody else uses."""

from __future__ import annotations

import uuid

import pytest
from lifecycle import Rest


@pytest.fixture
def name() -> str:
    return f"snap-{uuid.uuid4().hex[:10]}"


def quoted(reference: str) -> str:
    """In a path: one segment (control-plane G7)."""
    return reference.replace("/", "%2F").replace(":", "%3A")


def delete(rest: Rest, reference: str) -> int:
    return rest.http.delete(f"/templates/{quoted(reference)}").status_code


def take(rest: Rest, sandbox: str, **body: object) -> dict[str, object]:
    return rest.does("snapshot", sandbox, 201, body=body).json()


def listed(rest: Rest, **query: object) -> list[dict[str, object]]:
    answer = rest.http.get("/snapshots", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def read(rest: Rest, template: str, path: str = "version") -> str:
    """What a sandbox that starts from a template has in a file."""
    sandbox = rest.create(template)
    content = rest.sdk(sandbox).files.read(path)
    rest.does("kill", sandbox, 204)
    return content


@pytest.fixture
def slug(rest: Rest, name: str) -> str:
    """The own team's namespace, as a named snapshot tells it."""
    snapshot = take(rest, rest.create(), name=f"{name}-slug")["snapshotID"]
    return str(snapshot).partition("/")[0]
