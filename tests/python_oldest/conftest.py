"""Tests with the oldest SDK of the 2.x line.

It knows neither E2B_API_URL nor E2B_SANDBOX_URL, but only a domain under which all is reached by TLS
(control-plane 5.4, setup B). `scripts/test` starts a server and sets what `sandyard env --tls` prints.
"""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Callable, Iterator

import pytest
from e2b import Sandbox


def pytest_configure() -> None:
    for name in ("E2B_API_KEY", "E2B_DOMAIN", "SSL_CERT_FILE"):
        if name not in os.environ:
            pytest.exit(f"{name} is not set: see scripts/test", returncode=2)


def until(what: str, condition: Callable[[], object], limit: float = 20) -> None:
    """Waits for a condition; the failure names it."""
    end = time.monotonic() + limit
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"after {limit} s still not: {what}")
        time.sleep(0.02)



@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """One sandbox for a module. Its commands' environment is what create was given."""
    made = Sandbox.create("base", timeout=300, envs={"FROM_CREATE": "1"}, metadata={"kind": "oldest"})
    yield made
    made.kill()
