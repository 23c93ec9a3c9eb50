"""R and Java by the official package, in the template that has them. The image comes from
`scripts/setup interpreter-full`; it is made and tested with `SOAK=full` only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from conftest import Server
from e2b import TimeoutException
from e2b_code_interpreter import Sandbox

pytestmark = pytest.mark.full

NASTY = "it's \"q\" $X `id` \\ \n\t\x1b7 ünï !"


@pytest.fixture(scope="module")
def box(server: Server) -> Iterator[Sandbox]:
    made = Sandbox.create("code-interpreter-full", timeout=600, envs={"GLOBAL": "of the sandbox", "NASTY": NASTY},
                          **server.options())
    yield made
    made.kill()


def test_r(box: Sandbox) -> None:
    def run(code: str, **options: object) -> object:
        return box.run_code(code, language="r", **options)

    assert run("x <- 'Hello World!'; print(x)").logs.stdout == ['[1] "Hello World!"\n']
    # IRkernel shows values as it shows everything else: they are no main results.
    assert [r.text for r in run("x").results] == ['[1] "Hello World!"']
    assert [r.text for r in run("getwd()").results] == ['[1] "/home/user"']
    failed = run("stop('no')")
    assert failed.error is not None and "no" in failed.error.value
    [plot] = [r for r in run("plot(1:3)").results if r.png]
    assert plot.png


def test_java(box: Sandbox) -> None:
    def run(code: str, **options: object) -> object:
        return box.run_code(code, language="java", **options)

    first = run('System.out.println("Hello, World!");')
    assert first.logs.stdout[0] == "Hello, World!"
    assert "".join(first.logs.stdout) == "Hello, World!\n"
    assert first.execution_count == 1
    assert run("int x = 5;\nx", envs={"A": "1"}).execution_count == 2
    third = run("x + 1")
    assert (third.text, third.execution_count) == ("6", 3)
    assert run('System.getProperty("user.dir")').text == "/home/user"
    assert run('throw new IllegalStateException("no");').error.value == "java.lang.IllegalStateException, no"


READ = {
    "r": "cat(Sys.getenv('{}', 'None'))",
    "java": 'System.out.print(System.getProperty("{}", "None"))',
}


@pytest.mark.parametrize("language", READ)
def test_variables(box: Sandbox, language: str) -> None:
    def read(name: str, envs: dict[str, str] | None = None) -> str:
        ran = box.run_code(READ[language].format(name), language=language, envs=envs)
        assert ran.error is None, ran.error
        return "".join(ran.logs.stdout)

    assert read("GLOBAL") == "of the sandbox"
    assert read("NASTY") == NASTY
    assert read("GLOBAL", {"GLOBAL": "of the call"}) == "of the call"
    assert read("GLOBAL") == "of the sandbox"
    assert read("OWN", {"OWN": NASTY}) == NASTY
    assert read("OWN") == "None"


@pytest.mark.parametrize(("language", "loop", "after"), [
    ("r", "Sys.sleep(300)", "cat(1 + 1)"),
    ("java", "while (true) { Thread.sleep(10); }", "System.out.print(1 + 1)"),
])
def test_interrupt(box: Sandbox, language: str, loop: str, after: str) -> None:
    with pytest.raises(TimeoutException):
        box.run_code(loop, language=language, timeout=3)
    begun = time.monotonic()
    assert "".join(box.run_code(after, language=language, timeout=10).logs.stdout) == "2"
    assert time.monotonic() - begun < 3


def test_all_languages_side_by_side(box: Sandbox) -> None:
    code = {"python": "print(1)", "js": "console.log(1)", "ts": "console.log(1)", "bash": "echo 1",
            "r": "cat('1\\n')", "java": "System.out.println(1);"}
    out: dict[str, str] = {}

    def run(language: str) -> None:
        out[language] = "".join(box.run_code(code[language], language=language).logs.stdout)

    threads = [threading.Thread(target=run, args=(language,)) for language in code]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert out == dict.fromkeys(code, "1\n")
