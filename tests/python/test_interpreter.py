"""The code interpreter by the official package: what the contract's section 10 pins, one by one.

The images come from `scripts/setup interpreter`.
"""

from __future__ import annotations

import base64
import io
import json
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from conftest import ROOT, Server, docker, until
from e2b import NotFoundException, SandboxException, TimeoutException
from e2b_code_interpreter import AsyncSandbox, Sandbox

TEMPLATE = "code-interpreter-v1"


def create(server: Server, **options: object) -> Sandbox:
    return Sandbox.create(**{"timeout": 600, **server.options(), **options})


@pytest.fixture(scope="module")
def box(server: Server) -> Iterator[Sandbox]:
    """One sandbox that most tests share; the default context is anybody's, so tests that need one make their own."""
    made = create(server, envs={"GLOBAL": "of the sandbox", "NASTY": "it's \"q\" $X `id` \\ \n\tünï !"})
    yield made
    made.kill()


@pytest.fixture
def context(box: Sandbox) -> Iterator[object]:
    made = box.create_code_context()
    yield made
    box.remove_code_context(made)


def url(server: Server) -> str:
    return server.sandbox_url


def headers(sandbox: Sandbox, port: int = 49999) -> dict[str, str]:
    told = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": str(port)}
    if sandbox._envd_access_token:
        told["X-Access-Token"] = sandbox._envd_access_token
    return told


def execute(server: Server, sandbox: Sandbox, body: dict[str, object]) -> httpx.Response:
    return httpx.post(f"{url(server)}/execute", json=body, headers=headers(sandbox), timeout=60)


# ---- basics -------------------------------------------------------------------------------------------------------


def test_the_default_template_is_the_packages_own(box: Sandbox) -> None:
    assert box.run_code("x =1; x").text == "1"
    assert box.get_info().name == TEMPLATE


def test_state_stays_in_the_default_context_and_over_a_new_connection(server: Server, box: Sandbox) -> None:
    box.run_code("kept = 41")
    assert box.run_code("kept + 1").text == "42"
    again = Sandbox.connect(box.sandbox_id, **server.options())
    assert again.run_code("kept + 2").text == "43"


def test_a_context_does_not_see_anothers_variables(box: Sandbox, context: object) -> None:
    box.run_code("only_default = 1")
    seen = box.run_code("only_default", context=context)
    assert seen.error is not None
    assert seen.error.value == "name 'only_default' is not defined"


def test_the_count_rises_with_failures_and_not_with_what_is_ours(box: Sandbox, context: object) -> None:
    first = box.run_code("this is no Python", context=context, envs={"A": "1"})
    assert first.error is not None and first.error.name == "SyntaxError"
    assert first.execution_count == 1
    assert box.run_code("1", context=context, envs={"A": "2"}).execution_count == 2
    assert box.run_code("1", context=context).execution_count == 3


def test_a_secured_sandbox_without_public_traffic(server: Server) -> None:
    sandbox = create(server, secure=True, network={"allow_public_traffic": False})
    try:
        assert sandbox.run_code("x =1; x").text == "1"
        made = sandbox.create_code_context(cwd="/root")
        assert sandbox.run_code("import os; os.getcwd()", context=made).text == "/root"
        assert [c.id for c in sandbox.list_code_contexts()][-1] == made.id
        refused = execute(server, sandbox, {"code": "1"})
        assert refused.status_code == 403, refused.text
    finally:
        sandbox.kill()


def run_with(server: Server, sandbox: str, token: str | None) -> int:
    """The status of a cell whose client shows this token."""
    shown = {"E2b-Sandbox-Id": sandbox, "E2b-Sandbox-Port": "49999"} | ({} if token is None else {"X-Access-Token": token})
    return httpx.post(f"{url(server)}/execute", json={"code": "1"}, headers=shown).status_code


def test_a_secured_sandbox_runs_code_for_its_token_only(server: Server, box: Sandbox) -> None:
    tried = [run_with(server, box.sandbox_id, token) for token in (box._envd_access_token, "wrong", "", None)]
    assert tried == [200, 401, 401, 401]


def test_an_insecure_sandbox(server: Server) -> None:
    """As older releases create it (control-plane 3.3): nobody was told a token."""
    with server.http() as api:
        made = api.post("/sandboxes", json={"templateID": TEMPLATE, "secure": False, "timeout": 100}).json()
        assert made.get("envdAccessToken") is None
        tried = [run_with(server, made["sandboxID"], token) for token in (None, "wrong")]
        assert tried == [200, 401]
        assert api.delete(f"/sandboxes/{made['sandboxID']}").status_code == 204


# ---- contexts -----------------------------------------------------------------------------------------------------


def test_a_fresh_sandbox_has_exactly_the_two_default_contexts(server: Server) -> None:
    sandbox = create(server)
    try:
        listed = sandbox.list_code_contexts()
        assert [(c.language, c.cwd) for c in listed] == [("python", "/home/user"), ("javascript", "/home/user")]
    finally:
        sandbox.kill()


def test_a_created_context_is_listed_last_and_a_removed_one_is_not(box: Sandbox) -> None:
    made = box.create_code_context(language="python", cwd="/root")
    assert (made.language, made.cwd) == ("python", "/root")
    last = box.list_code_contexts()[-1]
    assert (last.id, last.language, last.cwd) == (made.id, made.language, made.cwd)
    # The terminal that `!` runs programs in ends lines with both characters.
    assert [line.strip() for line in box.run_code("!pwd", context=made).logs.stdout] == ["/root"]
    box.remove_code_context(made)
    assert made.id not in [c.id for c in box.list_code_contexts()]
    with pytest.raises(NotFoundException):
        box.run_code("1", context=made)
    with pytest.raises(NotFoundException):
        box.remove_code_context(made)
    with pytest.raises(NotFoundException):
        box.restart_code_context(made)


def test_a_restarted_context_is_the_same_without_its_state(box: Sandbox, context: object) -> None:
    box.run_code("x = 1", context=context)
    box.restart_code_context(context)
    seen = box.run_code("x", context=context)
    assert (seen.error.name, seen.error.value) == ("NameError", "name 'x' is not defined")
    assert seen.execution_count == 1


def test_a_restart_and_a_removal_end_what_runs(box: Sandbox) -> None:
    for end in (box.restart_code_context, box.remove_code_context):
        made = box.create_code_context()
        ended = []
        begun = threading.Event()
        run = threading.Thread(target=lambda made=made: ended.append(box.run_code(
            "print('begun')\nimport time; time.sleep(60)", context=made, on_stdout=lambda _: begun.set())))
        run.start()
        assert begun.wait(20)
        end(made)
        run.join(20)
        assert ended and ended[0].error.name == "UnexpectedEndOfExecution", ended
    box.run_code("1")


def test_a_directory_that_is_none_and_a_language_that_is_none(server: Server, box: Sandbox) -> None:
    with pytest.raises(SandboxException, match="500.*/nowhere"):
        box.create_code_context(cwd="/nowhere")
    with pytest.raises(SandboxException, match="500.*'cobol'.*installed: bash, javascript, python, typescript"):
        box.run_code("1", language="cobol")
    with pytest.raises(SandboxException, match="500.*'java'.*'code-interpreter-full'"):
        box.create_code_context(language="java")
    assert execute(server, box, {"code": "1", "context_id": "a", "language": "python"}).status_code == 400
    missing = execute(server, box, {"code": "1", "context_id": "nobody"})
    assert (missing.status_code, missing.text) == (404, "Context nobody not found")
    assert execute(server, box, {"language": "python"}).status_code == 422


# ---- output -------------------------------------------------------------------------------------------------------


def test_logs(box: Sandbox) -> None:
    out, err = [], []
    ran = box.run_code("print('Hello from e2b')", on_stdout=out.append, on_stderr=err.append)
    assert ran.logs.stdout == ["Hello from e2b\n"] == [m.line for m in out]
    assert out[0].timestamp
    ran = box.run_code("import sys; print('Hello from e2b', file=sys.stderr)", on_stderr=err.append)
    assert ran.logs.stderr == ["Hello from e2b\n"] == [m.line for m in err]


def test_output_comes_as_it_is_made(box: Sandbox) -> None:
    seen: list[tuple[float, str]] = []
    code = "import time\nfor i in range(3):\n    print(i, flush=True); time.sleep(0.5)"
    box.run_code(code, on_stdout=lambda m: seen.append((time.monotonic(), m.line)))
    assert "".join(line for _, line in seen) == "0\n1\n2\n"
    assert seen[-1][0] - seen[0][0] > 0.7


def test_an_error_comes_once_with_name_value_and_traceback(box: Sandbox) -> None:
    errors = []
    ran = box.run_code("y = 1\nundefined_name", on_error=errors.append)
    assert len(errors) == 1
    assert (ran.error.name, ran.error.value) == ("NameError", "name 'undefined_name' is not defined")
    assert "----> 2 undefined_name" in ran.error.traceback and "\x1b" not in ran.error.traceback


def test_unicode_and_what_is_none(box: Sandbox) -> None:
    text = "ünï ✓ 日本 😀 \u2028 \x00 \x1b[31m"
    assert box.run_code(f"print({text!r}, end='')").logs.stdout == [text]
    ran = box.run_code("import os; os.write(1, b'\\xff\\xfe raw\\n'); '\\udc80 half'")
    assert ran.error is None and ran.text is not None


def test_ten_megabytes_of_output(box: Sandbox) -> None:
    ran = box.run_code("for i in range(10 * 1024): print('x' * 1023)")
    assert len("".join(ran.logs.stdout)) == 10 << 20
    assert box.run_code("1").text == "1"


def test_code_of_five_megabytes(box: Sandbox) -> None:
    assert box.run_code(f"long = '{'x' * (5 << 20)}'; len(long)").text == str(5 << 20)


def test_lines_are_the_contracts(server: Server, box: Sandbox, context: object) -> None:
    code = ("import sys\nprint('a'); sys.stdout.flush(); print('b', file=sys.stderr)\n"
            "from IPython.display import Latex, display\ndisplay(Latex('$x$'))\n'it'")
    answer = execute(server, box, {"code": code, "context_id": context.id, "language": None, "env_vars": None})
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert answer.text.endswith("\n") and "\n\n" not in answer.text
    assert [line["type"] for line in lines] == [
        "number_of_executions", "stdout", "stderr", "result", "result", "end_of_execution"]
    for line in lines[1:3]:
        line.pop("timestamp")
    assert lines[1] == {"type": "stdout", "text": "a\n"}
    assert lines[3]["latex"] == "$x$" and not lines[3]["is_main_result"]
    assert lines[4] == {"type": "result", "text": "it", "is_main_result": True, "extra": {}}


def test_a_silent_execution_is_kept_alive(server: Server, box: Sandbox, context: object) -> None:
    types = []
    body = {"code": "import time; time.sleep(6)", "context_id": context.id}
    with httpx.stream("POST", f"{url(server)}/execute", json=body, headers=headers(box), timeout=30) as answer:
        for line in answer.iter_lines():
            types.append(json.loads(line)["type"])
    assert types == ["number_of_executions", "keepalive", "end_of_execution"]


def test_input_is_refused_and_not_waited_for(box: Sandbox) -> None:
    assert box.run_code("input('name?')", timeout=20).error.name == "StdinNotImplementedError"


# ---- results ------------------------------------------------------------------------------------------------------


def test_a_plot_and_a_value_are_two_results(box: Sandbox) -> None:
    ran = box.run_code("import matplotlib.pyplot as plt, numpy as np\nx = np.arange(5)\nplt.plot(x, x**2)\nplt.show()\nx")
    assert len(ran.results) == 2
    plot, value = ran.results
    assert plot.png and plot.text and not plot.is_main_result and plot.extra == {}
    assert plot.chart.type.value == "line"
    assert value.is_main_result and value.text == "array([0, 1, 2, 3, 4])" == ran.text


def test_a_table_is_html_and_data(box: Sandbox) -> None:
    ran = box.run_code(
        "import pandas as pd\npd.DataFrame({'a': [1, 2.5, float('nan')], 'b': ['x', None, 'z'], "
        "'t': pd.to_datetime(['2024-01-01T00:00:00', None, '2024-01-02T03:04:05'])})")
    [table] = ran.results
    assert table.data == {"a": [1.0, 2.5, None], "b": ["x", None, "z"],
                          "t": ["2024-01-01T00:00:00", None, "2024-01-02T03:04:05"]}
    assert "<table" in table.html and table.text


def test_nothing_in_a_table_is_null(box: Sandbox) -> None:
    code = "import pandas as pd\npd.DataFrame({'i': pd.array([1, None], dtype='Int64'), 't': [pd.NaT, None], 'f': [float('nan'), 1]})"
    [table] = box.run_code(code).results
    assert table.data == {"i": [1, None], "t": [None, None], "f": [None, 1]}


def test_lists_and_dictionaries_are_json_too(box: Sandbox) -> None:
    value = box.run_code("import numpy as np\n{1: np.int64(3), 'n': float('nan'), 'l': [1, (2,)]}").results[0]
    assert value.json == {"1": 3, "n": None, "l": [1, [2]]}
    [long] = box.run_code("list(range(3000))").results
    assert long.json == list(range(3000)) and long.text.endswith("2998,\n 2999]")
    [strange] = box.run_code("[object]").results
    assert strange.json is None and strange.text == "[object]"


def test_formats(box: Sandbox) -> None:
    [latex] = box.run_code("from IPython.display import Latex; Latex('$x$')").results
    # The value's own text comes with it; shown alone it does not.
    assert list(latex.formats()) == ["text", "latex"]
    [shown] = box.run_code("from IPython.display import display\ndisplay({'text/latex': '$x$'}, raw=True)").results
    assert list(shown.formats()) == ["latex"]
    all_types = ("text/html text/markdown image/svg+xml text/latex application/javascript "
                 "image/png image/jpeg application/pdf").split()
    bundle = {t: "v" for t in all_types} | {"application/json": {"a": 1}, "x/y": "other"}
    [every] = box.run_code(f"display({bundle!r}, raw=True)").results
    assert (every.html, every.markdown, every.svg, every.latex, every.javascript) == ("v",) * 5
    assert (every.png, every.jpeg, every.pdf) == ("v",) * 3
    assert every.json == {"a": 1} and every.extra == {"x/y": "other"}


IMAGE = "from PIL import Image\nimage = Image.new('RGB', (64, 48), (255, 0, 0))\n"


@pytest.mark.parametrize("code", [IMAGE + "image.show()", IMAGE + "image", IMAGE + "image.save('/tmp/i.png')"])
def test_images(box: Sandbox, code: str) -> None:
    [image] = box.run_code(code).results
    data = base64.b64decode(image.png)
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", data[16:24]) == (64, 48)


def test_a_figure_is_not_blank(box: Sandbox) -> None:
    from PIL import Image

    [plot] = box.run_code("import matplotlib.pyplot as plt\nplt.bar(['a', '日本'], [1, 2]); plt.show()").results
    image = Image.open(io.BytesIO(base64.b64decode(plot.png)))
    assert image.width > 300 and image.height > 200
    assert len(set(image.convert("RGB").get_flattened_data())) > 10


def test_plotly_and_a_megabyte_of_picture(box: Sandbox) -> None:
    ran = box.run_code("import numpy as np, io\nfrom PIL import Image\n"
                       "Image.fromarray(np.random.default_rng(0).integers(0, 255, (600, 600, 3), dtype=np.uint8))")
    assert len(base64.b64decode(ran.results[0].png)) > 1_000_000


# ---- environment and directory ------------------------------------------------------------------------------------

READ = {
    "python": "import os\nprint(os.environ.get({!r}), end='')",
    "javascript": "process.stdout.write(String(process.env[{!r}]))",
    "typescript": "process.stdout.write(String(process.env[{!r}] as string))",
    "bash": "printf %s \"${{{}-None}}\"",
}
MISSING = {"python": "None", "javascript": "undefined", "typescript": "undefined", "bash": "None"}
NASTY = "it's \"q\" $X `id` \\ \n\tünï !"


def read(box: Sandbox, language: str, name: str, envs: dict[str, str] | None = None) -> str:
    ran = box.run_code(READ[language].format(name), language=language, envs=envs)
    assert ran.error is None, ran.error
    # The kernel for bash ends its last line.
    return "".join(ran.logs.stdout).removesuffix("\n" if language == "bash" else "")


@pytest.mark.parametrize("language", READ)
def test_variables(box: Sandbox, language: str) -> None:
    assert read(box, language, "GLOBAL") == "of the sandbox"
    assert read(box, language, "NASTY") == NASTY
    assert read(box, language, "GLOBAL", {"GLOBAL": "of the call"}) == "of the call"
    assert read(box, language, "GLOBAL") == "of the sandbox"
    assert read(box, language, "OWN", {"OWN": NASTY}) == NASTY
    assert read(box, language, "OWN") == MISSING[language]


@pytest.mark.parametrize(("language", "code"), [
    ("python", "import os; os.getcwd()"), ("javascript", "process.cwd()"), ("typescript", "process.cwd()"),
])
def test_the_working_directory_is_a_value(box: Sandbox, language: str, code: str) -> None:
    made = box.create_code_context(language=language)
    assert box.run_code(code, context=made).text == "/home/user"
    box.remove_code_context(made)


def test_the_working_directory_in_shells(box: Sandbox, context: object) -> None:
    assert "".join(box.run_code("!pwd", context=context).logs.stdout).strip() == "/home/user"
    assert "".join(box.run_code("pwd", language="bash").logs.stdout).strip() == "/home/user"


def test_the_packages_of_the_list_are_there_and_can_be_imported(box: Sandbox) -> None:
    """code-interpreter 9. All by their metadata; those with the most native code are imported too."""
    lines = (ROOT / "executor-image" / "interpreter" / "python.txt").read_text().splitlines()
    names = [line.split("==")[0] for line in lines if line and not line.startswith("#")]
    assert len(names) >= 40
    found = box.run_code(f"from importlib.metadata import version\n[version(name) for name in {names!r}] and 'all'")
    assert found.text == "all", found.error
    heavy = "cv2 gensim librosa matplotlib numba pandas scipy.stats skimage sklearn.linear_model spacy soundfile xarray"
    context = box.create_code_context()
    imported = box.run_code(f"for name in {heavy.split()!r}: __import__(name)\n'imported'", context=context, timeout=120)
    assert imported.text == "imported", imported.error
    figure = box.run_code("import plotly.express as px\npx.line(x=[1, 2], y=[3, 4])", context=context, timeout=60)
    assert figure.error is None and figure.results, figure
    box.remove_code_context(context)


def test_run_python_code_is_one_call_on_top(box: Sandbox) -> None:
    path = ROOT / "examples" / "run-python-code" / "run_python_code.py"
    example: dict[str, object] = {"__name__": "example"}
    exec(compile(path.read_text(), path, "exec"), example)
    run = example["run_python_code"]
    told = json.loads(run("import sys\nprint('out'); print('err', file=sys.stderr)\n6 * 7", box))
    assert told == {"success": True, "results": [{"text": "42"}], "stdout": ["out\n"], "stderr": ["err\n"], "error": None,
                    "sandbox_id": box.sandbox_id}
    failed = json.loads(run("1 / 0", box))
    assert (failed["success"], failed["error"]["name"]) == (False, "ZeroDivisionError")


def test_kernels_are_root(box: Sandbox) -> None:
    assert box.run_code("import os; (os.getuid(), os.environ['HOME'])").text == "(0, '/root')"


# ---- languages ----------------------------------------------------------------------------------------------------


def test_javascript(box: Sandbox) -> None:
    def run(code: str, language: str = "js") -> object:
        return box.run_code(code, language=language)

    assert run("console.log('Hello World!')").logs.stdout == ["Hello World!\n"]
    assert run("const fs = require('fs'); fs.existsSync('/home/user')").text == "true"
    assert run("import path, { join } from 'path'\njoin('a', path.sep)").text == "a/"
    assert run("const value = await Promise.resolve(41); value + 1").text == "42"
    assert run("new Promise((resolve) => setTimeout(() => resolve('later'), 20))").text == "later"
    assert run("value + 2").text == "43"
    assert run("const value = 1; value").text == "1"
    failed = run("missing")
    assert (failed.error.name, failed.error.value) == ("ReferenceError", "missing is not defined")
    assert run("let x = ;").error.name == "SyntaxError"
    assert run("value", "ts").error.name == "ReferenceError", "typescript has a context of its own"
    assert run("interface P { a: number }\nconst p: P = { a: 3 }; p.a", "ts").text == "3"
    assert run("$$.html('<b>x</b>')").results[0].html == "<b>x</b>"


def test_bash(box: Sandbox) -> None:
    assert "".join(box.run_code("x=1; echo $((x + 1))", language="bash").logs.stdout) == "2\n"
    assert "".join(box.run_code("echo $x", language="bash").logs.stdout) == "1\n"


# ---- time, interruption, many at once -----------------------------------------------------------------------------


def interrupted(box: Sandbox, code: str, context: object) -> float:
    """Runs code for 3 s, then asks something else of the same context; returns how long that took."""
    with pytest.raises(TimeoutException):
        box.run_code(code, context=context, timeout=3)
    begun = time.monotonic()
    assert box.run_code("1 + 1", context=context, timeout=10).text == "2"
    return time.monotonic() - begun


def test_a_client_that_leaves_interrupts_the_kernel_at_once(box: Sandbox, context: object) -> None:
    box.run_code("state = 7", context=context)
    assert interrupted(box, "import time; time.sleep(300)", context) < 1
    assert interrupted(box, "while True: pass", context) < 1
    assert box.run_code("state", context=context).text == "7"


@pytest.mark.parametrize("code", ["while (true) {}", "await new Promise(() => {})"])
def test_javascript_is_interrupted_and_keeps_its_state(box: Sandbox, code: str) -> None:
    made = box.create_code_context(language="javascript")
    box.run_code("var state = 7", context=made)
    assert interrupted(box, code, made) < 1
    assert box.run_code("state", context=made).text == "7"
    box.remove_code_context(made)


@pytest.mark.parametrize(("language", "code"), [
    ("python", "while True: print('on and on')"), ("javascript", "while (true) console.log('on and on')")])
def test_an_endless_loop_that_prints_is_interrupted(box: Sandbox, language: str, code: str) -> None:
    made = box.create_code_context(language=language)
    assert interrupted(box, code, made) < 5
    assert box.run_code("3 * 3", context=made).logs.stdout == []
    box.remove_code_context(made)


def test_what_javascript_cannot_send_is_a_text_at_least(box: Sandbox) -> None:
    made = box.create_code_context(language="javascript")
    for code, shown in (("const a = {}; a.own = a; a", "[Circular *1]"), ("10n ** 20n", "100000000000000000000n"),
                        ("({ f() {}, big: 1n })", "big: 1n"), ("Symbol('x')", "Symbol(x)")):
        ran = box.run_code(code, context=made)
        assert ran.error is None and shown in ran.text, ran
    failed = box.run_code("require('node:nothing-of-that-name')", context=made)
    assert "nothing-of-that-name" in failed.error.traceback
    box.remove_code_context(made)


def test_bash_is_interrupted(box: Sandbox) -> None:
    made = box.create_code_context(language="bash")
    with pytest.raises(TimeoutException):
        box.run_code("sleep 300", context=made, timeout=3)
    assert "".join(box.run_code("echo 2", context=made, timeout=10).logs.stdout) == "2\n"
    box.remove_code_context(made)


def test_one_context_queues_and_two_run_side_by_side(box: Sandbox) -> None:
    contexts = [box.create_code_context() for _ in range(2)]

    def together(first: object, second: object) -> float:
        begun = time.monotonic()
        runs = [threading.Thread(target=box.run_code, args=("import time; time.sleep(1)",), kwargs={"context": c})
                for c in (first, second)]
        for run in runs:
            run.start()
        for run in runs:
            run.join()
        return time.monotonic() - begun

    assert together(contexts[0], contexts[0]) >= 2
    assert together(*contexts) < 1.8
    for context in contexts:
        box.remove_code_context(context)


def test_one_that_gives_up_while_it_waits_is_not_executed(box: Sandbox, context: object) -> None:
    box.run_code("ran = []", context=context)
    begun = threading.Event()
    first = threading.Thread(target=box.run_code, args=("print(1, flush=True); import time; time.sleep(4)",),
                             kwargs={"context": context, "on_stdout": lambda _: begun.set()})
    first.start()
    assert begun.wait(10)
    with pytest.raises(TimeoutException):
        box.run_code("ran.append(1)", context=context, timeout=1)
    first.join()
    assert box.run_code("ran", context=context).text == "[]"


def test_a_kernel_that_ends_says_so_and_the_context_lives_on(box: Sandbox, context: object) -> None:
    ended = box.run_code("x = 1; import os; os._exit(3)", context=context, timeout=20)
    assert ended.error.name == "ContextRestarting" and "exit status: 3" in ended.error.value
    assert box.run_code("x", context=context, timeout=20).error.name == "NameError"
    killed = box.run_code("os = __import__('os'); os.kill(os.getpid(), 9)", context=context, timeout=20)
    assert killed.error.name == "ContextRestarting" and "signal: 9" in killed.error.value


def test_memory_beyond_the_limit_ends_the_kernel_and_not_the_sandbox(box: Sandbox, context: object) -> None:
    box.run_code("kept = 1")
    limit = int(box.commands.run("cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null; true",
                                 user="root").stdout.split()[0])
    ended = box.run_code(f"x = b'x' * {2 * limit}", context=context, timeout=60)
    assert ended.error.name == "ContextRestarting" and "the sandbox's memory ran out" in ended.error.value
    assert box.run_code("1 + 1", context=context, timeout=20).text == "2"
    # Another context's kernel lives on, with its state.
    assert box.run_code("kept").text == "1"
    assert box.commands.run("echo on").stdout == "on\n"


def test_twenty_contexts_at_once(server: Server) -> None:
    sandbox = create(server)
    try:
        with ThreadPoolExecutor(20) as threads:
            calls = [threads.submit(sandbox.create_code_context, request_timeout=60) for _ in range(20)]
            made = [call.result() for call in calls]
            ran = list(threads.map(lambda number: sandbox.run_code(f"own = {number}; own", context=made[number]), range(20)))
        assert [execution.text for execution in ran] == [str(number) for number in range(20)]
        assert [sandbox.run_code("own", context=context).text for context in made] == [str(number) for number in range(20)]
    finally:
        sandbox.kill()


def test_the_number_of_contexts_is_limited_by_the_environment(server: Server) -> None:
    sandbox = create(server, envs={"SANDYARD_MAX_CONTEXTS": "3"})
    try:
        made = sandbox.create_code_context()
        with pytest.raises(SandboxException, match="500.*there are 3 contexts, which is the limit"):
            sandbox.create_code_context()
        sandbox.remove_code_context(made)
        sandbox.create_code_context()
    finally:
        sandbox.kill()


# ---- supervision --------------------------------------------------------------------------------------------------


def healthy(sandbox: Sandbox) -> bool:
    probe = "curl -s -o /dev/null -w '%{http_code}' http://0.0.0.0:49999/health || true"
    return sandbox.commands.run(probe, user="root").stdout == "200"


@pytest.mark.parametrize("pattern", ["jupyter server", "uvicorn main:app"])
def test_the_interpreter_comes_back_after_kill_9(server: Server, pattern: str) -> None:
    sandbox = create(server, envs={"GLOBAL": "still"})
    try:
        assert healthy(sandbox)
        sandbox.run_code("x = 1")
        lost = sandbox.create_code_context()
        # Found as a client would find it; the brackets keep the search from finding its own shell.
        found = sandbox.commands.run(f"pgrep -f '[{pattern[0]}]{pattern[1:]}'", user="root").stdout.split()
        assert found
        sandbox.commands.run(f"kill -9 {' '.join(found)}", user="root")
        begun = time.monotonic()
        until("the interpreter is back", lambda: healthy(sandbox), limit=30)
        print(f"back after {time.monotonic() - begun:.2f} s")
        assert sandbox.run_code("x").error.name == "NameError"
        assert sandbox.run_code("x = 1; x").text == "1"
        assert sandbox.run_code("import os; os.environ['GLOBAL']").text == "still"
        with pytest.raises(NotFoundException, match="restarted.*lost"):
            sandbox.run_code("1", context=lost)
        assert len(sandbox.list_code_contexts()) == 2
        kernels = sandbox.commands.run("ls /run/sandyard-interpreter/*/connection.json | wc -l; "
                                       "pgrep -fc '[f]ork_server.py'", user="root").stdout.split()
        assert kernels == ["2", "2"], "the old kernels ended with their interpreter: two, and the server that forks"
    finally:
        sandbox.kill()


def test_a_sandbox_killed_while_code_runs(server: Server) -> None:
    sandbox = create(server)
    begun = threading.Event()

    def kill() -> None:
        begun.wait(20)
        sandbox.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(TimeoutException, match="killed while the request was in progress"):
        sandbox.run_code("print(1, flush=True); import time; time.sleep(60)", on_stdout=lambda _: begun.set())
    killer.join()


def test_a_sessions_workspace_is_where_code_runs(server: Server) -> None:
    session = f"interpreter-{time.time_ns()}"
    sandbox = create(server, metadata={"session": session})
    try:
        sandbox.files.write("/workspace/uploads/numbers.csv", "a,b\n1,2\n3,4\n")
        ran = sandbox.run_code(
            "import pandas as pd, matplotlib.pyplot as plt\ntable = pd.read_csv('uploads/numbers.csv')\n"
            "table.plot(x='a', y='b'); plt.savefig('artifacts/plot.png')\nint(table.b.sum())")
        assert ran.error is None, ran.error
        assert ran.text == "6"
        assert {c.cwd for c in sandbox.list_code_contexts()} == {"/workspace"}
        assert sandbox.run_code("process.cwd()", language="js").text == "/workspace"
        assert sandbox.files.read("/workspace/artifacts/plot.png", format="bytes")[:4] == b"\x89PNG"
    finally:
        sandbox.kill()


# ---- the asynchronous client --------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_the_asynchronous_client(server: Server) -> None:
    sandbox = await AsyncSandbox.create(timeout=600, **server.options())
    try:
        lines = []

        async def heard(message: object) -> None:
            lines.append(message.line)

        ran = await sandbox.run_code("print('Hello from e2b'); 1 + 1", on_stdout=heard)
        assert (ran.text, lines) == ("2", ["Hello from e2b\n"])
        made = await sandbox.create_code_context(language="javascript", cwd="/tmp")
        assert (await sandbox.run_code("process.cwd()", context=made)).text == "/tmp"
        await sandbox.restart_code_context(made)
        await sandbox.remove_code_context(made)
        with pytest.raises(TimeoutException):
            await sandbox.run_code("import time; time.sleep(300)", timeout=2)
        assert (await sandbox.run_code("1 + 1", timeout=10)).text == "2"
    finally:
        await sandbox.kill()


# ---- pause --------------------------------------------------------------------------------------------------------


def test_kernels_survive_a_pause_with_memory(server: Server) -> None:
    sandbox = create(server)
    try:
        context = sandbox.create_code_context()
        sandbox.run_code("x = 41")
        sandbox.run_code("x = 1", context=context)
        sandbox.run_code("let x = 2", language="js")
        sandbox.pause()
        again = Sandbox.connect(sandbox.sandbox_id, timeout=600, **server.options())
        assert again.run_code("x + 1").text == "42"
        assert again.run_code("x", context=context).text == "1"
        assert again.run_code("x", language="js").text == "2"
        assert len(again.list_code_contexts()) == 3
    finally:
        sandbox.kill()


def test_a_pause_of_the_file_system_leaves_new_default_contexts(server: Server) -> None:
    sandbox = create(server, envs={"GLOBAL": "still"})
    try:
        lost = sandbox.create_code_context()
        sandbox.run_code("x = 41; open('/home/user/kept', 'w').write('kept')")
        sandbox.pause(keep_memory=False)
        again = Sandbox.connect(sandbox.sandbox_id, timeout=600, **server.options())
        assert [c.language for c in again.list_code_contexts()] == ["python", "javascript"]
        assert again.run_code("x").error.name == "NameError"
        assert again.run_code("import os; open('/home/user/kept').read() + os.environ['GLOBAL']").text == "keptstill"
        with pytest.raises(NotFoundException, match="restarted.*lost"):
            again.run_code("1", context=lost)
    finally:
        sandbox.kill()


# ---- the pool -----------------------------------------------------------------------------------------------------


def test_a_container_of_the_pool_has_its_kernels_already(own_server: Callable[..., Server]) -> None:
    server = own_server(SANDYARD_POOL__MAX="4", SANDYARD_CODE_INTERPRETER__POOL="1", SANDYARD_BASE__POOL="0")

    def warm() -> bool:
        lines = [line.split() for line in server.command("ls", "--pool").stdout.splitlines()]
        ready = {line[1]: int(line[2]) for line in lines if line[0] == TEMPLATE}
        return ready.get("plain", 0) >= 1 and ready.get("workspace", 0) >= 1

    until("a container of each kind waits", warm, 60)
    # The kernels are there before the sandbox is anybody's.
    [container, *_] = server.containers()
    processes = docker("top", container, "-eo", "pid,args")
    assert processes.count("fork_server.py") >= 2 and "main.js javascript" in processes, processes
    session = f"pool-{time.time_ns()}"
    for options in ({}, {"metadata": {"session": session}}):
        sandbox = create(server, envs={"A": "of the create"}, **options)
        try:
            assert sandbox.run_code("import os; os.environ['A']").text == "of the create"
            expected = "/workspace" if options else "/home/user"
            assert sandbox.run_code("process.cwd()", language="js").text == expected
        finally:
            sandbox.kill()
