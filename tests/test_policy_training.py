"""A policy from training to the bundle, in miniature, by the real programs."""

import dataclasses
import functools
import json
import os
import shutil
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
import tiny_run
import yaml
from test_streaming import host_file

from memvid_tf.data import clips
from memvid_tf.errors import UserError
from memvid_tf.evaluation import rollout
from memvid_tf.evaluation.bundle_network import BundleNetwork
from memvid_tf.evaluation.checkpoint_network import CheckpointNetwork
from memvid_tf.rl import replay
from memvid_tf.runtime import schedules
from memvid_tf.runtime.bundle import Bundle
from memvid_tf.runtime.detector import InterleavedDetector, dequantizer
from memvid_tf.runtime.policy import Policy
from memvid_tf.runtime.runners import SyncRunner
from memvid_tf.tasks import configuration, trained, training

pytestmark = pytest.mark.slow
STEPS = 6
CONFIG = {
    "task": {
        "policy": {
            "branch_channels": 4,
            "branch_kernel": 3,
            "channels": 6,
            "strides": 1,
            "history": 3,
            "observes": "candidate",
        },
        "ddqn": {
            "replay_capacity": 40,  # less than the run makes
            "batch_size": 8,
            "games_per_step": 6,
            "updates_per_step": 2,
            "target_period": 2,
            "epsilon_steps": STEPS,
        },
        "speed_reward": 0.3,
        "windows": 9,
        "seed": 5,
        **{
            name: {**tiny_run.FLOAT["task"][name], "unroll_frames": frames}
            for name, frames in (("train_data", 6), ("validation_data", 0))
        },
    },
    "trainer": {
        "train_steps": STEPS,
        "steps_per_loop": 1,
        "summary_interval": 1,
        "checkpoint_interval": 1,
        "validation_interval": STEPS,
        "max_to_keep": STEPS,
    },
}


def command(model_dir, base, **values):
    """Flags of `memvid_tf.train` for a policy."""
    path = os.path.join(tiny_run._folder(), "policy.yaml")
    with open(path, "w") as file:
        yaml.safe_dump(CONFIG, file)
    return dict(
        experiment="interleaved_policy",
        config_file=path,
        params_override=tiny_run.overrides(task__base_model_dir=base, **values),
        model_dir=model_dir,
    )


@functools.cache
def policy_run(base=None):
    """The folder of a policy's training, by default on the quantized detector."""
    base = base or tiny_run.qat_run()
    folder = os.path.join(tiny_run._folder(), f"policy_{os.path.basename(base)}")
    assert tiny_run.program("memvid_tf.train", **command(folder, base)) == 0
    return folder


@functools.cache
def bundle():
    """The bundle of the default run."""
    folder = os.path.join(tiny_run._folder(), "policy_bundle")
    options = dict(model_dir=policy_run(), output_dir=folder, tau=2)
    with mock.patch("export.verify.DRIFT_FRAMES", (1, 3)):
        assert tiny_run.program("export", **options) == 0
    return folder


def tensors(prefix):
    reader = tf.train.load_checkpoint(prefix)
    return {
        key: reader.get_tensor(key)
        for key in reader.get_variable_to_shape_map()
        if "save_counter" not in key and "OBJECT_GRAPH" not in key
    }


def test_resumed_equals_uninterrupted(tmp_path):
    whole, folder = policy_run(), tmp_path / "resumed"
    folder.mkdir()
    # As a run that was stopped after its third step leaves it.
    for name in os.listdir(whole):
        if name.startswith("ckpt-3.") or name == configuration.PARAMS_FILE:
            shutil.copy(os.path.join(whole, name), folder)
    tf.compat.v1.train.update_checkpoint_state(str(folder), str(folder / "ckpt-3"))
    assert (
        tiny_run.program(
            "memvid_tf.train", **command(str(folder), tiny_run.qat_run()), mode="train"
        )
        == 0
    )
    expected = tensors(os.path.join(whole, f"ckpt-{STEPS}"))
    found = tensors(str(folder / f"ckpt-{STEPS}"))
    assert expected.keys() == found.keys()
    kinds = dict.fromkeys(
        ("replay", "target", "mean_reward", "optimizer", "model/policy", "model/detector"), 0
    )
    for key, value in expected.items():
        np.testing.assert_array_equal(value, found[key], err_msg=key)
        for kind in kinds:
            kinds[kind] += key.startswith(kind)
    assert all(kinds.values()), kinds
    [key] = [key for key in expected if key.startswith("replay")]
    content = replay.from_bytes(expected[key])
    # 6 clips of 6 frames a step, both actions of each frame.
    assert content["added"] == STEPS * 6 * 5 * 2 and len(content["a_tm1"]) == 40


def test_the_policy_changes_and_the_detector_does_not():
    base = tiny_run.qat_run()
    before = tensors(tf.train.latest_checkpoint(base))
    first, last = (tensors(os.path.join(policy_run(), f"ckpt-{n}")) for n in (1, STEPS))
    compared = 0
    for key, value in before.items():
        if key.startswith("model/") and "OPTIMIZER_SLOT" not in key:
            name = key.replace("model/", "model/detector/", 1)
            np.testing.assert_array_equal(last[name], value, err_msg=key)
            compared += 1
    assert compared > 50
    kernel = "model/policy/values/kernel/.ATTRIBUTES/VARIABLE_VALUE"
    assert not np.array_equal(first[kernel], last[kernel])


def test_the_folder_needs_no_other():
    params = configuration.load_saved(policy_run())
    base = configuration.load_saved(tiny_run.qat_run())
    for section in ("model", "losses"):
        assert getattr(params.task, section).as_dict() == getattr(base.task, section).as_dict()
    assert tuple(params.task.labels) == tuple(base.task.labels) == tiny_run.LABELS
    found = trained.load(policy_run())
    assert found.step == STEPS and found.policy is not None
    assert trained.load(tiny_run.qat_run()).policy is None


def test_curves_are_written():
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags = {}
    for part in ("train", "validation"):
        events = EventAccumulator(os.path.join(policy_run(), part)).Reload()
        tags[part] = set(events.Tags()["tensors"])
    assert tags["train"] >= {"q_f0", "q_f1", "f0_share", "reward", "epsilon", "training_loss"}
    assert tags["validation"] >= {"mAP", "f0_share"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task__model__state_channels": 16}, "task.model.state_channels is given, but"),
        ({"task__ddqn__discount": 1.0}, "ddqn.discount 1.0"),
        ({"task__ddqn__kernel_decay": -0.1}, "ddqn.kernel_decay = -0.1"),
        ({"task__windows": 10}, "task.windows 10 is not a multiple of .*global_batch_size 3"),
        ({"task__train_data__image_size": "[64,64]"}, r"train_data.image_size is \(64, 64\)"),
        ({"task__policy__observes": "all"}, "policy.observes: 'all'"),
    ],
)
def test_what_does_not_fit_is_refused(values, message, tmp_path):
    flags = command(str(tmp_path), tiny_run.qat_run())
    pairs = tiny_run.overrides(**{"task__base_model_dir": tiny_run.qat_run(), **values})
    with pytest.raises(UserError, match=message):
        params = configuration.load("interleaved_policy", [flags["config_file"]], pairs)
        training.run(params, str(tmp_path / "run"), "train")


def test_a_policy_is_no_base_and_nothing_is_none(tmp_path):
    with pytest.raises(UserError, match="task.base_model_dir is missing"):
        training.completed(configuration.load("interleaved_policy"))
    flags = command(str(tmp_path), policy_run())
    params = configuration.load(
        "interleaved_policy", [flags["config_file"]], flags["params_override"]
    )
    with pytest.raises(UserError, match="holds a training of 'interleaved_policy'"):
        training.completed(params)


def test_the_bundle_says_how_the_policy_is_called():
    manifest = Bundle.load(bundle()).manifest
    assert manifest.calls["policy"] == ("policy/serving_default",)
    assert manifest.policy.actions == ("f0", "f1") and manifest.policy.history == 3
    assert manifest.policy.observes == "candidate" and manifest.policy.eta_one == 6.0
    edges = {
        consumer: producer
        for producer, consumer in manifest.edges
        if consumer.startswith("policy/") and producer.startswith("memory/step/")
    }
    assert edges == {
        "policy/serving_default/c": "memory/step/c_next",
        "policy/serving_default/h": "memory/step/h_next",
        "policy/serving_default/c_before": "memory/step/c_next",
        "policy/serving_default/h_before": "memory/step/h_next",
    }
    assert any(golden.graph == "policy" for golden in manifest.golden)
    with open(os.path.join(bundle(), "report.json")) as file:
        assert {"adaptive", "adaptive+async"} <= set(json.load(file)["mAP"]["bundle"])


def test_goldens_of_the_policy_are_reproduced():
    loaded = Bundle.load(bundle())
    [golden] = [g for g in loaded.manifest.golden if g.graph == "policy"]
    inputs, outputs = loaded.read_golden(golden)
    assert set(inputs) == {"c", "h", "c_before", "h_before", "eta"}
    assert set(inputs["eta"].ravel()) <= {-128, 127}
    from memvid_tf.runtime.detector import load_graph

    found = load_graph(loaded, "policy/serving_default")(**inputs)
    np.testing.assert_array_equal(found["q_values"], outputs["q_values"])


def test_a_manifest_whose_policy_contradicts_itself_is_refused():
    manifest = Bundle.load(bundle()).manifest
    policy = manifest.policy
    calls = {name: call for name, call in manifest.calls.items() if name != "policy"}
    for changed, message in (
        (dict(policy=None), "policy"),
        (dict(calls=calls), "policy"),
        (dict(policy=dataclasses.replace(policy, history=4)), "eta: shape"),
        (dict(policy=dataclasses.replace(policy, actions=("f0", "f0"))), "policy.actions"),
        (dict(policy=dataclasses.replace(policy, observes="all")), "policy.observes"),
    ):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(manifest, **changed).validate()


def networks():
    found = trained.load(policy_run())
    return CheckpointNetwork(found.model, found.policy), BundleNetwork(Bundle.load(bundle())), found


def test_the_bundles_policy_values_as_the_checkpoints_does():
    """The same memory for both: the bundle's, as real numbers for the checkpoint."""
    checkpoint, exported, found = networks()
    manifest = Bundle.load(bundle()).manifest
    real = [
        dequantizer(manifest.tensor(f"memory/step/{s.output}", "outputs")) for s in manifest.state
    ]
    step = manifest.tensor("policy/serving_default/q_values", "outputs").scale
    state_type = type(found.model.initial_state(1))
    state, rng = exported.initial_state(1), np.random.default_rng(0)
    for t in range(8):
        features = exported.extract(tiny_run.frames(1, seed=t)[:, 0], "f0")
        *_, after = exported.step(features, state, "f0")
        eta = rng.integers(0, 2, (1, 3)).astype(np.uint8)
        stored = exported.q_values(after, state, eta)
        reals = [
            state_type(*(tf.constant(f(x)) for f, x in zip(real, one[0]))) for one in (after, state)
        ]
        # One step off where two ways of rounding a half meet, in each of the last two layers.
        np.testing.assert_allclose(
            stored, checkpoint.q_values(*reals, eta), atol=2.5 * step, err_msg=str(t)
        )
        state = after


@pytest.mark.parametrize("mode", ["adaptive", "adaptive1", "adaptive+async", "random40"])
def test_checkpoint_and_bundle_pick_alike(mode):
    checkpoint, exported, _ = networks()
    frames, mode = tiny_run.frames(9, batch=3, seed=1), rollout.parse_mode(mode)
    rolled = [
        rollout.roll(network, rollout.extract_all(network, frames), 3, mode)
        for network in (checkpoint, exported)
    ]
    assert rolled[0].f0[:, 0].all()
    if mode.max_tau == 1:
        assert (rolled[1].f0[:, :-1] | rolled[1].f0[:, 1:]).all()
    # Where two values are nearly equal a step of rounding decides, and what follows differs too.
    assert (rolled[0].f0 == rolled[1].f0).mean() > 0.8


def test_a_batch_of_clips_equals_each_alone():
    checkpoint, _, found = networks()
    frames, mode = tiny_run.frames(9, batch=3, seed=2), rollout.parse_mode("adaptive")
    # Values that make clips differ; the trained ones may always want the same.
    found.policy.values.kernel.assign(
        np.random.default_rng(0).normal(0, 1, found.policy.values.kernel.shape)
    )
    features = rollout.extract_all(checkpoint, frames)
    together = rollout.roll(checkpoint, features, 3, mode)
    for clip in range(3):
        features = rollout.extract_all(checkpoint, frames[clip : clip + 1])
        alone = rollout.roll(checkpoint, features, 1, mode)
        np.testing.assert_array_equal(alone.f0[0], together.f0[clip])
        np.testing.assert_allclose(alone.class_logits[0], together.class_logits[clip], atol=0.1)


@pytest.mark.parametrize("max_tau", [None, 2])
def test_the_runner_is_the_rollout(max_tau):
    loaded = Bundle.load(bundle())
    network, frames = BundleNetwork(loaded), tiny_run.frames(10, seed=4)
    mode = rollout.Mode(None, adaptive=True, max_tau=max_tau)
    rolled = rollout.roll(network, rollout.extract_all(network, frames), 1, mode)
    schedule = schedules.AdaptiveSchedule(Policy(loaded), max_tau)
    results = list(SyncRunner(InterleavedDetector(loaded), schedule).run(frames[0]))
    assert [r.extractor == "f0" for r in results] == rolled.f0[0].tolist()
    assert all(r.timings.schedule_ms > 0 for r in results)
    # A second video begins anew.
    again = SyncRunner(InterleavedDetector(loaded), schedule).run(frames[0])
    assert [r.extractor for r in again] == [r.extractor for r in results]


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (dict(mode="adaptive"), 0),
        (dict(mode="adaptive", max_tau=1), 0),
        (dict(mode="adaptive+async"), 0),
        (dict(mode="adaptive", tau=3), 2),
        (dict(mode="sync", max_tau=3), 2),
    ],
)
def test_detect(flags, code, tmp_path, capsys):
    import cv2

    folder = tmp_path / "video"
    folder.mkdir()
    for number, frame in enumerate(tiny_run.frames(6)[0]):
        cv2.imwrite(str(folder / f"{number}.png"), frame)
    output = tmp_path / "found.jsonl"
    options = dict(bundle=bundle(), video=folder, json=output, **flags)
    assert tiny_run.program("memvid_tf.detect", **options) == code
    if code:
        assert "tau" in capsys.readouterr().err
        return
    extractors = [json.loads(line)["extractor"] for line in output.read_text().splitlines()]
    assert len(extractors) == 6
    if flags.get("max_tau") == 1:
        assert all("f0" in pair for pair in zip(extractors, extractors[1:]))


def test_a_bundle_without_a_policy_says_so(tmp_path, capsys):
    options = dict(bundle=tiny_run.bundle("int8"), video=tmp_path, mode="adaptive")
    (tmp_path / "x.png").write_bytes(b"")
    assert tiny_run.program("memvid_tf.detect", **options) == 2
    network = BundleNetwork(Bundle.load(tiny_run.bundle("int8")))
    with pytest.raises(UserError, match="need a policy"):
        features = rollout.extract_all(network, tiny_run.frames(2))
        rollout.roll(network, features, 1, rollout.parse_mode("adaptive"))


def test_evaluate_writes_shares_and_streams(tmp_path):
    output = tmp_path / "result.json"
    modes = "f0,2,adaptive,random50"
    assert (
        tiny_run.program("memvid_tf.evaluate", model_dir=policy_run(), modes=modes, output=output)
        == 0
    )
    found = json.loads(output.read_text())["modes"]
    assert found["f0"]["f0_share"] == 1.0 and "f0_frames" not in found["f0"]
    # f0 on frames 0, 3 and 6 of 7.
    assert found["2"]["f0_share"] == pytest.approx(3 / 7)
    info = found["adaptive"]
    frames = [len(clip.split()) for clip in info["f0_frames"]]
    assert len(frames) == tiny_run.TEST_CLIPS and min(frames) >= 1
    assert info["f0_share"] == pytest.approx(sum(frames) / (7 * tiny_run.TEST_CLIPS))

    host = host_file(tmp_path)
    options = dict(streaming=True, latency=host, fps=20, output=output)
    assert (
        tiny_run.program(
            "memvid_tf.evaluate", bundle=bundle(), modes="f0,adaptive,async2", **options
        )
        == 0
    )
    found = json.loads(output.read_text())
    assert found["streaming"]["fps"] == 20 and set(found["modes"]) == {"f0", "adaptive", "async2"}
    # Less than 10 ms a frame, with the policy too: every frame of 50 ms is processed.
    assert found["modes"]["f0"]["processed_share"] == 1.0


def test_whole_clips_are_validated_as_they_are_evaluated(tmp_path):
    found = trained.load(policy_run())
    batches = clips.clip_dataset(found.params.task.validation_data).as_numpy_iterator()
    network = CheckpointNetwork(found.model, found.policy)
    from memvid_tf.evaluation import scoring
    from memvid_tf.runtime.manifest import BoxCoder

    result = scoring.evaluate(
        network, batches, [rollout.parse_mode("adaptive")], tiny_run.LABELS, BoxCoder(10, 10, 5, 5)
    )["adaptive"]
    with open(os.path.join(policy_run(), training.LOG_FILE)) as file:
        log = file.read()
    assert f"'f0_share': {result.f0_share}"[:20] in log
