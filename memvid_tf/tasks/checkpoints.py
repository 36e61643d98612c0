"""Restoring a network from a checkpoint of the trainer, or saying why that cannot be."""

import os
import re
import shutil
from collections import deque

import tensorflow as tf

from memvid_tf import files
from memvid_tf.errors import UserError
from memvid_tf.layers.fake_quant import Quantize

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
# What TensorFlow's readers raise: IndexError for a file that ends too early.
DAMAGED = (tf.errors.OpError, ValueError, IndexError)

# A checkpoint is written in pieces, in a folder of its own, which are then joined.
_PIECES = re.compile(r"(best_)?ckpt-\d+_temp")
_PIECE = re.compile(r"(best_)?ckpt-\d+\.\S+\.tempstate\d+|checkpoint\.tmp\w+")


def _held(model_dir: str) -> list[str]:
    """Names of all checkpoints below a folder."""
    return sorted(
        os.path.relpath(os.path.join(folder, name), model_dir).removesuffix(".index")
        for folder, _, names in os.walk(model_dir)
        for name in names
        if name.endswith(".index")
    )


def latest(model_dir: str) -> str | None:
    """Prefix of the newest checkpoint in a folder, or None if it was never trained in.

    Raises:
      UserError: if the list of checkpoints is damaged or names one that is gone. Training would
        start anew. If `model_dir` is an address.
    """
    try:
        found = tf.train.latest_checkpoint(files.local(model_dir))
    except ValueError:  # not text, or text without a name
        found = None
    listed = os.path.join(model_dir, "checkpoint")
    if found is None and os.path.exists(listed):
        raise UserError(
            f"{listed!r} is damaged or names a checkpoint that is gone; {model_dir!r} holds "
            f"{_held(model_dir)}"
        )
    return found


def sweep(model_dir: str) -> None:
    """Removes what a process left that was killed while it wrote a checkpoint."""
    for folder in (model_dir, os.path.join(model_dir, "best")):
        for name in os.listdir(folder) if os.path.isdir(folder) else ():
            path = os.path.join(folder, name)
            if _PIECES.fullmatch(name):
                shutil.rmtree(path)
            elif _PIECE.fullmatch(name):
                os.remove(path)


def find(model_dir: str, checkpoint: str = "") -> str:
    """Prefix of the checkpoint to use.

    Args:
      model_dir: folder of a training.
      checkpoint: name of one checkpoint in it, such as "ckpt-800" or "best/best_ckpt-3"; by
        default the newest.

    Raises:
      UserError: if there is none.
    """
    if not checkpoint:
        found = latest(model_dir)
        if found is None:
            raise UserError(
                f"{model_dir!r} holds no checkpoint; train with --model_dir={model_dir}"
            )
        return found
    path = os.path.join(model_dir, checkpoint)
    if not os.path.exists(f"{path}.index"):
        raise UserError(
            f"{model_dir!r} holds no checkpoint {checkpoint!r}; it holds {_held(model_dir)}"
        )
    return path


def step_of(path: str) -> int:
    """Global step at which a checkpoint of the trainer was written.

    Raises:
      UserError: if the checkpoint is damaged, or not of the trainer.
    """
    try:
        return int(tf.train.load_variable(path, f"global_step{VALUE}"))
    except DAMAGED as error:
        raise UserError(f"checkpoint {path!r} cannot be read: {_first_line(error)}") from error


def variable_keys(model) -> dict[str, tf.Variable]:
    """Every variable of a model by its key in a checkpoint of `tf.train.Checkpoint(model=…)`."""
    keys, seen, queue = {}, {id(model)}, deque([("model", model)])
    while queue:  # breadth first, as the checkpoint names an object by its shortest path
        path, node = queue.popleft()
        if isinstance(node, tf.Variable):
            keys[path + VALUE] = node
            continue
        for name, child in tf.train.TrackableView.children(node).items():
            if id(child) not in seen:
                seen.add(id(child))
                queue.append((f"{path}/{name}", child))
    return keys


def restore(model, path: str, *, allow_new_ranges: bool = False) -> None:
    """Restores a built network from a checkpoint of the trainer.

    Args:
      model: the network.
      path: prefix of the checkpoint.
      allow_new_ranges: whether the checkpoint may lack quantization ranges, as that of a float
        network does from which quantization-aware training starts.

    Raises:
      UserError: if the checkpoint is damaged or of another configuration; names the variable. The
        network is then as it was.
    """
    try:
        reader = tf.train.load_checkpoint(path)
        shapes = reader.get_variable_to_shape_map()
    except DAMAGED as error:
        raise UserError(f"checkpoint {path!r} cannot be read: {_first_line(error)}") from error
    ranges = set()
    for module in model.submodules:
        if isinstance(module, Quantize) and module.built:
            ranges |= {id(variable) for variable in module.ranges.values()}
    # A classifier or an adaptive detector holds the network as its detector.
    inside = any(key.startswith("model/detector/") for key in shapes)
    own = "detector" in tf.train.TrackableView.children(model)
    held = tf.train.Checkpoint(detector=model) if inside and not own else model
    for key, variable in variable_keys(held).items():
        if key not in shapes:
            if allow_new_ranges and id(variable) in ranges:
                continue
            raise UserError(
                f"checkpoint {path!r} is of another configuration: it lacks {_short(key)}"
            )
        if shapes[key] != variable.shape.as_list():
            raise UserError(
                f"checkpoint {path!r} is of another configuration: {_short(key)} has shape "
                f"{shapes[key]} there and {variable.shape.as_list()} here"
            )
    try:
        for key in shapes:
            reader.get_tensor(key)  # compares checksums; `read` would warn of all that is left
        tf.train.Checkpoint(model=held).read(path).expect_partial()
    except DAMAGED as error:
        raise UserError(f"checkpoint {path!r} is damaged: {_first_line(error)}") from error


def _short(key):
    return re.sub(rf"^model/|{re.escape(VALUE)}$", "", key)


def _first_line(error):
    return str(error).strip().splitlines()[0]
