"""`run_python_code`, as agents' tools have it: one call on top of the code interpreter.

    eval "$(sandyard env)"
    python run_python_code.py 'import pandas; pandas.DataFrame({"a": [1]})'
"""

from __future__ import annotations

import json
import sys

from e2b_code_interpreter import Sandbox


def run_python_code(code: str, sandbox: Sandbox) -> str:
    """Runs code where the sandbox's earlier code ran. Answers JSON: `success`, `results` (each with its formats), `stdout`,
    `stderr`, `error` (null, or name, value and traceback) and `sandbox_id`."""
    execution = sandbox.run_code(code)
    error = execution.error
    return json.dumps({
        "success": error is None,
        "results": [{name: result[name] for name in result.formats() if name != "chart"} for result in execution.results],
        "stdout": execution.logs.stdout,
        "stderr": execution.logs.stderr,
        "error": error and {"name": error.name, "value": error.value, "traceback": error.traceback},
        "sandbox_id": sandbox.sandbox_id,
    })


if __name__ == "__main__":
    with Sandbox.create() as made:
        print(run_python_code(sys.argv[1], made))
