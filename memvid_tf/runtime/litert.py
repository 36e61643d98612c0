"""LiteRT: which versions were tried, and every private member of it that is used.

Whatever runs a `.tflite` here is loaded by `interpreter`, so that another version is named before
it fails in a way of its own. The versions are those with which the runtime and the native runner
return every golden tensor of the ready bundles: up to 2.1.5, LiteRtCreateModelFromFile takes one
parameter fewer than the runner passes.
"""

import importlib.metadata
import os
import re
from typing import Any

from memvid_tf.errors import UserError

PACKAGE = "ai-edge-litert"
RANGE = ">=2.1.6,<2.4"  # setup.py says the same
_FIRST, _BEFORE = (2, 1, 6), (2, 4, 0)
_INSTALL = f"pip install '{PACKAGE}{RANGE}'"
# Of the wrapper below the public class.
_MEMBERS = (
    "AllocateTensors", "GetSignatureDefs", "GetSubgraphIndexFromSignature", "GetTensor",
    "InputIndices", "Invoke", "NodeName", "NumNodes", "OutputIndices", "SetTensor", "TensorName",
    "TensorQuantizationParameters", "TensorSize", "TensorType",
)  # fmt: skip


def version() -> str:
    """The installed version.

    Raises:
      UserError: there is none, or it is not in `RANGE`.
    """
    try:
        found = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f"{PACKAGE} is not installed: {_INSTALL}") from error
    numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", found)
    if numbers is None or not _FIRST <= tuple(int(n or 0) for n in numbers.groups()) < _BEFORE:
        raise UserError(f"{PACKAGE} {found} is installed, wanted {RANGE}: {_INSTALL}")
    return found


def interpreter(model: str | os.PathLike[str] | bytes, num_threads: int) -> Any:
    """An interpreter of a `.tflite` file or its content, with its tensors allocated.

    Raises:
      UserError: see `version`.
      ValueError, RuntimeError: from LiteRT, which refuses the model.
    """
    version()
    from ai_edge_litert.interpreter import Interpreter

    if isinstance(model, bytes):
        made = Interpreter(model_content=model, num_threads=num_threads)
    else:
        made = Interpreter(os.fspath(model), num_threads=num_threads)
    made.allocate_tensors()
    return made


def wrapper(made: Any) -> Any:
    """What the public signature runner of an interpreter calls. It alone reaches the second and
    later signatures of a file, and neither resizes nor allocates at every call.

    Raises:
      UserError: this version has no such thing.
    """
    found = getattr(made, "_interpreter", None)
    for name in _MEMBERS:
        if not hasattr(found, name):
            raise _lacks(name)
    return found


def operators(made: Any) -> list[dict]:
    """The operators of the first graph: "op_name", "inputs" and "outputs" of each. Behind them
    stands a "DELEGATE" for each partition that is delegated.

    Raises:
      UserError: this version has no such list.
    """
    if not hasattr(made, "_get_ops_details"):
        raise _lacks("_get_ops_details")
    return made._get_ops_details()


def _lacks(name: str) -> UserError:
    return UserError(
        f"{PACKAGE} {version()} has no {name}, which is used here; install the version of the "
        f"tests: pip install -c constraints.txt {PACKAGE}"
    )
