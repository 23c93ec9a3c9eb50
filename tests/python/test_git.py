"""`sandbox.git` of the official Python SDK: every method, with the synchronous and the asynchronous client.

The SDK runs git inside the sandbox, so these tests pin what that stands on: git in the image
(executor 9.1), commands in a login shell with their own environment (executor 4.1) as the named user
(4.2), exit codes and both outputs (4.3, 4.4), by which the SDK tells its errors apart.
"""

from __future__ import annotations

import inspect
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
import pytest_asyncio
from conftest import Server, until
from e2b import AsyncSandbox, CommandExitException, InvalidArgumentException, Sandbox
from e2b.exceptions import GitAuthException, GitUpstreamException

# A smart HTTP remote inside the sandbox, which lets in one user only: GitHub's role, without a network.
HTTP_PORT, USERNAME, PASSWORD = 8418, "ada", "secret-token"
REMOTES = "/home/user/remotes"
HTTP_REMOTE = f"""
import base64, http.server, os, subprocess

WANTED = "Basic " + base64.b64encode(b"{USERNAME}:{PASSWORD}").decode()


class Remote(http.server.BaseHTTPRequestHandler):
    def serve(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != WANTED:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        environment = os.environ | {{
            "GIT_PROJECT_ROOT": "{REMOTES}", "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": path,
            "QUERY_STRING": query, "REQUEST_METHOD": self.command, "REMOTE_USER": "{USERNAME}",
            "CONTENT_TYPE": self.headers.get("Content-Type") or "",
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding") or ""}}
        answer = subprocess.run(["git", "http-backend"], input=body, env=environment,
                                stdout=subprocess.PIPE, check=True).stdout
        head, _, content = answer.partition(b"\\r\\n\\r\\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\\r\\n"))
        self.send_response(int(fields.pop("Status", "200").split()[0]))
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = serve


http.server.ThreadingHTTPServer(("127.0.0.1", {HTTP_PORT}), Remote).serve_forever()
"""


class Awaited:
    """Either client with calls to await, so that one test is the test of both."""

    def __init__(self, inner: object) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> object:
        value = getattr(self._inner, name)
        if not callable(value):
            return Awaited(value)

        async def call(*arguments: object, **options: object) -> object:
            result = value(*arguments, **options)
            return await result if inspect.isawaitable(result) else result

        return call


@dataclass
class Box:
    """A client of the sandbox that the tests share, and a directory that is this test's own."""

    git: Awaited
    commands: Awaited
    files: Awaited
    home: str

    def path(self, name: str) -> str:
        return f"{self.home}/{name}"

    async def sh(self, command: str) -> str:
        return (await self.commands.run(command, cwd=self.home)).stdout

    async def repository(self, name: str = "repo") -> str:
        """A repository with one commit, which holds `a.txt`, on branch `main`."""
        path = self.path(name)
        await self.git.init(path, initial_branch="main")
        await self.write(f"{path}/a.txt", "one\n")
        await self.git.add(path)
        await self.git.commit(path, "first")
        return path

    async def write(self, path: str, text: str) -> None:
        await self.files.write(path, text)

    async def remote(self, name: str = "remote") -> str:
        """A bare repository that holds the commit of `repository`."""
        source = await self.repository(f"{name}-source")
        path = self.path(f"{name}.git")
        await self.commands.run(f"git clone --quiet --bare '{source}' '{path}'")
        return path


@pytest.fixture(scope="module")
def shared(server: Server) -> Iterator[Sandbox]:
    sandbox = server.create(timeout=600)
    sandbox.git.configure_user("Ada", "ada@example.org")
    sandbox.files.write("remote.py", HTTP_REMOTE)
    sandbox.commands.run("python3 remote.py", background=True, timeout=0)
    probe = f"curl -s -o /dev/null -w '%{{http_code}}' http://127.0.0.1:{HTTP_PORT}/ || true"
    until("the HTTP remote answers", lambda: sandbox.commands.run(probe).stdout == "401")
    yield sandbox
    sandbox.kill()


@pytest_asyncio.fixture(params=["sync", "async"])
async def box(request: pytest.FixtureRequest, server: Server, shared: Sandbox) -> AsyncIterator[Box]:
    client: Sandbox | AsyncSandbox = shared
    if request.param == "async":
        client = await AsyncSandbox.connect(shared.sandbox_id, **server.options())
    home = f"/home/user/{uuid.uuid4().hex}"
    shared.files.make_dir(home)
    yield Box(Awaited(client.git), Awaited(client.commands), Awaited(client.files), home)


# ---- init, clone ----------------------------------------------------------------------------


async def test_init_makes_a_repository(box: Box) -> None:
    path = box.path("repo")
    result = await box.git.init(path, initial_branch="trunk")
    assert result.exit_code == 0 and path in result.stdout
    status = await box.git.status(path)
    assert (status.current_branch, status.is_clean, status.detached) == ("trunk", True, False)
    # What is there stays.
    assert "Reinitialized existing" in (await box.git.init(path)).stdout

    await box.git.init(box.path("bare"), bare=True)
    assert await box.sh("git -C bare rev-parse --is-bare-repository") == "true\n"


async def test_init_where_the_user_may_not_write_fails(box: Box) -> None:
    with pytest.raises(CommandExitException) as failure:
        await box.git.init("/root/repo")
    assert failure.value.exit_code == 128 and "Permission denied" in failure.value.stderr
    # The same as root, and with a path relative to the working directory (executor 4.2).
    await box.git.init("by-root", user="root", cwd=box.home)
    assert await box.sh("stat -c %U by-root/.git") == "root\n"


async def test_clone_takes_branch_and_depth(box: Box) -> None:
    remote = await box.remote()
    await box.git.clone(remote, box.path("plain"))
    assert await box.files.read(box.path("plain/a.txt")) == "one\n"

    work = box.path("plain")
    await box.git.create_branch(work, "side")
    await box.write(f"{work}/side.txt", "side")
    await box.git.add(work)
    await box.git.commit(work, "second")
    await box.git.push(work, remote="origin", branch="side")
    # --depth counts only over a transport, so not for a plain path.
    await box.git.clone(f"file://{remote}", box.path("shallow"), branch="side", depth=1)
    assert await box.sh("git -C shallow log --format=%s") == "second\n"
    assert (await box.git.branches(box.path("shallow"))).branches == ["side"]
    # Without a path it goes into the working directory, under the repository's name.
    await box.git.clone(remote, cwd=box.home)
    assert await box.files.exists(box.path("remote/a.txt"))


async def test_clone_fails_as_git_does(box: Box) -> None:
    remote = await box.remote()
    with pytest.raises(CommandExitException) as missing:
        await box.git.clone(box.path("nothing"), box.path("copy"))
    assert missing.value.exit_code == 128 and "does not exist" in missing.value.stderr
    await box.write(box.path("full/file"), "")
    with pytest.raises(CommandExitException, match="not an empty directory"):
        await box.git.clone(remote, box.path("full"))
    with pytest.raises(CommandExitException, match="Remote branch nothing not found"):
        await box.git.clone(remote, box.path("copy"), branch="nothing")
    with pytest.raises(InvalidArgumentException, match="Username is required"):
        await box.git.clone(remote, box.path("copy"), password="x")
    with pytest.raises(InvalidArgumentException, match="Only http"):
        await box.git.clone(remote, box.path("copy"), username="x", password="x")
    assert not await box.files.exists(box.path("copy"))


# ---- status, branches -----------------------------------------------------------------------


async def test_status_tells_every_kind_of_change(box: Box) -> None:
    path = await box.repository()
    for name in ("modified", "deleted", "renamed"):
        await box.write(f"{path}/{name}", f"{name}\n" * 3)
    await box.git.add(path)
    await box.git.commit(path, "second")
    assert (await box.git.status(path)).is_clean

    await box.write(f"{path}/modified", "changed")
    await box.files.remove(f"{path}/deleted")
    await box.commands.run("git mv renamed new-name", cwd=path)
    await box.write(f"{path}/added", "")
    await box.git.add(path, files=["added"])
    await box.write(f"{path}/untracked", "")
    status = await box.git.status(path)
    found = {f.name: (f.status, f.staged, f.renamed_from) for f in status.file_status}
    assert found == {
        "modified": ("modified", False, None), "deleted": ("deleted", False, None),
        "new-name": ("renamed", True, "renamed"), "added": ("added", True, None),
        "untracked": ("untracked", False, None)}
    assert (status.total_count, status.staged_count, status.untracked_count) == (5, 2, 1)
    assert status.has_changes and status.has_staged and not status.has_conflicts


async def test_status_tells_the_distance_to_the_upstream(box: Box) -> None:
    remote = await box.remote()
    ours, theirs = box.path("ours"), box.path("theirs")
    for path in (ours, theirs):
        await box.git.clone(remote, path)
        await box.git.commit(path, f"in {path}", allow_empty=True)
    await box.git.push(theirs)
    await box.commands.run("git fetch", cwd=ours)
    status = await box.git.status(ours)
    assert (status.current_branch, status.upstream) == ("main", "origin/main")
    assert (status.ahead, status.behind) == (1, 1)

    await box.git.checkout_branch(ours, "HEAD~1")
    status = await box.git.status(ours)
    assert status.detached and status.current_branch is None


async def test_status_outside_of_a_repository_fails(box: Box) -> None:
    with pytest.raises(CommandExitException) as failure:
        await box.git.status(box.home)
    assert failure.value.exit_code == 128 and "not a git repository" in failure.value.stderr
    with pytest.raises(CommandExitException) as missing:
        await box.git.status(box.path("nothing"))
    assert missing.value.exit_code == 128


async def test_branches_are_made_changed_and_deleted(box: Box) -> None:
    path = await box.repository()
    await box.git.create_branch(path, "feature/ü")
    found = await box.git.branches(path)
    assert (found.current_branch, found.branches) == ("feature/ü", ["feature/ü", "main"])
    with pytest.raises(CommandExitException, match="already exists"):
        await box.git.create_branch(path, "main")
    await box.git.commit(path, "only here", allow_empty=True)
    await box.git.checkout_branch(path, "main")
    assert (await box.git.branches(path)).current_branch == "main"
    with pytest.raises(CommandExitException) as unknown:
        await box.git.checkout_branch(path, "nothing")
    assert unknown.value.exit_code == 1
    # A commit would be lost, so it takes force.
    with pytest.raises(CommandExitException, match="not fully merged"):
        await box.git.delete_branch(path, "feature/ü")
    await box.git.delete_branch(path, "feature/ü", force=True)
    assert (await box.git.branches(path)).branches == ["main"]
    with pytest.raises(CommandExitException):
        await box.git.delete_branch(path, "main")


async def test_branches_of_an_empty_repository(box: Box) -> None:
    await box.git.init(box.path("repo"), initial_branch="main")
    found = await box.git.branches(box.path("repo"))
    assert (found.branches, found.current_branch) == ([], None)


# ---- add, commit, reset, restore ------------------------------------------------------------


async def test_add_takes_all_or_the_named_files(box: Box) -> None:
    path = await box.repository()
    names = ["-dash", "$(touch hacked)", "it's", "two words"]
    for name in [*names, "other"]:
        await box.write(f"{path}/{name}", "")
    # Names reach git as they are, whatever a shell would make of them.
    await box.git.add(path, files=names)
    listed = await box.commands.run("git diff --cached --name-only -z | tr '\\0' '\\n'", cwd=path)
    assert sorted(listed.stdout.splitlines()) == sorted(names)
    assert not await box.files.exists(f"{path}/hacked")
    await box.git.add(path, all=False)
    status = await box.git.status(path)
    assert (status.staged_count, status.untracked_count) == (5, 0)
    with pytest.raises(CommandExitException, match="did not match any files"):
        await box.git.add(path, files=["nothing"])


async def test_commit_keeps_message_and_author(box: Box) -> None:
    path = await box.repository()
    message = "it's \"quoted\" $HOME `id`\n\n- ü 中\n"
    await box.write(f"{path}/a.txt", "two\n")
    await box.git.add(path)
    result = await box.git.commit(path, message, author_name="Grace Hopper",
                                  author_email="grace@example.org")
    assert "1 file changed" in result.stdout
    assert await box.sh("git -C repo log -1 --format=%B") == f"{message}\n"
    shown = await box.sh("git -C repo log -1 --format='%an <%ae> %cn'")
    assert shown == "Grace Hopper <grace@example.org> Grace Hopper\n"


async def test_commit_fails_without_changes_and_without_an_identity(box: Box) -> None:
    path = await box.repository()
    with pytest.raises(CommandExitException) as clean:
        await box.git.commit(path, "nothing")
    assert clean.value.exit_code == 1 and "nothing to commit" in clean.value.stdout
    await box.git.commit(path, "empty", allow_empty=True)
    # The call's own environment counts (executor 4.1): here, git without the global configuration.
    nobody = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_COUNT": "1",
              "GIT_CONFIG_KEY_0": "user.useConfigOnly", "GIT_CONFIG_VALUE_0": "true"}
    with pytest.raises(CommandExitException) as unknown:
        await box.git.commit(path, "x", allow_empty=True, envs=nobody)
    assert unknown.value.exit_code == 128 and "Please tell me who you are" in unknown.value.stderr
    await box.git.commit(path, "by B", author_name="B", author_email="b@example.org",
                         allow_empty=True, envs=nobody)
    assert await box.sh("git -C repo log --format=%s") == "by B\nempty\nfirst\n"


async def test_reset_by_mode_target_and_path(box: Box) -> None:
    path = await box.repository()
    await box.write(f"{path}/a.txt", "two\n")
    await box.git.add(path)
    await box.git.commit(path, "second")
    await box.git.reset(path, mode="soft", target="HEAD~1")
    assert (await box.git.status(path)).staged_count == 1
    await box.git.reset(path, paths=["a.txt"])
    status = await box.git.status(path)
    assert (status.staged_count, status.unstaged_count) == (0, 1)
    await box.git.reset(path, mode="hard")
    assert await box.files.read(f"{path}/a.txt") == "one\n"
    with pytest.raises(InvalidArgumentException, match="Reset mode"):
        await box.git.reset(path, mode="softly")
    with pytest.raises(CommandExitException) as unknown:
        await box.git.reset(path, mode="hard", target="nothing")
    assert unknown.value.exit_code == 128


async def test_restore_takes_back_index_and_files(box: Box) -> None:
    path = await box.repository()
    await box.write(f"{path}/a.txt", "two\n")
    await box.git.add(path)
    await box.git.restore(path, ["a.txt"], staged=True)
    status = await box.git.status(path)
    assert [(f.staged, f.status) for f in status.file_status] == [(False, "modified")]
    await box.git.restore(path, ["."])
    assert (await box.git.status(path)).is_clean
    await box.git.commit(path, "second", allow_empty=True)
    await box.files.remove(f"{path}/a.txt")
    await box.git.restore(path, ["a.txt"], staged=True, worktree=True, source="HEAD~1")
    assert await box.files.read(f"{path}/a.txt") == "one\n"
    with pytest.raises(CommandExitException, match="did not match any file"):
        await box.git.restore(path, ["nothing"])
    with pytest.raises(InvalidArgumentException, match="At least one path"):
        await box.git.restore(path, [])
    with pytest.raises(InvalidArgumentException, match="staged or worktree"):
        await box.git.restore(path, ["."], staged=False, worktree=False)


# ---- remotes --------------------------------------------------------------------------------


async def test_remotes_are_added_changed_and_read(box: Box) -> None:
    path, remote = await box.repository(), await box.remote()
    assert await box.git.remote_get(path, "origin") is None
    await box.git.remote_add(path, "origin", "/elsewhere")
    assert await box.git.remote_get(path, "origin") == "/elsewhere"
    with pytest.raises(CommandExitException) as taken:
        await box.git.remote_add(path, "origin", remote)
    assert taken.value.exit_code == 3
    await box.git.remote_add(path, "origin", remote, fetch=True, overwrite=True)
    assert await box.git.remote_get(path, "origin") == remote
    assert await box.sh("git -C repo rev-parse --abbrev-ref origin/main") == "origin/main\n"
    with pytest.raises(CommandExitException):
        await box.git.remote_add(path, "away", "/elsewhere", fetch=True)
    with pytest.raises(InvalidArgumentException):
        await box.git.remote_add(path, "", remote)
    with pytest.raises(InvalidArgumentException):
        await box.git.remote_get(path, "")


async def test_push_and_pull_bring_commits_over(box: Box) -> None:
    remote = await box.remote()
    ours, theirs = box.path("ours"), box.path("theirs")
    for path in (ours, theirs):
        await box.git.clone(remote, path)
    await box.write(f"{ours}/b.txt", "b")
    await box.git.add(ours)
    await box.git.commit(ours, "b")
    await box.git.push(ours)
    await box.git.pull(theirs)
    assert await box.files.read(f"{theirs}/b.txt") == "b"
    assert "Already up to date" in (await box.git.pull(theirs)).stdout
    # A branch of one's own gets its upstream with the first push.
    await box.git.create_branch(ours, "side")
    await box.git.push(ours, remote="origin", branch="side")
    assert (await box.git.status(ours)).upstream == "origin/side"
    await box.git.pull(theirs, remote="origin", branch="side")


async def test_push_and_pull_name_a_missing_upstream(box: Box) -> None:
    path, remote = await box.repository(), await box.remote()
    await box.git.remote_add(path, "origin", remote)
    with pytest.raises(GitUpstreamException, match="Git push failed because no upstream"):
        await box.git.push(path, set_upstream=False)
    with pytest.raises(GitUpstreamException, match="Git pull failed because no upstream"):
        await box.git.pull(path)
    for call in (box.git.push, box.git.pull):
        with pytest.raises(InvalidArgumentException, match="Username is required"):
            await call(path, password="x")


async def test_a_push_that_would_lose_commits_is_refused(box: Box) -> None:
    remote = await box.remote()
    ours, theirs = box.path("ours"), box.path("theirs")
    for path in (ours, theirs):
        await box.git.clone(remote, path)
        await box.write(f"{path}/a.txt", f"{path}\n")
        await box.git.add(path)
        await box.git.commit(path, "both change it")
    await box.git.push(theirs)
    with pytest.raises(CommandExitException) as refused:
        await box.git.push(ours)
    assert refused.value.exit_code == 1 and "fetch first" in refused.value.stderr
    await box.git.set_config("pull.rebase", "false", scope="local", path=ours)
    with pytest.raises(CommandExitException) as conflict:
        await box.git.pull(ours)
    assert conflict.value.exit_code == 1 and "CONFLICT" in conflict.value.stdout
    status = await box.git.status(ours)
    assert status.has_conflicts and status.conflict_count == 1


# ---- configuration, credentials -------------------------------------------------------------


async def test_configuration_in_each_scope(box: Box) -> None:
    path = await box.repository()
    key = f"sandyard.k{uuid.uuid4().hex}"
    assert await box.git.get_config(key) is None
    await box.git.set_config(key, "it's $HOME")
    assert await box.git.get_config(key) == "it's $HOME"
    await box.git.set_config(key, "here", scope="local", path=path)
    assert await box.git.get_config(key, scope="local", path=path) == "here"
    assert await box.git.get_config(key) == "it's $HOME"
    # The system's file is root's.
    with pytest.raises(CommandExitException, match="could not lock config file"):
        await box.git.set_config(key, "all", scope="system")
    await box.git.set_config(key, "all", scope="system", user="root")
    assert await box.git.get_config(key, scope="system") == "all"
    for wrong in ({"scope": "world"}, {"scope": "local"}):
        with pytest.raises(InvalidArgumentException):
            await box.git.set_config(key, "x", **wrong)
        with pytest.raises(InvalidArgumentException):
            await box.git.get_config(key, **wrong)
    with pytest.raises(InvalidArgumentException, match="key is required"):
        await box.git.set_config("", "x")
    with pytest.raises(CommandExitException):
        await box.git.set_config("nodot", "x")


async def test_the_user_is_configured_for_one_repository(box: Box) -> None:
    path = await box.repository()
    await box.git.configure_user("Only Here", "here@example.org", scope="local", path=path)
    await box.git.commit(path, "by another", allow_empty=True)
    assert await box.sh("git -C repo log -1 --format='%an %ae'") == "Only Here here@example.org\n"
    assert await box.git.get_config("user.name") == "Ada"
    with pytest.raises(InvalidArgumentException, match="Both name and email"):
        await box.git.configure_user("", "x@example.org")


async def http_remote(box: Box) -> str:
    """The URL of a fresh repository behind the HTTP remote."""
    name = f"{uuid.uuid4().hex}.git"
    bare = await box.remote()
    await box.sh(f"mkdir -p {REMOTES} && cp -r '{bare}' {REMOTES}/{name} && "
                 f"git -C {REMOTES}/{name} config http.receivepack true")
    return f"http://127.0.0.1:{HTTP_PORT}/{name}"


async def test_without_credentials_the_error_says_so(box: Box) -> None:
    url = await http_remote(box)
    with pytest.raises(GitAuthException, match="Git clone requires credentials"):
        await box.git.clone(url, box.path("copy"))
    with pytest.raises(GitAuthException, match="requires a password/token"):
        await box.git.clone(url, box.path("copy"), username=USERNAME)
    with pytest.raises(GitAuthException):
        await box.git.clone(url, box.path("copy"), username=USERNAME, password="wrong")
    path = await box.repository()
    await box.git.remote_add(path, "origin", url)
    with pytest.raises(GitAuthException, match="Git push requires credentials"):
        await box.git.push(path, remote="origin", branch="main")
    with pytest.raises(GitAuthException, match="Git pull requires credentials"):
        await box.git.pull(path, remote="origin", branch="main")


async def test_credentials_are_used_and_not_kept(box: Box) -> None:
    url = await http_remote(box)
    path = box.path("copy")
    credentials = {"username": USERNAME, "password": PASSWORD}
    await box.git.clone(url, path, **credentials)
    assert await box.git.remote_get(path, "origin") == url
    await box.git.commit(path, "through HTTP", allow_empty=True)
    await box.git.push(path, **credentials)
    await box.git.clone(url, box.path("second"), **credentials)
    await box.git.commit(box.path("second"), "back", allow_empty=True)
    await box.git.push(box.path("second"), **credentials)
    await box.git.pull(path, **credentials)
    assert await box.sh("git -C copy log -1 --format=%s") == "back\n"
    # Not even after a failure.
    with pytest.raises(CommandExitException):
        await box.git.push(path, branch="nothing", **credentials)
    await box.sh(f"! grep -r {PASSWORD} copy second")

    await box.git.clone(url, box.path("kept"), dangerously_store_credentials=True, **credentials)
    kept = url.replace("http://", f"http://{USERNAME}:{PASSWORD}@")
    assert await box.git.remote_get(box.path("kept"), "origin") == kept


async def test_the_credential_store_is_used_without_asking(box: Box) -> None:
    url = await http_remote(box)
    host = f"127.0.0.1:{HTTP_PORT}"
    with pytest.raises(InvalidArgumentException, match="Both username and password"):
        await box.git.dangerously_authenticate(USERNAME, "", host=host, protocol="http")
    try:
        await box.git.dangerously_authenticate(USERNAME, PASSWORD, host=host, protocol="http")
        await box.git.clone(url, box.path("copy"))
        await box.git.commit(box.path("copy"), "x", allow_empty=True)
        await box.git.push(box.path("copy"))
    finally:
        # It is the whole sandbox's, and other tests are about having no credentials.
        await box.sh("git config --global --unset credential.helper; rm -f ~/.git-credentials")
