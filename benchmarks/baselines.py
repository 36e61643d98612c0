r"""The networks of LFS tables 1 and 2 beside each other, at laptop scale on the synthetic video set.

  python -m memvid_tf.data synthetic --output=data/synthetic
  python -m benchmarks.interleaved_papers
  python -m benchmarks.baselines --data=data/synthetic --work_dir=runs/baselines \
    --interleaved=runs/interleaved_papers

Trains the tiny twins of the zoo's cells, single-frame networks and networks with a memory on every
frame, in float, for every seed; scores and counts them beside the interleaved detector of the same
seed, and states each claim as a sentence with its numbers: holds, or does not. Networks that are
compared see as many frames with their large extractor. Takes hours on two cores; interrupted and
started again, it goes on where it was. --quick trains for minutes, which proves that the program
works and nothing about the paper.
"""

import os

from absl import flags

from benchmarks import pages, pipeline
from benchmarks.claims import Claim, judged, spread, table
from memvid_tf import errors
from memvid_tf.models import zoo

FLAGS = flags.FLAGS
FRAMES = 50  # with the large extractor, a step
# The last is for those that are compared with the interleaved detector, whose f0 sees 193500 frames.
STEPS = {"networks": 1000, "long": 3870, "qat": 800}
QUICK_STEPS = {"networks": 40, "long": 40, "qat": 20}
# Of table 1: f0 alone runs. Training gives f1 a frame of each clip, so that it can be exported.
F0_ALONE = ("task.f0_probability=1.0", "task.validation_tau=0")
# Here the twin of interleaved_bottleneck_conv_lstm is that of the widest network of table 2.
BOTTLENECK = "ssdlite_lstm_1.4"
CELLS = {
    "f0_only": "63.37",
    "interleaved_conv_lstm": "63.40",
    "interleaved_conv_gru": "63.20",
    BOTTLENECK: "61.92",
}
WIDTHS = ("1.4", "1.0", "0.5", "0.35")
SINGLE = {f"ssdlite_{a}": p for a, p in zip(WIDTHS, ("60.5", "58.4", "48.4", "42.0"))}
LSTM = {f"ssdlite_lstm_{a}": p for a, p in zip(WIDTHS, ("64.1", "59.1", "50.3", "45.1"))}
# The narrowest, as they are called where they are trained as long as the interleaved detector.
NARROWEST, NARROWEST_LSTM = f"ssdlite_{WIDTHS[-1]}", f"ssdlite_lstm_{WIDTHS[-1]}"
LONG = {name: f"{name}_long" for name in (NARROWEST, NARROWEST_LSTM)}
# After its long training that of single frames is quantized, and its bundle is scored.
QUANTIZED = f"{NARROWEST}_qat"
BUNDLE = f"{QUANTIZED}_int8"
# The interleaved detector, trained and scored by benchmarks.interleaved_papers.
INTERLEAVED = ("f0", "1", "4", "9", "19")
PAPER = CELLS | SINGLE | LSTM | {"interleaved:f0": "63.9", "interleaved:9": "61.4"}
PAPER[BOTTLENECK] += f" (table 1: {CELLS[BOTTLENECK]})"
WITH_MEMORY = tuple(CELLS | LSTM)


def phases(counts: dict[str, int]) -> tuple[pipeline.Phase, ...]:
    """All trainings of one seed, named after the entries of the zoo."""

    def phase(entry, name, steps_of, overlays=(), follows=""):
        pairs, experiment = entry.tiny_settings, "interleaved"
        if entry.name in SINGLE:
            pairs += (f"task.train_data.global_batch_size={FRAMES}",)
            experiment = "detector"
        else:
            pairs = tuple(dict.fromkeys((*pairs, *F0_ALONE)))
        configs = (entry.tiny, *overlays)
        return pipeline.Phase(
            name, configs, steps_of, pairs, experiment=experiment, follows=follows
        )

    entries = [zoo.find(name) for name in (*WITH_MEMORY, *SINGLE)]
    found = [phase(entry, entry.name, counts["networks"]) for entry in entries]
    found += [phase(zoo.find(name), long, counts["long"]) for name, long in LONG.items()]
    overlays = ("single_frame_tiny_qat",)
    quantized = phase(
        zoo.find(NARROWEST), QUANTIZED, counts["qat"], overlays, follows=LONG[NARROWEST]
    )
    return (*found, quantized)


def modes(name: str) -> tuple[str, ...]:
    """What is scored of an entry."""
    return ("full",) if name in SINGLE else ("f0",)


def steps(run: pipeline.Run) -> list[pipeline.Step]:
    """Everything that is trained and measured of a seed."""
    return [
        *run.trainings(),
        *(run.phase_evaluation(name, modes(name)) for name in (*WITH_MEMORY, *SINGLE)),
        *(run.phase_evaluation(long, modes(name)) for name, long in LONG.items()),
        run.phase_export(QUANTIZED),
        run.bundle_evaluation(QUANTIZED, ("full",)),
    ]


def interleaved_modes(work_dir: str, seed: int) -> dict[str, dict]:
    """Results of the interleaved detector of a seed, by mode.

    Raises:
      UserError: if they are not there.
    """
    path = os.path.join(work_dir, "factored", f"seed_{seed}", "results", "float.json")
    if not os.path.isfile(path):
        raise errors.UserError(
            f"{path} is not there; run python -m benchmarks.interleaved_papers with this seed "
            "first and name its --work_dir with --interleaved"
        )
    return pipeline.read(path)["modes"]


def scores_of(run: pipeline.Run, interleaved: dict[str, dict]) -> dict[str, float]:
    """mAP of a seed by entry of the zoo, and by "interleaved:mode".

    Args:
      run: of the seed.
      interleaved: what `interleaved_modes` returned for it.
    """
    found = {}
    for name in (*WITH_MEMORY, *SINGLE, *LONG.values(), BUNDLE):
        (result,) = run.result(name)["modes"].values()
        found[name] = result["mean_ap"]
    return found | {f"interleaved:{mode}": interleaved[mode]["mean_ap"] for mode in INTERLEAVED}


def costs_of() -> dict[str, float]:
    """Multiply-adds of an average frame, by the same names, counted in the twins."""
    from memvid_tf.models.zoo import costs

    def parts(name):
        entry = zoo.find(name)
        return {row.what: row.multiply_adds for row in costs.costs(entry, entry.tiny)}

    found = {name: parts(name)["a frame of f0"] for name in WITH_MEMORY}
    found |= {name: parts(name)["a frame"] for name in SINGLE}
    found |= {long: found[name] for name, long in LONG.items()}
    found[BUNDLE] = found[NARROWEST]
    f0, f1 = (parts("interleaved")[f"a frame of {extractor}"] for extractor in ("f0", "f1"))
    for mode in INTERLEAVED:
        tau = 0 if mode == "f0" else int(mode)
        found[f"interleaved:{mode}"] = (f0 + tau * f1) / (1 + tau)
    return found


def _smallest_gain(score):
    """Of the memory over single frames, over the widths."""
    return min(score[a] - score[b] for a, b in zip(LSTM, SINGLE, strict=True))


CLAIMS = (
    Claim(
        "table 1: the grouped cell is within .01 of the ConvLSTM",
        lambda s: s["f0_only"] - s["interleaved_conv_lstm"],
        lambda v: v >= -0.01,
        "-0.0003",
    ),
    Claim(
        "table 1: the grouped cell is within .01 of the ConvGRU",
        lambda s: s["f0_only"] - s["interleaved_conv_gru"],
        lambda v: v >= -0.01,
        "0.002",
    ),
    Claim(
        "table 1: the grouped cell beats the Bottleneck LSTM",
        lambda s: s["f0_only"] - s[BOTTLENECK],
        lambda v: v > 0,
        "0.0145",
    ),
    Claim(
        "table 2: a memory beats single frames at each of four widths (smallest gain)",
        _smallest_gain,
        lambda v: v > 0,
        "0.007",
    ),
    Claim(
        "table 2: interleaved at τ = 9 beats the narrowest single-frame network",
        lambda s: s["interleaved:9"] - s[LONG[NARROWEST]],
        lambda v: v > 0,
        "0.194",
    ),
    Claim(
        "table 2: interleaved at τ = 9 beats the narrowest network with memory on every frame",
        lambda s: s["interleaved:9"] - s[LONG[NARROWEST_LSTM]],
        lambda v: v > 0,
        "0.163",
    ),
)


def collect(by_seed: list[dict[str, float]]) -> dict:
    """The numbers of all seeds, each as `scores_of`: scores, costs and claims."""
    return {
        "scores": {key: spread([score[key] for score in by_seed]) for key in by_seed[0]},
        "claims": judged(CLAIMS, by_seed),
        "costs": costs_of(),
    }


# What the picture compares at equal cost: results by the name of a line.
FRONTIER = {
    "single frame": tuple(SINGLE),
    "LSTM on every frame": tuple(LSTM),
    "single frame, trained longer": (LONG[NARROWEST],),
    "memory-guided, τ from 0 to 19": tuple(f"interleaved:{mode}" for mode in INTERLEAVED),
}


def picture(result: dict) -> str:
    """Accuracy against cost, as SVG."""
    from benchmarks import plots

    lines = {
        name: [(result["costs"][key], result["scores"][key]["mean"]) for key in keys]
        for name, keys in FRONTIER.items()
    }
    x_label = "multiply-adds of an average frame"
    return plots.cost_svg("Accuracy against cost", x_label, "mAP", lines)


def markdown(result: dict, output: str) -> str:
    """The results as a page; its picture is PATH_cost.svg of `output`."""
    from tabulate import tabulate

    rows = [
        [
            key,
            f"{result['costs'][key] / 1e6:.2f}",
            f"{value['mean']:.3f} ± {value['spread']:.3f}",
            PAPER.get(key, ""),
        ]
        for key, value in result["scores"].items()
    ]
    counts = result["steps"]
    machine = result["provenance"]["machine"]
    return "\n".join(
        [
            "# The networks of LFS tables 1 and 2 on the synthetic video set",
            "",
            f"Tiny twins, in float but for one; seeds {', '.join(map(str, result['seeds']))}, "
            f"{result['test_clips']} unseen clips; mean ± standard deviation over seeds. "
            f"{counts['networks']} steps of {FRAMES} frames with the large extractor; `_long` is "
            f"{counts['long']}, after which a network has seen as many as f0 of the interleaved "
            "detector, which is that of interleaved_papers.md; `_qat_int8` is an int8 bundle of the "
            f"first after {counts['qat']} more. "
            f"{machine['processor']}, {result['provenance']['date']}. The paper's column is "
            "ImageNet VID at 320 px: compare orders, not values.",
            "",
            "## mAP@.5",
            "",
            tabulate(
                rows,
                ["entry of the zoo", "multiply-adds, M", "mAP", "paper"],
                tablefmt="github",
                disable_numparse=True,
            ),
            "",
            "Multiply-adds are of an average frame of the twin. The first four rows are cells of "
            "table 1, in a network in which f0 alone runs; after `interleaved:` stands τ.",
            "",
            f"![Accuracy against cost]({os.path.basename(output)}_cost.svg)",
            "",
            "## Claims",
            "",
            table(result["claims"]),
            "",
        ]
    )


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    counts = QUICK_STEPS if FLAGS.quick else STEPS
    runs = pipeline.runs_by_seed(
        FLAGS.seeds, FLAGS.work_dir, FLAGS.data, phases(counts), FLAGS.quick
    )
    from memvid_tf import provenance
    from memvid_tf.data import records

    info = records.read_info(FLAGS.data)
    # What they are compared with, before hours of training.
    interleaved = {seed: interleaved_modes(FLAGS.interleaved, seed) for seed in runs}
    for seed, run in runs.items():
        print(f"== seed {seed}", flush=True)
        pipeline.run(steps(run))
    by_seed = [scores_of(run, interleaved[seed]) for seed, run in runs.items()]
    result = {
        "seeds": list(runs),
        "quick": FLAGS.quick,
        "steps": counts,
        "test_clips": info.split("test").clips,
        **collect(by_seed),
        "provenance": provenance.describe(),
    }
    pages.publish(FLAGS.output, result, markdown(result, FLAGS.output), cost=picture(result))


if __name__ == "__main__":
    flags.DEFINE_string("data", "data/synthetic", "Synthetic set. Example: --data=data/synthetic")
    flags.DEFINE_string("work_dir", "runs/baselines", "Trainings. Example: runs/baselines")
    flags.DEFINE_string(
        "interleaved",
        "runs/interleaved_papers",
        "--work_dir of benchmarks.interleaved_papers. Example: runs/interleaved_papers",
    )
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the trainings. Example: --seeds=0,1,2")
    flags.DEFINE_bool("quick", False, "Train for minutes: shows that it works, proves no claim.")
    flags.DEFINE_string(
        "output",
        "benchmarks/results/baselines",
        "Results, as PATH.json, PATH.md and PATH_cost.svg. Example: benchmarks/results/baselines",
    )
    errors.run(main)
