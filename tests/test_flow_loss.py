"""The flow that tracked boxes teach, against loops over the places of a map and over time."""

import numpy as np
import pytest
import reference
import tensorflow as tf
import tiny_run
from official.core import task_factory

from memvid_tf.detection.flow_loss import flow_loss, targets
from memvid_tf.errors import UserError
from memvid_tf.tasks import detection, objectives

MAP = (5, 8)


def boxes_at_random(random, *shape):
    corner, size = random.uniform(-0.1, 0.8, [*shape, 2]), random.uniform(0.2, 0.5, [*shape, 2])
    return np.concatenate([corner, corner + size], -1).astype(np.float32)


def expected(now, tracks_now, key, tracks_key, size=MAP):
    flow, known = np.zeros([2, *size, 2]), np.zeros([2, *size])
    for b, i, j in np.ndindex(2, *size):
        place = np.array([(i + 0.5) / size[0], (j + 0.5) / size[1]])
        here = [
            n
            for n, track in enumerate(tracks_now[b])
            if track >= 0 and np.all(now[b, n, :2] <= place) and np.all(place <= now[b, n, 2:])
        ]
        if len(here) != 1:
            continue
        [n] = here
        for m, track in enumerate(tracks_key[b]):
            if track == tracks_now[b, n]:
                way = (key[b, m, :2] + key[b, m, 2:] - now[b, n, :2] - now[b, n, 2:]) / 2
                flow[b, i, j], known[b, i, j] = way * size, 1
    return flow, known


def test_places_of_one_object_point_to_where_it_was():
    random = np.random.default_rng(0)
    tracks_now = np.array([[4, 7, -1], [2, 9, 5]], np.int32)  # 9 is new, and -1 is nothing
    tracks_key = np.array([[7, -1, 4, -1], [5, 2, 3, -1]], np.int32)
    now, key = boxes_at_random(random, 2, 3), boxes_at_random(random, 2, 4)
    flow, known = targets(now, tracks_now, key, tracks_key, MAP)
    wanted_flow, wanted_known = expected(now, tracks_now, key, tracks_key)
    np.testing.assert_array_equal(known, wanted_known)
    np.testing.assert_allclose(flow, wanted_flow, rtol=1e-5, atol=1e-5)
    assert 5 < wanted_known.sum() < wanted_known.size / 2 and np.abs(wanted_flow).max() > 1


def test_the_loss_is_the_mean_distance_where_the_flow_is_known():
    random = np.random.default_rng(1)
    flow, wanted = random.uniform(-3, 3, [2, 2, *MAP, 2]).astype(np.float32)
    known = (random.uniform(size=[2, *MAP]) < 0.3).astype(np.float32)
    places = np.abs(flow - np.clip(wanted, -2, 2)).sum(-1)[known > 0]
    assert float(flow_loss(flow, wanted, known, 2.0)) == pytest.approx(places.mean(), rel=1e-5)
    assert float(flow_loss(flow, wanted, 0 * known, 2.0)) == 0.0


def task(weight):
    model = dict(cell="flow_guided", backbone="single", maps=1)
    changes = {f"task__model__{key}": value for key, value in model.items()}
    return task_factory.get_task(tiny_run.params(**changes, task__flow_weight=weight).task)


def test_each_frame_of_f1_is_compared_with_its_key_frame():
    steps, random, seed = 6, np.random.default_rng(2), 5
    guided = task(2.0)
    config, model = guided.task_config, guided.build_model()
    reference.randomise(model.variables, random)
    model.norm.frozen.assign(True)  # statistics of a batch would depend on how it is put together
    inputs = {
        "frames": tiny_run.frames(steps, batch=2),
        "boxes": boxes_at_random(random, 2, steps, 2),
        "classes": random.integers(1, 5, [2, steps, 2]).astype(np.int32),
        "tracks": np.stack([random.permutation(3)[:2] for _ in range(2 * steps)]).reshape(2, -1, 2),
    }
    inputs["tracks"] = inputs["tracks"].astype(np.int32)
    f0_steps, _ = detection.sample_schedule(
        steps, config.f0_probability, [config.seed, seed], f0_first=True
    )
    assert 1 < len(f0_steps) < steps - 1
    state, key, distances = model.initial_state(2), None, []
    for t in range(steps):
        extractor = "f0" if t in f0_steps.numpy() else "f1"
        images = model.preprocess(tf.constant(inputs["frames"][:, t]), extractor)
        features = model.extract(images, extractor)
        if extractor == "f0":
            _, state = model.step(features, state, "f0")
            key = t
            continue
        truth = (inputs[name][:, time] for time in (t, key) for name in ("boxes", "tracks"))
        way, known = expected(*truth, model.map_size)
        flow = model.memory.flow_of(features, state).numpy()
        distances += [*np.abs(flow - np.clip(way, -2, 2)).sum(-1)[known > 0]]
    batch = {name: tf.constant(value) for name, value in inputs.items()}
    losses = {}
    for one in (guided, task(0.0)):
        one.objective = objectives.make(one.task_config, model)
        losses[one.task_config.flow_weight], values = one.forward(batch, model, seed)
        assert set(values) == set(one.metric_names())
        if one is guided:
            # Float32 sums of other batches, through ten layers.
            assert float(values["flow_loss"]) == pytest.approx(np.mean(distances), rel=1e-3)
    assert float(losses[2.0] - losses[0.0]) == pytest.approx(2 * np.mean(distances), rel=1e-2)


def test_only_a_cell_with_a_flow_can_learn_it():
    params = tiny_run.params(task__flow_weight=1.0)
    with pytest.raises(UserError, match=r"flow_weight.* 1.0.*'flow_guided'"):
        detection.InterleavedTask.check_numbers(params.task)
