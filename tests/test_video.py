"""Videos, folders and their faults; what is written is whole or absent."""

import struct

import cv2
import numpy as np
import pytest

from memvid_tf.runtime.annotate import annotate, draw_detections
from memvid_tf.runtime.postprocess import Detections
from memvid_tf.runtime.runners import FrameResult, Timings
from memvid_tf.runtime.video import VideoError, VideoWriter, open_source


def flat(count, size=(48, 64)):
    """Frames of one colour each: red grows, green falls, blue stays."""
    return [np.full((*size, 3), (5 * i, 255 - 5 * i, 128), np.uint8) for i in range(count)]


def write_video(path, frames, fps=25.0):
    with VideoWriter(path, fps) as writer:
        for frame in frames:
            writer.write(frame)


def moov_first(path):
    """Moves an mp4's index to its front, as recorders that stream do; it then opens when cut."""
    data, boxes, at = path.read_bytes(), {}, 0
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        boxes[kind] = data[at : at + size]
        at += size
    moov = bytearray(boxes.pop(b"moov"))
    table = moov.find(b"stco") + 8
    (entries,) = struct.unpack_from(">I", moov, table)
    for entry in range(table + 4, table + 4 + 4 * entries, 4):
        struct.pack_into(">I", moov, entry, struct.unpack_from(">I", moov, entry)[0] + len(moov))
    path.write_bytes(boxes.pop(b"ftyp") + bytes(moov) + b"".join(boxes.values()))


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("size", [(48, 64), (47, 65)])
def test_what_is_written_is_read(tmp_path, suffix, size):
    path = tmp_path / f"clip{suffix}"
    write_video(path, flat(12, size))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with open_source(path) as source:
        assert (source.frame_count, source.fps) == (12, 25.0)
        frames = list(source)
    assert len(frames) == 12
    for frame, wanted in zip(frames, flat(12, (48, 64 if size[1] == 64 else 66))):
        assert frame.shape == wanted.shape and frame.dtype == np.uint8
        # Lossy, and colour goes through YUV; the order of channels and frames is what matters.
        assert np.abs(frame.astype(int) - wanted).mean() < 4


def test_a_failed_video_leaves_nothing(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"an older video")
    with pytest.raises(VideoError, match=r"a frame has shape \(48, 60, 3\), wanted \(48, 64, 3\)"):
        write_video(path, [*flat(3), *flat(1, (48, 60))])
    with pytest.raises(ZeroDivisionError):
        with VideoWriter(path, 25.0) as writer:
            writer.write(flat(1)[0])
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


def test_sources_that_are_none(tmp_path):
    for spec in (tmp_path / "nothing.mp4", ""):
        with pytest.raises(VideoError, match="no such file or folder"):
            open_source(spec)
    for content in (b"", b"no video at all" * 100):
        (tmp_path / "bad.mp4").write_bytes(content)
        with pytest.raises(VideoError, match="bad.mp4' is not a video that OpenCV can decode"):
            open_source(tmp_path / "bad.mp4")
    (tmp_path / "bad.mp4").unlink()
    (tmp_path / "notes.txt").write_text("no frame")
    with pytest.raises(VideoError, match="holds no frames: no file ends in one of .*'.png'"):
        open_source(tmp_path)
    with pytest.raises(VideoError, match="'99' is not a camera of this machine"):
        open_source("99")


@pytest.mark.parametrize(("suffix", "cut"), [(".mp4", 0.5), (".webm", 0.6)])
def test_a_video_that_ends_early(tmp_path, suffix, cut):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(30)]
    path = tmp_path / f"clip{suffix}"
    write_video(path, frames)
    if suffix == ".mp4":
        moov_first(path)
        assert len(list(open_source(path))) == 30
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * cut)])
    seen = []
    with pytest.raises(VideoError, match="counts 30 frames") as error:
        collect(open_source(path), seen)
    assert 5 < len(seen) < 30
    assert f"frame {len(seen)} cannot be decoded" in str(error.value)


def collect(source, seen):
    """Appends frames one by one, so that those before a fault are counted."""
    for frame in source:
        seen.append(frame)


def test_a_folder_in_natural_order(tmp_path):
    for number in (1, 2, 10, 9, 100):
        image = np.full((6, 8, 3), (number, 2 * number, 200), np.uint8)
        name = f"frame{number}.{'PNG' if number == 9 else 'png'}"
        cv2.imwrite(str(tmp_path / name), image[..., ::-1])
    (tmp_path / "notes.txt").write_text("no frame")
    with open_source(tmp_path) as source:
        assert (source.frame_count, source.fps) == (5, None)
        colours = [frame[3, 3].tolist() for frame in source]
    assert colours == [[number, 2 * number, 200] for number in (1, 2, 9, 10, 100)]


def test_faults_inside_a_folder(tmp_path):
    for number, size in ((1, (6, 8)), (2, (6, 8)), (3, (8, 6))):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.zeros((*size, 3), np.uint8))
    seen = []
    with pytest.raises(VideoError, match=r"3.png is 6x8, wanted 8x6 as 1.png"):
        collect(open_source(tmp_path), seen)
    assert len(seen) == 2
    for content, message in (
        (b"", "is empty"),
        (b"no image", "is no picture that can be read"),
        ((tmp_path / "1.png").read_bytes()[:40], "is no picture that can be read"),
    ):
        (tmp_path / "2.png").write_bytes(content)
        with pytest.raises(VideoError, match=f"frame .*2.png {message}"):
            collect(open_source(tmp_path), [])


def test_a_real_video(fixtures_dir):
    path = fixtures_dir / "tflite" / "lstm_traffic" / "traffic_frames.mp4"
    with open_source(path) as source:
        assert (source.frame_count, source.fps) == (20, 30.0)
        frames = list(source)
    assert len(frames) == 20 and {frame.shape for frame in frames} == {(540, 960, 3)}
    assert all((one != other).any() for one, other in zip(frames, frames[1:]))


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
