"""TensorFlow functions to one `.tflite` flatbuffer, by simulated quantization alone.

The only module that touches TensorFlow's converter, which is on its way out of TensorFlow. The
fake-quant nodes of the functions give every range, so the converter gets no representative data
and no list of allowed ops: the int8 graph is the network that was trained (LFS section 3.5). What
it made of the graph is not trusted: `export.gate` checks it.

The way is fixed: a SavedModel with named signatures. Conversion from concrete functions loses the
names and the post-processing op; a dynamic batch adds shape arithmetic that no accelerator runs.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

PRECISIONS = ("int8", "float32")


def convert(module: Any, signatures: Mapping[str, Any], *, precision: str) -> bytes:
    """Converts the signatures of one graph into one flatbuffer in which they share weights.

    Args:
      module: tf.Module or Keras model whose `variables` hold every one the signatures use.
      signatures: name → tf.function with an input signature, or concrete function. Inputs are
        named by their specs, outputs by the keys of the dict that the function returns. Shapes are
        static with batch 1.
      precision: "int8": the fake-quant nodes become int8 arithmetic and int8 inputs and outputs.
        "float32": nothing is quantized; the functions must hold no fake-quant node.

    Returns:
      The `.tflite` file's bytes.

    Raises:
      ValueError: for an unknown precision, a signature without names, or a shape that is not
        static with batch 1 (the message names the tensor).
      AssertionError: from TensorFlow, if a signature uses a variable that the module lacks.
    """
    return _convert(module, signatures, precision=precision, float_outputs=False)


def convert_post_processing(module: Any, signatures: Mapping[str, Any], *, precision: str) -> bytes:
    """As `convert`, for graphs around a custom op: outputs are float32 at either precision."""
    return _convert(module, signatures, precision=precision, float_outputs=True)


def _convert(
    module: Any, signatures: Mapping[str, Any], *, precision: str, float_outputs: bool
) -> bytes:
    import tensorflow as tf

    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is not one of {PRECISIONS}")
    if not signatures:
        raise ValueError("signatures is empty: give at least one name and function")
    functions = {name: _concrete(name, function) for name, function in signatures.items()}
    for name, function in functions.items():
        _check_static(name, function)
    # Saved as it is, a Keras model would have every layer traced anew, which takes far longer than
    # all the rest; the signatures need its variables only.
    holder = tf.Module()
    holder.held = list(module.variables)
    with tempfile.TemporaryDirectory(prefix="memvid_tf_") as folder, _quiet_stderr():
        tf.saved_model.save(holder, folder, signatures=functions)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(functions))
        converter.allow_custom_ops = float_outputs
        if precision == "int8":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.inference_input_type = tf.int8
            converter.inference_output_type = tf.float32 if float_outputs else tf.int8
        return converter.convert()


def _concrete(name: str, function: Any) -> Any:
    import tensorflow as tf

    if isinstance(function, tf.types.experimental.ConcreteFunction):
        return function
    if getattr(function, "input_signature", None) is None:
        raise ValueError(
            f"signature {name!r}: {function!r} is neither a concrete function nor a tf.function "
            "with an input_signature; pass one of them"
        )
    return function.get_concrete_function()


def _check_static(name: str, function: Any) -> None:
    """Refuses unnamed outputs and shapes other than static ones with batch 1."""
    import tensorflow as tf

    outputs = function.structured_outputs
    if not isinstance(outputs, Mapping):
        raise ValueError(
            f"signature {name!r} returns {type(outputs).__name__}: return a dict, whose keys "
            "name the outputs"
        )
    tensors = [
        ("input", spec.name, spec.shape)
        for spec in tf.nest.flatten(function.structured_input_signature)
    ]
    tensors += [("output", key, value.shape) for key, value in outputs.items()]
    for kind, key, shape in tensors:
        if not shape.is_fully_defined() or shape.rank == 0 or shape[0] != 1:
            raise ValueError(
                f"signature {name!r}: {kind} {key!r} has shape {shape}, and exported graphs need "
                "static shapes with batch 1: give the input specs batch 1 and use tf.reshape "
                "where the shape of an output is lost"
            )


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Keeps back what the block writes to stderr; an exception carries it as a note.

    The converter logs from C++ whatever the log level is, so the descriptor itself is redirected.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as log:
        stderr = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            yield
        except Exception as error:
            sys.stderr.flush()
            log.seek(0)
            error.add_note("The converter logged:\n" + log.read().decode(errors="replace"))
            raise
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
