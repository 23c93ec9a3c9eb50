"""The load of test_restarts.py inside a sandbox: writes files until it is stopped, and notes each change only after the
file system has acknowledged it.

    restart_writer.py FOLDER NOTES

A file's content follows from its name, version and size, so that whoever reads the notes knows every byte.
"""

from __future__ import annotations

import itertools
import os
import sys

FILES = 30
SIZES = (0, 1, 700, 40_000, 5_000, 300_000)
STOP = "/home/user/stop"


def content(name: str, version: int, size: int) -> bytes:
    piece = f"{name} {version} ".encode()
    return (piece * (size // len(piece) + 1))[:size]


def write(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


def main() -> None:
    folder, notes = sys.argv[1:3]
    os.makedirs(folder, exist_ok=True)
    with open(notes, "a", buffering=1) as note:
        for version in itertools.count():
            if os.path.exists(STOP):
                break
            name = f"f{version * 7 % FILES}"
            path, size = os.path.join(folder, name), SIZES[version % len(SIZES)]
            try:
                if version % 11 == 10:
                    if os.path.exists(path):
                        os.remove(path)
                    note.write(f"removed {name} {version} 0\n")
                    continue
                if version % 5 == 4:
                    # As editors save.
                    write(f"{path}.new", content(name, version, size))
                    os.rename(f"{path}.new", path)
                else:
                    write(path, content(name, version, size))
                with open(os.path.join(folder, "log"), "ab") as log:
                    log.write(f"{version}\n".encode())
                note.write(f"wrote {name} {version} {size}\n")
            except OSError as error:
                note.write(f"failed {name} {version} {error.errno}\n")
        note.write("ended - 0 0\n")


if __name__ == "__main__":
    main()
