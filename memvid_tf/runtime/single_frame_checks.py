"""What the manifest of a single-frame network has to say beyond the generic schema. Every function
raises BundleError for the first contradiction that it finds."""

from memvid_tf.runtime.manifest_checks import check_predictions, fail


def check(manifest) -> None:
    """What a single-frame network needs beyond the generic schema."""
    for field in ("windows", "attention"):
        if getattr(manifest, field) is not None:
            fail(field, getattr(manifest, field), "nothing: system 'single_frame' has no windows")
    calls = manifest.calls.get("first", ())
    if len(calls) != 1:
        fail("calls.first", calls, "one signature, which takes the image")
    (call,) = calls
    sizes = manifest.image.sizes
    if set(sizes) != {"full"}:
        fail("image", sorted(sizes), "the size of exactly ['full']")
    if manifest.tensor(f"{call}/image", "inputs").shape != (1, *sizes["full"], 3):
        fail("image.full", sizes["full"], f"the size of tensor {call}/image")
    check_predictions(manifest, call)
