"""Results of an evaluation as tables people read."""

from tabulate import tabulate


def number(value: float | None, digits: int = 3) -> str:
    """A number, or nothing where there is none."""
    return "" if value is None or value != value else f"{value:.{digits}f}"


def mode_table(modes: dict[str, dict], fmt: str = "github") -> str:
    """A row a mode: share of the frames on which f0 ran, mAP and its motion split.

    Args:
      modes: by the mode's name, `scoring.ModeResult.to_json()`.
      fmt: table format of `tabulate`.
    """
    rows = [
        [name, number(result["f0_share"]), number(result["mean_ap"])]
        + [number(result["motion"].get(motion)) for motion in ("slow", "medium", "fast")]
        for name, result in modes.items()
    ]
    return tabulate(rows, ["mode", "share of f0", "mAP@.5", "slow", "medium", "fast"], tablefmt=fmt)


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
    return tabulate(rows, header, tablefmt=fmt)
