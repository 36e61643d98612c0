"""Paths that flags name, checked before TensorFlow's import: a wrong one is found in a second."""

import os
from pathlib import Path

from memvid_tf import files
from memvid_tf.errors import UserError
from memvid_tf.tasks.ended import PARAMS_FILE


def check_file(flag: str, path: str, wanted: str) -> None:
    """Refuses a file that cannot be read.

    Args:
      flag: that names it, without the dashes.
      path: its value.
      wanted: what it should be, for the message.

    Raises:
      UserError: it is not there, is something else, or may not be read.
    """
    if not os.path.isfile(path):
        raise UserError(f"--{flag}={path} {files.what(path)}, wanted {wanted}")
    if not os.access(path, os.R_OK):
        raise UserError(f"--{flag}={path} may not be read, wanted {wanted}")


def check_training(flag: str, folder: str, checkpoint: str = "") -> None:
    """Refuses a folder that is not one of a training.

    Args:
      flag: that names it, without the dashes.
      folder: its value.
      checkpoint: one that it must hold, such as "ckpt-800"; "" for any.

    Raises:
      UserError: it is not there, or holds no configuration or no such checkpoint.
    """
    if not os.path.isdir(folder):
        raise UserError(f"--{flag}={folder} {files.what(folder)}, wanted the folder of a training")
    if not os.path.exists(os.path.join(folder, PARAMS_FILE)):
        raise UserError(f"--{flag}={folder} holds no {PARAMS_FILE}; is it that of a training?")
    if checkpoint and not os.path.exists(os.path.join(folder, f"{checkpoint}.index")):
        held = sorted(path.stem for path in Path(folder).glob("ckpt-*.index"))
        raise UserError(
            f"--{flag}={folder} holds no checkpoint {checkpoint!r}; it holds "
            f"{', '.join(held) or 'none'}"
        )


def check_output(flag: str, path: str, folder: bool = False) -> None:
    """Refuses what cannot be written; makes nothing.

    Args:
      flag: that names it, without the dashes.
      path: its value.
      folder: whether a folder is written, and not a file.

    Raises:
      UserError: something of the other kind has that name, or the folder around it takes no files.
    """
    if folder and os.path.exists(path) and not os.path.isdir(path):
        raise UserError(f"--{flag}={path} is a file, wanted a folder")
    if not folder and os.path.isdir(path):
        raise UserError(f"--{flag}={path} is a folder, wanted a file")
    around = Path(path).absolute().parent
    while not around.exists():  # those that are missing are made
        around = around.parent
    if not around.is_dir():
        raise UserError(f"--{flag}={path} cannot be written: {around} is no folder")
    if not os.access(around, os.W_OK | os.X_OK):
        raise UserError(f"--{flag}={path} cannot be written: no permission in {around}")
