r"""A page for each network of the zoo: what it is, costs and reaches here, and in the paper.

  python -m benchmarks.zoo
  python -m benchmarks.models

Puts together what other programs measured, from their results files, and measures nothing itself:
counts, sizes and latencies at paper scale from benchmarks.zoo, accuracies of the tiny twins from the
pages of claims and from DAVIS. What was not measured is blank, and the page says why.
"""

import dataclasses
import os

from absl import flags

from benchmarks import baselines, pipeline
from memvid_tf import errors, files
from memvid_tf.models import zoo

FLAGS = flags.FLAGS
GAMMA = "2"  # of the policies of benchmarks.policy


def define_flags() -> None:
    """The flags of this program."""
    flags.DEFINE_string(
        "results",
        "benchmarks/results",
        "Folder of results files, in which models.md and models/ are written. Example: results",
    )


@dataclasses.dataclass(frozen=True)
class Score:
    """Where an accuracy is written.

    Attributes:
      what: it is.
      results: name of the results file, without suffix.
      keys: that lead to a number in it, or to one with its spread over seeds.
      data: "synthetic" or "DAVIS".
    """

    what: str
    results: str
    keys: tuple[str, ...]
    data: str = "synthetic"


def _interleaved(what, source, mode, network="factored"):
    return Score(what, "interleaved_papers", ("scores", network, f"{source}:{mode}"))


def _davis(what, results, mode, *keys):
    return Score(what, results, ("modes", mode, *keys), "DAVIS")


def _windows(network):
    metrics = {"detector": ("mAP", "COCO AP"), "segmenter": ("J", "F")}
    name = {"detector": "windows_papers", "segmenter": "windows_segmenter"}

    def scores(kind, mode):
        return tuple(
            Score(metric, name[kind], ("scores", metric, mode)) for metric in metrics[kind]
        )

    return {
        network: scores(network, "frames:full"),
        f"{network}_patchwork": scores(network, "windows_4_2:dqn"),
    }


SCORES: dict[str, tuple[Score, ...]] = {
    "interleaved": (
        _interleaved("mAP at τ = 9", "float", "9"),
        _davis("mAP at τ = 9", "davis_float", "9", "mean_ap"),
    ),
    "interleaved_int8": (
        _interleaved("mAP at τ = 9", "int8", "9"),
        _davis("mAP at τ = 9", "davis_int8", "9", "mean_ap"),
    ),
    "interleaved_policy": (
        Score(f"mAP, adaptive, γ = {GAMMA}", "policy", ("table", GAMMA, "mAP")),
        Score(f"share of f0, γ = {GAMMA}", "policy", ("table", GAMMA, "share")),
    ),
    "f0_only": (
        _interleaved("mAP", "float", "f0"),
        _davis("mAP", "davis_float", "f0", "mean_ap"),
    ),
    "f1_only": (
        _interleaved("mAP", "float", "f1"),
        _davis("mAP", "davis_float", "f1", "mean_ap"),
    ),
    "flow_guided": (_interleaved("mAP at τ = 9", "float", "9", "flow_guided"),),
    **{
        name: (Score("mAP, f0 on every frame", "baselines", ("scores", name)),)
        for name in baselines.WITH_MEMORY
        if name != "f0_only"
    },
    **{name: (Score("mAP", "baselines", ("scores", name)),) for name in baselines.SINGLE},
    **_windows("detector"),
    **_windows("segmenter"),
}
SCORES["interleaved_bottleneck_conv_lstm"] = SCORES[baselines.BOTTLENECK]
for _name, _long in baselines.LONG.items():
    SCORES[_name] += (Score("trained longer", "baselines", ("scores", _long)),)
SCORES[baselines.NARROWEST] += (Score("and in int8", "baselines", ("scores", baselines.BUNDLE)),)
SCORES["segmenter"] += tuple(
    _davis(metric, "davis_segmenter", "full", metric.lower(), "mean") for metric in "JF"
)
SCORES["segmenter_patchwork"] += tuple(
    _davis(f"{metric}, int8", "davis_windows_int8", "dqn", metric.lower(), "mean")
    for metric in "JF"
)


class Results:
    """Results files by name, each read once.

    Args:
      folder: of all of them.
    """

    def __init__(self, folder: str):
        self._folder, self._read = folder, {}

    def file(self, name: str) -> dict | None:
        """The content of a results file, or None where it is not there."""
        if name not in self._read:
            path = os.path.join(self._folder, f"{name}.json")
            self._read[name] = pipeline.read(path) if os.path.exists(path) else None
        return self._read[name]

    def value(self, score: Score) -> str:
        """An accuracy as text, empty where it was not measured."""
        found = self.file(score.results)
        for key in score.keys:
            found = found.get(key) if found else None
        if found is None:
            return ""
        if isinstance(found, dict):
            return f"{found['mean']:.3f} ± {found['spread']:.3f}"
        return f"{found:.3f}"


def accuracies(entry: zoo.Entry, results: Results, data: str) -> str:
    """What the twin of an entry reaches on some data, or why there is no number."""
    scores = [score for score in SCORES[entry.name] if score.data == data]
    if not scores:
        return "not trained on it"
    found = [(score.what, results.value(score)) for score in scores]
    if not all(value for _, value in found):
        return f"not measured: no {scores[0].results}.json"
    return ", ".join(f"{what} {value}" for what, value in found)


def summary(entry: zoo.Entry, results: Results) -> dict[str, str]:
    """The numbers of an entry, by title."""
    measured = results.file("zoo")
    found = measured and measured["entries"].get(entry.name)
    if found:
        costs, sizes = found["costs"], found["bytes"]
        parameters = ", ".join(
            f"{row['what']} {row['parameters'] / 1e6:.2f}" for row in costs if row["parameters"]
        )
        machine, date = measured["provenance"]["machine"], measured["provenance"]["date"]
        numbers = {
            "parameters, M": parameters or "those of its single-frame twin",
            "multiply-adds, M": ", ".join(
                f"{row['what']} {row['multiply_adds'] / 1e6:.1f}" for row in costs
            ),
            "int8, MB": f"{sum(sizes['int8'].values()) / 1e6:.2f}",
            "float32, MB": f"{sum(sizes['float32'].values()) / 1e6:.2f}",
            "int8, ms": ", ".join(f"{g} {ms:.2f}" for g, ms in found["latency_ms"].items()),
            "measured on": f"{machine['processor']}, one thread, {date[:10]}",
        }
    else:
        numbers = {"parameters, M": "not measured: python -m benchmarks.zoo"}
    return numbers | {
        "tiny twin, synthetic video": accuracies(entry, results, "synthetic"),
        "tiny twin, DAVIS": accuracies(entry, results, "DAVIS"),
        "the paper, its own data": entry.reported,
    }


def page(entry: zoo.Entry, results: Results) -> str:
    """The page of an entry."""
    from tabulate import tabulate

    from memvid_tf.models.zoo import pages

    table = tabulate(
        summary(entry, results).items(), ["", ""], tablefmt="github", disable_numparse=True
    )
    sources = ", ".join(dict.fromkeys(f"{s.results}.json" for s in SCORES[entry.name]))
    told = f"Sizes and times are of the network at paper scale, without a phone. From {sources}."
    return pages.page(entry, f"{table}\n\n{told}") + "\n"


def index(results: Results) -> str:
    """All entries as a table with links to their pages."""
    from tabulate import tabulate

    titles = ["multiply-adds, M", "int8, MB", "int8, ms", "tiny twin, synthetic video"]
    titles += ["tiny twin, DAVIS", "the paper, its own data"]
    rows = []
    for entry in zoo.ENTRIES:
        found = summary(entry, results)
        name = f"[{entry.name}](models/{entry.name}.md)"
        rows.append([name, entry.paper, *(found.get(title, "") for title in titles)])
    return "\n".join(
        [
            "# The networks of the zoo",
            "",
            "Cost and time at paper scale with random weights, accuracy of the tiny twins; each "
            "network has a page with the rest and with the commands that train, export and run it.",
            "",
            tabulate(rows, ["network", "paper", *titles], tablefmt="github", disable_numparse=True),
            "",
        ]
    )


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    results = Results(FLAGS.results)
    for entry in zoo.ENTRIES:
        path = os.path.join(FLAGS.results, "models", f"{entry.name}.md")
        files.write_text(path, page(entry, results))
    path = os.path.join(FLAGS.results, "models.md")
    files.write_text(path, index(results))
    print(f"written: {path} and the pages of {len(zoo.ENTRIES)} networks")


if __name__ == "__main__":
    define_flags()
    errors.run(main)
