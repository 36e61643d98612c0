"""The memory-guided interleaved detector (LFS 3.1, figure 2).

A large extractor f0 and a small one f1 take turns on the frames. What they see meets in one memory,
a grouped convolutional LSTM, and SSDLite predicts from the memory's output on every frame. Only f0
writes to the memory (LFS 3.2). The cells that LFS table 1 compares it with can take its place, and
so can the flow-guided features of LFS table 2.

Differs from the paper: frames are scaled to [-1, 127/128], not [-1, 1], so that the int8 frame is
the uint8 frame with its top bit flipped. The last bottleneck of each backbone ends in ReLU6, as in
the predecessor's quantized networks.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras
from official.modeling import hyperparams

from memvid_tf.detection.anchors import AnchorSpec, make_anchors
from memvid_tf.layers.conv import BatchNorm
from memvid_tf.layers.conv_lstm import CELLS, EXTRACTORS, State, check_extractor
from memvid_tf.layers.fake_quant import Scheme, quantize
from memvid_tf.layers.flow import GUIDED, FlowState
from memvid_tf.layers.recurrent import RIVALS, HiddenState, SharedCell
from memvid_tf.models.mobilenet_v2 import BACKBONES, MobileNetV2, scaled
from memvid_tf.models.ssdlite import SSDLite, map_sizes


@dataclasses.dataclass
class AnchorConfig(hyperparams.Config):
    """See `detection.anchors.AnchorSpec`."""

    min_scale: float = 0.2
    max_scale: float = 0.95
    aspect_ratios: tuple[float, ...] = (1.0, 0.5, 2.0)
    interpolated: bool = True
    reduce_lowest: bool = False


@dataclasses.dataclass
class InterleavedConfig(hyperparams.Config):
    """The network. The defaults are paper scale.

    Attributes:
      num_classes: object classes, without the background (30 in ImageNet VID).
      image_size: height and width of f0's frame in pixels.
      shrink: side of f0's frame over side of f1's.
      backbone: a key of `mobilenet_v2.BACKBONES`.
      depth_multiplier_f0, depth_multiplier_f1: α of the extractors.
      min_depth: least number of channels of a backbone's layer; 8 gives the multiply-adds of f1
        in LFS table 2 within 2 %, 16, which the single-frame rows of that table need, misses by 19 %
        (benchmarks/results/costs.md).
      cell: the memory, a key of `conv_lstm.CELLS`, `recurrent.RIVALS` or `flow.GUIDED`. All can be
        exported but "paper", which has weights on h of its own for each extractor.
      state_channels: channels of each tensor of the state; of `flow.GUIDED` those of h.
      groups: groups of the memory; only those of `conv_lstm.CELLS` have any.
      maps: feature maps of SSDLite.
      head_depth: channels of every map at the predictor.
      anchors: the default boxes.
      norm_momentum: momentum of batch normalisation (.9997 in the predecessor).
      quantization: "none" for the float network, "int8" for simulated quantization.
    """

    num_classes: int = 30
    image_size: tuple[int, ...] = (320, 320)
    shrink: int = 2
    backbone: str = "mobilenet_v2"
    depth_multiplier_f0: float = 1.4
    depth_multiplier_f1: float = 0.35
    min_depth: int = 8
    cell: str = "factored"
    state_channels: int = 320
    groups: int = 4
    maps: int = 5
    head_depth: int = 256
    anchors: AnchorConfig = dataclasses.field(default_factory=AnchorConfig)
    norm_momentum: float = 0.9997
    quantization: str = "none"


QUANTIZATIONS = {"none": None, "int8": Scheme()}


def check(config: InterleavedConfig) -> None:
    """Raises ValueError naming a number of which no network can be made."""
    sides = tuple(config.image_size)
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"model.image_size {sides} is not a height and a width in pixels")
    at_least = dict(
        num_classes=1, shrink=1, min_depth=1, state_channels=1, groups=1, maps=1, head_depth=2
    )
    for field, least in at_least.items():
        if getattr(config, field) < least:
            raise ValueError(f"model.{field} {getattr(config, field)} is not at least {least}")
    for field in ("depth_multiplier_f0", "depth_multiplier_f1"):
        if getattr(config, field) <= 0:
            raise ValueError(f"model.{field} {getattr(config, field)} is not positive")


def chosen(field: str, value: str, table: dict):
    """The entry of a table that a configuration field names, or ValueError with the keys."""
    if value not in table:
        raise ValueError(f"{field}: {value!r} is not one of {sorted(table)}")
    return table[value]


class InterleavedDetector(tf_keras.Model):
    """f0, f1, memory and SSDLite, as separate steps and as one unrolled call.

    Attributes:
      anchors: [A, 4] float32 `ycenter, xcenter, height, width`.
    """

    def __init__(self, config: InterleavedConfig, **kwargs):
        """Raises ValueError where the configuration contradicts itself."""
        super().__init__(**kwargs)
        self.config = config
        check(config)
        scheme = chosen("model.quantization", config.quantization, QUANTIZATIONS)
        cell = chosen("model.cell", config.cell, CELLS | RIVALS | GUIDED)
        stages = chosen("model.backbone", config.backbone, BACKBONES)
        self.norm = BatchNorm(config.norm_momentum)
        # Both extractors quantize their frame with the range of the image, which is fixed.
        self.image_range = quantize(scheme, "image", name="image_range")
        self.extractors = {
            extractor: MobileNetV2(
                stages,
                depth_multiplier,
                self.norm,
                scheme,
                min_depth=config.min_depth,
                keep_last_stride=keep_last_stride,
                final_activation="relu6",
                name=extractor,
            )
            for extractor, depth_multiplier, keep_last_stride in (
                ("f0", config.depth_multiplier_f0, True),
                ("f1", config.depth_multiplier_f1, False),
            )
        }
        sizes = {e: self._map_size(e) for e in EXTRACTORS}
        if sizes["f0"] != sizes["f1"]:
            raise ValueError(
                f"model.image_size {tuple(config.image_size)} with model.shrink {config.shrink} "
                f"gives maps of {sizes['f0']} for f0 and {sizes['f1']} for f1; they must be equal "
                "(use sides that are multiples of 32 and shrink 2)"
            )
        self.map_size = sizes["f0"]
        depth = self.extractors["f0"].depth
        if config.cell in GUIDED:
            self.memory = cell(config.state_channels, depth, scheme, name="memory")
        elif config.cell in RIVALS:
            rival = cell(config.state_channels, scheme, name="cell")
            self.memory = SharedCell(rival, depth, scheme, name="memory")
        else:
            self.memory = cell(config.state_channels, config.groups, scheme, name="memory")
        spec = AnchorSpec(**config.anchors.as_dict())
        self.anchors = make_anchors(map_sizes(*self.map_size, config.maps), spec)
        self.head = SSDLite(
            [len(shapes) for shapes in spec.shapes(config.maps)],
            config.num_classes,
            config.head_depth,
            self.norm,
            scheme,
            name="head",
        )

    def frame_size(self, extractor: str) -> tuple[int, int]:
        """(height, width) in pixels of the frame that an extractor takes."""
        shrink = self.config.shrink if check_extractor(extractor) == "f1" else 1
        height, width = self.config.image_size
        if height % shrink or width % shrink:
            raise ValueError(
                f"model.image_size {(height, width)} is not a multiple of model.shrink {shrink}"
            )
        return height // shrink, width // shrink

    def _map_size(self, extractor):
        stride = self.extractors[extractor].stride
        return tuple(-(-side // stride) for side in self.frame_size(extractor))

    def preprocess(self, frames, extractor: str):
        """Scales frames to the input of an extractor.

        Args:
          frames: [B, H, W, 3] uint8 of `image_size`.
          extractor: "f0", or "f1" whose frame is the box mean of f0's, rounded half up.

        Returns:
          [B, h, w, 3] float32 in [-1, 127/128].
        """
        x = tf.cast(frames, tf.float32)
        if check_extractor(extractor) == "f1" and self.config.shrink > 1:
            shrink = self.config.shrink
            x = tf.floor(tf.nn.avg_pool2d(x, shrink, shrink, "VALID") + 0.5)
        return scaled(x)

    def extract(self, images, extractor: str, training=False):
        """Runs one extractor, up to the edge between its graph and the memory's.

        Args:
          images: [B, h, w, 3] float32, what `preprocess` returned for this extractor.
          extractor: "f0" or "f1".
          training: whether observers and batch statistics are updated.

        Returns:
          [B, H, W, C] float32 features of `map_size`.
        """
        x = self.image_range(images)
        x = self.extractors[check_extractor(extractor)](x, training=training)
        return self.memory.adapt(x, extractor, training=training)

    def initial_state(self, batch) -> State | HiddenState | FlowState:
        """The empty memory: zeros of `map_size`."""
        return self.memory.initial_state(batch, *self.map_size)

    def step(self, features, state, extractor: str, training=False):
        """One step of the memory; see `GroupedCell.call`. The caller decides which state to keep."""
        return self.memory(features, state, extractor, training=training)

    def detect(self, memory_output, training=False):
        """Predictions from the memory's output; see `SSDLite.call`."""
        return self.head(memory_output, training=training)

    def call(self, frames, f0_steps=None, f1_steps=None, training=False):
        """Runs a clip in which f0 sees some frames and f1 the others; see `remember`.

        Returns:
          As `SSDLite.call`, with shapes [B, T, A, ·].
        """
        found = self.remember(frames, f0_steps, f1_steps, training)
        predictions = self.detect(found.outputs, training)
        return {name: found.in_time(p) for name, p in predictions.items()}

    def remember(self, frames, f0_steps=None, f1_steps=None, training=False) -> "Recollection":
        """Runs extractors and memory over a clip.

        Each extractor runs on its own frames alone, all of them in one batch. Since f1 leaves the
        state as it is, only f0's steps follow one another; f1's are independent given the states.

        Args:
          frames: [B, T, H, W, 3] uint8.
          f0_steps: [n0] int32, ascending times at which f0 runs; by default 0.
          f1_steps: [n1] int32, the other times; by default all but 0. One of the two may be empty
            if its shape is static.
          training: whether observers and batch statistics are updated.
        """
        if f0_steps is None:
            f0_steps, f1_steps = tf.constant([0]), tf.range(1, frames.shape[1])
        batch = tf.shape(frames)[0]
        # As numbers that GPUs have a kernel for gathering of, which bytes are not.
        by_time = tf.cast(tf.transpose(frames, [1, 0, 2, 3, 4]), tf.float32)

        def extract(steps, extractor):
            chosen = tf.reshape(tf.gather(by_time, steps), [-1, *frames.shape[2:]])
            features = self.extract(self.preprocess(chosen, extractor), extractor, training)
            return tf.reshape(features, [-1, batch, *features.shape[1:]])

        outputs, features, read = [], None, None
        states = tf.nest.map_structure(lambda x: x[tf.newaxis], self.initial_state(batch))
        # Convolutions of an empty batch fail on CPUs (oneDNN gives the wrong shape).
        if f0_steps.shape[0] != 0:
            outputs0, states = self._roll(extract(f0_steps, "f0"), training)
            outputs.append(_merge(outputs0))
        if f1_steps.shape[0] != 0:
            # The state that a frame of f1 reads is the one after the last f0 before it.
            before = tf.cast(f0_steps[tf.newaxis] < f1_steps[:, tf.newaxis], tf.int32)
            index = tf.reduce_sum(before, 1)
            read = tf.nest.map_structure(lambda s: _merge(tf.gather(s, index)), states)
            features = _merge(extract(f1_steps, "f1"))
            outputs.append(self.step(features, read, "f1", training)[0])

        merged = tf.concat(outputs, 0)
        order = tf.argsort(tf.concat([f0_steps, f1_steps], 0))

        def in_time(p):
            p = tf.gather(tf.reshape(p, [-1, batch, *p.shape[1:]]), order)
            return tf.transpose(p, [1, 0, *range(2, len(p.shape))])

        return Recollection(merged, in_time, features, read)

    def _roll(self, features, training):
        """Runs the memory over f0's frames.

        Args:
          features: [n0, B, H, W, C] float32.
          training: whether observers are updated.

        Returns:
          Outputs [n0, B, H, W, C], and the states before the first and after each step: those of
          `initial_state` as [n0 + 1, B, H, W, S].
        """
        steps, batch = tf.shape(features)[0], tf.shape(features)[1]
        state = self.initial_state(batch)
        outputs = tf.TensorArray(features.dtype, steps)
        states = [tf.TensorArray(features.dtype, steps + 1).write(0, part) for part in state]

        def body(t, state, outputs, states):
            output, state = self.step(features[t], state, "f0", training)
            states = [array.write(t + 1, part) for array, part in zip(states, state)]
            return t + 1, state, outputs.write(t, output), states

        _, _, outputs, states = tf.while_loop(
            lambda t, *_: t < steps, body, (0, state, outputs, states)
        )
        return outputs.stack(), type(state)(*(array.stack() for array in states))


class Recollection(NamedTuple):
    """A clip that went through extractors and memory.

    Attributes:
      outputs: of the memory, [T·B, H, W, C] in the order in which they were computed.
      in_time: brings [T·B, ...] made of them into [B, T, ...], in the clip's order.
      f1_features: [n1·B, H, W, C] float32 of the frames of f1, frame by frame; None without any.
      f1_states: [n1·B, ...] each, the state that every one of them read.
    """

    outputs: tf.Tensor
    in_time: Callable[[tf.Tensor], tf.Tensor]
    f1_features: tf.Tensor | None
    f1_states: tuple | None


def _merge(x):
    """[T, B, ...] to [T·B, ...]."""
    return tf.reshape(x, [-1, *x.shape[2:]])


def build(config: InterleavedConfig) -> InterleavedDetector:
    """The network with all its variables, so that a checkpoint can be restored into it."""
    model = InterleavedDetector(config)
    frames = np.zeros([1, 2, *config.image_size, 3], np.uint8)
    model(tf.constant(frames))
    return model
