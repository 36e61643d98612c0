r"""Page and pictures of `python -m benchmarks.policy`, from its results file.

  python -m benchmarks.policy_page --results=benchmarks/results/policy.json --data=data/eventful

draws the pictures again: figures 6 to 9 of Looking Fast and Slow, as PATH_fig6.svg and so on.
"""

import json
import os

import numpy as np
from absl import flags

from memvid_tf import errors, files

FLAGS = flags.FLAGS
CURVES = {
    "q_f0": "train",
    "q_f1": "train",
    "reward": "train",
    "f0_share_greedy": "train",
    "f0_share": "validation",
    "mAP": "validation",
}
STRIP_CLIPS, STRIP_FRAMES = 6, 14
FRAME_RED = (230, 30, 30)


def read_curves(model_dir: str) -> dict[str, list[list[float]]]:
    """Training curves from TensorBoard's files: by name, [[step, value], …]."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    events = {
        part: EventAccumulator(os.path.join(model_dir, part), {"tensors": 0}).Reload()
        for part in ("train", "validation")
    }
    return {
        f"{part}/{name}": [
            [event.step, float(tensor_util.make_ndarray(event.tensor_proto))]
            for event in events[part].Tensors(name)
        ]
        for name, part in CURVES.items()
    }


def _family(result, name, key):
    """Mean over seeds of the points of a family: shares and mAP, ascending in share."""
    members = result["seeds"][0][name]
    points = [
        np.mean([key(seed[name][member]) for seed in result["seeds"]], axis=0) for member in members
    ]
    return np.array(sorted(map(tuple, points))).T


def draw(result: dict, info, output: str) -> None:
    """Writes the pictures.

    Args:
      result: the results file's content.
      info: of the data set, for the frames of figure 9.
      output: PATH of the pictures.
    """
    from benchmarks import plots
    from benchmarks.plots import Series

    def point(pair):
        return pair

    def learned(row):
        return row["share"], row["mAP"]

    fixed = _family(result, "fixed", point)
    adaptive = _family(result, "adaptive", learned)
    int8 = _family(result, "adaptive", lambda row: (row["int8_share"], row["int8_mAP"]))
    random = _family(result, "random", point)
    taus = [name for name in result["seeds"][0]["fixed"] if name.isdigit()]
    by_tau = [
        np.mean([seed["fixed"][tau][1] for seed in result["seeds"]]) for tau in taus
    ]
    gammas = list(result["table"])
    labels = sorted(gammas, key=lambda gamma: result["table"][gamma]["share"]["mean"])
    curves = {name: np.array(values).T for name, values in result["curves"].items()}

    def curve(name, label):
        return Series(label, *curves[name])

    pictures = {
        "fig6": plots.svg(
            "Accuracy by interleave ratio", "τ", "mAP@.5",
            [Series("fixed τ", [int(tau) for tau in taus], by_tau)],
        ),
        "fig7": plots.svg(
            "Accuracy by share of f0", "share of frames on which f0 ran", "mAP@.5",
            [
                Series("fixed τ", *fixed),
                Series("random", *random),
                Series("learned", *adaptive),
                Series("learned, int8", *int8, "dots"),
                Series("fixed τ, int8", *_family(result, "int8_fixed", point), "dots"),
                Series("", *adaptive, "dots", [f"γ={gamma}" for gamma in labels]),
            ],
            log_x=True, from_zero=False,
        ),
        "fig8": plots.columns_svg(
            f"Training of a policy, γ={result['curves_gamma']}", "training step",
            {
                "Q": [curve("train/q_f0", "f0"), curve("train/q_f1", "f1")],
                "reward": [curve("train/reward", "")],
                "share of f0": [
                    curve("train/f0_share_greedy", "training, without ε"),
                    curve("validation/f0_share", "validation"),
                ],
                "mAP@.5": [curve("validation/mAP", "validation")],
            },
        ),
    }  # fmt: skip
    for name, picture in pictures.items():
        files.write_text(f"{output}_{name}.svg", picture)
    import cv2

    picture, quality = strip(result, info)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85]
    files.write_bytes(f"{output}_fig9.jpg", cv2.imencode(".jpg", picture, quality)[1].tobytes())


def strip(result: dict, info) -> np.ndarray:
    """Figure 9: clips ordered by how often f0 ran, rows of frames; f0's are framed in red.

    Returns:
      [H, W, 3] uint8 RGB.
    """
    from memvid_tf.data import records, sheet

    ran = result["seeds"][0]["adaptive"][result["curves_gamma"]]["f0_frames"]
    order = np.argsort([len(frames) for frames in ran], kind="stable")
    picked = order[np.linspace(0, len(order) - 1, STRIP_CLIPS).round().astype(int)].tolist()
    rows = []
    for clip, number in zip(records.pick_clips(info, result["data"]["split"], picked), picked):
        frames = _window(ran[number], len(clip.images))
        # Drawn large for the sake of the boxes; a strip is looked at from further away.
        pictures = [sheet.draw_frame(clip, t, info.labels)[::2, ::2].copy() for t in frames]
        for t, picture in zip(frames, pictures):
            if t in ran[number]:
                for side in (np.s_[:4], np.s_[-4:], np.s_[:, :4], np.s_[:, -4:]):
                    picture[side] = FRAME_RED
        rows.append(np.concatenate([np.pad(p, ((2, 2), (2, 2), (0, 0))) for p in pictures], 1))
    return np.concatenate(rows)


def _window(f0_frames, count):
    """`STRIP_FRAMES` frames in a row of which f0 ran on most; the first such."""
    ran = np.isin(np.arange(count), f0_frames)
    length = min(STRIP_FRAMES, count)
    first = int(np.convolve(ran, np.ones(length), "valid").argmax())
    return range(first, first + length)


def markdown(result: dict, name: str) -> str:
    """The page.

    Args:
      result: the results file's content.
      name: of the pictures, which lie beside the page.
    """
    from tabulate import tabulate

    def cell(row, key, digits=3):
        value = row.get(key)
        return f"{value['mean']:.{digits}f} ± {value['spread']:.{digits}f}" if value else ""

    table, split = result["table"], result["data"]["motion_split"]
    main_columns = ["share", "mAP", "above fixed", "above random", "int8 share", "int8 − float"]
    hard = [key for key in next(iter(table.values())) if ", " in key]

    def rows(columns):
        return [[gamma, *(cell(row, key) for key in columns)] for gamma, row in table.items()]

    machine = result["provenance"]["machine"]
    lines = [
        "# The learned policy against fixed τ (LFS 4.3)",
        "",
        f"Tiny detectors, {len(result['bases'])} seeds, a policy for each γ trained for "
        f"{result['steps']} steps on eventful clips that the detector has not seen; "
        f"{result['data']['clips']} test clips, motion "
        + ", ".join(f"{part:.0%} {speed}" for speed, part in split.items())
        + f". Mean ± standard deviation over seeds. {machine['processor']}, "
        f"{result['provenance']['date']}, version {result['provenance']['code_version']}.",
        "",
        "## Claims",
        "",
        tabulate(
            [
                [c["claim"], c["measured"], "holds" if c["holds"] else "does not hold"]
                for c in result["claims"]
            ],
            ["claim", "measured", ""],
            tablefmt="github",
        ),
        "",
        "## By speed reward γ",
        "",
        "`above fixed`, `above random`: mAP@.5 minus that of the family of fixed τ, or of chance, "
        "at the same share of f0, interpolated between its members; float. Empty where a share "
        "lies outside of the family's.",
        "",
        tabulate(rows(main_columns), ["γ", *main_columns], tablefmt="github"),
        "",
        f"![figure 7]({name}_fig7.svg)",
        "",
        "## Where f0 runs",
        "",
        "Share of f0 on the third of the clips with most and with fewest objects, entries and "
        "occluded objects, and on frames at and shortly after an entry.",
        "",
        tabulate(rows(hard), ["γ", *hard], tablefmt="github"),
        "",
        f"![figure 9]({name}_fig9.jpg)",
        "",
        "Clips by how often f0 ran; its frames have a red frame.",
        "",
        "## Fixed τ, and a training",
        "",
        f"![figure 6]({name}_fig6.svg)",
        "",
        f"![figure 8]({name}_fig8.svg)",
        "",
    ]
    if result["overhead"]:
        lines += [
            "## What π costs on this machine",
            "",
            tabulate(result["overhead"], "keys", tablefmt="github", floatfmt=".3g"),
            "",
        ]
    return "\n".join(lines)


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    from memvid_tf.data import records

    path = FLAGS.results
    try:
        with open(path, encoding="utf-8") as file:
            result = json.load(file)
    except (OSError, ValueError) as error:
        raise errors.UserError(
            f"--results={path}: {error}; python -m benchmarks.policy writes one"
        ) from error
    output = path.removesuffix(".json")
    draw(result, records.read_info(FLAGS.data), output)
    files.write_text(f"{output}.md", markdown(result, os.path.basename(output)))
    print(f"written: {output}.md and its pictures")


if __name__ == "__main__":
    flags.DEFINE_string(
        "results", "benchmarks/results/policy.json", "Of benchmarks.policy. Example: policy.json"
    )
    flags.DEFINE_string("data", "data/eventful", "The clips of figure 9. Example: data/eventful")
    errors.run(main)
