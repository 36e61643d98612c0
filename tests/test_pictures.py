"""The one reader of pictures, against pixels that are known and against other decoders."""

import io
import struct
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from memvid_tf.runtime import pictures
from memvid_tf.runtime.pictures import PictureError
from memvid_tf.runtime.video import VideoError, open_source

RED, GREY = (220, 30, 30), (90, 90, 90)
rng = np.random.default_rng(5)


def painted(height=24, width=40):
    """Grey with a red upper left corner, which shows how it is turned; [H, W, 3] uint8."""
    image = np.full((height, width, 3), GREY, np.uint8)
    image[: height // 2, : width // 4] = RED
    return image


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        buffer, form, **options
    )
    return buffer.getvalue()


def with_orientation(image, tag, form="PNG", **options):
    exif = Image.Exif()
    exif[0x0112] = tag
    return encoded(image, form, exif=exif, **options)


# What each EXIF tag says is done to the stored pixels to show them, after the standard.
SHOWN = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("tag", SHOWN)
def test_orientation(tmp_path, tag):
    path = tmp_path / "a.png"
    stored = painted()
    path.write_bytes(with_orientation(stored, tag))
    shown = SHOWN[tag](stored)
    np.testing.assert_array_equal(pictures.read(path), shown)
    # An annotation of the turned size, or of none, changes nothing; one of the stored size does
    # where the two differ.
    np.testing.assert_array_equal(pictures.read(path, shown.shape[:2]), shown)
    as_stored = stored if tag >= 5 else shown
    np.testing.assert_array_equal(pictures.read(path, stored.shape[:2]), as_stored)
    header = pictures.header(path, stored.shape[:2])
    assert header == ((24, 40), (24, 40), tag, tag in (2, 3, 4))


def test_the_rule_is_opencvs(tmp_path):
    path = tmp_path / "a.jpg"
    for tag in SHOWN:
        path.write_bytes(with_orientation(painted(), tag, "JPEG", quality=95))
        wanted = cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1]
        assert np.abs(pictures.read(path).astype(int) - wanted).max() <= 1


def test_sixteen_bits_keep_the_higher_eight():
    levels = rng.integers(0, 2**16, (9, 13)).astype(np.uint16)
    found = pictures.decode(encoded(levels), "a")
    np.testing.assert_array_equal(found, np.repeat((levels >> 8)[..., None], 3, 2))
    colours = rng.integers(0, 2**16, (9, 13, 3)).astype(np.uint16)
    data = cv2.imencode(".png", colours[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(pictures.decode(data, "a"), colours >> 8)
    with pytest.raises(PictureError, match="a has 32-bit pixels, wanted are 8 or 16"):
        pictures.decode(encoded(np.zeros((4, 4), np.float32), "TIFF"), "a")


def test_transparency_lies_over_grey():
    image = np.dstack([painted(), np.full((24, 40), 255, np.uint8)])
    image[12:, :, 3] = 0
    image[12:, :, :3] = (0, 255, 0)  # what a transparent pixel hides
    wanted = painted()
    wanted[12:] = pictures.AROUND
    np.testing.assert_array_equal(pictures.decode(encoded(image), "a"), wanted)
    image[12:, :, 3] = 51  # a fifth
    found = pictures.decode(encoded(image), "a")[-1, -1].astype(float)
    np.testing.assert_allclose(found, np.array([0, 255, 0]) / 5 + 128 * 4 / 5, atol=1)
    palette = Image.fromarray(painted()).quantize(4)
    data = encoded(palette, transparency=palette.getpixel((0, 0)))
    assert pictures.decode(data, "a")[0, 0].tolist() == [pictures.AROUND] * 3
    assert pictures.decode(data, "a")[-1, -1].tolist() == list(GREY)


@pytest.mark.parametrize(
    "data, tolerance",
    [
        (encoded(Image.fromarray(painted()).convert("CMYK"), "JPEG", quality=98), 3),
        (encoded(Image.fromarray(painted()).quantize(8)), 0),
        (encoded(painted(), "WEBP", lossless=True), 0),
        (encoded(painted(), "BMP"), 0),
        (encoded(painted(), "TIFF"), 0),
        (encoded(painted(), "JPEG", quality=98, subsampling=0, progressive=True), 3),
        (encoded(painted(), "MPO", quality=98, subsampling=0, save_all=True), 3),
        (encoded(painted(), "AVIF", quality=98), 12),
    ],
    ids=["cmyk", "palette", "webp", "bmp", "tiff", "progressive", "mpo", "avif"],
)
def test_forms(data, tolerance):
    found = pictures.decode(data, "a").astype(int)
    # Lossy forms smear the border of the corner.
    inside = np.s_[2:10, 2:8]
    assert np.abs(found[inside] - RED).max() <= tolerance
    assert np.abs(found[16:, 16:] - GREY).max() <= tolerance


def test_grey_levels_are_kept():
    for image in (painted()[..., 0], np.dstack([painted()[..., 0], np.full((24, 40), 255)])):
        found = pictures.decode(encoded(image.astype(np.uint8)), "a")
        np.testing.assert_array_equal(found, np.repeat(painted()[..., :1], 3, 2))


def test_heic_is_read_or_says_what_it_needs(monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs the extra heic")
    pillow_heif.register_heif_opener()
    data = encoded(painted(64, 96), "HEIF", quality=95)
    assert np.abs(pictures.decode(data, "a")[4:24, 4:16].astype(int) - RED).max() <= 12
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    pictures._heif.cache_clear()
    with pytest.raises(PictureError, match="a is a HEIC picture, .*pip install pillow-heif"):
        pictures.decode(data, "a")
    pictures._heif.cache_clear()


def claiming(width, height):
    """A small PNG that says it is huge."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    small = encoded(painted())
    return small[:12] + head + struct.pack(">I", zlib.crc32(head)) + small[33:]


def test_what_is_no_picture(tmp_path):
    noise = rng.integers(0, 256, (60, 80, 3)).astype(np.uint8)
    jpeg, other = encoded(noise, "JPEG"), Image.fromarray(noise[::-1].copy())
    for data, message in (
        (b"", "a is empty; known are JPEG"),
        (b"<html>404</html>", "a is no picture that can be read"),
        (jpeg[: len(jpeg) // 2], "a is damaged or truncated"),
        (encoded(noise)[:-100], "a is damaged or truncated"),
        (encoded(noise, "WEBP", save_all=True, append_images=[other]), "a holds 2 frames"),
        (claiming(11_999, 11_999), "a is 11999x11999 pixels, allowed are"),
        (claiming(60_000, 60_000), "a has more pixels than allowed"),
    ):
        with pytest.raises(PictureError, match=message):
            pictures.decode(data, "a")
    with pytest.raises(PictureError, match="nothing.png is missing"):
        pictures.read(tmp_path / "nothing.png")
    with pytest.raises(PictureError, match="cannot be read: Is a directory"):
        pictures.read(tmp_path)


def test_damage_never_escapes():
    whole = [encoded(painted(), form) for form in ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "AVIF")]
    whole.append(with_orientation(painted(), 6, "JPEG"))
    outcomes = set()
    for number in range(600):
        data = bytearray(whole[number % len(whole)])
        for _ in range(3):
            data[rng.integers(min(len(data), 200))] = rng.integers(256)
        try:
            outcomes.add(pictures.decode(bytes(data), "a").dtype.name)
        except PictureError as error:
            assert len(str(error)) < 300 and "\n" not in str(error)
            outcomes.add("refused")
    assert outcomes == {"uint8", "refused"}


def test_a_folder_of_frames_is_read_so(tmp_path):
    (tmp_path / "0.jpg").write_bytes(encoded(painted(), "JPEG", quality=98))
    (tmp_path / "1.webp").write_bytes(encoded(painted(), "WEBP", lossless=True))
    (tmp_path / "2.PNG").write_bytes(with_orientation(SHOWN[8](painted()), 6))
    (tmp_path / "3.png").write_bytes(encoded(np.uint16(257) * painted()[..., 0]))
    (tmp_path / "._0.jpg").write_bytes(b"\0\5\26\7")
    with open_source(tmp_path) as source:
        assert source.frame_count == 4
        frames = [frame.image for frame in source]
    for frame in frames[:3]:
        assert np.abs(frame[2:10, 2:8].astype(int) - RED).max() <= 3
        assert np.abs(frame[16:, 16:].astype(int) - GREY).max() <= 3
    np.testing.assert_array_equal(frames[3], np.repeat(painted()[..., :1], 3, 2))
    (tmp_path / "4.HEIC").write_bytes(b"xxxx")
    with open_source(tmp_path) as source, pytest.raises(VideoError, match="4.HEIC is no picture"):
        list(source)
