"""Graphs called by name: the same numbers as LiteRT's own runner, and errors that name things."""

import json
import threading

import cv2
import flatbuffers
import numpy as np
import pytest
import tiny_bundle
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from memvid_tf.runtime.interpreter import Graph, GraphError

MEMORY_INPUTS = ("features", "c", "h")


def memory_path(precision="int8"):
    return tiny_bundle.build(precision) / "memory.tflite"


def random_inputs(graph, seed):
    rng = np.random.default_rng(seed)
    values = {name: rng.uniform(0, 6, info.shape) for name, info in graph.inputs.items()}
    return {
        name: value.astype(np.float32) if info.scale is None else info.quantize(value)
        for (name, info), value in zip(graph.inputs.items(), values.values())
    }


@pytest.mark.parametrize("precision", ["int8", "float32"])
@pytest.mark.parametrize("signature", ["step", "update"])
def test_every_signature_agrees_with_litert(precision, signature):
    graph = Graph(memory_path(precision), signature)
    assert set(graph.inputs) == set(MEMORY_INPUTS)
    interpreter = Interpreter(str(memory_path(precision)))
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner(signature)
    for seed in range(3):
        inputs = random_inputs(graph, seed)
        found, wanted = graph(**inputs), runner(**inputs)
        assert found.keys() == wanted.keys()
        for name in wanted:
            np.testing.assert_array_equal(found[name], wanted[name])
            assert found[name].shape == graph.outputs[name].shape
            assert found[name].dtype == graph.outputs[name].dtype


def test_a_bound_call_keeps_its_order_and_copies_only_what_is_asked_for():
    graph = Graph(memory_path(), "step")
    inputs = random_inputs(graph, 5)
    whole = graph(**inputs)
    call = graph.bind(("h", "features", "c"), ("h_next", "class_logits"))
    found = call(inputs["h"], inputs["features"], inputs["c"])
    assert len(found) == 2
    np.testing.assert_array_equal(found[0], whole["h_next"])
    np.testing.assert_array_equal(found[1], whole["class_logits"])
    assert call.last_ms > 0
    # Outputs are copies: the next call leaves them alone.
    before = found[0].copy()
    call(inputs["c"], inputs["c"], inputs["h"])
    np.testing.assert_array_equal(found[0], before)
    with pytest.raises(GraphError, match="output 'c_nxt' is not one of .*'c_next'"):
        graph.bind(MEMORY_INPUTS, ["c_nxt"])
    with pytest.raises(GraphError, match=r"inputs \['c', 'h'\], wanted \['c', 'features', 'h'\]"):
        graph.bind(["c", "h"], ["c_next"])
    with pytest.raises(ValueError):
        call(inputs["h"], inputs["features"])


def test_wrong_inputs_are_named():
    graph = Graph(memory_path(), "step")
    inputs = random_inputs(graph, 0)
    with pytest.raises(ValueError, match=r"inputs \['c', 'h', 'image'\] given, wanted \['c', 'f"):
        graph(image=inputs["features"], c=inputs["c"], h=inputs["h"])
    with pytest.raises(ValueError, match=r"'c' is float32 \(1, 4, 6, 8\), wanted int8"):
        graph(**{**inputs, "c": inputs["c"].astype(np.float32)})
    with pytest.raises(ValueError, match=r"'h' is int8 \(4, 6, 8\), wanted int8 \(1, 4, 6, 8\)"):
        graph(**{**inputs, "h": inputs["h"][0]})


def test_files_that_are_no_models(tmp_path):
    with pytest.raises(GraphError, match="nothing.tflite: no such file"):
        Graph(tmp_path / "nothing.tflite")
    whole = memory_path().read_bytes()
    garbage = np.random.default_rng(0).bytes(5000)
    for content in (b"", whole[:3], whole[:100], whole[: len(whole) // 2], garbage):
        path = tmp_path / "broken.tflite"
        path.write_bytes(content)
        with pytest.raises(GraphError, match=rf"broken.tflite \({len(content)} bytes\) cannot be"):
            Graph(path)
    with pytest.raises(GraphError, match=r"'stop' is not one of \['step', 'update'\]"):
        Graph(memory_path(), "stop")
    with pytest.raises(GraphError, match=r"name one of its signatures \['step', 'update'\]"):
        Graph(memory_path())


def test_graphs_that_fail_late_are_named(tmp_path):
    """Shapes that do not add up are found when tensors are allocated, an index only in a run."""
    path = tmp_path / "late.tflite"
    path.write_bytes(one_operator("ADD", constant=[1.0, 2.0, 3.0], indices=2))
    with pytest.raises(GraphError, match=r"late.tflite \(\d+ bytes\) cannot be loaded: "):
        Graph(path)
    path.write_bytes(one_operator("GATHER", constant=[1.0, 2.0, 3.0], indices=2))
    graph = Graph(path)
    found = graph(x=np.array([2, 0], np.int32))
    np.testing.assert_array_equal(found["y"], [3, 1])
    with pytest.raises(GraphError, match="late.tflite:run cannot be run: .*index.*; export"):
        graph(x=np.array([2, 7], np.int32))


def one_operator(kind, constant, indices):
    """The `.tflite` of y = kind(constant, x), x int32 [indices]."""
    tensors = []
    for name, shape, dtype, buffer in (
        ("x", [indices], "INT32", 0),
        ("constant", [len(constant)], "FLOAT32", 1),
        ("y", [indices], "FLOAT32", 0),
    ):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name, shape, buffer
        tensor.type = getattr(schema.TensorType, dtype)
        tensors.append(tensor)
    operator, code, graph = schema.OperatorT(), schema.OperatorCodeT(), schema.SubGraphT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [1, 0], [2]
    code.deprecatedBuiltinCode = code.builtinCode = getattr(schema.BuiltinOperator, kind)
    code.version = 1
    graph.tensors, graph.operators, graph.inputs, graph.outputs = tensors, [operator], [0], [2]
    signature, x, y = schema.SignatureDefT(), schema.TensorMapT(), schema.TensorMapT()
    (x.name, x.tensorIndex), (y.name, y.tensorIndex) = ("x", 0), ("y", 2)
    signature.signatureKey, signature.subgraphIndex = "run", 0
    signature.inputs, signature.outputs = [x], [y]
    values, model = schema.BufferT(), schema.ModelT()
    values.data = np.frombuffer(np.array(constant, np.float32).tobytes(), np.uint8)
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers, model.signatureDefs = [schema.BufferT(), values], [signature]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def test_quantization_is_the_tensors_own():
    features = Graph(memory_path(), "step").inputs["features"]
    stored = np.arange(-128, 128).astype(np.int8).reshape(2, 128)
    real = features.dequantize(stored)
    np.testing.assert_allclose(real, np.arange(256).reshape(2, 128) * 6 / 255, rtol=1e-6)
    np.testing.assert_array_equal(features.quantize(real), stored)
    # Saturates, and rounds to the nearest step.
    np.testing.assert_array_equal(
        features.quantize([-1, 7, 6 / 255 * 9.6, 6 / 255 * 9.4]), np.array([-128, 127, -118, -119])
    )
    real_only = Graph(memory_path("float32"), "step").inputs["features"]
    assert real_only.scale is None and real_only.zero_point is None
    with pytest.raises(ValueError, match="'features' of type float32 is not quantized"):
        real_only.quantize([0.0])


def test_xnnpack_takes_whole_graphs():
    bundle = tiny_bundle.load()
    assert Graph(bundle.graph_path("f0")).delegated_partitions() == 1
    assert Graph(bundle.graph_path("memory"), "step").delegated_partitions() == 1
    # LiteRT does not list the nodes of a file's second signature.
    assert Graph(bundle.graph_path("memory"), "update").delegated_partitions() is None


def test_two_threads_with_a_graph_each_agree_with_one():
    inputs = [random_inputs(Graph(memory_path(), "step"), seed) for seed in range(40)]
    graph = Graph(memory_path(), "step")
    wanted = [graph(**values)["class_logits"] for values in inputs]
    found = {}

    def work(start):
        own = Graph(memory_path(), "step")
        for number in range(start, 40, 2):
            found[number] = own(**inputs[number])["class_logits"]

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(40):
        np.testing.assert_array_equal(found[number], wanted[number])


def test_another_peoples_detector_finds_its_cats_and_dogs(fixtures_dir):
    """SSD MobileNet v1 has no signature; its detections are published."""
    folder = fixtures_dir / "tflite" / "ssd_mobilenet_v1"
    golden = json.loads((folder / "golden.json").read_text())
    graph = Graph(next(folder.glob("*.tflite")))
    ((name, info),) = graph.inputs.items()
    assert info.dtype == np.uint8 and info.scale == 1 / 128 and info.zero_point == 128
    image = cv2.cvtColor(cv2.imread(str(folder / golden["image"])), cv2.COLOR_BGR2RGB)
    height, width = image.shape[:2]
    outputs = graph.run({name: cv2.resize(image, info.shape[2:0:-1])[None]})
    boxes, classes, scores, count = (
        outputs[f"TFLite_Detection_PostProcess{suffix}"] for suffix in ("", ":1", ":2", ":3")
    )
    wanted = golden["xywh_class_score"]
    assert count[0] >= len(wanted)
    for x, y, w, h, label, score in wanted:
        edges = np.array([y, x, y + h, x + w])
        errors = np.abs(boxes[0] * [height, width, height, width] - edges).max(axis=1)
        best = errors.argmin()
        # The file's own tolerances for OpenCV's bilinear resize.
        assert errors[best] <= 7 and abs(scores[0, best] - score) <= golden["score_tol"]
        assert classes[0, best] == label
