"""The detector: unrolled equals streamed, each extractor runs on its own frames alone."""

import dataclasses
import re

import cv2
import numpy as np
import pytest
import reference
import tensorflow as tf

import memvid_tf  # noqa: F401  (before TensorFlow)
from memvid_tf.layers.conv_lstm import State
from memvid_tf.layers.flow import GUIDED
from memvid_tf.layers.recurrent import RIVALS
from memvid_tf.models import interleaved
from memvid_tf.models.interleaved import AnchorConfig, InterleavedConfig, InterleavedDetector
from memvid_tf.models.mobilenet_v2 import MobileNetV2

SIZE = (48, 32)
STEPS = 5


def config(**changes):
    fields = dict(
        num_classes=3,
        image_size=SIZE,
        backbone="tiny",
        depth_multiplier_f0=0.4,
        depth_multiplier_f1=0.25,
        min_depth=8,
        state_channels=8,
        groups=2,
        maps=2,
        head_depth=16,
        norm_momentum=0.9,
        anchors=AnchorConfig(reduce_lowest=True),
    )
    return InterleavedConfig(**{**fields, **changes})


def network(seed=0, **changes):
    model = interleaved.build(config(**changes))
    reference.randomise(model.variables, np.random.default_rng(seed))
    return model


@pytest.fixture(scope="module", params=["factored", "paper"])
def model(request):
    return network(cell=request.param)


@pytest.fixture(scope="module")
def factored():
    return network()


def clip(seed, batch=2, steps=STEPS):
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, [batch, steps, SIZE[0] // 4, SIZE[1] // 4, 3])
    fine = coarse.repeat(4, 2).repeat(4, 3) + random.integers(-30, 30, [batch, steps, *SIZE, 3])
    return np.clip(fine, 0, 255).astype(np.uint8)


def stream(model, frames, f0_steps):
    """One frame after another; only f0 writes the state (LFS 3.2)."""
    state, results = model.initial_state(len(frames)), []
    for t in range(frames.shape[1]):
        extractor = "f0" if t in f0_steps else "f1"
        images = model.preprocess(tf.constant(frames[:, t]), extractor)
        output, after = model.step(model.extract(images, extractor), state, extractor)
        if extractor == "f0":
            state = after
        results.append(model.detect(output))
    return {name: np.stack([r[name] for r in results], 1) for name in results[0]}


def steps_of(f0_steps, steps=STEPS):
    f1_steps = [t for t in range(steps) if t not in f0_steps]
    return tf.constant(f0_steps, tf.int32), tf.constant(f1_steps, tf.int32)


# Twenty layers and up to five steps of the memory in float32, in batches of other sizes.
FLOAT = dict(rtol=2e-3, atol=2e-4)

SCHEDULES = [[0], [0, 3], [2], [1, 2, 4], [4], [0, 1, 2, 3, 4], []]


@pytest.mark.parametrize("f0_steps", SCHEDULES, ids=str)
def test_the_unrolled_call_equals_streaming(model, f0_steps):
    unrolls_as_it_streams(model, f0_steps)


@pytest.mark.parametrize("cell", [*RIVALS, *GUIDED])
def test_a_network_with_a_rival_unrolls_as_it_streams(cell):
    model = network(cell=cell)
    for f0_steps in ([0, 3], [2]):
        unrolls_as_it_streams(model, f0_steps)


def unrolls_as_it_streams(model, f0_steps):
    frames = clip(1)
    unrolled = model(tf.constant(frames), *steps_of(f0_steps))
    streamed = stream(model, frames, f0_steps)
    assert list(unrolled) == ["box_encodings", "class_logits"]
    for name, expected in streamed.items():
        np.testing.assert_allclose(unrolled[name], expected, **FLOAT)
        # Frames differ, and so would any other order of them.
        assert np.abs(expected[:, 1:] - expected[:, :-1]).mean() > 0.01


def test_the_memory_matters(factored):
    """Streaming without keeping the state gives something else, so the equality above has teeth."""
    frames = clip(1)
    kept = stream(factored, frames, [0, 3])
    for other in ([0], [3], [0, 2, 3]):
        changed = stream(factored, frames, other)["class_logits"] - kept["class_logits"]
        assert np.abs(changed[:, 4]).max() > 0.01


def test_the_default_schedule_is_f0_once_then_f1(factored):
    frames = clip(2)
    default, explicit = factored(tf.constant(frames)), factored(tf.constant(frames), *steps_of([0]))
    for name in default:
        np.testing.assert_array_equal(default[name], explicit[name])


def test_a_graph_takes_schedules_of_any_length(factored):
    signature = [
        tf.TensorSpec([None, STEPS, *SIZE, 3], tf.uint8),
        tf.TensorSpec([None], tf.int32),
        tf.TensorSpec([None], tf.int32),
    ]
    graph = tf.function(lambda *inputs: factored(*inputs), signature)
    for f0_steps in ([0, 3], [2], [0, 1, 2, 4]):
        frames = clip(3, batch=len(f0_steps))
        out = graph(tf.constant(frames), *steps_of(f0_steps))
        for name, expected in stream(factored, frames, f0_steps).items():
            np.testing.assert_allclose(out[name], expected, **FLOAT)
    static = graph.get_concrete_function().structured_outputs
    assert static["box_encodings"].shape[2:] == [len(factored.anchors), 4]


@pytest.mark.parametrize("f0_steps", [[0], [1, 3], [0, 1, 2, 4]], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_each_extractor_computes_its_own_frames_alone(factored, monkeypatch, f0_steps, training):
    seen = {}
    call = MobileNetV2.call

    def counting(self, x, training=False):
        seen.setdefault(self.name, []).append(tuple(x.shape))
        return call(self, x, training=training)

    for extractor in factored.extractors.values():
        monkeypatch.setattr(extractor, "call", counting.__get__(extractor))
    batch, n0 = 3, len(f0_steps)
    factored(tf.constant(clip(4, batch)), *steps_of(f0_steps), training=training)
    assert seen == {
        "f0": [(n0 * batch, 48, 32, 3)],
        "f1": [((STEPS - n0) * batch, 24, 16, 3)],
    }


def test_an_extractor_sees_the_frames_of_its_steps(factored, monkeypatch):
    frames, seen = clip(5), {}
    extract = factored.extract

    def recording(images, extractor, training=False):
        seen[extractor] = images.numpy()
        return extract(images, extractor, training)

    monkeypatch.setattr(factored, "extract", recording)
    factored(tf.constant(frames), *steps_of([1, 3]))
    for extractor, steps in (("f0", [1, 3]), ("f1", [0, 2, 4])):
        expected = [factored.preprocess(frames[:, t], extractor) for t in steps]
        np.testing.assert_array_equal(seen[extractor], np.concatenate(expected))


def gradient(model, frames, f0_steps, time, extractor):
    """Largest gradient of an extractor's weights from the loss on one frame."""
    with tf.GradientTape() as tape:
        out = model(tf.constant(frames), *steps_of(f0_steps), training=True)
        loss = tf.reduce_sum(out["class_logits"][:, time] ** 2)
    weights = model.extractors[extractor].trainable_variables
    gradients = tape.gradient(loss, weights, unconnected_gradients="zero")
    return max(float(tf.reduce_max(tf.abs(g))) for g in gradients)


def test_gradients_flow_through_the_memory_from_f1_to_f0_but_not_back():
    model = network(seed=1)
    # Frozen, since batch statistics would connect all frames of an extractor.
    model.norm.frozen.assign(True)
    frames = clip(6)
    assert gradient(model, frames, [1], 3, "f0") > 1e-4  # a later frame of f1 reads f0's state
    assert gradient(model, frames, [1], 0, "f0") == 0.0  # an earlier one does not
    assert gradient(model, frames, [1, 3], 3, "f0") > 1e-4
    assert gradient(model, frames, [1, 3], 3, "f1") == 0.0  # f1 never writes the state


@pytest.mark.parametrize("cell", ["factored", *RIVALS, *GUIDED])
def test_training_moves_every_statistic_and_trains_every_weight(cell):
    model = network(seed=2, cell=cell)
    before = {v.name: v.numpy() for v in model.non_trainable_variables}
    with tf.GradientTape() as tape:
        out = model(tf.constant(clip(7)), *steps_of([1, 3]), training=True)
        loss = sum(tf.reduce_sum(x**2) for x in out.values())
    weights = model.trainable_variables
    for variable, g in zip(weights, tape.gradient(loss, weights)):
        assert g is not None and np.all(np.isfinite(g)) and np.any(g), variable.name
    for variable in model.non_trainable_variables:
        if variable is not model.norm.frozen:
            assert np.any(variable.numpy() != before[variable.name]), variable.name


def test_building_makes_all_variables():
    model = interleaved.build(config(quantization="int8"))
    names = [v.name for v in model.variables]
    frames = clip(8)
    model(tf.constant(frames), *steps_of([1, 3]), training=True)
    stream(model, frames, [0, 2])
    assert [v.name for v in model.variables] == names


@pytest.mark.parametrize("cell", ["factored", "paper", "conv_gru"])
def test_the_quantized_network_unrolls_as_it_streams(cell):
    model = network(seed=3, quantization="int8", cell=cell)
    frames = clip(9)
    for _ in range(3):
        model(tf.constant(frames), *steps_of([0, 3]), training=True)
    unrolled = model(tf.constant(frames), *steps_of([0, 3]))
    for name, expected in stream(model, frames, [0, 3]).items():
        # Batches of another size add in another order; where that crosses a rounding threshold,
        # later layers see a step of another one. Most predictions stay on their grid point.
        low, high = expected.min(), expected.max()
        error = np.abs(unrolled[name] - expected) / ((high - low) / 255)
        assert np.mean(error > 0.5) < 0.05 and np.mean(error) < 0.2


def test_the_states_of_the_quantized_network_are_on_one_grid():
    model = network(seed=4, quantization="int8")
    frames = tf.constant(clip(10)[:, 0])
    state = model.initial_state(2)
    features = model.extract(model.preprocess(frames, "f0"), "f0")
    for _ in range(3):
        _, state = model.step(features, state, "f0")
    assert isinstance(state, State)
    for part in state:
        steps = part.numpy() * 255 / 6
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
        assert len(np.unique(np.round(steps))) > 5


@pytest.mark.parametrize("shrink", [1, 2, 4])
def test_f1_sees_the_box_mean_rounded_half_up(shrink):
    # Only `preprocess` is of interest; the network could not have these sizes.
    model = InterleavedDetector(config())
    model.config = dataclasses.replace(model.config, shrink=shrink)
    frames = np.random.default_rng(11).integers(0, 256, [3, *SIZE, 3], np.uint8)
    height, width = SIZE[0] // shrink, SIZE[1] // shrink
    expected = np.zeros([3, height, width, 3])
    for b, i, j, c in np.ndindex(3, height, width, 3):
        box = frames[b, i * shrink : (i + 1) * shrink, j * shrink : (j + 1) * shrink, c]
        expected[b, i, j, c] = (2 * int(box.astype(int).sum()) + box.size) // (2 * box.size)
    out = model.preprocess(tf.constant(frames), "f1").numpy()
    np.testing.assert_array_equal(out, (expected / 128 - 1).astype(np.float32))


def test_f1_sees_what_opencv_shrinks(factored):
    frames = np.random.default_rng(12).integers(0, 256, [4, *SIZE, 3], np.uint8)
    # All sums of four pixels modulo 4 occur, halves among them.
    sums = frames.reshape(4, SIZE[0] // 2, 2, SIZE[1] // 2, 2, 3).sum((2, 4))
    assert set(np.unique(sums % 4)) == {0, 1, 2, 3}
    out = factored.preprocess(tf.constant(frames), "f1").numpy()
    for frame, shrunk in zip(frames, out):
        area = cv2.resize(frame, SIZE[::-1], interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(area, frame)
        area = cv2.resize(frame, (SIZE[1] // 2, SIZE[0] // 2), interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal((shrunk + 1) * 128, area)


def test_pixels_become_minus_1_to_127_128ths(factored):
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    out = factored.preprocess(tf.constant(pixels), "f0").numpy()
    assert out.min() == -1.0 and out.max() == 127 / 128
    np.testing.assert_array_equal(out * 128, pixels.astype(int) - 128)


def test_every_anchor_has_a_prediction(factored):
    out = factored(tf.constant(clip(13)))
    # Maps of 3×2 with three anchors and of 2×1 with four.
    assert factored.map_size == (3, 2) and factored.anchors.shape == (3 * 6 + 4 * 2, 4)
    assert out["box_encodings"].shape == (2, STEPS, 26, 4)
    assert out["class_logits"].shape == (2, STEPS, 26, 4)
    centers = np.unique(factored.anchors[:18, :2], axis=0)
    np.testing.assert_allclose(
        centers, [[y, x] for y in (1 / 6, 0.5, 5 / 6) for x in (0.25, 0.75)], rtol=1e-6
    )


def test_sizes_of_frames(factored):
    assert factored.frame_size("f0") == (48, 32) and factored.frame_size("f1") == (24, 16)
    with pytest.raises(ValueError, match="'policy' is not one of"):
        factored.frame_size("policy")


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(cell="lstm"), "model.cell: 'lstm' is not one of ['bottleneck_conv_lstm', "),
        (dict(backbone="v3"), "model.backbone: 'v3' is not one of ["),
        (dict(quantization="int4"), "model.quantization: 'int4' is not one of ['int8', 'none']"),
        (dict(image_size=(33, 32)), "image_size (33, 32) is not a multiple of model.shrink 2"),
        (dict(image_size=(32, 47)), "image_size (32, 47) is not a multiple of model.shrink 2"),
        (dict(shrink=1), "(6, 4) for f1; they must be equal"),
        (dict(shrink=4), "(2, 1) for f1; they must be equal"),
        (dict(groups=3), "8 state channels cannot be divided into 3 groups"),
        (dict(maps=4), "4 feature maps do not fit a 3×2 map"),
        (dict(norm_momentum=1.0), "momentum 1.0 is not in [0, 1)"),
        (dict(image_size=(48,)), "model.image_size (48,)"),
        (dict(image_size=(48, 0)), "model.image_size (48, 0)"),
        (dict(shrink=0), "model.shrink 0"),
        (dict(groups=0), "model.groups 0"),
        (dict(maps=0), "model.maps 0"),
        (dict(num_classes=0), "model.num_classes 0"),
        (dict(state_channels=-8), "model.state_channels -8"),
        (dict(head_depth=1), "model.head_depth 1"),
        (dict(min_depth=0), "model.min_depth 0"),
        (dict(depth_multiplier_f0=0.0), "model.depth_multiplier_f0 0.0"),
        (dict(depth_multiplier_f1=-1.0), "model.depth_multiplier_f1 -1.0"),
        (dict(anchors=AnchorConfig(min_scale=0.0)), "min_scale 0.0"),
        (dict(anchors=AnchorConfig(aspect_ratios=(1.0, 0.0))), "aspect_ratios (1.0, 0.0)"),
        (dict(anchors=AnchorConfig(aspect_ratios=(), interpolated=False)), "aspect_ratios ()"),
    ],
    ids=str,
)
def test_a_configuration_that_makes_no_network_is_refused(changes, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        InterleavedDetector(config(**changes))


def test_an_unknown_extractor_is_refused(factored):
    frames = tf.constant(clip(14)[:, 0])
    for call in (factored.preprocess, factored.extract):
        with pytest.raises(ValueError, match="'f2' is not one of"):
            call(frames, "f2")
