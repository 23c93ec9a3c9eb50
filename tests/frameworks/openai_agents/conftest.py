from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest


@pytest.fixture
def until() -> Callable[..., Any]:
    async def wait(what: str, look: Callable[[], Awaitable[object]], expected: object, limit: float = 20) -> None:
        """Waits for what a call answers; the failure names it."""
        end = time.monotonic() + limit
        while (seen := await look()) != expected:
            assert time.monotonic() < end, f"after {limit} s still not: {what}, but {seen!r}"
            await asyncio.sleep(0.05)

    return wait
