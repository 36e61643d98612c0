"""What the manifest of an interleaved detector (Looking Fast and Slow) has to say beyond the
generic schema. Every function raises BundleError for the first contradiction that it finds."""

from memvid_tf.runtime.manifest_checks import (
    check_divisor,
    check_edge,
    check_heads,
    fail,
)
from memvid_tf.runtime.manifest_parts import F1_FROM_F0, OBSERVES


def check(manifest) -> None:
    """What the interleaved detector (Looking Fast and Slow) needs beyond the generic schema."""
    for field in ("updates_state", "anchors", "box_coder", "post", "tau"):
        if getattr(manifest, field) is None:
            fail(field, None, "a value: system 'interleaved' needs it")
    for field, wanted in (
        ("calls", {"f0", "f1", "update", "post"}),
        ("updates_state", {"f0", "f1"}),
        ("graphs", {"f0", "f1", "memory", "post"}),
    ):
        missing = sorted(wanted - set(getattr(manifest, field)))
        if missing:
            fail(field, sorted(getattr(manifest, field)), f"also {missing}")
    if manifest.tau < 0:
        fail("tau", manifest.tau, "0 or more")
    if not manifest.state:
        fail("state", [], "at least one tensor")
    sizes = manifest.image.sizes
    if set(sizes) != {"f0", "f1"}:
        fail("image", sorted(sizes), "the sizes of exactly ['f0', 'f1']")
    if manifest.image.f1_from_f0 != F1_FROM_F0:
        fail("image.f1_from_f0", manifest.image.f1_from_f0, repr(F1_FROM_F0))
    factors = {divmod(big, small) for big, small in zip(sizes["f0"], sizes["f1"])}
    if len(factors) != 1 or any(rest for _, rest in factors):
        fail("image.f1", sizes["f1"], f"image.f0 = {sizes['f0']} divided by one whole number")
    for name in ("f0", "f1", "update"):
        _check_extractor_call(manifest, name)
    for name in ("f0", "f1"):
        image = f"{manifest.calls[name][0]}/image"
        if manifest.tensor(image, "inputs").shape != (1, *sizes[name], 3):
            fail(f"image.{name}", sizes[name], f"the size of tensor {image}")
    step, on_f1 = (manifest.calls[name][1] for name in ("f0", "f1"))
    if on_f1 != step:
        _check_reading(manifest, step, on_f1)
    check_heads(manifest, step)
    if (manifest.policy is None) != ("policy" not in manifest.calls):
        fail("policy", manifest.policy, "a value exactly where calls has 'policy'")
    if manifest.policy is not None:
        _check_policy(manifest)


def _check_reading(manifest, step: str, on_f1: str) -> None:
    """Where a frame of f1 takes another call than one of f0, it only reads the memory."""
    outputs = manifest.signature(on_f1).outputs
    if any(state.output in outputs for state in manifest.state):
        wanted = f"the memory's signature of calls.f0, {step!r}, or one that only reads the state"
        fail("calls.f1", manifest.calls["f1"], wanted)
    if manifest.updates_state["f1"]:
        fail("updates_state.f1", True, f"false: {on_f1} of calls.f1 does not write the state")
    if manifest.policy is not None:
        fail("policy", manifest.policy, f"none where calls.f1 is not {step!r}")
    check_heads(manifest, on_f1)
    for name in ("box_encodings", "class_logits"):
        # One post-processing takes both, and so does whoever reads what is stored.
        ends = (manifest.tensor(f"{call}/{name}", "outputs") for call in (step, on_f1))
        check_edge(f"calls.f1: {on_f1}/{name} instead of {step}/{name}", *ends)


def _check_policy(manifest) -> None:
    policy, calls = manifest.policy, manifest.calls["policy"]
    if sorted(policy.actions) != ["f0", "f1"]:
        fail("policy.actions", policy.actions, "f0 and f1, in the order of q_values")
    if policy.history < 1:
        fail("policy.history", policy.history, "1 or more")
    check_divisor("policy.eta_one", policy.eta_one)
    if policy.observes not in OBSERVES:
        fail("policy.observes", policy.observes, f"one of {list(OBSERVES)}")
    if policy.max_tau < 0:
        fail("policy.max_tau", policy.max_tau, "0 or more")
    if len(calls) != 1:
        fail("calls.policy", calls, "one signature")
    step = manifest.calls["f0"][1]
    for state in manifest.state:
        for name in (state.input, f"{state.input}_before"):
            check_edge(
                f"calls.policy: edge {step}/{state.output} -> {calls[0]}/{name}",
                manifest.tensor(f"{step}/{state.output}", "outputs"),
                manifest.tensor(f"{calls[0]}/{name}", "inputs"),
            )
    for name, side, shape in (
        ("eta", "inputs", (1, policy.history)), ("q_values", "outputs", (1, 2))
    ):  # fmt: skip
        tensor = manifest.tensor(f"{calls[0]}/{name}", side)
        if tensor.shape != shape:
            fail(f"tensor {calls[0]}/{name}: shape", tensor.shape, shape)


def _check_extractor_call(manifest, name: str) -> None:
    """An extractor, then a signature of the memory, joined by `features`."""
    steps = manifest.calls[name]
    if len(steps) != 2:
        fail(f"calls.{name}", steps, "an extractor's signature, then one of the memory")
    producer, consumer = f"{steps[0]}/features", f"{steps[1]}/features"
    check_edge(
        f"calls.{name}: edge {producer} -> {consumer}",
        manifest.tensor(producer, "outputs"),
        manifest.tensor(consumer, "inputs"),
    )
    for state in manifest.state:
        manifest.tensor(f"{steps[1]}/{state.input}", "inputs")
        if name != "f1":
            manifest.tensor(f"{steps[1]}/{state.output}", "outputs")
