"""Clips as evaluation runs them: every video from its first frame to its last.

A data set stores long videos in pieces (`ConversionConfig.eval_clip_frames`), which follow one
another in a split and say in their ids where they belong. Joined again, the state is carried from
one to the next and a video is one sequence of DAVIS.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np

Clip = dict[str, np.ndarray]
# What a clip of `clips.clip_dataset` has for every frame.
_PER_FRAME = ("frames", "boxes", "classes", "tracks", "masks")


@dataclasses.dataclass
class Coverage:
    """What was handed out, of what there is; counted while `whole_videos` runs.

    Attributes:
      videos: all of them.
      frames: that were handed out.
      all_frames: that there are.
    """

    videos: int = 0
    frames: int = 0
    all_frames: int = 0

    def text(self) -> str:
        """A line for the user."""
        if self.frames == self.all_frames:
            return f"scored: all {self.frames} frames of {self.videos} videos"
        return f"scored: {self.frames} of the {self.all_frames} frames of {self.videos} videos"


def whole_videos(
    batches: Iterable[Clip],
    coverage: Coverage,
    max_frames: int = 0,
    advance: Callable[[int], None] = lambda clips: None,
) -> Iterator[Clip]:
    """Joins the pieces of each video.

    Args:
      batches: of `clips.clip_dataset` in file order, with `clip_id`, as arrays.
      coverage: is counted up.
      max_frames: most frames of a video, from its first; 0 for all.
      advance: called with the number of stored clips done since the last call.

    Yields:
      Batches of whole videos: as they come where clips are no pieces, else one at a time.
    """
    for stored, batch in _joined(batches):
        length = batch["num_frames"]
        coverage.videos += len(length)
        coverage.all_frames += int(length.sum())
        if max_frames:
            cut = {name: batch[name][:, :max_frames] for name in _PER_FRAME if name in batch}
            batch = {**batch, **cut, "num_frames": np.minimum(length, max_frames)}
        coverage.frames += int(batch["num_frames"].sum())
        yield batch
        advance(stored)


def _joined(batches) -> Iterator[tuple[int, Clip]]:
    """Pairs of the number of stored clips and what they make."""
    held: list[Clip] = []
    for batch in batches:
        pieces = [_place(clip_id)[1] is not None for clip_id in batch["clip_id"]]
        if not any(pieces):
            if held:
                yield len(held), _one(held)
                held = []
            yield len(pieces), batch
            continue
        for i in range(len(pieces)):
            piece = {name: value[i] for name, value in batch.items()}
            if held and not _follows(piece, held):
                yield len(held), _one(held)
                held = []
            held.append(piece)
    if held:
        yield len(held), _one(held)


def _place(clip_id: bytes) -> tuple[bytes, int | None]:
    """A clip's video, and its first frame there; None of a clip that is no piece."""
    video, _, first = clip_id.rpartition(b":")
    return (video, int(first)) if first.isdigit() and video else (clip_id, None)


def _follows(piece: Clip, held: list[Clip]) -> bool:
    """Whether a piece goes on where those that are held end."""
    video, first = _place(held[0]["clip_id"])
    if first is None:
        return False
    end = first + sum(int(clip["num_frames"]) for clip in held)
    return _place(piece["clip_id"]) == (video, end)


def _one(held: list[Clip]) -> Clip:
    """The batch of one video that the pieces make."""
    joined = {
        name: np.concatenate([clip[name][: clip["num_frames"]] for clip in held])
        for name in _PER_FRAME
        if name in held[0]
    }
    frames = np.int32(sum(int(clip["num_frames"]) for clip in held))
    video = {**held[0], **joined, "num_frames": frames}
    return {name: np.asarray(value)[np.newaxis] for name, value in video.items()}
