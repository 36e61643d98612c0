"""A backbone starts from a MobileNetV2 classifier in the layout of tf_keras.applications.

Such a file is HDF5: a group a layer, in it the layer's arrays. It is of unknown origin, so nothing
but numbers is read from it, and only where a name, a shape and a type are the expected ones.

Differs from the classifier: frames reach from -1 to 127/128 instead of 1, and the last bottleneck
of our backbones ends in ReLU6.
"""

import os

import h5py
import numpy as np

from memvid_tf.errors import UserError
from memvid_tf.models.mobilenet_v2 import MobileNetV2

KERNELS = ("kernel:0", "depthwise_kernel:0")
NORMS = ("gamma:0", "beta:0", "moving_mean:0", "moving_variance:0")


def _layers(backbone: MobileNetV2):
    """Our convolutions, each with the names that Keras gives it and its batch normalisation."""
    yield backbone.stem, "Conv1", "bn_Conv1"
    for number, block in enumerate(backbone.blocks):
        prefix = f"block_{number}" if number else "expanded_conv"
        for layer, name in (
            (block.expand, "expand"),
            (block.depthwise, "depthwise"),
            (block.project, "project"),
        ):
            if layer is not None:
                yield layer, f"{prefix}_{name}", f"{prefix}_{name}_BN"


def load(backbone: MobileNetV2, path: str) -> None:
    """Gives a built backbone the weights of a file, all or none.

    Raises:
      UserError: naming what the file lacks or has otherwise.
    """
    try:
        with h5py.File(path, "r") as file:
            found = [
                (variable, _array(file, path, layer, name, tuple(variable.shape)))
                for variable, layer, name in _wanted(backbone)
            ]
    except OSError as error:
        what = "does not exist" if not os.path.exists(path) else f"cannot be read: {error}"
        raise UserError(f"weights {path!r} {what}; wanted is an HDF5 file of Keras") from error
    for variable, value in found:
        variable.assign(value)


def _wanted(backbone):
    for layer, name, norm in _layers(backbone):
        yield layer.kernel, name, KERNELS
        for variable, array in zip((layer.scale, layer.bias, layer.mean, layer.variance), NORMS):
            yield variable, norm, (array,)


def _array(file, path, layer, names, shape):
    """The array of a layer: `layer/layer/name`, in files of whole models below model_weights."""
    top = "model_weights/" if "model_weights" in file else ""
    for name in names:
        where = f"{top}{layer}/{layer}/{name}"
        # Links may lead into other files, and so may what a data set is stored in.
        parts = where.split("/")
        links = ["/".join(parts[: i + 1]) for i in range(len(parts))]
        if all(isinstance(file.get(link, getlink=True), h5py.HardLink) for link in links):
            break
    else:
        raise UserError(f"weights {path!r} lack {layer}/{names[0]}; is it a MobileNetV2 of Keras?")
    array = file[where]
    if not isinstance(array, h5py.Dataset) or array.external or array.is_virtual:
        raise UserError(f"weights {path!r}: {where} is no array of its own")
    if array.shape != shape or array.dtype != np.float32:
        raise UserError(
            f"weights {path!r}: {where} is {array.dtype} of shape {array.shape}, wanted is float32 "
            f"of {shape}; take the file of the same depth multiplier"
        )
    value = array[()]
    if not np.isfinite(value).all() or (names[0] == NORMS[3] and value.min() < 0):
        raise UserError(f"weights {path!r}: {where} holds values that cannot be")
    return value
