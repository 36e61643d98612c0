"""Results of an evaluation as tables people read."""

from tabulate import tabulate


def number(value: float | None, digits: int = 3) -> str:
    """A number, or nothing where there is none."""
    return "" if value is None or value != value else f"{value:.{digits}f}"


def mode_table(modes: dict[str, dict], fmt: str = "github") -> str:
    """A row a mode: mAP and its motion split.

    Args:
      modes: by the mode's name, `VidMapResult.to_json()`.
      fmt: table format of `tabulate`.
    """
    rows = [
        [name, number(result["mean_ap"])]
        + [number(result["motion"].get(motion)) for motion in ("slow", "medium", "fast")]
        for name, result in modes.items()
    ]
    return tabulate(rows, ["mode", "mAP@.5", "slow", "medium", "fast"], tablefmt=fmt)
