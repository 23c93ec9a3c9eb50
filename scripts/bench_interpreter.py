"""The code interpreter's rows of `scripts/bench`. The other side is `jupyter_client` in the same sandbox: it sends the
same cells to the same kernel, without us."""

from __future__ import annotations

import json
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Callable

from bench_sandbox import milliseconds
from bench_server import Server, at_once, wait
from bench_table import Table
from e2b_code_interpreter import Sandbox

TEMPLATE = "code-interpreter-v1"
CONTEXTS = 20
LINES = 10_000
IMAGES, IMAGE_BYTES = 10, 1_000_000

# Runs in the sandbox, as root: how long cells take by jupyter_client, in milliseconds, in the kernel that the interpreter
# uses; and how long a kernel takes to start.
PEER = """
import glob, json, os, sys, time
from jupyter_client import BlockingKernelClient, KernelManager


def run(client, code):
    begun = time.perf_counter()
    asked = client.execute(code)
    while True:
        message = client.get_iopub_msg(timeout=60)
        of_ours = message["parent_header"].get("msg_id") == asked
        if of_ours and message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            return (time.perf_counter() - begun) * 1000


wanted, rounds = int(sys.argv[1]), int(sys.argv[2])
for file in glob.glob("/run/sandyard-interpreter/**/connection.json", recursive=True):
    client = BlockingKernelClient(connection_file=file)
    client.load_connection_file()
    client.start_channels()
    asked = client.kernel_info(reply=True, timeout=60)
    reply = client.execute_interactive("import os", user_expressions={"pid": "os.getpid()"}, timeout=60)
    found = reply["content"].get("user_expressions", {}).get("pid", {}).get("data", {}).get("text/plain")
    if found == str(wanted):
        break
    client.stop_channels()
else:
    raise SystemExit("no connection file of that kernel")
run(client, "1+1")
times = [run(client, "1+1") for _ in range(rounds)]

starts = []
for _ in range(3):
    begun = time.perf_counter()
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel()
    other = manager.blocking_client()
    other.start_channels()
    other.wait_for_ready(timeout=60)
    starts.append((time.perf_counter() - begun) * 1000)
    manager.shutdown_kernel(now=True)
print(json.dumps({"cell": times, "start": starts}))
"""

IMAGE = f"""
import os
from IPython.display import Image, display
blob = b"\\x89PNG\\r\\n\\x1a\\n" + os.urandom({IMAGE_BYTES} - 8)
"""


def run(sandbox: Sandbox, code: str, **options: object) -> float:
    """The time of a cell that must succeed, in milliseconds."""
    failed: list[object] = []
    took = milliseconds(lambda: failed.append(sandbox.run_code(code, **options).error))
    if failed != [None]:
        raise RuntimeError(f"{code[:40]}: {failed}")
    return took


def attached(server: Server, sandbox_id: str) -> Sandbox:
    return Sandbox.connect(sandbox_id, **server.options)


def measure_cells(table: Table, server: Server, rounds: int) -> float:
    """Returns the median time of a kernel's start by `jupyter_client`, in milliseconds."""
    sandbox = attached(server, server.create(TEMPLATE).sandbox_id)
    pid = int(sandbox.run_code("import os; os.getpid()").text)
    sandbox.files.write("/tmp/peer.py", PEER)
    run(sandbox, "1+1")
    ours = [run(sandbox, "1+1") for _ in range(rounds * 5)]
    told = sandbox.commands.run(f"/usr/bin/python3 /tmp/peer.py {pid} {rounds * 5}", user="root", timeout=120).stdout
    peer = json.loads(told)
    median = statistics.median(ours)
    table.bound('run_code("1+1"), warm', "ms", median, 8)
    table.ratio('run_code("1+1") / jupyter_client in the sandbox, same kernel', "ms", median,
                statistics.median(peer["cell"]), 1.5)

    for language, code in (("python", f"for i in range({LINES}): print(i)"),
                           ("javascript", f"for (let i = 0; i < {LINES}; i++) console.log(i)")):
        took = [run(sandbox, code, language=language) for _ in range(max(3, rounds // 4))]
        table.rate(f"{LINES} lines of output, {language}", "lines/s", LINES / statistics.median(took) * 1000, 20_000)

    run(sandbox, IMAGE)
    shown = f"for _ in range({IMAGES}): display(Image(data=blob, format='png'))"
    took = [run(sandbox, shown) for _ in range(max(3, rounds // 4))]
    table.rate(f"{IMAGES} PNG results of 1 MB", "MB/s", IMAGES / statistics.median(took) * 1000, 100)

    status = sandbox.commands.run("cat /proc/$(pgrep -f '[u]vicorn main:app' | head -1)/status", user="root").stdout
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
    table.bound("interpreter resident, without its kernels", "MiB", resident / 1024, 8)

    _, all_of_them = at_once(CONTEXTS, lambda _: sandbox.create_code_context())
    table.bound(f"{CONTEXTS} contexts created at once", "s", all_of_them / 1000, 6)
    table.bound("interpreter back after kill -9", "s", back_after_kill(sandbox), 1)
    sandbox.kill()
    return statistics.median(peer["start"])


def back_after_kill(sandbox: Sandbox) -> float:
    """The median time until it takes requests again, in seconds, seen from inside."""
    loop = ("import os, signal, sys, time, urllib.request\n"
            "os.kill(int(sys.argv[1]), signal.SIGKILL)\n"
            "begun = time.perf_counter()\n"
            "while True:\n"
            "    try:\n"
            "        urllib.request.urlopen('http://127.0.0.1:49999/health'); break\n"
            "    except OSError: time.sleep(0.005)\n"
            "print(time.perf_counter() - begun)\n")
    sandbox.files.write("/tmp/back.py", loop)
    found = "pgrep -f '[u]vicorn main:app' | head -1"
    # The first second of a life is waited for, whatever ended it.
    script = f"sleep 1.2; /usr/bin/python3 /tmp/back.py $({found})"
    return statistics.median(float(sandbox.commands.run(script, user="root").stdout) for _ in range(3))


def first_results(server: Server, rounds: int, before_each: Callable[[], None] = lambda: None) -> float:
    """The median time from a create to the result of its first cell."""
    times = []
    for _ in range(rounds):
        before_each()
        made: list[Sandbox] = []

        def first() -> None:
            made.append(Sandbox.create(timeout=600, **server.options))
            if made[0].run_code("1+1").text != "2":
                raise RuntimeError("no result")

        times.append(milliseconds(first))
        made[0].kill()
    return statistics.median(times)


def measure_interpreter(table: Table, rounds: int) -> None:
    few = max(3, rounds // 2)
    with tempfile.TemporaryDirectory(prefix="sandyard-bench-") as folder:
        with Server(pathlib.Path(folder) / "cold", {"SANDYARD_POOL__MAX": "0"}) as server:
            kernel_start = measure_cells(table, server, rounds)
            made: list[object] = []
            creates = [milliseconds(lambda: made.append(server.create())) for _ in range(few)]
            for sandbox in made:
                sandbox.kill()
            cold = first_results(server, few)
            allowed = statistics.median(creates) + kernel_start + 100
            table.ratio("create → first result, cold / cold create + a kernel's start + 100 ms", "ms", cold, allowed, 1.0)
        with Server(pathlib.Path(folder) / "pool", {"SANDYARD_CODE_INTERPRETER__POOL": "1"}) as server:
            def filled() -> None:
                wait("a container with kernels is in the pool", lambda: server.pool(TEMPLATE)["plain"] >= 1)

            table.bound("create → first result from the pool", "ms", first_results(server, few, filled), 60)
    print("# the code interpreter is measured", file=sys.stderr)
