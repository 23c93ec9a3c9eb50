"""One script of calls with releases of the official SDKs spread over their 2.x line, newest and oldest included
(issue 10, 4.2; control-plane 9). `scripts/setup releases` installs them; the table is left in
.sandyard/log/sdk-releases.md."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from conftest import ROOT, Server

FOLDER = ROOT / "tests" / "releases"
INSTALLED = ROOT / ".sandyard" / "sdk"
TABLE = ROOT / ".sandyard" / "log" / "sdk-releases.md"

PYTHON = (FOLDER / "python.txt").read_text().split()
NODE = [name.removeprefix("e2b-") for name in json.loads((FOLDER / "package.json").read_text())["dependencies"]]
RELEASES = [("Python", release) for release in PYTHON] + [("JavaScript", release) for release in NODE]
# Older ones know no E2B_SANDBOX_URL, and need TLS and a domain (control-plane 5.4).
FIRST_WITH_ADDRESSES = (2, 7)


@dataclass
class Outcome:
    tried: int
    failed: dict[str, str]


def by_tls(release: str) -> bool:
    return tuple(int(part) for part in release.split(".")[:2]) < FIRST_WITH_ADDRESSES


def variables(server: Server, *options: str) -> dict[str, str]:
    """What `sandyard env` tells a user, and nothing else of E2B's."""
    lines = server.command("env", *options).stdout.splitlines()
    exported = [line.removeprefix("export ") for line in lines if line.startswith("export ")]
    return server.environment() | dict(line.split("=", 1) for line in exported)


def run(environment: dict[str, str], language: str, release: str) -> Outcome:
    if language == "Python":
        target = INSTALLED / release
        assert (target / "e2b").is_dir(), f"no release {release}: scripts/setup releases installs it"
        # Without the environment that runs this test: its SDK is another release.
        command = [sys.executable, "-S", FOLDER / "calls.py"]
        environment = environment | {"PYTHONPATH": str(target), "PYTHONDONTWRITEBYTECODE": "1"}
    else:
        assert (FOLDER / "node_modules" / f"e2b-{release}").is_dir(), "scripts/setup releases installs it"
        command = ["node", FOLDER / "calls.mjs", f"e2b-{release}"]
    done = subprocess.run([*command, "base", "pause"], check=False, capture_output=True, text=True, timeout=160,
                          env=environment, cwd=FOLDER)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    outcome = json.loads(done.stdout.splitlines()[-1])
    return Outcome(outcome["tried"], outcome["failed"])


@pytest.fixture(scope="module")
def outcomes(server: Server) -> Iterator[Callable[[str, str], Outcome]]:
    """All of them, a few at a time; each test looks at its own."""
    addresses, tls = variables(server), variables(server, "--tls")
    with ThreadPoolExecutor(max(2, os.cpu_count() or 2)) as pool:
        going_on: dict[tuple[str, str], Future[Outcome]] = {
            (language, release): pool.submit(run, tls if by_tls(release) else addresses, language, release)
            for language, release in RELEASES}
        yield lambda language, release: going_on[language, release].result()
    write_table({one: done.result() for one, done in going_on.items() if not done.exception()}, TABLE)


def write_table(outcomes: dict[tuple[str, str], Outcome], file: pathlib.Path) -> None:
    rows = ["| SDK | release | reached by | calls | failed |", "|---|---|---|---|---|"]
    for (language, release), outcome in outcomes.items():
        way = "TLS" if by_tls(release) else "addresses"
        rows.append(f"| {language} | {release} | {way} | {outcome.tried} | {len(outcome.failed) or 'none'} |")
    file.write_text("\n".join(rows) + "\n")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("language", "release"), RELEASES)
def test_every_call_works(outcomes: Callable[[str, str], Outcome], language: str, release: str) -> None:
    outcome = outcomes(language, release)
    assert outcome.failed == {}
    # 3 times everything inside a sandbox, and its life.
    assert outcome.tried >= 80
