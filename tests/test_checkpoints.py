"""Restoring networks from checkpoints: whole, or refused with a reason and nothing changed."""

import gc
import os
import re

import numpy as np
import pytest
import reference
import tensorflow as tf

import memvid_tf  # noqa: F401  (before TensorFlow)
from memvid_tf.errors import UserError
from memvid_tf.models import interleaved
from memvid_tf.tasks import checkpoints


def network(seed=0, **changes):
    config = dict(
        num_classes=3,
        image_size=(32, 32),
        backbone="tiny",
        depth_multiplier_f0=0.25,
        depth_multiplier_f1=0.25,
        min_depth=8,
        state_channels=8,
        groups=2,
        maps=2,
        head_depth=16,
        anchors=interleaved.AnchorConfig(reduce_lowest=True),
    )
    model = interleaved.build(interleaved.InterleavedConfig(**{**config, **changes}))
    reference.randomise(model.variables, np.random.default_rng(seed))
    return model


def save(model, folder, step=7):
    """As the trainer does."""
    checkpoint = tf.train.Checkpoint(model=model, global_step=tf.Variable(step, dtype=tf.int64))
    manager = tf.train.CheckpointManager(checkpoint, str(folder), max_to_keep=3)
    return manager.save(checkpoint_number=step)


def values(model):
    return {key: v.numpy() for key, v in checkpoints.variable_keys(model).items()}


def assert_same(found, expected):
    """Two results of `values`; the first may have more keys."""
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


@pytest.fixture(scope="module")
def plain():
    return network()


@pytest.fixture(scope="module")
def path(plain, tmp_path_factory):
    return save(plain, tmp_path_factory.mktemp("run"))


def test_every_variable_and_the_predictions_come_back(plain, path):
    plain.norm.frozen.assign(True)
    frozen_path = save(plain, os.path.dirname(path) + "_frozen")
    plain.norm.frozen.assign(False)
    other = network(seed=1)
    frames = tf.constant(np.random.default_rng(2).integers(0, 256, [1, 3, 32, 32, 3], np.uint8))
    before = plain(frames)
    assert not np.allclose(before["class_logits"], other(frames)["class_logits"], atol=0.1)
    checkpoints.restore(other, frozen_path)
    assert bool(other.norm.frozen)
    checkpoints.restore(other, path)
    assert not bool(other.norm.frozen)
    assert_same(values(other), values(plain))
    for name, value in other(frames).items():
        np.testing.assert_array_equal(value, before[name])


def test_the_keys_of_variables_are_those_of_the_checkpoint(plain, path):
    keys = checkpoints.variable_keys(plain)
    assert {id(v) for v in keys.values()} == {id(v) for v in plain.variables} | {
        id(plain.norm.frozen)
    }
    stored = {key for key, _ in tf.train.list_variables(path) if key.startswith("model/")}
    assert set(keys) == stored


def test_a_float_checkpoint_starts_a_quantized_network_if_that_is_asked_for(plain, path):
    quantized = network(seed=3, quantization="int8")
    before = values(quantized)
    with pytest.raises(UserError, match="of another configuration: it lacks .*/range_(min|max)"):
        checkpoints.restore(quantized, path)
    assert_same(values(quantized), before)

    checkpoints.restore(quantized, path, allow_new_ranges=True)
    expected = values(plain)
    new = set(before) - set(expected)
    assert new and all(re.search(r"/range_(min|max)/", key) for key in new)
    assert_same(values(quantized), {**{key: before[key] for key in new}, **expected})


def test_ranges_are_restored_even_if_they_may_be_new(tmp_path):
    quantized, other = network(seed=4, quantization="int8"), network(seed=5, quantization="int8")
    checkpoints.restore(other, save(quantized, tmp_path), allow_new_ranges=True)
    assert_same(values(other), values(quantized))


def test_a_quantized_checkpoint_restores_into_the_float_network(tmp_path):
    quantized, plain = network(seed=6, quantization="int8"), network(seed=7)
    checkpoints.restore(plain, save(quantized, tmp_path))
    assert_same(values(quantized), values(plain))


@pytest.mark.parametrize("allow", [True, False])
@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(cell="paper"), "it lacks memory/"),
        (dict(maps=3, image_size=(64, 64)), "it lacks head/extras/1/"),
        (dict(num_classes=4), r"head/class_predictors/.* has shape \[.*\] there and \[.*\] here"),
        (dict(depth_multiplier_f1=0.6), r"extractors/f1/.* has shape"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(path, changes, words, allow):
    model = network(seed=8, **changes)
    before = values(model)
    with pytest.raises(UserError, match="is of another configuration: .*" + words) as caught:
        checkpoints.restore(model, path, allow_new_ranges=allow)
    assert repr(path) in str(caught.value)
    assert_same(values(model), before)


def copy(path, folder, change):
    """A copy of a checkpoint in which `change` gets the contents of index and data."""
    names = [f"{path}.index", f"{path}.data-00000-of-00001"]
    contents = change(*(open(name, "rb").read() for name in names))
    for name, content in zip(names, contents):
        if content is not None:
            with open(os.path.join(folder, os.path.basename(name)), "wb") as file:
                file.write(content)
    return os.path.join(folder, os.path.basename(path))


def flip(content, where):
    at = int(where * len(content))
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


DAMAGES = {
    "empty index": lambda i, d: (b"", d),
    "index cut short": lambda i, d: (i[: len(i) // 2], d),
    "index without its last byte": lambda i, d: (i[:-1], d),
    "a bit of the index": lambda i, d: (flip(i, 0.4), d),
    "no index": lambda i, d: (None, d),
    "empty data": lambda i, d: (i, b""),
    "data cut short": lambda i, d: (i, d[: len(d) // 2]),
    "data without its last byte": lambda i, d: (i, d[:-1]),
    "an early bit of the data": lambda i, d: (i, flip(d, 0.02)),
    "a late bit of the data": lambda i, d: (i, flip(d, 0.9)),
    "no data": lambda i, d: (i, None),
    "data of another file": lambda i, d: (i, bytes(len(d))),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_changes_nothing(
    plain, path, damage, tmp_path, monkeypatch
):
    damaged = copy(path, tmp_path, DAMAGES[damage])
    before, warnings = values(plain), []
    monkeypatch.setattr(tf.get_logger(), "handle", warnings.append)
    with pytest.raises(UserError) as caught:
        checkpoints.restore(plain, damaged)
    message = str(caught.value)
    assert re.match(rf"checkpoint '{re.escape(damaged)}' (is damaged|cannot be read): .", message)
    assert "\n" not in message
    assert_same(values(plain), before)
    # One line is what a user sees. A restoration that TensorFlow gives up half-way warns of every
    # value, once nothing refers to it any more.
    del caught
    gc.collect()
    assert not [record.getMessage() for record in warnings]


def test_the_step_of_a_checkpoint(plain, path, tmp_path):
    assert checkpoints.step_of(path) == 7
    with pytest.raises(UserError, match="cannot be read"):
        checkpoints.step_of(copy(path, tmp_path, DAMAGES["index cut short"]))
    without = tf.train.Checkpoint(model=plain).write(str(tmp_path / "other"))
    with pytest.raises(UserError, match="cannot be read: .*global_step"):
        checkpoints.step_of(without)


def test_find(plain, path, tmp_path):
    folder = os.path.dirname(path)
    assert checkpoints.find(folder) == path
    assert checkpoints.find(folder, "ckpt-7") == path

    save(plain, tmp_path, 9), save(plain, tmp_path, 10), save(plain, tmp_path / "best", 3)
    folder = str(tmp_path)
    assert checkpoints.latest(folder) == checkpoints.find(folder) == os.path.join(folder, "ckpt-10")
    assert checkpoints.find(folder, "best/ckpt-3") == os.path.join(folder, "best/ckpt-3")
    with pytest.raises(UserError) as caught:
        checkpoints.find(folder, "ckpt-8")
    assert str(caught.value) == (
        f"{folder!r} holds no checkpoint 'ckpt-8'; it holds ['best/ckpt-3', 'ckpt-10', 'ckpt-9']"
    )


def test_find_in_a_folder_that_was_not_trained_in(tmp_path):
    for folder in (str(tmp_path), str(tmp_path / "missing")):
        assert checkpoints.latest(folder) is None
        with pytest.raises(UserError, match=f"{folder!r} holds no checkpoint; train with"):
            checkpoints.find(folder)
        with pytest.raises(UserError, match=r"no checkpoint 'ckpt-1'; it holds \[\]"):
            checkpoints.find(folder, "ckpt-1")


@pytest.mark.parametrize(
    "content", [b"garbage", b"\xff\xfe\x80", b"", b'model_checkpoint_path: "ckpt-99"\n']
)
def test_a_damaged_list_of_checkpoints_does_not_look_like_a_new_folder(path, tmp_path, content):
    copy(path, tmp_path, lambda *contents: contents)
    (tmp_path / "checkpoint").write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged or names .* gone; .* holds \['ckpt-7'\]"):
        checkpoints.latest(str(tmp_path))
