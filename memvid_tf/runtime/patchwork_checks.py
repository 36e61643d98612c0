"""What the manifest of Patchwork has to say beyond the generic schema; `window_spec` says what it
means. Every function raises BundleError for the first contradiction that it finds."""

import dataclasses

from memvid_tf.runtime.manifest_checks import (
    check_divisor,
    check_edge,
    check_predictions,
    fail,
)
from memvid_tf.runtime.window_spec import describe


def check(manifest) -> None:
    """What Patchwork needs beyond the generic schema; see `window_spec` for what it means."""
    if manifest.windows is None:
        fail("windows", None, "a value: system 'patchwork' needs it")
    for name in ("first", "step"):
        if len(manifest.calls.get(name, ())) != 2:
            found = manifest.calls.get(name)
            fail(f"calls.{name}", found, "a signature of the body, then the tail")
    (first, tail), (step, same_tail) = (manifest.calls[name] for name in ("first", "step"))
    if same_tail != tail:
        fail("calls.step", manifest.calls["step"], f"the tail of calls.first, {tail!r}")
    spec, sizes = manifest.windows, manifest.image.sizes
    if set(sizes) != {"full", "window"}:
        fail("image", sorted(sizes), "the sizes of exactly ['full', 'window']")
    for name, call in (("full", first), ("window", step)):
        if manifest.tensor(f"{call}/image", "inputs").shape != (1, *sizes[name], 3):
            fail(f"image.{name}", sizes[name], f"the size of tensor {call}/image")
    try:
        layout = spec.layout()
        layout.windows.check("image.full", sizes["full"])
    except ValueError as error:
        fail("windows", str(error), "windows that fit every cell")
    if spec != describe(layout, [spec.image_rows, spec.image_columns], spec.maps):
        fail("windows", spec, "kept rows and columns, and the chunk, that follow from the rest")
    for axis, halo in enumerate((spec.image_rows, spec.image_columns)):
        wanted = layout.windows.size(sizes["full"][axis]) + sum(halo)
        if sizes["window"][axis] != wanted:
            fail("image.window", sizes["window"], f"{wanted} on axis {axis}, halo included")
    ends = [(f"{step}/halo", "inputs", layout.halo), (f"{step}/own", "outputs", layout.own)]
    ends.append((f"{first}/strips", "outputs", layout.memory))
    halo = manifest.tensor(ends[0][0], "inputs")
    for name, side, chunks in ends:
        wanted = dataclasses.replace(halo, shape=(1, chunks, spec.chunk))
        if manifest.tensor(name, side) != wanted:
            fail(f"tensor {name}", manifest.tensor(name, side), f"{wanted}")
    if sorted(spec.maps) != sorted(manifest.signature(tail).inputs):
        fail("windows.maps", spec.maps, f"the inputs of {tail}")
    for name in spec.maps:
        whole = manifest.tensor(f"{tail}/{name}", "inputs")
        window = [layout.windows.size(side) for side in whole.shape[1:3]]
        part = dataclasses.replace(whole, shape=(1, *window, *whole.shape[3:]))
        for producer, wanted in ((first, whole), (step, part)):
            if manifest.tensor(f"{producer}/{name}", "outputs") != wanted:
                found = manifest.tensor(f"{producer}/{name}", "outputs")
                fail(f"tensor {producer}/{name}", found, f"{wanted}")
    check_predictions(manifest, tail)
    if (manifest.attention is None) != ("attention" not in manifest.calls):
        fail("attention", manifest.attention, "a value exactly where calls has 'attention'")
    if manifest.attention is not None:
        _check_attention(manifest, tail, layout.windows.count)


def _check_attention(manifest, tail: str, actions: int) -> None:
    spec, calls = manifest.attention, manifest.calls["attention"]
    if len(calls) != 1:
        fail("calls.attention", calls, "one signature")
    outputs = list(manifest.signature(tail).outputs)
    if spec.prediction not in outputs:
        fail("attention.prediction", spec.prediction, f"an output of {tail}, {outputs}")
    if not 0 <= spec.decay < 1:
        fail("attention.decay", spec.decay, "a number in [0, 1)")
    check_divisor("attention.one", spec.one)
    read = manifest.tensor(f"{calls[0]}/prediction", "inputs")
    stored = manifest.tensor(f"{tail}/{spec.prediction}", "outputs")
    check_edge(f"calls.attention: {tail}/{spec.prediction} -> {calls[0]}/prediction", stored, read)
    for name, side in (("history", "inputs"), ("q_values", "outputs")):
        tensor = manifest.tensor(f"{calls[0]}/{name}", side)
        if tensor.shape != (1, actions):
            fail(f"tensor {calls[0]}/{name}: shape", tensor.shape, (1, actions))
