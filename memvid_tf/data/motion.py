"""Where the things of a synthetic clip are: the camera's pan and the ways of the objects.

Speeds are those of an even scene; `activity.Activity` says how they change over time.
"""

import math

import numpy as np

from memvid_tf.data.activity import Activity

# Log-normal spread of the camera's speed over clips: most stand nearly still, some pan briskly.
CAMERA_SIGMA = 1.2


def camera_path(
    median_speed: float, size: int, scene: Activity, rng: np.random.Generator
) -> np.ndarray:
    """[T, 2] position of the view in the scene, pixels: a pan that bends slowly.

    Args:
      median_speed: over clips, in frame sides a frame.
      size: side of the frame in pixels.
      scene: its activity.
      rng: decides speed and directions.
    """
    count = len(scene.pace)
    speed = median_speed * size * math.exp(rng.normal(0, CAMERA_SIGMA))
    angle = rng.uniform(0, 2 * math.pi) + np.cumsum(rng.normal(0, 0.1, count))
    step = speed * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    return np.cumsum(scene.pace[:, None] * step + size * scene.pan, axis=0)


def wander(size, side, start, speeds, angle, pan, confined=(True, True)) -> np.ndarray:
    """[T, 2] centres of an object that turns back at the borders.

    An axis along which it is not yet `confined` becomes so once the object is inside.

    Args:
      size: side of the frame in pixels, as all lengths.
      side: of the object.
      start: [2] its first centre.
      speeds: [T] of the ways to each frame; the first is not used.
      angle: [T] its directions, radians.
      pan: [T, 2] the camera's ways.
      confined: axes along which it is inside.
    """
    low, high = 0.45 * side, size - 0.45 * side
    position = np.array(start, float)
    confined = np.array(confined)
    sign = np.ones(2)
    path = np.empty((len(angle), 2))
    for t, direction in enumerate(angle):
        if t:
            heading = np.array([math.sin(direction), math.cos(direction)])
            step = sign * speeds[t] * heading - pan[t]
            after = position + step
            outward = ((after < low) & (step < 0)) | ((after > high) & (step > 0))
            sign = np.where(outward & confined, -sign, sign)
            position = position + sign * speeds[t] * heading - pan[t]
            # The camera may push harder than the object flees: then it stays at the border.
            position = np.where(confined, np.clip(position, low, high), position)
            confined |= (position >= low) & (position <= high)
        path[t] = position
    return path


def enter(
    size, side, speed, turns, pan, scene: Activity, rng: np.random.Generator
) -> np.ndarray:
    """[T, 2] centres of an object that comes in through a random border during the scene.

    Args:
      size, side, pan: see `wander`.
      speed: of an even scene.
      turns: [T] its changes of direction since the beginning, radians.
      scene: of which it picks a burst, if there is such a thing.
      rng: decides where and when.
    """
    count = len(turns)
    border = rng.integers(4)  # 0 top, 1 left, 2 bottom, 3 right
    axis = border % 2
    inward = 1.0 if border < 2 else -1.0
    lean = rng.uniform(-0.6, 0.6)
    heading = np.zeros(2)
    heading[axis] = inward * math.cos(lean)
    heading[1 - axis] = math.sin(lean)
    # Where it touches the border from outside, and when.
    touch = np.empty(2)
    touch[axis] = -side / 2 if inward > 0 else size + side / 2
    touch[1 - axis] = rng.uniform(side / 2, size - side / 2)
    if scene.bursts is None:
        way = rng.uniform(0.1, 0.7) * count
    else:
        begin, end = scene.bursts[rng.integers(len(scene.bursts))]
        way = scene.pace[1:begin].sum()
        # It is in when the burst ends.
        speed = max(speed, side / scene.pace[begin:end].sum())
    start = touch - way * speed * heading
    angle = math.atan2(heading[0], heading[1]) + turns
    return wander(size, side, start, speed * scene.pace, angle, pan, confined=(False, False))
