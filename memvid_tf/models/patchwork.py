"""Patchwork: a single-frame network that looks at one window of each frame (PW 3, figure 1).

The network is any whose `body` can be computed window by window and whose `tail` reads the maps of
the full frame: the detector of `models.single_frame` and the segmenter of `models.deeplab`. It is
not changed and has all the weights; this module runs it in its three parts:

    halo         = what the window of this frame needs of the strips      read
    outputs, own = body(window, halo)                                     convolutions alone
    strips, maps = strips and maps with the window's written in           write
    predictions  = tail(maps)

The maps hold, beside the cells of the body, what it returns: "before global ops" (PW 3.2). Which
cells there are is found by running the body once, so no architecture is described twice.

The first frame of a video is seen whole, which fills every memory.

Differs from the paper: see `layers.patchwork`. The predictors of the body's maps run in the window,
and the predictions of other places are those of the frame that last saw them.
"""

import dataclasses
from typing import NamedTuple, Protocol

import tensorflow as tf
from official.modeling import hyperparams

from memvid_tf.layers.fake_quant import quantize
from memvid_tf.layers.patchwork import (
    FullFrame,
    Strips,
    full_strips,
    offsets,
    read_strips,
    read_window,
    write_strips,
    write_window,
)
from memvid_tf.models import deeplab, single_frame
from memvid_tf.models.interleaved import QUANTIZATIONS
from memvid_tf.windows import StripLayout, Windows, same_padding

CONTEXTS = ("memory", "none")
STEM = dict(kernel_size=3, strides=2)  # the convolution of MobileNetV2 that reads the frame


@dataclasses.dataclass
class WindowConfig(hyperparams.Config):
    """The attention windows (PW 3.1).

    Attributes:
      slices: M, how many times each side of the frame is sliced.
      adjacent: N, how many adjacent slices form a side of a window.
      context: what a convolution reads around the window: "memory", the features that earlier
        windows left there, or "none", zeros: the network without the cell (PW table 2), of which
        nothing but the maps in front of the tail is remembered.
    """

    slices: int = 4
    adjacent: int = 2
    context: str = "memory"


class Network(Protocol):
    """What Patchwork asks of a single-frame network.

    Attributes:
      config: of the network.
      presence_from: the prediction that `presence` reads.
    """

    config: hyperparams.Config
    presence_from: str

    def body(self, images, training=False, surround=None) -> dict[str, tf.Tensor]:
        """Maps [B, h, w, C] of a frame or, given its surroundings, of a window of it."""

    def tail(self, maps, training=False) -> dict[str, tf.Tensor]:
        """Predictions from the maps of the full frame."""

    def presence(self, predictions, slices: int) -> tf.Tensor:
        """How sure the predictions are of something in each tile, [B, slices, slices, 1]."""


class State(NamedTuple):
    """What Patchwork remembers. Its order is the order of the exported tensors.

    Attributes:
      strips: [B, layout.memory, layout.chunk] float32, see `memvid_tf.windows.StripLayout`.
      maps: what `body` returned of every place when it last was in the window, [B, h, w, C] each.
    """

    strips: tf.Tensor
    maps: dict[str, tf.Tensor]


class Patchwork(tf.Module):
    """See the module.

    Attributes:
      network: the single-frame network, built; its variables are all there are.
      windows: the attention windows.
      context: see `WindowConfig`.
      layout: of the strips.
      map_sizes: height and width of the full frame's maps, by name.
      map_channels: their channels.
    """

    def __init__(self, network: Network, windows: Windows, context: str = "memory"):
        """Raises ValueError for windows that a layer's stride misses; names layer and offset."""
        super().__init__(name="patchwork")
        if context not in CONTEXTS:
            raise ValueError(f"windows.context {context!r} is not one of {CONTEXTS}")
        self.network, self.windows, self.context = network, windows, context
        self.image_size = tuple(network.config.image_size)
        windows.check("the frame", self.image_size, STEM["strides"])
        frame = tf.TensorSpec([1, *self.image_size, 3], tf.float32)
        full = FullFrame()
        tracing = tf.function(lambda x: network.body(x, surround=full), autograph=False)
        outputs = tracing.get_concrete_function(frame).structured_outputs
        self.layout = StripLayout(full.cells(windows), windows)
        self.map_sizes = {name: tuple(x.shape[1:3]) for name, x in outputs.items()}
        self.map_channels = {name: x.shape[-1] for name, x in outputs.items()}
        for name, size in self.map_sizes.items():
            windows.check(f"output {name!r} of the body", size)
        scheme = QUANTIZATIONS[network.config.quantization]
        # Every cell holds outputs of ReLU6; one range lets their strips share a tensor.
        self.strip_range = quantize(scheme, "relu6", name="strip_range")

    @property
    def frame_halo(self) -> list[tuple[int, int]]:
        """(before, after) of the window that is cut from the frame, of rows and of columns."""
        return [same_padding(side, **STEM) for side in self.image_size]

    @property
    def window_size(self) -> tuple[int, int]:
        """Height and width in pixels of the window that `body` takes, with its halo."""
        return tuple(
            self.windows.size(side) + sum(halo)
            for side, halo in zip(self.image_size, self.frame_halo)
        )

    def crop(self, images, action):
        """Windows of frames.

        Args:
          images: [B, H, W, 3] float32 frames, preprocessed.
          action: [B] int32, which window of each.

        Returns:
          [B, *window_size, 3]; zeros outside the frame.
        """
        size = [self.windows.size(side) for side in self.image_size]
        return read_window(
            images, offsets(self.windows, action, self.image_size), size, self.frame_halo
        )

    def start(self, images, training=False) -> tuple[dict[str, tf.Tensor], State]:
        """The first frame, seen whole: the plain network, whose maps fill the memory.

        Args:
          images: [B, H, W, 3] float32 frames, preprocessed.
          training: whether observers are updated.

        Returns:
          The predictions of the network's `tail` and the state.
        """
        maps, strips = self.full(images, training)
        return self.network.tail(maps, training), State(strips, maps)

    def full(self, images, training=False) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """The network's maps of a full frame, and the strips of its cells as `State` holds them."""
        full = FullFrame()
        maps = self.network.body(images, training, full)
        return maps, full_strips(full.tensors, self.layout)

    def body(self, window, halo, training=False) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """The network inside a window; it does not know which one.

        Args:
          window: [B, *window_size, 3] float32, what `crop` returned.
          halo: [B, layout.halo, layout.chunk] float32, what `read_strips` returned.
          training: whether observers are updated.

        Returns:
          The maps of the window and its own strips, [B, layout.own, layout.chunk].
        """
        surround = Strips(self.layout, self.strip_range(halo))
        maps = self.network.body(window, training, surround)
        return maps, surround.own()

    def step(
        self, images, action, state: State, training=False
    ) -> tuple[dict[str, tf.Tensor], State]:
        """One frame after the first.

        Args:
          images: [B, H, W, 3] float32 frames, preprocessed; only the windows are looked at.
          action: [B] int32, which window of each.
          state: the state before.
          training: whether observers are updated. Batch normalisation has to be frozen (PW 3.4).

        Returns:
          The predictions for the full frame, and the next state.
        """
        halo = read_strips(state.strips, action, self.layout)
        if self.context == "none":
            halo = tf.zeros_like(halo)
        outputs, own = self.body(self.crop(images, action), halo, training)
        strips = write_strips(state.strips, own, action, self.layout)
        maps = {
            name: write_window(
                state.maps[name], x, offsets(self.windows, action, self.map_sizes[name])
            )
            for name, x in outputs.items()
        }
        return self.network.tail(maps, training), State(strips, maps)


NETWORKS = {
    single_frame.SingleFrameConfig: single_frame.build,
    deeplab.SegmenterConfig: deeplab.build,
}


def build(network: hyperparams.Config, windows: WindowConfig) -> Patchwork:
    """A network with all its variables, and the windows it runs in.

    Args:
      network: of one of the kinds in `NETWORKS`.
      windows: the attention windows.

    Raises:
      ValueError: a configuration of which no network can be made.
    """
    if type(network) not in NETWORKS:
        known = sorted(kind.__name__ for kind in NETWORKS)
        raise ValueError(f"{type(network).__name__} is not one of {known}")
    sizes = Windows(windows.slices, windows.adjacent)
    return Patchwork(NETWORKS[type(network)](network), sizes, windows.context)
