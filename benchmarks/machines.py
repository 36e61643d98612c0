r"""What this machine makes of the project, with TensorFlow's oneDNN kernels off and on.

  python -m benchmarks.machines --output=benchmarks/results/machines
  python -m benchmarks.machines --parts=steps --before=../before --output=steps

Which of TensorFlow's CPU kernels run depends on the processor and on TF_ENABLE_ONEDNN_OPTS, so two
settings are two machines. The parts, each in both settings and in processes of its own:

  steps    training steps in float and quantization-aware, of this checkout and, in the same
           rounds, of the one that --before names
  outputs  predictions and gradients of the same weights on the same clips
  suite    all tests
  demo     benchmarks.demo in an empty folder

What PATH.json holds of other parts, or of other processors, stays there.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree

from absl import flags

from benchmarks import pages
from memvid_tf import errors, provenance

FLAGS = flags.FLAGS
ROOT = pathlib.Path(__file__).resolve().parent.parent
PARTS = ("steps", "outputs", "suite", "demo")
SETTINGS = ("0", "1")
CONFIGS = {
    "float": ("interleaved_tiny",),
    "quantization-aware": ("interleaved_tiny", "interleaved_tiny_qat"),
}
FRAMES, CLIPS = 4, 2  # of the outputs that are compared


def define_flags():
    flags.DEFINE_multi_enum("parts", list(PARTS), PARTS, "What to run. Example: --parts=steps")
    flags.DEFINE_string(
        "before",
        "",
        "Checkout of an earlier version, whose steps are measured too. Example: --before=../before",
    )
    flags.DEFINE_multi_enum(
        "settings", list(SETTINGS), SETTINGS, "Of suite and demo. Example: --settings=0"
    )
    flags.DEFINE_integer("rounds", 3, "Rounds of steps. Example: --rounds=3", 1)
    flags.DEFINE_string(
        "output",
        "",
        "Results, as PATH.json and PATH.md; by default they are only printed. "
        "Example: --output=benchmarks/results/machines",
    )


def _run(command: list[str], setting: str, folder=ROOT) -> subprocess.CompletedProcess:
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": setting}
    return subprocess.run(
        [sys.executable, *command],
        check=False,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def measure_steps(folder: str, before: str, rounds: int) -> dict:
    """Milliseconds a step: by checkout, configuration and setting, one of each round, or what
    stopped it."""
    data = os.path.join(folder, "data")
    options = ["--train_clips=40", "--test_clips=1", f"--output={data}"]
    _run(["-m", "memvid_tf.data", "synthetic", *options], "0")
    trees = {"now": ROOT, **({"before": pathlib.Path(before).resolve()} if before else {})}
    found = {tree: {c: {s: [] for s in SETTINGS} for c in CONFIGS} for tree in trees}
    for _ in range(rounds):
        for config, stems in CONFIGS.items():
            for setting in SETTINGS:
                for tree, root in trees.items():
                    output = os.path.join(folder, "training")
                    ended = _run(
                        [
                            *("-m", "benchmarks.training"),
                            *(f"--config_file=configs/{stem}.yaml" for stem in stems),
                            f"--params_override=task.train_data.input_path={data},"
                            "task.init_checkpoint='',trainer.steps_per_loop=10",
                            "--loops=1",
                            "--repeats=1",
                            f"--output={output}",
                        ],
                        setting,
                        root,
                    )
                    if ended.returncode:
                        found[tree][config][setting] = f"fails: {_last_line(ended.stderr)}"
                        continue
                    measured = json.loads(pathlib.Path(f"{output}.json").read_text("utf-8"))
                    turns = measured["turns"]["bare"]
                    found[tree][config][setting] += [turn["step_ms"] for turn in turns]
                    print(
                        f"{tree}, {config}, oneDNN {setting}: {turns[0]['step_ms']:.0f} ms a step"
                    )
    return found


def compute(path: str) -> None:
    """Writes predictions and gradients of seeded networks on seeded clips, in this process."""
    import numpy as np
    import tensorflow as tf
    import tf_keras

    from memvid_tf.models import interleaved
    from memvid_tf.tasks import configuration, detection

    arrays = {}
    for name, stems in CONFIGS.items():
        tf_keras.utils.set_random_seed(0)
        files = [str(ROOT / "configs" / f"{stem}.yaml") for stem in stems]
        config = configuration.load(detection.EXPERIMENT, files).task.model
        model = interleaved.build(config)
        shape = [CLIPS, FRAMES, *config.image_size, 3]
        frames = tf.constant(np.random.default_rng(0).integers(0, 256, shape, np.uint8))

        @tf.function(autograph=False)
        def run(model=model, frames=frames):
            with tf.GradientTape() as tape:
                found = model(frames, training=True)
                loss = tf.add_n([tf.reduce_mean(x**2) for x in found.values()])
            return found, tape.gradient(loss, model.trainable_variables)

        found, gradients = run()
        arrays |= {f"{name}, {key}": value.numpy() for key, value in found.items()}
        flat = [tf.reshape(gradient, [-1]) for gradient in gradients]
        arrays[f"{name}, gradients"] = tf.concat(flat, 0).numpy()
    np.savez(path, **arrays)


def compare_outputs(folder: str) -> dict:
    """By tensor: its largest absolute value, and the largest and median difference between the
    settings."""
    import numpy as np

    paths = {setting: os.path.join(folder, f"outputs_{setting}.npz") for setting in SETTINGS}
    for setting, path in paths.items():
        code = f"from benchmarks import machines; machines.compute({path!r})"
        ended = _run(["-c", code], setting)
        if ended.returncode:
            raise errors.UserError(f"outputs with oneDNN {setting}: {_last_line(ended.stderr)}")
    off, on = (np.load(paths[setting]) for setting in SETTINGS)
    return {
        name: {
            "largest": float(np.abs(off[name]).max()),
            "largest_difference": float(np.abs(off[name] - on[name]).max()),
            "median_difference": float(np.median(np.abs(off[name] - on[name]))),
        }
        for name in off.files
    }


def run_suite(folder: str, settings: list[str]) -> dict:
    """By setting: minutes, and how many tests passed, failed and were skipped."""
    found = {}
    for setting in settings:
        path = os.path.join(folder, f"suite_{setting}.xml")
        options = ["-n", "2", "--dist", "loadgroup", "-q", f"--junitxml={path}"]
        start = time.monotonic()
        _run(["-m", "pytest", *options], setting)
        minutes = (time.monotonic() - start) / 60
        found[setting] = {"minutes": minutes, **counts(path), "provenance": provenance.describe()}
    return found


def counts(path: str) -> dict:
    """What pytest's JUnit file says: tests that passed, failed and were skipped, by name."""
    (suite,) = xml.etree.ElementTree.parse(path).getroot().iter("testsuite")
    number = {key: int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped")}
    failed = number["failures"] + number["errors"]
    names = [
        f"{case.get('classname')}.{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    passed = number["tests"] - failed - number["skipped"]
    return {"passed": passed, "failed": failed, "skipped": number["skipped"], "names": names}


def run_demo(folder: str, settings: list[str]) -> dict:
    """By setting: minutes of the demo, and its last line where it failed."""
    found = {}
    for setting in settings:
        start = time.monotonic()
        output = os.path.join(folder, f"demo_{setting}")
        ended = _run(["-m", "benchmarks.demo", f"--output_dir={output}"], setting)
        found[setting] = {
            "minutes": (time.monotonic() - start) / 60,
            "failure": _last_line(ended.stderr) if ended.returncode else "",
            "provenance": provenance.describe(),
        }
    return found


def measure(parts: list[str], settings: list[str], before: str, rounds: int) -> dict:
    """Runs parts; see the module."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        ways = {
            "steps": lambda: measure_steps(folder, before, rounds),
            "outputs": lambda: compare_outputs(folder),
            "suite": lambda: run_suite(folder, settings),
            "demo": lambda: run_demo(folder, settings),
        }
        for part in parts:
            load = os.getloadavg()[0]
            found[part] = {
                "load_average": load,
                "provenance": provenance.describe(),
                "found": ways[part](),
            }
            print(f"{part}: done")
    return found


def _milliseconds(found) -> str:
    return found if isinstance(found, str) else f"{statistics.median(found):.0f}"


def _ratio(new, old) -> str:
    if isinstance(new, str) or isinstance(old, str):
        return ""
    return f"{statistics.median(new) / statistics.median(old):.2f}"


def _of_steps(found: dict) -> tuple[list[str], list[list]]:
    rows = []
    for config in CONFIGS:
        for setting in SETTINGS:
            now = found["now"][config][setting]
            before = found.get("before", {}).get(config, {}).get(setting, "")
            rate = "" if isinstance(now, str) else f"{1e3 / statistics.median(now):.1f}"
            rows.append(
                [
                    config,
                    setting,
                    _milliseconds(now),
                    rate,
                    before if isinstance(before, str) else _milliseconds(before),
                    _ratio(now, before),
                    _ratio(now, found["now"][config]["0"]),
                ]
            )
    header = ["training", "oneDNN", "ms a step", "steps a second", "ms before"]
    return [*header, "now / before", "over oneDNN 0"], rows


def _of_outputs(found: dict) -> tuple[list[str], list[list]]:
    rows = [
        [name, *(f"{one[key]:.3g}" for key in sorted(one))] for name, one in sorted(found.items())
    ]
    return ["tensor", "largest value", "largest difference", "median difference"], rows


def _origin(one: dict) -> list[str]:
    return [one["provenance"]["date"], one["provenance"]["code_version"]]


def _of_suite(found: dict) -> tuple[list[str], list[list]]:
    rows = [
        [s, one["passed"], one["failed"], one["skipped"], f"{one['minutes']:.1f}", *_origin(one)]
        for s, one in sorted(found.items())
    ]
    return ["oneDNN", "passed", "failed", "skipped", "minutes", "date", "version"], rows


def _of_demo(found: dict) -> tuple[list[str], list[list]]:
    rows = [
        [s, f"{one['minutes']:.1f}", one["failure"] or "none", *_origin(one)]
        for s, one in sorted(found.items())
    ]
    return ["oneDNN", "minutes", "failure", "date", "version"], rows


TABLES = {"steps": _of_steps, "outputs": _of_outputs, "suite": _of_suite, "demo": _of_demo}
NOTES = {
    "steps": "Medians of rounds in which the rows take turns, each in a process of its own: the "
    "tiny interleaved detector, batches of 10 clips of 6 frames in memory.",
    "outputs": "Same weights, same clips. The kernels add up in another order, so float outputs "
    "differ in their last digits. Simulated quantization makes of such a difference a whole step "
    "where a value lies between two, and the memory hands it on.",
    "suite": "All tests, two processes. What is skipped says why when `make test` is run.",
    "demo": "`benchmarks.demo` in an empty folder.",
}


def markdown(result: dict) -> str:
    """The page of all machines that a results file has: `{processor: {part: …}}`."""
    from tabulate import tabulate

    lines = ["# Machines", "", "Written by `python -m benchmarks.machines`."]
    for parts in result.values():
        machine = next(iter(parts.values()))["provenance"]["machine"]
        units = ", ".join(machine["vector_units"] or ["unknown"])
        lines += ["", f"## {machine['processor']}, {machine['cores']} cores; vector units: {units}"]
        for part in PARTS:
            if part not in parts:
                continue
            made = parts[part]["provenance"]
            header, rows = TABLES[part](parts[part]["found"])
            lines += [
                "",
                f"### {part.capitalize()}",
                "",
                f"{NOTES[part]} {made['date']}, version {made['code_version']}, TensorFlow "
                f"{made['packages']['tensorflow']}; load average at the start "
                f"{parts[part]['load_average']:.2f}.",
                "",
                tabulate(rows, header, tablefmt="github", disable_numparse=True),
            ]
    return "\n".join(lines) + "\n"


def merged(kept: dict, found: dict) -> dict:
    """Results with new parts of this machine; suite and demo keep the other setting's."""
    machine = next(iter(found.values()))["provenance"]["machine"]
    key = f"{machine['processor']}, {' '.join(machine['vector_units'] or [])}"
    parts = kept.get(key, {})
    for part in ("suite", "demo"):
        if part in found and part in parts:
            found[part]["found"] = {**parts[part]["found"], **found[part]["found"]}
    return {**kept, key: {**parts, **found}}


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    if FLAGS.before and not os.path.isfile(os.path.join(FLAGS.before, "setup.py")):
        raise errors.UserError(f"--before={FLAGS.before} is no checkout; it has no setup.py")
    path, kept = pathlib.Path(f"{FLAGS.output}.json"), {}
    if FLAGS.output and path.exists():
        kept = json.loads(path.read_text("utf-8"))
    result = merged(kept, measure(FLAGS.parts, FLAGS.settings, FLAGS.before, FLAGS.rounds))
    pages.publish(FLAGS.output, result, markdown(result))


if __name__ == "__main__":
    define_flags()
    errors.run(main)
