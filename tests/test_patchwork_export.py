"""Exported Patchwork: the runtime's copying, the graphs, and the manifest that describes both."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
import tiny_bundle
import tiny_patchwork

import memvid_tf  # noqa: F401  (before TensorFlow)
from export import bundle as bundles
from export import gate, patchwork_bundle
from memvid_tf.errors import UserError
from memvid_tf.runtime.interpreter import Graph
from memvid_tf.runtime.manifest import BundleError, Checkpoint, Manifest
from memvid_tf.runtime.patchwork import PatchworkNetwork


@pytest.fixture(scope="module")
def exported():
    """The networks and their bundles, by kind."""
    return {kind: tiny_patchwork.exported(kind) for kind in tiny_patchwork.KINDS}


def frames(kind, count, seed):
    return tiny_bundle.frames(count, tiny_patchwork.SIZE[kind], seed)


def run(network, videos, actions):
    outputs, memory = network.first(network.prepare(videos[0]))
    results = [outputs]
    for frame, action in zip(videos[1:], actions, strict=True):
        results.append(network.step(network.prepare(frame), action, memory))
    return results, memory


def test_int8_of_a_static_video_becomes_the_full_frame_bit_for_bit(exported):
    """Within one scan more than there are cells."""
    _, bundle = exported["detector"]
    network = PatchworkNetwork(bundle)
    before, still = (network.prepare(frame) for frame in frames("detector", 2, 1))
    expected, whole = network.first(still)
    _, memory = network.first(before)
    for scan in range(len(network.layout.cells) + 1):
        for action in range(network.layout.windows.count):
            outputs = network.step(still, action, memory)
        if scan == 0:
            assert any(np.any(outputs[name] != y) for name, y in expected.items())
    for name, y in expected.items():
        np.testing.assert_array_equal(outputs[name], y)
        assert len(np.unique(y)) > 5
    np.testing.assert_array_equal(memory.strips, whole.strips)
    assert memory.ages_frames.max() < network.layout.windows.count


def test_float_bundles_compute_what_the_network_does(exported):
    model, bundle = exported["segmenter"]
    network = PatchworkNetwork(bundle)
    video = frames("segmenter", 6, 2)
    actions = [int(a) for a in np.random.default_rng(3).integers(0, 4, 5)]
    results, memory = run(network, video, actions)
    image = model.network.preprocess(np.stack(video)[:, None])
    expected, state = model.start(image[0])
    for t, outputs in enumerate(results):
        if t:
            expected, state = model.step(image[t], tf.constant([actions[t - 1]]), state)
        # Convolutions of another library, whose sums of float32 have another order.
        np.testing.assert_allclose(
            outputs["mask_logits"], expected["mask_logits"], rtol=1e-3, atol=1e-3
        )
    np.testing.assert_allclose(memory.strips[:-1], state.strips[0], rtol=1e-3, atol=1e-3)
    assert np.all(memory.strips[-1] == 0)
    last = {a: 5 - t for t, a in enumerate([None, *actions]) if t}
    assert memory.ages_frames.reshape(-1).tolist() == [last.get(a, 5) for a in range(4)]


class Client:
    """What somebody would write who has read `manifest.json` and `WindowSpec` alone."""

    def __init__(self, folder):
        self.manifest = json.loads((folder / "manifest.json").read_text())
        self.spec = self.manifest["windows"]
        self.graphs = {}
        for steps in (self.manifest["calls"][name] for name in ("first", "step")):
            for call in steps:
                graph, signature = call.split("/")
                path = folder / self.manifest["graphs"][graph]["file"]
                self.graphs[call] = Graph(path, signature)

    def tensor(self, call, side, name):
        graph, signature = call.split("/")
        return self.manifest["graphs"][graph]["signatures"][signature][side][name]

    def first(self, image):
        first, tail = self.manifest["calls"]["first"]
        outputs = self.graphs[first](image=image)
        numbers, at = outputs.pop("strips").reshape(-1), 0
        self.rows, self.columns = [], []
        for cell in self.spec["cells"]:
            h, w, c = cell["height"], cell["width"], cell["channels"]
            count = len(cell["kept_rows"]) * w * c
            block = numbers[at : at + count].reshape(-1, w, c)
            self.rows.append({y: block[k].copy() for k, y in enumerate(cell["kept_rows"])})
            at += count
            count = len(cell["kept_columns"]) * h * c
            block = numbers[at : at + count].reshape(h, -1, c)
            self.columns.append({x: block[:, k].copy() for k, x in enumerate(cell["kept_columns"])})
            at += count
        assert at == len(numbers)
        self.maps = {name: value.copy() for name, value in outputs.items()}
        return self.graphs[tail](**self.maps)

    def window(self, action, height, width):
        m, n = self.spec["slices"], self.spec["adjacent"]
        row, column = action // (m - n + 1), action % (m - n + 1)
        return row * height // m, column * width // m, height // m * n, width // m * n

    def step(self, image, action):
        step, tail = self.manifest["calls"]["step"]
        y0, x0, h, w = self.window(action, *image.shape[1:3])
        (above, below), (left, right) = self.spec["image_rows"], self.spec["image_columns"]
        zero = self.tensor(step, "inputs", "image")["zero_point"]
        crop = np.full([1, above + h + below, left + w + right, 3], zero, image.dtype)
        for i in range(crop.shape[1]):
            for j in range(crop.shape[2]):
                y, x = y0 - above + i, x0 - left + j
                if 0 <= y < image.shape[1] and 0 <= x < image.shape[2]:
                    crop[0, i, j] = image[0, y, x]
        halo_tensor = self.tensor(step, "inputs", "halo")
        zero, halo = halo_tensor["zero_point"], []
        for cell, rows, columns in zip(self.spec["cells"], self.rows, self.columns):
            height, width = cell["height"], cell["width"]
            outside = np.full(cell["channels"], zero, image.dtype)
            y0, x0, h, w = self.window(action, height, width)
            (above, below), (left, right) = cell["rows"], cell["columns"]

            def at(y, x, kept_row):
                if not (0 <= y < height and 0 <= x < width):
                    return outside
                return rows[y][x] if kept_row else columns[x][y]

            wide = range(x0 - left, x0 + w + right)
            halo += [at(y, x, True) for y in range(y0 - above, y0) for x in wide]
            halo += [at(y, x, True) for y in range(y0 + h, y0 + h + below) for x in wide]
            tall = range(y0, y0 + h)
            halo += [at(y, x, False) for y in tall for x in range(x0 - left, x0)]
            halo += [at(y, x, False) for y in tall for x in range(x0 + w, x0 + w + right)]
        halo = np.concatenate(halo).reshape(halo_tensor["shape"])
        outputs = self.graphs[step](image=crop, halo=halo)
        numbers, at = outputs.pop("own").reshape(-1), 0
        for cell, rows, columns in zip(self.spec["cells"], self.rows, self.columns):
            y0, x0, h, w = self.window(action, cell["height"], cell["width"])
            channels = cell["channels"]
            for y in cell["kept_rows"]:  # runs of rows follow one another row by row
                if y0 <= y < y0 + h:
                    rows[y][x0 : x0 + w] = numbers[at : at + w * channels].reshape(w, channels)
                    at += w * channels
            inside = [x for x in cell["kept_columns"] if x0 <= x < x0 + w]
            while inside:
                run = [x for k, x in enumerate(inside) if x == inside[0] + k]
                block = numbers[at : at + h * len(run) * channels].reshape(h, len(run), channels)
                for k, x in enumerate(run):
                    columns[x][y0 : y0 + h] = block[:, k]
                at += block.size
                inside = inside[len(run) :]
        assert at == len(numbers)
        for name in self.spec["maps"]:
            y0, x0, h, w = self.window(action, *self.maps[name].shape[1:3])
            self.maps[name][:, y0 : y0 + h, x0 : x0 + w] = outputs[name]
        return self.graphs[tail](**self.maps)


def test_a_client_can_be_written_from_the_manifest_alone(exported):
    kind = "detector"
    _, bundle = exported[kind]
    network, client = PatchworkNetwork(bundle), Client(bundle.path)
    video = frames(kind, 6, 4)
    actions = [8, 4, 0, 5, 7]
    results, _ = run(network, video, actions)
    expected = [client.first(network.prepare(video[0]))]
    expected += [client.step(network.prepare(f), a) for f, a in zip(video[1:], actions)]
    for outputs, others in zip(results, expected):
        for name, y in others.items():
            np.testing.assert_array_equal(outputs[name], y)
    assert any(np.any(results[-1][n] != results[-2][n]) for n in results[-1])


def test_the_body_is_one_partition_and_its_goldens_are_met(exported):
    for kind, (_, bundle) in exported.items():
        manifest = bundle.manifest
        for graph in ("body", "tail"):
            content = bundle.graph_path(graph).read_bytes()
            assert gate.check_graph(graph, content, precision=bundle.manifest.precision) == []
        recorded = {f"{g.graph}/{g.signature}": g for g in manifest.golden}
        assert set(recorded) == {call for steps in manifest.calls.values() for call in steps}
        for call, golden in recorded.items():
            inputs, outputs = bundle.read_golden(golden)
            graph, signature = call.split("/")
            found = Graph(bundle.graph_path(graph), signature)(**inputs)
            for name, y in outputs.items():
                np.testing.assert_array_equal(found[name], y)
        body = manifest.graphs["body"]
        assert body.parameters > 0 and body.multiply_adds > 10 * manifest.graphs["tail"].parameters


def test_manifests_that_contradict_themselves_are_refused(exported):
    manifest = exported["detector"][1].manifest
    windows = manifest.windows
    cells = windows.cells
    # One number changed at a time; every one of them would give wrong halos or fail at a frame.
    for field, changed in {
        "windows": dict(windows=None),
        "mask": dict(mask=exported["segmenter"][1].manifest.mask),
        "post": dict(post=None),
        "cannot be cut into 3": dict(windows=dataclasses.replace(windows, slices=3, adjacent=1)),
        "image.window": dict(windows=dataclasses.replace(windows, image_rows=(1, 1))),
        "kept rows": dict(
            windows=dataclasses.replace(
                windows, cells=(dataclasses.replace(cells[0], kept_rows=(1, 2)), *cells[1:])
            )
        ),
        "halo": dict(windows=dataclasses.replace(windows, cells=cells[1:])),
        "windows.maps": dict(windows=dataclasses.replace(windows, maps=windows.maps[1:])),
        "tail of calls.first": dict(
            calls={**manifest.calls, "step": ("body/window", "post/serving_default")}
        ),
    }.items():
        with pytest.raises(BundleError, match=field):
            dataclasses.replace(manifest, **changed).validate()
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_what_cannot_be_exported_or_run_is_refused(exported, tmp_path):
    model = exported["segmenter"][0]
    source = bundles.Source({}, ("foreground",), Checkpoint("ckpt-0", 0))
    with pytest.raises(UserError, match="needs a network with quantization 'int8'"):
        patchwork_bundle.write(model, source, bundles.Options("int8"), str(tmp_path / "b"))
    assert not list(tmp_path.iterdir())
    network = PatchworkNetwork(exported["segmenter"][1])
    image = network.prepare(frames("segmenter", 1, 5)[0])
    _, memory = network.first(image)
    with pytest.raises(ValueError, match="action 4 is not one of 0 … 3"):
        network.step(image, 4, memory)
    with pytest.raises(BundleError, match="system is 'interleaved', wanted 'patchwork'"):
        PatchworkNetwork(tiny_bundle.load())
