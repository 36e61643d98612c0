"""Scoring Patchwork and single-frame networks on recorded clips: mAP, or J and F, in every mode."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from memvid_tf.evaluation import scoring
from memvid_tf.evaluation.coco import CocoResult
from memvid_tf.evaluation.davis import DavisResult
from memvid_tf.evaluation.mask_scoring import MaskScores
from memvid_tf.evaluation.vid_map import VidMapResult
from memvid_tf.evaluation.window_rollout import WindowMode, WindowNetwork, roll
from memvid_tf.runtime.manifest import BoxCoder


@dataclasses.dataclass(frozen=True)
class WindowResult:
    """What one mode reached, and what it cost.

    Attributes:
      score: mAP of a detector, J and F of a segmenter.
      max_multiply_adds, mean_multiply_adds: of a frame (PW 4); None where they are not known.
      action_shares: part of the windows that each action was.
      coco: COCO's numbers of a detector, where they were asked for.
    """

    score: VidMapResult | DavisResult
    max_multiply_adds: float | None
    mean_multiply_adds: float | None
    action_shares: tuple[float, ...] = ()
    coco: CocoResult | None = None

    def numbers(self) -> dict[str, float]:
        """What people compare: mAP, or J and F."""
        if isinstance(self.score, DavisResult):
            return {"J": self.score.j.mean, "F": self.score.f.mean}
        return {"mAP": self.score.mean_ap}

    def to_json(self) -> dict:
        """Returns plain values for `json.dump`."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del own["score"], own["coco"]
        if self.coco is not None:
            own["coco"] = self.coco.to_json()
        return {**self.score.to_json(), **own, "action_shares": list(self.action_shares)}


def evaluate(
    network: WindowNetwork,
    batches: Iterable[dict[str, np.ndarray]],
    modes: Sequence[WindowMode],
    labels: Sequence[str],
    coder: BoxCoder,
    *,
    motion_rule: str = "fgfa",
    coco: bool = False,
    advance: Callable[[int], None] = lambda clips: None,
) -> dict[str, WindowResult]:
    """Scores a network.

    Args:
      network: the network.
      batches: of `clips.clip_dataset` without training, as arrays; with masks for a segmenter.
      modes: the inference modes to score.
      labels: class names of a detector.
      coder: scales of the box code of a detector.
      motion_rule: of `VidMap`; of a detector.
      coco: whether COCO's numbers of a detector are wanted too.
      advance: called with the number of clips done since the last call.

    Returns:
      The result by the name of the mode.
    """
    segments = network.anchors is None
    made = MaskScores
    if not segments:
        made = functools.partial(scoring.Scores, labels, motion_rule=motion_rule, coco=coco)
    scores = {mode.name: made() for mode in modes}
    picked = {mode.name: [] for mode in modes}
    done = 0
    for batch in batches:
        clips = len(batch["frames"])
        for mode in modes:
            rolled = roll(network, batch["frames"], mode, first_clip=done)
            for i in range(clips):
                clip = {name: value[i] for name, value in batch.items()}
                found = {name: x[i] for name, x in rolled.predictions.items()}
                if segments:
                    scores[mode.name].add_clip(clip, found["mask_logits"])
                else:
                    heads = found["box_encodings"], found["class_logits"]
                    scoring.score_clip(scores[mode.name], clip, *heads, network.anchors, coder)
                picked[mode.name].append(rolled.actions[i, : clip["num_frames"]])
        done += clips
        advance(clips)
    costs, results = network.costs, {}
    for mode in modes:
        of = scores[mode.name]
        actions = np.concatenate(picked[mode.name])
        actions = actions[actions >= 0]
        shares = ()
        if len(actions):
            counts = np.bincount(actions, minlength=network.windows.count)
            shares = tuple((counts / len(actions)).tolist())
        score = of.result() if segments else of.vid_map.result()
        found = of.coco.result() if coco else None
        results[mode.name] = WindowResult(score, *mode.latency(costs), shares, found)
    return results
