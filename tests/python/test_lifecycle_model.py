"""Random sequences of operations on the real engine against a reference of the life-cycle table (control-plane 3.2),
with pairs at once and an engine that refuses calls. `SANDYARD_MODEL_SEED` repeats a run."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from conftest import until
from lifecycle import HeldEngine, Rest, ask, serve_counter

STEPS = 300
SANDBOXES = 3

# What a sandbox in a lasting state answers, and its state after that.
TABLE: dict[str, dict[str, tuple[int, str]]] = {
    "running": {
        "pause": (204, "paused"), "pause files": (204, "files"), "kill": (204, "gone"), "connect": (200, "running"),
        "resume": (409, "running"), "timeout": (204, "running"), "snapshot": (201, "running"), "fork": (201, "running"),
    },
    "paused": {
        "pause": (409, "paused"), "pause files": (409, "paused"), "kill": (204, "gone"), "connect": (201, "running"),
        "resume": (201, "running"), "timeout": (404, "paused"), "snapshot": (404, "paused"), "fork": (409, "paused"),
    },
}
TABLE["files"] = {op: (status, "files" if after == "paused" else after) for op, (status, after) in TABLE["paused"].items()}
TABLE["gone"] = dict.fromkeys(TABLE["running"], (404, "gone"))
OPERATIONS = list(TABLE["running"])
BODIES = {"pause": ("pause", {"memory": True}), "pause files": ("pause", {"memory": False})}

# What the second of two operations answers while the first one's transition goes on, and the state after both.
PAUSING = {"pause": {204}, "pause files": {204}, "kill": {204}, "connect": {201}, "resume": {201},
           "timeout": {404, 409}, "snapshot": {409}, "fork": {409}}
SNAPSHOTTING = {"pause": {204}, "pause files": {204}, "kill": {204}, "connect": {200}, "resume": {409},
                "timeout": {409}, "snapshot": {409}, "fork": {409}}
RESUMING = {"pause": {204}, "pause files": {204}, "kill": {204}, "connect": {200, 201}, "resume": {201},
            "timeout": {204, 404, 409}, "snapshot": {404, 409}, "fork": {409}}
KILLING = {"pause": {404, 409}, "pause files": {404, 409}, "kill": {204}, "connect": {404, 409}, "resume": {404},
           "timeout": {404, 409}, "snapshot": {404, 409}, "fork": {404, 409}}

# Calls to the engine that a transition needs. One that is refused leaves the sandbox as it was.
FAULTS = {("running", "pause"): r"/pause\b", ("running", "snapshot"): r"^POST [^ ]*/commit\?",
          ("running", "fork"): r"^POST [^ ]*/commit\?", ("paused", "connect"): r"/unpause\b",
          ("paused", "resume"): r"/unpause\b", ("files", "connect"): r"^POST [^ ]*/start\b",
          ("files", "resume"): r"^POST [^ ]*/start\b"}


@dataclass
class Modelled:
    """A sandbox, and what it should be like."""

    id: str
    pid: int
    state: str = "running"
    # Of the file `version`.
    version: int = 0
    # Whether the counter, which lives in memory, has to be alive; two operations at once may have ended it or not.
    kept: bool = True


def transition(state: str, operation: str) -> dict[str, set[int]] | None:
    """The row of the transition that an operation starts."""
    if operation == "kill" and state != "gone":
        return KILLING
    if state == "running" and operation.startswith("pause"):
        return PAUSING
    if state == "running" and operation in ("snapshot", "fork"):
        return SNAPSHOTTING
    if state in ("paused", "files") and operation in ("connect", "resume"):
        return RESUMING
    return None


def outcomes(state: str, first: str, second: str) -> list[tuple[set[int], set[int], set[str]]]:
    """What two operations at once may answer, and the states after them, if `first` is taken up first."""
    status, after = TABLE[state][first]
    next_status, last = TABLE[after][second]
    allowed = [({status}, {next_status}, {last})]
    row = transition(state, first)
    if row is not None:
        # A pause that joins another one keeps its mode; one that waits has its own.
        states = {last, after} if row[second] <= {204} and second.startswith("pause") else {last}
        if not row[second] <= {200, 201, 204}:
            states = {after, last}
        allowed.append(({status}, row[second], states))
    return allowed


class Model:
    def __init__(self, engine: HeldEngine, seed: int) -> None:
        self.engine = engine
        self.random = random.Random(seed)
        self.rest = Rest(engine.server)
        self.sandboxes = [self.create() for _ in range(SANDBOXES)]
        self.trace: list[str] = []

    def create(self) -> Modelled:
        sandbox = self.rest.create(timeout=3600)
        client = self.rest.sdk(sandbox)
        client.files.write("version", "0")
        return Modelled(sandbox, serve_counter(client))

    def call(self, sandbox: Modelled, operation: str) -> int:
        name, body = BODIES.get(operation, (operation, None))
        answer = self.rest.call(name, sandbox.id, body)
        if answer.status_code >= 400:
            assert answer.json()["code"] == answer.status_code and answer.json()["message"], answer.text
        if operation == "snapshot" and answer.status_code == 201:
            template = self.rest.templates.pop()
            assert self.rest.http.delete(f"/templates/{template.replace(':', '%3A')}").status_code == 204
        if operation == "fork" and answer.status_code == 201:
            for entry in answer.json():
                self.rest.does("kill", entry["sandbox"]["sandboxID"], 204)
        return answer.status_code

    def step(self) -> int:
        """One round; the number of operations in it."""
        index = self.random.randrange(SANDBOXES)
        sandbox = self.sandboxes[index]
        if sandbox.state == "gone":
            sandbox = self.sandboxes[index] = self.create()
        # A kill ends a story: not too often.
        weights = [0.3 if operation == "kill" else 1.0 for operation in OPERATIONS]
        first, second = self.random.choices(OPERATIONS, weights, k=2)
        kind = self.random.random()
        if kind < 0.15 and (sandbox.state, first) in FAULTS:
            self.refused(sandbox, first)
            return 1
        if kind < 0.6:
            self.single(sandbox, first)
            return 1
        self.pair(sandbox, first, second)
        return 2

    def single(self, sandbox: Modelled, operation: str) -> None:
        before = sandbox.state
        status, after = TABLE[before][operation]
        answered = self.call(sandbox, operation)
        self.trace.append(f"{sandbox.id} {before}: {operation} {answered}")
        assert answered == status
        self.settle(sandbox, after)

    def pair(self, sandbox: Modelled, first: str, second: str) -> None:
        before = sandbox.state
        with ThreadPoolExecutor(2) as threads:
            calls = [threads.submit(self.call, sandbox, operation) for operation in (first, second)]
            one, other = (call.result(60) for call in calls)
        seen = self.seen(sandbox)
        self.trace.append(f"{sandbox.id} {before}: {first} {one} || {second} {other}: {seen}")
        forward = [(a, b, states) for a, b, states in outcomes(before, first, second)]
        backward = [(a, b, states) for b, a, states in outcomes(before, second, first)]
        allowed = [states for a, b, states in forward + backward if one in a and other in b and seen in states]
        assert allowed, f"not one of {forward + backward}"
        # It may have been down and up again in between, with or without its memory.
        if "files" in (before, seen) or "pause files" in (first, second):
            sandbox.kept = False
        self.settle(sandbox, seen)

    def refused(self, sandbox: Modelled, operation: str) -> None:
        """The engine says no to a call that the transition needs."""
        before = sandbox.state
        rule = self.engine.engine.refuse(FAULTS[before, operation], "500 Internal Server Error",
                                         "write: no space left on device")
        answered = self.call(sandbox, operation)
        self.trace.append(f"{sandbox.id} {before}: {operation} {answered}, the engine refused: {rule.fired.is_set()}")
        if not rule.fired.is_set():
            # Done in a way that does not need the call.
            rule.fired.set()
            assert answered == TABLE[before][operation][0]
            self.settle(sandbox, TABLE[before][operation][1])
            return
        assert answered in (500, 503)
        until("it is as it was", lambda: self.seen(sandbox) == before)
        self.settle(sandbox, before)

    def seen(self, sandbox: Modelled) -> str:
        state = self.rest.state(sandbox.id)
        if state == "paused" and self.rest.detail(sandbox.id)["pauseMode"] == "filesystem":
            return "files"
        return state

    def settle(self, sandbox: Modelled, state: str) -> None:
        """The sandbox is in this state, the lists say the same, and it has what it should have."""
        if state == "files" or (sandbox.state == "files" and state == "running"):
            sandbox.kept = False
        sandbox.state = state
        assert self.seen(sandbox) == state
        shown = {s["sandboxID"]: s["state"] for s in self.rest.listed()}
        expected = {s.id: "running" if s.state == "running" else "paused" for s in self.sandboxes if s.state != "gone"}
        assert shown == expected
        if state != "running":
            return
        client = self.rest.sdk(sandbox.id)
        assert client.files.read("version") == str(sandbox.version)
        sandbox.version += 1
        client.files.write("version", str(sandbox.version))
        alive = self.counter(sandbox)
        assert alive or not sandbox.kept, "its memory was lost"
        if not alive:
            sandbox.pid = serve_counter(client)
        sandbox.kept = True

    def counter(self, sandbox: Modelled) -> bool:
        """True if the process of before still serves."""
        answer = ask(self.engine.server, sandbox.id)
        return answer.status_code == 200 and answer.text.split()[1] == str(sandbox.pid)


def test_random_operations(held_engine: HeldEngine) -> None:
    seed = int(os.environ.get("SANDYARD_MODEL_SEED") or random.randrange(2**32))
    model = Model(held_engine, seed)
    done = 0
    try:
        while done < STEPS:
            done += model.step()
    except AssertionError as failure:
        trace = "\n".join(model.trace[-12:])
        raise AssertionError(f"SANDYARD_MODEL_SEED={seed}, after {done} operations:\n{trace}\n{failure}") from failure
    finally:
        model.rest.close()
    until("no container is left", lambda: held_engine.server.containers() == [])
