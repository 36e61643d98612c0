"""A bundle on disk: a folder with graphs, labels, golden tensors and `manifest.json`.

`Bundle.load` trusts nothing: every listed file must lie inside the folder and have the size and the
hash that the manifest gives, and the manifest must agree with itself (see `manifest`). Files that
the manifest does not list (a report) are never opened.
"""

import dataclasses
import functools
import hashlib
import json
import os
from pathlib import Path, PurePosixPath

import numpy as np

from memvid_tf.runtime.manifest import (
    SCHEMA_VERSION,
    BundleError,
    FileEntry,
    Golden,
    Manifest,
    TensorSpec,
)

MANIFEST = "manifest.json"
# What the verification writes into the folder afterwards, and benchmarks.card.
REPORT_JSON, REPORT_MD, CARD = "report.json", "report.md", "card.json"
# Ten times the manifest of the largest detector that the zoo describes.
_MAX_MANIFEST_BYTES = 16 * 2**20


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A folder that was checked.

    Attributes:
      path: the folder.
      manifest: its manifest.
      labels: names of the classes; a detection's class is an index into them.
    """

    path: Path
    manifest: Manifest
    labels: tuple[str, ...]

    @classmethod
    def load(cls, path: str | os.PathLike[str], verify: bool = True) -> "Bundle":
        """Reads and checks a bundle.

        Args:
          path: the folder.
          verify: also compare every file's sha256; False saves reading large files twice when the
            same process has just checked them.

        Raises:
          BundleError: a missing, damaged or contradicting part.
        """
        folder = Path(path)
        if not folder.is_dir():
            there = "is not a folder" if folder.exists() else "no such folder"
            raise BundleError(f"bundle {folder}: {there}; python -m export writes one")
        try:
            manifest = Manifest.from_json(_read_manifest(folder))
            for name, entry in manifest.files.items():
                _check_file(folder, name, entry, verify)
            labels = _read_labels(folder / manifest.labels)
            if manifest.anchors is not None:
                _check_label_count(manifest, labels)
        except BundleError as error:
            raise BundleError(f"bundle {folder}: {error}") from error
        return cls(folder, manifest, labels)

    @functools.cached_property
    def anchors(self) -> np.ndarray:
        """[A, 4] float32 anchors (ycenter, xcenter, height, width), normalised."""
        return np.array(self.manifest.anchors, np.float32).reshape(-1, 4)

    def require_system(self, system: str) -> None:
        """Raises BundleError where the bundle is of another system."""
        if self.manifest.system != system:
            raise BundleError(
                f"bundle {self.path}: system is {self.manifest.system!r}, wanted {system!r}"
            )

    def graph_path(self, graph: str) -> Path:
        """The `.tflite` file of a graph."""
        return self.path / self.manifest.graphs[graph].file

    def read_golden(self, golden: Golden) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The recorded inputs and outputs of one call.

        Returns:
          Arrays by tensor name, with the shape and dtype of the tensor.
        """
        tensors = self.manifest.signature(f"{golden.graph}/{golden.signature}")
        inputs, outputs = (
            {name: self._read(files[name], spec) for name, spec in specs.items()}
            for files, specs in ((golden.inputs, tensors.inputs), (golden.outputs, tensors.outputs))
        )
        return inputs, outputs

    def _read(self, file: str, spec: TensorSpec) -> np.ndarray:
        raw = np.fromfile(self.path / file, np.dtype(spec.dtype).newbyteorder("<"))
        return raw.astype(spec.dtype, copy=False).reshape(spec.shape)


def inventory(path: str | os.PathLike[str]) -> dict[str, int | None] | None:
    """What of a folder's files an export wrote: bytes by relative path, None for any size.

    Returns:
      None where the folder holds no manifest of ours.
    """
    try:
        content = json.loads(_read_manifest(Path(path)))
        known = {name: entry["bytes"] for name, entry in content["files"].items()}
        graphs = {graph["file"] for graph in content["graphs"].values()}
    except (BundleError, ValueError, KeyError, TypeError, AttributeError, OSError):
        return None
    ours = content.get("schema_version") in range(1, SCHEMA_VERSION + 1)
    if not ours or not graphs <= set(known):
        return None
    return {**known, **dict.fromkeys((MANIFEST, REPORT_JSON, REPORT_MD, CARD))}


def file_entry(path: str | os.PathLike[str]) -> FileEntry:
    """Size and sha256 of a file, as the manifest lists them."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(bytes=os.fstat(file.fileno()).st_size, sha256=digest)


def _read_manifest(folder: Path) -> str:
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"{MANIFEST} is missing; is this the folder that the export wrote?")
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise BundleError(
            f"{MANIFEST} has {path.stat().st_size} bytes, wanted at most {_MAX_MANIFEST_BYTES}"
        )
    return _read_text(path)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{path.name} is not UTF-8 text: {error}") from error


def _check_file(folder: Path, name: str, entry: FileEntry, verify: bool) -> None:
    parts = PurePosixPath(name).parts
    # Backslashes and drives would be paths elsewhere; a consumer there must refuse them as well.
    plain = name == "/".join(parts) and name.isprintable() and not set(name) & set("\\:")
    if not parts or not plain or parts[0] == "/" or ".." in parts:
        raise BundleError(
            f"{MANIFEST}: files lists {name!r}, wanted a relative path without '..' that stays "
            "inside the bundle"
        )
    # os.path, unlike pathlib, takes a loop of links or an endless name for a missing file.
    path = os.path.join(folder, name)
    real = os.path.realpath(path)
    if not Path(real).is_relative_to(os.path.realpath(folder)):
        raise BundleError(f"{name} is a link to {real}, wanted a file inside the bundle")
    if not os.path.isfile(path):
        raise BundleError(f"{name} is missing, but {MANIFEST} lists it")
    size = os.path.getsize(path)
    if size != entry.bytes:
        raise BundleError(
            f"{name} has {size} bytes, wanted {entry.bytes}; it was cut short or changed, copy or "
            "export the bundle again"
        )
    if verify and (digest := file_entry(path).sha256) != entry.sha256:
        raise BundleError(
            f"{name} has sha256 {digest}, wanted {entry.sha256}; it was changed or damaged, copy "
            "or export the bundle again"
        )


def _read_labels(path: Path) -> tuple[str, ...]:
    labels = tuple(_read_text(path).splitlines())
    for number, label in enumerate(labels, start=1):
        if not label.strip():
            raise BundleError(f"{path.name}: line {number} is empty, wanted a class name a line")
    return labels


def _check_label_count(manifest: Manifest, labels: tuple[str, ...]) -> None:
    logits = manifest.tensor(f"{manifest.calls['post'][0]}/class_logits", "inputs")
    if len(labels) != logits.shape[-1] - 1:
        raise BundleError(
            f"{manifest.labels} has {len(labels)} lines, wanted {logits.shape[-1] - 1}: "
            f"class_logits has {logits.shape[-1]} columns, background included"
        )
