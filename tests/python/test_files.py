"""`sandbox.files` of the official Python SDK, sync and async: every method but watching."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import io
import os
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from conftest import module_sandbox
from e2b import AsyncSandbox, FileType, InvalidArgumentException, Sandbox
from e2b.exceptions import (AuthenticationException, FileNotFoundException, NotEnoughSpaceException,
                            SandboxException)

LINES = "".join(f"line {n} of a log\n" for n in range(20_000))
NOISE = os.urandom(300_000)


shared = module_sandbox("files")


@pytest.fixture
def folder(box: Sandbox, request: pytest.FixtureRequest) -> str:
    """A name below home that no other test uses."""
    return request.node.originalname


# One table for both clients: what is written, and what is read back.
CONTENTS: dict[str, str | bytes] = {
    "text": "grüße, 世界\n", "bytes": bytes(range(256)) * 10, "empty": "", "lines": LINES,
    "noise": NOISE,
}


def as_bytes(data: str | bytes) -> bytes:
    return data.encode() if isinstance(data, str) else data


@pytest.mark.parametrize("name", CONTENTS)
def test_write_and_read_in_all_formats(box: Sandbox, folder: str, name: str) -> None:
    # executor 6.4, 6.5, 11.16, 11.17, 11.20, 11.21
    data, path = CONTENTS[name], f"{folder}/{name}"
    for options in ({}, {"gzip": True}, {"use_octet_stream": True}):
        info = box.files.write(path, data, **options)
        assert (info.name, info.path, info.type, info.metadata) == (
            name, f"/home/user/{path}", FileType.FILE, None)
        for gzip in (False, True):
            assert bytes(box.files.read(path, format="bytes", gzip=gzip)) == as_bytes(data)
            with box.files.read(path, format="stream", gzip=gzip) as stream:
                assert b"".join(stream) == as_bytes(data)
            if isinstance(data, str):
                assert box.files.read(path, gzip=gzip) == data
    entry = box.files.get_info(path)
    assert (entry.size, entry.mode, entry.permissions) == (len(as_bytes(data)), 0o644, "-rw-r--r--")
    assert (entry.owner, entry.group) == ("user", "user")


@pytest.mark.parametrize("name", CONTENTS)
async def test_write_and_read_async(abox: AsyncSandbox, folder: str, name: str) -> None:
    data, path = CONTENTS[name], f"{folder}/{name}"
    for options in ({}, {"gzip": True}, {"use_octet_stream": True}):
        info = await abox.files.write(path, data, **options)
        assert info.path == f"/home/user/{path}"
        for gzip in (False, True):
            assert bytes(await abox.files.read(path, format="bytes", gzip=gzip)) == as_bytes(data)
            async with await abox.files.read(path, format="stream", gzip=gzip) as stream:
                assert b"".join([chunk async for chunk in stream]) == as_bytes(data)


def test_streams_are_uploaded_as_they_come(box: Sandbox, folder: str) -> None:
    # executor 2.1: chunked, without a length; 11.20
    path = f"{folder}/f"
    for gzip in (False, True):
        box.files.write(path, io.BytesIO(NOISE), gzip=gzip)
        assert bytes(box.files.read(path, format="bytes")) == NOISE
        box.files.write(path, (NOISE[at:at + 1000] for at in range(0, 230_000, 1000)), gzip=gzip)
        assert bytes(box.files.read(path, format="bytes")) == NOISE[:230_000]


async def test_streams_are_uploaded_async(abox: AsyncSandbox, folder: str) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, 230_000, 1000):
            yield NOISE[at:at + 1000]

    await abox.files.write(f"{folder}/f", chunks())
    assert bytes(await abox.files.read(f"{folder}/f", format="bytes")) == NOISE[:230_000]


def test_several_files_at_once(box: Sandbox, folder: str) -> None:
    # executor 6.5: file names with directories, one request
    names = ["one", "two/three", "ünï cödé/文 ; +&.txt"]
    written = box.files.write_files([
        {"path": f"{folder}/{name}", "data": name} for name in names])
    assert [info.path for info in written] == [f"/home/user/{folder}/{name}" for name in names]
    for name in names:
        assert box.files.read(f"{folder}/{name}") == name
    assert box.files.write_files([]) == []
    with pytest.raises(InvalidArgumentException):
        box.files.write_files([{"path": f"{folder}/x", "data": "1"},
                               {"path": f"{folder}/x", "data": "2"}])
    # What was written before the part that failed stays.
    assert box.files.read(f"{folder}/x") == "1"
    as_root = box.files.write("relative", "x", user="root")
    assert as_root.path == "/root/relative"
    assert box.files.get_info("/root/relative").owner == "root"


async def test_several_files_async(abox: AsyncSandbox, folder: str) -> None:
    written = await abox.files.write_files([
        {"path": f"{folder}/{n}/file", "data": str(n)} for n in range(4)])
    assert [info.name for info in written] == ["file"] * 4
    # executor 11.25: into one new tree at once
    await asyncio.gather(*[
        abox.files.write(f"{folder}/new/nested/{n}", str(n)) for n in range(4)])
    assert len(await abox.files.list(f"{folder}/new/nested")) == 4


def test_directories_under_the_root_belong_to_the_user(box: Sandbox) -> None:
    # executor 11.16
    box.files.write("/test-dir/0/file.txt", "x")
    for path, permissions in (("/test-dir", "drwxr-xr-x"), ("/test-dir/0", "drwxr-xr-x"),
                              ("/test-dir/0/file.txt", "-rw-r--r--")):
        entry = box.files.get_info(path)
        assert (entry.owner, entry.group, entry.permissions) == ("user", "user", permissions)


def test_what_cannot_be_written_or_read(box: Sandbox, folder: str) -> None:
    # executor 10: the file API's errors
    files = box.files
    files.write(f"{folder}/file", "x")
    with pytest.raises(FileNotFoundException, match=f"path '/home/user/{folder}/none' does not exist"):
        files.read(f"{folder}/none")
    with pytest.raises(InvalidArgumentException, match="is a directory"):
        files.read(folder)
    with pytest.raises(InvalidArgumentException):
        files.write(folder, "x")
    with pytest.raises(SandboxException, match="500"):
        files.write(f"{folder}/file/below", "x")
    with pytest.raises(InvalidArgumentException):
        files.read("~nobody/x")
    with pytest.raises(AuthenticationException, match="invalid username: 'nosuch'"):
        files.read("x", user="nosuch")
    with pytest.raises(AuthenticationException, match="invalid username: 'nosuch'"):
        files.list("x", user="nosuch")
    for path in ("a\0b", "~nobody"):
        with pytest.raises(InvalidArgumentException):
            files.get_info(path)
    with pytest.raises(SandboxException):
        files.write("/" + "x" * 5000, "x")
    with pytest.raises(SandboxException):
        files.get_info("/" + "x" * 5000)


def test_a_full_disk_says_so(box: Sandbox) -> None:
    # executor 6.5, 10: 507
    with pytest.raises(NotEnoughSpaceException):
        box.files.write("/dev/full", "x", user="root")


async def test_what_cannot_be_done_async(abox: AsyncSandbox, folder: str) -> None:
    with pytest.raises(FileNotFoundException):
        await abox.files.read(f"{folder}/none")
    with pytest.raises(FileNotFoundException):
        await abox.files.list(f"{folder}/none")
    with pytest.raises(FileNotFoundException):
        await abox.files.rename(f"{folder}/none", f"{folder}/x")
    with pytest.raises(InvalidArgumentException):
        await abox.files.read("/tmp")


def test_list(box: Sandbox, folder: str) -> None:
    # executor 5.3, 11.22
    files = box.files
    files.write_files([{"path": f"{folder}/{name}", "data": ""} for name in (
        "file1.txt", "subdir1/file.txt", "subdir1/subdir1_1/deep", "subdir2/x")])
    def paths(depth: int | None) -> list[str]:
        start = f"/home/user/{folder}/"
        return [e.path.removeprefix(start) for e in files.list(folder, depth=depth)]

    one = ["file1.txt", "subdir1", "subdir2"]
    assert paths(1) == paths(None) == one
    assert paths(2) == ["file1.txt", "subdir1", "subdir1/file.txt", "subdir1/subdir1_1", "subdir2",
                        "subdir2/x"]
    assert paths(3)[4] == "subdir1/subdir1_1/deep"
    entry = files.list(folder)[1]
    assert (entry.type, entry.permissions, entry.owner) == (FileType.DIR, "drwxr-xr-x", "user")
    assert entry.size > 0
    assert entry.modified_time.tzinfo is not None
    age = datetime.datetime.now(datetime.timezone.utc) - entry.modified_time
    assert abs(age.total_seconds()) < 600
    with pytest.raises(FileNotFoundException):
        files.list(f"{folder}/none")
    with pytest.raises(InvalidArgumentException):
        files.list(f"{folder}/file1.txt")
    with pytest.raises(InvalidArgumentException):
        files.list(folder, depth=0)


def test_links_are_told_from_files(box: Sandbox, folder: str) -> None:
    # executor 5.2
    box.commands.run(f"mkdir {folder} && cd {folder} && echo 12345 > file && ln -s file link && "
                     "ln -s . here && ln -s nowhere broken && mkfifo pipe")
    home = f"/home/user/{folder}"
    link = box.files.get_info(f"{folder}/link")
    assert (link.type, link.permissions, link.symlink_target) == (
        FileType.FILE, "Lrwxrwxrwx", f"{home}/file")
    assert box.files.get_info(f"{folder}/broken").symlink_target == f"{home}/broken"
    assert box.files.read(f"{folder}/link") == "12345\n"
    # What has no type the SDK drops.
    assert [e.name for e in box.files.list(folder)] == ["file", "here", "link"]
    # A listing may begin at a link, and follows none below it.
    assert [e.path for e in box.files.list(f"{folder}/here", depth=3)] == [
        f"{home}/here/file", f"{home}/here/here", f"{home}/here/link"]


def test_exists_and_get_info(box: Sandbox, folder: str) -> None:
    # executor 5.3
    box.files.write(f"{folder}/file", "x")
    assert box.files.exists(folder) and box.files.exists(f"{folder}/file")
    assert not box.files.exists(f"{folder}/none")
    entry = box.files.get_info(folder)
    assert (entry.name, entry.type, entry.path) == (folder, FileType.DIR, f"/home/user/{folder}")
    assert box.files.get_info("~").path == "/home/user"
    assert box.files.get_info("/").name == "/"
    assert box.files.get_info("/tmp").permissions == "dtrwxrwxrwx"
    with pytest.raises(FileNotFoundException):
        box.files.get_info(f"{folder}/none")


def test_make_dir_rename_and_remove(box: Sandbox, folder: str) -> None:
    # executor 5.3, 11.23
    files = box.files
    assert files.make_dir(f"{folder}/a/b")
    assert not files.make_dir(f"{folder}/a/b")
    files.write(f"{folder}/file", "1")
    with pytest.raises(InvalidArgumentException):
        files.make_dir(f"{folder}/file")
    moved = files.rename(f"{folder}/file", f"{folder}/new/place")
    assert (moved.name, moved.path) == ("place", f"/home/user/{folder}/new/place")
    files.write(f"{folder}/other", "2")
    files.rename(f"{folder}/other", f"{folder}/new/place")
    assert files.read(f"{folder}/new/place") == "2"
    files.rename(f"{folder}/a", f"{folder}/c")
    assert files.exists(f"{folder}/c/b")
    with pytest.raises(FileNotFoundException):
        files.rename(f"{folder}/none", f"{folder}/x")
    with pytest.raises(SandboxException):
        files.rename(f"{folder}/c", f"{folder}/new")
    files.remove(folder)
    assert not files.exists(folder)
    files.remove(folder)


async def test_make_dir_rename_and_remove_async(abox: AsyncSandbox, folder: str) -> None:
    files = abox.files
    assert await files.make_dir(f"{folder}/a")
    assert not await files.make_dir(f"{folder}/a")
    await files.write(f"{folder}/a/f", "x")
    assert (await files.rename(f"{folder}/a", f"{folder}/b")).type == FileType.DIR
    assert [e.name for e in await files.list(folder, depth=2)] == ["b", "f"]
    assert await files.exists(f"{folder}/b/f")
    assert (await files.get_info(f"{folder}/b/f")).size == 1
    await files.remove(folder)
    assert not await files.exists(folder)


def test_metadata_lives_with_the_file(box: Sandbox, folder: str) -> None:
    # executor 6.5, 11.24
    files, path = box.files, f"{folder}/m"
    info = files.write(path, "1", metadata={"Author": "me", "kind": "a b"})
    stored = {"author": "me", "kind": "a b"}
    assert info.metadata == stored
    assert files.get_info(path).metadata == files.list(folder)[0].metadata == stored
    assert files.rename(path, f"{folder}/n").metadata == stored
    assert files.write(f"{folder}/n", "2", metadata={"b": "2"}, gzip=True).metadata == {"b": "2"}
    assert files.write(f"{folder}/n", "3").metadata is None
    several = files.write_files([{"path": f"{folder}/{n}", "data": ""} for n in "12"],
                                metadata={"k": "v"})
    assert [w.metadata for w in several] == [{"k": "v"}] * 2
    box.commands.run("python3 -c \"import os; os.setxattr('n', 'user.e2b.author', b'you')\"",
                     cwd=f"/home/user/{folder}")
    assert files.get_info(f"{folder}/n").metadata == {"author": "you"}
    # Each is a header; of more the disk's file system would say that they do not fit.
    many = {f"k{number}": "v" for number in range(100)}
    assert files.write(f"{folder}/many", "1", metadata=many).metadata == many
    with pytest.raises(InvalidArgumentException):
        files.write(path, "x", metadata={"big": "v" * 4096})
    assert not files.exists(path)


async def test_metadata_async(abox: AsyncSandbox, folder: str) -> None:
    info = await abox.files.write(f"{folder}/m", "1", metadata={"a": "1"})
    assert info.metadata == (await abox.files.get_info(f"{folder}/m")).metadata == {"a": "1"}


def test_signed_urls(box: Sandbox, folder: str) -> None:
    # executor 3.3, 11.18, 11.19
    path = f"{folder}/a b.txt"
    upload = box.upload_url(path, use_signature_expiration=60)
    answer = httpx.post(upload, files={"file": ("ignored", b"signed")})
    assert (answer.status_code, answer.json()) == (
        200, [{"name": "a b.txt", "path": f"/home/user/{path}", "type": "file"}])
    # A form field without a file name.
    form = {"Content-Type": "multipart/form-data; boundary=X"}
    body = b'--X\r\nContent-Disposition: form-data; name="file"\r\n\r\nfield\r\n--X--\r\n'
    assert httpx.post(upload, content=body, headers=form).status_code == 200
    download = box.download_url(path)
    answer = httpx.get(download, headers={"Accept-Encoding": "identity"})
    assert (answer.text, answer.headers["content-length"]) == ("field", "5")
    assert answer.headers["content-disposition"] == 'inline; filename="a b.txt"'
    assert httpx.get(download, headers={"Range": "bytes=1-2"}).text == "ie"
    for seconds in (-120, -1):
        expired = httpx.get(box.download_url(path, use_signature_expiration=seconds))
        assert (expired.status_code, expired.json()) == (
            401, {"code": 401, "message": "signature is already expired"})
    assert httpx.post(download, files={"file": b"x"}).json()["message"] == "invalid signature"
    assert httpx.get(download.replace("a%20b", "other").replace("a+b", "other")).status_code == 401
    missing = httpx.get(box.download_url("demo/test.txt"))
    assert (missing.status_code, missing.json()["message"]) == (
        404, "path '/home/user/demo/test.txt' does not exist")
    as_root = httpx.get(box.download_url("/etc/shadow", user="root"))
    assert as_root.status_code == 200


async def test_signed_urls_async(abox: AsyncSandbox, folder: str) -> None:
    async with httpx.AsyncClient() as client:
        upload = abox.upload_url(f"{folder}/f")
        assert (await client.post(upload, files={"file": b"x"})).status_code == 200
        assert (await client.get(abox.download_url(f"{folder}/f"))).text == "x"


def test_compression_only_where_it_is_a_gain(box: Sandbox, folder: str) -> None:
    # executor 6.4; issue 4
    for name, data, packed in (("text", LINES, True), ("noise", NOISE, False), ("few", "x", False)):
        box.files.write(f"{folder}/{name}", data)
        url = box.download_url(f"{folder}/{name}")
        answer = httpx.get(url, headers={"Accept-Encoding": "gzip"})
        assert answer.headers.get("content-encoding") == ("gzip" if packed else None)
        assert answer.content == as_bytes(data)
        answer = httpx.get(url, headers={"Accept-Encoding": "gzip, identity;q=0"})
        assert (answer.headers["content-encoding"], answer.content) == ("gzip", as_bytes(data))
        refused = httpx.get(url, headers={"Accept-Encoding": "identity;q=0"})
        assert (refused.status_code, refused.json()["code"]) == (406, 406)


def test_files_of_the_workspace(box: Sandbox) -> None:
    # The same on the FUSE mount.
    files, folder = box.files, "/workspace/artifacts/dir"
    files.write(f"{folder}/f", NOISE)
    assert bytes(files.read(f"{folder}/f", format="bytes")) == NOISE
    files.write(f"{folder}/f", "short", gzip=True)
    assert files.read(f"{folder}/f", gzip=True) == "short"
    assert [e.path for e in files.list(folder)] == [f"{folder}/f"]
    files.rename(f"{folder}/f", f"{folder}/g")
    assert files.exists(f"{folder}/g") and not files.exists(f"{folder}/f")
    files.remove(folder)
    assert not files.exists(folder)


def test_large_files_go_through_whole(box: Sandbox, folder: str) -> None:
    content = os.urandom(32 << 20)
    digest = hashlib.sha256(content).hexdigest()
    check: Callable[[], str] = lambda: box.commands.run(f"sha256sum {folder}/big").stdout.split()[0]
    for options in ({}, {"use_octet_stream": True}, {"gzip": True}):
        box.files.write(f"{folder}/big", content, **options)
        assert check() == digest
    assert bytes(box.files.read(f"{folder}/big", format="bytes")) == content
