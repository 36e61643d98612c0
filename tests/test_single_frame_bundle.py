"""Single-frame networks as bundles: the graph, what runs it, and what is refused."""

import dataclasses
import json

import cv2
import flagless
import numpy as np
import pytest
import tensorflow as tf
import tiny_bundle
import tiny_patchwork
from test_detect import detect as run_program

import memvid_tf  # noqa: F401  (before TensorFlow)
from benchmarks import tasks
from benchmarks.runner import schedules
from export import bundle as bundles
from export import patchwork_verify, single_frame_bundle
from memvid_tf.errors import UserError
from memvid_tf.evaluation.bundle_windows import BundleWindows
from memvid_tf.evaluation.checkpoint_windows import PlainNetwork
from memvid_tf.runtime.bundle import Bundle
from memvid_tf.runtime.detector import dequantizer
from memvid_tf.runtime.interpreter import Graph
from memvid_tf.runtime.manifest import (
    AttentionSpec,
    BundleError,
    Checkpoint,
    Manifest,
    MaskSpec,
    PostSpec,
)
from memvid_tf.runtime.single_frame import SingleFrameNetwork
from memvid_tf.runtime.windowed import FULL, WindowRunner
from memvid_tf.tasks.trained import Trained

detect = flagless.program("memvid_tf.detect")
PRECISIONS = {"detector": "int8", "segmenter": "float32"}
KINDS = pytest.mark.parametrize("kind", PRECISIONS)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(network, bundle) by kind."""
    found = {}
    for kind, precision in PRECISIONS.items():
        quantization = "int8" if precision == "int8" else "none"
        network = tiny_patchwork.network(kind, 3, quantization=quantization)
        folder = str(tmp_path_factory.mktemp("single_frame") / kind)
        source = bundles.Source({}, tiny_patchwork.LABELS[kind], Checkpoint("ckpt-3", 3))
        options = bundles.Options(precision=precision, post=PostSpec(0.2, 0.5, 20))
        single_frame_bundle.write(network, source, options, folder)
        found[kind] = network, Bundle.load(folder)
    return found


def frames(kind, count, seed=0):
    return tiny_bundle.frames(count, tiny_patchwork.SIZE[kind], seed)


@KINDS
def test_the_graph_computes_what_the_network_does(exported, kind):
    network, bundle = exported[kind]
    run = SingleFrameNetwork(bundle)
    for frame in frames(kind, 3):
        expected = network(tf.constant(frame[np.newaxis]))
        outputs, memory = run.first(run.prepare(frame))
        assert set(outputs) == set(expected) == set(run.outputs)
        assert memory.ages_frames.tolist() == [[0]] and run.body_ms > 0
        for name, wanted in expected.items():
            spec = bundle.manifest.tensor(f"network/serving_default/{name}", "outputs")
            found = dequantizer(spec)(outputs[name])
            if spec.scale is None:
                np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
            else:
                # Rounding differs in each of some thirty layers, and random weights damp nothing;
                # what is compared spans far more steps.
                steps = np.abs(found - wanted) / spec.scale
                assert steps.mean() < 2 and np.quantile(steps, 0.99) < 10
                assert np.ptp(wanted) > 100 * spec.scale


@KINDS
def test_goldens_are_met_and_the_manifest_is_whole(exported, kind):
    _, bundle = exported[kind]
    manifest = bundle.manifest
    assert set(manifest.graphs) == {"network"} | ({"post"} if kind == "detector" else set())
    assert len(manifest.golden) == len(manifest.graphs)
    for golden in manifest.golden:
        inputs, outputs = bundle.read_golden(golden)
        found = Graph(bundle.graph_path(golden.graph), golden.signature)(**inputs)
        for name, y in outputs.items():
            np.testing.assert_array_equal(found[name], y)
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_a_manifest_that_contradicts_itself_is_refused(exported):
    manifest = exported["detector"][1].manifest
    windows = tiny_patchwork.exported("detector")[1].manifest
    for message, changed in {
        "windows is .* no windows": dict(windows=windows.windows),
        "attention": dict(attention=AttentionSpec("class_logits", 0.9, 1.0)),
        "calls.first is ()": dict(calls={"post": manifest.calls["post"]}),
        "image is": dict(image=windows.image),
        "image.full": dict(image=dataclasses.replace(manifest.image, sizes={"full": (8, 8)})),
        "post is None": dict(post=None),
        "mask is": dict(mask=MaskSpec()),
    }.items():
        with pytest.raises(BundleError, match=message.replace("()", r"\(\)")):
            dataclasses.replace(manifest, **changed).validate()


def test_the_runner_sees_every_frame_whole(exported):
    network, bundle = exported["segmenter"]
    videos = frames("segmenter", 3)
    results = list(WindowRunner(bundle, FULL).run(iter(videos)))
    assert [r.action for r in results] == [None] * 3 and results[2].window == (0, 0, 1, 1)
    for frame, result in zip(videos, results):
        logits = network(tf.constant(frame[np.newaxis]))["mask_logits"].numpy()[0, :, :, 0]
        mask = cv2.resize(logits, frame.shape[1::-1], interpolation=cv2.INTER_LINEAR) > 0
        # Only where a logit is nearly 0 may rounding decide.
        assert (mask == result.mask).mean() > 0.99 and result.detections is None


def test_patchwork_can_see_every_frame_whole_too():
    _, bundle = tiny_patchwork.exported("detector")
    videos = frames("detector", 3)
    whole = list(WindowRunner(bundle, FULL).run(iter(videos)))
    for frame, result in zip(videos, whole):
        (first,) = WindowRunner(bundle, "scanning").run([frame])
        assert result.action is None and not result.ages_frames.any()
        for one, other in zip(result.detections, first.detections):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("mode", ["scanning", "random", "dqn"])
def test_there_are_no_windows_to_pick(exported, mode):
    with pytest.raises(UserError, match=f"its only mode is 'full', not '{mode}'"):
        WindowRunner(exported["detector"][1], mode)


def test_the_program_runs_it(exported, tmp_path):
    _, bundle = exported["detector"]
    for number, frame in enumerate(frames("detector", 4)):
        cv2.imwrite(str(tmp_path / f"{number}.png"), frame)
    lines, video = tmp_path / "found.jsonl", tmp_path / "seen.mp4"
    code, out, errors = run_program(bundle=bundle.path, video=tmp_path, json=lines, output=video)
    assert (code, errors) == (0, []) and "4 frames" in out
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(found) == 4 and all(line["oldest_frames"] == 0 for line in found)
    assert found[0]["window"] == [0, 0, 1, 1] and video.stat().st_size > 1000
    assert detect.default_mode(bundle, None) == FULL
    with pytest.raises(UserError, match="--mode=sync: a bundle of 'single_frame' has one of"):
        detect.default_mode(bundle, "sync")


@KINDS
def test_scores_read_the_bundle_as_the_checkpoint(exported, kind):
    network, bundle = exported[kind]
    plain, whole = PlainNetwork(network), BundleWindows(bundle)
    assert whole.windows is None and whole.decay is None
    # Kernels alone are counted on both sides.
    assert whole.costs.full == pytest.approx(plain.costs.full, rel=0.001)
    assert whole.costs.window is None
    stack = np.stack(frames(kind, 2))
    (expected, _), (found, _) = plain.first(stack), whole.first(stack)
    assert expected.keys() == found.keys()
    for name, wanted in expected.items():
        assert found[name].shape == wanted.shape and found[name].dtype == np.float32
    trained = Trained(None, network, "ckpt-3", 3)
    rows = patchwork_verify.differences(trained, bundle, iter(frames(kind, 10)))
    assert [row["frame"] for row in rows] == [1, 10]


def test_its_graphs_are_measured_and_it_has_no_schedules(exported):
    _, bundle = exported["detector"]
    assert schedules.names(bundle) == []
    where = (bundle, "tiny", "here", "python", 1, tasks.Wish([1], runs=2))
    assert [t.setting.name for t in tasks.graph_tasks(*where)] == [
        "network/serving_default",
        "post/serving_default",
    ]
    assert tasks.schedule_tasks(*where) == []
    how = schedules.ScheduleSetting("full", None)
    with pytest.raises(UserError, match="single-frame network and has no schedules"):
        schedules.schedule(bundle, how, schedules.random_frames(bundle, 1, 0))


def test_a_network_of_the_other_precision_is_refused(exported, tmp_path):
    network = exported["segmenter"][0]
    source = bundles.Source({}, ("foreground",), Checkpoint("ckpt-0", 0))
    with pytest.raises(UserError, match="needs a network with quantization 'int8'"):
        single_frame_bundle.write(network, source, bundles.Options("int8"), str(tmp_path / "b"))
    assert not list(tmp_path.iterdir())
