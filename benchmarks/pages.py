"""Results as programs leave them: numbers in PATH.json, what people read in PATH.md."""

import statistics

from memvid_tf import errors, files


def spread(values: list[float]) -> dict[str, float]:
    """Mean and sample standard deviation; the latter 0 for one value."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "spread": deviation, "values": values}


def publish(output: str, result: dict, page: str) -> None:
    """Prints a page and writes it with its numbers.

    Args:
      output: PATH; with "" nothing is written.
      result: the numbers.
      page: Markdown made of them.

    Raises:
      UserError: if PATH cannot be written; the page has been printed by then.
    """
    print(page)
    if not output:
        return
    try:
        files.write_json(f"{output}.json", result)
        files.write_text(f"{output}.md", page)
    except OSError as error:
        raise errors.UserError(
            f"--output={output} cannot be written: {error.strerror}; choose another path"
        ) from error
    print(f"written: {output}.json and .md")
