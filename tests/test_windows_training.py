"""The benchmark of a training step in windows: what it compares with has no memory, and only that."""

import statistics

import flagless
import numpy as np
import pytest
import tensorflow as tf
import tiny_patchwork
import tiny_windows

from memvid_tf.tasks import configuration, training

windows_training = flagless.program("benchmarks.windows_training")


@pytest.mark.parametrize("kind", tiny_patchwork.KINDS)
def test_windows_without_memory_are_pictures_of_their_own(kind):
    patchwork = tiny_patchwork.patchwork(kind, 3, 4, 2)
    other = windows_training.without_memory(patchwork)
    first, second = tiny_patchwork.images(kind, 4, 2), tiny_patchwork.images(kind, 5, 2)
    predictions, state = other.start(first)
    for name, x in patchwork.start(first)[0].items():
        np.testing.assert_array_equal(predictions[name], x)
    height, width = tiny_patchwork.SIZE[kind]
    # Of the first clip the window in the middle, of the second the one in the lower right corner.
    action, tiles = tf.constant([4, 8]), ((1, 1), (2, 2))
    predictions, after = other.step(second, action, state)
    np.testing.assert_array_equal(after.strips, state.strips)
    wanted = {name: x.numpy() for name, x in state.maps.items()}
    for clip, (row, column) in enumerate(tiles):
        top, left = row * height // 4, column * width // 4
        picture = second[clip : clip + 1, top : top + height // 2, left : left + width // 2]
        for name, x in patchwork.network.body(picture).items():
            rows, columns = (side // 4 for side in wanted[name].shape[1:3])
            (h, w), (y, x0) = x.shape[1:3], (row * rows, column * columns)
            wanted[name][clip, y : y + h, x0 : x0 + w] = x[0]
    for name, x in wanted.items():
        np.testing.assert_allclose(after.maps[name], x, atol=1e-5, err_msg=name)
    tail = patchwork.network.tail({name: tf.constant(x) for name, x in wanted.items()})
    for name, x in tail.items():
        np.testing.assert_allclose(predictions[name], x, atol=1e-4, err_msg=name)


@pytest.mark.slow
def test_both_ways_take_turns(tmp_path):
    flags = tiny_windows.command("segmenter", "windows", tmp_path)
    params = training.completed(
        configuration.load(flags["experiment"], [flags["config_file"]], flags["params_override"])
    )
    found = windows_training.measure(params, steps=2, warm_up=1, repeats=3, seed=0)
    turns, ratio = found["turns"], found["ratio"]
    assert {name: len(of) for name, of in turns.items()} == {"memory": 3, "none": 3}
    # Every turn begins with the same weights and batch; what is seen around windows differs.
    losses = {name: {turn["loss"] for turn in of} for name, of in turns.items()}
    assert all(max(of) - min(of) < 1e-4 * max(of) for of in losses.values())
    assert abs(max(losses["memory"]) - max(losses["none"])) > 1e-6
    ratios = [a["step_ms"] / b["step_ms"] for a, b in zip(turns["memory"], turns["none"])]
    assert ratio == {
        "median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)
    }  # fmt: skip
    page = windows_training.markdown(
        {
            **found,
            "setting": {
                "config_files": ["a.yaml"],
                "clips": 3,
                "unroll_frames": 3,
                "slices": 2,
                "adjacent": 1,
            },
            "repeats": 3,
            "steps": 2,
            "warm_up_steps": 1,
            "load_average": 0.5,
            "provenance": {
                "machine": {"processor": "none", "cores": 2},
                "date": "today",
                "code_version": "1",
            },
        }
    )
    assert f"{ratio['median']:.3f}" in page and "windows of 1 of 2 slices" in page
