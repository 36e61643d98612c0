"""Results of an evaluation as tables people read."""

from tabulate import tabulate

from memvid_tf.evaluation.vid_map import VidMapResult


def number(value: float | None, digits: int = 3) -> str:
    """A number, or nothing where there is none."""
    return "" if value is None or value != value else f"{value:.{digits}f}"


def _table(rows: list[list], header: list[str], fmt: str) -> str:
    # Numbers come with their digits, of which the last may be a zero.
    return tabulate(rows, header, tablefmt=fmt, disable_numparse=True)


def class_rows(results: dict[str, VidMapResult]) -> list[list]:
    """A table of the classes, header first: mode, class, AP."""
    return [["mode", "class", "ap"]] + [
        [mode, label, number(ap, 6)]
        for mode, result in results.items()
        for label, ap in result.per_class_ap.items()
    ]


def video_rows(results: dict[str, VidMapResult]) -> list[list]:
    """A table of the videos, header first: mode, video, frames, objects, detections, mean AP."""
    return [["mode", "video", "frames", "objects", "detections", "mean_ap"]] + [
        [mode, v.video, v.frames, v.objects, v.detections, number(v.mean_ap, 6)]
        for mode, result in results.items()
        for v in result.videos
    ]


def mode_table(modes: dict[str, dict], fmt: str = "github") -> str:
    """A row a mode: share of the frames on which f0 ran, mAP and its motion split, and COCO's AP
    where it was computed.

    Args:
      modes: by the mode's name, `scoring.ModeResult.to_json()`.
      fmt: table format of `tabulate`.
    """
    rows = [
        [name, number(result["f0_share"]), number(result["mean_ap"])]
        + [number(result["motion"].get(motion)) for motion in ("slow", "medium", "fast")]
        for name, result in modes.items()
    ]
    header = ["mode", "share of f0", "mAP@.5", "slow", "medium", "fast"]
    return _table(*_with_coco(rows, header, modes), fmt)


def _with_coco(rows, header, modes):
    """Rows and header with COCO's AP behind them, where it was computed."""
    if not any("coco" in result for result in modes.values()):
        return rows, header
    values = [number(result["coco"]["numbers"]["AP"]) for result in modes.values()]
    return [[*row, value] for row, value in zip(rows, values)], [*header, "COCO AP"]


def streaming_table(modes: dict[str, dict], fmt: str = "github") -> str:
    """A row a mode: how much of the video was processed, how old what is shown is, and mAP.

    Args:
      modes: by the mode's name, `streaming.StreamingResult.to_json()`.
      fmt: table format of `tabulate`.
    """
    rows = [
        [
            name,
            number(result["processed_share"]),
            number(result["f0_share"]),
            number(result["age_ms"], 1),
            number(result["mean_ap"]),
        ]
        for name, result in modes.items()
    ]
    header = ["mode", "frames processed", "share of f0", "age ms", "streaming mAP@.5"]
    return _table(rows, header, fmt)


def window_table(modes: dict[str, dict], fmt: str = "github") -> str:
    """A row a mode of Patchwork: mAP and its motion split, or J and F, the latency in
    multiply-adds (PW 4), and COCO's AP where it was computed.

    Args:
      modes: by the mode's name, `window_scoring.WindowResult.to_json()`.
      fmt: table format of `tabulate`.
    """

    def millions(value):
        return number(None if value is None else value / 1e6, 2)

    rows = []
    for name, result in modes.items():
        if "j" in result:
            scores = [number(result["j"]["mean"]), number(result["f"]["mean"])]
        else:
            motion = [number(result["motion"].get(key)) for key in ("slow", "medium", "fast")]
            scores = [number(result["mean_ap"]), *motion]
        costs = [millions(result[f"{kind}_multiply_adds"]) for kind in ("max", "mean")]
        rows.append([name, *scores, *costs])
    segments = any("j" in result for result in modes.values())
    scores = ["J", "F"] if segments else ["mAP@.5", "slow", "medium", "fast"]
    header = ["mode", *scores, "max MMAC", "mean MMAC"]
    return _table(*_with_coco(rows, header, modes), fmt)
