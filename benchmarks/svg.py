"""Small plots as SVG text, for pages that open without a network."""

import dataclasses
import html
from collections.abc import Sequence

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 28, 44
COLORS = ("#1f5fa8", "#c8501e", "#2e7d4f", "#7a4fa3", "#8a6d1a", "#5b6770")


@dataclasses.dataclass(frozen=True)
class Series:
    """One set of points.

    Attributes:
      name: for the legend.
      x, y: of the points.
      style: "line", "dots" or "bars".
      labels: a text for each point, shown beside it and when the pointer rests on it.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "line"
    labels: Sequence[str] = ()


def plot(title: str, x_label: str, y_label: str, series: Sequence[Series]) -> str:
    """An `<svg>` element with axes from zero (y) and round ticks.

    Raises:
      ValueError: no points.
    """
    x = [value for one in series for value in one.x]
    y = [value for one in series for value in one.y]
    if not x:
        raise ValueError(f"plot {title!r} has no points")
    x_ticks, y_ticks = ticks(min(x), max(x)), ticks(min(0.0, min(y)), max(y))
    x_span, y_span = (x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1])

    def place(value, span, start, end):
        return start + (value - span[0]) / (span[1] - span[0]) * (end - start)

    def at(px, py):
        return place(px, x_span, LEFT, WIDTH - RIGHT), place(py, y_span, HEIGHT - BOTTOM, TOP)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">',
        f'<text x="{LEFT}" y="16" class="title">{html.escape(title)}</text>',
    ]
    for value in y_ticks:
        _, row = at(x_span[0], value)
        parts.append(f'<path d="M{LEFT} {row:.1f}H{WIDTH - RIGHT}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{row + 4:.1f}" class="end">{value:g}</text>')
    for value in x_ticks:
        column, _ = at(value, y_span[0])
        parts.append(
            f'<text x="{column:.1f}" y="{HEIGHT - BOTTOM + 16}" class="mid">{value:g}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" class="mid">{html.escape(x_label)}</text>')
    parts.append(
        f'<text transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" class="mid">'
        f"{html.escape(y_label)}</text>"
    )
    for number, one in enumerate(series):
        parts += _marks(one, COLORS[number % len(COLORS)], at, y_span[0])
    for number, one in enumerate(series):
        if one.name:
            column = WIDTH - RIGHT - 8
            parts.append(
                f'<text x="{column}" y="{TOP + 12 + 14 * number}" class="end" '
                f'style="fill:{COLORS[number % len(COLORS)]}">{html.escape(one.name)}</text>'
            )
    return "\n".join([*parts, "</svg>"])


def _marks(one: Series, color: str, at, floor: float) -> list[str]:
    points = [at(px, py) for px, py in zip(one.x, one.y, strict=True)]
    if one.style == "line":
        path = "L".join(f"{px:.1f} {py:.1f}" for px, py in points)
        return [f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="1.3"/>']
    if one.style == "bars":
        width = max(1.0, (WIDTH - LEFT - RIGHT) / (len(points) + 1) - 1)
        base = at(one.x[0], floor)[1]
        return [
            f'<rect x="{px - width / 2:.1f}" y="{py:.1f}" width="{width:.1f}" '
            f'height="{base - py:.1f}" fill="{color}" fill-opacity=".7"/>'
            for px, py in points
        ]
    parts = []
    for number, (px, py) in enumerate(points):
        label = html.escape(one.labels[number]) if one.labels else ""
        parts.append(
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{color}"><title>{label}</title>'
            f"</circle>"
        )
        if label:
            # Above and below in turn: neighbours are often close.
            parts.append(f'<text x="{px + 5:.1f}" y="{py + (14 if number % 2 else -5):.1f}">'
                         f"{label}</text>")
    return parts


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers that reach from `low` or below to `high` or above."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    step = 1.0
    while (high - low) / step > 6:
        step *= 10
    while (high - low) / step < 0.6:
        step /= 10
    for part in (0.1, 0.2, 0.5):
        if (high - low) / (step * part) <= 6:
            step *= part
            break
    first = int(low // step)
    values = [first * step]
    while values[-1] < high - 1e-9 * step:
        first += 1
        values.append(round(first * step, 12))
    return values
