"""Sandboxes write while the server is restarted 20 times, stopped or killed, some of them paused meanwhile; every byte
that was acknowledged to anybody is in the store (issue 10, 4)."""

from __future__ import annotations

import itertools
import pathlib
import threading
from collections.abc import Callable
from typing import Any

import boto3
import botocore.exceptions
import httpx
import pytest
from botocore.config import Config
from conftest import Server, until
from e2b import Sandbox
from restart_writer import content

RESTARTS = 20
WRITERS = 3
NOTES = "/home/user/notes"
# What each writer has to do between two restarts.
PROGRESS = 5

Files = dict[str, bytes]


class Inside:
    """A writer in a sandbox with a workspace."""

    def __init__(self, server: Server, number: int) -> None:
        self.session = f"restarts-{number}"
        self.server = server
        sandbox = server.create(metadata={"session": self.session}, timeout=3600)
        self.id = sandbox.sandbox_id
        sandbox.files.write("writer.py", pathlib.Path(__file__).with_name("restart_writer.py").read_text())
        handle = sandbox.commands.run(f"exec python3 -u writer.py /workspace/load {NOTES}", background=True, timeout=0)
        self.pid = handle.pid
        handle.disconnect()

    def sandbox(self) -> Sandbox:
        return Sandbox.connect(self.id, timeout=3600, **self.server.options())

    def notes(self) -> list[list[str]]:
        sandbox = self.sandbox()
        if not sandbox.files.exists(NOTES):
            return []
        return [line.split() for line in sandbox.files.read(NOTES).splitlines() if len(line.split()) == 4]

    def goes_on(self) -> None:
        sandbox = self.sandbox()

        def count() -> int:
            return int(sandbox.commands.run(f"cat {NOTES} 2>/dev/null | wc -l").stdout)

        before = count()
        until(f"the writer of {self.session} goes on", lambda: count() >= before + PROGRESS, 60)

    def stop(self) -> None:
        self.sandbox().files.write("stop", "")
        until(f"the writer of {self.session} ended", lambda: self.notes()[-1][0] == "ended", 60)

    def acknowledged(self) -> tuple[Files, str]:
        """What its folder must hold, byte for byte: the files, and the lines of its log."""
        files: Files = {}
        log = ""
        for what, name, version, size in self.notes():
            if what == "wrote":
                files[name] = content(name, int(version), int(size))
                log += f"{version}\n"
            elif what == "removed":
                files.pop(name, None)
        return files, log

    def failed(self) -> list[list[str]]:
        return [note for note in self.notes() if note[0] == "failed"]


class Outside:
    """Somebody who writes by a client until stopped, and keeps what was acknowledged."""

    def __init__(self, write: Callable[[str, bytes], None]) -> None:
        self.acknowledged: Files = {}
        self.write = write
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        for n in itertools.count():
            if self.stopped.is_set():
                return
            name = f"out/{n % 50}"
            data = content(name, n, (n * 977) % 60_000)
            # Without an answer it may hold the new content or the old one.
            self.acknowledged.pop(name, None)
            try:
                self.write(name, data)
            except (httpx.HTTPError, OSError, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
                continue
            self.acknowledged[name] = data

    def stop(self) -> None:
        self.stopped.set()
        self.thread.join(90)
        assert not self.thread.is_alive()


def by_files_api(inside: Inside) -> Callable[[str, bytes], None]:
    """As the SDK's upload, without its retries."""
    token = inside.sandbox()._envd_access_token or ""

    def write(name: str, data: bytes) -> None:
        headers = {"E2b-Sandbox-Id": inside.id, "E2b-Sandbox-Port": "49983", "X-Access-Token": token,
                   "Content-Type": "application/octet-stream"}
        url = f"{inside.server.sandbox_url}/files?path=/workspace/{name}"
        httpx.post(url, content=data, headers=headers, timeout=60).raise_for_status()

    return write


def by_s3(server: Server) -> Callable[[str, bytes], None]:
    def write(name: str, data: bytes) -> None:
        client(server).put_object(Bucket=server.variables["SANDYARD_S3_BUCKET"], Key=f"owner/{name}", Body=data)

    return write


def client(server: Server) -> Any:
    v = server.variables
    return boto3.client("s3", endpoint_url=v["SANDYARD_S3_ENDPOINT"], region_name="us-east-1",
                        aws_access_key_id=v["SANDYARD_S3_ACCESS_KEY_ID"],
                        aws_secret_access_key=v["SANDYARD_S3_SECRET_ACCESS_KEY"],
                        config=Config(retries={"max_attempts": 0}, connect_timeout=5, read_timeout=60))


def stored(server: Server, prefix: str) -> Files:
    s3, bucket = server.s3(), server.variables["SANDYARD_S3_BUCKET"]
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = [item["Key"] for page in pages for item in page.get("Contents", []) if not item["Key"].endswith("/")]
    return {key.removeprefix(prefix): s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


def differences(wanted: Files, found: Files) -> list[str]:
    """Short: what is wrong with which file."""
    wrong = []
    for name, data in wanted.items():
        got = found.get(name)
        if got is None:
            wrong.append(f"{name}: missing, {len(data)} bytes were acknowledged")
        elif got != data:
            wrong.append(f"{name}: {len(got)} bytes {got[:30]!r}, not {len(data)} bytes {data[:30]!r}")
    return wrong


@pytest.mark.timeout(900)
def test_no_acknowledged_byte_is_lost(own_server: Callable[..., Server]) -> None:
    server = own_server()
    inside = [Inside(server, number) for number in range(WRITERS)]
    pausing = Inside(server, WRITERS)
    plain = server.create(timeout=3600)
    sleeper = plain.commands.run("sleep 3600", background=True, timeout=0).pid
    outside = [Outside(by_files_api(inside[0])), Outside(by_s3(server))]
    everyone = [*inside, pausing]
    try:
        for turn in range(RESTARTS):
            for writer in everyone:
                writer.goes_on()
            if turn % 2:
                # Also while it is frozen, or only its file system is left, the server goes and comes.
                Sandbox.pause(pausing.id, **server.options())
            if turn % 3:
                server.kill9()
                server.start()
            else:
                server.restart()
        # The same processes all the time.
        for writer in everyone:
            assert writer.pid in {process.pid for process in writer.sandbox().commands.list()}
        assert [p.pid for p in Sandbox.connect(plain.sandbox_id, **server.options()).commands.list()] == [sleeper]
    finally:
        for somebody in outside:
            somebody.stop()
    assert all(len(somebody.acknowledged) > 10 for somebody in outside)
    for writer in everyone:
        writer.stop()
        assert writer.failed() == [], f"writes wait for the gateway, they do not fail: {writer.session}"
        files, log = writer.acknowledged()
        found = stored(server, f"sessions/{writer.session}/load/")
        assert found.pop("log", b"").decode() == log
        assert differences(files, found) == []
        # What was removed or renamed is not there.
        assert found.keys() == files.keys()
        # And as another sandbox of the session sees it.
        check = server.create(metadata={"session": writer.session})
        seen = {name: bytes(check.files.read(f"/workspace/load/{name}", format="bytes")) for name in files}
        assert differences(files, seen) == []
        assert check.kill()
    by_upload, by_owner = outside
    assert differences(by_upload.acknowledged, stored(server, f"sessions/{inside[0].session}/")) == []
    assert differences(by_owner.acknowledged, stored(server, "owner/")) == []
    for writer in everyone:
        assert writer.sandbox().kill()
