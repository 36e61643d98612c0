r"""Multiply-adds and parameters of the zoo against the tables of LFS and of Patchwork (PW).

  python -m benchmarks.costs --output_dir=benchmarks/results

Prints the tables, and writes them to costs.md and, in full precision, to costs.json.
"""

import os

from absl import flags

from memvid_tf import errors, files, provenance

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "output_dir",
    "benchmarks/results",
    "Folder of costs.json and costs.md. Example: --output_dir=benchmarks/results",
)

CONVENTION = (
    "A multiply-add is one kernel element applied at one position of the output; a parameter is "
    "one kernel element. No bias, no batch normalisation. Frames of 320 px (160 px for f1) for LFS "
    "and of 384 px for PW, 30 classes and the background. All numbers are in millions; ours are "
    "counted in graphs traced from the networks."
)
FIELDS = ("multiply_adds", "parameters")
TOTALS = ("f0", "f1", "interleaved")


def row_json(row) -> dict:
    """A `Row` with counts instead of millions; None where there is no number."""
    result = {"part": row.part}
    for field, millions in zip(FIELDS, row.paper):
        paper = None if millions is None else round(millions * 1e6)
        ours = None if row.cost is None else getattr(row.cost, field)
        known = paper is not None and ours is not None
        result[f"paper_{field}"] = paper
        result[field] = ours
        result[f"{field}_difference_percent"] = 100 * (ours / paper - 1) if known else None
    return {**result, "note": row.note}


def reading_json(reading) -> dict:
    """A `Reading` with its counts and its distance from the paper."""
    return {
        "choices": reading.choices,
        "is_default": reading.is_default,
        **{total: {f: getattr(getattr(reading, total), f) for f in FIELDS} for total in TOTALS},
        "largest_difference_percent": reading.largest_difference_percent,
    }


def measure() -> dict:
    """All tables, ready for JSON, without their provenance."""
    import tqdm

    from benchmarks import lfs_tables, patchwork_tables

    with tqdm.tqdm(total=8, desc="tracing", unit="table") as progress:

        def done(tables):
            progress.update()
            return tables

        by_cell = lfs_tables.detectors()
        sections = [
            done(lfs_tables.parts(by_cell)),
            done(lfs_tables.totals(by_cell)),
            done(lfs_tables.single_frame()),
            *done(lfs_tables.recurrent()),
            done(lfs_tables.other_systems()),
            done(patchwork_tables.table_1()),
            done(patchwork_tables.segmentation()),
        ]
        readings = done(lfs_tables.readings(by_cell))
    return {
        "schema_version": 1,
        "convention": CONVENTION,
        "sections": [
            {"title": s.title, "text": s.text, "rows": [row_json(row) for row in s.rows]}
            for s in sections
        ],
        "readings": {
            "text": lfs_tables.READINGS_TEXT,
            "rows": [reading_json(reading) for reading in readings],
        },
    }


def _number(value, form: str) -> str:
    return "" if value is None else format(value, form)


def _millions(value, form: str) -> str:
    return "" if value is None else format(value / 1e6, form)


def _section_markdown(section) -> str:
    import tabulate

    headers = ("part", "paper multiply-adds", "ours", "difference %")
    headers += ("paper parameters", "ours", "difference %", "note")
    lines = [
        (
            row["part"],
            _millions(row["paper_multiply_adds"], "g"),
            _millions(row["multiply_adds"], ".2f"),
            _number(row["multiply_adds_difference_percent"], "+.2f"),
            _millions(row["paper_parameters"], "g"),
            _millions(row["parameters"], ".3f"),
            _number(row["parameters_difference_percent"], "+.1f"),
            row["note"],
        )
        for row in section["rows"]
    ]
    table = tabulate.tabulate(lines, headers, "pipe", disable_numparse=True)
    return f"## {section['title']}\n\n{section['text']}\n\n{table}\n"


def _readings_markdown(readings) -> str:
    import tabulate

    choices = list(readings["rows"][0]["choices"])
    headers = ["", *choices, *TOTALS, "largest difference %"]
    headers += [f"{total} parameters" for total in TOTALS]
    lines = [
        [
            "*" if reading["is_default"] else "",
            *reading["choices"].values(),
            *(_millions(reading[total]["multiply_adds"], ".2f") for total in TOTALS),
            _number(reading["largest_difference_percent"], ".2f"),
            *(_millions(reading[total]["parameters"], ".3f") for total in TOTALS),
        ]
        for reading in readings["rows"]
    ]
    table = tabulate.tabulate(lines, headers, "pipe", disable_numparse=True)
    return f"## Readings\n\n{readings['text']}\n\n{table}\n"


def markdown(results: dict) -> str:
    """The page that shows what `measure` returned, with its provenance."""
    source = results["provenance"]
    return "\n".join(
        [
            "# Multiply-adds and parameters\n",
            f"Written by `python -m benchmarks.costs`, version {source['code_version']}, "
            f"{source['date']}.\n",
            results["convention"] + "\n",
            *map(_section_markdown, results["sections"]),
            _readings_markdown(results["readings"]),
        ]
    )


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    folder = FLAGS.output_dir
    if not folder or (os.path.exists(folder) and not os.path.isdir(folder)):
        raise errors.UserError(
            f"--output_dir={folder} is not a folder; name one, such as benchmarks/results"
        )
    results = {"provenance": provenance.describe(), **measure()}
    page = markdown(results)
    print(page)
    try:
        files.write_json(os.path.join(folder, "costs.json"), results)
        files.write_text(os.path.join(folder, "costs.md"), page)
    except OSError as error:
        raise errors.UserError(
            f"--output_dir={folder} cannot be written: {error.strerror}; choose another folder"
        ) from error


if __name__ == "__main__":
    errors.run(main)
