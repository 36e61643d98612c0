"""Training end to end: what it leaves behind, what interrupts it, and what it refuses.

Tests of equality after an interruption compare whole checkpoints bit for bit: training is
deterministic, so no tolerance is needed.
"""

import dataclasses
import itertools
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
import tiny_run
import yaml

import memvid_tf  # noqa: F401  (before TensorFlow)
from memvid_tf import locks
from memvid_tf.data import records
from memvid_tf.tasks import checkpoints, config_rules, configuration, detection, progress, training

# Traced graphs are what training runs; where a test needs several short runs and nothing of the
# graphs, eager ones spare it the tracing.
EAGER = dict(
    trainer__train_tf_function="false",
    trainer__train_tf_while_loop="false",
    trainer__eval_tf_function="false",
)
STATISTICS = re.compile(r"model/.*/(mean|variance)/\.ATTRIBUTES/VARIABLE_VALUE")
FROZEN = "model/norm/frozen/.ATTRIBUTES/VARIABLE_VALUE"


def variables(path):
    """Everything a checkpoint holds, without the number of times that it was written."""
    reader = tf.train.load_checkpoint(path)
    ignored = ("_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter/.ATTRIBUTES/VARIABLE_VALUE")
    names = [name for name in reader.get_variable_to_shape_map() if name not in ignored]
    return {name: reader.get_tensor(name) for name in names}


def at(model_dir, step):
    return variables(os.path.join(model_dir, f"ckpt-{step}"))


def assert_same_end(model_dir, wanted_dir):
    found, wanted = (variables(checkpoints.latest(str(f))) for f in (model_dir, wanted_dir))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    # Model, optimizer slots and the step of both are all there.
    kernels = [name for name in found if name.startswith("model/") and "/kernel/.ATTR" in name]
    slots = [name for name in found if re.search(r"/kernel/\.OPTIMIZER_SLOT/optimizer/[mv]/", name)]
    assert len(slots) == 2 * len(kernels) > 20
    assert any(np.abs(found[name]).max() > 0 for name in slots)
    counters = [name for name in found if name.startswith(("global_step", "optimizer/iter"))]
    assert len(counters) == 2 and len({int(found[name]) for name in counters}) == 1


def listing(folder):
    """Every file below a folder, with its contents' identity; None where there is no folder."""
    if not os.path.exists(folder):
        return None
    return {
        path: (os.path.getsize(path), os.stat(path).st_mtime_ns)
        for parent, _, names in os.walk(folder)
        for path in (os.path.join(parent, name) for name in names)
    }


def own_lines(stderr):
    """Lines of stderr without progress bars."""
    lines = (line.rpartition("\r")[2] for line in stderr.splitlines())
    return [line for line in lines if line.strip() and "%|" not in line]


# What a training leaves behind.


@pytest.mark.slow
def test_the_configuration_lies_beside_and_loads_as_it_was():
    folder = tiny_run.float_run()
    saved = configuration.load_saved(folder)
    with_labels = tiny_run.params()
    with_labels = with_labels.replace(task=with_labels.task.replace(labels=tiny_run.LABELS))
    assert configuration.difference(saved.as_dict(), with_labels.as_dict()) is None
    assert tuple(saved.task.labels) == records.read_info(tiny_run.data()).labels == tiny_run.LABELS
    configuration.save(saved, os.path.join(folder, "again"))
    first, again = (os.path.join(folder, name, "params.yaml") for name in ("", "again"))
    assert open(first).read() == open(again).read()
    shutil.rmtree(os.path.dirname(again))


@pytest.mark.slow
def test_summaries():
    folder = tiny_run.float_run()
    steps = list(range(2, tiny_run.STEPS + 1, 2))
    tags = ("training_loss", "classification_loss", "box_loss", "gradient_norm", "learning_rate")
    for tag in tags:
        found = tiny_run.scalars(f"{folder}/train", tag)
        assert list(found) == steps
        assert all(math.isfinite(value) and value >= 0 for value in found.values())
    losses = tiny_run.scalars(f"{folder}/train", "training_loss")
    assert np.mean([losses[s] for s in steps[-3:]]) < 0.5 * np.mean([losses[s] for s in steps[:2]])
    # The rate is the cosine of the step, whatever happened before.
    for step, rate in tiny_run.scalars(f"{folder}/train", "learning_rate").items():
        if step > 3:  # the warm-up
            wanted = 0.01 * (1 + math.cos(math.pi * step / tiny_run.STEPS))
            assert rate == pytest.approx(wanted, rel=1e-5)  # float32

    validated = [12, 24, tiny_run.STEPS]
    for tag in ("mAP", "mAP_slow", "mAP_medium", "mAP_fast", "best_mAP"):
        assert list(tiny_run.scalars(f"{folder}/validation", tag)) == validated
    # It does detect something.
    assert max(tiny_run.scalars(f"{folder}/validation", "mAP").values()) > 0
    written = tiny_run.events(f"{folder}/validation")
    pictures = [(step, value) for step, tag, value in written if tag == "detections"]
    assert [step for step, _ in pictures] == validated
    for _, (width, height, *encoded) in pictures:
        assert len(encoded) == tiny_run.TEST_CLIPS
        for png in encoded:
            image = tf.io.decode_png(png).numpy()
            assert image.shape == (int(height), int(width), 3) and image.std() > 5


@pytest.mark.slow
def test_the_best_checkpoint_is_the_one_with_the_best_accuracy():
    folder = tiny_run.float_run()
    accuracy = tiny_run.scalars(f"{folder}/validation", "mAP")
    best = max(accuracy, key=accuracy.get)
    path = tf.train.latest_checkpoint(f"{folder}/best")
    assert checkpoints.step_of(path) == best
    info = yaml.safe_load(open(f"{folder}/best/info.json"))
    assert info["mAP"] == pytest.approx(accuracy[best])


@pytest.mark.slow
def test_what_the_trainer_says_is_in_the_log():
    log = open(os.path.join(tiny_run.float_run(), training.LOG_FILE)).read()
    assert f"train | step: {tiny_run.STEPS:6d}" in log and f"eval | step: {12:6d}" in log
    assert re.search(r"'training_loss': \d+\.\d+[,}]", log) and "np.float" not in log


@pytest.mark.slow
def test_checkpoints_are_of_multiples_of_their_interval_and_of_the_end():
    state = tf.train.get_checkpoint_state(tiny_run.float_run())
    steps = [int(path.rpartition("-")[2]) for path in state.all_model_checkpoint_paths]
    assert steps == [4, 8, 12, 16, 20, 24, 28, tiny_run.STEPS]


def test_the_bar_moves_while_a_loop_of_steps_runs(monkeypatch, capsys):
    """Each step waits until it is seen, so that the loop ends only if the bar looks into it."""
    monkeypatch.setattr(progress, "FILE_S", 0.01)
    bar, drawn = training.Progress(0, 3), [""]
    bar.global_step = step = tf.Variable(0, dtype=tf.int64)

    def wait_until_seen(number):
        end = time.monotonic() + 20
        while f" {int(number)}/3 " not in drawn[0]:
            assert time.monotonic() < end, drawn[0]
            drawn[0] += capsys.readouterr().err
            time.sleep(0.005)

    @tf.function
    def loop(count):
        for _ in tf.range(count):
            tf.py_function(wait_until_seen, [step.assign_add(1)], [])

    loop(tf.constant(3))
    bar.close()
    assert drawn[0].index(progress.COMPILING) < drawn[0].index(f"{progress.TRAINING}: ")


# Batch normalisation.


@pytest.mark.slow
def test_batch_statistics_stand_still_once_they_are_frozen():
    folder, freeze = tiny_run.qat_run(), tiny_run.FREEZE_STEP
    runs = {step: at(folder, step) for step in range(1, tiny_run.QAT_STEPS + 1)}
    names = [name for name in runs[1] if STATISTICS.fullmatch(name)]
    assert len(names) > 20
    for step, values in runs.items():
        # A checkpoint holds what its last step did: step - 1, counted from 0.
        assert bool(values[FROZEN]) == (step - 1 >= freeze)
    moved = {
        step: [not np.array_equal(runs[step][n], runs[step + 1][n]) for n in names]
        for step in range(1, tiny_run.QAT_STEPS)
    }
    for step, changes in moved.items():
        assert all(changes) if step < freeze else not any(changes), step
    # The rest of the network goes on learning.
    others = [n for n in runs[1] if re.search("/(kernel|bias|scale|range_max)/.ATTR", n)]
    still = [n for n in others if np.array_equal(runs[freeze][n], runs[tiny_run.QAT_STEPS][n])]
    assert others and not still


@pytest.mark.slow
def test_batch_statistics_move_unless_they_are_frozen(tmp_path):
    runs = [at(tiny_run.float_run(), step) for step in (24, tiny_run.STEPS)]
    assert not any(run[FROZEN] for run in runs)
    for name in filter(STATISTICS.fullmatch, runs[0]):
        assert not np.array_equal(*(run[name] for run in runs)), name

    # -1 is "never", also after a phase that ended frozen.
    start = tiny_run.qat_run()
    values = dict(task__init_checkpoint=start, task__freeze_norm_step=-1, trainer__train_steps=1)
    arguments = tiny_run.qat_arguments(tmp_path, **values, **EAGER)
    assert tiny_run.program("memvid_tf.train", "--mode=train", *arguments) == 0
    before, after = at(start, tiny_run.QAT_STEPS), at(tmp_path, 1)
    assert before[FROZEN] and not after[FROZEN]
    for name in filter(STATISTICS.fullmatch, before):
        assert not np.array_equal(before[name], after[name]), name


# The schedule of a training clip.


def schedules(steps, probability, seeds):
    """[n, steps] bool: where f0 runs."""

    def draw(seed):
        f0, f1 = detection.sample_schedule(steps, probability, seed)
        times = tf.range(steps)
        where = tf.reduce_any(times[:, tf.newaxis] == f0, 1)
        tf.debugging.assert_equal(tf.sort(tf.concat([f0, f1], 0)), times)
        for part in (f0, f1):
            tf.debugging.assert_greater(tf.size(part), 0)
            tf.debugging.assert_equal(part, tf.sort(part))
        return where

    @tf.function
    def draw_all(seeds):
        return tf.map_fn(draw, seeds, fn_output_signature=tf.bool)

    return draw_all(tf.constant(seeds, tf.int32)).numpy()


@pytest.mark.parametrize("steps", [2, 3, 6])
@pytest.mark.parametrize("probability", [0.0, 0.4, 1.0])
def test_both_extractors_run_in_every_clip(steps, probability):
    found = schedules(steps, probability, [[seed, step] for seed in (0, 5) for step in range(150)])
    assert found.any(1).all() and not found.all(1).any()
    if probability in (0.0, 1.0):
        assert (found.sum(1) == (1 if probability == 0 else steps - 1)).all()


def test_f0_runs_as_often_as_it_should():
    """The number of f0 frames is binomial, but neither none nor all; all frames are alike."""
    steps, probability, count = 6, 0.4, 3000
    found = schedules(steps, probability, [[7, step] for step in range(count)])
    chances = np.array(
        [
            math.comb(steps, n) * probability**n * (1 - probability) ** (steps - n)
            for n in range(steps + 1)
        ]
    )
    chances[1] += chances[0]
    chances[-2] += chances[-1]
    chances[[0, -1]] = 0
    numbers = np.bincount(found.sum(1), minlength=steps + 1)
    # Five standard deviations of a count: one seed, drawn once, so no chance of a flaky test.
    spread = 5 * np.sqrt(count * chances * (1 - chances))
    assert (np.abs(numbers - count * chances) <= spread).all(), numbers
    mean = found.mean()
    expected = (np.arange(steps + 1) * chances).sum() / steps
    assert np.abs(found.mean(0) - expected).max() < 5 * math.sqrt(mean * (1 - mean) / count)


def test_a_schedule_is_a_function_of_seed_and_step():
    seeds = list(itertools.product((0, 1, 2), range(40)))
    first, again = (schedules(6, 0.5, seeds) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[::-1], schedules(6, 0.5, seeds[::-1]))
    by_seed = first.reshape(3, 40, 6)
    for a, b in itertools.combinations(by_seed, 2):
        assert not np.array_equal(a, b)
    assert len(np.unique(by_seed[0], axis=0)) > 20  # of 62


# Interruptions.


def interrupted(step):
    """Ctrl-C once training has reached a step, before that step's checkpoint."""
    original = training.Progress.__call__

    def call(self, output):
        original(self, output)
        if self.global_step.numpy() >= step:
            raise KeyboardInterrupt

    return mock.patch.object(training.Progress, "__call__", call)


@pytest.mark.slow
def test_the_float_phase_resumed_equals_uninterrupted(tmp_path, capfd):
    short = dict(trainer__train_steps=6, trainer__checkpoint_interval=2, **EAGER)
    short |= dict(trainer__validation_interval=3, trainer__steps_per_loop=1)
    flags = {name: tiny_run.float_flags(tmp_path / name, **short) for name in ("whole", "parts")}
    assert tiny_run.program("memvid_tf.train", **flags["whole"]) == 0
    for step, kept in ((3, 2), (5, 4)):
        with interrupted(step):
            assert tiny_run.program("memvid_tf.train", **flags["parts"]) == 130
        assert capfd.readouterr().err.rstrip().endswith("interrupted")
        # Steps were lost, and are done again.
        assert checkpoints.step_of(checkpoints.latest(str(tmp_path / "parts"))) == kept < step
    assert tiny_run.program("memvid_tf.train", **flags["parts"]) == 0
    assert_same_end(tmp_path / "parts", tmp_path / "whole")
    # It was validated at the same steps, and so the best checkpoint is the same, too.
    folders = [tmp_path / name / "validation" for name in ("parts", "whole")]
    found, wanted = (tiny_run.scalars(folder, "mAP") for folder in folders)
    assert found == wanted and list(wanted) == [3, 6]
    for name in ("params.yaml", "best/info.json"):
        assert (tmp_path / "parts" / name).read_text() == (tmp_path / "whole" / name).read_text()
    assert_same_end(tmp_path / "parts" / "best", tmp_path / "whole" / "best")
    # It said what it was at while nothing moved.
    drawn = capfd.readouterr().err
    wanted = [progress.COMPILING, progress.TRAINING, progress.COMPILING_VALIDATION]
    assert all(f"{what}:" in drawn for what in wanted) and f"{progress.VALIDATING}, 2" in drawn
    # Started once more it has nothing to do, says so and changes nothing.
    before = listing(tmp_path / "parts")
    # The last is not what it was trained with, but no contradiction.
    for changes in ({}, {"trainer__train_steps": 5}, {"task__freeze_norm_step": 9}):
        values = short | changes
        again = tiny_run.float_flags(tmp_path / "parts", **values)
        assert tiny_run.program("memvid_tf.train", **again) == 0
        steps = values["trainer__train_steps"]
        said = f"nothing to do: {tmp_path}/parts has reached step 6 of {steps}; raise"
        assert capfd.readouterr().out.startswith(said)
    assert listing(tmp_path / "parts") == before


@pytest.mark.slow
def test_the_quantized_phase_killed_and_started_again_equals_uninterrupted(tmp_path):
    """SIGKILL in a process of its own before batch normalisation is frozen; the rest in this one.
    The phase that starts from the float checkpoint must not do so again."""
    arguments = tiny_run.qat_arguments(tmp_path / "run")
    last = tiny_run.FREEZE_STEP - 1
    killed = subprocess.run(
        [sys.executable, tiny_run.__file__, f"--fault=kill:{last}", "memvid_tf.train", *arguments],
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    # What training had reached was not saved yet, and is lost.
    assert checkpoints.step_of(checkpoints.latest(str(tmp_path / "run"))) == last - 1
    assert tiny_run.program("memvid_tf.train", *arguments) == 0
    assert_same_end(tmp_path / "run", tiny_run.qat_run())


def test_a_signal_is_noted_once_there_is_something_to_keep():
    termination = training.Termination()
    termination.learned(None)
    usual = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)}
    with termination.watched():
        os.kill(os.getpid(), signal.SIGHUP)
        assert termination.asked
        assert {signal.getsignal(n) for n in usual} == {signal.SIG_DFL}, "a second one ends it"
    assert {n: signal.getsignal(n) for n in usual} == usual


def test_nohup_keeps_its_word():
    termination = training.Termination()
    termination.learned(None)
    usual = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with termination.watched():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not termination.asked
            os.kill(os.getpid(), signal.SIGTERM)
            assert termination.asked
    finally:
        signal.signal(signal.SIGHUP, usual)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_first_steps_ends_at_once(number, capfd):
    child = os.fork()
    if not child:
        with training.Termination().watched():
            os.kill(os.getpid(), number)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + number
    assert "terminated before the first steps; start the same" in capfd.readouterr().err


def test_a_second_training_in_a_folder_is_refused(tmp_path, capfd):
    """While the first one lives; nothing of its is touched."""
    before = listing(tmp_path)
    with locks.folder(tmp_path):
        assert tiny_run.program("memvid_tf.train", **tiny_run.float_flags(str(tmp_path))) == 2
    assert f"in use by process {os.getpid()} since" in capfd.readouterr().err
    assert listing(tmp_path) == before


# A loss that is not a number.


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_training_with_its_batch(tmp_path, capfd):
    rate = "trainer__optimizer_config__learning_rate__cosine__initial_learning_rate"
    every_step = dict(trainer__steps_per_loop=1, trainer__checkpoint_interval=1)
    flags = tiny_run.float_flags(tmp_path, **{rate: 1e30, **every_step})
    with mock.patch.dict(config_rules.RANGES, initial_learning_rate=(0, 1e30)):
        assert tiny_run.program("memvid_tf.train", **flags, mode="train") == 2
    lines = own_lines(capfd.readouterr().err)
    assert len(lines) == 1, lines
    message = re.fullmatch(
        r"error: .*\b(?:nan|inf)\b.* at step (\d+); its batch is kept in (\S+\.npz); .*", lines[0]
    )
    assert message, lines
    step, path = int(message[1]), message[2]
    assert os.path.dirname(path) == str(tmp_path) and step >= 1
    # It is the batch of that step, which the data stream gives again.
    wanted = next(training_batches(start_step=step))
    with np.load(path, allow_pickle=False) as kept:
        assert set(kept) == set(wanted)
        for name, value in wanted.items():
            assert kept[name].dtype == value.dtype
            np.testing.assert_array_equal(kept[name], value)
    # What is left on disk is of before.
    found = variables(checkpoints.latest(str(tmp_path)))
    assert found["global_step/.ATTRIBUTES/VARIABLE_VALUE"] <= step
    for name, value in found.items():
        assert np.isfinite(value).all(), name


@pytest.mark.slow
def test_a_loss_beyond_the_bound_ends_training(tmp_path, capfd):
    values = dict(trainer__loss_upper_bound=0.5, trainer__steps_per_loop=1, **EAGER)
    flags = tiny_run.float_flags(tmp_path, **values)
    assert tiny_run.program("memvid_tf.train", **flags, mode="train") == 2
    [line] = own_lines(capfd.readouterr().err)
    assert re.match(r"error: training diverged: .*larger than the bound 0\.5", line), line


@pytest.mark.slow
def test_clips_that_cannot_be_decoded_end_training_with_their_list(tmp_path, capfd):
    from memvid_tf.data import sharding, synthetic

    info = records.read_info(tiny_run.data())
    plan = synthetic.plan(synthetic.SyntheticConfig(**info.config))

    def damaged(split, index):
        clip = plan.make_clip(split, index)
        if split == "train" and index == 3:
            clip.images[:] = [image[: len(image) // 2] for image in clip.images]
        return clip

    damaged_plan = dataclasses.replace(plan, make_clip=damaged)
    sharding.write_dataset(tmp_path / "set", damaged_plan, workers=0)
    values = dict(trainer__steps_per_loop=1, **EAGER)
    values["task__train_data__input_path"] = tmp_path / "set"
    flags = tiny_run.float_flags(tmp_path / "run", **values)
    assert tiny_run.program("memvid_tf.train", **flags, mode="train") == 2
    [line] = own_lines(capfd.readouterr().err)
    wanted = r"error: 1 clips cannot be decoded, allowed are 0: record 3 of \S+/set/train-00000-of-"
    assert re.match(wanted, line), line


def training_batches(start_step):
    from memvid_tf.data import clips

    data = tiny_run.params().task.train_data
    return clips.clip_dataset(data, start_step=start_step).as_numpy_iterator()


# What is refused.


def refused(capfd, *words, arguments=(), **flags):
    """Training ends with exit code 2 and one line that holds the words, and writes nothing."""
    folder = flags["model_dir"]
    before = listing(folder)
    capfd.readouterr()
    assert tiny_run.program("memvid_tf.train", *arguments, **flags) == 2
    printed = capfd.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), printed.err
    assert not printed.out
    for word in words:
        assert word in lines[0], lines[0]
    assert "configurable" not in lines[0], lines[0]  # what gin adds to messages
    assert listing(folder) == before


OVERRIDES = [
    ("unknown key", dict(task__nonsense=1), ["'task.nonsense'", "freeze_norm_step"]),
    ("wrong type", dict(trainer__train_steps="many"), ["trainer.train_steps", "'many'", "int"]),
    ("no data", dict(task__train_data__input_path="/nowhere"), ["/nowhere", "memvid_tf.data"]),
    ("no validation data", dict(task__validation_data__input_path="/nowhere"), ["/nowhere"]),
    ("no such split", dict(task__validation_data__split="val"), ["'val'", "test, train"]),
    ("classes", dict(task__model__num_classes=3), ["num_classes is 3", "horizontal_disk"]),
    (
        "other classes",
        dict(task__labels=f"[{','.join(tiny_run.LABELS[::-1])}]"),
        [f"has the classes {tiny_run.LABELS[0]}", f"the network's are {tiny_run.LABELS[-1]}"],
    ),
    ("objects", dict(task__train_data__max_objects=1), ["max_objects 1", "at least 2"]),
    ("long window", dict(task__train_data__unroll_frames=9), ["unroll_frames 9", "at most 8"]),
    ("short window", dict(task__train_data__unroll_frames=1), ["unroll_frames", "at least 2"]),
    ("cell", dict(task__model__cell="gru"), ["model.cell", "'gru'", "'factored', 'flow_guided', 'paper'"]),
    ("odd size", dict(task__model__image_size="[33,64]"), ["image_size", "(33, 64)"]),
    ("other size", dict(task__model__image_size="[64,64]"), ["image_size", "(16, 32)", "(64, 64)"]),
    ("tau", dict(task__validation_tau=-1), ["validation_tau", "-1"]),
    ("loss", dict(task__losses__classification="hinge"), ["classification", "'hinge'", "'focal'"]),
    ("no phase before", dict(task__init_checkpoint="/nowhere"), ["/nowhere"]),
]


@pytest.mark.parametrize(
    "values, words", [case[1:] for case in OVERRIDES], ids=[case[0] for case in OVERRIDES]
)
def test_overrides_that_cannot_be(tmp_path, capfd, values, words):
    refused(capfd, *words, **tiny_run.float_flags(tmp_path / "run", **values))


def test_flags_that_cannot_be(tmp_path, capfd):
    flags = tiny_run.float_flags(tmp_path / "run")
    refused(capfd, "no.yaml", "does not exist", **flags | {"config_file": tmp_path / "no.yaml"})
    refused(capfd, "'stray'", **flags, arguments=["stray"])
    refused(capfd, "'nets'", "interleaved", **flags | {"experiment": "nets"})
    refused(capfd, "--model_dir", **flags | {"model_dir": ""})
    (tmp_path / "file").write_text("mine")
    refused(capfd, "file", **flags | {"model_dir": tmp_path / "file"})
    assert (tmp_path / "file").read_text() == "mine"


def test_the_program_itself_ends_with_one_line(tmp_path):
    """As a user starts it: a configuration of the repository without its data."""
    done = subprocess.run(
        [sys.executable, "-m", "memvid_tf.train",
         f"--config_file={tiny_run.ROOT}/configs/interleaved_tiny.yaml",
         f"--params_override=task.train_data.input_path={tmp_path}/gone", "--model_dir=run"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tiny_run.ROOT)}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 2 and not done.stdout and not list(tmp_path.iterdir())
    assert re.fullmatch(r"error: data set folder \S+/gone does not exist; .*\n", done.stderr)


@pytest.mark.slow
def test_a_folder_of_another_network_is_refused(tmp_path, capfd):
    shutil.copytree(tiny_run.float_run(), tmp_path / "run")
    flags = tiny_run.float_flags(tmp_path / "run", task__model__head_depth=32)
    refused(capfd, "another configuration", "head_depth is 24 there and 32 here", **flags)
    arguments = tiny_run.qat_arguments(tmp_path / "run")
    refused(capfd, "quantization is 'none'", model_dir=tmp_path / "run", arguments=arguments[:-1])
    # Training as before would go on, but not on what lies there now.
    flags = tiny_run.float_flags(tmp_path / "run")
    (tmp_path / "run/params.yaml").write_text("task: [")
    refused(capfd, "params.yaml", "not valid YAML", **flags)
    shutil.copy(os.path.join(tiny_run.float_run(), "params.yaml"), tmp_path / "run")
    (tmp_path / "run/checkpoint").write_text("garbage")
    capfd.readouterr()
    assert tiny_run.program("memvid_tf.train", **flags) == 2
    assert "is damaged" in capfd.readouterr().err


ANOTHER = [
    ("task.seed is 3 there and 4 here", dict(task__seed=4)),
    ("task.train_data.seed is 0 there and 5 here", dict(task__train_data__seed=5)),
    (
        "optimizer.type is 'adam' there and 'sgd' here",
        dict(trainer__optimizer_config__optimizer__type="sgd"),
    ),
    (
        "adam.beta_1 is 0.9 there and 0.8 here",
        dict(trainer__optimizer_config__optimizer__adam__beta_1=0.8),
    ),
]


@pytest.mark.slow
def test_a_training_with_other_seeds_or_another_optimizer_is_not_gone_on_with(tmp_path, capfd):
    shutil.copytree(tiny_run.float_run(), tmp_path / "run")
    for message, values in ANOTHER:
        flags = tiny_run.float_flags(tmp_path / "run", trainer__train_steps=40, **values)
        with mock.patch.object(training, "run") as run:
            refused(capfd, "another configuration", message, **flags)
        assert not run.called
    # More steps and another rate are no contradiction.
    with mock.patch.object(training, "run") as run:
        rate = "trainer__optimizer_config__learning_rate__cosine__initial_learning_rate"
        flags = tiny_run.float_flags(tmp_path / "run", trainer__train_steps=40, **{rate: 0.01})
        assert tiny_run.program("memvid_tf.train", **flags) == 0
    assert run.called


@pytest.mark.slow
def test_damaged_checkpoints_are_refused(tmp_path, capfd):
    shutil.copytree(tiny_run.float_run(), tmp_path / "run")
    data = tmp_path / "run" / f"ckpt-{tiny_run.STEPS}.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-1000])
    flags = tiny_run.float_flags(tmp_path / "run", trainer__train_steps=40)
    refused(capfd, f"ckpt-{tiny_run.STEPS}", "damaged", **flags)


@pytest.mark.slow
def test_an_earlier_phase_of_another_network_is_refused(tmp_path, capfd):
    start = dict(task__init_checkpoint=tiny_run.float_run())
    flags = tiny_run.float_flags(tmp_path / "run", task__model__head_depth=32, **start)
    refused(capfd, "another configuration", "head/", "[1, 1, 16, 32]", **flags)
    (tmp_path / "empty").mkdir()
    values = dict(task__init_checkpoint=tmp_path / "empty")
    refused(capfd, "holds no checkpoint", **tiny_run.float_flags(tmp_path / "run", **values))
    (tmp_path / "empty/checkpoint").write_text('model_checkpoint_path: "ckpt-9"\n')
    refused(capfd, "is damaged or names", **tiny_run.float_flags(tmp_path / "run", **values))
