"""The shipped configurations load, build and fit their data, and their headers are true."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from official.core import task_factory
from official.modeling import optimization

import memvid_tf  # noqa: F401  (before TensorFlow)
from memvid_tf.data import conversion, synthetic
from memvid_tf.models.interleaved import InterleavedConfig
from memvid_tf.models.zoo import headers
from memvid_tf.tasks import configuration, training  # noqa: F401  (registers the experiments)
from memvid_tf.tasks.classification import ClassificationTaskConfig

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
FILES = sorted(path.relative_to(REPOSITORY) for path in (REPOSITORY / "configs").glob("*.yaml"))
CHAIN = ("_classification", "", "_qat", "_policy")
every_config = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def header(path) -> dict[str, str]:
    return headers.header(REPOSITORY / path)


def training_command(path) -> headers.Command:
    return headers.training_command(REPOSITORY / path)


def load(path):
    """The configuration that the command of a header trains."""
    command = training_command(path)
    return configuration.load(
        command.one("experiment", "interleaved"),
        [str(REPOSITORY / name) for name in command.all("config_file")],
        command.one("params_override"),
    )


def trained_in(model_dir: str):
    """The configuration whose command trains in a folder."""
    (path,) = [path for path in FILES if training_command(path).one("model_dir") == model_dir]
    return load(path)


def test_there_are_configurations():
    assert {path.stem for path in FILES} >= {
        stem + phase
        for stem in ("interleaved", "interleaved_tiny", "interleaved_davis")
        for phase in ("", "_qat")
    } | {
        f"{kind}{stage}{scale}"
        for kind, scale in (
            ("detector", ""),
            ("detector", "_tiny"),
            ("segmenter", ""),
            ("segmenter", "_tiny"),
            ("segmenter", "_davis"),
        )
        for stage in ("", "_attention", "_patchwork")
    }


@every_config
def test_the_header_says_what_it_is_and_how_to_run_it(path):
    fields = header(path)
    assert {"Paper", "Command", "Next"} <= set(fields)
    command = training_command(path)
    assert command.module == "memvid_tf.train"
    # Overlays come after what they lie on; this file has the last word.
    assert command.all("config_file")[-1] == str(path)
    for name in re.findall(r"configs/\w+\.yaml", "\n".join(fields.values())):
        assert (REPOSITORY / name).is_file(), name
    assert headers.commands(fields["Next"]) or "configs/" in fields["Next"]


@every_config
def test_every_command_of_the_header_is_accepted(path):
    for command in headers.commands("\n".join(header(path).values())):
        arguments = [f"--{name}={value}" if value else f"--{name}" for name, value in command.flags]
        result = subprocess.run(
            [sys.executable, "-m", command.module, *command.words, *arguments, "--only_check_args"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert result.returncode == 0, result.stderr


@every_config
def test_it_loads_and_agrees_with_itself(path):
    params = load(path)
    trainer, task = params.trainer, params.task
    optimizer: optimization.OptimizationConfig = trainer.optimizer_config
    rate = optimizer.learning_rate
    if rate.type == "cosine":
        # A step of a policy's training is several updates.
        updates = task.ddqn.updates_per_step if hasattr(task, "ddqn") else 1
        assert rate.cosine.decay_steps == trainer.train_steps * updates
    if optimizer.warmup.type == "linear":
        assert optimizer.warmup.linear.warmup_steps < trainer.train_steps
    for interval in ("summary_interval", "checkpoint_interval", "validation_interval"):
        steps = getattr(trainer, interval)
        # The trainer looks at intervals between loops only.
        assert 0 < steps <= trainer.train_steps and steps % trainer.steps_per_loop == 0, interval
    assert getattr(task, "freeze_norm_step", -1) < trainer.train_steps
    assert task.train_data.is_training and not task.validation_data.is_training
    assert task.train_data.split != task.validation_data.split


@every_config
def test_network_and_data_agree(path):
    task = load(path).task
    # A policy takes the network of its base.
    base = getattr(task, "base_model_dir", "")
    model = trained_in(base).task.model if base else task.model
    made = [
        command
        for other in FILES
        for command in headers.commands(header(other).get("Data", ""))
        if command.one("output") in (task.train_data.input_path, task.validation_data.input_path)
    ]
    for data in (task.train_data, task.validation_data):
        assert tuple(data.image_size) == tuple(model.image_size)
        # A policy may learn on clips that its detector has not seen.
        assert base or data.input_path == task.train_data.input_path
        assert any(command.one("output") == data.input_path for command in made)
    for command in made:
        if command.words == ("synthetic",):
            config = synthetic.PRESETS[command.one("preset", "demo")]
            side = int(command.one("image_size", str(config.image_size)))
            size, count = [side] * 2, config.num_classes
            assert task.train_data.max_objects >= config.max_objects
        else:
            assert command.words == ("convert",)
            size = [int(side) for side in command.one("image_size").split(",")]
            if isinstance(task, ClassificationTaskConfig):  # whose classes are the data's
                assert list(model.image_size) == size
                continue
            labels = conversion.open_layout(command.one("dataset"), ".").labels
            assert task.train_data.unroll_frames <= conversion.ConversionConfig().min_clip_frames
            assert not task.labels or tuple(task.labels) == labels
            count = len(labels)
        assert list(model.image_size) == size
        assert getattr(model, "num_classes", count) == count  # a segmenter has none
    assert made
    labels = trained_in(base).task.labels if base else task.labels
    # Every set of still images is made by a command of the header, in the same classes.
    for still_path in task.train_data.still_paths:
        (command,) = [
            command
            for other in FILES
            for command in headers.commands(header(other).get("Data", ""))
            if command.one("output") == still_path
        ]
        layout = conversion.open_layout(command.one("dataset"), ".")
        assert layout.stills and layout.labels == tuple(labels)


def test_the_recipe_is_a_chain():
    """Each phase at paper scale starts from the one before, and names the one after."""
    steps = [pathlib.Path(f"configs/interleaved{name}.yaml") for name in CHAIN]
    for before, after in zip(steps, steps[1:]):
        task, start = load(after).task, training_command(before).one("model_dir")
        assert start in (task.init_checkpoint, getattr(task, "base_model_dir", ""))
        assert str(after) in header(before)["Next"]
    for path in steps:
        assert {"Hardware", "Hours", "Expected"} <= set(header(path))


def test_pretraining_is_of_the_network_that_is_trained_next():
    for name in ("interleaved", "interleaved_tiny"):
        first, second = (
            load(pathlib.Path(f"configs/{name}{phase}.yaml")).task.model.as_dict()
            for phase in ("_classification", "")
        )
        assert configuration.difference(first, second) is None


@pytest.mark.parametrize(
    "path",
    [path for path in FILES if path.stem.endswith("_qat") or "_patchwork" in path.stem],
    ids=lambda path: path.stem,
)
def test_a_later_phase_continues_the_network_of_the_first(path):
    task = load(path).task
    earlier = trained_in(task.init_checkpoint).task
    if "_patchwork" in path.stem:  # between lies the training of attention, of the same windows
        for section in ("windows", "attention"):
            found, wanted = (getattr(t, section).as_dict() for t in (task, earlier))
            assert configuration.difference(found, wanted) is None
        earlier = trained_in(earlier.base_model_dir).task
    first, second = earlier.model, task.model
    assert (first.quantization, second.quantization) == ("none", "int8")
    same = first.replace(quantization="int8")
    assert configuration.difference(same.as_dict(), second.as_dict()) is None


@every_config
def test_the_network_is_built(path):
    task = load(path).task
    base = getattr(task, "base_model_dir", "")
    if base:
        task = task.replace(model=trained_in(base).task.model)
    if isinstance(task, ClassificationTaskConfig):
        task = task.replace(labels=tuple("abcde"))
    model = task_factory.get_task(task).build_model()
    if hasattr(task.model, "depth_multiplier"):
        check_frames(getattr(model, "network", model), task.model)
        return
    detector = getattr(model, "detector", model)
    batch = np.zeros([1, 2, *task.model.image_size, 3], np.uint8)
    outputs = detector(batch)
    anchors = len(detector.anchors)
    assert outputs["box_encodings"].shape == (1, 2, anchors, 4)
    assert outputs["class_logits"].shape == (1, 2, anchors, 1 + task.model.num_classes)
    # Whatever the ratio of the frame, both extractors see the same cells.
    assert detector.frame_size("f0") == tuple(2 * side for side in detector.frame_size("f1"))


def check_frames(network, config):
    """A single-frame network predicts for every anchor, or a mask of the frame."""
    outputs = network(np.zeros([1, *config.image_size, 3], np.uint8))
    if hasattr(network, "anchors"):
        assert outputs["box_encodings"].shape == (1, len(network.anchors), 4)
        assert outputs["class_logits"].shape[2] == 1 + config.num_classes
    else:
        assert network.resize(outputs["mask_logits"]).shape == (1, *config.image_size, 1)


def test_paper_scale_is_the_papers():
    params = load(pathlib.Path("configs/interleaved.yaml"))
    task, optimizer = params.task, params.trainer.optimizer_config
    # LFS 3.1 and 3.2.
    model = task.model
    assert (model.num_classes, tuple(model.image_size), model.shrink) == (30, (320, 320), 2)
    assert (model.depth_multiplier_f0, model.depth_multiplier_f1) == (1.4, 0.35)
    assert (model.state_channels, model.groups, model.head_depth) == (320, 4, 256)
    assert tuple(model.anchors.aspect_ratios) == (1.0, 0.5, 2.0)
    assert configuration.difference(model.as_dict(), InterleavedConfig().as_dict()) is None
    # LFS 3.3; the loss is SSD's.
    assert (task.train_data.global_batch_size, task.train_data.unroll_frames) == (12, 6)
    assert task.f0_probability == 0.5 and task.validation_tau == 9
    assert optimizer.learning_rate.cosine.initial_learning_rate == 0.002
    losses = task.losses
    assert (losses.classification, losses.negatives_per_positive) == ("hard_negative", 3.0)
    assert (losses.match_threshold, losses.positive_weight, losses.box_weight) == (0.5, 1.0, 1.0)


def test_paper_scale_of_patchwork_is_the_papers():
    for kind in ("detector", "segmenter"):
        first, attention, joint = (
            load(pathlib.Path(f"configs/{kind}{stage}.yaml"))
            for stage in ("", "_attention", "_patchwork")
        )
        # PW 4: 384 px; 3.4: BN, then a frozen network, then both with BN frozen at a lower rate.
        assert tuple(first.task.model.image_size) == (384, 384)
        assert first.task.freeze_norm_step == -1 and joint.task.freeze_norm_step == 0
        assert first.task.train_data.unroll_frames == 1 < joint.task.train_data.unroll_frames
        rates = [
            p.trainer.optimizer_config.learning_rate.cosine.initial_learning_rate
            for p in (first, joint)
        ]
        assert rates[1] < rates[0]
        for stage in (attention, joint):
            assert (stage.task.windows.slices, stage.task.windows.adjacent) == (4, 2)
            assert stage.task.windows.context == "memory"
