"""Patchwork from frames to the bundle, in miniature, by the real programs."""

import dataclasses
import json
import math
import os
import shutil

import cv2
import numpy as np
import pytest
import tensorflow as tf
import tiny_run
import tiny_windows
from test_training import variables

from memvid_tf.errors import UserError
from memvid_tf.evaluation import window_rollout
from memvid_tf.evaluation.bundle_windows import BundleWindows
from memvid_tf.evaluation.checkpoint_windows import CheckpointWindows
from memvid_tf.runtime.bundle import Bundle
from memvid_tf.runtime.manifest import BundleError, Manifest
from memvid_tf.runtime.windowed import WindowRunner
from memvid_tf.tasks import checkpoints, configuration, trained, training

pytestmark = pytest.mark.slow
KINDS = pytest.mark.parametrize("kind", tiny_windows.KINDS)


def at(folder, step):
    return variables(os.path.join(folder, f"ckpt-{step}"))


def resumed(kind, stage, step, folder):
    """A run that was stopped after a step, and went on."""
    whole = tiny_windows.run(kind, stage)
    folder.mkdir()
    for name in os.listdir(whole):
        if name.startswith(f"ckpt-{step}.") or name == configuration.PARAMS_FILE:
            shutil.copy(os.path.join(whole, name), folder)
    tf.compat.v1.train.update_checkpoint_state(str(folder), str(folder / f"ckpt-{step}"))
    flags = tiny_windows.command(kind, stage, folder)
    assert tiny_run.program("memvid_tf.train", **flags, mode="train") == 0
    return checkpoints.latest(str(folder)), checkpoints.latest(whole)


@pytest.mark.parametrize(
    ("kind", "stage", "step"), [("segmenter", "attention", 2), ("detector", "windows", 2)]
)
def test_resumed_equals_uninterrupted(kind, stage, step, tmp_path):
    found, expected = map(variables, resumed(kind, stage, step, tmp_path / "resumed"))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)
    kinds = {"target", "model/attention", "model/network", "optimizer"}
    kinds |= {"replay"} if stage == "attention" else set()
    assert all(any(key.startswith(kind) for key in found) for kind in kinds)


@KINDS
def test_joint_training_moves_attention_by_small_steps(kind):
    before, after = (
        variables(checkpoints.latest(tiny_windows.run(kind, stage)))
        for stage in ("attention", "windows")
    )

    moved = max(
        np.abs(after[key] - value).max()
        for key, value in before.items()
        if key.startswith("model/attention") and "kernel" in key and "OPTIMIZER" not in key
    )
    # A share of .03 of Adam's steps, of which the first ones are no larger than the learning rate.
    assert 0 < moved < 0.03 * tiny_windows.JOINT_STEPS * tiny_windows.JOINT_RATE


@KINDS
def test_attention_learns_and_its_network_stays(kind):
    base = at(tiny_windows.run(kind, "frames"), tiny_windows.STEPS)
    first, last = (at(tiny_windows.run(kind, "attention"), n) for n in (1, 4))
    compared = 0
    for key, value in base.items():
        if key.startswith("model/") and "OPTIMIZER_SLOT" not in key:
            name = key.replace("model/", "model/network/", 1)
            np.testing.assert_array_equal(last[name], value, err_msg=key)
            compared += 1
    assert compared > 20
    kernel = "model/attention/values/kernel/.ATTRIBUTES/VARIABLE_VALUE"
    assert not np.array_equal(first[kernel], last[kernel])


@KINDS
def test_joint_training_moves_both_and_leaves_batch_norm_alone(kind):
    before = at(tiny_windows.run(kind, "attention"), tiny_windows.ATTENTION_STEPS)
    after = at(tiny_windows.run(kind, "windows"), tiny_windows.JOINT_STEPS)
    for part in ("attention/values", "network/backbone/stem"):
        key = f"model/{part}/kernel/.ATTRIBUTES/VARIABLE_VALUE"
        assert not np.array_equal(before[key], after[key]), key
    statistics = [key for key in after if key.endswith(("/mean/.ATTRIBUTES/VARIABLE_VALUE",))]
    assert len([key for key in statistics if key.startswith("model/network")]) > 5
    for key in statistics:
        np.testing.assert_array_equal(before[key], after[key], err_msg=key)


@KINDS
def test_curves_are_written(kind):
    score = {"detector": "mAP", "segmenter": "J"}[kind]
    for stage, tags in (("attention", {"reward", "epsilon"}), ("windows", {"q_loss", "quality"})):
        folder = tiny_windows.run(kind, stage)
        found = {tag: value for _, tag, value in tiny_run.events(f"{folder}/train")}
        assert tags <= found.keys()
        assert all(math.isfinite(found[tag]) for tag in tags)
        assert score in {tag for _, tag, _ in tiny_run.events(f"{folder}/validation")}


@KINDS
def test_the_bundle_decides_and_computes_as_its_checkpoint(kind):
    """The int8 graphs stand beside simulated quantization: some steps off, and seldom another
    window."""
    found = trained.load(tiny_windows.run(kind, "windows"))
    bundle = Bundle.load(tiny_windows.bundle(kind))
    networks = CheckpointWindows(found.model, found.attention), BundleWindows(bundle)
    clips = tiny_run.frames(6, batch=2, seed=1)
    for word in ("full", "scanning", "dqn"):
        rolled = [window_rollout.roll(n, clips, window_rollout.parse_mode(word)) for n in networks]
        if not np.array_equal(rolled[0].actions, rolled[1].actions):
            assert word == "dqn"
            continue
        for name, expected in rolled[0].predictions.items():
            error = np.abs(rolled[1].predictions[name] - expected)
            assert error.mean() < 0.1 * expected.std(), (word, name)
    # The same decisions as the runtime's own runner, which sees one video.
    results = list(WindowRunner(bundle, "dqn").run(clips[0]))
    actions = window_rollout.roll(networks[1], clips[:1], window_rollout.parse_mode("dqn")).actions
    assert [r.action for r in results[1:]] == actions[0, 1:].tolist()


@KINDS
def test_the_bundle_says_how_attention_is_called(kind):
    bundle = Bundle.load(tiny_windows.bundle(kind))
    manifest = bundle.manifest
    assert manifest.calls["attention"] == ("attention/serving_default",)
    read = {"detector": "class_logits", "segmenter": "mask_logits"}[kind]
    assert (manifest.attention.prediction, manifest.attention.decay) == (read, 0.5)
    assert manifest.signature("attention/serving_default").outputs["q_values"].shape == (1, 4)
    attention = manifest.attention
    without = {name: steps for name, steps in manifest.calls.items() if name != "attention"}
    for field, changed in {
        "attention is None": dict(attention=None),
        "attention is AttentionSpec": dict(calls=without),
        "attention.prediction": dict(
            attention=dataclasses.replace(attention, prediction="features")
        ),
        "attention.decay": dict(attention=dataclasses.replace(attention, decay=1.0)),
        "attention.one": dict(attention=dataclasses.replace(attention, one=0.0)),
    }.items():
        with pytest.raises(BundleError, match=field):
            dataclasses.replace(manifest, **changed).validate()
    assert Manifest.from_json(manifest.to_json()) == manifest
    report = json.loads((bundle.path / "report.json").read_text())
    assert [row["frame"] for row in report["drift"]] == [1, 5]
    score = {"detector": {"mAP"}, "segmenter": {"J", "F"}}[kind]
    for part in ("checkpoint", "bundle"):
        assert report["scores"][part].keys() == {"full", "scanning", "dqn"}
        assert all(numbers.keys() == score for numbers in report["scores"][part].values())


@KINDS
def test_evaluate_scores_every_mode_and_says_what_it_costs(kind, tmp_path):
    output = tmp_path / "result.json"
    modes = "full,scanning,random+nocell,dqn+flip,full+interval2+delay1"
    folder = tiny_windows.run(kind, "windows")
    flags = dict(model_dir=folder, modes=modes, output=output)
    detects = kind == "detector"
    # Masks have no classes, which COCO's numbers are about.
    assert tiny_run.program("memvid_tf.evaluate", **flags, coco=True) == (0 if detects else 2)
    if not detects:
        assert tiny_run.program("memvid_tf.evaluate", **flags) == 0
    found = json.loads(output.read_text())["modes"]
    assert list(found) == modes.split(",")
    assert all(("coco" in result) == detects for result in found.values())
    costs = {name: (r["max_multiply_adds"], r["mean_multiply_adds"]) for name, r in found.items()}
    full = costs["full"][0]
    assert costs["full"] == (full, full)
    assert costs["full+interval2+delay1"] == (full / 2, full / 2)
    # A quarter of the frame, its halo and the tail; twice that and attention.
    assert 0.2 * full < costs["scanning"][0] < 0.6 * full
    assert 2 * costs["scanning"][0] < costs["dqn+flip"][0] < 3 * costs["scanning"][0]
    for name, result in found.items():
        shares = result["action_shares"]
        assert (sum(shares) == pytest.approx(1)) if "full" not in name else not shares
    frames = tiny_windows.run(kind, "frames")
    assert tiny_run.program("memvid_tf.evaluate", model_dir=frames, ensemble_dir=frames) == 0
    bundle = tiny_windows.bundle(kind)
    modes = "full,scanning"
    assert tiny_run.program("memvid_tf.evaluate", bundle=bundle, modes=modes, output=output) == 0
    for name, result in json.loads(output.read_text())["modes"].items():
        # The graphs' kernels are those of the checkpoint, counted in another way.
        assert result["max_multiply_adds"] == costs[name][0], name


@KINDS
def test_detect_lets_attention_pick_the_windows(kind, tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    frames = tiny_run.frames(5, seed=4)[0]
    for number, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{number}.png"), frame[..., ::-1])
    found, drawn = tmp_path / "found.jsonl", tmp_path / "drawn.webm"
    flags = dict(bundle=tiny_windows.bundle(kind), video=folder, json=found, output=drawn)
    assert tiny_run.program("memvid_tf.detect", **flags) == 0
    rows = [json.loads(line) for line in found.read_text().splitlines()]
    runner = WindowRunner(Bundle.load(flags["bundle"]), "dqn")
    assert [tuple(row["window"]) for row in rows] == [r.window for r in runner.run(frames)]
    assert rows[0]["window"] == [0, 0, 1, 1] and rows[1]["window"] != rows[0]["window"]
    assert drawn.stat().st_size > 0


def test_what_does_not_fit_is_refused(tmp_path):
    frames = tiny_windows.run("detector", "frames")

    def refused(kind, stage, message, **values):
        flags = tiny_windows.command(kind, stage, tmp_path)
        pairs = tiny_run.overrides(**values)
        with pytest.raises(UserError, match=message):
            params = configuration.load(flags["experiment"], [flags["config_file"]], pairs)
            training.run(training.completed(params), str(tmp_path / "run"), "train")

    refused("segmenter", "attention", "wanted one of 'segmenter'", task__base_model_dir=frames)
    refused("detector", "attention", "task.base_model_dir is missing")
    refused("detector", "windows", "task.init_checkpoint is missing")
    refused("detector", "windows", "freeze_norm_step 5", task__freeze_norm_step=5)
    refused("detector", "windows", "'f0' is not one of full", task__validation_mode="f0")
    refused(
        "detector",
        "attention",
        "windows of 3 of 2 slices",
        task__base_model_dir=frames,
        task__windows__adjacent=3,
    )
    assert tiny_run.program("export", model_dir=frames, output_dir=tmp_path / "b") == 2
    assert tiny_run.program("memvid_tf.evaluate", model_dir=frames, modes="scanning") == 2
