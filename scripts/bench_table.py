"""The tables of `scripts/bench`: two sides, their ratio, a target, and whether it was met; and for what
happens inside a sandbox, where the time goes."""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass


@dataclass
class Row:
    what: str
    ours: str
    theirs: str
    ratio: str
    target: str
    met: bool


class Table:
    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.parts: list[list[str]] = []
        self.floors: list[tuple[str, str]] = []

    def ratio(self, what: str, unit: str, ours: float, theirs: float, limit: float | None) -> None:
        """A row whose measure is ours divided by theirs."""
        ratio = ours / theirs
        target = f"≤ {limit:g} ×" if limit else "–"
        self.add(what, f"{ours:.1f} {unit}", f"{theirs:.1f} {unit}", f"{ratio:.2f} ×", target,
                 limit is None or ratio <= limit)

    def pairs(self, what: str, unit: str, ours: list[float], theirs: list[float],
              limit: float) -> None:
        """A row whose measure is the median of the rounds' own ratios: what slows the machine down for
        one round slows both sides of it."""
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        self.add(what, f"{statistics.median(ours):.1f} {unit}",
                 f"{statistics.median(theirs):.1f} {unit}", f"{ratio:.2f} ×", f"≤ {limit:g} ×",
                 ratio <= limit)

    def bound(self, what: str, unit: str, ours: float, limit: float) -> None:
        """A row with a bound that must not be passed."""
        self.add(what, f"{ours:.1f} {unit}", "–", "–", f"≤ {limit:g} {unit}", ours <= limit)

    def rate(self, what: str, unit: str, ours: float, limit: float) -> None:
        """A row with a bound that must be reached."""
        self.add(what, f"{ours:.0f} {unit}", "–", "–", f"≥ {limit:g} {unit}", ours >= limit)

    def add(self, what: str, ours: str, theirs: str, ratio: str, target: str, met: bool) -> None:
        self.rows.append(Row(what, ours, theirs, ratio, target, met))
        say(f"{what}: {ours} | {theirs} | {ratio} | {'met' if met else 'missed'}")

    def part(self, what: str, unit: str, sides: list[float]) -> None:
        """Where the time of a row goes, side by side as `SIDES` names them."""
        digits = 0 if "/" in unit else 2
        self.parts.append([what, *(f"{value:.{digits}f} {unit}" for value in sides)])
        say("    " + ", ".join(f"{name}: {text}" for name, text in
                               zip(SIDES, self.parts[-1][1:], strict=True)))

    def floor(self, what: str, unit: str, value: float) -> None:
        """What the machine takes for a part that no implementation is without."""
        self.floors.append((what, f"{value:.2f} {unit}"))
        say(f"{what}: {value:.2f} {unit}")

    def print(self) -> None:
        print("| measure | sandyard | the other side | ratio | target | |")
        print("|---|---|---|---|---|---|")
        for r in self.rows:
            verdict = "met" if r.met else "missed"
            print(f"| {r.what} | {r.ours} | {r.theirs} | {r.ratio} | {r.target} | {verdict} |")
        if self.parts:
            print("\nWhere it goes, in the same run: the SDK's call; the SDK's same call to a server that "
                  "does nothing but\nreplay our answer; the same request from a bare socket, through the "
                  "proxy and at the executor's port.\n")
            print("| measure | " + " | ".join(SIDES) + " |")
            print("|---" * (len(SIDES) + 1) + "|")
            for cells in self.parts:
                print("| " + " | ".join(cells) + " |")
        if self.floors:
            print("\nWhat this machine takes for the parts, in the same run:\n")
            print("| part | |")
            print("|---|---|")
            for what, value in self.floors:
                print(f"| {what} | {value} |")


SIDES = ("SDK", "SDK, replayed", "socket, proxy", "socket, executor")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
