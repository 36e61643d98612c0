"""What the tests share."""

import os
import pathlib
import signal

import pytest
from absl import flags

import memvid_tf  # noqa: F401  (says what TensorFlow may log, before that is imported)

PACKAGES = ("memvid_tf", "export", "benchmarks")


def pytest_configure(config):
    # With nohup, or in a shell's background, every program of ours would ignore them too.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line(
        "markers", "slow: a full conversion, training or generation; CI runs it too"
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Keeps the tests of a file in one process, and those that share trainings."""
    for item in items:
        names = vars(item.module)
        shared = [name for name in ("tiny_windows", "tiny_run") if name in names]
        item.add_marker(pytest.mark.xdist_group((*shared, item.module.__name__)[0]))
    yield
    # Programs that later tests run would meet flags of the same names.
    defined = {flags.FLAGS.find_module_defining_flag(name) for name in flags.FLAGS}
    programs = [module for module in defined if module.startswith(PACKAGES)]
    if programs:
        raise pytest.UsageError(f"import {', '.join(programs)} with flagless.program in tests")
    # Unnoticed, every process would train all that is shared.
    if config.getoption("loadgroup", False) and not all("@" in item.nodeid for item in items):
        raise pytest.UsageError("pytest-xdist does not group tests with this version of pytest")


@pytest.fixture(scope="session")
def fixtures_dir() -> pathlib.Path:
    """Folder of real files (DAVIS sequences, COCO results, other people's models).

    `MEMVID_FIXTURES`, or `shared/fixtures` beside the repository; the test is skipped without it.
    """
    repository = pathlib.Path(__file__).resolve().parent.parent
    default = repository.parent / "shared" / "fixtures"
    folder = pathlib.Path(os.environ.get("MEMVID_FIXTURES", default))
    if not folder.is_dir():
        pytest.skip(f"no real files at {folder}; set MEMVID_FIXTURES to their folder")
    return folder
