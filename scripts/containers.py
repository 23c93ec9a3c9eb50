"""Which container is which sandbox: its name on the engine says nothing of it, and only the server's owner can ask."""

from __future__ import annotations

import pathlib
import subprocess

PROGRAM = pathlib.Path(__file__).resolve().parents[1] / ".sandyard" / "bin" / "sandyard"


def container_of(sandbox_id: str, data_dir: pathlib.Path) -> str:
    """The name of a sandbox's container."""
    listed = subprocess.run([PROGRAM, "ls", "--data-dir", data_dir], check=True, capture_output=True, text=True)
    return next(line.split()[-1] for line in listed.stdout.splitlines() if line.startswith(sandbox_id))
