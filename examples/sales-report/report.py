"""Runs inside a sandbox: sums a CSV of sales up and draws the months as a bar chart.

    python3 report.py WORKSPACE

Reads WORKSPACE/uploads/sales.csv, writes WORKSPACE/artifacts/report.json and revenue.png. Needs
nothing but Python's standard library.
"""

import collections
import csv
import json
import pathlib
import struct
import sys
import zlib

WIDTH, HEIGHT, MARGIN = 640, 360, 24
WHITE, GREY, BLUE = b"\xff\xff\xff", b"\xd0\xd0\xd0", b"\x2b\x6c\xb0"


def summarize(path: pathlib.Path) -> dict:
    by_region: collections.Counter[str] = collections.Counter()
    by_month: collections.Counter[str] = collections.Counter()
    rows = units = 0
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            cents = int(row["units"]) * int(row["price_cents"])
            by_region[row["region"]] += cents
            by_month[row["date"][:7]] += cents
            units += int(row["units"])
            rows += 1
    return {
        "rows": rows,
        "units": units,
        "revenue_cents": sum(by_region.values()),
        "by_region": dict(sorted(by_region.items())),
        "by_month": dict(sorted(by_month.items())),
    }


def draw(values: list[int]) -> list[bytearray]:
    """Pixel rows of a bar chart, 3 bytes a pixel."""
    rows = [bytearray(WHITE * WIDTH) for _ in range(HEIGHT)]
    floor, top = HEIGHT - MARGIN, MARGIN
    slot = (WIDTH - 2 * MARGIN) // len(values)
    for i, value in enumerate(values):
        left, right = MARGIN + i * slot + 2, MARGIN + (i + 1) * slot - 2
        height = value * (floor - top) // max(values)
        for y in range(floor - height, floor):
            rows[y][left * 3 : right * 3] = BLUE * (right - left)
    rows[floor][:] = GREY * WIDTH
    return rows


def png(rows: list[bytearray]) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", WIDTH, len(rows), 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def main() -> None:
    workspace = pathlib.Path(sys.argv[1])
    report = summarize(workspace / "uploads" / "sales.csv")
    artifacts = workspace / "artifacts"
    (artifacts / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    (artifacts / "revenue.png").write_bytes(png(draw(list(report["by_month"].values()))))
    print(report["revenue_cents"])


if __name__ == "__main__":
    main()
