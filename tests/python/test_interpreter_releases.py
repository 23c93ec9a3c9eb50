"""Releases of the code interpreter's package, back to 1.2, with releases of `e2b` that go with them.

`scripts/setup interpreter-releases` installs them. The oldest know no addresses but a domain's, so all come by TLS.
"""

from __future__ import annotations

import os
import shlex
import subprocess

import pytest
from conftest import ROOT, Server

FOLDER = ROOT / "tests" / "interpreter_releases"
INSTALLED = ROOT / ".sandyard" / "interpreter-releases"
LINES = (line.split("#")[0].split() for line in (FOLDER / "python.txt").read_text().splitlines())
PAIRS = ["-".join(line) for line in LINES if line]


@pytest.mark.parametrize("pair", PAIRS)
def test_a_release(server: Server, pair: str) -> None:
    assert (INSTALLED / pair).is_dir(), "scripts/setup interpreter-releases installs it"
    exports = [line.removeprefix("export ") for line in server.command("env", "--tls").stdout.splitlines()
               if line.startswith("export ")]
    variables = {name: shlex.split(value)[0] for name, value in (line.split("=", 1) for line in exports)}
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SANDYARD_", "E2B_"))}
    ran = subprocess.run([ROOT / ".sandyard" / "venv" / "bin" / "python", FOLDER / "calls.py"],
                         env=clean | variables | {"PYTHONPATH": str(INSTALLED / pair)},
                         capture_output=True, text=True, timeout=120)
    assert ran.stdout == "passed\n", ran.stdout + ran.stderr
