"""From a trained checkpoint to a bundle, on the miniature networks of `tiny_run`."""

import functools
import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tiny_run
import yaml

import memvid_tf  # noqa: F401  (before TensorFlow)
from export import bundle as bundles
from memvid_tf.layers import conv
from memvid_tf.layers.flow import GUIDED
from memvid_tf.layers.recurrent import RIVALS
from memvid_tf.runtime.bundle import Bundle
from memvid_tf.runtime.interpreter import Graph
from memvid_tf.tasks import checkpoints, configuration, trained

pytestmark = pytest.mark.slow  # the first test trains and exports

PRECISIONS = ("int8", "float32")
FRAMES = 6
every_cell = pytest.mark.parametrize("cell", ["factored", *RIVALS, *GUIDED])


def load(precision, cell="factored"):
    if cell == "factored":
        return Bundle.load(tiny_run.bundle(precision))
    return Bundle.load(tiny_run.rival_bundle(precision, cell))


@functools.cache
def network(precision, cell="factored"):
    """The network that was exported."""
    tiny_run.add_backbone()
    if cell != "factored":
        quantization = "none" if precision == "float32" else "int8"
        return trained.load(tiny_run.rival_run(cell), quantization=quantization)
    return trained.load(tiny_run.qat_run() if precision == "int8" else tiny_run.float_run())


def graphs(bundle):
    return {
        (graph, signature): Graph(bundle.graph_path(graph), signature)
        for graph, spec in bundle.manifest.graphs.items()
        for signature in spec.signatures
    }


def memory_of(bundle, extractor):
    """Graph and signature of the memory's call on a frame of an extractor."""
    return tuple(bundle.manifest.calls[extractor][1].split("/"))


def listing(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# The bundle as a whole.


@pytest.mark.portable
def test_the_manifest_says_where_the_bundle_comes_from():
    bundle = load("int8")
    manifest = bundle.manifest
    with open(os.path.join(tiny_run.qat_run(), "params.yaml"), encoding="utf-8") as file:
        assert json.loads(json.dumps(manifest.config)) == yaml.safe_load(file)
    assert (manifest.checkpoint.name, manifest.checkpoint.step) == ("ckpt-10", 10)
    assert (manifest.precision, manifest.name, manifest.tau) == ("int8", "int8", 2)
    assert bundle.labels == tiny_run.LABELS
    assert manifest.image.sizes == {"f0": (16, 32), "f1": (8, 16)}
    np.testing.assert_array_equal(bundle.anchors, network("int8").model.anchors)
    assert manifest.updates_state == {"f0": True, "f1": False}
    costs = {name: spec.multiply_adds for name, spec in manifest.graphs.items()}
    assert costs["f0"] > 2 * costs["f1"] > 0 and costs["memory"] > 0 and costs["post"] is None
    on_disk = {str(p.relative_to(bundle.path)) for p in bundle.path.rglob("*") if p.is_file()}
    assert on_disk - set(manifest.files) == {"manifest.json", "report.json", "report.md"}


def written(state):
    """The state by the names of the tensors that a step of the memory writes."""
    return {f"{name}_next": tensor for name, tensor in state._asdict().items()}


def test_the_float_network_of_a_quantized_training():
    """What --precision=float32 exports; its configuration must not claim quantization."""
    found = trained.load(tiny_run.qat_run(), quantization="none")
    assert found.params.task.model.quantization == "none"
    reader = tf.train.load_checkpoint(found.checkpoint)
    keys = checkpoints.variable_keys(found.model)
    assert not [key for key in keys if "range_m" in key]
    for key, variable in keys.items():
        np.testing.assert_array_equal(variable.numpy(), reader.get_tensor(key))
    assert load("float32").manifest.config["task"]["model"]["quantization"] == "none"


@pytest.mark.parametrize(
    "precision, cell", [*((p, "factored") for p in PRECISIONS), ("int8", "flow_guided")]
)
def test_goldens_replay(precision, cell):
    bundle = load(precision, cell)
    calls = graphs(bundle)
    assert {(g.graph, g.signature) for g in bundle.manifest.golden} == set(calls)
    for golden in bundle.manifest.golden:
        inputs, outputs = bundle.read_golden(golden)
        assert all(len(np.unique(value)) > 1 for value in inputs.values())
        found = calls[golden.graph, golden.signature].run(inputs)
        assert found.keys() == outputs.keys()
        for name, value in outputs.items():
            assert found[name].tobytes() == value.tobytes(), (golden.graph, name)


@every_cell
def test_what_crosses_from_graph_to_graph_needs_no_conversion(cell):
    bundle = load("int8", cell)
    calls = graphs(bundle)  # the tensors of the files, not what the manifest says of them

    def tensor(graph, signature, name):
        call = calls[graph, signature]
        info = call.inputs.get(name) or call.outputs[name]
        return info.shape, info.dtype, info.scale, info.zero_point

    serving = "serving_default"
    features = {
        tensor("f0", serving, "features"),
        tensor("f1", serving, "features"),
        tensor("memory", "step", "features"),
        tensor("memory", "update", "features"),
        tensor(*memory_of(bundle, "f1"), "features"),
    }
    assert len(features) == 1
    names = network("int8", cell).model.initial_state(1)._fields
    assert [spec.name for spec in bundle.manifest.state] == list(names)
    for name in names:
        state = {tensor("memory", s, n) for s in ("step", "update") for n in (name, f"{name}_next")}
        state.add(tensor(*memory_of(bundle, "f1"), name))
        [(shape, dtype, scale, zero_point)] = state
        assert scale == pytest.approx(6 / 255) and (dtype, zero_point) == (np.int8, -128)
        [spec] = [spec for spec in bundle.manifest.state if spec.name == name]
        assert spec.shape == shape and scale * (spec.initial - zero_point) == 0.0
    image = {tensor(e, serving, "image")[1:] for e in ("f0", "f1")}
    assert image == {(np.dtype(np.int8), 1 / 128, 0)}
    heads = {n: tensor("memory", "step", n)[2] for n in ("box_encodings", "class_logits")}
    assert heads["box_encodings"] != heads["class_logits"]
    for name in heads:
        for extractor in ("f0", "f1"):
            assert tensor(*memory_of(bundle, extractor), name) == tensor("post", serving, name)


# The same numbers as the checkpoint's.


def images(bundle, frames, extractor):
    """Frames [B, H, W, 3] uint8 as a graph takes them, by the definition."""
    pixels = frames.astype(np.float64)
    if extractor == "f1":
        batch, height, width, _ = frames.shape
        blocks = pixels.reshape(batch, height // 2, 2, width // 2, 2, 3).mean((2, 4))
        pixels = np.floor(blocks + 0.5)
    if bundle.manifest.precision == "int8":
        return (pixels - 128).astype(np.int8)
    return (pixels / 128 - 1).astype(np.float32)


@pytest.mark.parametrize("cell", ["factored", "conv_gru", "flow_guided"])
def test_the_float_bundle_is_the_checkpoint(cell):
    """Everything that crosses an edge, over some frames on which both keep their own memory.

    Differences are float32 rounding: BN is folded in the graphs and sums have another order.
    """
    bundle, model = load("float32", cell), network("float32", cell).model
    calls = graphs(bundle)
    state = model.initial_state(1)
    stored = {s.input: np.full(s.shape, s.initial, s.dtype) for s in bundle.manifest.state}
    close = dict(rtol=1e-3, atol=1e-3)
    for t, frame in enumerate(tiny_run.frames(FRAMES)[0]):
        extractor = "f1" if t % 3 == 2 else "f0"
        wanted = model.extract(model.preprocess(frame[None], extractor), extractor)
        image = images(bundle, frame[None], extractor)
        features = calls[extractor, "serving_default"](image=image)["features"]
        np.testing.assert_allclose(features, wanted, **close)
        output, after = model.step(wanted, state, extractor)
        wanted = {**model.detect(output), **written(after)}
        found = calls[memory_of(bundle, extractor)](features=features, **stored)
        assert found.keys() == wanted.keys() or extractor == "f1"
        for name, value in found.items():
            np.testing.assert_allclose(value, wanted[name], err_msg=f"{name} {t}", **close)
            assert np.std(value) > 0.01
        if "h_next" in found:
            updated = calls["memory", "update"](features=features, **stored)
            for name, value in updated.items():
                np.testing.assert_array_equal(value, found[name])
        if extractor == "f0":
            state, stored = after, {name: found[f"{name}_next"] for name in stored}
    assert t == FRAMES - 1 and np.abs(stored["h"]).max() > 0.1


def distance(stored, info, wanted):
    """|stored - wanted| in quantization steps."""
    return np.abs(stored.astype(np.float64) - info.zero_point - np.asarray(wanted) / info.scale)


@every_cell
def test_the_int8_bundle_is_the_simulated_network_graph_by_graph(cell):
    """Each graph gets the bundle's own tensors, so that no difference is handed on.

    One layer is a step off where its sum lies near the middle between two levels, which float32 and
    int32 sums see differently: one value in some hundreds. The next layers add up such steps, with
    weights of any size; eight layers in a row give extremes of a few steps. A range that is wrong
    or a kernel that is not folded is off by tens everywhere.
    """
    bundle, model = load("int8", cell), network("int8", cell).model
    calls, state_type = graphs(bundle), type(model.initial_state(1))
    stored = {s.input: np.full(s.shape, s.initial, s.dtype) for s in bundle.manifest.state}
    found = {}

    def compare(where, call, outputs, wanted):
        for name, value in outputs.items():
            off = distance(value, call.outputs[name], wanted[name])
            found.setdefault(f"{where}/{name}", []).append(off.ravel())

    for t, frame in enumerate(tiny_run.frames(FRAMES, seed=3)[0]):
        extractor = "f1" if t % 3 == 2 else "f0"
        call = calls[extractor, "serving_default"]
        features = call(image=images(bundle, frame[None], extractor))
        wanted = model.extract(model.preprocess(frame[None], extractor), extractor)
        compare(extractor, call, features, {"features": wanted})
        call = calls[memory_of(bundle, extractor)]
        real = {n: call.inputs[n].dequantize(v) for n, v in {**features, **stored}.items()}
        state = state_type(*(real[name] for name in stored))
        output, after = model.step(real["features"], state, extractor)
        outputs = call(**features, **stored)
        wanted = {**model.detect(output), **written(after)}
        compare("memory", call, outputs, wanted)
        if "h_next" in outputs:
            updated = calls["memory", "update"](**features, **stored)
            for name, value in updated.items():
                np.testing.assert_array_equal(value, outputs[name])
        if extractor == "f0":
            stored = {name: outputs[f"{name}_next"] for name in stored}
            assert all(len(np.unique(value)) > 10 for value in stored.values())
    assert len(found) == 4 + len(stored)
    for name, steps in found.items():
        steps = np.concatenate(steps)
        assert steps.mean() < 0.5 and steps.max() < 8, (name, steps.mean(), steps.max())
        assert (steps < 1.5).mean() > 0.95, name


@every_cell
def test_the_memories_of_bundle_and_simulation_stay_together(cell):
    """Each with its own memory and f0 on every frame: what the rounding of a frame does is
    forgotten again, so that later frames are no worse than the first ones."""
    bundle, model = load("int8", cell), network("int8", cell).model
    call = graphs(bundle)["memory", "step"]
    extract = graphs(bundle)["f0", "serving_default"]
    state = model.initial_state(1)
    stored = {s.input: np.full(s.shape, s.initial, s.dtype) for s in bundle.manifest.state}
    steps = []
    for frame in tiny_run.frames(12, seed=4)[0]:
        wanted = model.extract(model.preprocess(frame[None], "f0"), "f0")
        _, state = model.step(wanted, state, "f0")
        features = extract(image=images(bundle, frame[None], "f0"))["features"]
        outputs = call(features=features, **stored)
        stored = {name: outputs[f"{name}_next"] for name in stored}
        steps.append([distance(stored[n], call.inputs[n], getattr(state, n)).mean() for n in stored])
    steps = np.array(steps)
    # In steps of [0, 6] / 255: a few of 255.
    assert steps.max() < 5
    assert steps[-4:].mean() < 2 * steps[:4].mean() + 0.5


# What is refused, and what stays when an export fails.


def refused(capfd, output, *words, **flags):
    """Exit code 2, one line that holds the words; returns it. Nothing is left beside `output`."""
    beside = sorted(os.listdir(output.parent))
    capfd.readouterr()
    assert tiny_run.program("export", **flags, output_dir=output) == 2
    printed = capfd.readouterr()
    lines = [line for line in printed.err.splitlines() if not line.startswith("INFO: Created")]
    assert len(lines) == 1 and lines[0].startswith("error: "), printed.err
    for word in words:
        assert word in lines[0], lines[0]
    assert not printed.out and sorted(os.listdir(output.parent)) == beside
    return lines[0]


def test_a_float_training_has_no_int8_bundle(tmp_path, capfd):
    refused(
        capfd, tmp_path / "bundle", "--precision=int8", "without quantization",
        "quantization-aware", model_dir=tiny_run.float_run(),
    )  # fmt: skip


def test_the_cell_of_the_paper_has_no_bundle(tmp_path, capfd):
    params = tiny_run.params(task__model__cell="paper")
    params = params.replace(task=params.task.replace(labels=tiny_run.LABELS))
    model = tiny_run.build(params)
    checkpoint = tf.train.Checkpoint(model=model, global_step=tf.Variable(3, dtype=tf.int64))
    tf.train.CheckpointManager(checkpoint, str(tmp_path / "run"), 1).save(checkpoint_number=3)
    configuration.save(params, str(tmp_path / "run"))
    refused(
        capfd, tmp_path / "bundle", "task.model.cell 'paper'", "task.model.cell=factored",
        model_dir=tmp_path / "run", precision="float32",
    )  # fmt: skip


def test_flags_that_cannot_be(tmp_path, capfd):
    output, run = tmp_path / "bundle", tiny_run.qat_run()
    refused(capfd, output, "--model_dir is missing")
    refused(capfd, output, "params.yaml", model_dir=tmp_path)
    refused(capfd, output, "'ckpt-99'", "ckpt-10", model_dir=run, checkpoint="ckpt-99")
    # Before the conversion, which takes minutes at paper scale.
    refused(capfd, output, "/nowhere", "memvid_tf.data", model_dir=run, input_path="/nowhere")
    other = tiny_run.write_data(tmp_path / "other", num_classes=8)
    refused(capfd, output, "checker_disk", model_dir=run, input_path=other)


def test_only_a_bundle_is_replaced(tmp_path, capfd):
    """A slip of the keyboard must not cost a data set or a training."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ckpt-1.index").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, word in (("run", "ckpt-1.index"), ("file", "file")):
        refused(capfd, tmp_path / name, "no bundle of ours" * (name == "run"), word,
                model_dir=tiny_run.qat_run(), verify="false")  # fmt: skip
    assert listing(tmp_path) == {"run/ckpt-1.index": b"mine", "file": b"mine"}


class Interrupted(BaseException):
    """Neither an Exception nor anything that somebody may expect."""


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("where", ["_record_goldens", "file_entry"])
def test_an_export_that_is_interrupted_leaves_what_was(tmp_path, monkeypatch, where, older):
    """In the middle of the folder, with graphs that are there already."""
    source = load("int8")
    flatbuffers = {g: source.graph_path(g).read_bytes() for g in source.manifest.graphs}
    monkeypatch.setattr(bundles, "convert_graphs", lambda *_: flatbuffers)
    output = tmp_path / "bundle"
    if older:
        shutil.copytree(source.path, output)
    before = listing(tmp_path)

    original, calls = getattr(bundles, where), []

    def interrupted(*arguments):
        result = original(*arguments)
        calls.append(arguments)
        if len(calls) == (1 if where == "_record_goldens" else 3):
            raise Interrupted
        return result

    monkeypatch.setattr(bundles, where, interrupted)
    with pytest.raises(Interrupted):
        bundles.write(network("int8"), bundles.Options(), str(output))
    assert calls and listing(tmp_path) == before
    assert os.listdir(tmp_path) == (["bundle"] if older else [])
    monkeypatch.setattr(bundles, where, original)
    bundles.write(network("int8"), bundles.Options(tau=5), str(output))
    assert Bundle.load(output).manifest.tau == 5 and os.listdir(tmp_path) == ["bundle"]
    assert not (output / "report.json").exists()  # of the older bundle


def test_the_gate_stops_a_network_with_a_hole(tmp_path, monkeypatch, capfd):
    """The sum of the residual blocks has lost its quantizer: everything converts and runs, and the
    gate alone sees the float tensors. The older bundle stays."""
    original = conv.Add.call

    def without_range(self, a, b, training=False):
        return original(self, a, b, training) if self.activation else a + b

    monkeypatch.setattr(conv.Add, "call", without_range)
    output = tmp_path / "bundle"
    shutil.copytree(tiny_run.bundle("int8"), output)
    before = listing(tmp_path)
    line = refused(
        capfd, output, "the exported graphs were refused", "f0/serving_default",
        "f1/serving_default", "stage_0_block_1/add", "is float32", model_dir=tiny_run.qat_run(),
    )  # fmt: skip
    assert "memory/" not in line  # where nothing is wrong
    assert listing(tmp_path) == before
    Bundle.load(output)


def test_a_checkpoint_by_its_name():
    found = trained.load(tiny_run.qat_run(), "ckpt-4")
    assert (found.step, os.path.basename(found.checkpoint)) == (4, "ckpt-4")
    reader = tf.train.load_checkpoint(os.path.join(tiny_run.qat_run(), "ckpt-4"))
    for key, variable in checkpoints.variable_keys(found.model).items():
        np.testing.assert_array_equal(variable.numpy(), reader.get_tensor(key))
