"""The native runner ends in one line: whatever the plan, the files and the library are."""

import functools
import os
import random
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks.runner import build, local, plan, probe, schedules
from benchmarks.runner.plan import GIVEN
from memvid_tf.models import zoo
from memvid_tf.runtime import litert
from memvid_tf.runtime.bundle import Bundle

SEED, PLANS, GRAPHS = 20261130, 100, 20
CHATTER = ("INFO:", "WARNING:", "ERROR:")
# No number that a plan may hold is among them, or a run could take for ever and be right.
HOSTILE = (
    "-7", "-9223372036854775808", "99999999999999999999", "4294967297", "nan", "inf", "1e999", "",
    "x", "%s%n", "A" * 3000, "/dev/zero", "/proc/self/mem", ".", "none.bin",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def binary():
    """Every test needs it."""
    try:
        return build.build(build.host())
    except build.NoCompiler as error:
        pytest.skip(str(error))


def run(folder, library=None):
    """Runs the plan in a folder; returns the exit code and the lines that are not LiteRT's."""
    command = [build.build(build.host()), local.PLAN, local.RESULT]
    done = subprocess.run(
        [*command, library or build.litert_library()],
        cwd=folder, capture_output=True, text=True, errors="replace", timeout=60,
    )  # fmt: skip
    lines = done.stderr.splitlines()
    return done.returncode, [x for x in lines if x and not x.startswith(CHATTER)]


def refused(folder, library=None):
    """The one line that says why, without a result."""
    code, lines = run(folder, library)
    assert code == 3 and len(lines) == 1, (code, lines)
    assert not (folder / local.RESULT).exists()
    assert lines[0].startswith("memvid_runner: ") and len(lines[0]) < 4000
    return lines[0]


@functools.cache
def bundle(name):
    """A ready bundle."""
    return Bundle.load(zoo.BUNDLES / name)


def job(kind):
    """A job of one of KINDS, at most some frames long."""
    interleaved, windows = bundle("interleaved_policy"), bundle("detector_patchwork")
    if kind == "graph":
        return plan.graph(interleaved.path / "f1.tflite", "serving_default", 1, runs=2, warm_up=1)
    if kind == "golden":
        return plan.goldens(interleaved)
    of = windows if kind == "random" else interleaved
    tau = None if kind == "random" else 2
    wish = schedules.ScheduleSetting(kind, tau, frames=4, warm_up=1, record=True)
    return schedules.schedule(of, wish, schedules.random_frames(of, 2, seed=0))


KINDS = ("graph", "golden", "sync", "adaptive+async", "random")

# The library.

FAKE = """
#include <stdlib.h>
#include <string.h>
static int act() {
  const char* way = getenv("MEMVID_FAKE");
  if (!strcmp(way, "dies")) abort();
  return !strcmp(way, "refuses") ? 500 : 0;
}
extern "C" {
FUNCTIONS
}
"""


@pytest.fixture(scope="module")
def fake_library(tmp_path_factory):
    """A function that makes a library with the names of LiteRT, some left out."""
    folder = tmp_path_factory.mktemp("fake")
    text = (build.SOURCES / "litert.cpp").read_text(encoding="utf-8")
    names = re.findall(r"^ +X\((\w+),", text, re.MULTILINE) + ["CreateModelFromFd"]
    assert len(names) == 31

    def make(without=""):
        functions = [f"int LiteRt{name}() {{ return act(); }}" for name in names if name != without]
        source, library = folder / f"fake{without}.cpp", folder / f"fake{without}.so"
        source.write_text(FAKE.replace("FUNCTIONS", "\n".join(functions)))
        command = [*build.compiler(build.host()), "-shared", "-fPIC", source, "-o", library]
        subprocess.run(command, check=True, capture_output=True)
        return library

    return make


@pytest.fixture
def folder(tmp_path):
    """A folder with a plan that is right."""
    local.place(job("graph"), tmp_path)
    return tmp_path


def test_a_library_of_another_abi_is_one_line(fake_library, folder, monkeypatch):
    whole, older = fake_library(), fake_library(without="CreateModelFromFd")
    other = f"{re.escape(f'is not libLiteRt.so of ai-edge-litert {litert.RANGE}')}: .*"
    for way, reason in (
        ("dies", "it dies of signal 6"),
        ("refuses", "LiteRtCreateEnvironment failed with status 500"),
        ("nothing", "no such signature"),
    ):
        monkeypatch.setenv("MEMVID_FAKE", way)
        assert re.search(other + reason, refused(folder, whole))
    assert re.search(other + "LiteRT has no LiteRtCreateModelFromFd", refused(folder, older))
    assert re.search(other + "cannot load", refused(folder, folder / GIVEN / "f1.tflite"))
    assert re.search(other + "cannot load", refused(folder, "none.so"))
    left = {path.name for path in folder.iterdir()}
    assert left == {local.PLAN, GIVEN.strip("/")}, "the probe is left behind"


def test_the_probe_is_the_graph_that_its_header_holds():
    header = (build.SOURCES / "probe.hpp").read_text(encoding="utf-8")
    assert header == probe.header(probe.model())
    made = litert.interpreter(probe.model(), 1)
    assert made.get_signature_list() == {"probe": {"inputs": ["x"], "outputs": ["y"]}}
    x = made.get_input_details()[0]
    assert tuple(x["shape"]) == probe.SHAPE


@pytest.mark.parametrize(
    "code, said",
    [(3, "ended with code 3"), (-7, "died of SIGBUS"), (139, "died of SIGSEGV"),
     (124, "ended with code 124"), (255, "ended with code 255")],
)  # fmt: skip
def test_codes_of_programs_and_shells(code, said):
    assert local.ending(code) == said


# Plans.


@pytest.mark.parametrize(
    "kind, pattern, other, message",
    [
        ("graph", r"runs 2", "runs -2", "runs is '-2', wanted a whole number from 1 to"),
        ("graph", r"runs 2", "runs 99999999999", "runs is '99999999999', wanted a whole number"),
        ("graph", r"threads 1", "threads 0", "threads is '0', wanted a whole number from 1"),
        ("graph", r"runs 2", "runs", "a line has too few words"),
        ("sync", r"period_us \S+", "period_us 1e999", "period_us is '1e999', wanted a number from"),
        ("sync", r"period_us \S+", "period_us nan", "period_us is 'nan', wanted a number from"),
        ("sync", r"period_us \S+", "period_us x", "period_us is 'x', wanted a number from"),
        ("sync", r"length 5 1", "length 5 5", "warm-up is '5', wanted .* from 0 to 4"),
        ("sync", r"frames 2", "frames -1", "frames is '-1', wanted a whole number from 1"),
        ("sync", r"frames 2 \d+", "frames 30000 30000", r"\d+ bytes, wanted \d{12}"),
        ("sync", r"image f1 2", "image f1 0", "factor is '0', wanted a whole number from 1 to"),
        ("random", r"length 5", "length 6", "length is '6', wanted a whole number from 1 to 5"),
        ("random", r"windows (\d+) \d+", r"windows \1 99", "adjacent is '99', wanted"),
        ("random", r"window_image \d+", "window_image 20000", "window of 20000 x .* does not fit"),
    ],
)
def test_numbers_out_of_range_are_named(tmp_path, kind, pattern, other, message):
    right = job(kind)
    local.place(right, tmp_path)
    assert re.search(pattern, right.text)
    (tmp_path / local.PLAN).write_text(re.sub(pattern, other, right.text))
    assert re.search(message, refused(tmp_path))


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("state/actions.bin", [-1, 99, 0, 0, 0], "actions.bin: holds 99, wanted -1 to"),
        ("state/read.bin", None, "read.bin: holds 2147483647, wanted 0 to"),
        ("state/places.bin", None, "places.bin: holds 2147483647, wanted 0 to"),
    ],
)
def test_tables_that_point_outside_are_named(tmp_path, file, content, message):
    right = job("random")
    whole = right.files[file]
    data = b"\xff\xff\xff\x7f" + whole[4:]
    if content is not None:
        data = b"".join(number.to_bytes(4, "little", signed=True) for number in content)
    right.files[file] = data
    local.place(right, tmp_path)
    assert re.search(message, refused(tmp_path))


def test_files_that_are_none(tmp_path, folder):
    """A pipe must not be waited for, a sparse file not be read, a graph not be half there."""
    text = (folder / local.PLAN).read_text()
    wish = f"set {GIVEN}f1.tflite:serving_default image {{}}\n"
    os.mkfifo(folder / "pipe")
    with open(folder / "sparse", "wb") as file:
        file.truncate(1 << 36)
    for name, message in (
        ("pipe", "pipe: not a file"),
        (".", ".: not a file"),
        ("sparse", "sparse: 68719476736 bytes, wanted "),
        ("none", "none: No such file"),
    ):
        (folder / local.PLAN).write_text(text.replace("end\n", wish.format(name) + "end\n"))
        assert message in refused(folder)
    (folder / local.PLAN).unlink()
    (folder / local.PLAN).symlink_to("sparse")
    assert "plan.txt: 68719476736 bytes, wanted at most" in refused(folder)
    (folder / local.PLAN).unlink()
    (folder / local.PLAN).write_text(text)


def test_damaged_graphs(tmp_path):
    """LiteRT checks little of a file: it dies of some, which is a line too."""
    local.place(job("graph"), tmp_path)
    graph = tmp_path / GIVEN / "f1.tflite"
    whole, rng = graph.read_bytes(), random.Random(SEED)
    graph.unlink()
    damaged = [whole[:size] for size in (0, 5, 100, len(whole) // 2, len(whole) - 9)]
    for _ in range(GRAPHS):
        content = bytearray(whole)
        for _ in range(20):
            content[rng.randrange(2000)] = rng.randrange(256)
        damaged.append(bytes(content))
    codes = set()
    for content in damaged:
        graph.write_bytes(content)
        code, lines = run(tmp_path)
        codes.add(code)
        assert code in (0, 3, 4) and len(lines) == (code != 0), (code, lines)
        assert not lines or "f1.tflite" in lines[0]
    # Of the cut ones at least, some end as they should.
    assert 3 in codes


def mutate(text, rng):
    """A plan with one thing wrong."""
    lines = [line.split(" ") for line in text.splitlines()]
    at = rng.randrange(1, len(lines) - 1)
    way = rng.randrange(6)
    if way == 0:
        return text[: rng.randrange(len(text))]
    if way == 1:
        del lines[at]
    elif way == 2:
        lines.insert(at, lines[at])
    elif way == 3:
        lines[at] = lines[at][: rng.randrange(1, len(lines[at]) + 1)]
    else:
        lines[at][rng.randrange(len(lines[at]))] = rng.choice(HOSTILE)
    return "".join(" ".join(line) + "\n" for line in lines)


def test_no_mutated_plan_kills_or_hangs_the_runner(tmp_path):
    rng = random.Random(SEED)
    kinds, cases = [job(kind) for kind in KINDS], []
    for number in range(PLANS):
        right = kinds[number % len(kinds)]
        folder = tmp_path / str(number)
        folder.mkdir()
        local.place(right, folder)
        (folder / local.PLAN).write_text(mutate(right.text, rng))
        cases.append(folder)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(run, cases))
    for folder, (code, lines) in zip(cases, found, strict=True):
        text = (folder / local.PLAN).read_text()
        assert code in (0, 3), (code, lines, text)
        assert (code == 0) == (folder / local.RESULT).exists() == (not lines), (lines, text)
        assert len(lines) <= 1, (lines, text)
    refused_plans = sum(code == 3 for code, _ in found)
    assert PLANS // 2 < refused_plans < PLANS  # some mutations are harmless, most are not
