"""A bundle is read whole, or refused with the file, tensor or field that is wrong."""

import copy
import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest
import tiny_bundle

from memvid_tf.models import zoo
from memvid_tf.runtime.bundle import Bundle, file_entry
from memvid_tf.runtime.interpreter import Graph
from memvid_tf.runtime.manifest import BundleError, Manifest


@pytest.fixture
def folder(tmp_path):
    """A bundle of its own to damage."""
    return shutil.copytree(tiny_bundle.build("int8"), tmp_path / "bundle")


def edit(folder, change):
    """Changes parsed manifest.json in place, as an editor would: without validation."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def refused(folder, **arguments):
    """The message of the refusal, without the folder's name."""
    with pytest.raises(BundleError) as error:
        Bundle.load(folder, **arguments)
    message = str(error.value)
    assert message.startswith(f"bundle {folder}: ") and "\n" not in message
    return message.removeprefix(f"bundle {folder}: ")


@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_what_was_written_is_read(precision):
    bundle = Bundle.load(tiny_bundle.build(precision))
    manifest = bundle.manifest
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert bundle.labels == tiny_bundle.LABELS
    np.testing.assert_array_equal(bundle.anchors, tiny_bundle.anchors())
    assert [state.name for state in manifest.state] == ["c", "h"]
    assert manifest.state[0].initial == (-128 if precision == "int8" else 0)
    assert manifest.tensor("memory/step/features", "inputs").shape == (1, 4, 6, 8)
    for golden in manifest.golden:
        inputs, outputs = bundle.read_golden(golden)
        found = Graph(bundle.graph_path(golden.graph), golden.signature)(**inputs)
        assert found.keys() == outputs.keys()
        for name, wanted in outputs.items():
            np.testing.assert_array_equal(found[name], wanted)
            assert found[name].dtype == wanted.dtype


def test_the_json_is_the_contract():
    """The keys that other consumers (C, other languages) read."""
    written = json.loads((tiny_bundle.build("int8") / "manifest.json").read_text())
    assert written["image"] == {
        "f0": [32, 48], "f1": [16, 24], "mean": 128.0, "std": 128.0, "color": "RGB",
        "f1_from_f0": "box mean, rounded half up",
    }  # fmt: skip
    assert written["graphs"]["memory"]["signatures"]["update"]["inputs"]["c"] == {
        "shape": [1, 4, 6, 8], "dtype": "int8", "scale": 0.0235294122248888, "zero_point": -128,
    }  # fmt: skip
    assert written["calls"]["update"] == ["f0/serving_default", "memory/update"]
    assert written["state"][1] == {
        "name": "h", "input": "h", "output": "h_next", "shape": [1, 4, 6, 8], "dtype": "int8",
        "initial": -128,
    }  # fmt: skip


def test_folder_and_manifest_that_are_not_there(tmp_path, folder):
    assert "no such folder" in refused(tmp_path / "nothing")
    (folder / "manifest.json").unlink()
    assert refused(folder).startswith("manifest.json is missing")


def test_a_manifest_cut_short(folder):
    path = folder / "manifest.json"
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 2):
        path.write_bytes(whole[:length])
        assert "not valid JSON at line" in refused(folder)
    path.write_bytes(b"\xff" + whole)
    assert "not UTF-8" in refused(folder)
    path.write_bytes(b" " * (16 * 2**20 + 1))
    assert "16777217 bytes" in refused(folder)


def test_a_file_cut_short_or_changed(folder):
    path = folder / "memory.tflite"
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    wanted = f"memory.tflite has {len(whole) - 7} bytes, wanted {len(whole)}"
    assert wanted in refused(folder) and wanted in refused(folder, verify=False)
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    path.write_bytes(changed)
    message = refused(folder)
    assert f"memory.tflite has sha256 {hashlib.sha256(changed).hexdigest()}" in message
    assert f"wanted {hashlib.sha256(whole).hexdigest()}" in message
    assert Bundle.load(folder, verify=False)
    path.unlink()
    assert refused(folder).startswith("memory.tflite is missing")


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../outside.bin", "golden/../../outside.bin", "..", ".", "", "golden//x",
     "./labels.txt", "golden\\x", "C:x", "a\0b", "a\ud800"],
)  # fmt: skip
def test_no_path_leaves_the_folder(folder, name):
    (folder.parent / "outside.bin").write_bytes(b"secret")
    entry = {"bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}
    edit(folder, lambda manifest: manifest["files"].update({name: entry}))
    assert f"files lists {name!r}, wanted a relative path" in refused(folder)


def test_no_link_leaves_the_folder(folder):
    outside = folder.parent / "outside.tflite"
    (folder / "f1.tflite").rename(outside)
    (folder / "f1.tflite").symlink_to(outside)
    assert refused(folder) == f"f1.tflite is a link to {outside}, wanted a file inside the bundle"
    (folder / "golden").rename(folder.parent / "golden")
    (folder / "golden").symlink_to(folder.parent / "golden")
    outside.rename(folder / "f1.tflite")
    assert refused(folder).startswith("golden/f0.serving_default.features.bin is a link to ")
    (folder / "golden").unlink()
    (folder / "golden").symlink_to("golden")
    assert refused(folder).startswith("golden/f0.serving_default.features.bin is ")
    entry = {"bytes": 0, "sha256": "0" * 64}
    edit(folder, lambda manifest: manifest.update(files={"x" * 5000: entry, **manifest["files"]}))
    assert "xxx is missing" in refused(folder)


def at(*path):
    """A function that sets manifest[path[0]][path[1]]... = path[-1]."""

    def change(manifest):
        *keys, last, value = path
        for key in keys:
            manifest = manifest[key]
        manifest[last] = value

    return change


MEMORY = ("graphs", "memory", "signatures", "step")
ANCHOR = ("anchors", 0)
FAULTS = [
    (at("image", "f1", [0, 0]), "image.f1 is (0, 0), wanted sides from 1 to 8192 pixels"),
    (at("image", "f0", [10**400, 48]), "image.f0 is (1000"),
    (at("image", "std", 1e-300), "image.std is 1e-300, wanted a number from 1e-12 to 1e+06"),
    (at("image", "mean", 1e299), "image.mean is 1e+299, wanted a number from -1e+06 to 1e+06"),
    (at("post", "max_detections", 10**12), "tensor post/serving_default/boxes is TensorSpec("),
    (at("box_coder", "height", 0), "box_coder.height is 0.0, wanted a number from 1e-12 to"),
    (at(*ANCHOR, [0.5, 0.5, -0.1, 0.1]), "anchors[0]: height is -0.1, wanted a number from 1e-12"),
    (at(*ANCHOR, [0.5, 1e200, 0.1, 0.1]), "anchors[0] is 1e+200, wanted a number from -1e+06"),
    (at("calls", "post", ["post/serving_default"] * 2), "wanted one signature"),
    (at("golden", []), "golden is [], wanted also ['f0/serving_default', 'f1/serving_default', "),
    (at("files", "f1.tflite", "bytes", 2**36), "files.f1.tflite.bytes is 68719476736, wanted 0 to"),
    (at("files", "labels.txt", "bytes", 2**21), "bytes is 2097152, wanted at most 1048576 of lab"),
    (at("graphs", "f1", "file", "labels.txt"), "graphs.f1.file is 'labels.txt', wanted a file"),
    (at("golden", 0, "inputs", "image", "f0.tflite"), "wanted a file that ends in .bin"),
    (at("state", 0, "shape", [1, 2**20, 2**19, 1]), "state.c.shape is (1, 1048576, 524288, 1), "),
    (at("schema_version", 2), "schema_version: 2 is not 1"),
    (at("system", "patchwerk"), "system is 'patchwerk', wanted one of ['interleaved', 'patch"),
    (at("precision", "int4"), "precision is 'int4'"),
    (at("colour", "RGB"), "unknown key 'colour'; allowed are ["),
    (at("post", "nms", "soft"), "unknown key 'post.nms'"),
    (at("image", "F0", [32, 48]), "image is ['F0', 'f0', 'f1']"),
    (at("image", "f1", [16, 20]), "image.f1 is (16, 20)"),
    (at("image", "f0", [64, 96]), "image.f0 is (64, 96), wanted the size of tensor f0/"),
    (at("tau", "9"), "tau is '9', wanted a whole number"),
    (at("tau", True), "tau is True, wanted a whole number"),
    (at("tau", None), "tau is None, wanted a value: system 'interleaved' needs it"),
    (at("tau", -1), "tau is -1, wanted 0 or more"),
    (at("updates_state", "f1", 0), "updates_state.f1 is 0, wanted true or false"),
    (at("checkpoint", "step", 1.5), "checkpoint.step is 1.5, wanted a whole number"),
    (at("files", "labels.txt", "sha256", "0" * 63), "files.labels.txt.sha256 is '000"),
    (at("labels", "names.txt"), "labels is 'names.txt', wanted a file listed in files"),
    (at("graphs", "f0", "file", "f9.tflite"), "graphs.f0.file is 'f9.tflite'"),
    (at(*MEMORY, "inputs", "c", "dtype", "int16"), "tensor memory/step/c: dtype is 'int16'"),
    (at(*MEMORY, "inputs", "c", "shape", 3, -1), "tensor memory/step/c: shape is (1, 4, 6, -1)"),
    (at(*MEMORY, "inputs", "c", "shape", [1, 2**20, 2**19, 1]), "at most 8 sizes and 1073741824"),
    (at(*MEMORY, "inputs", "c", "scale", 1e-300), "tensor memory/step/c: scale is 1e-300, wanted"),
    (at(*MEMORY, "inputs", "c", "scale", None), "tensor memory/step/c: scale is None"),
    (at(*MEMORY, "inputs", "c", "zero_point", 128), "tensor memory/step/c: zero_point is 128"),
    (
        at(*MEMORY, "inputs", "features", "scale", 0.5),
        "edge f0/serving_default/features -> memory/step/features: scale of the consumer is 0.5, "
        "wanted 0.0235294122248888, which the producer has",
    ),
    (at(*MEMORY, "outputs", "h_next", "scale", 0.5), "memory/step/h_next (fed back) is "),
    (at("edges", 0, ["f0/serving_default/y", "memory/step/features"]), "'y' is not among the "),
    (at("edges", 0, ["f0/serving_default/features"]), "edges[0] is ['f0/serving_"),
    (at("calls", "f0", ["f0/serving_default"]), "calls.f0 is ('f0/serving_default',)"),
    (at("calls", "f1", 1, "memory/update"), "calls.f1 is ('f1/serving_default', 'memory/update')"),
    (at("calls", "post", 0, "past/serving_default"), "graph 'past' is not one of ['f0', 'f1', "),
    (at("calls", "update", 1, "memory/refresh"), "signature 'refresh' is not one of ['step', "),
    (at("state", 0, "shape", [1, 6, 4, 8]), "state.c.shape is (1, 6, 4, 8), wanted (1, 4, 6, 8)"),
    (at("state", 0, "initial", -129), "state.c.initial is -129, wanted an integer in [-128, 127]"),
    (at("state", 1, "name", "c"), "state is ['c', 'c'], wanted names that differ"),
    (at("state", 1, "input", "i"), "state.h is ('i', 'h_next'), wanted tensors of a signature"),
    (at("anchors", [[0.5, 0.5, 0.1, 0.1]]), "box_encodings: shape is (1, 72, 4), wanted (1, 1, 4)"),
    (at("anchors", 3, [0.5, 0.5, 0.1]), "anchors[3] is [0.5, 0.5, 0.1], wanted a list of 4"),
    (at("box_coder", "y", "ten"), "box_coder.y is 'ten', wanted a number"),
    (at("post", "iou_threshold", 1.01), "post.iou_threshold is 1.01, wanted a number in [0, 1]"),
    (at("post", "max_detections", 19), "tensor post/serving_default/boxes is TensorSpec("),
    (at("golden", 0, "inputs", {}), "golden f0/serving_default inputs is [], wanted ['image']"),
    (at("files", "golden/memory.step.c.bin", "bytes", 5), "size of tensor memory/step/c"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), FAULTS, ids=[text for _, text in FAULTS])
def test_contradictions_are_named(folder, change, message):
    edit(folder, change)
    assert message in refused(folder)


@pytest.mark.parametrize(
    "cell, message",
    [
        ({"width": 64_000_000}, "cell 0 has sizes (64, 64000000, 16), wanted 1 to 8192"),
        ({"width": 0}, "cell 0 has sizes (64, 0, 16), wanted 1 to 8192"),
        ({"columns": [0, 2**40]}, "cell 0 has a halo of (1, 1, 0, 1099511627776), wanted 0 to"),
        ({"rows": [-1, 1]}, "cell 0 has a halo of (-1, 1, "),
        ({"width": 8192, "height": 8192}, "entries, wanted at most 67108864"),
    ],
)
def test_windows_that_would_fill_the_memory(cell, message):
    manifest = json.loads((zoo.BUNDLES / "detector_patchwork/manifest.json").read_text())
    assert Manifest.from_json(json.dumps(manifest)).windows
    manifest["windows"]["cells"][0].update(cell)
    with pytest.raises(BundleError) as error:
        Manifest.from_json(json.dumps(manifest))
    assert message in str(error.value)
    manifest["windows"]["cells"] = []
    with pytest.raises(BundleError, match="there are no cells"):
        Manifest.from_json(json.dumps(manifest))


def test_missing_and_repeated_keys_and_numbers_that_are_none(folder):
    path = folder / "manifest.json"
    text = path.read_text()
    edit(folder, lambda manifest: manifest.pop("edges"))
    assert "key 'edges' is missing" in refused(folder)
    path.write_text(text.replace('"tau": 9', '"tau": 9, "tau": 8'))
    assert "repeated key 'tau'" in refused(folder)
    for number in ("NaN", "-Infinity", "1e999", "1" + "0" * 400, "1" + "0" * 5000):
        path.write_text(text.replace('"score_threshold": 0.3', f'"score_threshold": {number}'))
        assert "manifest.json: " in refused(folder)
    path.write_text("[" * 100_000)
    assert "manifest.json: " in refused(folder)


def test_labels_fit_the_classes(folder):
    def relabel(text):
        (folder / "labels.txt").write_text(text)
        entry = dataclasses.asdict(file_entry(folder / "labels.txt"))
        edit(folder, lambda manifest: manifest["files"].update({"labels.txt": entry}))

    relabel("disc\nsquare\n")
    assert refused(folder).startswith("labels.txt has 2 lines, wanted 5: class_logits has 6 colum")
    relabel("disc\n\nstar\nring\ncross\n")
    assert "labels.txt: line 2 is empty" in refused(folder)


def test_nothing_contradictory_is_written():
    manifest = tiny_bundle.load().manifest
    with pytest.raises(BundleError, match="tau is -1"):
        dataclasses.replace(manifest, tau=-1).to_json()


def test_any_damage_is_a_bundle_error():
    """A random value anywhere in the manifest loads or is refused; nothing else ever happens."""
    rng = np.random.default_rng(11)
    whole = json.loads((tiny_bundle.build("int8") / "manifest.json").read_text())
    whole["anchors"] = whole["anchors"][:2]  # so that other places are hit as often
    junk = [None, True, -1, 0, 3, 10**400, 1e299, 1e-299, 1e300]
    junk += ["", "f0", "a/b/c", [], [[]], {}, {"a": 1}, [1, 2, 3, 4]]
    outcomes = {"loaded": 0, "refused": 0}
    for _ in range(600):
        value = manifest = copy.deepcopy(whole)
        while True:
            keys = list(value) if isinstance(value, dict) else range(len(value))
            key = keys[rng.integers(len(keys))]
            if not isinstance(value[key], (dict, list)) or not value[key] or rng.random() < 0.2:
                break
            value = value[key]
        value[key] = junk[rng.integers(len(junk))]
        try:
            Manifest.from_json(json.dumps(manifest))
            outcomes["loaded"] += 1
        except BundleError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 300
