"""What every release of e2b-code-interpreter can do; run with each of them. Prints `passed`."""

import os

from e2b_code_interpreter import Sandbox

options = {"api_key": os.environ["E2B_API_KEY"], "timeout": 300}
# Before 2.0 there is no `create`.
sandbox = Sandbox.create(**options) if hasattr(Sandbox, "create") else Sandbox(**options)
try:
    first = sandbox.run_code("x = 1\nprint('out')\nx")
    assert (first.text, first.logs.stdout, first.error) == ("1", ["out\n"], None), first
    assert first.execution_count == 1
    heard = []
    failed = sandbox.run_code("print('a')\n1/0", on_stdout=lambda m: heard.append(m.line), envs={"A": "1"})
    assert failed.error.name == "ZeroDivisionError" and heard == ["a\n"], failed
    context = sandbox.create_code_context(cwd="/tmp", language="js")
    assert sandbox.run_code("process.cwd()", context=context).text == "/tmp"
    plot = sandbox.run_code("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()").results[0]
    assert plot.png and plot.chart.type.value == "line", plot
    try:
        sandbox.run_code("import time; time.sleep(60)", timeout=2)
    except Exception as error:
        assert "imeout" in type(error).__name__, error
    else:
        raise AssertionError("no timeout")
    assert sandbox.run_code("x + 1", timeout=20).text == "2"
finally:
    sandbox.kill()
print("passed")
