"""The official SDK over TLS, by host names alone: control-plane 5.4, setup B. What `sandyard env --tls`
prints is all that a client is told."""

from __future__ import annotations

import os
import pathlib
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import BIN, Server

LINES_BEFORE = "import asyncio, httpx, os, sys\nfrom e2b import AsyncSandbox, CommandExitException, Sandbox\n"

SYNC = LINES_BEFORE + """
box = Sandbox.create(metadata={"over": "tls"})
domain = os.environ["E2B_DOMAIN"]
# control-plane 5.2: all names are of the one domain.
assert box.envd_api_url == f"https://49983-{box.sandbox_id}.{domain}", box.envd_api_url
assert box.commands.run("echo $((6 * 7))").stdout == "42\\n"
try:
    box.commands.run("exit 3")
    raise AssertionError("no exception")
except CommandExitException as error:
    assert error.exit_code == 3
data = os.urandom(8 << 20)
box.files.write("data", data)
assert box.files.read("data", format="bytes") == data
seen = []
handle = box.commands.run("for n in 1 2 3; do echo $n; done; cat", background=True, stdin=True)
box.commands.send_stdin(handle.pid, "text\\n")
box.commands.close_stdin(handle.pid)
assert handle.wait(on_stdout=seen.append).stdout == "1\\n2\\n3\\ntext\\n"
page = Sandbox.list().next_items()
assert box.sandbox_id in [item.sandbox_id for item in page]
# 5.2: signed URLs name the sandbox in their host. httpx asks the system for names, so it is told this one.
url = httpx.URL(box.download_url("data"))
assert url.host == f"49983-{box.sandbox_id}.{domain.partition(':')[0]}"


def get(url, **headers):
    url = httpx.URL(url)
    with httpx.Client() as client:
        return client.get(url.copy_with(host="127.0.0.1"), extensions={"sni_hostname": url.host},
                          headers={"Host": url.netloc.decode(), **headers})


assert get(url).content == data
# 5.4: `https://<getHost>`, 5.6: a closed port by host name, as JSON and as a page.
box.commands.run("python3 -m http.server --bind 127.0.0.1 8000", background=True)
box.commands.run("until ss -Hltn 'sport = :8000' | grep -q .; do sleep 0.02; done")
assert get(f"https://{box.get_host(8000)}/").status_code == 200
closed = get(f"https://{box.get_host(8001)}/")
assert (closed.status_code, closed.headers["Content-Type"]) == (502, "application/json; charset=utf-8")
assert closed.json() == {"sandboxId": box.sandbox_id, "port": 8001, "code": 502,
                         "message": "The sandbox is running but port is not open"}
page = get(f"https://{box.get_host(8001)}/", **{"User-Agent": "Mozilla/5.0"})
assert page.headers["Content-Type"] == "text/html; charset=utf-8"
assert page.text.startswith("<html") and page.text.endswith("</html>")
assert "no service running on port" in page.text
assert box.kill() and not box.is_running()
gone = get(f"https://{box.get_host(8000)}/")
assert (gone.status_code, gone.json()) == (502, {
    "sandboxId": box.sandbox_id, "code": 502, "message": "The sandbox was not found"})
"""

ASYNC = LINES_BEFORE + """
async def main():
    box = await AsyncSandbox.create()
    assert box.envd_api_url.startswith(f"https://49983-{box.sandbox_id}.")
    # Many at once, on as few connections as the version of HTTP allows.
    results = await asyncio.gather(*(box.commands.run(f"sleep 0.1; echo {n}") for n in range(30)))
    assert [result.stdout for result in results] == [f"{n}\\n" for n in range(30)]
    data = os.urandom(8 << 20)
    await box.files.write("data", data)
    assert await box.files.read("data", format="bytes") == data
    again = await AsyncSandbox.connect(box.sandbox_id)
    assert (await again.get_info()).sandbox_id == box.sandbox_id
    assert await box.kill()
    assert not await box.is_running()


asyncio.run(main())
"""


def exports(server: Server, *arguments: str) -> dict[str, str]:
    lines = server.command("env", "--tls", *arguments).stdout.splitlines()
    lines = [line for line in lines if not line.startswith("unset ")]
    return dict(line.removeprefix("export ").split("=", 1) for line in lines)


def clean() -> dict[str, str]:
    ours = ("E2B_", "SANDYARD_", "SSL_CERT", "NODE_EXTRA")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def run(script: str, variables: dict[str, str]) -> None:
    """Runs a client in a process of its own: certificates are read when it starts.

    Its last line ends it: the SDK's transport, whatever server it spoke to and with TLS or without, aborts
    one in ten processes that end by themselves after asynchronous calls (seen with pyqwest of e2b 2.63).
    """
    end = "\nimport os\nprint('passed', flush=True)\nos._exit(0)\n"
    done = subprocess.run([sys.executable, "-c", script + end], env=clean() | variables,
                          capture_output=True, text=True, timeout=90)
    assert (done.returncode, done.stdout) == (0, "passed\n"), f"{done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def variables(server: Server) -> dict[str, str]:
    return exports(server)


def port_of(server: Server) -> int:
    return int(server.sandbox_url.rpartition(":")[2])


def test_env_prints_what_clients_need(server: Server, variables: dict[str, str]) -> None:
    # control-plane 5.4, 5.8
    assert variables["E2B_API_KEY"] == server.api_key
    assert variables["E2B_DOMAIN"] == f"sbx.localhost:{port_of(server)}"
    assert not {"E2B_API_URL", "E2B_SANDBOX_URL"} & variables.keys()
    # Python trusts this file and nothing else: the system's certificates are in it too.
    ours = pathlib.Path(variables["NODE_EXTRA_CA_CERTS"]).read_text().strip()
    bundle = pathlib.Path(variables["SSL_CERT_FILE"]).read_text()
    assert ours in bundle
    system = pathlib.Path("/etc/ssl/certs/ca-certificates.crt")
    if system.exists():
        assert system.read_text().strip() in bundle
    assert "PRIVATE" not in bundle
    assert "PRIVATE" in (server.folder / "tls/authority.json").read_text()
    for file in (server.folder / "tls").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    # Where a shell has the other variables, they would win over the domain.
    lingering = server.environment() | {"E2B_API_URL": "http://localhost:1"}
    printed = subprocess.run([BIN / "sandyard", "env", "--tls", "--data-dir", server.folder],
                             check=True, capture_output=True, text=True, env=lingering)
    assert "unset E2B_API_URL" in printed.stdout.splitlines()
    assert "E2B_SANDBOX_URL" not in printed.stdout
    # Which names have to resolve where.
    assert "api.sbx.localhost" in printed.stderr and "libnss-myhostname" in printed.stderr
    # A client elsewhere has copies.
    copied = exports(server, "--certificates", "/some where")
    assert copied["SSL_CERT_FILE"] == "'/some where/ca-bundle.pem'"
    # Its shell cannot be looked at from here, so that nothing lingers in it either.
    printed = server.command("env", "--tls", "--certificates", "/some where").stdout.splitlines()
    assert printed[:2] == ["unset E2B_API_URL", "unset E2B_SANDBOX_URL"]


@pytest.mark.parametrize("version", ["2", "1.1"])
@pytest.mark.parametrize("script", [SYNC, ASYNC], ids=["sync", "async"])
def test_the_sdk_over_tls(variables: dict[str, str], script: str, version: str) -> None:
    # control-plane 5.8: both versions of HTTP; names under .localhost; SSL_CERT_FILE.
    run(script, variables | {"E2B_HTTP_VERSION": version})


@pytest.mark.parametrize("version", ["h2", "http/1.1"])
def test_both_versions_are_offered_and_served(
        server: Server, variables: dict[str, str], version: str) -> None:
    # control-plane 5.8: HTTP/1.1 always; what ALPN offers is served.
    context = ssl.create_default_context(cafile=variables["NODE_EXTRA_CA_CERTS"])
    context.set_alpn_protocols([version])
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=20) as plain:
        with context.wrap_socket(plain, server_hostname="api.sbx.localhost") as stream:
            assert stream.selected_alpn_protocol() == version
            names = {value for _, value in stream.getpeercert()["subjectAltName"]}
    assert names == {"*.sbx.localhost", "sbx.localhost", "localhost", "127.0.0.1",
                     "0:0:0:0:0:0:0:1"}


def test_without_the_certificate_a_client_refuses(variables: dict[str, str]) -> None:
    told = {name: variables[name] for name in ("E2B_API_KEY", "E2B_DOMAIN")}
    run("from e2b import Sandbox\ntry:\n    Sandbox.list().next_items()\nexcept Exception as error:\n"
        "    assert 'issuer' in repr(error).lower() or 'certificate' in repr(error).lower(), error\n"
        "else:\n    raise AssertionError('trusted')\n", told)


def test_a_restart_keeps_what_clients_trust(own_server: Callable[..., Server]) -> None:
    server = own_server()
    before = exports(server)
    ca = pathlib.Path(before["NODE_EXTRA_CA_CERTS"])
    trusted = ca.read_bytes()
    server.restart()
    assert ca.read_bytes() == trusted
    # The port is another one, the certificate the same.
    run("from e2b import Sandbox\nassert Sandbox.list().next_items() == []",
        before | {"E2B_DOMAIN": f"sbx.localhost:{port_of(server)}"})


def openssl(*arguments: str | pathlib.Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def test_it_may_be_asked_for_by_many_at_once(server: Server) -> None:
    """Each writes the bundle of certificates anew."""
    with ThreadPoolExecutor(8) as pool:
        asked = list(pool.map(lambda _: server.command("env", "--tls", check=False), range(16)))
    assert [one.stderr for one in asked if one.returncode != 0] == []
    assert len({one.stdout for one in asked}) == 1


def test_a_certificate_of_the_users_own(
        own_server: Callable[..., Server], folder: pathlib.Path) -> None:
    certificate, key = folder / "mine.pem", folder / "mine.key"
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=mine",
            "-addext", "subjectAltName=DNS:*.mine.example", "-keyout", key, "-out", certificate)
    server = own_server(SANDYARD_TLS__CERTIFICATE_FILE=str(certificate),
                        SANDYARD_TLS__KEY_FILE=str(key), SANDYARD_PROXY__DOMAIN="mine.example")
    printed = exports(server)
    assert printed["E2B_DOMAIN"] == "mine.example"
    assert not {"SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"} & printed.keys()
    context = ssl.create_default_context(cafile=certificate)
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=20) as plain:
        with context.wrap_socket(plain, server_hostname="api.mine.example") as stream:
            stream.sendall(b"GET /health HTTP/1.1\r\nHost: api.mine.example\r\n"
                           b"Connection: close\r\n\r\n")
            answer = stream.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"Health check successful")


def test_doctor_looks_whether_names_resolve(server: Server) -> None:
    # control-plane 5.8: plain glibc does not resolve them, and Node needs it to.
    said = server.command("doctor", check=False).stdout
    line = next(line for line in said.splitlines() if "api.sbx.localhost" in line)
    try:
        socket.getaddrinfo("api.sbx.localhost", 443)
    except socket.gaierror:
        assert line.startswith("note") and "libnss-myhostname" in line
    else:
        assert line.startswith("ok") and ("127.0.0.1" in line or "::1" in line)
