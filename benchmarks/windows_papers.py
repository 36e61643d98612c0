r"""The claims of Patchwork (PW tables 1 and 2), checked at laptop scale on the synthetic video set.

  python -m memvid_tf.data synthetic --output=data/synthetic128 --image_size=128
  python -m benchmarks.windows_papers --data=data/synthetic128 --work_dir=runs/windows_papers
  python -m benchmarks.windows_papers --kind=segmenter --data=data/synthetic128 \
    --work_dir=runs/windows_papers --output=benchmarks/results/windows_segmenter

Trains single-frame networks at three resolutions, attention, and networks in windows with and
without the cell, for every seed; exports, scores everything, and states each claim as a sentence
with its numbers: holds, or does not. Takes hours on two cores; interrupted and started again, it
goes on where it was. --quick trains for minutes, which proves that the program works and nothing
about the paper.
"""

import os

from absl import flags

from benchmarks import pages, pipeline
from benchmarks.claims import Claim, judged, spread
from memvid_tf import errors

FLAGS = flags.FLAGS
KINDS = ("detector", "segmenter")
STEPS = {
    "detector": {"frames": 3000, "attention": 400, "windows": 600},
    "segmenter": {"frames": 1500, "attention": 200, "windows": 600},
}
QUICK_STEPS = {"frames": 40, "attention": 10, "windows": 20}
SIDE = 128  # of the configurations' frames
# Single frames that cost as much as a window: the share of the frame, and their side.
RESIZED = {"frames_1_4": SIDE // 2, "frames_1_16": SIDE // 4}
WINDOWS = ((4, 2), (2, 1), (4, 1))
SCANNED = "windows_2_1"  # no windows overlap; trained on random ones, without attention
NO_CELL = "windows_4_2_nocell"
# What is scored of each phase, in the order of the tables.
MODES = {
    "frames": ("full",),
    "frames_1_4": ("full",),
    "frames_1_16": ("full",),
    "windows_4_2": ("full", "random", "scanning", "dqn"),
    SCANNED: ("full", "random", "scanning"),
    "windows_4_1": ("full", "random", "scanning", "dqn"),
    NO_CELL: ("scanning", "dqn"),
}
INT8_MODES = ("scanning", "dqn")
# PW table 1, table 2 and section 4.1, mAP on ImageNet VID; of DAVIS PW prints J and F of two rows.
PAPER = {
    "detector": {
        "frames:full": "54.7",
        "frames_1_4:full": "49.3",
        "frames_1_16:full": "34.3",
        "windows_4_2:random": "52.5",
        "windows_2_1:scanning": "51.7",
        "windows_4_2:dqn": "54.3",
        "windows_4_1:random": "37.0",
        "windows_4_1:scanning": "37.9",
        "windows_4_1:dqn": "41.6",
        f"{NO_CELL}:scanning": "39.5 (M = 2, N = 1)",
        f"{NO_CELL}:dqn": "43.2",
    },
    "segmenter": {"frames:full": "J 63.6, F 59.5", "windows_4_2:dqn": "J 62.1, F 58.8"},
}
# Attention is rewarded for the mean overlap (PW 3.3), of which an AP at an IoU of .5 sees little.
METRICS = {"detector": ("mAP", "COCO AP"), "segmenter": ("J", "F")}
SCORING = {"detector": {"coco": True}, "segmenter": {}}
# What the picture compares at equal cost: results by the name of a line.
FRONTIER = {
    "single frame, resized": ("frames_1_16:full", "frames_1_4:full", "frames:full"),
    "chance": ("windows_4_1:random", "windows_4_2:random"),
    "scanning": ("windows_4_1:scanning", f"{SCANNED}:scanning"),
    "attention": ("windows_4_1:dqn", "windows_4_2:dqn"),
}


def phases(kind: str, counts: dict[str, int]) -> tuple[pipeline.Phase, ...]:
    """All trainings of one seed."""
    base = (f"{kind}_tiny",)
    found = [pipeline.Phase("frames", base, counts["frames"], experiment=kind)]
    for name, side in RESIZED.items():
        size = f"image_size=[{side},{side}]"
        sections = ("task.model", "task.train_data", "task.validation_data")
        pairs = tuple(f"{section}.{size}" for section in sections)
        if kind == "detector" and side == RESIZED["frames_1_16"]:
            pairs += ("task.model.extra_depths=[96]",)  # its map of 4×4 has room for two more
        # Nothing comes before it.
        found.append(
            pipeline.Phase(name, base, counts["frames"], pairs, experiment=kind, follows="")
        )
    for slices, adjacent in WINDOWS:
        name = f"{slices}_{adjacent}"
        size = (f"task.windows.slices={slices}", f"task.windows.adjacent={adjacent}")
        joint = dict(experiment=f"{kind}_patchwork", follows="frames")
        if f"windows_{name}" == SCANNED:
            size += ("task.q_learning.exploration=1",)
        else:
            joint["follows"] = f"attention_{name}"
            found.append(
                pipeline.Phase(
                    f"attention_{name}",
                    (f"{kind}_attention_tiny",),
                    counts["attention"],
                    size,
                    experiment=f"{kind}_attention",
                    follows="frames",
                    start_key="task.base_model_dir",
                    decays=False,
                )
            )
        configs = (*base, f"{kind}_patchwork_tiny")
        found.append(
            pipeline.Phase(f"windows_{name}", configs, counts["windows"], size, **joint)
        )
        if f"windows_{name}_nocell" == NO_CELL:
            pairs = (*size, "task.windows.context=none")
            found.append(pipeline.Phase(NO_CELL, configs, counts["windows"], pairs, **joint))
    return tuple(found)


def steps(run: pipeline.Run) -> list[pipeline.Step]:
    """Everything that is measured of a seed."""
    return [
        *run.trainings(),
        *(run.phase_evaluation(name, modes) for name, modes in MODES.items()),
        run.phase_evaluation("windows_4_2", INT8_MODES, simulate_quantization=False),
        run.phase_export("windows_4_2"),
        run.bundle_evaluation("windows_4_2", INT8_MODES),
    ]


def scores_of(run: pipeline.Run, metric: str) -> dict[str, float]:
    """Scores of a seed by "result:mode"."""
    found = {}
    for name in (*MODES, "windows_4_2_float", "windows_4_2_int8"):
        for mode, result in run.result(name)["modes"].items():
            found[f"{name}:{mode}"] = _value(result, metric)
    return found


def _value(result: dict, metric: str) -> float:
    if metric == "COCO AP":
        return result["coco"]["numbers"]["AP"]
    return result["mean_ap"] if metric == "mAP" else result[metric.lower()]["mean"]


def costs_of(run: pipeline.Run) -> dict[str, float | None]:
    """Maximum multiply-adds of a frame by "result:mode"."""
    return {
        f"{name}:{mode}": result["max_multiply_adds"]
        for name in MODES
        for mode, result in run.result(name)["modes"].items()
    }


def _better(sentence: str, a: str, b: str, paper: str) -> Claim:
    return Claim(sentence, lambda s: s[a] - s[b], lambda v: v > 0, paper)


CLAIMS = (
    _better(
        "1/4: attention beats scanning (M = 4, N = 2 over M = 2, N = 1)",
        "windows_4_2:dqn", "windows_2_1:scanning", "2.6",
    ),
    _better("1/4: attention beats chance", "windows_4_2:dqn", "windows_4_2:random", "1.8"),
    Claim(
        "1/4: scanning and chance are within .02",
        lambda s: abs(s["windows_2_1:scanning"] - s["windows_4_2:random"]),
        lambda v: v <= 0.02,
        "0.8",
    ),
    _better(
        "1/4: chance beats the resized single frame of equal cost",
        "windows_4_2:random", "frames_1_4:full", "3.2",
    ),
    _better(
        "1/4: scanning beats the resized single frame of equal cost",
        "windows_2_1:scanning", "frames_1_4:full", "2.4",
    ),
    Claim(
        "1/4: attention loses at most .02 to the full single frame",
        lambda s: s["frames:full"] - s["windows_4_2:dqn"],
        lambda v: v <= 0.02,
        "0.4",
    ),
    _better("1/16: attention beats scanning", "windows_4_1:dqn", "windows_4_1:scanning", "3.7"),
    _better("1/16: attention beats chance", "windows_4_1:dqn", "windows_4_1:random", "4.6"),
    _better(
        "1/16: scanning beats the resized single frame of equal cost",
        "windows_4_1:scanning", "frames_1_16:full", "3.6",
    ),
    _better(
        "1/16: chance beats the resized single frame of equal cost",
        "windows_4_1:random", "frames_1_16:full", "2.7",
    ),
    _better(
        "with the cell scanning is better than without",
        "windows_4_2:scanning", f"{NO_CELL}:scanning", "12.2",
    ),
    _better(
        "with the cell attention is better than without",
        "windows_4_2:dqn", f"{NO_CELL}:dqn", "11.1",
    ),
    Claim(
        "int8 is within .01 of the same weights in float (largest difference)",
        lambda s: max(
            abs(s[f"windows_4_2_int8:{m}"] - s[f"windows_4_2_float:{m}"]) for m in INT8_MODES
        ),
        lambda v: v <= 0.01,
    ),
)  # fmt: skip


def collect(runs: dict[int, pipeline.Run], kind: str) -> dict:
    """The numbers of all seeds: scores, costs and claims by metric."""
    result = {"scores": {}, "claims": {}, "costs": costs_of(next(iter(runs.values())))}
    for metric in METRICS[kind]:
        by_seed = [scores_of(run, metric) for run in runs.values()]
        result["scores"][metric] = {
            key: spread([score[key] for score in by_seed]) for key in by_seed[0]
        }
        result["claims"][metric] = judged(CLAIMS, by_seed)
    return result


def picture(result: dict) -> str:
    """Accuracy against cost, as SVG."""
    from benchmarks import plots

    metric = METRICS[result["kind"]][0]
    lines = {
        name: [(result["costs"][key], result["scores"][metric][key]["mean"]) for key in keys]
        for name, keys in FRONTIER.items()
    }
    x_label = "multiply-adds of the costliest frame"
    return plots.cost_svg("Accuracy against cost", x_label, metric, lines)


def markdown(result: dict, output: str) -> str:
    """The results as a page; its picture is PATH_cost.svg of `output`."""
    from tabulate import tabulate

    kind = result["kind"]

    def value(metric, key):
        found = result["scores"][metric][key]
        return f"{found['mean']:.3f} ± {found['spread']:.3f}"

    rows = []
    for key in next(iter(result["scores"].values())):
        cost = result["costs"].get(key)
        name, mode = key.split(":")
        cells = [value(metric, key) for metric in METRICS[kind]]
        paper = PAPER[kind].get(key, "")
        rows.append([name, mode, "" if cost is None else f"{cost / 1e6:.2f}", *cells, paper])
    claims = [
        [
            c["claim"],
            metric,
            f"{c['mean']:.3f} ± {c['spread']:.3f}",
            c["paper"] if metric == "mAP" else "",
            "holds" if c["holds"] else "does not hold",
        ]
        for metric, of in result["claims"].items()
        for c in of
    ]
    steps = ", ".join(f"{count} of {name}" for name, count in result["steps"].items())
    machine = result["provenance"]["machine"]
    return "\n".join(
        [
            f"# Patchwork on the synthetic video set: {kind}",
            "",
            f"Training steps: {steps}; seeds {', '.join(map(str, result['seeds']))}, "
            f"{result['test_clips']} unseen clips; mean ± standard deviation over seeds. Networks "
            "in windows are quantization-aware, single frames are float. "
            f"{machine['processor']}, {result['provenance']['date']}. The paper's column is in "
            "points on its own data: compare orders, not values.",
            "",
            "## Scores",
            "",
            tabulate(
                rows, ["network", "mode", "max MMAC", *METRICS[kind], "paper"], tablefmt="github"
            ),
            "",
            "`_4_2` is M = 4, N = 2. `_float`: the same weights without simulated quantization; "
            "`_int8`: the bundle.",
            "",
            f"![Accuracy against cost]({os.path.basename(output)}_cost.svg)",
            "",
            "## Claims",
            "",
            tabulate(
                claims, ["claim", "score", "measured", "paper, points", ""], tablefmt="github"
            ),
            "",
        ]
    )


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    counts = QUICK_STEPS if FLAGS.quick else STEPS[FLAGS.kind]
    runs = pipeline.runs_by_seed(
        FLAGS.seeds,
        os.path.join(FLAGS.work_dir, FLAGS.kind),
        FLAGS.data,
        phases(FLAGS.kind, counts),
        FLAGS.quick,
        SCORING[FLAGS.kind],
    )
    from memvid_tf import provenance
    from memvid_tf.data import records

    info = records.read_info(FLAGS.data)
    for seed, run in runs.items():
        print(f"== seed {seed}", flush=True)
        pipeline.run(steps(run))
    result = {
        "kind": FLAGS.kind,
        "seeds": list(runs),
        "quick": FLAGS.quick,
        "steps": counts,
        "test_clips": info.split("test").clips,
        **collect(runs, FLAGS.kind),
        "provenance": provenance.describe(),
    }
    pages.publish(FLAGS.output, result, markdown(result, FLAGS.output), cost=picture(result))


if __name__ == "__main__":
    flags.DEFINE_enum("kind", "detector", KINDS, "Network. Example: --kind=segmenter")
    flags.DEFINE_string(
        "data", "data/synthetic128", "Synthetic set of 128 px. Example: data/synthetic128"
    )
    flags.DEFINE_string("work_dir", "runs/windows_papers", "Trainings. Example: runs/windows_papers")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the trainings. Example: --seeds=0,1,2")
    flags.DEFINE_bool("quick", False, "Train for minutes: shows that it works, proves no claim.")
    flags.DEFINE_string(
        "output",
        "benchmarks/results/windows_papers",
        "Results, as PATH.json, PATH.md and PATH_cost.svg. Example: "
        "benchmarks/results/windows_papers",
    )
    errors.run(main)
