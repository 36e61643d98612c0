"""Small plots for pages that open without a network."""

import base64
import dataclasses
import html
import io
from collections.abc import Sequence

SIZE_INCHES = (6.4, 2.8)


@dataclasses.dataclass(frozen=True)
class Series:
    """One set of points.

    Attributes:
      name: for the legend; none without it.
      x, y: of the points.
      style: "line", "dots" or "bars".
      labels: a text beside each point.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "line"
    labels: Sequence[str] = ()


def plot(title: str, x_label: str, y_label: str, series: Sequence[Series]) -> str:
    """An `<img>` element that holds its picture; y begins at zero or below.

    Raises:
      ValueError: no points, or an unknown style.
    """
    if not any(len(one.x) for one in series):
        raise ValueError(f"plot {title!r} has no points")
    # Half a second, which programs that draw nothing need not wait.
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(SIZE_INCHES, layout="constrained")
    axes = figure.subplots()
    for one in series:
        _draw(axes, one)
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.margins(y=0.15)  # room for the labels of the highest points
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.grid(alpha=0.3)
    if any(one.name for one in series):
        axes.legend()
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "memvid_tf"}):  # equal data, equal bytes
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    # As a picture of its own: in one page the identifiers of several would clash.
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{html.escape(title)}" src="data:image/svg+xml;base64,{data}">'


def _draw(axes, one: Series) -> None:
    if one.style == "line":
        axes.plot(one.x, one.y, linewidth=1.2, label=one.name)
    elif one.style == "bars":
        width = (max(one.x) - min(one.x)) / max(len(one.x) - 1, 1) or 1.0
        axes.bar(one.x, one.y, width=0.95 * width, label=one.name)
    elif one.style == "dots":
        axes.plot(one.x, one.y, "o", markersize=4, label=one.name)
        for number, (x, y, label) in enumerate(zip(one.x, one.y, one.labels)):
            # Above and below in turn: neighbours are often close.
            offset = (5, -11 if number % 2 else 4)
            axes.annotate(label, (x, y), offset, textcoords="offset points", fontsize=8)
    else:
        raise ValueError(f"style {one.style!r} is not one of 'line', 'dots', 'bars'")
