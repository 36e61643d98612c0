"""Small plots for pages that open without a network."""

import base64
import dataclasses
import html
import io
from collections.abc import Sequence

SIZE_INCHES = (6.4, 2.8)
LEGEND_INSIDE = 3  # names; more cover the points, and stand beside the plot


@dataclasses.dataclass(frozen=True)
class Series:
    """One set of points.

    Attributes:
      name: for the legend; none without it.
      x, y: of the points.
      style: "line", "marked" with its points, "dots" or "bars".
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
    # As a picture of its own: in one page the identifiers of several would clash.
    data = base64.b64encode(svg(title, x_label, y_label, series).encode()).decode()
    return f'<img alt="{html.escape(title)}" src="data:image/svg+xml;base64,{data}">'


def svg(
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[Series],
    *,
    log_x: bool = False,
    from_zero: bool = True,
) -> str:
    """One plot as SVG.

    Args:
      title, x_label, y_label: texts.
      series: what is drawn.
      log_x: whether the x axis is logarithmic.
      from_zero: whether y begins at zero or below.

    Raises:
      ValueError: no points, or an unknown style.
    """
    from matplotlib.ticker import LogLocator

    def fill(figure):
        axes = figure.subplots()
        _fill(axes, y_label, series, title)
        axes.set(title=title, xlabel=x_label)
        if log_x:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
        if from_zero:
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))

    return _saved(SIZE_INCHES, fill)


def cost_svg(
    title: str, x_label: str, y_label: str, lines: dict[str, Sequence[tuple[float, float]]]
) -> str:
    """Accuracy against cost as SVG.

    Args:
      title, x_label, y_label: texts.
      lines: (multiply-adds, accuracy) of its points, by the name of a line.
    """
    series = [
        Series(name, [cost / 1e6 for cost, _ in points], [value for _, value in points], "marked")
        for name, points in lines.items()
    ]
    return svg(title, f"{x_label}, M", y_label, series, log_x=True)


def columns_svg(title: str, x_label: str, plots: dict[str, Sequence[Series]]) -> str:
    """Several plots under one another, of one x axis, as SVG.

    Args:
      title, x_label: texts.
      plots: what is drawn, by the label of the y axis.

    Raises:
      ValueError: a plot without points, or an unknown style.
    """

    def fill(figure):
        every = figure.subplots(len(plots), sharex=True, squeeze=False)[:, 0]
        for axes, (y_label, series) in zip(every, plots.items()):
            _fill(axes, y_label, series, title)
        every[0].set(title=title)
        every[-1].set(xlabel=x_label)

    return _saved((SIZE_INCHES[0], 0.7 * SIZE_INCHES[1] * len(plots)), fill)


def _fill(axes, y_label, series, title):
    if not any(len(one.x) for one in series):
        raise ValueError(f"plot {title!r} has no points")
    for one in series:
        _draw(axes, one)
    axes.set(ylabel=y_label)
    axes.margins(y=0.15)  # room for the labels of the highest points
    axes.grid(alpha=0.3)
    names = sum(bool(one.name) for one in series)
    if names > LEGEND_INSIDE:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)
    elif names:
        axes.legend()


def _saved(size_inches, fill) -> str:
    # Half a second, which programs that draw nothing need not wait.
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(size_inches, layout="constrained")
    fill(figure)
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "memvid_tf"}):  # equal data, equal bytes
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue().decode()


def _draw(axes, one: Series) -> None:
    if one.style in ("line", "marked"):
        marker = {"marker": "o", "markersize": 4} if one.style == "marked" else {}
        axes.plot(one.x, one.y, linewidth=1.2, label=one.name, **marker)
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
        raise ValueError(f"style {one.style!r} is not one of 'line', 'marked', 'dots', 'bars'")
