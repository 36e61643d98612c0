r"""The main job in one command: data, training, bundle, proof and a video with detections.

  python -m benchmarks.demo --output_dir=demo

The trainings are short, so the accuracies are those of a beginner; `benchmarks/results` holds the
ones of long trainings. Interrupted and started again, it goes on where it was.
"""

import os
import time

from absl import flags

from benchmarks import pipeline
from memvid_tf import errors

FLAGS = flags.FLAGS
flags.DEFINE_string("output_dir", "demo", "Folder of everything. Example: --output_dir=demo")

MODES = ("f0", "f1", "1", "4", "9", "19", "async9")
MODE_TITLES = {"f0": "f0 only", "f1": "f1 only", "async9": "asynchronous, τ=9"}
TRAIN_CLIPS, TEST_CLIPS = 600, 30
FLOAT_STEPS, QAT_STEPS = 1000, 120
SHOWN_CLIPS = "0,1,2"


def steps(folder: str) -> tuple[pipeline.Run, list[pipeline.Step]]:
    """The demo in a folder: its run, and its steps up to the video."""
    data = os.path.join(folder, "data")
    run = pipeline.Run(folder, data, pipeline.tiny_phases(FLOAT_STEPS, 0, QAT_STEPS))
    frames, video = run.path("frames"), run.path("detections.mp4")
    return run, [
        pipeline.Step(
            "synthetic video set",
            "memvid_tf.data",
            {"output": data, "train_clips": TRAIN_CLIPS, "test_clips": TEST_CLIPS},
            pipeline.exists(os.path.join(data, "dataset.json")),
            arguments=("synthetic",),
        ),
        *run.trainings(),
        run.evaluation("float", MODES),
        run.export("int8"),
        run.evaluation("int8", MODES),
        pipeline.Step(
            "latency on this machine",
            "benchmarks.host",
            {
                "bundle": run.path("bundles", "int8"),
                "threads": 1,
                "repeats": 3,
                "engine": "python",  # no compiler needed
                "fixtures": False,
                "output": run.path("results", "host"),
            },
            pipeline.exists(run.path("results", "host.md")),
        ),
        pipeline.Step(
            "frames of test clips",
            "memvid_tf.data",
            {"input": data, "clips": SHOWN_CLIPS, "output": frames},
            pipeline.exists(frames),
            arguments=("frames",),
        ),
        pipeline.Step(
            "detections on them",
            "memvid_tf.detect",
            {
                "bundle": run.path("bundles", "int8"),
                "video": frames,
                "output": video,
                "json": run.path("detections.jsonl"),
            },
            pipeline.exists(video),
        ),
    ]


def summary(run: pipeline.Run) -> str:
    """The table at the end."""
    from tabulate import tabulate

    from benchmarks import measurements
    from memvid_tf.evaluation.report import number
    from memvid_tf.runtime.bundle import Bundle

    scores = {source: run.result(source)["modes"] for source in ("float", "int8")}
    measured_here = measurements.Results.load(run.path("results", "host.json"))
    schedules = {
        summary.setting.name.split(" ")[0]: summary
        for summary in measurements.summaries(measured_here.measurements)
        if summary.setting.kind == "schedule"
    }
    latency = {"f0": "f0", "f1": "f1", "9": "sync", "async9": "async"}
    rows = []
    for mode in MODES:
        measured = schedules.get(latency.get(mode, ""))
        rows.append(
            [
                MODE_TITLES.get(mode, f"τ={mode}"),
                number(scores["float"][mode]["mean_ap"]),
                number(scores["int8"][mode]["mean_ap"]),
                number(measured and measured.p50_ms),
                number(measured and measured.p99_ms),
            ]
        )
    header = ["mode", "mAP float", "mAP int8", "int8 p50 ms", "int8 p99 ms"]
    manifest = Bundle.load(run.path("bundles", "int8"), verify=False).manifest
    sizes = ", ".join(
        f"{graph.file} {manifest.files[graph.file].bytes / 1000:.0f} kB"
        for graph in manifest.graphs.values()
    )
    return "\n".join(
        [
            "",
            tabulate(rows, header, tablefmt="simple"),
            "",
            f"sizes:        {sizes}",
            f"bundle:       {run.path('bundles', 'int8')}",
            f"verification: {run.path('bundles', 'int8', 'report.md')}",
            f"video:        {run.path('detections.mp4')}",
            f"detections:   {run.path('detections.jsonl')}",
            f"checkpoints:  {run.path('float')}, {run.path('qat')}",
            f"TensorBoard:  tensorboard --logdir={run.path()}",
        ]
    )


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    start = time.monotonic()
    run, todo = steps(os.path.abspath(FLAGS.output_dir))
    pipeline.run(todo)
    print(summary(run))
    print(f"took:         {(time.monotonic() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    errors.run(main)
