"""Whether a training has reached its end, read from its folder alone: TensorFlow, which restores
checkpoints, takes many seconds to load."""

import re
from collections.abc import Sequence
from pathlib import Path

from memvid_tf.errors import UserError
from memvid_tf.tasks import yaml_text

PARAMS_FILE = "params.yaml"
_STEPS = "trainer.train_steps"
_LISTED = re.compile(r'model_checkpoint_path: "(?:[^"]*/)?(ckpt-(\d+))"')
_PAIR = re.compile(r"([\w.]+)=((?:\[[^\]]*\]|[^,\[\]])*)(?:,|$)")


def reached(model_dir: str) -> int:
    """Step of the newest checkpoint of a folder, after which the trainer names it; 0 if there is
    none, or if that cannot be told."""
    folder = Path(model_dir)
    try:
        listed = _LISTED.match((folder / "checkpoint").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0
    return int(listed[2]) if listed and (folder / f"{listed[1]}.index").exists() else 0


def message(model_dir: str, steps: int) -> str | None:
    """What to say where there is nothing left to do up to a step, else None."""
    step = reached(model_dir)
    if not 0 < steps <= step:
        return None
    return (
        f"nothing to do: {model_dir} has reached step {step} of {steps}; "
        "raise trainer.train_steps or choose another --model_dir"
    )


def early_message(
    model_dir: str, experiment: str, files: Sequence[str], pairs: str
) -> str | None:
    """As `message`, without the experiments' defaults, which only TensorFlow's libraries know.

    Args:
      model_dir: folder of the training.
      experiment, files, pairs: see `configuration.load`.

    Returns:
      None, too, where it takes the whole configuration to judge: what is asked for is not what
      `model_dir` was trained with, or leaves the number of steps to the experiment.
    """
    try:
        saved = _read(Path(model_dir) / PARAMS_FILE)
        asked = {}
        for file in files:
            asked |= _leaves(_read(Path(file)))
        asked |= {key: yaml_text.parse(value, key, "YAML") for key, value in _pairs(pairs)}
    except (OSError, ValueError, UserError):  # is said when the configuration is loaded
        return None
    saved, steps = _leaves(saved), asked.pop(_STEPS, None)
    same = all(key in saved and saved[key] == value for key, value in asked.items())
    if type(steps) is not int or not same or saved.get("task.name") != experiment:
        return None
    return message(model_dir, steps)


def _read(path: Path) -> object:
    return yaml_text.parse(path.read_text(encoding="utf-8"), str(path), "YAML")


def _pairs(text: str) -> list[tuple[str, str]]:
    """The pairs of `a.b=1,c=[1,2]`; ValueError for anything else."""
    found = list(_PAIR.finditer(text))
    if "".join(pair[0] for pair in found) != text:
        raise ValueError(text)
    return [(pair[1], pair[2]) for pair in found]


def _leaves(content: object, path: str = "") -> dict[str, object]:
    """The values of nested sections by their dotted names."""
    if not isinstance(content, dict):
        return {path: content}
    found = {}
    for key, value in content.items():
        found |= _leaves(value, f"{path}.{key}" if path else str(key))
    return found
