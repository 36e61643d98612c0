"""Results as programs leave them: numbers in PATH.json, what people read in PATH.md."""

from memvid_tf import errors, files

def publish(output: str, result: dict, page: str, **pictures: str) -> None:
    """Prints a page and writes it with its numbers.

    Args:
      output: PATH; with "" nothing is written.
      result: the numbers.
      page: Markdown made of them.
      **pictures: SVG by name, for PATH_name.svg.

    Raises:
      UserError: if PATH cannot be written; the page has been printed by then.
    """
    print(page)
    if not output:
        return
    try:
        files.write_json(f"{output}.json", result)
        files.write_text(f"{output}.md", page)
        for name, picture in pictures.items():
            files.write_text(f"{output}_{name}.svg", picture)
    except OSError as error:
        raise errors.UserError(
            f"--output={output} cannot be written: {error.strerror}; choose another path"
        ) from error
    print(f"written: {output}.json and .md")
