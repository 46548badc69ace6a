"""Charts of the web page as SVG made here: lines over training steps, and paired differences (forest plot).

Colours and fonts come from the page's style sheet by class: `s0` to `s7` name a series in every chart and in the
legend. Each chart has a title and a text alternative, and each series its own marker shape beside its colour.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

NUM_STYLES = 8
"""Series told apart in one chart."""
_WIDTH, _HEIGHT = 400.0, 248.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 10.0, 12.0, 40.0
_MARKS = (
    '<circle cx="{x}" cy="{y}" r="3.4"/>',
    '<path d="M{x} {y}m-3.2-3.2h6.4v6.4h-6.4z"/>',
    '<path d="M{x} {y}m0-4.2l4.1 7.2h-8.2z"/>',
    '<path d="M{x} {y}m0-4.4l4.2 4.4-4.2 4.4-4.2-4.4z"/>',
    '<path d="M{x} {y}m0 4.2l4.1-7.2h-8.2z"/>',
    '<path d="M{x} {y}m-1.3-4h2.6v2.7h2.7v2.6h-2.7v2.7h-2.6v-2.7h-2.7v-2.6h2.7z"/>',
    '<path class="open" d="M{x} {y}m-3.2-3.2h6.4v6.4h-6.4z"/>',
    '<circle class="open" cx="{x}" cy="{y}" r="3.4"/>',
)


@dataclass(frozen=True)
class Line:
    """One run's values of one metric."""

    label: str
    style: int
    """0 to NUM_STYLES - 1."""
    points: tuple[tuple[float, float, float | None, float | None], ...]
    """Step, value and the ends of its interval, in step order."""
    is_level: bool = False
    """A model without steps: drawn as a level across the chart."""


@dataclass(frozen=True)
class Difference:
    """One metric of a comparison."""

    label: str
    gain: float
    """Second minus first, its sign turned where lower is better."""
    low: float
    high: float
    verdict: str
    """`better`, `worse` or empty."""


@dataclass(frozen=True)
class _Axis:
    """Linear map of values onto pixels."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` round numbers (1, 2 or 5 times a power of ten apart) within [low, high]."""
    span = high - low
    if not span > 0:
        return [low]
    size = 10.0 ** math.floor(math.log10(span / most))
    step = next((m * size for m in (1, 2, 5, 10, 20) if span / (m * size) + 1 <= most), 50 * size)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def short_number(value: float) -> str:
    """`1200` as `1.2k`, `0.25` as it is: for axes."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def legend_mark(style: int) -> Markup:
    """The line and marker of a series, for a legend in HTML; hidden from screen readers, as its label stands beside."""
    mark = _mark(style, 14, 7)
    return Markup(
        f'<svg class="key s{style}" viewBox="0 0 28 14" width="28" height="14" aria-hidden="true" focusable="false">'
        f'<path class="line" d="M1 7H27"/>{mark}</svg>'
    )


def line_chart(name: str, title: str, text: str, lines: Sequence[Line]) -> Markup:
    """Values over training steps, with bands of their intervals; `name` makes the identifiers of the page unique."""
    numbers = [x for line in lines for _, *rest in line.points for x in rest if x is not None]
    steps = [point[0] for line in lines if not line.is_level for point in line.points]
    if not numbers:
        return Markup("")
    x = _Axis(*_padded(steps or [0.0], 0.03), _LEFT, _WIDTH - _RIGHT)
    y = _Axis(*_padded(numbers, 0.06), _HEIGHT - _BOTTOM, _TOP)
    parts = [_y_grid(y), _x_axis(x, bool(steps))]
    # Bands lie under all lines.
    parts += [_band(line, x, y) for line in lines]
    parts += [_level(line, y) for line in lines if line.is_level]
    parts += [_path(line, x, y) for line in lines if not line.is_level]
    return _svg(name, title, text, _WIDTH, _HEIGHT, "".join(parts))


def forest_plot(name: str, title: str, text: str, rows: Sequence[Difference], is_narrow: bool = False) -> Markup:
    """Each metric's gain with its interval around a line of no difference; right of it the second is better.

    Names stand left of the intervals, or above them where it is narrow.
    """
    if not rows:
        return Markup("")
    width, left, row_height, top = (380.0, 12.0, 42.0, 30.0) if is_narrow else (760.0, 290.0, 25.0, 30.0)
    bottom = top + row_height * len(rows)
    ends = [value for row in rows for value in (row.low, row.high, row.gain)]
    # Each side of zero keeps a part of the other, as the words above it need room.
    part = max(map(abs, ends)) * (0.55 if is_narrow else 0.35) or 1.0
    x = _Axis(min(*ends, -part) * 1.05, max(*ends, part) * 1.05, left, width - 14)
    parts = []
    for tick in nice_ticks(x.low, x.high, 6 if is_narrow else 9):
        at = x.at(tick)
        parts.append(f'<path class="grid" d="M{at:.1f} {top}V{bottom:.1f}"/>')
        sign = "0" if abs(tick) < 1e-12 else f"{tick:+.4g}"
        parts.append(f'<text class="tick" x="{at:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{sign}</text>')
    zero = x.at(0.0)
    parts.append(f'<path class="zero" d="M{zero:.1f} {top - 4}V{bottom:.1f}"/>')
    parts.append(f'<text class="side" x="{zero - 10:.1f}" y="{top - 11}" text-anchor="end">← first is better</text>')
    parts.append(f'<text class="side" x="{zero + 10:.1f}" y="{top - 11}">second is better →</text>')
    for number, row in enumerate(rows):
        start = top + row_height * number
        middle = start + row_height * (0.7 if is_narrow else 0.5)
        label = escape(_cut(row.label, 42))
        if is_narrow:
            parts.append(f'<text class="name {row.verdict}" x="2" y="{start + 16:.1f}">{label}</text>')
        else:
            place = f'x="{left - 12}" y="{middle + 4:.1f}" text-anchor="end"'
            parts.append(f'<text class="name {row.verdict}" {place}>{label}</text>')
        parts.append(_whisker(row, x, middle))
    return _svg(name, title, text, width, bottom + 24, "".join(parts))


def _whisker(row: Difference, x: _Axis, at: float) -> str:
    low, high, gain = x.at(row.low), x.at(row.high), x.at(row.gain)
    note = f"{row.label}: {row.gain:+.4g} [{row.low:+.4g}, {row.high:+.4g}] {row.verdict}".strip()
    return (
        f'<g class="{row.verdict or "same"}"><title>{escape(note)}</title>'
        f'<path class="whisker" d="M{low:.1f} {at:.1f}H{high:.1f}M{low:.1f} {at - 4:.1f}v8M{high:.1f} {at - 4:.1f}v8"/>'
        f'<path class="mark" d="M{gain:.1f} {at:.1f}m-4.5-4.5h9v9h-9z"/></g>'
    )


def _svg(name: str, title: str, text: str, width: float, height: float, inside: str) -> Markup:
    return Markup(
        f'<svg class="chart" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-labelledby="{escape(name)}-t '
        f'{escape(name)}-d"><title id="{escape(name)}-t">{escape(title)}</title>'
        f'<desc id="{escape(name)}-d">{escape(text)}</desc>{inside}</svg>'
    )


def _padded(numbers: Sequence[float], share: float) -> tuple[float, float]:
    low, high = min(numbers), max(numbers)
    gap = (high - low) * share or abs(high) * 0.05 or 1.0
    return low - gap, high + gap


def _y_grid(y: _Axis) -> str:
    parts = []
    for tick in nice_ticks(y.low, y.high):
        at = y.at(tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}"/>')
        label = short_number(tick)
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{label}</text>')
    return "".join(parts)


def _x_axis(x: _Axis, has_steps: bool) -> str:
    base = _HEIGHT - _BOTTOM
    parts = [f'<path class="axis" d="M{_LEFT} {base}H{_WIDTH - _RIGHT}"/>']
    if has_steps:
        for tick in nice_ticks(x.low, x.high):
            if tick < 0 or tick != int(tick):
                continue
            at = x.at(tick)
            parts.append(f'<path class="axis" d="M{at:.1f} {base}v4"/>')
            label = short_number(tick)
            parts.append(f'<text class="tick" x="{at:.1f}" y="{base + 17}" text-anchor="middle">{label}</text>')
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        parts.append(f'<text class="tick" x="{middle}" y="{_HEIGHT - 5}" text-anchor="middle">training step</text>')
    return "".join(parts)


def _band(line: Line, x: _Axis, y: _Axis) -> str:
    ends = [(p[0], p[2], p[3]) for p in line.points if p[2] is not None and p[3] is not None]
    # A level's interval stands at its end: a band across the chart would hide those of the runs.
    if not ends or line.is_level:
        return ""
    if len(ends) == 1:
        step, low, high = ends[0]
        at = x.at(step)
        return f'<path class="line s{line.style}" d="M{at:.1f} {y.at(low):.1f}V{y.at(high):.1f}"/>'
    upper = [f"{x.at(step):.1f} {y.at(high):.1f}" for step, _, high in ends]
    lower = [f"{x.at(step):.1f} {y.at(low):.1f}" for step, low, _ in reversed(ends)]
    return f'<path class="band s{line.style}" d="M{"L".join(upper + lower)}z"/>'


def _level(line: Line, y: _Axis) -> str:
    if not line.points:
        return ""
    _, value, low, high = line.points[-1]
    end = _WIDTH - _RIGHT - 6 - 5 * line.style
    whisker = "" if low is None or high is None else f'<path class="line" d="M{end} {y.at(low):.1f}V{y.at(high):.1f}"/>'
    return (
        f'<g class="s{line.style}"><title>{escape(f"{line.label}: {value:.4g}")}</title>'
        f'<path class="line level" d="M{_LEFT} {y.at(value):.1f}H{_WIDTH - _RIGHT}"/>{whisker}'
        f"{_mark(line.style, end, y.at(value))}</g>"
    )


def _path(line: Line, x: _Axis, y: _Axis) -> str:
    places = [(x.at(p[0]), y.at(p[1])) for p in line.points]
    path = "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
    marks = []
    # Beyond some forty points markers hide the line they mark; every n-th keeps the shape legible.
    every = max(1, -(-len(places) // 40))
    for number, ((a, b), point) in enumerate(zip(places, line.points, strict=True)):
        if number % every and number != len(places) - 1:
            continue
        note = escape(f"{line.label}, step {point[0]:,.0f}: {point[1]:.4g}")
        marks.append(f"<g><title>{note}</title>{_mark(line.style, a, b)}</g>")
    return f'<g class="s{line.style}"><path class="line" d="M{path}"/>{"".join(marks)}</g>' if places else ""


def _mark(style: int, x: float, y: float) -> str:
    return _MARKS[style % NUM_STYLES].format(x=f"{x:.1f}", y=f"{y:.1f}")


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
