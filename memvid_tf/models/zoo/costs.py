"""What a network costs: multiply-adds and parameters of a frame, counted in the network itself."""

import pathlib
from typing import NamedTuple

import tensorflow as tf

from memvid_tf.evaluation.checkpoint_windows import CheckpointWindows
from memvid_tf.evaluation.counting import Cost, count
from memvid_tf.layers.conv_lstm import EXTRACTORS
from memvid_tf.models.attentive import AttentiveNetwork
from memvid_tf.models.interleaved import InterleavedConfig, InterleavedDetector
from memvid_tf.models.patchwork import NETWORKS
from memvid_tf.models.policy import Policy
from memvid_tf.models.zoo import Entry, config_path, headers
from memvid_tf.tasks import configuration, training  # noqa: F401  (registers the experiments)


class Row(NamedTuple):
    """What is counted, multiply-adds, and parameters where they are counted."""

    what: str
    multiply_adds: int
    parameters: int | None = None


def task(entry: Entry, config: str):
    """The task of a configuration of an entry: the header's command with the entry's settings."""
    command = headers.training_command(config_path(config))
    names = (pathlib.PurePath(name).stem for name in command.all("config_file"))
    files = [str(config_path(name)) for name in names]
    experiment = command.one("experiment", "interleaved")
    return configuration.load(experiment, files, ",".join(entry.settings_of(config))).task


def costs(entry: Entry, config: str = "") -> list[Row]:
    """Rows of one of an entry's two configurations, by default at paper scale. Takes seconds: the
    network is built and traced."""
    found = task(entry, config or entry.config)
    if isinstance(found.model, InterleavedConfig):
        return _interleaved(found.model, getattr(found, "policy", None))
    if not hasattr(found, "windows"):
        frame = tf.TensorSpec([1, *found.model.image_size, 3], tf.uint8)
        whole = count(NETWORKS[type(found.model)](found.model), frame)
        return [Row("a frame", whole.multiply_adds, whole.parameters)]
    model = AttentiveNetwork(found.model, found.windows, found.attention)
    counted = CheckpointWindows(model.patchwork, model.attention).costs
    return [
        Row("a frame seen whole", counted.full),
        Row("a window and the tail", counted.window),
        Row("attention", counted.attention),
    ]


def frame(model: InterleavedDetector, extractor: str) -> Cost:
    """All that runs on a frame which an extractor sees."""

    def run(image, state):
        features = model.extract(image, extractor)
        return model.detect(model.step(features, state, extractor)[0])

    image = tf.TensorSpec([1, *model.frame_size(extractor), 3])
    return count(run, image, _state(model))


def _state(model):
    return tf.nest.map_structure(tf.TensorSpec.from_tensor, model.initial_state(1))


def _interleaved(config, policy):
    model, rows = InterleavedDetector(config), []
    for extractor in EXTRACTORS:
        cost = frame(model, extractor)
        rows.append(Row(f"a frame of {extractor}", cost.multiply_adds, cost.parameters))
    if policy is not None:
        state = _state(model)
        cost = count(Policy(policy), state, state, tf.TensorSpec([1, policy.history]))
        rows.append(Row("the policy", cost.multiply_adds, cost.parameters))
    return rows
