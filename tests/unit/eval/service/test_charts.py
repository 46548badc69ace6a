"""Charts made on the server: well-formed, inside their frames, readable without seeing them."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.service.charts import Difference, Line, forest_plot, legend_mark, line_chart, nice_ticks, short_number

NASTY = '"><script>alert(1)</script>&'


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(3, 10))
def test_ticks_are_round_numbers_inside_the_range_and_not_too_many(low: float, span: float, most: int) -> None:
    ticks = nice_ticks(low, low + span, most)
    assert len(ticks) <= most
    assert ticks == sorted(set(ticks))
    # Rounding to twelve decimals moves a tick by less than this share of the span.
    assert all(low - 1e-3 * span <= tick <= low + 1.001 * span for tick in ticks)


def test_a_range_of_one_number_has_that_tick() -> None:
    assert nice_ticks(0.5, 0.5) == [0.5]
    assert nice_ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def test_axis_numbers_are_short() -> None:
    assert [short_number(x) for x in (0, 0.25, 1200, 10000, 2.5e6, 3e9)] == ["0", "0.25", "1.2k", "10k", "2.5M", "3G"]


def _numbers(svg: str) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for a, b in re.findall(r"[ML]?(\d+\.?\d*) (\d+\.?\d*)", svg)]


@pytest.mark.parametrize("num_points", [1, 2, 6, 500])
def test_lines_bands_and_levels_lie_inside_the_frame(num_points: int) -> None:
    points = tuple((10.0 * i, 0.5 + 0.01 * (i % 7), 0.4, 0.6) for i in range(num_points))
    lines = [Line("a", 0, points), Line("b", 1, ((0.0, 0.55, None, None),), True)]
    svg = line_chart("chart0", "Title", "Text", lines)
    root = ElementTree.fromstring(svg)
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-labelledby"] == "chart0-t chart0-d"
    assert [root[0].text, root[1].text] == ["Title", "Text"]
    for path in re.findall(r' d="M([^"]*)"', svg):
        for x, y in _numbers(path.split("m")[0]):
            assert 0 <= x <= 400, path
            assert 0 <= y <= 248, path
    # However many points there are, some forty markers tell the line apart.
    assert svg.count("<circle") <= 42


def test_a_point_without_an_interval_and_a_run_with_gaps_are_drawn() -> None:
    line = Line("a", 2, ((0.0, 0.1, None, None), (5.0, 0.2, 0.1, 0.3), (9.0, 0.3, None, None)))
    svg = line_chart("c", "t", "d", [line])
    assert svg.count("<g><title>") == 3
    assert line_chart("c", "t", "d", []) == ""


def test_only_models_without_steps_make_a_chart_without_steps() -> None:
    svg = line_chart("c", "t", "d", [Line("a", 0, ((0.0, 0.1, 0.05, 0.2),), True)])
    assert "training step" not in svg
    assert 'class="line level"' in svg


@pytest.mark.parametrize("is_narrow", [False, True])
def test_the_forest_plot_puts_gains_right_of_zero_and_losses_left(is_narrow: bool) -> None:
    rows = [Difference("up", 0.1, 0.05, 0.15, "better"), Difference("down", -0.1, -0.15, -0.05, "worse")]
    svg = forest_plot("f", "t", "d", rows, is_narrow)
    ElementTree.fromstring(svg)
    zero = float(re.search(r'class="zero" d="M([\d.]+)', svg).group(1))
    up, down = (float(x) for x in re.findall(r'class="mark" d="M([\d.]+)', svg))
    assert down < zero < up
    assert "up: +0.1 [+0.05, +0.15] better" in svg
    assert forest_plot("f", "t", "d", []) == ""


def test_differences_of_nothing_at_all_are_drawn() -> None:
    svg = forest_plot("f", "t", "d", [Difference("same", 0.0, 0.0, 0.0, "")])
    ElementTree.fromstring(svg)
    assert "nan" not in svg
    zero, mark = (float(re.search(f'class="{name}" d="M([\\d.]+)', svg).group(1)) for name in ("zero", "mark"))
    assert abs(zero - mark) < 10, "the mark, some pixels wide, stands on the line of no difference"


def test_labels_are_escaped_wherever_they_stand() -> None:
    line = Line(NASTY, 0, ((0.0, 0.1, None, None),))
    for svg in (
        line_chart("c", NASTY, NASTY, [line, Line(NASTY, 1, line.points, True)]),
        forest_plot("f", NASTY, NASTY, [Difference(NASTY, 0.1, 0.0, 0.2, "")]),
        forest_plot("f", NASTY, NASTY, [Difference(NASTY, 0.1, 0.0, 0.2, "")], is_narrow=True),
    ):
        ElementTree.fromstring(svg)
        assert "<script" not in svg


def test_each_series_has_its_own_marker() -> None:
    marks = {re.sub(r"s\d", "", legend_mark(style)) for style in range(8)}
    assert len(marks) == 8
