"""List, paging and detail over running and paused sandboxes (control-plane 3.1, 3.3, 8.21 to 8.27)."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from conftest import Server
from e2b import Sandbox, SandboxQuery, SandboxState
from lifecycle import Rest, parse_time

REQUIRED = {"templateID", "sandboxID", "clientID", "startedAt", "endAt", "cpuCount", "memoryMB", "diskSizeMB", "state",
            "envdVersion"}


@dataclass
class Six:
    """Sandboxes in the order they were made in, every other one paused, with a mark in their metadata."""

    rest: Rest
    mark: str
    ids: list[str]

    @property
    def filter(self) -> str:
        return f"mark={self.mark}"

    def shown(self, **query: object) -> list[str]:
        return [s["sandboxID"] for s in self.rest.listed(metadata=self.filter, **query)]


@pytest.fixture(scope="module")
def six(server: Server) -> Iterator[Six]:
    rest = Rest(server)
    mark = uuid.uuid4().hex
    ids = [rest.create(metadata={"mark": mark, "n": str(n)}, timeout=900) for n in range(6)]
    for n in (1, 3, 5):
        rest.does("pause", ids[n], 204, body={"memory": n != 3})
    yield Six(rest, mark, ids)
    rest.close()


def test_both_states_in_one_order(six: Six) -> None:
    # Purely by the start: a pause moves nothing (8.21).
    assert six.shown() == six.ids[::-1]
    assert six.shown(order="asc") == six.ids
    assert six.shown(order="desc", state="running,paused") == six.ids[::-1]
    assert six.shown(state="running") == six.ids[4::-2]
    assert six.shown(state="paused") == six.ids[::-2]
    # The oldest form of it shows what runs only.
    old = six.rest.http.get("/sandboxes", params={"metadata": six.filter}).json()
    assert [s["sandboxID"] for s in old] == six.ids[4::-2]


def test_each_entry_is_complete(six: Six) -> None:
    entries = {s["sandboxID"]: s for s in six.rest.listed(metadata=six.filter)}
    for n, sandbox in enumerate(six.ids):
        entry = entries[sandbox]
        assert REQUIRED <= entry.keys()
        assert entry["state"] == ("paused" if n % 2 else "running")
        assert entry["metadata"] == {"mark": six.mark, "n": str(n)} and entry["alias"] == "base"
        detail = six.rest.detail(sandbox)
        assert {name: detail[name] for name in REQUIRED} == {name: entry[name] for name in REQUIRED}
        mode = {3: "filesystem", 1: "full", 5: "full"}.get(n)
        assert detail.get("pauseMode") == mode


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize(("state", "limit"), [("running,paused", 1), ("running,paused", 4), ("paused", 2)])
def test_pages_are_full_until_the_end(six: Six, order: str, state: str, limit: int) -> None:
    """control-plane 8.22"""
    expected = six.shown(order=order, state=state)
    query = {"metadata": six.filter, "order": order, "state": state, "limit": limit}
    seen: list[str] = []
    while True:
        answer = six.rest.http.get("/v2/sandboxes", params=query)
        page = [s["sandboxID"] for s in answer.json()]
        seen += page
        assert len(page) == min(limit, len(expected) - len(seen) + len(page))
        # The number of running ones is the same on every page, and only there if they were asked for.
        assert answer.headers.get("X-Total-Running") == ("3" if "running" in state else None)
        if not answer.headers.get("X-Next-Token"):
            break
        query["nextToken"] = answer.headers["X-Next-Token"]
    assert seen == expected
    if limit == 1 and order == "desc":
        turned = six.rest.http.get("/v2/sandboxes", params=query | {"order": "asc"})
        assert turned.status_code == 400, "a token of the other order is refused"


def test_a_page_goes_on_after_the_paused_one_it_ended_with_was_killed(six: Six) -> None:
    mark = uuid.uuid4().hex
    ids = [six.rest.create(metadata={"killed": mark}) for _ in range(3)]
    for sandbox in ids[1:]:
        six.rest.does("pause", sandbox, 204)
    query = {"metadata": f"killed={mark}", "limit": 1}
    first = six.rest.http.get("/v2/sandboxes", params=query)
    assert [s["sandboxID"] for s in first.json()] == [ids[2]]
    six.rest.does("kill", ids[2], 204)
    rest = six.rest.http.get("/v2/sandboxes",
                             params=query | {"limit": 10, "nextToken": first.headers["X-Next-Token"]})
    assert [s["sandboxID"] for s in rest.json()] == [ids[1], ids[0]]


def test_started_after_includes_its_own_moment(six: Six) -> None:
    """control-plane 8.25, also at the millisecond precision of JavaScript."""
    for sandbox in six.ids[:2]:
        begun = parse_time(six.rest.detail(sandbox)["startedAt"])
        for moment in (begun, begun.replace(microsecond=begun.microsecond // 1000 * 1000)):
            assert sandbox in six.shown(startedAfter=moment.isoformat())
        assert sandbox not in six.shown(startedAfter=(begun + datetime.timedelta(seconds=1)).isoformat())


def test_without_metadata_it_is_in_unfiltered_lists_only(six: Six) -> None:
    """control-plane 8.24"""
    plain = [six.rest.create(), six.rest.create()]
    six.rest.does("pause", plain[1], 204)
    unfiltered = {s["sandboxID"]: s for s in six.rest.listed()}
    assert set(plain) <= unfiltered.keys() and not set(plain) & set(six.shown())
    assert all("metadata" not in unfiltered[sandbox] for sandbox in plain)


def test_of_one_template(six: Six) -> None:
    template = six.rest.detail(six.ids[0])["templateID"]
    assert six.shown(template="base") == six.shown(template=template) == six.ids[::-1]
    assert six.shown(template="no-such-template") == []
    assert six.rest.http.get("/v2/sandboxes", params={"template": "base:default"}).status_code == 400


def test_the_detail_is_the_same_while_paused(rest: Rest) -> None:
    """control-plane 3.3, 8.26"""
    made = rest.created(metadata={"a": "b"}, envVars={"X": "1"}, autoPause=True, autoResume={"enabled": True},
                        network={"allowPublicTraffic": False}, secure=True)
    sandbox = made["sandboxID"]
    same = ("templateID", "alias", "metadata", "lifecycle", "network", "allowInternetAccess", "envdAccessToken",
            "cpuCount", "memoryMB", "diskSizeMB", "envdVersion", "clientID")
    running = rest.detail(sandbox)
    assert running["lifecycle"] == {"autoResume": True, "onTimeout": "pause"}
    assert running["envdAccessToken"] == made["envdAccessToken"]
    assert "pauseMode" not in running
    rest.does("pause", sandbox, 204)
    paused = rest.detail(sandbox)
    assert {name: paused.get(name) for name in same} == {name: running.get(name) for name in same}
    assert paused["pauseMode"] == "full" and "trafficAccessToken" not in paused
    again = rest.does("connect", sandbox, 201).json()
    assert {name: again.get(name) for name in ("sandboxID", "templateID", "alias", "envdAccessToken",
                                               "trafficAccessToken", "domain", "envdVersion")} == {
        name: made.get(name) for name in ("sandboxID", "templateID", "alias", "envdAccessToken",
                                          "trafficAccessToken", "domain", "envdVersion")}
    assert "pauseMode" not in rest.detail(sandbox)


def test_the_sdk_lists_pages_and_shows_both_states(six: Six, server: Server) -> None:
    query = SandboxQuery(metadata={"mark": six.mark}, state=[SandboxState.PAUSED, SandboxState.RUNNING])
    pages = Sandbox.list(query=query, limit=4, **server.options())
    shown = []
    while pages.has_next:
        shown += pages.next_items()
    assert [s.sandbox_id for s in shown] == six.ids[::-1]
    assert [s.state for s in shown] == [SandboxState.PAUSED, SandboxState.RUNNING] * 3
    info = Sandbox.get_info(six.ids[3], **server.options())
    assert (info.state, info.name) == (SandboxState.PAUSED, "base")
    assert info.lifecycle == {"on_timeout": "kill", "auto_resume": False}
