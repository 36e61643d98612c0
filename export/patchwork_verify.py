"""Does a bundle of Patchwork, or of a single-frame network, compute what its checkpoint computes?

As in `export.verify`: over one long video that is scanned, how far what is remembered drifts apart,
and on clips what that does to mAP, or to J and F, in every mode. Single frames remember nothing: of
them the predictions are compared.
"""

import tensorflow as tf
from tabulate import tabulate
from tqdm import tqdm

from export.verify import DRIFT_FRAMES, drift_row, publish, video
from memvid_tf import provenance
from memvid_tf.data import clips, records
from memvid_tf.evaluation import report, window_rollout, window_scoring
from memvid_tf.evaluation.bundle_windows import BundleWindows
from memvid_tf.evaluation.checkpoint_windows import CheckpointWindows, PlainNetwork
from memvid_tf.models.deeplab import Segmenter
from memvid_tf.models.patchwork import Patchwork
from memvid_tf.runtime.bundle import Bundle
from memvid_tf.runtime.manifest import BoxCoder
from memvid_tf.runtime.patchwork import PatchworkNetwork
from memvid_tf.runtime.single_frame import SingleFrameNetwork
from memvid_tf.tasks.trained import Trained

MODES = ("full", "scanning", "dqn")
NO_CODER = BoxCoder(1.0, 1.0, 1.0, 1.0)  # masks have no boxes


def segments(trained: Trained) -> bool:
    """Whether the network predicts masks."""
    return isinstance(getattr(trained.model, "network", trained.model), Segmenter)


def drift(trained: Trained, bundle: Bundle, frames, *, advance=lambda n: None) -> list[dict]:
    """Scans one long video in checkpoint and bundle of Patchwork, each with its own memory.

    Args:
      trained: the checkpoint's network.
      bundle: the bundle made from it.
      frames: iterator over [H, W, 3] uint8 frames.
      advance: called with 1 after each frame.

    Returns:
      See `verify.drift`.
    """
    model, network = trained.model, PatchworkNetwork(bundle)
    start = tf.function(lambda image: model.start(image), autograph=False)
    step = tf.function(
        lambda image, action, state: model.step(image, action, state), autograph=False
    )
    window, tail = (bundle.manifest.calls["step"][k] for k in (0, 1))
    tensors = {
        "strips": bundle.manifest.tensor(f"{window}/halo", "inputs"),
        **{name: bundle.manifest.tensor(f"{tail}/{name}", "inputs") for name in model.map_sizes},
        **{name: bundle.manifest.tensor(f"{tail}/{name}", "outputs") for name in network.outputs},
    }
    rows = []
    for number, frame in enumerate(frames, start=1):
        image = model.network.preprocess(tf.constant(frame[None]))
        stored = network.prepare(frame)
        if number == 1:
            expected, state = start(image)
            outputs, memory = network.first(stored)
        else:
            action = (number - 2) % model.windows.count
            expected, state = step(image, tf.constant([action]), state)
            outputs = network.step(stored, action, memory)
        if number in DRIFT_FRAMES:
            pairs = {
                "strips": (state.strips.numpy()[0], memory.strips[:-1]),
                **{name: (state.maps[name].numpy(), memory.maps[name]) for name in state.maps},
                **{name: (expected[name].numpy(), outputs[name]) for name in expected},
            }
            rows.append(drift_row(number, pairs, tensors))
        advance(1)
    return rows


def differences(trained: Trained, bundle: Bundle, frames, *, advance=lambda n: None) -> list[dict]:
    """As `drift`, of a single-frame network: the predictions of the same frames."""
    model, network = trained.model, SingleFrameNetwork(bundle)
    predict = tf.function(lambda frame: model(frame), autograph=False)
    (call,) = bundle.manifest.calls["first"]
    tensors = {
        name: bundle.manifest.tensor(f"{call}/{name}", "outputs") for name in network.outputs
    }
    rows = []
    for number, frame in enumerate(frames, start=1):
        if number in DRIFT_FRAMES:
            expected = predict(tf.constant(frame[None]))
            outputs, _ = network.first(network.prepare(frame))
            pairs = {name: (expected[name].numpy(), outputs[name]) for name in expected}
            rows.append(drift_row(number, pairs, tensors))
        advance(1)
    return rows


def verify(trained: Trained, bundle: Bundle, data: clips.ClipConfig) -> dict:
    """The report of a bundle; see `write_report` for what is in it."""
    if isinstance(trained.model, Patchwork):
        compare, words = drift, MODES
        checkpoint = CheckpointWindows(trained.model, trained.attention)
    else:
        compare, words, checkpoint = (
            differences,
            (window_rollout.FULL,),
            PlainNetwork(trained.model),
        )
    limit = max(DRIFT_FRAMES)
    with tqdm(total=limit, desc="drift", unit="frame") as bar:
        rows = compare(trained, bundle, video(data, limit), advance=bar.update)
    info = records.read_info(data.input_path)
    modes = [window_rollout.parse_mode(word) for word in words]
    scores = {}
    for name, network in (("checkpoint", checkpoint), ("bundle", BundleWindows(bundle))):
        with tqdm(total=info.split(data.split).clips, desc=f"scores of {name}", unit="clip") as bar:
            results = window_scoring.evaluate(
                network,
                clips.clip_dataset(data).as_numpy_iterator(),
                modes,
                bundle.labels,
                bundle.manifest.box_coder or NO_CODER,
                advance=bar.update,
            )
        scores[name] = {mode: result.numbers() for mode, result in results.items()}
    return {
        "bundle": bundle.manifest.name,
        "precision": bundle.manifest.precision,
        "checkpoint_step": trained.step,
        "drift": rows,
        "scores": scores,
        "provenance": provenance.describe(),
    }


def write_report(folder: str, content: dict) -> str:
    """Writes `report.json` and `report.md` into a bundle's folder and returns the latter's text."""
    rows = [
        [
            mode,
            metric,
            report.number(value),
            report.number(content["scores"]["bundle"][mode][metric]),
            f"{content['scores']['bundle'][mode][metric] - value:+.3f}",
        ]
        for mode, numbers in content["scores"]["checkpoint"].items()
        for metric, value in numbers.items()
    ]
    header = ["mode", "score", "checkpoint", "bundle", "difference"]
    scores = tabulate(rows, header, tablefmt="github")
    return publish(folder, content, "Scores", scores, "memory and predictions", "that is scanned")
