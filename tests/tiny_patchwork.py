"""Small networks for the tests of Patchwork, and bundles of them, made once a process."""

import atexit
import functools
import os
import shutil
import tempfile

import numpy as np
import reference
import tensorflow as tf

from export import bundle, patchwork_bundle
from memvid_tf.models import deeplab, single_frame
from memvid_tf.models.patchwork import NETWORKS, Patchwork
from memvid_tf.runtime.bundle import Bundle
from memvid_tf.runtime.manifest import Checkpoint, PostSpec
from memvid_tf.windows import Windows

CLASSES = 3
# Sides of which M = 4 leaves whole tiles at every stride, and which differ.
SIZE = {"detector": (64, 128), "segmenter": (64, 32)}
KINDS = tuple(SIZE)


def config(kind, **fields):
    """Configuration of the "detector" or the "segmenter"."""
    common = dict(
        image_size=SIZE[kind],
        backbone="tiny",
        depth_multiplier=0.25,
        min_depth=8,
        norm_momentum=0.9,
    )
    if kind == "segmenter":
        return deeplab.SegmenterConfig(**{**common, "head_depth": 12, **fields})
    return single_frame.SingleFrameConfig(
        **{
            **common,
            "num_classes": CLASSES,
            "last_channels": 96,
            "extra_depths": (64, 48),
            **fields,
        }
    )


def network(kind, seed, **fields):
    """A network with random weights, whose ranges have been observed."""
    made = config(kind, **fields)
    model = NETWORKS[type(made)](made)
    reference.randomise(model.variables, np.random.default_rng(seed))
    ranges = [v for v in model.variables if v.name.split(":")[0].endswith(("_min", "_max"))]
    for variable in ranges:
        variable.assign(0.0)
    model.norm.frozen.assign(True)  # or the observers' pass would move the statistics
    if ranges:
        maps = model.body(images(kind, seed + 1000, 2), training=True)
        model.tail(maps, training=True)
    return model


def patchwork(kind, seed, slices, adjacent, **fields):
    """A network with random weights, in windows."""
    return Patchwork(network(kind, seed, **fields), Windows(slices, adjacent))


def images(kind, seed, batch):
    """[B, H, W, 3] float32 frames of blurred noise, on the grid of uint8 pixels."""
    height, width = SIZE[kind]
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, [batch, height // 8, width // 8, 3])
    fine = coarse.repeat(8, 1).repeat(8, 2) + random.integers(-30, 30, [batch, height, width, 3])
    return tf.constant(np.clip(fine, 0, 255) / 128 - 1, tf.float32)


EXPORTED = {"detector": ((4, 2), "int8"), "segmenter": ((2, 1), "float32")}
LABELS = {"detector": ("disc", "square", "star"), "segmenter": ("foreground",)}


@functools.cache
def exported(kind):
    """A network of `EXPORTED` and its bundle, loaded; its folder is read-only."""
    windows, precision = EXPORTED[kind]
    quantization = "int8" if precision == "int8" else "none"
    model = patchwork(kind, 0, *windows, quantization=quantization)
    folder = tempfile.mkdtemp(prefix="tiny_patchwork_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    source = bundle.Source({"tiny": kind}, LABELS[kind], Checkpoint("ckpt-3", 3))
    options = bundle.Options(precision=precision, post=PostSpec(0.2, 0.5, 20))
    path = os.path.join(folder, kind)
    patchwork_bundle.write(model, source, options, path)
    return model, Bundle.load(path)
