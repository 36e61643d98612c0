"""Claims of a paper as sentences with numbers, which hold over seeds or do not."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence with numbers.

    Attributes:
      sentence: what is claimed, with the bound.
      value: of one seed, from its scores by name.
      holds: whether a mean fulfils it.
      paper: the same number in the paper, as text.
    """

    sentence: str
    value: Callable[[dict[str, float]], float]
    holds: Callable[[float], bool]
    paper: str = ""


def spread(values: list[float]) -> dict[str, float]:
    """Mean and sample standard deviation; the latter 0 for one value."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "spread": deviation, "values": values}


def judged(claims: Sequence[Claim], scores: Sequence[dict[str, float]]) -> list[dict]:
    """Each claim with its numbers over the seeds, and whether their mean fulfils it.

    Args:
      claims: what is claimed.
      scores: of each seed.
    """
    rows = []
    for claim in claims:
        value = spread([claim.value(score) for score in scores])
        holds = claim.holds(value["mean"])
        rows.append({"claim": claim.sentence, **value, "paper": claim.paper, "holds": holds})
    return rows


def table(rows: Sequence[dict]) -> str:
    """The rows of `judged` as a table of Markdown."""
    from tabulate import tabulate

    cells = [
        [
            row["claim"],
            f"{row['mean']:.3f} ± {row['spread']:.3f}",
            row["paper"],
            "holds" if row["holds"] else "does not hold",
        ]
        for row in rows
    ]
    header = ["claim", "measured", "paper", ""]
    return tabulate(cells, header, tablefmt="github", disable_numparse=True)
