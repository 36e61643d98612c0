"""Programs as modules: their flags have the same names, and one test process imports many."""

import importlib
import types

from absl import flags, logging  # noqa: F401  (logging defines flags that must stay)


def program(module: str) -> types.ModuleType:
    """Imports a program for its functions; its flags are defined only where it runs."""
    known = set(flags.FLAGS)
    try:
        return importlib.import_module(module)
    finally:
        for name in set(flags.FLAGS) - known:
            delattr(flags.FLAGS, name)
