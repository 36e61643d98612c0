"""Classification pretraining: what is trained, on what, and what the next phase takes from it."""

import numpy as np
import pytest
import tensorflow as tf
import tiny_run
import yaml

import memvid_tf  # noqa: F401  (before TensorFlow)
from memvid_tf.tasks import checkpoints, classification, configuration

STEPS = 20


def test_a_picture_is_of_the_class_of_its_largest_object():
    boxes = np.zeros((4, 2, 3, 4), np.float32)
    classes = np.zeros((4, 2, 3), np.int32)
    boxes[0, 0, :2] = [[0, 0, 0.5, 0.5], [0.1, 0.1, 0.9, 0.5]]
    classes[0, 0, :2] = [4, 2]
    boxes[1, 0, 0], classes[1, 0, 0] = [0, 0, 1, 1], 7
    # The second frame says nothing, and neither do places without an object.
    boxes[2, 1, 0], classes[2, 1, 0] = [0, 0, 1, 1], 5
    boxes[3, 0, 1:], classes[3, 0, 2] = [[0, 0, 1, 1], [0, 0, 0.1, 0.1]], 3
    found = classification.classes_of(tf.constant(boxes), tf.constant(classes))
    assert found.numpy().tolist() == [1, 6, classification.NO_CLASS, 2]


def arguments(model_dir, **values):
    """Flags of the first phase, on the data of `tiny_run`."""
    values = {
        "trainer__train_steps": STEPS,
        "trainer__checkpoint_interval": STEPS,
        "trainer__validation_interval": STEPS,
        "trainer__best_checkpoint_eval_metric": "accuracy",
        **values,
    }
    return {"experiment": classification.EXPERIMENT, **tiny_run.float_flags(model_dir, **values)}


@pytest.mark.slow
def test_it_learns_and_the_next_phase_starts_from_it(tmp_path, capfd):
    folder = str(tmp_path / "first")
    assert tiny_run.program("memvid_tf.train", **arguments(folder)) == 0
    losses = tiny_run.scalars(f"{folder}/train", "training_loss")
    values = list(losses.values())
    assert np.mean(values[-3:]) < 0.9 * np.mean(values[:3])
    accuracy = tiny_run.scalars(f"{folder}/validation", "accuracy")
    assert list(accuracy) == [STEPS] and 0 <= accuracy[STEPS] <= 1
    best = yaml.safe_load(open(f"{folder}/best/info.json"))["accuracy"]
    assert best == pytest.approx(accuracy[STEPS])  # summaries are float32

    params = tiny_run.params(task__init_checkpoint=folder)
    from memvid_tf.tasks.detection import InterleavedTask

    task = InterleavedTask(params.task)
    model = task.build_model()
    task.initialize(model)
    reader = tf.train.load_checkpoint(checkpoints.find(folder))
    for key, value in checkpoints.variable_keys(model).items():
        kept = reader.get_tensor(key.replace("model/", "model/detector/", 1))
        np.testing.assert_array_equal(value, kept, err_msg=key)
    # Extractors and memory have learned; the detection layers were left alone.
    slots = [key for key in reader.get_variable_to_shape_map() if ".OPTIMIZER_SLOT" in key]
    parts = {key.removeprefix("model/detector/").split("/")[0] for key in slots}
    assert {"extractors", "memory"} <= parts and "head" not in parts
    assert all(np.abs(reader.get_tensor(key)).max() > 0 for key in slots if "/kernel/" in key)


def test_what_cannot_be_is_refused(tmp_path, capfd):
    flags = arguments(tmp_path / "run", task__labels="[cat,dog]")
    assert tiny_run.program("memvid_tf.train", **flags) == 2
    assert "task.labels are cat, dog" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_defaults_are_the_papers():
    params = configuration.load(classification.EXPERIMENT)
    assert params.task.f0_probability == 0.5 and classification.REPEATS == 3
