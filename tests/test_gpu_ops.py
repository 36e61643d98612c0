"""What steps are made of, what TensorFlow has for it on a GPU, and the table made of that."""

import json

import flagless
import pytest
import tensorflow as tf
import tiny_run
from official.core import exp_factory

from benchmarks import gpu_kernels
from memvid_tf.tasks import training  # noqa: F401  (registers the experiments)

gpu_ops = flagless.program("benchmarks.gpu_ops")
TABLE = tiny_run.ROOT / "benchmarks" / "results" / "gpu_ops.json"


def found(step):
    return {gpu_kernels.named(op): op for op in gpu_kernels.of_steps(step)}


def test_operations_of_loops_branches_and_gradients_are_found():
    @tf.function
    def graph(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.while_loop(lambda t, y: t < 2, lambda t, y: (t + 1, tf.tanh(y)), (0, x))[1]
            y = tf.cond(tf.reduce_sum(y) > 0, lambda: tf.nn.elu(y), lambda: tf.nn.selu(y))
            y = tf.quantization.fake_quant_with_min_max_vars(y, -1.0, 1.0)
        return tape.gradient(y, x)

    made = tf.Variable(0.0)
    seen = found(lambda: made.assign(tf.sinh(tf.reduce_sum(graph(tf.ones([3]))))))
    names = {op.name for op in seen.values()}
    assert names >= {"Tanh", "TanhGrad", "Elu", "EluGrad", "Selu", "SeluGrad", "Sinh"}
    assert [name for name, op in seen.items() if op.refuses] == [
        "FakeQuantWithMinMaxVarsGradient()"
    ]
    assert all(gpu_kernels.on_gpu(op) for op in seen.values())


def test_kernels_are_looked_up_with_their_data_types():
    seen = found(lambda: [tf.gather(tf.cast(range(3), kind), [1]) for kind in ("float32", "uint8")])
    gathers = {name: gpu_kernels.on_gpu(op) for name, op in seen.items() if "Gather" in name}
    assert gathers == {"GatherV2(float32, int32)": True, "GatherV2(int32, uint8)": False}
    (text,) = found(lambda: tf.strings.length("text")).values()
    assert gpu_kernels.devices(text) == {"CPU"}


@pytest.mark.parametrize("is_training", (True, False))
def test_batch_norm_refuses_determinism_only_where_it_is_frozen(is_training):
    def step():
        x, ones = tf.ones([1, 2, 2, 3]), tf.ones([3])
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.compat.v1.nn.fused_batch_norm(x, ones, ones, ones, ones, is_training=is_training)
        return tape.gradient(y[0], x)

    refusing = {op.name for op in gpu_kernels.of_steps(tf.function(step)) if op.refuses}
    assert refusing == (set() if is_training else {"FusedBatchNormGradV3"})


def test_every_refusal_of_the_installed_tensorflow_is_known(tmp_path):
    assert not gpu_kernels.unknown_texts()
    assert len(gpu_kernels.texts()) > 20
    library = tmp_path / "library.so"
    said = "Determinism is not yet supported for Sorting."
    library.write_bytes(b"\0nondeterministic\0" + said.encode() + b"\0_determinism.cc\0")
    assert gpu_kernels.texts(str(library)) == [said]


def test_the_table_is_of_every_experiment_and_free_of_faults():
    result = json.loads(TABLE.read_text("utf-8"))
    assert not gpu_ops.faults(result)
    assert gpu_ops.markdown(result) == TABLE.with_suffix(".md").read_text("utf-8")
    steps = {(step["training"], step["kind"]) for step in result["steps"]}
    trained = gpu_ops.trainings()
    assert steps == {(name, kind) for name, _, _ in trained for kind in ("training", "validation")}
    commands = [gpu_ops._command(stem) for _, stem, _ in trained]
    ours = {
        name
        for name, factory in exp_factory._REGISTERED_CONFIGS.items()
        if factory.__module__.startswith("memvid_tf")
    }
    assert {command.one("experiment", "interleaved") for command in commands} == ours


def test_a_fault_in_the_table_is_named():
    step = dict(training="detector", kind="training", without_kernel=["A()"], refusing=["B()"])
    assert gpu_ops.faults({"steps": [step], "unknown_texts": ["C"]}) == [
        "an unknown refusal of determinism: C",
        "detector, training: A() has no GPU kernel",
        "detector, training: B() refuses determinism on a GPU",
    ]


def test_rows_say_what_xla_translates():
    def python(batch):
        return tf.py_function(lambda x: x, [batch["x"]], tf.float32)

    batch = {"x": tf.ones([2])}
    row = gpu_ops._traced("of", "training", lambda batch: tf.tanh(batch["x"]), batch)
    assert (row.without_kernel, row.refusing, row.jit_compile) == ([], [], "yes")
    row = gpu_ops._traced("of", "training", python, batch)
    assert row.jit_compile == "no: calls Python where the loss is not finite"
    row = gpu_ops._traced("of", "validation", lambda batch: tf.strings.as_string(batch["x"]), batch)
    assert row.jit_compile.startswith("no: ") and len(row.jit_compile) > 10
