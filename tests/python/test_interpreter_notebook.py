"""A notebook of 30 cells in one context, as an analyst's agent runs one: data from the workspace, tables, plots, errors
in between, files for others at the end. Every cell has its expected result; figures are decoded and looked at."""

from __future__ import annotations

import base64
import datetime
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from conftest import Server
from e2b_code_interpreter import Execution, Sandbox
from PIL import Image

DAYS = 120
FIRST = datetime.date(2026, 1, 1)
CSV = "day,region,product,units,price\n" + "".join(
    f"{FIRST + datetime.timedelta(n)},{('north', 'south', 'west')[n % 3]},{('tea', 'cake')[n % 2]},{n % 17 + 1},{2.5 + n % 4}\n"
    for n in range(DAYS))


def figure(execution: Execution, width: int = 300, height: int = 200) -> Image.Image:
    """The one figure of an execution: large enough, and not blank."""
    (result,) = [one for one in execution.results if one.png]
    image = Image.open(io.BytesIO(base64.b64decode(result.png)))
    assert image.format == "PNG" and image.width >= width and image.height >= height, image.size
    colours = image.convert("RGB").getcolors(1 << 24) or []
    background = max(count for count, _ in colours)
    assert len(colours) > 10 and background < 0.99 * image.width * image.height, "blank"
    return image


def text(expected: str) -> Callable[[Execution], None]:
    def check(execution: Execution) -> None:
        assert execution.text == expected and not execution.logs.stderr

    return check


def out(expected: str) -> Callable[[Execution], None]:
    def check(execution: Execution) -> None:
        assert "".join(execution.logs.stdout) == expected and execution.results == []

    return check


def fails(name: str, value: str) -> Callable[[Execution], None]:
    def check(execution: Execution) -> None:
        assert execution.error is not None
        assert execution.error.name == name and re.search(value, execution.error.value)
        assert name in execution.error.traceback

    return check


def silent(execution: Execution) -> None:
    assert execution.results == [] and execution.logs.stdout == [] == execution.logs.stderr


def chart(kind: str, elements: int, title: str) -> Callable[[Execution], None]:
    def check(execution: Execution) -> None:
        figure(execution)
        (drawn,) = [result.chart for result in execution.results if result.chart]
        assert (drawn.type.value, len(drawn.elements), drawn.title) == (kind, elements, title)

    return check


def table(rows: int, *contained: str) -> Callable[[Execution], None]:
    def check(execution: Execution) -> None:
        (result,) = execution.results
        assert result.is_main_result and result.html.count("<tr") == rows + 1
        assert all(word in result.html and word in result.text for word in contained)

    return check


def two_results(execution: Execution) -> None:
    shown, last = execution.results
    assert (shown.text, shown.is_main_result, last.text, last.is_main_result) == ("shown", False, "last", True)


def markdown(execution: Execution) -> None:
    (result,) = execution.results
    assert result.markdown == "# Report\n**120** rows"


def latex(execution: Execution) -> None:
    (result,) = execution.results
    assert result.latex and "x^{2}" in result.latex


def picture(execution: Execution) -> None:
    assert figure(execution, 64, 48).size == (300, 200)


def warned(execution: Execution) -> None:
    assert "careful" in "".join(execution.logs.stderr) and execution.text == "went on"


@dataclass
class Cell:
    code: str
    check: Callable[[Execution], None]


CELLS = [
    Cell("import os\nos.getcwd()", text("/workspace")),
    Cell("import pandas as pd, numpy as np, matplotlib.pyplot as plt, json, sys", silent),
    Cell("sales = pd.read_csv('uploads/sales.csv', parse_dates=['day'])\nlen(sales)", text(str(DAYS))),
    Cell("sales.head(3)", table(3, "north", "2026-01-01", "units")),
    Cell("sales.dtypes['day'].kind", text("M")),
    Cell("sales['revenue'] = sales['units'] * sales['price']\nround(float(sales['revenue'].sum()), 2)", text("")),
    Cell("sales['revenu']", fails("KeyError", "revenu")),
    Cell("by_region = sales.groupby('region')['units'].sum()\nby_region.to_dict()", text("")),
    Cell("print(by_region.idxmax(), end='')\nprint('!', len(by_region))", out("")),
    Cell("sales.groupby('region', as_index=False).agg(units=('units', 'sum'))", table(3, "north", "south", "west")),
    Cell("daily = sales.groupby('day')['revenue'].sum()\nplt.plot(daily.index, daily.values)\nplt.title('Daily')\nplt.show()",
         chart("line", 1, "Daily")),
    Cell("plt.bar(by_region.index, by_region.values)\nplt.title('Regions')\nplt.show()", chart("bar", 3, "Regions")),
    Cell("plt.pie(by_region.values, labels=by_region.index)\nplt.title('Shares')\nplt.show()", chart("pie", 3, "Shares")),
    Cell("plt.scatter(sales['price'], sales['units'])\nplt.title('Price')\nplt.show()", chart("scatter", 1, "Price")),
    Cell("plt.boxplot([[1, 2, 3, 4, 5, 100], [2, 4, 6, 8, 9, 10]], patch_artist=True)\nplt.title('Spread')\nplt.show()",
         chart("box_and_whisker", 2, "Spread")),
    Cell("def share(part, whole):\n    return part / whole\n\nshare(1, 0)", fails("ZeroDivisionError", "division by zero")),
    Cell("f'{share(1, 4):.2%}'", text("25.00%")),
    Cell("if True print('no')", fails("SyntaxError", "")),
    Cell("display('shown')\n'last'", two_results),
    Cell("from IPython.display import Markdown\nMarkdown(f'# Report\\n**{len(sales)}** rows')", markdown),
    Cell("import sympy\nsympy.Symbol('x') ** 2 + 1", latex),
    Cell("matrix = np.arange(6).reshape(2, 3)\nmatrix @ matrix.T", text("array([[ 5, 14],\n       [14, 50]])")),
    Cell("pd.DataFrame({'x': [1.0, float('nan')], 'y': ['a', None]})", table(2, "NaN", "None")),
    Cell("import warnings\nwarnings.warn('careful')\n'went on'", warned),
    Cell("print('ünï → 日本 🎉')", out("ünï → 日本 🎉\n")),
    Cell("!wc -l < uploads/sales.csv", out(f"{DAYS + 1}\r\n")),  # IPython runs it on a terminal
    Cell("from PIL import Image, ImageDraw\nimage = Image.new('RGB', (300, 200), 'white')\ndraw = ImageDraw.Draw(image)\n"
         "for n in range(0, 300, 10):\n    draw.line((n, 0, 300 - n, 200), fill=(n % 256, 80, 160), width=4)\nimage", picture),
    Cell("json.dumps({'regions': {k: int(v) for k, v in by_region.items()}}, sort_keys=True)", text("")),
    Cell("os.makedirs('artifacts', exist_ok=True)\nsales.to_csv('artifacts/out.csv', index=False)\n"
         "fig, axes = plt.subplots(1, 2)\naxes[0].plot([1, 2])\naxes[1].bar(['a'], [3])\nfig.savefig('artifacts/both.png')\n"
         "plt.close(fig)\nos.path.getsize('artifacts/both.png') > 5000", text("True")),
    Cell("len(In)", text("31")),
]


def expected_figures() -> tuple[float, dict[str, int]]:
    """What the cells without an expectation of their own compute, computed here."""
    lines = [line.split(",") for line in CSV.splitlines()[1:]]
    regions: dict[str, int] = {}
    for _, region, _, units, _ in lines:
        regions[region] = regions.get(region, 0) + int(units)
    return round(sum(int(units) * float(price) for *_, units, price in lines), 2), dict(sorted(regions.items()))


def test_a_notebook(server: Server) -> None:
    assert len(CELLS) == 30
    revenue, regions = expected_figures()
    best = max(regions, key=lambda region: regions[region])
    CELLS[5].check = text(str(revenue))
    CELLS[7].check = text(str(regions))
    CELLS[8].check = out(f"{best}! 3\n")
    CELLS[27].check = text(json.dumps({"regions": regions}, sort_keys=True))
    with Sandbox.create(metadata={"session": "notebook"}, timeout=600, **server.options()) as sandbox:
        sandbox.files.write("/workspace/uploads/sales.csv", CSV)
        counted = 0
        for number, cell in enumerate(CELLS, 1):
            execution = sandbox.run_code(cell.code)
            try:
                assert execution.error is None or cell.check.__qualname__.startswith("fails"), execution.error
                cell.check(execution)
                # One that does not even parse is counted by Python too.
                counted += 1
                assert execution.execution_count == counted
            except (AssertionError, ValueError) as failure:
                raise AssertionError(f"cell {number}:\n{cell.code}\n{execution.to_json()[:2000]}\n{failure}") from failure
        assert sandbox.files.read("/workspace/artifacts/out.csv").count("\n") == DAYS + 1
    stored = server.s3().list_objects_v2(Bucket=server.variables["SANDYARD_S3_BUCKET"], Prefix="sessions/notebook/artifacts/")
    assert {"out.csv", "both.png"} <= {item["Key"].rsplit("/", 1)[1] for item in stored["Contents"]}
