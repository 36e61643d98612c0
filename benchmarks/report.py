r"""Pages from results files of `benchmarks.host` and `benchmarks.device`.

  python -m benchmarks.report RESULTS.json [MORE.json …] --output=report.html \
    --accuracy=evaluation.json
  python -m benchmarks.report compare LAST_WEEK.json TODAY.json

The page holds a table, latency over time with the frames of f0 visible, histograms, and accuracy
against latency where an evaluation is given; it needs no network. Numbers that were not measured on
real hardware say so and are never called latencies.
"""

import dataclasses
import html
import itertools
import json
from collections.abc import Sequence

import numpy as np
from absl import flags
from tabulate import tabulate

from benchmarks import measurements as schema
from benchmarks import plots
from benchmarks.runner import schedules
from memvid_tf import errors, files

FLAGS = flags.FLAGS

# LFS table 2, frames a second on a Pixel 3.
PAPER_FPS = {"f0": 4.2, "sync": 23.5, "async": 48.8, "int8 sync": 40.8, "int8 async": 72.3}
SHOWN_FRAMES = 120

STYLE = """
body{font:14px/1.5 system-ui,sans-serif;color:#1d2733;max-width:88rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0;font-variant-numeric:tabular-nums;display:block;overflow-x:auto}
th,td{padding:.2rem .45rem;border-bottom:1px solid #d9dfe6;text-align:right;white-space:nowrap}
th:nth-child(-n+2),td:nth-child(-n+2){text-align:left} h2{margin-top:2.5rem}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(24rem,1fr));gap:1.2rem}
.plots img{width:100%;max-width:640px}
.warning{background:#fff3d6;padding:.5rem .8rem;border-left:4px solid #c98a00}
"""


def define_flags() -> None:
    """The flags of this program."""
    flags.DEFINE_string("output", "", "HTML page to write. Example: --output=report.html")
    flags.DEFINE_string(
        "accuracy", "",
        "JSON that memvid_tf.evaluate --output wrote: mAP against latency. Example: int8.json",
    )  # fmt: skip


def title_of(summary: schema.Summary) -> str:
    """A heading for everything measured alike on one device."""
    s, device = summary.setting, summary.first.device
    emulated = "" if device["physical"] else " — emulated, not a latency"
    how = [f"{s.threads} thread(s)", f"{s.engine} {s.flags}".strip(), s.mode]
    how += [f"paced at {s.fps:g} fps"] if s.fps else []
    return f"{s.device}{emulated}: {', '.join(how)}"


def what_of(summary: schema.Summary) -> str:
    """The graph or schedule, and who computed it where that is known to be a delegate."""
    name, (_, delegates) = summary.setting.name, summary.identity
    return f"{name} ({delegates})" if delegates else name


def grouped(measurements: Sequence[schema.Measurement]) -> dict[str, list[schema.Summary]]:
    """Summaries by heading."""
    groups: dict[str, list[schema.Summary]] = {}
    for summary in schema.summaries(measurements):
        groups.setdefault(title_of(summary), []).append(summary)
    return groups


HEADER = (
    "subject", "what", "p50 ms", "mean ms", "p90 ms", "p99 ms", "max ms", "p99/p50", "fps",
    "overhead", "effective τ", "share of f0", "repeats",
)  # fmt: skip


def rows(group: Sequence[schema.Summary]) -> list[list[str]]:
    """Table rows as text, in the columns of `HEADER`."""
    table = []
    for s in sorted(group, key=lambda s: (s.setting.subject, s.setting.kind, s.setting.name)):
        times = (s.p50_ms, s.mean_ms, s.p90_ms, s.p99_ms, s.max_ms)
        overhead = "" if s.overhead_share is None else f"{100 * s.overhead_share:.2f} %"
        tau = "" if s.effective_tau is None else f"{s.effective_tau:.1f}"
        share = ""
        if s.f0_share is not None and s.setting.name.split(" ")[0] in schedules.INTERLEAVED:
            share = f"{100 * s.f0_share:.1f} %"
        table.append(
            [s.setting.subject, what_of(s), *(f"{ms:.3f}" for ms in times), f"{s.tail:.2f}",
             f"{s.fps:.0f}", overhead, tau, share, str(s.repeats)]
        )  # fmt: skip
    return table


def starved(group: Sequence[schema.Summary]) -> str:
    """A warning that names the adaptive schedules in which f0 never ran, "" without any."""
    names = [
        f"{s.setting.subject} {s.setting.name}"
        for s in sorted(group, key=lambda s: (s.setting.subject, s.setting.name))
        if s.setting.name.startswith("adaptive") and s.f0_share == 0
    ]
    if not names:
        return ""
    return (
        f"f0 never ran in {', '.join(names)}: the policy did not ask for it, so the time is that "
        "of f1 alone and no gain of the policy."
    )


PARTS_HEADER = (
    "subject", "schedule", "prepare", "extract", "memory", "post", "update", "policy", "between",
)  # fmt: skip


def parts(group: Sequence[schema.Summary]) -> list[list[str]]:
    """Microseconds of the parts of a frame, on average, in the columns of `PARTS_HEADER`; [] where
    nothing is known of them. Preparing is not part of a frame's latency, all others are."""
    table = []
    for s in sorted(group, key=lambda s: (s.setting.subject, s.setting.name)):
        result = s.first.result
        if "mean_us" not in result:
            continue
        mean = result["mean_us"]
        between = float(np.mean(result["latency_us"])) - sum(mean.values())
        named = [mean.get(name, 0.0) for name in PARTS_HEADER[3:-1]]
        cells = [float(np.mean(result["prepare_us"])), *named, between]
        words = [f"{us:.1f}" if us else "" for us in cells]
        table.append([s.setting.subject, s.setting.name, *words])
    return table


def ratios(group: Sequence[schema.Summary]) -> list[list[str]]:
    """What the paper claims as ratios of time beside what was measured; [] where nothing fits.

    Only schedules of one network and one τ are divided by each other.
    """
    timed = [s for s in group if s.setting.kind == "schedule" and not s.setting.fps]
    of = _networks(timed)
    mean = {}
    for s in timed:
        schedule, _, tau = s.setting.name.partition(" τ=")
        mean[of[s.setting.subject], s.first.precision, schedule, tau] = s.mean_ms
    networks = list(dict.fromkeys(of.values()))
    taus = sorted({tau for *_, tau in mean if tau}, key=int)
    wanted = [
        ("interleaved over f0 only, int8", "sync", "f0", ("int8", "f0"), ("int8", "sync")),
        ("int8 over float32, interleaved", "int8 sync", "sync", ("float32", "sync"),
         ("int8", "sync")),
        ("asynchronous over synchronous, int8", "int8 async", "int8 sync", ("int8", "sync"),
         ("int8", "async")),
    ]  # fmt: skip
    table = []
    for network, tau in itertools.product(networks, taus):
        label = f"{network}: " if len(networks) > 1 else ""
        suffix = f", τ={tau}" if len(taus) > 1 else ""
        for name, faster, slower, *pair in wanted:
            times = [
                mean.get((network, precision, schedule, "" if schedule == "f0" else tau))
                for precision, schedule in pair
            ]
            if None not in times:
                paper = PAPER_FPS[faster] / PAPER_FPS[slower]
                measured = f"{times[0] / times[1]:.2f}"
                table.append([f"{label}{name}{suffix}", f"{paper:.2f}", measured])
    return table


def _networks(summaries: Sequence[schema.Summary]) -> dict[str, str]:
    """Which bundles are one network in two precisions: its name by subject.

    Where each precision has one bundle they are; else those whose names differ in the precision
    alone.
    """
    precision = {s.setting.subject: s.first.precision for s in summaries}
    if len(set(precision.values())) == len(precision):
        return dict.fromkeys(precision, "")
    return {
        subject: subject.replace(kind or "", "").strip(" _-") or subject
        for subject, kind in precision.items()
    }


def markdown(measurements: Sequence[schema.Measurement]) -> str:
    """Tables of everything, as a page."""
    lines = ["# Measurements", ""]
    dates = sorted(m.date for m in measurements)
    lines.append(
        f"{len(measurements)} repeats, {dates[0]} to {dates[-1]}. Median over repeats of their "
        "medians, means and p99/p50; percentiles and maximum of all samples. Overhead is time "
        "outside the invokes."
    )
    for title, group in grouped(measurements).items():
        lines += ["", f"## {title}", ""]
        lines.append(tabulate(rows(group), HEADER, tablefmt="github", disable_numparse=True))
        if warning := starved(group):
            lines += ["", f"**Warning:** {warning}"]
        for words, header, table in _further(group):
            lines += ["", *([words, ""] if words else [])]
            lines.append(tabulate(table, header, tablefmt="github", disable_numparse=True))
    return "\n".join(lines) + "\n"


def _further(group: Sequence[schema.Summary]) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """What follows the table of a group: words, header and rows of each further table."""
    found = [
        ("", ("ratio", "paper (Pixel 3)", "measured"), ratios(group)),
        (
            "Microseconds of a frame, on average over the first repeat. Preparing (pixels to the "
            "graph's input, for f1 their box mean) is not part of the latency; “between” is.",
            PARTS_HEADER,
            parts(group),
        ),
    ]
    return [(words, header, table) for words, header, table in found if table]


def over_time(measurement: schema.Measurement) -> str:
    """Latency of the first frames, those on which f0 began marked."""
    latency = measurement.latency_ms[:SHOWN_FRAMES]
    series = [plots.Series("frames", range(len(latency)), latency.tolist())]
    marks = [i for i, x in enumerate(measurement.result["extractors"][: len(latency)]) if x == "0"]
    if marks:
        name = "seen whole" if measurement.setting.name == schedules.WHOLE else "f0 begins"
        series.append(plots.Series(name, marks, [float(latency[i]) for i in marks], "dots"))
    return plots.plot(f"{_name(measurement)}: over time", "frame", "ms", series)


def histogram(measurements: Sequence[schema.Measurement]) -> str:
    """Frames of all repeats by latency, the rarest thousandth left out."""
    samples = np.concatenate([m.latency_ms for m in measurements])
    counts, edges = np.histogram(samples, 40, (0.0, float(np.percentile(samples, 99.9)) or 1.0))
    centers = ((edges[1:] + edges[:-1]) / 2).tolist()
    return plots.plot(
        f"{_name(measurements[0])}: histogram", "ms", "frames",
        [plots.Series("", centers, counts.tolist(), "bars")],
    )  # fmt: skip


def sustained(measurements: Sequence[schema.Measurement]) -> str | None:
    """Median latency of every repeat of a sustained run and the temperature after it, over the
    order of the repeats; None where no temperature is known."""
    ordered = sorted(measurements, key=lambda m: m.date)
    points = [(i, m.conditions["after"].get("battery_c")) for i, m in enumerate(ordered)]
    points = [(i, celsius) for i, celsius in points if celsius is not None]
    if not points:
        return None
    medians = [float(np.median(m.latency_ms)) for m in ordered]
    return plots.plot(
        f"{_name(ordered[0])}: sustained", "repeat", "ms, °C",
        [plots.Series("p50 ms", range(len(medians)), medians),
         plots.Series("battery °C", *zip(*points))],
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """mAP by mode, of a bundle in one precision."""

    precision: str
    by_mode: dict[str, float]


def read_accuracy(path: str) -> Accuracy:
    """What `memvid_tf.evaluate --bundle --output` wrote.

    Raises:
      UserError: it is none.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        modes = {name: float(mode["mean_ap"]) for name, mode in content["modes"].items()}
        return Accuracy(str(content["precision"]), modes)
    except OSError as error:
        raise errors.UserError(f"--accuracy={path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.UserError(
            f"--accuracy={path} is not what memvid_tf.evaluate --bundle --output writes: {error!r}"
        ) from error


def mode_of(summary: schema.Summary) -> str:
    """The inference mode of `memvid_tf.evaluate` that a schedule is."""
    name, tau = summary.setting.name.split(" ")[0], summary.first.tau
    return {"sync": f"{tau}", "async": f"async{tau}", "adaptive+async": "adaptive+async"}.get(
        name, name
    )


def _name(measurement: schema.Measurement) -> str:
    return f"{measurement.setting.subject} {measurement.setting.name}"


def page(measurements: Sequence[schema.Measurement], accuracy: Accuracy | None) -> str:
    """The HTML page."""
    body = ["<h1>Measurements</h1>"]
    for title, group in grouped(measurements).items():
        body.append(f"<h2>{html.escape(title)}</h2>")
        if not group[0].first.device["physical"]:
            body.append('<p class="warning">Not a device: these times are not latencies.</p>')
        body.append(_table(HEADER, rows(group)))
        if warning := starved(group):
            body.append(f'<p class="warning">{html.escape(warning)}</p>')
        for words, header, table in _further(group):
            body += [f"<p>{html.escape(words)}</p>"] if words else []
            body.append(_table(header, table))
        timed = sorted(
            (s for s in group if s.setting.kind == "schedule"),
            key=lambda s: (s.setting.subject, s.setting.name),
        )
        drawn = []
        if accuracy and (points := _scored(timed, accuracy)):
            drawn.append(plots.plot("mAP against latency", "mean ms a frame", "mAP@.5", points))
        for summary in timed:
            mine = [m for m in measurements if m.identity == summary.identity]
            drawn += [over_time(mine[0]), histogram(mine)]
            if summary.setting.mode == "sustained" and (curve := sustained(mine)):
                drawn.append(curve)
        if drawn:
            body += ['<div class="plots">', *drawn, "</div>"]
    content = "\n".join(body)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Measurements</title>'
        f"<style>{STYLE}</style></head><body>\n{content}\n</body></html>\n"
    )


def _scored(timed: Sequence[schema.Summary], accuracy: Accuracy) -> list[plots.Series]:
    """A series of points for the bundle whose accuracy is known.

    Raises:
      UserError: several have the precision of the one that was evaluated.
    """
    found: dict[str, list[schema.Summary]] = {}
    for summary in timed:
        if summary.first.precision == accuracy.precision and mode_of(summary) in accuracy.by_mode:
            found.setdefault(summary.setting.subject, []).append(summary)
    if len(found) > 1:
        raise errors.UserError(
            f"--accuracy is of one {accuracy.precision} bundle, and the results hold "
            f"{', '.join(found)}; give results of the one that was evaluated"
        )
    return [
        plots.Series(
            subject, [s.mean_ms for s in some], [accuracy.by_mode[mode_of(s)] for s in some],
            "dots", [s.setting.name for s in some],
        )
        for subject, some in found.items()
    ]  # fmt: skip


def _table(header: Sequence[str], table: Sequence[Sequence[str]]) -> str:
    def row(cells, tag):
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    return f"<table>{row(header, 'th')}{''.join(row(cells, 'td') for cells in table)}</table>"


def comparison(before: schema.Results, after: schema.Results) -> str:
    """Everything that both results hold, with the ratio of times and its 95 % interval.

    Raises:
      UserError: they hold nothing in common.
    """
    old = {s.identity: s for s in schema.summaries(before.measurements)}
    table = []
    for new in schema.summaries(after.measurements):
        if new.identity not in old:
            continue
        found = schema.compare(old[new.identity], new)
        interval = "" if found.low is None else f"{found.low:.3f} … {found.high:.3f}"
        what = f"{new.setting.subject} {what_of(new)}"
        table.append([title_of(new), what, f"{found.ratio:.3f}", interval, found.verdict])
    if not table:
        raise errors.UserError(
            f"{before.path} and {after.path} measured nothing in common: device, subject, schedule, "
            "threads, engine with its flags, mode, fps and delegated nodes must be the same"
        )
    header = ["where", "what", "time after / before", "95 % interval", "verdict"]
    return tabulate(table, header, tablefmt="github", disable_numparse=True) + "\n"


def main(argv):
    paths = argv[1:]
    if paths[:1] == ["compare"]:
        if len(paths) != 3:
            raise errors.UserError(
                f"compare takes two results files, not {len(paths) - 1}; for example: "
                "python -m benchmarks.report compare last_week.json today.json"
            )
        print(comparison(*map(schema.Results.load, paths[1:])), end="")
        return
    if not paths:
        raise errors.UserError("name a results file: python -m benchmarks.report results.json")
    measurements = [m for path in paths for m in schema.Results.load(path).measurements]
    if not measurements:
        raise errors.UserError(f"{', '.join(paths)}: no measurements yet")
    accuracy = read_accuracy(FLAGS.accuracy) if FLAGS.accuracy else None
    print(markdown(measurements), end="")
    if FLAGS.output:
        files.write_text(FLAGS.output, page(measurements, accuracy))
        print(f"written: {FLAGS.output}")


if __name__ == "__main__":
    define_flags()
    errors.run(main)
