r"""Measures a training step of Patchwork beside the same windows without memory.

  python -m benchmarks.windows_training --config_file=configs/detector_tiny.yaml \
    --config_file=configs/detector_patchwork_tiny.yaml --output=benchmarks/results/windows_training

Both train the same network on the same windows with the same loss and the same Q-learning. Without
memory, what lies around a window is zeros and no strips are read or written. They take turns on one
batch in memory; medians and ratios within a round are what to read.
"""

import os
import statistics
import tempfile

from absl import flags, logging

from benchmarks import pages, training
from memvid_tf import errors

FLAGS = flags.FLAGS
# What the strips may cost.
GOAL = 1.4
TITLES = {"memory": "with memory", "none": "the same windows without memory"}


def without_memory(patchwork):
    """The same network in the same windows, each of them a small picture of its own.

    Args:
      patchwork: a `models.patchwork.Patchwork`, whose variables are shared.
    """
    import tensorflow as tf

    from memvid_tf.layers.patchwork import offsets, read_window, write_window
    from memvid_tf.models.patchwork import Patchwork, State

    class WithoutMemory(Patchwork):
        def full(self, images, training=False):
            layout = self.layout
            strips = tf.zeros([tf.shape(images)[0], layout.memory, layout.chunk])
            return self.network.body(images, training), strips

        def step(self, images, action, state, training=False):
            size = [self.windows.size(side) for side in self.image_size]
            place = offsets(self.windows, action, self.image_size)
            window = read_window(images, place, size, [(0, 0), (0, 0)])
            maps = {
                name: write_window(
                    state.maps[name], x, offsets(self.windows, action, self.map_sizes[name])
                )
                for name, x in self.network.body(window, training).items()
            }
            return self.network.tail(maps, training), State(state.strips, maps)

    return WithoutMemory(patchwork.network, patchwork.windows, patchwork.context)


def measure(params, steps: int, warm_up: int, repeats: int, seed: int) -> dict:
    """Both ways of training.

    Args:
      params: a configuration of `configuration.load`, of a Patchwork experiment.
      steps: of a turn.
      warm_up: steps of a turn before these.
      repeats: rounds; in each both take one turn, in random order.
      seed: of the order.

    Returns:
      `turns` by the names of `TITLES`, and the `ratio` with memory over without: median, least and
      most of the rounds.
    """
    with tempfile.TemporaryDirectory() as folder:
        benches = {name: training.Bench(params, folder) for name in TITLES}
        model = benches["none"].trainer.model
        model.patchwork = without_memory(model.patchwork)
        ways = {name: bench.bare for name, bench in benches.items()}
        turns = training.take_turns(ways, steps, warm_up, repeats, seed)
    ratios = [a["step_ms"] / b["step_ms"] for a, b in zip(turns["memory"], turns["none"])]
    ratio = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
    return {"turns": turns, "ratio": ratio}


def markdown(result: dict) -> str:
    """The results as a page."""
    from tabulate import tabulate

    setting, ratio = result["setting"], result["ratio"]
    rows = []
    for name, title in TITLES.items():
        ms = [turn["step_ms"] for turn in result["turns"][name]]
        rows.append([title, *(f"{f(ms):.1f}" for f in (statistics.median, min, max))])
    values = (f"{ratio[key]:.3f}" for key in ("median", "least", "most"))
    rows.append([f"ratio within a round, at most {GOAL} wanted", *values])
    return "\n".join(
        [
            "# Training step in windows",
            "",
            training.conditions(result),
            f"{' with '.join(setting['config_files'])}: batches of {setting['clips']} clips of "
            f"{setting['unroll_frames']} frames, the first of which is seen whole; windows of "
            f"{setting['adjacent']} of {setting['slices']} slices a side. "
            f"{result['repeats']} rounds of {result['steps']} steps, after "
            f"{result['warm_up_steps']} of warm-up.",
            "",
            tabulate(
                rows,
                ["ms a step", "median", "least", "most"],
                tablefmt="github",
                disable_numparse=True,
            ),
            "",
        ]
    )


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    if not FLAGS.config_file:
        raise errors.UserError(
            "--config_file is missing, for example --config_file=configs/detector_tiny.yaml "
            "--config_file=configs/detector_patchwork_tiny.yaml"
        )
    logging.set_verbosity(logging.WARNING)
    import tensorflow as tf
    import tf_keras

    from memvid_tf import provenance
    from memvid_tf.tasks import configuration
    from memvid_tf.tasks.training import completed

    load_average = os.getloadavg()[0]
    params = configuration.load(FLAGS.experiment, FLAGS.config_file, FLAGS.params_override)
    if not hasattr(params.task, "q_learning"):
        raise errors.UserError(
            f"--experiment={FLAGS.experiment} has no windows; measure detector_patchwork or "
            "segmenter_patchwork"
        )
    params = completed(params)
    # As training does: it makes some operations slower.
    tf_keras.utils.set_random_seed(params.task.seed)
    if params.runtime.deterministic:
        tf.config.experimental.enable_op_determinism()
    steps = FLAGS.loops * params.trainer.steps_per_loop
    data, windows = params.task.train_data, params.task.windows
    result = {
        **measure(params, steps, FLAGS.warm_up_steps, FLAGS.repeats, FLAGS.seed),
        "setting": {
            "config_files": [os.path.basename(path) for path in FLAGS.config_file],
            "clips": data.global_batch_size,
            "unroll_frames": data.unroll_frames,
            "slices": windows.slices,
            "adjacent": windows.adjacent,
        },
        "steps": steps,
        "warm_up_steps": FLAGS.warm_up_steps,
        "repeats": FLAGS.repeats,
        "seed": FLAGS.seed,
        "load_average": load_average,
        "provenance": provenance.describe(),
    }
    pages.publish(FLAGS.output, result, markdown(result))


if __name__ == "__main__":
    training.define_flags()
    flags.DEFINE_string(
        "experiment", "detector_patchwork", "Whose step. Example: --experiment=segmenter_patchwork"
    )
    errors.run(main)
