"""Videos, folders and their faults; what is written has its times, and is whole or absent."""

import http.server
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import tiny_video
from tiny_video import encode, flat, quadrants

from memvid_tf.runtime.annotate import annotate, draw_detections
from memvid_tf.runtime.decoding import Decoder
from memvid_tf.runtime.postprocess import Detections
from memvid_tf.runtime.runners import FrameResult, Timings
from memvid_tf.runtime.video import VideoError, VideoWriter, open_source

ROOT = Path(__file__).resolve().parents[1]
# A phone in the dark, then a screen where nothing moves.
TIMES_MS = (0, 33, 66, 300, 4967)
X264 = {"tune": "zerolatency", "x264-params": "log-level=none:scenecut=0"}


def write_video(path, frames, fps=25.0):
    with VideoWriter(path, fps) as writer:
        for index, frame in enumerate(frames):
            writer.write(frame, index / fps)


def read(spec, **options):
    """All images and times of a source."""
    with open_source(spec, **options) as source:
        frames = list(source)
    return [frame.image for frame in frames], [frame.time_s for frame in frames]


def read_until_fault(path):
    """The number of frames before a fault, and its message."""
    count = 0
    with pytest.raises(VideoError) as error, open_source(path) as source:
        for _ in source:
            count += 1
    return count, str(error.value)


def assert_alike(images, wanted):
    """Lossy, and colour goes through YUV; the order of channels, pixels and frames matters."""
    assert len(images) == len(wanted)
    for image, one in zip(images, wanted):
        assert image.shape == one.shape and image.dtype == np.uint8
        assert np.abs(image.astype(int) - one).mean() < 4


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("size", [(48, 64), (47, 65)])
def test_what_is_written_is_read(tmp_path, suffix, size):
    path = tmp_path / f"clip{suffix}"
    write_video(path, flat(12, size))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with open_source(path) as source:
        assert source.fps == 25.0 and source.frame_count == (12 if suffix == ".mp4" else None)
    images, times = read(path)
    assert_alike(images, flat(12, size))
    assert times == [index / 25 for index in range(12)]
    assert read(path, fps=10)[1] == [index / 10 for index in range(12)]


@pytest.mark.parametrize(("suffix", "tick_s"), [(".mp4", 1 / 90000), (".webm", 1e-3)])
def test_written_video_keeps_the_times(tmp_path, suffix, tick_s):
    path = tmp_path / f"clip{suffix}"
    times = [2 + 1001 / 30000, 2 + 2002 / 30000, 2.3, 7.25]
    with VideoWriter(path, 30.0) as writer:
        for frame, time_s in zip(flat(4), times):
            writer.write(frame, time_s)
    np.testing.assert_allclose(read(path)[1], times, rtol=0, atol=tick_s / 2 + 1e-9)
    with VideoWriter(path, 25.0) as writer:
        for frame, time_s in zip(flat(5), (0, 1, 1, 0.5, 0.54)):  # a clock that stands and jumps
            writer.write(frame, time_s)
    np.testing.assert_allclose(read(path)[1], [0, 1, 1.04, 1.08, 1.12], rtol=0, atol=1e-9)


def test_written_video_plays_in_a_browser(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, flat(3))
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name.removeprefix("lib"), context.pix_fmt) in (
            ("vp9", "yuv420p"), ("vpx-vp9", "yuv420p"),
        )  # fmt: skip
        assert (context.colorspace, context.color_range) == (1, 1)  # BT.709, limited


def test_a_failed_video_leaves_nothing(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"an older video")
    with pytest.raises(VideoError, match=r"a frame has shape \(48, 60, 3\), wanted \(48, 64, 3\)"):
        write_video(path, [*flat(3), *flat(1, (48, 60))])
    with pytest.raises(ZeroDivisionError):
        with VideoWriter(path, 25.0) as writer:
            writer.write(flat(1)[0], 0.0)
            assert len(list(tmp_path.iterdir())) == 2
            raise ZeroDivisionError
    with pytest.raises(VideoError, match="no frame was written"):
        write_video(path, [])
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"an older video"]
    with pytest.raises(VideoError, match=r"suffix '.avi' is not one of \['.mp4', '.webm'\]"):
        VideoWriter(tmp_path / "clip.avi", 25.0)
    with pytest.raises(VideoError, match="nowhere does not exist"):
        VideoWriter(tmp_path / "nowhere" / "clip.mp4", 25.0)
    for fps in (0, float("nan")):
        with pytest.raises(VideoError, match="fps is"):
            VideoWriter(path, fps)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("limit", [200, 3000, 40000])
def test_a_full_disk_is_said_and_loses_nothing(tmp_path, suffix, limit):
    """At once, at the end, in the middle: the file may grow to `limit` bytes."""
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(b"an older video")
    rng = np.random.default_rng(0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(VideoError, match="clip.* cannot be written: File too large"):
            write_video(path, (rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(60)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"an older video"]


def test_frames_that_never_reached_the_disk_are_missed(tmp_path, monkeypatch):
    """A disk may be full without a word: the writer reads what lies there."""
    path = tmp_path / "clip.mp4"
    whole = tmp_path / "whole.mp4"
    write_video(whole, flat(5))
    with pytest.raises(VideoError, match="clip.mp4: 5 of 6 frames reached the disk"):
        with VideoWriter(path, 25.0) as writer:
            for index, frame in enumerate(flat(6)):
                writer.write(frame, index / 25)
            close = writer._container.close

            def close_and_lose():
                close()
                Path(writer._temporary).write_bytes(whole.read_bytes())

            monkeypatch.setattr(writer, "_container", Closing(writer._container, close_and_lose))
    assert list(tmp_path.iterdir()) == [whole]


class Closing:
    """A container whose `close` does something else."""

    def __init__(self, container, close):
        self.mux, self.close = container.mux, close


VARIABLE = [
    ("mp4", "mpeg4", TIMES_MS), ("mkv", "mpeg4", TIMES_MS), ("webm", "libvpx-vp9", TIMES_MS),
    # AVI stores a gap as empty packets, of which none is a frame.
    ("avi", "mjpeg", (0, 40, 80, 320, 4960)), ("ts", "mpeg2video", (0, 40, 80, 320, 4960)),
]  # fmt: skip


@pytest.mark.parametrize(("suffix", "codec", "times_ms"), VARIABLE)
def test_frames_have_their_own_times(tmp_path, suffix, codec, times_ms):
    path = tmp_path / f"clip.{suffix}"
    encode(path, flat(5), times_ms, codec, tick_ms=40 if times_ms[1] == 40 else 1)
    images, times = read(path)
    assert_alike(images, flat(5))
    np.testing.assert_allclose(times, np.array(times_ms) / 1000, rtol=0, atol=1e-9)


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_what_an_edit_list_hides_is_not_shown(tmp_path, suffix):
    path = tmp_path / f"clip.{suffix}"
    encode(path, flat(6), range(0, 600, 100), hidden_ms=300)
    with open_source(path) as source:
        assert source.frame_count == 3
    images, times = read(path)
    assert_alike(images, flat(6)[3:])
    np.testing.assert_allclose(times, [0, 0.1, 0.2], rtol=0, atol=1e-9)


def test_streams_of_other_lengths_and_covers(tmp_path):
    encode(tmp_path / "late.mp4", flat(3), (2000, 2040, 2080), audio_s=0.5)
    encode(tmp_path / "longer.mkv", flat(3), (0, 40, 80), audio_s=1.0)
    encode(tmp_path / "cover.mkv", flat(3), (0, 40, 80), cover=quadrants((96, 128)))
    for name, start_s in (("late.mp4", 2.0), ("longer.mkv", 0.0), ("cover.mkv", 0.0)):
        images, times = read(tmp_path / name)
        assert_alike(images, flat(3))
        np.testing.assert_allclose(times, [start_s, start_s + 0.04, start_s + 0.08], atol=1e-9)


TURNS = {
    "as it is": ((1, 0, 0, 1), lambda image: image),
    "clockwise": ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
    "half": ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
    "counterclockwise": ((0, -1, 1, 0), lambda image: np.rot90(image)),
    "mirrored": ((-1, 0, 0, 1), np.fliplr),
    "upside down": ((1, 0, 0, -1), np.flipud),
    "transposed": ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
    "transposed and turned": ((0, -1, -1, 0), lambda i: np.rot90(i.transpose(1, 0, 2), 2)),
}


@pytest.mark.parametrize("turn", TURNS)
def test_frames_are_upright(tmp_path, turn):
    matrix, turned = TURNS[turn]
    path = tmp_path / "clip.mp4"
    encode(path, [quadrants()] * 2, (0, 40))
    tiny_video.turn(path, matrix)
    images, _ = read(path)
    assert_alike(images, [turned(quadrants())] * 2)
    assert images[0].flags.c_contiguous


def test_interlaced_frames_are_made_progressive(tmp_path):
    """A bar moves two pixels a field: woven fields make a comb of it."""
    fields = []
    for left in range(0, 32, 2):
        image = np.full((48, 64, 3), 40, np.uint8)
        image[:, left : left + 12] = 220
        fields.append(image)
    path = tmp_path / "clip.mp4"
    frames = tiny_video.woven(fields)
    encode(path, frames, range(0, 320, 40), "mpeg2video", tick_ms=40, flags="+ilme+ildct")
    images, times = read(path)
    assert_alike(images, fields[::2])
    np.testing.assert_allclose(times, np.arange(8) * 0.04, atol=1e-9)

    def comb(image):
        image = image.astype(int)
        return np.abs(2 * image[1:-1] - image[:-2] - image[2:]).mean()

    assert min(comb(frame.to_ndarray(format="rgb24")) for frame in frames) > 20
    assert max(comb(image) for image in images) < 1


def test_sizes_that_change_are_scaled_to_the_first(tmp_path):
    for name, size in (("a.ts", (48, 64)), ("b.ts", (96, 80))):
        encode(tmp_path / name, flat(3, size), (0, 40, 80), "libx264", **X264)
    both = tmp_path / "both.ts"
    both.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    images, times = read(both)
    assert_alike(images, flat(3) * 2)
    np.testing.assert_allclose(times, [0, 0.04, 0.08] * 2, atol=1e-9)  # the file's own clock


def test_names_pipes_and_urls(tmp_path, monkeypatch):
    names = ["12:30 50% #1.mp4", "clip_%03d.mp4", "späth 視頻 \"q\".mp4", "CLIP.MOV"]
    encode(tmp_path / "clip.mp4", flat(3), (0, 40, 80))
    data = (tmp_path / "clip.mp4").read_bytes()
    monkeypatch.chdir(tmp_path)
    for name in names:
        Path(name).write_bytes(data)
        assert_alike(read(name)[0], flat(3))
    encode("clip.mkv", flat(3), (0, 40, 80))
    os.mkfifo("pipe")
    whole = Path("clip.mkv").read_bytes()
    writer = threading.Thread(target=lambda: Path("pipe").write_bytes(whole))
    writer.start()
    assert_alike(read("pipe")[0], flat(3))
    writer.join()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    assert_alike(read(f"{address}/clip.mp4")[0], flat(3))
    with pytest.raises(VideoError, match=f"{address}/none.mp4' is not a video .*: .*404"):
        open_source(f"{address}/none.mp4")
    server.shutdown()
    server.server_close()
    with pytest.raises(VideoError, match="'rtsp://127.0.0.1:1/x' is not a video .*refused"):
        open_source("rtsp://127.0.0.1:1/x")


def test_an_interrupt_while_a_pipe_is_silent(tmp_path):
    """FFmpeg's callbacks would lose it, and the video would seem to be over."""
    encode(tmp_path / "clip.mkv", flat(40, (480, 640)), range(0, 1600, 40))
    whole = (tmp_path / "clip.mkv").read_bytes()
    for count in (100, len(whole) - 100):  # before the first frame, and among the last
        reader, writer = os.pipe()

        def fill_and_interrupt(count=count, writer=writer):
            os.write(writer, whole[:count])
            os.kill(os.getpid(), signal.SIGINT)

        threading.Timer(0.3, fill_and_interrupt).start()
        with os.fdopen(reader, "rb", buffering=0) as pipe, pytest.raises(KeyboardInterrupt):
            for _ in Decoder("a pipe", pipe):
                pass
        os.close(writer)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_standard_input(tmp_path):
    encode(tmp_path / "clip.mkv", flat(3), (0, 40, 80))
    code = (
        "from memvid_tf.runtime.video import open_source\n"
        "print([frame.time_s for frame in open_source('-')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdin=open(tmp_path / "clip.mkv"),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[0.0, 0.04, 0.08]"


def test_sources_that_are_none(tmp_path):
    for spec in (tmp_path / "nothing.mp4", ""):
        with pytest.raises(VideoError, match="no such file or folder"):
            open_source(spec)
    (tmp_path / "bad.mp4").write_bytes(b"")
    with pytest.raises(VideoError, match=r"bad.mp4' is empty \(0 bytes\)"):
        open_source(tmp_path / "bad.mp4")
    (tmp_path / "bad.mp4").write_bytes(b"no video at all" * 100)
    with pytest.raises(VideoError, match="bad.mp4' is not a video that FFmpeg can decode: "):
        open_source(tmp_path / "bad.mp4")
    encode(tmp_path / "bad.mp4", flat(3), (0, 40, 80))
    data = (tmp_path / "bad.mp4").read_bytes()
    (tmp_path / "bad.mp4").write_bytes(data[: data.index(b"moov") - 4])
    with pytest.raises(VideoError, match="bad.mp4' is not a video .*: moov atom not found"):
        open_source(tmp_path / "bad.mp4")
    with av.open(str(tmp_path / "bad.mp4"), "w") as container:
        sound = container.add_stream("mp2", rate=48000)
        silence = av.AudioFrame.from_ndarray(
            np.zeros((1, 2304), np.int16), format="s16", layout="stereo"
        )
        silence.sample_rate = 48000
        container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    with pytest.raises(VideoError, match="bad.mp4' holds no video stream"):
        open_source(tmp_path / "bad.mp4")
    (tmp_path / "bad.mp4").unlink()
    (tmp_path / "notes.txt").write_text("no frame")
    with pytest.raises(VideoError, match="holds no frames: no file ends in one of .*'.png'"):
        open_source(tmp_path)
    with pytest.raises(VideoError, match="'99' is not a camera of this machine"):
        open_source("99")


def noise(count):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(count)]


@pytest.mark.parametrize(("suffix", "cut"), [(".mp4", 0.5), (".webm", 0.6)])
def test_a_video_that_ends_early(tmp_path, suffix, cut):
    path = tmp_path / f"clip{suffix}"
    write_video(path, noise(30))
    whole = path.read_bytes()
    assert len(read(path)[0]) == 30
    path.write_bytes(whole[: int(len(whole) * cut)])
    seen, message = read_until_fault(path)
    assert 5 < seen < 30
    assert message == f"video {str(path)!r} is cut short: frame {seen} cannot be decoded"


def test_a_video_that_is_damaged_in_the_middle(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, noise(30))
    data = bytearray(path.read_bytes())
    middle = len(data) * 2 // 3
    data[middle : middle + 2000] = bytes(2000)
    path.write_bytes(data)
    seen, message = read_until_fault(path)
    assert 5 < seen < 30
    assert message == f"video {str(path)!r} is damaged: frame {seen} cannot be decoded"


def test_a_recording_that_begins_between_key_frames(tmp_path):
    """Nothing can be decoded before the first key frame, which is no damage."""
    path = tmp_path / "clip.ts"
    encode(path, flat(12), range(0, 480, 40), "libx264", g="6", **X264)
    with av.open(str(path)) as container:
        second = [packet.pos for packet in container.demux(video=0) if packet.size][2]
    path.write_bytes(path.read_bytes()[second:])
    images, times = read(path)
    assert_alike(images, flat(12)[6:])


def test_a_folder_in_natural_order(tmp_path):
    for number in (1, 2, 10, 9, 100):
        image = np.full((6, 8, 3), (number, 2 * number, 200), np.uint8)
        name = f"frame{number}.{'PNG' if number == 9 else 'png'}"
        cv2.imwrite(str(tmp_path / name), image[..., ::-1])
    (tmp_path / "notes.txt").write_text("no frame")
    with open_source(tmp_path) as source:
        assert (source.frame_count, source.fps) == (5, 30.0)
        frames = list(source)
    colours = [frame.image[3, 3].tolist() for frame in frames]
    assert [frame.time_s for frame in frames] == [index / 30 for index in range(5)]
    assert colours == [[number, 2 * number, 200] for number in (1, 2, 9, 10, 100)]


def test_faults_inside_a_folder(tmp_path):
    for number, size in ((1, (6, 8)), (2, (6, 8)), (3, (8, 6))):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.zeros((*size, 3), np.uint8))
    seen, message = read_until_fault(tmp_path)
    assert seen == 2 and "3.png is 6x8, wanted 8x6 as 1.png" in message
    for content, problem in (
        (b"", "is empty"),
        (b"no image", "is no picture that can be read"),
        ((tmp_path / "1.png").read_bytes()[:40], "is no picture that can be read"),
        ((tmp_path / "1.png").read_bytes()[:-24], "is damaged or truncated"),
    ):
        (tmp_path / "2.png").write_bytes(content)
        message = read_until_fault(tmp_path)[1]
        assert message.startswith("frame ") and f"2.png {problem}" in message


def test_a_real_video(fixtures_dir):
    path = fixtures_dir / "tflite" / "lstm_traffic" / "traffic_frames.mp4"
    with open_source(path) as source:
        assert (source.frame_count, source.fps) == (20, 30.0)
        images = [frame.image for frame in source]
    assert len(images) == 20 and {image.shape for image in images} == {(540, 960, 3)}
    assert all((one != other).any() for one, other in zip(images, images[1:]))


def result(extractor="f1", age=3, boxes=((0.25, 0.25, 0.75, 0.75),)):
    found = Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.full(len(boxes), 0.5, np.float32),
        np.arange(len(boxes), dtype=np.int32),
    )  # fmt: skip
    return FrameResult(7, found, extractor, age, None, Timings(0, 0, 0, 0, 0))


@pytest.mark.parametrize("size", [(1, 1), (96, 96), (180, 320), (1080, 1920)])
def test_drawings_are_large_enough_and_in_place(size):
    frame = np.full((*size, 3), 90, np.uint8)
    image = annotate(frame, result(), ("disc",))
    factor = image.shape[0] // size[0]
    assert image.shape == (size[0] * factor, size[1] * factor, 3) and min(image.shape[:2]) >= 320
    assert (frame == 90).all() and (factor == 1) == (min(size) >= 320)
    height, width = image.shape[:2]
    changed = (image != 90).any(axis=2)
    assert changed[height // 4, width // 2] and changed[height * 3 // 4, width // 2]
    assert changed[height // 2, width // 4] and changed[height // 2, width * 3 // 4]
    assert not changed[height // 2, width // 2]  # boxes are not filled


def test_the_border_tells_the_extractor():
    frame = np.full((320, 320, 3), 90, np.uint8)
    borders = {
        tuple(annotate(frame, result(extractor), ("disc",), mode)[100, 0])
        for extractor, mode in (("f0", "sync"), ("f1", "sync"), ("f1", "async"))
    }
    assert len(borders) == 3
    ages = {annotate(frame, result(age=age), ("disc",)).tobytes() for age in (None, 0, 1, 12)}
    assert len(ages) == 4
    # Boxes that leave the image are cut at its edge, and none at all is fine.
    annotate(
        frame, result(boxes=((-1e30, -2.0, 1e30, 3.0), (0.9, 0.9, 0.8, 0.8))), ("disc", "star")
    )
    np.testing.assert_array_equal(draw_detections(frame, result(boxes=()).detections, ()), frame)
