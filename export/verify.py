"""Does the bundle compute what the checkpoint computes?

Random deep networks amplify a step of rounding, so whole graphs are judged on the trained network
and on real clips: how far the memories drift apart over a long video, and what that does to mAP.
"""

import os

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from memvid_tf import files, provenance
from memvid_tf.data import clips, records
from memvid_tf.evaluation import report, rollout, scoring
from memvid_tf.evaluation.bundle_network import BundleNetwork
from memvid_tf.evaluation.checkpoint_network import CheckpointNetwork
from memvid_tf.runtime.bundle import REPORT_JSON, REPORT_MD, Bundle
from memvid_tf.tasks.trained import Trained

DRIFT_FRAMES = (1, 10, 100, 1000)
MODES = ("f0", "f1", "9", "async9")
ADAPTIVE_MODES = ("adaptive", "adaptive+async")  # of bundles with a policy


def difference(expected: np.ndarray, stored: np.ndarray, spec) -> dict[str, float]:
    """How far a tensor of the bundle is from the checkpoint's, in quantization steps.

    Float tensors have no step; there the unit is 1.
    """
    step = spec.scale or 1.0
    real = (stored.astype(np.float64) - (spec.zero_point or 0)) * step
    distance = np.abs(real - expected) / step
    return {
        "mean": float(distance.mean()),
        "max": float(distance.max()),
        "within_one": float((distance < 1.5).mean()),
    }


def drift_row(frame: int, pairs: dict, tensors: dict) -> dict:
    """What a report says of one frame of the long video.

    Args:
      frame: its number.
      pairs: (the checkpoint's, the bundle's as stored) by the name of the tensor.
      tensors: what the manifest says of them, in the order of computation.
    """
    differences = {name: difference(*pairs[name], spec) for name, spec in tensors.items()}
    off = [name for name, value in differences.items() if value["max"] >= 1.5]
    return {"frame": frame, "tensors": differences, "first_off": off[0] if off else None}


def drift(trained: Trained, bundle: Bundle, frames, *, advance=lambda n: None) -> list[dict]:
    """Rolls one long video through checkpoint and bundle, each with its own memory.

    f0 writes to the memory on every frame, which is the harshest schedule for a state fed back.

    Args:
      trained: the checkpoint's network.
      bundle: the bundle made from it.
      frames: iterator over [H, W, 3] uint8 frames.
      advance: called with 1 after each frame.

    Returns:
      For each frame of `DRIFT_FRAMES` that exists: by tensor, in the order of computation, the
      distance in quantization steps; and the first tensor that is more than one step off anywhere.
    """
    expected, actual = CheckpointNetwork(trained.model), BundleNetwork(bundle)
    manifest = bundle.manifest
    tensors = {
        "f0/features": manifest.tensor(f"{manifest.calls['f0'][0]}/features", "outputs"),
        **{
            f"memory/{name}": manifest.tensor(f"memory/step/{name}", "outputs")
            for name in (*(s.output for s in manifest.state), "box_encodings", "class_logits")
        },
    }
    states = expected.initial_state(1), actual.initial_state(1)
    rows = []
    for number, frame in enumerate(frames, start=1):
        features = expected.extract(frame[None], "f0"), actual.extract(frame[None], "f0")
        boxes, logits, state = expected.step(features[0], states[0], "f0")
        stored_boxes, stored_logits, stored_state = actual.step_stored(
            features[1][0], states[1][0], "f0"
        )
        states = state, [stored_state]
        if number in DRIFT_FRAMES:
            pairs = dict(
                zip(
                    tensors,
                    zip(
                        (features[0].numpy(), *(s.numpy() for s in state), boxes, logits),
                        (features[1][0], *stored_state, stored_boxes, stored_logits),
                    ),
                )
            )
            rows.append(drift_row(number, pairs, tensors))
        advance(1)
    return rows


def check_data(data: clips.ClipConfig) -> None:
    """Raises DatasetError if there are no clips to verify with."""
    clips.clip_dataset(data)
    split = records.read_info(data.input_path).split(data.split)
    if data.drop_remainder and split.clips < data.global_batch_size:
        raise records.DatasetError(
            f"{data.input_path} has {split.clips} clips in {data.split}, fewer than one batch of "
            f"{data.global_batch_size}, and task.validation_data.drop_remainder drops the rest"
        )


def video(data: clips.ClipConfig, limit: int):
    """Frames of the test clips, one clip after another, again and again up to the limit."""
    count = 0
    while True:
        for batch in clips.clip_dataset(data).as_numpy_iterator():
            for clip, valid in zip(batch["frames"], batch["num_frames"]):
                for frame in clip[:valid]:
                    if count == limit:
                        return
                    count += 1
                    yield frame


def verify(trained: Trained, bundle: Bundle, data: clips.ClipConfig) -> dict:
    """The report of a bundle; see `write_report` for what is in it."""
    limit = max(DRIFT_FRAMES)
    with tqdm(total=limit, desc="drift", unit="frame") as bar:
        rows = drift(trained, bundle, video(data, limit), advance=bar.update)
    info = records.read_info(data.input_path)
    words = MODES if trained.policy is None else (*MODES, *ADAPTIVE_MODES)
    modes = [rollout.parse_mode(word) for word in words]
    scores = {}
    for name, network in (
        ("checkpoint", CheckpointNetwork(trained.model, trained.policy)),
        ("bundle", BundleNetwork(bundle)),
    ):
        with tqdm(total=info.split(data.split).clips, desc=f"mAP of {name}", unit="clip") as bar:
            results = scoring.evaluate(
                network,
                clips.clip_dataset(data).as_numpy_iterator(),
                modes,
                bundle.labels,
                bundle.manifest.box_coder,
                advance=bar.update,
            )
        scores[name] = {mode: result.mean_ap for mode, result in results.items()}
    return {
        "bundle": bundle.manifest.name,
        "precision": bundle.manifest.precision,
        "checkpoint_step": trained.step,
        "drift": rows,
        "mAP": scores,
        "provenance": provenance.describe(),
    }


def write_report(folder: str, content: dict) -> str:
    """Writes `report.json` and `report.md` into a bundle's folder and returns the latter's text."""
    modes = [
        [
            mode,
            report.number(value),
            report.number(content["mAP"]["bundle"][mode]),
            f"{content['mAP']['bundle'][mode] - value:+.3f}",
        ]
        for mode, value in content["mAP"]["checkpoint"].items()
    ]
    scores = tabulate(modes, ["mode", "checkpoint", "bundle", "difference"], tablefmt="github")
    happens = "in which f0 writes to the memory on every frame"
    return publish(folder, content, "mAP@.5", scores, "tensors", happens)


def publish(folder: str, content: dict, what: str, scores: str, tensors: str, video: str) -> str:
    """Writes the report of a bundle of either system.

    Args:
      folder: of the bundle.
      content: what `verify` returned; written as report.json.
      what: is scored.
      scores: a table of them.
      tensors: which are compared over the long video.
      video: what happens in it.

    Returns:
      The text of report.md.
    """
    unit = "steps of the int8 grid" if content["precision"] == "int8" else "units"
    drifts = [
        [
            row["frame"],
            name,
            f"{d['mean']:.4f}",
            f"{d['max']:.3f}",
            f"{100 * d['within_one']:.2f} %",
        ]
        for row in content["drift"]
        for name, d in row["tensors"].items()
    ]
    first = {row["frame"]: row["first_off"] for row in content["drift"]}
    text = "\n".join(
        [
            f"# Verification of {content['bundle']} ({content['precision']})",
            "",
            f"{what} of the checkpoint and of the bundle made from it:",
            "",
            scores,
            "",
            f"Distance of the bundle's {tensors} from the checkpoint's, in {unit}, over one long",
            f"video {video}:",
            "",
            tabulate(drifts, ["frame", "tensor", "mean", "max", "within one"], tablefmt="github"),
            "",
            "First tensor more than one step off: "
            + ", ".join(f"frame {frame}: {name or 'none'}" for frame, name in first.items()),
            "",
            f"Made {content['provenance']['date']} with {content['provenance']['code_version']}.",
            "",
        ]
    )
    files.write_json(os.path.join(folder, REPORT_JSON), content)
    files.write_text(os.path.join(folder, REPORT_MD), text)
    return text
