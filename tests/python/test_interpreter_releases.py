"""Releases of the code interpreter's packages, back to 1.1, with releases of `e2b` that go with them.

`scripts/setup interpreter-releases` installs them. The oldest know no addresses but a domain's, so all come by TLS.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess

import pytest
from conftest import ROOT, Server

FOLDER = ROOT / "tests" / "interpreter_releases"
INSTALLED = ROOT / ".sandyard" / "interpreter-releases"
LINES = (line.split("#")[0].split() for line in (FOLDER / "python.txt").read_text().splitlines())
PYTHON = ["-".join(line) for line in LINES if line]
NODE = list(json.loads((FOLDER / "package.json").read_text())["dependencies"])


@pytest.mark.parametrize("pair", PYTHON)
def test_python(server: Server, pair: str) -> None:
    assert (INSTALLED / pair).is_dir(), "scripts/setup interpreter-releases installs it"
    run(server, ROOT / ".sandyard" / "venv" / "bin" / "python", FOLDER / "calls.py", PYTHONPATH=INSTALLED / pair)


@pytest.mark.parametrize("package", NODE)
def test_javascript(server: Server, package: str) -> None:
    assert (FOLDER / "node_modules" / package).is_dir(), "scripts/setup interpreter-releases installs it"
    run(server, "node", FOLDER / "calls.mjs", package)


def run(server: Server, *command: object, **variables: object) -> None:
    exports = [line.removeprefix("export ") for line in server.command("env", "--tls").stdout.splitlines()
               if line.startswith("export ")]
    told = {name: shlex.split(value)[0] for name, value in (line.split("=", 1) for line in exports)}
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SANDYARD_", "E2B_"))}
    more = {name: str(value) for name, value in variables.items()}
    ran = subprocess.run(list(map(str, command)), env=clean | told | more, capture_output=True, text=True,
                         timeout=120, check=False)
    assert ran.stdout == "passed\n", ran.stdout + ran.stderr
