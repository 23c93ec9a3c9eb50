"""Charts by the official package: every kind of the contract's section 8, with its fields."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from conftest import Server
from e2b_code_interpreter import Sandbox
from e2b_code_interpreter.charts import (
    BarChart, BoxAndWhiskerChart, Chart, LineChart, PieChart, ScatterChart, SuperChart,
)

PLOT = "import matplotlib.pyplot as plt\n"


@pytest.fixture(scope="module")
def box(server: Server) -> Iterator[Sandbox]:
    made = Sandbox.create(timeout=600, **server.options())
    yield made
    made.kill()


def chart_of(box: Sandbox, code: str) -> Chart:
    [result] = box.run_code(PLOT + code + "\nplt.show()").results
    assert result.png and result.chart is not None
    return result.chart


def test_line(box: Sandbox) -> None:
    chart = chart_of(box, (
        "import datetime\ndays = [datetime.date(2023, 9, 1 + i) for i in range(3)]\n"
        "plt.plot(days, [0, 1, 4], label='squares'); plt.plot(days, [1, 2, 3])\n"
        "plt.title('Growth'); plt.xlabel('Day (d)'); plt.ylabel('Height [m]')"))
    assert isinstance(chart, LineChart)
    assert (chart.title, chart.x_label, chart.x_unit, chart.y_label, chart.y_unit) == (
        "Growth", "Day (d)", "d", "Height [m]", "m")
    assert (chart.x_scale.value, chart.y_scale.value) == ("datetime", "linear")
    assert all(isinstance(tick, str) and tick.startswith("2023-09-0") for tick in chart.x_ticks)
    assert all(isinstance(tick, float) for tick in chart.y_ticks)
    squares, other = chart.elements
    assert squares.label == "squares" and other.label == "Line 1"
    assert [y for _, y in squares.points] == [0, 1, 4]
    assert squares.points[0][0] == "2023-09-01"


def test_lines_of_reference_are_no_data(box: Sandbox) -> None:
    chart = chart_of(box, "plt.plot([1, 2, 3], [4, 5, 6], label='a'); plt.axhline(5); plt.axvline(2)")
    assert isinstance(chart, LineChart)
    assert [(e.label, list(map(tuple, e.points))) for e in chart.elements] == [("a", [(1, 4), (2, 5), (3, 6)])]


def test_names_on_an_axis(box: Sandbox) -> None:
    chart = chart_of(box, "plt.plot(['x', 'y', 'z'], [1, 2, 3])")
    assert chart.x_scale.value == "categorical" and chart.y_scale.value == "linear"
    assert (chart.x_ticks, chart.x_tick_labels) == ([0, 1, 2], ["x", "y", "z"])
    assert [x for x, _ in chart.elements[0].points] == ["x", "y", "z"]


@pytest.mark.parametrize(("zone", "written"), [("", ""), (", tzinfo=zone", "+02:00")])
def test_times_keep_their_zone(box: Sandbox, zone: str, written: str) -> None:
    chart = chart_of(box, (
        "import datetime\nzone = datetime.timezone(datetime.timedelta(hours=2))\n"
        f"plt.plot([datetime.datetime(2023, 9, day, 12{zone}) for day in (1, 2)], [1, 2])"))
    assert chart.x_scale.value == "datetime"
    assert [x for x, _ in chart.elements[0].points] == [f"2023-09-0{day}T12:00:00{written}" for day in (1, 2)]
    assert all(tick.endswith("+00:00") for tick in chart.x_ticks)


def test_scatter(box: Sandbox) -> None:
    chart = chart_of(box, (
        "plt.scatter([1, 2], [3, 4], label='first'); plt.scatter([5], [6], label='second')\n"
        "plt.yscale('log'); plt.axhline(3)"))
    assert isinstance(chart, ScatterChart)
    assert chart.title is None and chart.x_label is None
    assert [(e.label, list(map(tuple, e.points))) for e in chart.elements] == [
        ("first", [(1, 3), (2, 4)]), ("second", [(5, 6)])]
    assert chart.y_scale.value == "log"


def test_bar(box: Sandbox) -> None:
    chart = chart_of(box, "plt.bar(['a', 'b'], [10, 20], label='g'); plt.bar(['a', 'b'], [5, 7]); plt.ylabel('Books (pcs)')")
    assert isinstance(chart, BarChart)
    assert [(e.label, e.group, e.value) for e in chart.elements] == [
        ("a", "g", 10), ("b", "g", 20), ("a", "Group 1", 5), ("b", "Group 1", 7)]
    assert chart.y_unit == "pcs"


def test_horizontal_bar(box: Sandbox) -> None:
    chart = chart_of(box, "plt.barh(['a', 'b'], [10, 20]); plt.xlabel('Books')")
    assert [(e.label, e.value) for e in chart.elements] == [("a", 10), ("b", 20)]
    assert chart.y_label == "Books"


def test_pie(box: Sandbox) -> None:
    chart = chart_of(box, "plt.pie([50, 25, 25], labels=['x', 'y', 'z']); plt.title('Pie')")
    assert isinstance(chart, PieChart)
    assert [(e.label, e.angle, e.radius) for e in chart.elements] == [("x", 180, 1), ("y", 90, 1), ("z", 90, 1)]


def test_box_and_whisker(box: Sandbox) -> None:
    chart = chart_of(box, (
        "plt.boxplot([[1, 2, 3, 4, 5, 100], [2, 4, 6, 8, 9, 10]], tick_labels=['A', 'B'], patch_artist=True)"))
    assert isinstance(chart, BoxAndWhiskerChart)
    first, second = chart.elements
    assert (first.label, first.first_quartile, first.median, first.third_quartile) == ("A", 2.25, 3.5, 4.75)
    assert (first.min, first.max, first.outliers) == (1, 5, [100])
    assert (second.median, second.outliers) == (7, [])


def test_horizontal_boxes(box: Sandbox) -> None:
    chart = chart_of(box, (
        "plt.boxplot([[1, 2, 3, 4, 5, 100], [2, 4, 6, 8, 9, 10]], patch_artist=True, orientation='horizontal')\n"
        "plt.xlabel('Weight (kg)'); plt.ylabel('Kind')"))
    assert isinstance(chart, BoxAndWhiskerChart)
    assert (chart.x_label, chart.y_label, chart.y_unit) == ("Kind", "Weight (kg)", "kg")
    assert [(e.min, e.median, e.max, e.outliers) for e in chart.elements] == [(1, 3.5, 5, [100]), (2, 7, 10, [])]


def test_superchart(box: Sandbox) -> None:
    chart = chart_of(box, (
        "figure, (left, right) = plt.subplots(1, 2); figure.suptitle('Both')\n"
        "left.plot([1, 2], [3, 4]); right.bar(['a'], [1]); left.set_title('Left')"))
    assert isinstance(chart, SuperChart) and chart.title == "Both"
    left, right = chart.elements
    assert isinstance(left, LineChart) and left.title == "Left" and isinstance(right, BarChart)


def test_what_is_none(box: Sandbox) -> None:
    unknown = box.run_code(PLOT + "plt.imshow([[1, 2], [3, 4]]); plt.show()").results[0]
    assert unknown.chart is None or unknown.chart.type.value == "unknown"
    holes = chart_of(box, "plt.plot([1, 2, 3], [1, float('nan'), 3])")
    assert [y for _, y in holes.elements[0].points] == [1, None, 3]


def test_json_export(box: Sandbox) -> None:
    exported = json.loads(box.run_code(PLOT + "plt.plot([1, 2]); plt.show()").to_json())
    assert exported["results"][0]["chart"]["type"] == "line"
