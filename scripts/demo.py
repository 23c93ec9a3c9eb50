"""The main job, step by step, with the official E2B SDK. Started by scripts/demo, which sets the
environment: E2B_* for the SDK, S3_* for the store itself."""

from __future__ import annotations

import argparse
import csv
import datetime
import hashlib
import hmac
import io
import json
import os
import pathlib
import random
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from containers import container_of
from e2b import Sandbox
from e2b.exceptions import NotFoundException
from e2b_code_interpreter import Sandbox as CodeInterpreter
from PIL import Image

REPORT = pathlib.Path(__file__).parent.parent / "examples" / "sales-report" / "report.py"
# A cell of a notebook: its last line is its result.
CELL = """
import pandas as pd, matplotlib.pyplot as plt

sales = pd.read_csv("uploads/sales.csv")
sales["cents"] = sales["price_cents"] * sales["units"]
regions = sales.groupby("region")["cents"].sum()
regions.plot.bar(title="Revenue")
plt.savefig("artifacts/regions.png")
regions.to_frame()
"""
ROWS = 12_000
PRODUCTS = {"notebook": 349, "fountain pen": 2990, "ink, blue-black": 1250, "desk lamp": 4900, "stapler": 1190}
REGIONS = ["north", "east", "south", "west"]


@contextmanager
def step(number: int, text: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    print(f"{number}. {text}: {time.monotonic() - start:.2f} s", flush=True)


def check(condition: bool, what: str) -> None:
    if not condition:
        raise SystemExit(f"FAILED: {what}")
    print(f"   ok: {what}", flush=True)


def s3_client(endpoint: str, key: str, secret: str):
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 2}),
    )


# ---- the data, and what it must come to -----------------------------------------------------


def sales() -> list[dict[str, str]]:
    """A year of a shop's sales: busier before the holidays, with names that need CSV's quotes."""
    dice = random.Random(20240229)
    first = datetime.date(2024, 1, 1)
    days = [first + datetime.timedelta(days=n) for n in range(366)]
    weights = [2.5 if day.month in (11, 12) else 1.0 for day in days]
    rows = []
    for number, day in enumerate(sorted(dice.choices(days, weights, k=ROWS))):
        product = dice.choice(list(PRODUCTS))
        rows.append(
            {
                "order": f"SO-{number + 1:06}",
                "date": day.isoformat(),
                "region": dice.choices(REGIONS, [4, 3, 2, 1])[0],
                "product": product,
                "units": str(1 + min(int(dice.expovariate(0.6)), 40)),
                "price_cents": str(PRODUCTS[product] * dice.choice([90, 100, 100, 100]) // 100),
            }
        )
    return rows


def to_csv(rows: list[dict[str, str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def expected_report(rows: list[dict[str, str]]) -> dict:
    """The same figures by another way than the sandbox's: decimal money, one pass for each sum."""

    def total(keep) -> int:
        euros = (Decimal(r["price_cents"]) / 100 * int(r["units"]) for r in rows if keep(r))
        return int(sum(euros, Decimal(0)) * 100)

    months = sorted({row["date"][:7] for row in rows})
    return {
        "rows": len(rows),
        "units": sum(int(row["units"]) for row in rows),
        "revenue_cents": total(lambda _: True),
        "by_region": {name: total(lambda r, n=name: r["region"] == n) for name in sorted(REGIONS)},
        "by_month": {name: total(lambda r, n=name: r["date"].startswith(n)) for name in months},
    }


# ---- what a sandbox has on this machine -----------------------------------------------------


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout


class Footprint:
    """What the engine and the machine hold for one sandbox while it lives."""

    def __init__(self, sandbox_id: str, data_dir: pathlib.Path) -> None:
        self.name = container_of(sandbox_id, data_dir)
        found = docker("ps", "-a", "--format", "{{.Names}}").split()
        check(found.count(self.name) == 1, f"the sandbox is one container: {self.name}")
        check(not any(sandbox_id in name for name in found), "no container's name tells the sandbox's id")
        details = json.loads(docker("inspect", self.name))[0]
        self.container: str = details["Id"]
        self.file_system: str = details["GraphDriver"]["Data"].get("MergedDir", self.container)
        mounts = [m for m in details["Mounts"] if m["Type"] == "volume"]
        # The read-only one holds the executor and belongs to all sandboxes.
        self.volumes: list[str] = [m["Name"] for m in mounts if m["RW"]]
        self.processes = [line.split(None, 1) for line in docker("top", self.name, "-eo", "pid,args").splitlines()[1:]]

    def check_gone(self) -> None:
        left = docker("ps", "-a", "--no-trunc", "--format", "{{.ID}} {{.Names}}")
        check(self.container not in left and self.name not in left, "no container of it is left")
        volumes = docker("volume", "ls", "--format", "{{.Name}}").split()
        check(not set(self.volumes) & set(volumes), f"none of its {len(self.volumes)} volumes is left")
        mounts = pathlib.Path("/proc/self/mountinfo").read_text()
        mine = [self.file_system, self.container, self.name]
        check(not any(name in mounts for name in mine), "no mount of it is left")
        alive = [line for pid, line in self.processes if still_runs(pid, line)]
        check(not alive, f"none of its {len(self.processes)} processes is left, the FUSE program's included")


def still_runs(pid: str, command_line: str) -> bool:
    try:
        line = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False
    return line.replace(b"\0", b" ").decode(errors="replace").split() == command_line.split()


def mac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), hashlib.sha256)


def sandbox_key(data_dir: pathlib.Path, sandbox_id: str) -> tuple[str, str]:
    """The access key the gateway gave this sandbox. It follows from the installation's master key, which
    only the owner of the data folder can read; nothing inside the sandbox shows it."""
    master = bytes.fromhex((data_dir / "master.key").read_text().strip())
    gateway = mac(master, "sandyard v1\0gateway keys\0")
    name = f"SY{sandbox_id}G1"
    return name, mac(gateway, f"sandyard gateway secret\0{name}").hex()


def refusal(s3, bucket: str, prefix: str) -> str:
    """What the gateway says to a list; nothing if it answers it."""
    try:
        s3.list_objects_v2(Bucket=bucket, Prefix=prefix)
    except ClientError as error:
        return error.response["Error"]["Code"]
    return ""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", required=True)
    parser.add_argument("--data-dir", required=True, type=pathlib.Path)
    options = parser.parse_args()

    env = os.environ
    store = s3_client(env["S3_ENDPOINT"], env["S3_ACCESS_KEY_ID"], env["S3_SECRET_ACCESS_KEY"])
    bucket = env["S3_BUCKET"]
    session = f"demo-{uuid.uuid4().hex[:12]}"
    prefix = f"sessions/{session}/"
    rows = sales()
    start = time.monotonic()

    with step(1, f"put {len(rows)} rows into the {options.store} store as {prefix}uploads/sales.csv"):
        store.put_object(Bucket=bucket, Key=f"{prefix}uploads/sales.csv", Body=to_csv(rows))

    with step(2, "create the sandbox with the session's workspace"):
        sandbox = Sandbox.create("base", metadata={"session": session})
    try:
        work_in(sandbox, rows, store, bucket, prefix)
        footprint = Footprint(sandbox.sandbox_id, options.data_dir)
        key_id, secret = sandbox_key(options.data_dir, sandbox.sandbox_id)
        as_sandbox = s3_client(env["SANDYARD_S3_ENDPOINT"], key_id, secret)
        gateway_bucket = env["SANDYARD_S3_BUCKET"]
        check(refusal(as_sandbox, gateway_bucket, prefix) == "AccessDenied",
              f"its key {key_id} is good from its own address only, not from here")
    except BaseException:
        sandbox.kill()
        raise

    with step(5, "kill the sandbox"):
        check(sandbox.kill(), "the sandbox was killed")
    try:
        Sandbox.get_info(sandbox.sandbox_id)
        check(False, "the API knows the sandbox no more")
    except NotFoundException:
        check(True, "the API knows the sandbox no more")
    footprint.check_gone()
    check(refusal(as_sandbox, gateway_bucket, prefix) == "InvalidAccessKeyId", f"its key {key_id} is gone")
    for name in ("report.json", "revenue.png"):
        size = store.head_object(Bucket=bucket, Key=f"{prefix}artifacts/{name}")["ContentLength"]
        check(size > 0, f"{prefix}artifacts/{name} is still in the store, {size} bytes")
    run_a_cell(rows, session, store, bucket, prefix)
    print(f"all steps done: {time.monotonic() - start:.2f} s", flush=True)


def work_in(sandbox: Sandbox, rows: list[dict[str, str]], store, bucket: str, prefix: str) -> None:
    with step(3, "run the report on the workspace"):
        sandbox.files.write("/home/user/report.py", REPORT.read_bytes())
        result = sandbox.commands.run("python3 /home/user/report.py /workspace")
    expected = expected_report(rows)
    check(int(result.stdout) == expected["revenue_cents"], f"revenue of {result.stdout.strip()} cents, as computed outside")

    with step(4, "read the results through the sandbox and from the store"):
        inside: dict[str, bytes] = {}
        objects: dict[str, bytes] = {}
        for name in ("report.json", "revenue.png"):
            inside[name] = bytes(sandbox.files.read(f"/workspace/artifacts/{name}", format="bytes"))
            objects[name] = store.get_object(Bucket=bucket, Key=f"{prefix}artifacts/{name}")["Body"].read()
    for name, content in objects.items():
        check(content == inside[name], f"{prefix}artifacts/{name}: {len(content)} bytes, the same as in the sandbox")
    check(json.loads(objects["report.json"]) == expected, "every figure of the report is as computed outside")
    with Image.open(io.BytesIO(objects["revenue.png"])) as image:
        image.load()
        colours = image.getcolors() or []
        check(image.format == "PNG" and image.size == (640, 360) and len(colours) == 3, f"the chart is a PNG of {image.size}")


def run_a_cell(rows: list[dict[str, str]], session: str, store, bucket: str, prefix: str) -> None:
    with step(6, "run a cell in a code interpreter on the same session"):
        with CodeInterpreter.create(metadata={"session": session}) as interpreter:
            ran = interpreter.run_code(CELL)
    if ran.error:
        raise SystemExit(f"FAILED: {ran.error.traceback}")
    expected = expected_report(rows)["by_region"]
    tables = [result.data for result in ran.results if result.data]
    check(tables == [{"cents": list(expected.values())}], "its table has every region's revenue, as computed outside")
    charts = [result for result in ran.results if result.chart]
    check(len(charts) == 1 and charts[0].chart.title == "Revenue", "its chart came as a picture and as data")
    content = store.get_object(Bucket=bucket, Key=f"{prefix}artifacts/regions.png")["Body"].read()
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        check(image.format == "PNG", f"{prefix}artifacts/regions.png is in the store: a PNG of {image.size}")


if __name__ == "__main__":
    main()
