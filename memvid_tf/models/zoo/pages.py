"""What is known about an entry of the zoo, as Markdown."""

from memvid_tf.models import zoo
from memvid_tf.models.zoo import headers

FIELDS = ("Data", "Command", "Windows", "Hardware", "Hours", "Expected", "Result", "Next")

# What a card says of a mode: title, and how it is written.
NUMBERS = {
    "mAP": ("mAP@.5", "{:.3f}".format),
    "J": ("J", "{:.3f}".format),
    "F": ("F", "{:.3f}".format),
    "f0_share": ("share of f0", "{:.3f}".format),
    "max_multiply_adds": ("multiply-adds of the costliest frame, M", lambda n: f"{n / 1e6:.2f}"),
}


def listing() -> str:
    """All entries as a table."""
    from tabulate import tabulate

    rows = [
        [entry.name, entry.what, entry.paper, "ready" if entry.bundle else ""]
        for entry in zoo.ENTRIES
    ]
    return tabulate(rows, ["name", "what", "paper", "tiny bundle"], tablefmt="github")


def page(entry: zoo.Entry, measured: str = "") -> str:
    """What an entry is, how it is made, and its ready bundle.

    Args:
      entry: of the zoo.
      measured: Markdown with numbers of it.
    """
    reported = entry.reported or "nothing about it alone"
    parts = [f"# {entry.name}", f"{entry.what}.", f"{entry.paper}. The paper reports {reported}."]
    if measured:
        parts.append(measured)
    if entry.bundle:
        parts.append(_ready(entry))
    for title, config in (("At paper scale", entry.config), ("The tiny twin", entry.tiny)):
        path = zoo.config_path(config)
        lines = [f"## {title}: configs/{path.name}"]
        settings = entry.settings_of(config)
        if settings:
            lines.append(f"Add to --params_override in its commands: `{','.join(settings)}`")
        fields = headers.header(path)
        for field in FIELDS:
            if field in fields:
                lines.append(f"{field}:\n\n" + _indented(fields[field]))
        parts.append("\n\n".join(lines))
    return "\n\n".join(parts)


def counted(entry: zoo.Entry) -> str:
    """What an entry costs at paper scale, as a table. Takes seconds."""
    from tabulate import tabulate

    from memvid_tf.models.zoo import costs

    rows = [
        [row.what, row.multiply_adds / 1e6, row.parameters and row.parameters / 1e6]
        for row in costs.costs(entry)
    ]
    header = ["counted at paper scale", "multiply-adds, M", "parameters, M"]
    return tabulate(rows, header, tablefmt="github", floatfmt=".2f", missingval="not counted apart")


def _ready(entry):
    from tabulate import tabulate

    card = entry.card
    path = entry.bundle.relative_to(zoo.ROOT)
    names = list(next(iter(card["modes"].values())))
    rows = [
        [mode, *(NUMBERS[name][1](result[name]) for name in names)]
        for mode, result in card["modes"].items()
    ]
    header = ["mode", *(NUMBERS[name][0] for name in names)]
    table = tabulate(rows, header, tablefmt="github", disable_numparse=True)
    return "\n\n".join(
        [
            f"## Ready to run: {path}",
            f"Made by:\n\n{_indented(card['command'])}",
            f"On the first {card['clips']} test clips of the set that\n\n{_indented(card['data'])}"
            "\n\nmakes:",
            table,
            _indented(f"python -m memvid_tf.detect --bundle={path} --video=VIDEO --output=seen.mp4"),
        ]
    )


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
