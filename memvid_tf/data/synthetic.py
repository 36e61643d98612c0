"""The synthetic video set: seeded clips whose classes differ only by fine texture.

An object is a square or a disk which is plain or carries stripes or a checkerboard of one-pixel
lines. At half resolution, by a 2x2 box mean, every texture averages to the same colour: a network
at full resolution (f0) can name the class, one at half resolution (f1) sees where the object is,
its shape, colour and size. Memory has to carry the identity, which is what LFS section 3.2 claims
a memory can do. To make this exact, and not only inside the object, texture is drawn in those
aligned 2x2 blocks alone that lie wholly inside the visible object.

Objects move, drift in scale, occlude one another, enter and leave; the camera pans over a larger
textured scene with clutter that has other shapes and other textures. Speeds are log-normal; median
and spread are tuned so that, camera, scale and occlusion included, the motion split of ImageNet
VID's validation set comes out (38.7 % slow, 35.5 % medium, 25.9 % fast; shared design).
`dataset.json` holds the split that a set really has. In eventful clips speeds, entries and the
camera follow `activity.py`.

Every clip is a pure function of (seed, split, index). NumPy and OpenCV only: workers that render
clips do not load TensorFlow.
"""

import dataclasses
import functools
import math

import cv2
import numpy as np

from memvid_tf.data import activity, motion
from memvid_tf.data.activity import MIN_SCENE_FRAMES, EventConfig
from memvid_tf.data.records import MAX_SIDE, ClipRecord
from memvid_tf.data.sharding import DatasetPlan, SplitPlan

TEXTURES = ("plain", "horizontal", "vertical", "checker")
SHAPES = ("square", "disk")
SPLITS = ("train", "test")
# Texture is base colour +- this fraction of it; with bases of 70..160 nothing saturates, noise
# included, so the box mean stays the base colour.
TEXTURE_CONTRAST = 0.5
BASE_COLOR = (70, 160)
# An object that shows less than this part of its area is dropped from the ground truth.
MIN_VISIBLE = 0.25
# Log-scale standard deviation of an object that changes size, per frame, and its bounds.
SCALE_RATE = 0.003
SCALE_BOUND = math.log(1.5)
# Standard deviation of the change of direction, radians a frame.
TURN_RATE = 0.04
# An object that enters or leaves crosses the border at this part of its side a frame or faster:
# slower ones would not be in before the clip ends.
MIN_CROSSING_SPEED = 0.05
# Where a track of another scene is, in frame sides from the frame.
ELSEWHERE = -10


@dataclasses.dataclass(frozen=True)
class SyntheticConfig:
    """What to generate. Lengths are fractions of the frame's side unless the name says pixels.

    Attributes:
      image_size: side of the square frames in pixels; even, at least 32.
      num_classes: 2, 4, 6 or 8: the first textures of `TEXTURES`, each with both shapes.
      train_clips, test_clips: number of clips.
      train_clip_frames, test_clip_frames: frames in each clip.
      seed: of everything.
      min_objects, max_objects: objects in a clip.
      min_side, max_side: side of an object.
      speed_median, speed_sigma: log-normal speed in object sides a frame.
      max_speed: bound of that speed.
      camera_speed: median speed of the camera in frame sides a frame.
      crossing: part of the objects that enter or leave during the clip; in an eventful one, if
        there is a burst in which they can.
      scaling: part of the objects that change size slowly.
      clutter: mean number of distractors in view.
      noise: standard deviation of the sensor noise in grey levels.
      jpeg_quality: of the stored frames; chroma is never subsampled.
      events: how eventful clips are; None for clips in which all frames are equally hard.
    """

    image_size: int = 96
    num_classes: int = 8
    train_clips: int = 1500
    test_clips: int = 100
    train_clip_frames: int = 24
    test_clip_frames: int = 40
    seed: int = 0
    min_objects: int = 1
    max_objects: int = 4
    min_side: float = 0.17
    max_side: float = 0.38
    speed_median: float = 0.0105
    speed_sigma: float = 1.5
    max_speed: float = 0.25
    camera_speed: float = 0.0006
    crossing: float = 0.15
    scaling: float = 0.4
    clutter: float = 4.0
    noise: float = 3.0
    jpeg_quality: int = 95
    events: EventConfig | None = None

    def __post_init__(self):
        size = self.image_size
        side = self.min_side * size
        checks = (
            (
                "image_size",
                32 <= size <= MAX_SIDE and size % 2 == 0,
                f"an even number in 32..{MAX_SIDE}",
            ),
            ("num_classes", self.num_classes in (2, 4, 6, 8), "2, 4, 6 or 8"),
            ("train_clips", self.train_clips >= 1, "at least 1"),
            ("test_clips", self.test_clips >= 1, "at least 1"),
            ("train_clip_frames", self.train_clip_frames >= 2, "at least 2"),
            ("test_clip_frames", self.test_clip_frames >= 2, "at least 2"),
            ("seed", 0 <= self.seed < 2**31, "in 0..2^31-1"),
            ("min_objects", 1 <= self.min_objects, "at least 1"),
            (
                "max_objects",
                self.min_objects <= self.max_objects <= 20,
                f"in {self.min_objects}..20",
            ),
            ("max_objects", self.max_objects * self._most_scenes <= 255, "255 in all scenes"),
            ("min_side", side >= 8, f"at least {8 / max(size, 1):.3f}: 8 px of {size}"),
            ("max_side", self.min_side <= self.max_side <= 0.6, f"in {self.min_side}...6"),
            ("speed_median", self.speed_median > 0, "above 0"),
            ("speed_sigma", self.speed_sigma >= 0, "at least 0"),
            ("max_speed", MIN_CROSSING_SPEED <= self.max_speed <= 1, f"in {MIN_CROSSING_SPEED}..1"),
            ("camera_speed", 0 <= self.camera_speed <= 0.02, "in 0...02"),
            ("crossing", 0 <= self.crossing <= 1, "in 0..1"),
            ("scaling", 0 <= self.scaling <= 1, "in 0..1"),
            ("clutter", 0 <= self.clutter <= 50, "in 0..50"),
            ("noise", 0 <= self.noise <= 5, "in 0..5: more would saturate"),
            ("jpeg_quality", 50 <= self.jpeg_quality <= 100, "in 50..100"),
        )
        for name, right, allowed in checks:
            if not right:
                raise ValueError(f"{name} {getattr(self, name)} is not allowed: {allowed}")

    @property
    def _most_scenes(self) -> int:
        """Scenes that a clip can have."""
        frames = max(self.train_clip_frames, self.test_clip_frames)
        return 1 if self.events is None else max(1, frames // MIN_SCENE_FRAMES)

    @property
    def labels(self) -> list[str]:
        """Class names; class id - 1 is the index: 2 * texture + shape."""
        names = [f"{texture}_{shape}" for texture in TEXTURES for shape in SHAPES]
        return names[: self.num_classes]


PRESETS = {
    # Seconds to make: for tests and for trying the programs.
    "tiny": SyntheticConfig(train_clips=12, test_clips=6, train_clip_frames=8, test_clip_frames=12),
    # The set of the demonstration: trains in minutes on a laptop.
    "demo": SyntheticConfig(),
    # LFS's frame size.
    "paper": SyntheticConfig(image_size=320),
    # Long clips in which now and then something happens: for a policy (LFS 3.4).
    "eventful": SyntheticConfig(
        train_clips=480,
        test_clips=120,
        train_clip_frames=64,
        test_clip_frames=80,
        speed_sigma=1.1,
        crossing=0.5,
        events=EventConfig(),
    ),
}


@dataclasses.dataclass(frozen=True)
class Track:
    """One object over a clip of T frames, in pixels of the frame.

    Attributes:
      class_id: 1..C.
      corner: [T, 2] int, top and left; may lie outside the frame.
      side: [T] int.
      color: [3] int, the base colour.
      phase: [2] int, of the texture, relative to the corner.
    """

    class_id: int
    corner: np.ndarray
    side: np.ndarray
    color: np.ndarray
    phase: np.ndarray


def plan(config: SyntheticConfig) -> DatasetPlan:
    """What `sharding.write_dataset` needs to generate this set."""
    counts = {
        "train": (config.train_clips, config.train_clip_frames),
        "test": (config.test_clips, config.test_clip_frames),
    }
    return DatasetPlan(
        name="synthetic",
        labels=config.labels,
        image_size=(config.image_size, config.image_size),
        config={k: v for k, v in dataclasses.asdict(config).items() if v is not None},
        seed=config.seed,
        splits={
            split: SplitPlan(clips=clips, clip_frames=frames)
            for split, (clips, frames) in counts.items()
        },
        make_clip=functools.partial(make_clip, config),
    )


def make_clip(config: SyntheticConfig, split: str, index: int) -> ClipRecord:
    """Renders and encodes one clip; a pure function of its arguments.

    Args:
      config: of the set.
      split: 'train' or 'test'.
      index: of the clip in the split.
    """
    frames, owners, tracks = render_clip(config, split, index)
    height, width = frames.shape[1:3]
    clip = ClipRecord(clip_id=f"synthetic-{split}-{index:05d}", height=height, width=width)
    jpeg = [
        cv2.IMWRITE_JPEG_QUALITY,
        config.jpeg_quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    for t, (frame, owner) in enumerate(zip(frames, owners)):
        boxes, ids, mask = frame_truth(owner, tracks, t)
        clip.add_frame(
            image=_encode(".jpg", frame[..., ::-1], jpeg),
            boxes=boxes,
            classes=np.array([tracks[i].class_id for i in ids], np.int64),
            tracks=ids,
            mask=_encode(".png", mask, []) if len(ids) else b"",
        )
    return clip


def render_clip(
    config: SyntheticConfig, split: str, index: int
) -> tuple[np.ndarray, np.ndarray, list[Track]]:
    """Renders one clip.

    Returns:
      frames [T, H, W, 3] uint8 RGB, owners [T, H, W] uint8 (0 background, i + 1 where track i is
      in front), and the tracks, the hindmost first.

    Raises:
      ValueError: on an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    seed = [config.seed, SPLITS.index(split), index]
    count = config.train_clip_frames if split == "train" else config.test_clip_frames
    if config.events is None:
        return _render_scene(config, activity.even(count), np.random.default_rng(seed))
    scenes = activity.scenes(config.events, count, np.random.default_rng([*seed, 1]))
    frames, owners, tracks = [], [], []
    for number, scene in enumerate(scenes):
        rng = np.random.default_rng([*seed, 2, number])
        images, numbers, here = _render_scene(config, scene, rng)
        first = sum(map(len, frames))
        owners.append(np.where(numbers > 0, numbers + len(tracks), 0).astype(np.uint8))
        tracks += [_in_clip(track, first, count, config.image_size) for track in here]
        frames.append(images)
    return np.concatenate(frames), np.concatenate(owners), tracks


def _in_clip(track, first, count, size):
    """The track of a scene that begins at frame `first`, over all `count` frames of the clip."""
    after = count - first - len(track.side)
    corner = np.pad(track.corner, ((first, after), (0, 0)), constant_values=ELSEWHERE * size)
    side = np.pad(track.side, (first, after), "edge")
    return dataclasses.replace(track, corner=corner, side=side)


def _render_scene(config, scene, rng):
    """What `render_clip` returns, of one scene."""
    size, count = config.image_size, len(scene.pace)
    camera = motion.camera_path(config.camera_speed, size, scene, rng)
    tracks = []
    for _ in range(int(rng.integers(config.min_objects, config.max_objects + 1))):
        tracks.append(_track(config, camera, scene, tracks, rng))
    offset = np.rint(camera).astype(int)
    offset -= offset.min(axis=0)
    canvas = _canvas(config, *(offset.max(axis=0) + size), rng)
    frames = np.empty((count, size, size, 3), np.uint8)
    owners = np.zeros((count, size, size), np.uint8)
    for t, (top, left) in enumerate(offset):
        view = canvas[top : top + size, left : left + size]
        image = _draw(view, tracks, t, owners[t])
        image += rng.standard_normal(image.shape, np.float32) * np.float32(config.noise)
        frames[t] = np.clip(np.rint(image), 0, 255)
    return frames, owners, tracks


def frame_truth(
    owner: np.ndarray, tracks: list[Track], t: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ground truth of one frame: what shows at least a quarter of itself.

    Args:
      owner: [H, W] uint8, see `render_clip`.
      tracks: all tracks of the clip.
      t: frame number.

    Returns:
      boxes [n, 4] float32 around the visible pixels, track ids [n] int64, and the mask [H, W]
      uint8 with the position in this list + 1, 0 elsewhere.
    """
    height, width = owner.shape
    boxes, ids = [], []
    number = np.zeros(len(tracks) + 1, np.uint8)
    for i, track in enumerate(tracks):
        visible = owner == i + 1
        whole = _shape(track.class_id, int(track.side[t])).sum()
        if visible.sum() < MIN_VISIBLE * whole:
            continue
        rows = np.flatnonzero(visible.any(axis=1))
        columns = np.flatnonzero(visible.any(axis=0))
        boxes.append(
            [
                rows[0] / height,
                columns[0] / width,
                (rows[-1] + 1) / height,
                (columns[-1] + 1) / width,
            ]
        )
        ids.append(i)
        number[i + 1] = len(ids)
    return (np.array(boxes, np.float32).reshape(-1, 4), np.array(ids, np.int64), number[owner])


def _encode(extension, image, options):
    done, data = cv2.imencode(extension, np.ascontiguousarray(image), options)
    if not done:
        raise ValueError(f"OpenCV could not encode a {extension} image of {image.shape}")
    return data.tobytes()


def _track(config, camera, scene, others, rng):
    size, count = config.image_size, len(camera)
    side0 = size * rng.uniform(config.min_side, config.max_side)
    drift = SCALE_RATE * rng.normal() if rng.random() < config.scaling else 0.0
    scale = np.clip(drift * (np.arange(count) - count / 2), -SCALE_BOUND, SCALE_BOUND)
    side = np.maximum(np.rint(side0 * np.exp(scale)), 6).astype(int)
    relative = min(
        config.max_speed, config.speed_median * math.exp(rng.normal(0, config.speed_sigma))
    )
    turns = np.cumsum(rng.normal(0, TURN_RATE, count))
    pan = np.diff(camera, axis=0, prepend=camera[:1])
    if rng.random() < config.crossing and scene.bursts != []:
        speed = max(relative, MIN_CROSSING_SPEED) * side0
        if rng.random() < 0.5:
            centre = motion.enter(size, side0, speed, turns, pan, scene, rng)
        else:
            # Leaving is entering with time reversed.
            back = scene.reversed()
            centre = motion.enter(size, side0, speed, turns, -pan[::-1], back, rng)[::-1]
    else:
        candidates = rng.uniform(side0 / 2, size - side0 / 2, (6, 2))
        taken = np.array([o.corner[0] + o.side[0] / 2 for o in others]).reshape(-1, 2)
        gaps = np.abs(candidates[:, None] - taken).max(axis=-1).min(axis=1, initial=size)
        velocity = rng.uniform(0, 2 * math.pi) + turns
        start, speeds = candidates[gaps.argmax()], relative * side0 * scene.pace
        centre = motion.wander(size, side0, start, speeds, velocity, pan)
    return Track(
        class_id=int(rng.integers(1, config.num_classes + 1)),
        corner=np.rint(centre - side[:, None] / 2).astype(int),
        side=side,
        color=rng.integers(*BASE_COLOR, size=3, endpoint=True),
        phase=rng.integers(0, 2, size=2),
    )


@functools.lru_cache(maxsize=512)
def _shape(class_id, side):
    """[side, side] bool, the object's pixels."""
    if SHAPES[(class_id - 1) % 2] == "square":
        return np.ones((side, side), bool)
    distance = np.arange(side) + 0.5 - side / 2
    return distance[:, None] ** 2 + distance**2 < (side / 2) ** 2


def _texture(name, y, x):
    """-1 or 1 by the lines of the texture, 0 for plain; y and x broadcast against each other."""
    if name == "plain":
        return np.int8(0)
    line = {"horizontal": y + 0 * x, "vertical": x + 0 * y, "checker": y + x}[name]
    return (1 - 2 * (line % 2)).astype(np.int8)


def _draw(scene, tracks, t, owner):
    """Paints the tracks over the scene; fills `owner` [H, W] in place.

    Returns:
      [H, W, 3] float32 without sensor noise.
    """
    size = owner.shape[0]
    sign = np.zeros(owner.shape, np.int8)
    for i, track in enumerate(tracks):
        side = int(track.side[t])
        corner = track.corner[t]
        low = np.clip(corner, 0, size)
        high = np.clip(corner + side, 0, size)
        if (low >= high).any():
            continue
        inside = tuple(slice(a, b) for a, b in zip(low - corner, high - corner))
        window = tuple(slice(a, b) for a, b in zip(low, high))
        shape = _shape(track.class_id, side)[inside]
        y, x = np.ogrid[inside]
        pattern = _texture(
            TEXTURES[(track.class_id - 1) // 2], y + track.phase[0], x + track.phase[1]
        )
        owner[window][shape] = i + 1
        sign[window] = np.where(shape, pattern, sign[window])
    # Texture only where a whole aligned 2x2 block shows one object: no border leaks it.
    blocks = owner.reshape(size // 2, 2, size // 2, 2)
    whole = (blocks == blocks[:, :1, :, :1]).all(axis=(1, 3))
    sign *= np.repeat(np.repeat(whole, 2, axis=0), 2, axis=1)
    base = np.array([np.zeros(3)] + [track.color for track in tracks], np.float32)
    lines = np.rint(TEXTURE_CONTRAST * base)
    image = base[owner] + sign[..., None] * lines[owner]
    return np.where((owner > 0)[..., None], image, scene)


def _canvas(config, height, width, rng):
    """[height, width, 3] float32: the scene the camera pans over."""
    size = config.image_size
    image = np.full((height, width, 3), rng.uniform(60, 120, 3), np.float32)
    for cell, strength in ((size / 3, 28.0), (size / 8, 16.0), (size / 24, 8.0)):
        shape = (math.ceil(height / cell) + 1, math.ceil(width / cell) + 1, 3)
        coarse = rng.normal(0, strength, shape).astype(np.float32)
        image += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    image += rng.normal(0, 5, image.shape).astype(np.float32)
    for _ in range(rng.poisson(config.clutter * height * width / size**2)):
        _distractor(config, image, rng)
    return np.clip(image, 0, 255)


def _distractor(config, image, rng):
    """Paints a thing that is no object: a triangle, a bar or a thin ellipse, wrongly textured."""
    height, width = image.shape[:2]
    size = config.image_size
    side = size * rng.uniform(config.min_side, config.max_side)
    centre = rng.uniform((0, 0), (width, height))
    turn = rng.uniform(0, 2 * math.pi)
    if rng.random() < 0.5:
        corners = turn + np.array([0, 2.1, 4.2])
    else:
        corners = turn + np.array([-0.3, 0.3, math.pi - 0.3, math.pi + 0.3])
    points = centre + side / 2 * np.stack([np.cos(corners), np.sin(corners)], axis=1)
    mask = np.zeros((height, width), np.uint8)
    if rng.random() < 0.3:
        axes = (int(side / 2), int(side / 6))
        cv2.ellipse(mask, tuple(int(c) for c in centre), axes, math.degrees(turn), 0, 360, 1, -1)
    else:
        cv2.fillPoly(mask, [np.rint(points).astype(np.int32)], 1)
    y, x = np.ogrid[:height, :width]
    period = int(rng.integers(4, 9))
    pattern = (
        0 * (y + x),
        y // (period // 2) + 0 * x,
        x // (period // 2) + 0 * y,
        (y + x) // (period // 2),
    )[rng.integers(4)]
    color = rng.integers(*BASE_COLOR, size=3, endpoint=True)
    contrast = TEXTURE_CONTRAST if pattern.any() else 0.0
    image[mask > 0] = (color * (1 + contrast * (1 - 2 * (pattern % 2)))[..., None])[mask > 0]
