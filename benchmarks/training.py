r"""Measures what the trainer and the input pipeline add to a training step.

  python -m benchmarks.training --config_file=configs/interleaved_tiny.yaml

The same steps, from the same weights, are run in turn by a bare loop over the task's `train_step`,
by the trainer of `official.core` on the same batch in memory, by this trainer on the real input,
and one by one with the time they wait for input. The input is also read with no training at all.
All numbers come from one run; medians and ratios are what to read. Checkpoints, validation and the
progress bar are left out, since configurations differ in how often they come.
"""

import contextlib
import gc
import io
import os
import statistics
import tempfile
import time

from absl import flags, logging

from benchmarks import pages
from memvid_tf import errors

FLAGS = flags.FLAGS

# From ten steps a loop the trainer should add next to nothing (derived in shared design).
TRAINER_GOAL = 1.05
TITLES = {
    "bare": "bare loop, one batch in memory",
    "trainer": "trainer, the same batch",
    "trainer_input": "trainer, input pipeline",
    "single_steps": "step by step, input pipeline",
}
# Each way of training with the one that it adds something to.
COMPARED = {"trainer": "bare", "trainer_input": "trainer", "single_steps": "trainer_input"}


def define_flags() -> None:
    """The flags of this program, and of others that measure training steps."""
    flags.DEFINE_multi_string(
        "config_file",
        [],
        "YAML file that overrides the defaults; may be given several times, later ones win. "
        "Example: --config_file=configs/interleaved_tiny.yaml",
    )
    flags.DEFINE_string(
        "params_override",
        "",
        "Comma-separated overrides of the files. "
        "Example: --params_override=task.train_data.input_path=../data/synthetic",
    )
    flags.DEFINE_integer(
        "loops",
        2,
        "Loops of trainer.steps_per_loop steps that a turn measures. Example: --loops=2",
        1,
    )
    flags.DEFINE_integer(
        "warm_up_steps", 10, "Steps of a turn before it is measured. Example: --warm_up_steps=10", 1
    )
    flags.DEFINE_integer("repeats", 5, "Turns of each way of training. Example: --repeats=5", 1)
    flags.DEFINE_integer("seed", 0, "Seed of the order of turns. Example: --seed=0", 0)
    flags.DEFINE_string(
        "output",
        "",
        "Results, as PATH.json and PATH.md; by default they are only printed. "
        "Example: --output=benchmarks/results/training",
    )


class Bench:
    """One network and the ways of running its training steps.

    Which frames f0 sees, and so the work, depends on the step: every turn starts at the same one.
    Every turn opens its input anew, since a pipeline that is not read fills its buffers.
    """

    def __init__(self, params, folder: str):
        """Builds network and trainer.

        Args:
          params: a configuration of `configuration.load`.
          folder: for summaries.

        Raises:
          UserError: if the input does not fit, or if there is more than one replica.
        """
        import orbit
        import tensorflow as tf
        from official.core import task_factory, train_utils

        from memvid_tf.tasks import devices

        used = devices.gpus(params.runtime, params.task.train_data.global_batch_size)
        self.strategy = devices.strategy(params.runtime, used)
        if self.strategy.num_replicas_in_sync != 1:
            raise errors.UserError(
                f"runtime.distribution_strategy {params.runtime.distribution_strategy!r} makes "
                f"{self.strategy.num_replicas_in_sync} replicas; measure one, with one_device"
            )
        self.clips = params.task.train_data.global_batch_size
        with self.strategy.scope():
            self.task = task_factory.get_task(params.task, logging_dir=folder)
            self.trainer = train_utils.create_trainer(params, self.task, train=True, evaluate=False)
            self.task.checkpoint_items(self.trainer.model)  # makes what a step needs besides
        self._input = self.trainer.train_dataset
        self._batch = next(iter(self._input))
        self._in_memory = orbit.utils.make_distributed_dataset(
            self.strategy, lambda: tf.data.Dataset.from_tensors(self._batch).repeat()
        )
        self._losses = []
        self._controller = orbit.Controller(
            strategy=self.strategy,
            trainer=self.trainer,
            global_step=self.trainer.global_step,
            steps_per_loop=params.trainer.steps_per_loop,
            summary_dir=folder,
            summary_interval=params.trainer.summary_interval,
            train_actions=[lambda output: self._losses.append(float(output["training_loss"]))],
        )

        @tf.function  # AutoGraph makes the loop TensorFlow's, and leaves the task's step alone
        def loop(batch, steps):
            total = 0.0
            for _ in tf.range(steps):
                total += self._step(batch)
            return total / tf.cast(steps, tf.float32)

        self._loop = loop
        self._single_step = tf.function(self._step, autograph=False)
        # Turns start from here, so the optimizer needs its variables: a step that changes nothing.
        self.strategy.run(self._still_step)
        variables = [*self.trainer.model.variables, *self.trainer.optimizer.variables()]
        self._start = [(variable, variable.numpy()) for variable in variables]

    def turns(self) -> dict:
        """The ways of training, and reading the input alone, as functions of (warm-up, steps)."""
        return {
            "bare": self.bare,
            "trainer": lambda *steps: self._train(self._in_memory, *steps),
            "trainer_input": lambda *steps: self._train(self._input, *steps),
            "single_steps": self._single_steps,
            "input_alone": self._input_alone,
        }

    def _step(self, batch):
        """One step of training, nothing around it; returns the loss."""

        def step(batch):
            trainer = self.trainer
            return self.task.train_step(batch, trainer.model, trainer.optimizer)[self.task.loss]

        return self.strategy.run(step, (batch,))

    def _still_step(self):
        import tensorflow as tf

        variables = self.trainer.model.trainable_variables
        self.trainer.optimizer.apply_gradients((tf.zeros_like(v), v) for v in variables)

    def _restart(self):
        for variable, value in self._start:
            variable.assign(value)
        gc.collect()

    def bare(self, warm_up: int, steps: int) -> dict:
        """Times steps on one batch in memory, after some of warm-up, and takes their mean loss."""
        import tensorflow as tf

        self._restart()
        float(self._loop(self._batch, tf.constant(warm_up)))
        start = time.perf_counter()
        loss = float(self._loop(self._batch, tf.constant(steps)))
        return {"step_ms": 1e3 * (time.perf_counter() - start) / steps, "loss": loss}

    def _train(self, dataset, warm_up, steps):
        self._restart()
        # Opens it anew; what the attribute holds already would be ignored.
        self.trainer.train_dataset = None
        self.trainer.train_dataset = dataset
        with contextlib.redirect_stdout(io.StringIO()):
            self._advance(warm_up)
            self._losses.clear()
            start = time.perf_counter()
            self._advance(steps)
            seconds = time.perf_counter() - start
        return {"step_ms": 1e3 * seconds / steps, "loss": statistics.mean(self._losses)}

    def _advance(self, steps):
        end = int(self.trainer.global_step.numpy()) + steps
        self._controller.train(end, checkpoint_at_completion=False)

    def _single_steps(self, warm_up, steps):
        self._restart()
        iterator, waits = iter(self._input), []
        for step in range(warm_up + steps):
            if step == warm_up:
                waits.clear()
                start = time.perf_counter()
            before = time.perf_counter()
            batch = next(iterator)
            waits.append(time.perf_counter() - before)
            float(self._single_step(batch))
        seconds = time.perf_counter() - start
        return {
            "step_ms": 1e3 * seconds / steps,
            "waiting_share": sum(waits) / seconds,
            "longest_wait_ms": 1e3 * max(waits),
        }

    def _input_alone(self, warm_up, steps):
        gc.collect()
        iterator = iter(self._input)
        for step in range(warm_up + steps):
            if step == warm_up:
                start = time.perf_counter()
            next(iterator)
        return {"clips_per_second": self.clips * steps / (time.perf_counter() - start)}


def take_turns(ways: dict, steps: int, warm_up: int, repeats: int, seed: int) -> dict[str, list]:
    """What ways of training return, a list each with one result of every round.

    Args:
      ways: functions of (warm-up, steps), by name; each is compiled first.
      steps: of a turn.
      warm_up: steps of a turn before these.
      repeats: rounds; in each every turn is taken once, in random order.
      seed: of the order.
    """
    import numpy as np
    from tqdm import tqdm

    rng = np.random.default_rng(seed)
    turns = {name: [] for name in ways}
    with tqdm(total=(repeats + 1) * len(ways), desc="compiling", unit="turn") as bar:
        for way in ways.values():
            way(1, 1)
            bar.update()
        bar.set_description("measuring")
        for _ in range(repeats):
            for name in rng.permutation(list(ways)):
                turns[name].append(ways[name](warm_up, steps))
                bar.update()
    return turns


def conditions(result: dict) -> str:
    """Where, when and of what results were measured, as a sentence."""
    made = result["provenance"]
    return (
        f"{made['machine']['processor']}, {made['machine']['cores']} cores, {made['date']}, "
        f"version {made['code_version']}; load average at the start {result['load_average']:.2f}."
    )


def summarize(turns: dict[str, list[dict]], clips: int) -> dict:
    """Medians and ratios of turns.

    Args:
      turns: by the names of `Bench.turns`, what they returned, one of each round.
      clips: of a batch.

    Returns:
      `step_ms`, `ratios` (medians of the ratio within a round) and `input`.
    """
    step_ms = {name: [turn["step_ms"] for turn in turns[name]] for name in TITLES}
    alone = statistics.median(turn["clips_per_second"] for turn in turns["input_alone"])
    needed = 1e3 * clips / statistics.median(step_ms["trainer"])
    single = turns["single_steps"]
    return {
        "step_ms": {
            name: {"median": statistics.median(ms), "least": min(ms), "most": max(ms)}
            for name, ms in step_ms.items()
        },
        "ratios": {
            name: {
                "over": base,
                "median": statistics.median(a / b for a, b in zip(step_ms[name], step_ms[base])),
            }
            for name, base in COMPARED.items()
        },
        "input": {
            "waiting_share": statistics.median(turn["waiting_share"] for turn in single),
            "longest_wait_ms": max(turn["longest_wait_ms"] for turn in single),
            "alone_clips_per_second": alone,
            "needed_clips_per_second": needed,
            "alone_over_needed": alone / needed,
        },
    }


def markdown(result: dict) -> str:
    """The results as a page."""
    from tabulate import tabulate

    setting, summary = result["setting"], result["summary"]
    height, width = setting["image_size"]
    rows = []
    for name, title in TITLES.items():
        ms, ratio = summary["step_ms"][name], summary["ratios"].get(name)
        rows.append(
            [
                title,
                *(f"{ms[key]:.1f}" for key in ("median", "least", "most")),
                f"{ratio['median']:.3f}" if ratio else "",
                TITLES[ratio["over"]] if ratio else "",
            ]
        )
    header = ["way of training", "ms a step, median", "least", "most", "ratio", "over"]
    of_input = summary["input"]
    losses = [result["turns"][name][0]["loss"] for name in ("bare", "trainer")]
    quantities = [
        ["waiting for input, share of the time", f"{100 * of_input['waiting_share']:.2f} %"],
        ["longest wait", f"{of_input['longest_wait_ms']:.1f} ms"],
        ["clips a second from the input alone", f"{of_input['alone_clips_per_second']:.1f}"],
        ["clips a second that training takes", f"{of_input['needed_clips_per_second']:.1f}"],
        ["ratio of the two", f"{of_input['alone_over_needed']:.2f}"],
    ]
    return "\n".join(
        [
            "# Training step",
            "",
            conditions(result),
            f"{' with '.join(setting['config_files']) or 'defaults'}: batches of "
            f"{setting['clips']} clips of {setting['unroll_frames']} frames of {height}×{width}, "
            f"data set {setting['data_set']}.",
            "",
            f"Medians of {result['repeats']} rounds in which the rows take turns; a turn is "
            f"{result['steps']} steps, {setting['steps_per_loop']} a loop, after "
            f"{result['warm_up_steps']} of warm-up. Ratios are within a round. The trainer writes "
            "summaries, but no checkpoints.",
            "",
            tabulate(rows, header, tablefmt="github", disable_numparse=True),
            "",
            f"The trainer itself should cost at most {TRAINER_GOAL:.2f} times the bare loop. Mean "
            f"loss of the two over the same steps: {losses[0]:.5f} and {losses[1]:.5f}.",
            "",
            "## Input",
            "",
            tabulate(quantities, ["quantity", "value"], tablefmt="github", disable_numparse=True),
            "",
            "Waiting is the time blocked in asking for the next batch. Input and training share "
            "the cores, so that input also costs what the ratio of the two trainers shows.",
            "",
        ]
    )


def measure(params, loops: int, warm_up: int, repeats: int, seed: int) -> dict:
    """Everything about one configuration; see `markdown`.

    Args:
      params: a configuration of `configuration.load`.
      loops: loops of `trainer.steps_per_loop` steps of a turn.
      warm_up: steps of a turn before these.
      repeats: rounds; in each every turn is taken once, in random order.
      seed: of the order.
    """
    from memvid_tf import provenance
    from memvid_tf.data import records
    from memvid_tf.tasks import clip_task

    load_average = os.getloadavg()[0]
    # Validation is left out, and so its data need not be there.
    unread = params.task.validation_data.replace(input_path="")
    task = clip_task.with_labels(params.task.replace(validation_data=unread))
    params = params.replace(task=task)
    steps = loops * params.trainer.steps_per_loop
    with tempfile.TemporaryDirectory() as folder:
        turns = take_turns(Bench(params, folder).turns(), steps, warm_up, repeats, seed)
    data = params.task.train_data
    return {
        "schema_version": 1,
        "setting": {
            "model": params.task.model.as_dict(),
            "data_set": records.read_info(data.input_path).name,
            "clips": data.global_batch_size,
            "unroll_frames": data.unroll_frames,
            "image_size": list(data.image_size),
            "steps_per_loop": params.trainer.steps_per_loop,
        },
        "steps": steps,
        "warm_up_steps": warm_up,
        "repeats": repeats,
        "seed": seed,
        "load_average": load_average,
        "summary": summarize(turns, data.global_batch_size),
        "turns": turns,
        "provenance": provenance.describe(),
    }


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    if not FLAGS.config_file:
        raise errors.UserError(
            "--config_file is missing, for example --config_file=configs/interleaved_tiny.yaml"
        )
    logging.set_verbosity(logging.WARNING)
    import tensorflow as tf
    import tf_keras

    from memvid_tf.tasks import configuration, detection

    params = configuration.load(detection.EXPERIMENT, FLAGS.config_file, FLAGS.params_override)
    # As training does: it makes some operations slower.
    tf_keras.utils.set_random_seed(params.task.seed)
    if params.runtime.deterministic:
        tf.config.experimental.enable_op_determinism()
    result = measure(params, FLAGS.loops, FLAGS.warm_up_steps, FLAGS.repeats, FLAGS.seed)
    result["setting"]["config_files"] = [os.path.basename(path) for path in FLAGS.config_file]
    pages.publish(FLAGS.output, result, markdown(result))


if __name__ == "__main__":
    define_flags()
    errors.run(main)
