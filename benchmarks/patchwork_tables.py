"""Costs of Patchwork beside those of PW table 1, counted in graphs traced from the networks."""

import dataclasses

import tensorflow as tf

from benchmarks.lfs_tables import Row, Section
from memvid_tf.evaluation.counting import Cost, count
from memvid_tf.models import deeplab, single_frame
from memvid_tf.models.attention import Attention, AttentionConfig
from memvid_tf.models.patchwork import Patchwork
from memvid_tf.windows import Windows

IMAGE_SIZE = (384, 384)  # PW 4
# PW table 1: MFLOPs, of which a multiply-add is two. Keyed by the share of the frame.
SINGLE_FRAME_MFLOPS = {4: 512, 16: 128}
WINDOWED_MFLOPS = (
    ((4, 2), "random", 541),
    ((2, 1), "scanning", 541),
    ((4, 2), "DQN", 543),
    ((4, 1), "random", 161),
    ((4, 1), "scanning", 161),
    ((4, 1), "DQN", 162),
)
SHARE = "the full frame's by the share, as PW 4 defines the resolution of 0.25"


def share(full: Cost, divisor: int) -> Cost:
    """What 1 / divisor of the frame's area costs a single-frame network."""
    return dataclasses.replace(full, multiply_adds=round(full.multiply_adds / divisor))


def parts(model: Patchwork) -> tuple[Cost, Cost]:
    """Body and tail of a step."""
    layout, network = model.layout, model.network
    body = count(
        model.body,
        tf.TensorSpec([1, *model.window_size, 3]),
        tf.TensorSpec([1, layout.halo, layout.chunk]),
    )
    maps = {
        name: tf.TensorSpec([1, *model.map_sizes[name], channels])
        for name, channels in model.map_channels.items()
    }
    return body, count(network.tail, maps)


def attention(model: Patchwork) -> Cost:
    """The attention network."""
    slices = model.windows.slices
    presence = tf.TensorSpec([1, slices, slices, 1])
    history = tf.TensorSpec([1, model.windows.count])
    return count(Attention(AttentionConfig(), model.windows), presence, history)


def table_1() -> Section:
    """PW table 1: single-frame and windowed detectors."""
    network = single_frame.build(single_frame.SingleFrameConfig(image_size=IMAGE_SIZE))
    full = count(network, tf.TensorSpec([1, *IMAGE_SIZE, 3], tf.uint8))
    rows = [Row("single-frame, full", cost=full)]
    for divisor, mflops in SINGLE_FRAME_MFLOPS.items():
        name = f"single-frame, 1/{divisor}"
        rows.append(Row(name, (mflops / 2, None), share(full, divisor), SHARE))
    models, costs = {}, {}
    for windows, policy, mflops in WINDOWED_MFLOPS:
        if windows not in models:
            models[windows] = Patchwork(network, Windows(*windows))
            costs[windows] = parts(models[windows])
        body, tail = costs[windows]
        cost, note = body + tail, f"{tail.multiply_adds / 1e6:.2f} in the tail, on the full frame"
        if policy == "DQN":
            decision = attention(models[windows])
            cost += decision
            note += f"; {decision.multiply_adds / 1e6:.2f} in the attention network"
        slices, adjacent = windows
        rows.append(Row(f"M = {slices}, N = {adjacent}, {policy}", (mflops / 2, None), cost, note))
    return Section(
        "PW table 1: detection",
        "MobileNetV2-SSDLite, α = 1. The paper's MFLOPs are halved: a multiply-add is two.",
        rows,
    )


def segmentation() -> Section:
    """The segmenter, whose costs PW does not print."""
    network = deeplab.build(deeplab.SegmenterConfig(image_size=IMAGE_SIZE))
    rows = [
        Row("segmenter, full", cost=count(network, tf.TensorSpec([1, *IMAGE_SIZE, 3], tf.uint8)))
    ]
    for slices, adjacent in ((4, 2), (4, 1)):
        body, tail = parts(Patchwork(network, Windows(slices, adjacent)))
        rows.append(Row(f"segmenter, M = {slices}, N = {adjacent}", cost=body + tail))
    return Section("Patchwork: segmentation", "PW prints no numbers for it.", rows)
