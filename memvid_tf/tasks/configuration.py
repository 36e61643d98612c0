"""Experiments: typed defaults, overridden by YAML files and by `key=value` pairs.

`official.core` refuses unknown keys but takes a value of any type; what is checked here fails at
the start, naming the key, the value and what is allowed, instead of an hour later.
"""

import dataclasses
import os
import types
import typing
from collections.abc import Sequence

import yaml
from official.core import config_definitions, exp_factory
from official.modeling import hyperparams
from official.modeling.hyperparams import params_dict

from memvid_tf import files
from memvid_tf.errors import UserError
from memvid_tf.tasks import yaml_text
from memvid_tf.tasks.config_rules import check_value, short
from memvid_tf.tasks.ended import PARAMS_FILE


def _type_name(kind) -> str:
    # A generic type has a name too, but only "Optional" of "Optional[int]".
    plain = isinstance(kind, type) and not typing.get_args(kind)
    return kind.__name__ if plain else str(kind).replace("typing.", "")


def _section(kind) -> type[hyperparams.Config] | None:
    """The class of a section that may be missing: C of the annotation `C | None`.

    `Config` itself stands for any mapping.
    """
    base = hyperparams.Config
    for option in typing.get_args(kind):
        if isinstance(option, type) and issubclass(option, base) and option is not base:
            return option
    return None


def _matches(value, kind) -> bool:
    """Whether a value from YAML may stand for a field annotated with `kind`."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_matches(value, arg) for arg in args)
    if kind is typing.Any:
        return True
    if kind is type(None):
        return value is None
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is float:
        return isinstance(value, (int, float))
    if origin in (list, tuple, Sequence):
        element = args[0] if args else typing.Any
        return isinstance(value, (list, tuple)) and all(_matches(v, element) for v in value)
    if isinstance(kind, type) and issubclass(kind, hyperparams.Config):
        return isinstance(value, dict)
    return not isinstance(kind, type) or isinstance(value, kind)


def check_overrides(config: hyperparams.Config, overrides: dict, path: str = "") -> None:
    """Checks keys, types and values of overrides against the fields of a configuration.

    Raises:
      UserError: naming the first key that is unknown or not read, or a value of a wrong type or out
        of its range, and what is allowed.
    """
    hints = {}
    if dataclasses.is_dataclass(config):
        hints = typing.get_type_hints(type(config))
    # Not `as_dict`, which shows only the chosen one of alternatives such as optimizers.
    known = [key for key in vars(config) if key not in config.RESERVED_ATTR]
    for key, value in overrides.items():
        name = f"{path}{key}"
        if key not in known:
            raise UserError(
                f"configuration: unknown key {short(name)}; known under {path or 'the top'}: "
                f"{', '.join(sorted(known))}"
            )
        child = getattr(config, key)
        if isinstance(child, hyperparams.Config):
            if not isinstance(value, dict):
                raise UserError(f"configuration: {name} is a section, got {short(value)}")
            check_overrides(child, value, f"{name}.")
        elif key in hints and not _matches(value, hints[key]):
            raise UserError(
                f"configuration: {name} = {short(value)} is a {type(value).__name__}, "
                f"expected {_type_name(hints[key])}"
            )
        elif isinstance(value, dict) and _section(hints.get(key)):
            check_overrides(_section(hints[key])(), value, f"{name}.")
        elif isinstance(config, hyperparams.OneOfConfig) and key == "type":
            alternatives = sorted(set(known) - {"type"})
            if value is not None and value not in alternatives:
                raise UserError(
                    f"configuration: {name} = {short(value)} is not one of: "
                    f"{', '.join(alternatives)}"
                )
        else:
            check_value(config, key, value, name)


def read_yaml(path: str) -> dict:
    """The sections of a configuration file, or UserError saying why it cannot be read."""
    what = f"configuration file {path!r}"
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(yaml_text.MOST_CHARACTERS + 1)
    except OSError as error:
        raise UserError(f"{what} cannot be read: {error.strerror}") from error
    except ValueError as error:  # not UTF-8
        raise UserError(f"{what} is not valid YAML: {error}") from error
    content = yaml_text.parse(text, what, "valid YAML")
    if not isinstance(content, dict):
        raise UserError(f"{what} holds no sections; see configs/")
    return content


def _parse_pairs(pairs: str) -> dict:
    """`a.b=1,a.c=x` as nested dictionaries."""
    what = f"--params_override {short(pairs)}"
    wanted = "a list of key=value pairs such as 'trainer.train_steps=100,task.seed=1'"
    try:
        text = params_dict.nested_csv_str_to_json_str(pairs)
    except RecursionError as error:
        most = yaml_text.MOST_LEVELS
        raise UserError(f"{what} is nested more than {most} levels deep") from error
    except ValueError as error:
        raise UserError(f"{what} is not {wanted}: {str(error)[:300]}") from error
    return yaml_text.parse(text, what, wanted) or {}


def _override(params, overrides: dict):
    check_overrides(params, overrides)
    params.override(overrides)


def load(
    experiment: str, files: Sequence[str] = (), pairs: str = ""
) -> config_definitions.ExperimentConfig:
    """The configuration of a run.

    Args:
      experiment: name of a registered experiment.
      files: YAML files, later ones override earlier ones.
      pairs: `key=value,...`, overrides the files.

    Raises:
      UserError: unknown experiment, key or type, or contradicting values.
    """
    try:
        params = exp_factory.get_exp_config(experiment)
    except LookupError as error:
        known = ", ".join(sorted(exp_factory._REGISTERED_CONFIGS))
        raise UserError(f"experiment {experiment!r} is not one of: {known}") from error
    for file in files:
        _override(params, read_yaml(file))
    if pairs:
        _override(params, _parse_pairs(pairs))
    try:
        params.validate()
    except KeyError as error:
        raise UserError(f"configuration: {error.args[0]}") from error
    trainer = params.trainer
    if trainer.summary_interval % trainer.steps_per_loop:
        raise UserError(
            f"configuration: trainer.summary_interval {trainer.summary_interval} is not a multiple "
            f"of trainer.steps_per_loop {trainer.steps_per_loop}"
        )
    return params


def load_saved(model_dir: str) -> config_definitions.ExperimentConfig:
    """The configuration that lies beside the checkpoints of a run; see `load`."""
    path = os.path.join(model_dir, PARAMS_FILE)
    if not os.path.exists(path):
        raise UserError(
            f"{model_dir!r} holds no {PARAMS_FILE}; is it the --model_dir of a training?"
        )
    task = read_yaml(path).get("task")
    if not isinstance(task, dict) or not isinstance(task.get("name"), str):
        raise UserError(f"{path!r} does not name its experiment under task.name")
    return load(task["name"], [path])


def save(params: config_definitions.ExperimentConfig, model_dir: str) -> None:
    """Writes params.yaml beside the checkpoints, whole or not at all."""
    plain = yaml.safe_dump(_plain(params.as_dict()), sort_keys=False)
    files.write_text(os.path.join(model_dir, PARAMS_FILE), plain)


def _plain(value):
    """Lists for tuples, which YAML does not know."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def difference(saved: dict, wanted: dict, path: str = "") -> str | None:
    """The first leaf in which two configurations differ, as a phrase, or None."""
    # Which alternative is chosen comes before what belongs to it.
    for key in sorted(set(saved) | set(wanted), key=lambda key: (key != "type", key)):
        name = f"{path}{key}"
        a, b = _plain(saved.get(key)), _plain(wanted.get(key))
        if isinstance(a, dict) and isinstance(b, dict):
            found = difference(a, b, f"{name}.")
            if found:
                return found
        elif a != b:
            return f"{name} is {short(a)} there and {short(b)} here"
    return None
