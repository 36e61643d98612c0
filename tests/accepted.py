"""Commands as a reader types them: accepted or refused as their program would, without running it."""

import contextlib
import dataclasses
import importlib.util
import runpy
import shlex
import sys
import warnings
from unittest import mock

from absl import flags

from memvid_tf.errors import UserError
from memvid_tf.models import zoo
from memvid_tf.tasks import configuration, training  # noqa: F401  (registers the experiments)

ROOT = zoo.ROOT
OURS = ("memvid_tf", "export", "benchmarks")


@dataclasses.dataclass
class Parsed:
    """A program that would now run.

    Attributes:
      words: arguments that are no flags.
      values: of its flags; given: names of those that the command gives.
      namespace: of the module.
    """

    words: list[str]
    values: dict
    given: set[str]
    namespace: dict


def parse(module: str, arguments: list[str]) -> Parsed:
    """Runs a program up to its `main`."""
    known, argv, left = set(flags.FLAGS), [module, *arguments], []

    def run(main, flags_parser):
        left.extend(flags.FLAGS(sys.argv)[1:])

    with mock.patch.object(sys, "argv", argv), mock.patch("absl.app.run", run):
        try:
            with warnings.catch_warnings():  # that another program has imported the module before
                warnings.simplefilter("ignore", RuntimeWarning)
                namespace = runpy.run_module(module, run_name="__main__", alter_sys=True)
            new = {name: flags.FLAGS[name] for name in set(flags.FLAGS) - known}
            values = {name: flag.value for name, flag in new.items()}
            given = {name for name, flag in new.items() if flag.present}
        finally:
            # Programs define flags of the same names: each must find them undefined.
            for name in set(flags.FLAGS) - known:
                if not flags.FLAGS.find_module_defining_flag(name).startswith("absl"):
                    delattr(flags.FLAGS, name)
    return Parsed(left, values, given, namespace)


def check_words(module: str, parsed: Parsed) -> None:
    """Words that are no flags mean something in three programs alone."""
    words = parsed.words
    if module == "memvid_tf.data":
        allowed = parsed.namespace["_COMMAND_FLAGS"]
        assert len(words) == 1 and words[0] in allowed, f"{words} is not one of {sorted(allowed)}"
        assert parsed.given <= allowed[words[0]], f"{words[0]} takes no {parsed.given}"
    elif module == "memvid_tf.models.zoo":
        assert words == ["list"] or words[0] == "show" and len(words) == 2, words
        for name in words[1:]:
            zoo.find(name)
    elif module == "benchmarks.report":
        files = words[1:] if words[0] == "compare" else words
        assert files and all(name.endswith(".json") for name in files), words
        assert words[0] != "compare" or len(files) == 2, words
    else:
        assert not words, f"{words} are no flags"


def check(command: str, made: dict[str, str] | None = None) -> None:
    """Refuses a command that the program would refuse.

    Args:
      command: as a reader types it.
      made: YAML files that the page shows, by name.

    Raises:
      AssertionError: saying what is wrong.
    """
    python, m, module, *arguments = shlex.split(command, comments=True)
    assert (python, m) == ("python", "-m")
    if module.split(".")[0] not in OURS:
        assert importlib.util.find_spec(module), f"no module {module}"
        paths = [word for word in arguments if not word.startswith("-")]
        assert all((ROOT / path).exists() for path in paths), paths
        return
    try:
        spec = importlib.util.find_spec(module)
        assert spec, f"no module {module}"
        parsed = parse(module, arguments)
        check_words(module, parsed)
        if module == "memvid_tf.train":
            files = [(made or {}).get(name, name) for name in parsed.values["config_file"]]
            with contextlib.chdir(ROOT):
                overrides = parsed.values["params_override"]
                configuration.load(parsed.values["experiment"], files, overrides)
        if module == "memvid_tf.evaluate":
            for word in parsed.values["modes"]:
                check_mode(word)
    except (flags.Error, UserError, ImportError) as error:
        raise AssertionError(f"{command}: {error}") from error


def check_mode(word: str) -> None:
    """Raises UserError for what is no mode of `memvid_tf.evaluate`."""
    from memvid_tf.evaluation import rollout, window_rollout

    windowed = word.partition("+")[0] in window_rollout.MODES
    (window_rollout if windowed else rollout).parse_mode(word)
