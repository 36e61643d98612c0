r"""The main job in one command: data, training, bundle, proof, pictures and a video.

  python -m benchmarks.demo --output_dir=demo

It begins with what the repository's own small bundle sees, which needs no training. The trainings
are short, so the accuracies are those of a beginner; `benchmarks/results` holds the ones of long
trainings. Interrupted and started again, it goes on where it was.
"""

import dataclasses
import os
import time
from collections.abc import Sequence

from absl import flags

from benchmarks import pipeline
from memvid_tf import errors

FLAGS = flags.FLAGS
# Those that the verification of a bundle scores.
MODES = {"f0": "f0 only", "f1": "f1 only", "9": "τ=9", "async9": "asynchronous, τ=9"}
LATENCIES = {"f0": "f0", "f1": "f1", "9": "sync", "async9": "async"}
TRAIN_CLIPS, TEST_CLIPS = 600, 30
FLOAT_STEPS, QAT_STEPS = 1500, 100
# In a short training more steps of fewer clips learn more: mAP .49 after 1500 steps of 5 clips, .24
# after 600 of 10, which take two thirds of the time.
BATCH = 5
SHOWN_CLIPS = "6,11,14"  # of three or four objects each, with all textures
READY_BUNDLE = os.path.join(pipeline.ROOT, "memvid_tf/models/zoo/bundles/interleaved_policy")
# A clip of four objects in which nothing happens for a while: f0's frame, then older memories.
READY_CLIP, READY_FRAMES = 3, (0, 1, 6, 12)

# Minutes of each step on two idle cores, from the CPU seconds that it took on a busy machine: 44,
# 332, 26, 88, 81, and below 15 for each of the others, of which latency mostly waits.
MINUTES = {
    "data": 0.6,
    "float": 5.0,
    "float evaluation": 0.4,
    "qat": 1.5,
    "bundle": 1.3,
    "latency": 0.5,
    "frames": 0.2,
    "detections": 0.1,
    "pictures": 0.1,
}
MEASURED_ON = "two cores of an AMD EPYC without AVX512"


def define_flags() -> None:
    """The flags of this program."""
    flags.DEFINE_string("output_dir", "demo", "Folder of everything. Example: --output_dir=demo")


def steps(folder: str) -> tuple[pipeline.Run, list[pipeline.Step]]:
    """The demo in a folder: its run, and its steps up to the pictures."""
    data = os.path.join(folder, "data")
    phases = pipeline.tiny_phases(FLOAT_STEPS, 0, QAT_STEPS)
    # They are scored when they are over, and lose little when they are interrupted.
    short = (f"task.train_data.global_batch_size={BATCH}", "trainer.checkpoint_interval=200")
    run = pipeline.Run(folder, data, phases, short, validates=False)
    bundle, frames, video = run.path("bundles", "int8"), run.path("frames"), run.path("seen.mp4")
    todo = {
        "data": pipeline.Step(
            f"synthetic video set, {TRAIN_CLIPS + TEST_CLIPS} clips",
            "memvid_tf.data",
            {"output": data, "train_clips": TRAIN_CLIPS, "test_clips": TEST_CLIPS},
            pipeline.exists(os.path.join(data, "dataset.json")),
            arguments=("synthetic",),
        ),
        "float": run.training("float"),
        "float evaluation": run.evaluation("float", list(MODES)),
        "qat": run.training("qat"),
        "bundle": run.export("int8"),
        "latency": pipeline.Step(
            "latency on this machine",
            "benchmarks.host",
            {
                "bundle": bundle,
                "threads": 1,
                "repeats": 3,
                "engine": "python",  # no compiler needed
                "fixtures": False,
                "output": run.path("results", "host"),
            },
            pipeline.exists(run.path("results", "host.md")),
        ),
        "frames": pipeline.Step(
            "frames of test clips",
            "memvid_tf.data",
            {"input": data, "clips": SHOWN_CLIPS, "output": frames},
            pipeline.exists(frames),
            arguments=("frames",),
        ),
        "detections": pipeline.Step(
            "video with detections",
            "memvid_tf.detect",
            {
                "bundle": bundle,
                "video": frames,
                "output": video,
                "json": run.path("seen.jsonl"),
            },
            pipeline.exists(video),
        ),
        "pictures": pipeline.Step(
            "pictures with detections",
            "benchmarks.sheets",
            {
                "bundle": bundle,
                "input": data,
                "clips": SHOWN_CLIPS,
                "output": run.path("seen.png"),
            },
            pipeline.exists(run.path("seen.png")),
        ),
    }
    return run, [
        dataclasses.replace(step, minutes=MINUTES[name]) for name, step in todo.items()
    ]


def plan(todo: Sequence[pipeline.Step]) -> str:
    """What will be done and how long it takes."""
    from tabulate import tabulate

    rows = [
        [number, step.title, "there already" if step.done() else pipeline.minutes(step.minutes)]
        for number, step in enumerate(todo, start=1)
    ]
    total = sum(step.minutes for step in todo if not step.done())
    return (
        f"{tabulate(rows, ('', 'step', 'about'), tablefmt='simple')}\n\n"
        f"together about {pipeline.minutes(total)} on {MEASURED_ON}"
    )


def first_look(path: str) -> None:
    """Draws what the repository's own bundle sees of a clip that it was not trained on."""
    from benchmarks import sheets
    from memvid_tf.data import synthetic
    from memvid_tf.runtime.bundle import Bundle
    from memvid_tf.runtime.policy import Policy
    from memvid_tf.runtime.schedules import AdaptiveSchedule

    bundle = Bundle.load(READY_BUNDLE)
    clip = sheets.rendered(synthetic.PRESETS["eventful"], READY_CLIP)
    sheets.write(path, sheets.rows(bundle, clip, AdaptiveSchedule(Policy(bundle)), READY_FRAMES))


def summary(run: pipeline.Run) -> str:
    """The table at the end, and where everything is."""
    from tabulate import tabulate

    from benchmarks import measurements
    from memvid_tf.evaluation.report import number
    from memvid_tf.runtime.bundle import Bundle

    folder = run.path("bundles", "int8")
    scores = run.result("float")["modes"], pipeline.read(f"{folder}/report.json")["mAP"]["bundle"]
    measured_here = measurements.Results.load(run.path("results", "host.json"))
    schedules = {
        summary.setting.name.split(" ")[0]: summary
        for summary in measurements.summaries(measured_here.measurements)
        if summary.setting.kind == "schedule"
    }
    rows = []
    for mode, title in MODES.items():
        measured = schedules[LATENCIES[mode]]
        rows.append(
            [
                title,
                number(scores[0][mode]["mean_ap"]),
                number(scores[1][mode]),
                number(measured.p50_ms),
                number(measured.p99_ms),
            ]
        )
    header = ["mode", "mAP float", "mAP int8", "int8 p50 ms", "int8 p99 ms"]
    manifest = Bundle.load(folder, verify=False).manifest
    sizes = ", ".join(
        f"{graph.file} {manifest.files[graph.file].bytes / 1000:.0f} kB"
        for graph in manifest.graphs.values()
    )
    left = {
        "first look": run.path("first_look.png"),
        "pictures": run.path("seen.png"),
        "video": run.path("seen.mp4"),
        "detections": run.path("seen.jsonl"),
        "bundle": f"{folder} ({sizes})",
        "verification": f"{folder}/report.md",
        "accuracy": run.path("results", "float.json"),
        "latency": f"{run.path('results', 'host.md')} and .json",
        "data": run.data,
        "frames": run.path("frames"),
        "checkpoints": f"{run.path('float')}, {run.path('qat')}",
        "TensorBoard": f"tensorboard --logdir={run.path()}",
    }
    return "\n".join(
        [
            "",
            tabulate(rows, header, tablefmt="simple"),
            "",
            f"mAP@.5 on {TEST_CLIPS} clips after {FLOAT_STEPS} + {QAT_STEPS} training steps, which "
            "is a beginning;",
            "benchmarks/results/interleaved_papers.md holds the accuracies of a long training.",
            "f1 alone cannot see textures: what it reaches at τ=9 comes from the memory.",
            "",
            *(f"{name + ':':14}{what}" for name, what in left.items()),
        ]
    )


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    start = time.monotonic()
    run, todo = steps(os.path.abspath(FLAGS.output_dir))
    print(f"{plan(todo)}\n", flush=True)
    picture = run.path("first_look.png")
    first_look(picture)
    print(
        f"a first look, by the small bundle that lies in the repository: {picture}\n"
        "(upper row: what f0 and f1 are given and what was found in it; lower row: the truth)\n",
        flush=True,
    )
    pipeline.run(todo, run.path())
    print(summary(run))
    print(f"{'took:':14}{(time.monotonic() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    define_flags()
    errors.run(main)
