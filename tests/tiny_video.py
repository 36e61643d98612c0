"""Videos of a few small frames, each in a situation that phones, cameras and editors make."""

import struct
from fractions import Fraction

import av
import numpy as np

QUADRANTS = ((220, 30, 30), (30, 200, 30), (30, 30, 220), (200, 200, 40))


def quadrants(size=(48, 64)):
    """An image that shows how it is turned: red, green over blue, yellow."""
    image = np.empty((*size, 3), np.uint8)
    rows, columns = size[0] // 2, size[1] // 2
    for number, colour in enumerate(QUADRANTS):
        row, column = divmod(number, 2)
        image[row * rows :][:rows, column * columns :][:, :columns] = colour
    return image


def flat(count, size=(48, 64)):
    """Frames of one colour each: red grows, green falls, blue stays."""
    return [np.full((*size, 3), (5 * i, 255 - 5 * i, 128), np.uint8) for i in range(count)]


def encode(
    path, frames, times_ms, codec="mpeg4", tick_ms=1, hidden_ms=0, audio_s=0, cover=None, **options
):
    """Writes a video of frames with times.

    Args:
      path: its suffix says the container.
      frames: [H, W, 3] uint8 images, or `av.VideoFrame`s.
      times_ms: when each is shown.
      codec: FFmpeg's name of an encoder without delay.
      tick_ms: unit of the stream's clock; MPEG-2 and AVI know frames of one length only.
      hidden_ms: frames before it stay in the file and are not shown, as after a trim without
        encoding.
      audio_s: seconds of silence beside it, from 0.
      cover: an image that becomes the first stream, marked as nothing.
      options: of the encoder.
    """
    with av.open(str(path), "w") as container:
        still = None if cover is None else container.add_stream("mjpeg", rate=1)
        if still is not None:
            still.height, still.width = cover.shape[:2]
            still.pix_fmt = "yuvj420p"
        stream = container.add_stream(codec, rate=25, options={"qscale": "2", **options})
        stream.codec_context.time_base = stream.time_base = tick = Fraction(tick_ms, 1000)
        first = frames[0]
        stream.height, stream.width = (
            first.shape[:2] if isinstance(first, np.ndarray) else (first.height, first.width)
        )
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        sound = container.add_stream("mp2", rate=48000) if audio_s else None
        if still is not None:
            container.mux(still.encode(av.VideoFrame.from_ndarray(cover, format="rgb24")))
            container.mux(still.encode(None))
        packets = []
        for frame, time_ms in zip(frames, times_ms, strict=True):
            if isinstance(frame, np.ndarray):
                frame = av.VideoFrame.from_ndarray(frame, format="rgb24")
            frame.time_base, frame.pts = tick, time_ms // tick_ms
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for packet in packets:
            packet.pts -= hidden_ms // tick_ms
            packet.dts -= hidden_ms // tick_ms
            container.mux(packet)
        if sound is not None:
            for start in range(0, round(audio_s * 48000), 1152):
                silence = av.AudioFrame.from_ndarray(
                    np.zeros((1, 2304), np.int16), format="s16", layout="stereo"
                )
                silence.sample_rate, silence.pts = 48000, start
                container.mux(sound.encode(silence))
            container.mux(sound.encode(None))


def turn(path, matrix):
    """Writes a display matrix (a, b, c, d) into an mp4 file, as phones do.

    A pixel at (x, y) is shown at (a x + c y, b x + d y).
    """
    data = bytearray(path.read_bytes())
    a, b, c, d = (value << 16 for value in matrix)
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def woven(images):
    """Interlaced frames, top field first: each takes its even rows from one image and its odd rows
    from the next.

    Args:
      images: [H, W, 3] uint8, two for every frame.
    """
    graph = av.filter.Graph()
    height, width = images[0].shape[:2]
    source = graph.add_buffer(
        width=width, height=height, format="rgb24", time_base=Fraction(1, 1000)
    )
    graph.link_nodes(
        source, graph.add("scale", "interl=1"), graph.add("format", "yuv420p"),
        graph.add("setfield", "tff"), graph.add("buffersink"),
    ).configure()  # fmt: skip
    frames = []
    for top, bottom in zip(images[::2], images[1::2], strict=True):
        image = top.copy()
        image[1::2] = bottom[1::2]
        graph.vpush(av.VideoFrame.from_ndarray(image, format="rgb24"))
        frames.append(graph.vpull())
    return frames
