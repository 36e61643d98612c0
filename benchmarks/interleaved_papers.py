r"""The claims of Looking Fast and Slow, checked at laptop scale on the synthetic video set.

  python -m memvid_tf.data synthetic --output=data/synthetic
  python -m benchmarks.interleaved_papers --data=data/synthetic --work_dir=runs/interleaved_papers

Trains, quantizes, exports and scores the tiny detector for every seed, in float also with the
paper's form of the memory and with flow in its place (Zhu et al. 2018), and states each claim as a
sentence with its numbers: holds, or does not. Takes hours on two cores; interrupted and started
again, it goes on where it was. --quick trains for minutes, which proves that the program works and
nothing about the paper.
"""

import math
import os

from absl import flags

from benchmarks import pages, pipeline
from benchmarks.claims import Claim, judged, spread, table
from memvid_tf import errors
from memvid_tf.models import zoo

FLAGS = flags.FLAGS
STEPS = {"float": 4000, "memory": 6500, "qat": 800}
QUICK_STEPS = {"float": 60, "memory": 20, "qat": 20}
INT8_MODES = ("f0", "f1", "1", "4", "9", "19", "async9")
FLOAT_MODES = (*INT8_MODES, "9+update", "19+update")
TAUS = ("1", "4", "9", "19")
# What is scored in float of the networks that the detector is compared with, by their name.
COMPARED = {"paper": ("f0", "f1", "9"), "flow_guided": ("f0", "f1", *TAUS)}
# LFS table 2 and figure 6, mAP on ImageNet VID; the modes that the paper has.
PAPER_MAP = {"f0": 0.639, "f1": 0.306, "9": 0.614, "async9": 0.604}
PAPER_INT8_MAP = {"9": 0.603, "async9": 0.593}
PAPER_FLOW_MAP = {"9": 0.612}  # its key frames are ten frames apart


def define_flags() -> None:
    """The flags of this program."""
    flags.DEFINE_string("data", "data/synthetic", "Synthetic set. Example: --data=data/synthetic")
    flags.DEFINE_string(
        "work_dir", "runs/interleaved_papers", "Trainings. Example: runs/interleaved_papers"
    )
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the trainings. Example: --seeds=0,1,2")
    flags.DEFINE_list(
        "paper_cell_seeds", ["0"], "Seeds of the paper's form of the memory. Example: 0,1,2"
    )
    flags.DEFINE_list(
        "flow_seeds", ["0", "1", "2"], "Seeds of flow-guided detection, of --seeds. Example: 0,1,2"
    )
    flags.DEFINE_bool("quick", False, "Train for minutes: shows that it works, proves no claim.")
    flags.DEFINE_string(
        "output",
        "benchmarks/results/interleaved_papers",
        "Results, as PATH.json, PATH.md and PATH_fig6.svg. Example: "
        "benchmarks/results/interleaved_papers",
    )


def runs(
    data: str, work_dir: str, seeds: list[int], compared: dict[str, list[int]], quick: bool
) -> dict[str, pipeline.Run]:
    """The trainings, by name: "factored/0" is the default memory with seed 0.

    Args:
      data: the data set.
      work_dir: of all trainings.
      seeds: of the detector.
      compared: seeds of the networks of `COMPARED`, which are trained in float.
      quick: whether for minutes only.
    """
    counts = QUICK_STEPS if quick else STEPS
    loop = ("trainer.steps_per_loop=20", "trainer.summary_interval=20") if quick else ()
    phases = pipeline.tiny_phases(*counts.values())
    settings = {
        "factored": ("task.model.cell=factored",),
        "paper": ("task.model.cell=paper",),
        "flow_guided": zoo.find("flow_guided").tiny_settings,
    }
    return {
        f"{name}/{seed}": pipeline.Run(
            os.path.join(work_dir, name, f"seed_{seed}"),
            data,
            phases if name == "factored" else phases[:-1],
            (*settings[name], *loop),
            seed,
        )
        for name, of in {"factored": seeds, **compared}.items()
        for seed in of
    }


def steps(name: str, run: pipeline.Run) -> list[pipeline.Step]:
    """Everything that is measured of a run."""
    network = name.split("/")[0]
    if network in COMPARED:
        modes = COMPARED[network]
        return [*run.trainings(), run.evaluation("first", modes), run.evaluation("float", modes)]
    return [
        *run.trainings(),
        run.evaluation("first", COMPARED["paper"]),
        run.evaluation("float", FLOAT_MODES),
        run.evaluation("qat", INT8_MODES),
        run.evaluation("qat_float", INT8_MODES),
        # Every mode is scored on checkpoint and bundle here, which is more than the verification.
        run.export("int8", verify=False),
        run.evaluation("int8", INT8_MODES),
    ]


def _largest(score, source, loss_only=False):
    """The largest difference between a source and the int8 bundle over the modes."""
    differences = [score[f"{source}:{mode}"] - score[f"int8:{mode}"] for mode in INT8_MODES]
    return max(differences if loss_only else map(abs, differences))


def _share(score, part, whole):
    """Of one mAP in another; NaN, which fulfils no claim, where that one is 0."""
    return score[part] / score[whole] if score[whole] else math.nan


CLAIMS = (
    Claim(
        "f1 only is at most 1/4 of f0 only",
        lambda s: _share(s, "float:f1", "float:f0"),
        lambda v: v <= 0.25,
        "0.48",
    ),
    Claim(
        "τ=9 keeps at least .95 of f0 only",
        lambda s: _share(s, "float:9", "float:f0"),
        lambda v: v >= 0.95,
        "0.96",
    ),
    Claim(
        "at τ=9, leaving the state alone on f1 frames beats updating it by at least .1",
        lambda s: s["float:9"] - s["float:9+update"],
        lambda v: v >= 0.1,
        "claimed, no number",
    ),
    Claim(
        "int8 is within .01 of the same weights in float in every mode (largest difference)",
        lambda s: _largest(s, "qat_float"),
        lambda v: v <= 0.01,
    ),
    Claim(
        "int8 loses at most .01 to the float training it started from in any mode (largest loss)",
        lambda s: _largest(s, "float", loss_only=True),
        lambda v: v <= 0.01,
        "0.011",
    ),
    Claim(
        "the int8 bundle is within .01 of its checkpoint in every mode (largest difference)",
        lambda s: _largest(s, "qat"),
        lambda v: v <= 0.01,
    ),
    Claim(
        "asynchronous is within .03 of synchronous, float",
        lambda s: s["float:9"] - s["float:async9"],
        lambda v: v <= 0.03,
        "0.010",
    ),
    Claim(
        "asynchronous is within .03 of synchronous, int8",
        lambda s: s["int8:9"] - s["int8:async9"],
        lambda v: v <= 0.03,
        "0.010",
    ),
)


def _fall(source):
    """What is lost from the shortest to the longest distance of key frames."""
    return lambda s: s[f"{source}:{TAUS[0]}"] - s[f"{source}:{TAUS[-1]}"]


# Of the seeds that flow-guided detection has too.
FLOW_CLAIMS = (
    Claim(
        "table 2: at τ=9 memory is within .01 of flow, or better",
        lambda s: s["float:9"] - s["flow:9"],
        lambda v: v >= -0.01,
        "0.002",
    ),
    Claim(
        "figure 6: from τ=1 to 19 memory loses less than flow (difference)",
        lambda s: _fall("flow")(s) - _fall("float")(s),
        lambda v: v > 0,
        "> 0.0075, from 1 to 39 against 20",
    ),
)
SOURCES = ("first", "float", "qat_float", "qat", "int8")


def collect(all_runs: dict[str, pipeline.Run]) -> dict:
    """The numbers of all runs: scores by network, source and mode, and the claims."""
    scores: dict[str, dict[str, dict[str, float]]] = {"factored": {}, **{n: {} for n in COMPARED}}
    for name, run in all_runs.items():
        network, seed = name.split("/")
        sources = SOURCES[:2] if network in COMPARED else SOURCES
        scores[network][seed] = {
            f"{source}:{mode}": result["mean_ap"]
            for source in sources
            for mode, result in run.result(source)["modes"].items()
        }
    by_key = {
        network: {
            key: spread([score[key] for score in by_seed.values()])
            for key in next(iter(by_seed.values()), ())
        }
        for network, by_seed in scores.items()
    }
    beside_flow = [
        scores["factored"][seed] | {f"flow:{mode}": flow[f"float:{mode}"] for mode in TAUS}
        for seed, flow in scores["flow_guided"].items()
    ]
    claims = judged(CLAIMS, list(scores["factored"].values()))
    if beside_flow:
        claims += judged(FLOW_CLAIMS, beside_flow)
    return {"scores": by_key, "claims": claims}


def picture(result: dict) -> str:
    """Figure 6, accuracy against the distance of key frames, as SVG."""
    from benchmarks import plots

    series = []
    for title, network in (("memory-guided", "factored"), ("flow-guided", "flow_guided")):
        scores = result["scores"][network]
        if scores:
            values = [scores[f"float:{tau}"]["mean"] for tau in TAUS]
            series.append(plots.Series(title, [1 + int(t) for t in TAUS], values, "marked"))
    return plots.svg(
        "Figure 6: key frames further apart", "frames from key frame to key frame", "mAP", series
    )


def markdown(result: dict, output: str) -> str:
    """The results as a page; its picture is PATH_fig6.svg of `output`."""
    from tabulate import tabulate

    from memvid_tf.evaluation.report import number

    def cell(key, form="factored"):
        value = result["scores"][form].get(key)
        return f"{value['mean']:.3f} ± {value['spread']:.3f}" if value else ""

    machine = result["provenance"]["machine"]
    modes = [
        [
            mode,
            *(cell(f"{source}:{mode}") for source in ("float", "qat_float", "qat", "int8")),
            number(PAPER_MAP.get(mode)),
            number(PAPER_INT8_MAP.get(mode)),
        ]
        for mode in FLOAT_MODES
    ]
    header = ["mode", "float training", "QAT weights in float", "QAT checkpoint", "int8 bundle"]
    header += ["paper float", "paper int8"]
    cells = [
        [
            mode,
            *(
                cell(f"{phase}:{mode}", form)
                for phase in SOURCES[:2]
                for form in ("factored", "paper")
            ),
        ]
        for mode in COMPARED["paper"]
    ]
    flow = [
        [
            mode,
            cell(f"float:{mode}"),
            cell(f"float:{mode}", "flow_guided"),
            number(PAPER_FLOW_MAP.get(mode)),
        ]
        for mode in COMPARED["flow_guided"]
    ]

    def listed(seeds):
        return ", ".join(map(str, seeds)) or "none, not measured"

    return "\n".join(
        [
            "# Looking Fast and Slow on the synthetic video set",
            "",
            f"Tiny detector, {result['steps']['float']} float steps, {result['steps']['memory']} "
            f"with long gaps, {result['steps']['qat']} quantization-aware; seeds {listed(result['seeds'])}, "
            f"{result['test_clips']} unseen clips; mean ± standard deviation over seeds. "
            f"{machine['processor']}, {result['provenance']['date']}. The paper's columns are "
            "ImageNet VID and a network 32 times as large: compare ratios, not values.",
            "",
            "## mAP@.5 by inference mode",
            "",
            tabulate(modes, header, tablefmt="github"),
            "",
            "`+update`: f1 writes to the memory too. `async9`: f0 beside f1, its result one frame "
            "late.",
            "",
            "## Claims",
            "",
            table(result["claims"]),
            "",
            "## Memory and flow",
            "",
            "Flow-guided detection after Zhu et al. 2018: on frames of f1 the features of the last "
            "frame of f0 are warped. Float, as many steps; seeds "
            f"{listed(result['compared']['flow_guided'])}.",
            "",
            tabulate(flow, ["mode", "memory", "flow", "paper, flow"], tablefmt="github"),
            "",
            f"![Figure 6]({os.path.basename(output)}_fig6.svg)",
            "",
            "## The two forms of the memory",
            "",
            f"Float mAP@.5 after the first phase and after the long gaps; seeds of the paper's form: "
            f"{listed(result['compared']['paper'])}.",
            "",
            tabulate(
                cells,
                ["mode", "factored, first", "paper, first", "factored (default)", "paper"],
                tablefmt="github",
            ),
            "",
        ]
    )


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    for name in ("seeds", "paper_cell_seeds", "flow_seeds"):
        pipeline.check_seeds(name, FLAGS[name].value)
    if not set(FLAGS.flow_seeds) <= set(FLAGS.seeds):
        raise errors.UserError(
            f"--flow_seeds={','.join(FLAGS.flow_seeds)} must be some of --seeds="
            f"{','.join(FLAGS.seeds)}, with which they are compared"
        )
    from memvid_tf import provenance
    from memvid_tf.data import records

    info = records.read_info(FLAGS.data)
    seeds = [int(seed) for seed in FLAGS.seeds]
    compared = {
        "paper": [int(seed) for seed in FLAGS.paper_cell_seeds],
        "flow_guided": [int(seed) for seed in FLAGS.flow_seeds],
    }
    all_runs = runs(FLAGS.data, FLAGS.work_dir, seeds, compared, FLAGS.quick)
    for name, run in all_runs.items():
        print(f"== {name}", flush=True)
        pipeline.run(steps(name, run))
    result = {
        "seeds": seeds,
        "quick": FLAGS.quick,
        "compared": compared,
        "steps": QUICK_STEPS if FLAGS.quick else STEPS,
        "test_clips": info.split("test").clips,
        **collect(all_runs),
        "provenance": provenance.describe(),
    }
    pages.publish(FLAGS.output, result, markdown(result, FLAGS.output), fig6=picture(result))


if __name__ == "__main__":
    define_flags()
    errors.run(main)
