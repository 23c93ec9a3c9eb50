"""A snapshot of a sandbox whose image has nearly as many layers as the engine's storage takes
(docs/decisions/life-cycle.md)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest
from conftest import NO_POOL, Server, docker
from lifecycle import Rest

LAYERS = 101
ODD = """a "b" $c \\d 'e'"""
IMAGE = "sandyard-test/layers:latest"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("layers")
    quoted = ODD.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    lines = ["FROM sandyard/base:latest", f'ENV ODD="{quoted}"', "WORKDIR /opt/work", "USER root", "RUN chown user .", "USER user", "COPY Dockerfile ."]
    lines += [f"COPY Dockerfile layer-{n}" for n in range(LAYERS)]
    (folder / "Dockerfile").write_text("\n".join(lines) + "\n")
    subprocess.run(["docker", "build", "--quiet", "--tag", IMAGE, folder], check=True, capture_output=True)
    config = folder / "sandyard.toml"
    config.write_text(f'[[templates]]\nname = "layers"\nimage = "{IMAGE}"\n')
    running = Server(folder / "data", NO_POOL, ("--config", str(config)))
    yield running
    running.down()
    docker("rmi", "--force", IMAGE)


def layers(image: str) -> int:
    return len(json.loads(docker("image", "inspect", image))[0]["RootFS"]["Layers"])


def test_many_layers_become_one(server: Server) -> None:
    rest = Rest(server)
    before = set(docker("images", "-q", "--no-trunc").split())
    sandbox = rest.create("layers")
    run = rest.sdk(sandbox).commands.run
    run("echo kept > here && sudo chmod 4755 here && ln -s here link")
    shown = "pwd; printenv ODD; ls -l --time-style=+%s . | sort; cat here; sudo id -u"
    expected = run(shown).stdout
    assert expected.splitlines()[:2] == ["/opt/work", ODD]
    snapshot = rest.does("snapshot", sandbox, 201).json()["snapshotID"]
    (image,) = set(docker("images", "-q", "--no-trunc").split()) - before
    assert layers(IMAGE) > LAYERS and layers(image) == 1
    copy = rest.create(snapshot)
    assert rest.sdk(copy).commands.run(shown).stdout == expected
    # From here the chain goes on with a layer each.
    again = rest.does("snapshot", copy, 201).json()["snapshotID"]
    assert rest.sdk(rest.create(again)).commands.run(shown).stdout == expected
    rest.close()
    assert set(docker("images", "-q", "--no-trunc").split()) == before
