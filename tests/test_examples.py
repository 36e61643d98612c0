"""The examples of export/README.md: the one in C computes what the Python runtime does."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.runner import build
from memvid_tf.models import zoo
from memvid_tf.runtime.bundle import Bundle
from memvid_tf.runtime.detector import HEADS, InterleavedDetector, load_graph
from memvid_tf.runtime.schedules import FixedSchedule

EXAMPLES = zoo.ROOT / "export" / "examples"
BUNDLE = zoo.BUNDLES / "interleaved_policy"
FRAMES = 13  # two runs of f0 and what follows each at τ = 9


@pytest.fixture(scope="module")
def bundle():
    return Bundle.load(BUNDLE)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """frame.c, compiled without a warning and linked with LiteRT."""
    library = build.litert_library().parent
    binary = tmp_path_factory.mktemp("example") / "frame"
    compiler = ["cc"] if shutil.which("cc") else [sys.executable, "-m", "ziglang", "cc"]
    command = [*compiler, "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"]
    command += [EXAMPLES / "frame.c", "-o", binary]
    command += [f"-L{library}", "-lLiteRt", "-lm", f"-Wl,-rpath,{library}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return binary


def test_the_example_in_c_equals_the_python_runtime(program, bundle):
    sides = bundle.manifest.image.sizes["f0"]
    blocks = np.random.default_rng(7).integers(0, 256, [FRAMES, *(n // 4 for n in sides), 3])
    frames = blocks.astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    frames += np.arange(3, dtype=np.uint8)  # of a frame's three colours none is another
    detector = InterleavedDetector(bundle)
    post = load_graph(bundle, bundle.manifest.calls["post"][0])
    schedule, state, wanted = FixedSchedule(bundle.manifest.tau), detector.initial_state(), []
    for index, frame in enumerate(frames):
        extractor = schedule.pick(index)
        image = getattr(detector.prepare(frame), extractor)
        features = detector.extract(extractor, image)
        *heads, state = detector.step(
            features, state, extractor, detector.updates_state[extractor]
        )
        found = post(**dict(zip(HEADS, heads)))
        wanted += [*heads, *(found[name] for name in ("boxes", "scores", "classes", "count"))]
    assert len({array.tobytes() for array in wanted[:: len(wanted) // FRAMES]}) == FRAMES
    done = subprocess.run(
        [program, BUNDLE], input=frames.tobytes(), capture_output=True, check=True
    )
    assert done.stdout == b"".join(array.tobytes() for array in wanted)


def test_what_the_example_in_c_copies_is_in_the_manifest(bundle):
    manifest, text = bundle.manifest, (EXAMPLES / "frame.c").read_text()
    written = {name: float(value) for name, value in re.findall(r"#define (\w+) (-?[\d.]+)", text)}
    image = manifest.tensor(f"{manifest.calls['f0'][0]}/image", "inputs")
    (height, width), (small, _) = (manifest.image.sizes[name] for name in ("f0", "f1"))
    assert written == {
        "F0_HEIGHT": height,
        "F0_WIDTH": width,
        "FACTOR": height // small,
        "MEAN": manifest.image.mean,
        "STD": manifest.image.std,
        "SCALE": image.scale,
        "ZERO_POINT": image.zero_point,
        "TAU": manifest.tau,
    }
    states = re.findall(r'\{"(\w+)", "(\w+)", (-?\d+)\}', text)
    assert states == [(s.input, s.output, str(s.initial)) for s in manifest.state]
    loaded = re.findall(r'load\(environment, bundle, "(\w+)\.tflite", "(\w+)"\)', text)
    steps = [manifest.calls[call][number] for call, number in (("f0", 0), ("f1", 0), ("f0", 1))]
    assert ["/".join(pair) for pair in loaded] == [*steps, manifest.calls["post"][0]]
    assert manifest.updates_state == {"f0": True, "f1": False}


def test_a_bundle_that_is_not_there_ends_the_example_in_c(program, tmp_path):
    done = subprocess.run([program, tmp_path], input=b"", capture_output=True, check=False)
    assert done.returncode == 1 and b"LiteRtCreateModelFromFile" in done.stderr


def words(value):
    """All keys and texts of a JSON value."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from words(item)
    elif isinstance(value, str):
        yield value


def test_every_name_in_the_example_in_kotlin_is_in_the_manifest():
    text = (EXAMPLES / "Frame.kt").read_text()
    names = set(re.findall(r'"([^"\n]*)"', text)) - {"manifest.json", "/"}
    assert {"image", "features", "box_encodings", "updates_state", "initial"} <= names
    assert names <= set(words(json.loads((BUNDLE / "manifest.json").read_text())))
    for left, right in ("()", "{}", "[]"):
        assert text.count(left) == text.count(right)
