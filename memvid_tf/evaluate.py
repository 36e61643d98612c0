r"""Scores a trained network or an exported bundle in every inference mode.

  python -m memvid_tf.evaluate --model_dir=runs/tiny_qat --modes=f0,f1,1,4,9,19,async9 \
    --output=results.json
  python -m memvid_tf.evaluate --bundle=bundles/tiny --input_path=data/synthetic

A mode is f0 or f1 (one extractor on every frame), a number τ (f0 once, then f1 τ times), each
optionally with +update (f1 writes to the memory too), asyncτ (f0 beside f1), adaptive (a learned
policy decides; adaptive19 bounds the run of f1s, adaptive0 lifts the policy's own bound),
adaptive+async, or random20 (f0 on 20 % of the frames by lot). Asynchronous modes take f0's result
for ready one frame later; async9+delay11 names another delay, and --latency=host.json --fps=30
makes it from a measurement.

Patchwork and single-frame networks have the modes full (the plain network on every frame),
scanning, random and dqn (what picks the windows), each optionally with +nocell (windows read
nothing around them), +flip (averaged with the mirrored frame), +interval4 and +delay3 (PW 4).

  python -m memvid_tf.evaluate --bundle=bundles/tiny --streaming --latency=host.json --fps=30

--streaming scores every frame with the newest detections that were ready when it was seen, at the
speed that `python -m benchmarks.host` measured.

Videos are scored from their first frame to their last, also where the data set holds them in
pieces; --max_frames stops earlier, and the results say so.
"""

import dataclasses
import functools

from absl import flags

from memvid_tf import errors, paths
from memvid_tf.data import records
from memvid_tf.runtime.bundle import Bundle

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "model_dir", None, "Folder of a training, whose checkpoint is scored. Example: runs/tiny_qat"
)
flags.DEFINE_string(
    "checkpoint", "", "Checkpoint in --model_dir; the newest by default. Example: ckpt-800"
)
flags.DEFINE_bool(
    "simulate_quantization",
    True,
    "--model_dir: whether a quantization-aware network is scored with its fake-quantization, or "
    "its weights in float.",
)
flags.DEFINE_string(
    "bundle", None, "Exported bundle to score instead of a checkpoint. Example: bundles/tiny"
)
flags.DEFINE_list(
    "modes",
    [],
    "Inference modes; by default f0,f1,1,4,9,19,async9, or of Patchwork all that pick windows. "
    "Example: --modes=f0,9,async9",
)
flags.DEFINE_multi_string(
    "ensemble_dir",
    [],
    "--model_dir: folder of a further training whose predictions are averaged in; of Patchwork and "
    "single-frame networks, may be given several times. Example: runs/detector_1",
)
flags.DEFINE_string(
    "input_path", "", "Data set; by default the training's. Example: data/synthetic"
)
flags.DEFINE_string("split", "", "Split; by default the training's validation split. Example: test")
flags.DEFINE_enum(
    "matching",
    "plain",
    ["plain", "size_dependent"],
    "IoU threshold of a match: .5, or less for small objects as in the VID challenge.",
)
flags.DEFINE_enum(
    "motion_rule",
    "fgfa",
    ["fgfa", "strict"],
    "What a false detection costs the mAP of slow, medium and fast objects: fgfa, the field's, "
    "counts it where the object that it overlaps most is of that speed; strict at every speed.",
)
flags.DEFINE_integer(
    "max_frames", 0, "Most frames of a video, from its first; 0 for all. Example: 100", 0
)
flags.DEFINE_bool("coco", False, "Whether to compute COCO's twelve numbers too. Example: --coco")
flags.DEFINE_bool("streaming", False, "Whether frames have to be detected in time.")
flags.DEFINE_float("fps", 30.0, "--latency: frames a second of the camera. Example: 30", 0.1, 1e4)
flags.DEFINE_string(
    "latency",
    "",
    "JSON of benchmarks.host: what --streaming runs at; without it, what the delay of asynchronous "
    "modes is made from. Example: benchmarks/results/host_paper.json",
)
flags.DEFINE_integer(
    "latency_threads", 1, "--latency: threads of the measurement. Example: 2", 1, 64
)
flags.DEFINE_enum(
    "latency_source",
    "medians",
    ["medians", "trace"],
    "--latency: each graph's median, or the recorded frames one after another.",
)
flags.DEFINE_float(
    "deadline_ms",
    0.0,
    "--streaming: how long after a frame was seen its detections are looked at. Example: 33.3",
    0.0,
    1e6,
)
flags.DEFINE_string("output", "", "JSON file for the results. Example: --output=results.json")
flags.DEFINE_string(
    "csv",
    "",
    "Tables of classes and of videos, as NAME_classes.csv and NAME_videos.csv. "
    "Example: --csv=results",
)


def check_words(words) -> None:
    """Raises UserError for a word that is no mode of any system, before anything is loaded."""
    from memvid_tf.evaluation import rollout, window_rollout

    if FLAGS["modes"].present and not words:
        raise errors.UserError("--modes is empty; name some, as in --modes=f0,9,async9")
    for word in words:
        windowed = word.partition("+")[0] in window_rollout.MODES
        (window_rollout if windowed else rollout).parse_mode(word)


def check_paths() -> None:
    """Raises UserError for a path that cannot be read or written, before anything is loaded."""
    if FLAGS.bundle:
        Bundle.load(FLAGS.bundle)
    else:
        paths.check_training("model_dir", FLAGS.model_dir, FLAGS.checkpoint)
    for folder in FLAGS.ensemble_dir:
        paths.check_training("ensemble_dir", folder)
    if FLAGS.input_path:
        records.read_info(FLAGS.input_path)
    if FLAGS.latency:
        paths.check_file("latency", FLAGS.latency, "a results file of python -m benchmarks.host")
    if FLAGS.output:
        paths.check_output("output", FLAGS.output)
    if FLAGS.csv:
        paths.check_output("csv", f"{FLAGS.csv}_classes.csv")


def subject():
    """The `subjects.Subject` that the flags name."""
    from memvid_tf.tasks import subjects

    if FLAGS.bundle:
        return subjects.from_bundle(FLAGS.bundle)
    folders = [FLAGS.model_dir, *FLAGS.ensemble_dir]
    found = [
        subjects.from_model_dir(folder, FLAGS.checkpoint, FLAGS.simulate_quantization)
        for folder in folders
    ]
    if len(found) == 1:
        return found[0]
    if not all(one.windowed for one in found):
        raise errors.UserError("--ensemble_dir is of Patchwork and single-frame networks")
    from memvid_tf.evaluation.ensemble import Ensemble

    source = {**found[0].source, "ensemble": folders[1:]}
    return found[0]._replace(network=Ensemble([one.network for one in found]), source=source)


def read_latencies(precision: str):
    """The latencies that the flags name, and what the results say about them."""
    from memvid_tf.evaluation import streaming

    latencies = streaming.read_latencies(
        FLAGS.latency, precision, FLAGS.latency_threads, FLAGS.latency_source == "trace"
    )
    return latencies, {
        "fps": FLAGS.fps,
        "latency": FLAGS.latency,
        "threads": FLAGS.latency_threads,
        "source": FLAGS.latency_source,
    }


def streaming_score(precision: str):
    """`streaming.evaluate` at the flags' speed, and what the results say about it."""
    from memvid_tf.evaluation import streaming

    if not FLAGS.latency:
        raise errors.UserError(
            "--streaming needs --latency=…, a results file of python -m benchmarks.host"
        )
    latencies, source = read_latencies(precision)
    setting = {"fps": FLAGS.fps, "deadline_ms": FLAGS.deadline_ms}
    score = functools.partial(streaming.evaluate, latencies=latencies, **setting)
    return score, {"streaming": {**source, **setting}}


def measured_delay(modes, precision: str):
    """The modes, asynchronous ones with the delay that the latencies make where they name none, and
    what the results say about it."""
    from memvid_tf.evaluation import rollout, streaming

    latencies, source = read_latencies(precision)
    delay = streaming.delay_frames(latencies, FLAGS.fps)
    print(f"f0 takes {delay} frame(s) at {FLAGS.fps:g} frames a second, by {FLAGS.latency}")
    return rollout.delayed(modes, delay), {"delay": {**source, "frames": delay}}


def write_csv(name: str, results) -> None:
    """Writes the tables of classes and videos."""
    import csv

    from memvid_tf import files
    from memvid_tf.evaluation import report

    tables = {"classes": report.class_rows(results), "videos": report.video_rows(results)}
    for table, rows in tables.items():
        with files.atomic_path(f"{name}_{table}.csv") as temporary:
            with open(temporary, "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(rows)
        print(f"written: {name}_{table}.csv")


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    if bool(FLAGS.model_dir) == bool(FLAGS.bundle):
        raise errors.UserError("name one of --model_dir=… and --bundle=…")
    if FLAGS.bundle and FLAGS.checkpoint:
        raise errors.UserError("--checkpoint names one in --model_dir; a bundle holds only its own")
    if FLAGS.coco and FLAGS.streaming:
        raise errors.UserError("--coco is not computed with --streaming; leave one of them out")
    if FLAGS.bundle and FLAGS.ensemble_dir:
        raise errors.UserError("--ensemble_dir names trainings; give --model_dir, not --bundle")
    check_words(FLAGS.modes)
    check_paths()
    from tqdm import tqdm

    from memvid_tf import files, provenance
    from memvid_tf.data import clips, reading, records
    from memvid_tf.evaluation import report, whole_videos

    what = subject()
    modes, data = what.modes(FLAGS.modes), what.data
    if what.windowed and (FLAGS.streaming or FLAGS.latency or FLAGS.matching != "plain"):
        raise errors.UserError(
            "--streaming, --latency and --matching are of the interleaved detector"
        )
    segments = what.windowed and what.network.anchors is None
    if segments and (FLAGS.csv or FLAGS.coco or FLAGS["motion_rule"].present):
        raise errors.UserError(
            "--csv, --coco and --motion_rule are of detectors; masks have no classes"
        )
    data = data.replace(
        input_path=FLAGS.input_path or data.input_path,
        split=FLAGS.split or data.split,
        unroll_frames=0,  # training's validation may cut clips; a result is of all of them
        drop_remainder=False,
    )
    info = records.read_info(data.input_path)
    if FLAGS.input_path and not segments:
        info.check_labels(what.labels)
    dataset = clips.clip_dataset(data, names=True)
    settings, options = {}, {"coco": FLAGS.coco}
    table = report.window_table if what.windowed else report.mode_table
    if FLAGS.streaming:
        evaluate, settings = streaming_score(what.source["precision"])
        what, table = what._replace(evaluate=evaluate), report.streaming_table
        options = {}
    elif FLAGS.latency:
        modes, settings = measured_delay(modes, what.source["precision"])
    if not what.windowed:
        options["matching"] = FLAGS.matching
    options["motion_rule"] = FLAGS.motion_rule
    bar = tqdm(total=info.split(data.split).clips, desc="evaluating", unit="clip")
    coverage = whole_videos.Coverage()
    videos = whole_videos.whole_videos(
        dataset.as_numpy_iterator(), coverage, FLAGS.max_frames, bar.update
    )
    with bar, reading.dataset_errors():
        results = what.score(videos, modes, **options)
    by_mode = {name: result.to_json() for name, result in results.items()}
    print(table(by_mode))
    print(coverage.text())
    if FLAGS.csv:
        scored = {n: getattr(r, "score", r) for n, r in results.items()}
        try:
            write_csv(FLAGS.csv, scored)
        except OSError as error:
            raise errors.UserError(f"--csv={FLAGS.csv} cannot be written: {error}") from error
    if FLAGS.output:
        result = {
            **what.source,
            "data": {"input_path": data.input_path, "split": data.split},
            "coverage": dataclasses.asdict(coverage),
            "matching": FLAGS.matching,
            **settings,
            "modes": by_mode,
            "provenance": provenance.describe(),
        }
        try:
            files.write_json(FLAGS.output, result)
        except OSError as error:
            raise errors.UserError(
                f"--output={FLAGS.output} cannot be written: {error.strerror}"
            ) from error
        print(f"written: {FLAGS.output}")


if __name__ == "__main__":
    errors.run(main)
