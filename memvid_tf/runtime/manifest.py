"""The manifest of a bundle: what a consumer must know to run the graphs, and nothing else.

`manifest.json` is one `Manifest`. The export fills these dataclasses in and writes `to_json()`; the
runtime and the benchmarks read them back with `from_json()`. Both ends run `validate()`, so a
manifest that contradicts itself is neither written nor loaded.

The sections `graphs`, `state`, `edges`, `calls` and `golden` say nothing about a particular system:
a call is a list of `"graph/signature"`, an edge joins two `"graph/signature/tensor"`. What one
system needs beyond that (which calls, which image sizes, anchors) is checked by the function that
`_SYSTEMS` names for it; what is generic, by `manifest_checks`. The sections themselves are the
dataclasses of `manifest_parts`.
"""

import dataclasses
import json
import re
from typing import Any

from memvid_tf.runtime import (
    interleaved_checks,
    manifest_checks,
    patchwork_checks,
    single_frame_checks,
)
from memvid_tf.runtime.manifest_parts import (  # noqa: F401  (the sections are named from here)
    DTYPES,
    F1_FROM_F0,
    MASK_RESIZE,
    OBSERVES,
    AttentionSpec,
    BoxCoder,
    BundleError,
    Checkpoint,
    FileEntry,
    Golden,
    GraphSpec,
    ImageSpec,
    MaskSpec,
    PolicySpec,
    PostSpec,
    SignatureSpec,
    StateSpec,
    TensorSpec,
)
from memvid_tf.runtime.typed_json import SchemaError, decode, encode, parse
from memvid_tf.runtime.window_spec import WindowSpec

SCHEMA_VERSION = 1
# What each system needs beyond the generic schema.
_SYSTEMS = {
    "interleaved": interleaved_checks.check,
    "patchwork": patchwork_checks.check,
    "single_frame": single_frame_checks.check,
}


@dataclasses.dataclass(frozen=True)
class Manifest:
    """All of `manifest.json`. Sections that one system does not have are None."""

    schema_version: int
    system: str
    name: str
    precision: str
    created: str
    code_version: str
    checkpoint: Checkpoint
    config: dict[str, Any]
    labels: str
    files: dict[str, FileEntry]
    image: ImageSpec
    graphs: dict[str, GraphSpec]
    state: tuple[StateSpec, ...]
    edges: tuple[tuple[str, str], ...]
    calls: dict[str, tuple[str, ...]]
    golden: tuple[Golden, ...]
    updates_state: dict[str, bool] | None = None
    anchors: tuple[tuple[float, float, float, float], ...] | None = None
    box_coder: BoxCoder | None = None
    post: PostSpec | None = None
    tau: int | None = None
    policy: PolicySpec | None = None
    windows: WindowSpec | None = None
    mask: MaskSpec | None = None
    attention: AttentionSpec | None = None

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Reads and validates a manifest.

        Args:
          text: content of `manifest.json`.

        Raises:
          BundleError: broken JSON, an unknown, repeated or missing key, a value of a wrong type, or
            sections that contradict each other.
        """
        try:
            value = parse(text)
            version = value.get("schema_version") if isinstance(value, dict) else None
            if version != SCHEMA_VERSION:
                raise SchemaError(
                    f"schema_version: {version!r} is not {SCHEMA_VERSION}, the version that this "
                    "code reads; export the bundle again with this code"
                )
            manifest = decode(cls, value, "")
        except SchemaError as error:
            raise BundleError(f"manifest.json: {error}") from error
        manifest.validate()
        return manifest

    def to_json(self) -> str:
        """Validates the manifest and returns the text of `manifest.json`."""
        self.validate()
        text = json.dumps(encode(self), indent=2, ensure_ascii=False, allow_nan=False)
        # A list of plain numbers (a shape, an anchor) reads better on one line. Strings cannot
        # match: a raw newline never occurs inside one.
        return (
            re.sub(
                r"\[\n\s*([^\[\]{}\"]*?)\n\s*\]",
                lambda match: "[" + re.sub(r"\s*\n\s*", " ", match[1]) + "]",
                text,
            )
            + "\n"
        )

    def signature(self, call: str) -> SignatureSpec:
        """The signature that `"graph/signature"` names.

        Raises:
          BundleError: there is none.
        """
        graph, _, signature = call.partition("/")
        spec = self.graphs.get(graph)
        if spec is None:
            raise BundleError(
                f"manifest.json: {call!r}: graph {graph!r} is not one of {sorted(self.graphs)}"
            )
        if signature not in spec.signatures:
            raise BundleError(
                f"manifest.json: {call!r}: signature {signature!r} is not one of "
                f"{sorted(spec.signatures)} of graph {graph!r}"
            )
        return spec.signatures[signature]

    def tensor(self, name: str, side: str) -> TensorSpec:
        """The tensor that `"graph/signature/tensor"` names.

        Args:
          name: the full name.
          side: "inputs" or "outputs".

        Raises:
          BundleError: there is none on that side.
        """
        call, _, tensor = name.rpartition("/")
        tensors = getattr(self.signature(call), side)
        if tensor not in tensors:
            raise BundleError(
                f"manifest.json: {name!r}: {tensor!r} is not among the {side} of {call!r}: "
                f"{sorted(tensors)}"
            )
        return tensors[tensor]

    def validate(self) -> None:
        """Checks that the sections agree with one another.

        Raises:
          BundleError: the first contradiction found.
        """
        if self.schema_version != SCHEMA_VERSION:
            manifest_checks.fail("schema_version", self.schema_version, SCHEMA_VERSION)
        if self.system not in _SYSTEMS:
            manifest_checks.fail("system", self.system, f"one of {sorted(_SYSTEMS)}")
        manifest_checks.check(self)
        _SYSTEMS[self.system](self)
