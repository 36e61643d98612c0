r"""The learned interleaving policy against fixed ones at equal shares of f0 (LFS 4.3, figures 6–9).

  python -m memvid_tf.data synthetic --preset=eventful --output=data/eventful
  python -m benchmarks.policy --data=data/eventful --work_dir=runs/policy \
    --base=runs/interleaved_papers/factored/seed_0/qat --base=runs/interleaved_papers/factored/seed_1/qat \
    --base=runs/interleaved_papers/factored/seed_2/qat

A base is a trained detector, quantization-aware; each is a seed of its own. On each a policy is
trained for every γ, and policies, fixed τ and chance are scored on the same clips, in float and as
int8 bundles. Interrupted and started again, it goes on where it was. --latency adds what π costs on
a machine, from a results file of `python -m benchmarks.host`.
"""

import dataclasses
import math
import os
from collections.abc import Sequence

import numpy as np
from absl import flags

from benchmarks import pages, pipeline, policy_clips, policy_page
from benchmarks.claims import spread
from memvid_tf import errors
from memvid_tf.data import records

FLAGS = flags.FLAGS


GAMMAS = ("1", "2", "4", "8")
STEPS, QUICK_STEPS = 60, 10  # the first is that of the configuration
QUICK = ("task.windows=16", "task.ddqn.games_per_step=8", "task.ddqn.updates_per_step=2")
SPLIT = "test"
FIXED = ("f0", "1", "2", "3", "4", "6", "9", "14", "19", "29", "39", "79")
RANDOM = ("random5", "random10", "random20", "random33")
# What int8 costs a fixed schedule, to see beside what it costs the policies.
INT8_FIXED = ("4", "9", "19")


def define_flags() -> None:
    """The flags of this program."""
    flags.DEFINE_string("data", "data/eventful", "Eventful video set. Example: data/eventful")
    flags.DEFINE_multi_string(
        "base", [], "A trained detector; one for each seed. Example: --base=runs/tiny_qat"
    )
    flags.DEFINE_string("work_dir", "runs/policy", "Trainings and bundles. Example: runs/policy")
    flags.DEFINE_list("gammas", list(GAMMAS), "Speed rewards γ, ascending. Example: 1,2,4,8")
    flags.DEFINE_bool("quick", False, "Train for seconds: shows that it works, proves no claim.")
    flags.DEFINE_string("latency", "", "Results of benchmarks.host. Example: host_policy.json")
    flags.DEFINE_string(
        "output",
        "benchmarks/results/policy",
        "Results, as PATH.json and PATH.md. Example: benchmarks/results/policy",
    )


def middle(gammas: Sequence[str]) -> str:
    """The γ whose policy is looked at more closely."""
    return gammas[len(gammas) // 2]


@dataclasses.dataclass(frozen=True)
class Policies:
    """The policies of one base, in one folder.

    Attributes:
      base: folder of the detector's training.
      folder: of everything.
      data: the data set.
      gammas: speed rewards.
      seed: of the policies.
      steps: of each training.
      overrides: `key=value` pairs of all trainings.
    """

    base: str
    folder: str
    data: str
    gammas: tuple[str, ...]
    seed: int = 0
    steps: int = STEPS
    overrides: tuple[str, ...] = ()

    def path(self, *parts: str) -> str:
        """A path in the folder."""
        return os.path.join(os.path.abspath(self.folder), *parts)

    def trained(self, gamma: str) -> str:
        """Folder of a policy's training."""
        return self.path(f"gamma_{gamma}")

    def everything(self) -> list[pipeline.Step]:
        """All that is trained and measured."""
        where = {"input_path": os.path.abspath(self.data)}
        found = []
        for number, gamma in enumerate(self.gammas):
            model_dir, title = self.trained(gamma), f"γ={gamma}, seed {self.seed}"
            bundle = self.path("bundles", f"gamma_{gamma}")
            found += [
                self._training(gamma, watched=self.seed == 0 and gamma == middle(self.gammas)),
                pipeline.evaluation(
                    f"adaptive in float, {title}",
                    # The other schedules on the same frames as the policies, features extracted once.
                    ("adaptive", *((*FIXED, *RANDOM) if not number else ())),
                    self.path("results", f"float_{gamma}.json"),
                    model_dir=model_dir,
                    simulate_quantization=False,
                    **where,
                ),
                pipeline.export(model_dir, bundle, "int8", verify=False),
                pipeline.evaluation(
                    f"adaptive in int8, {title}",
                    ("adaptive", *(INT8_FIXED if not number else ())),
                    self.path("results", f"int8_{gamma}.json"),
                    bundle=bundle,
                    **where,
                ),
            ]
        return found

    def _training(self, gamma, watched):
        """A policy's training; one that is watched is validated on the way, for figure 8."""
        data = os.path.abspath(self.data)
        overrides = [
            f"task.base_model_dir={os.path.abspath(self.base)}",
            f"task.train_data.input_path={data}",
            f"task.validation_data.input_path={data}",
            f"task.seed={self.seed}",
            f"task.speed_reward={gamma}",
            f"trainer.train_steps={self.steps}",
            f"trainer.validation_interval={max(1, self.steps // 5)}",
            *self.overrides,
        ]
        return pipeline.training(
            f"policy, γ={gamma}, seed {self.seed}, {self.steps} steps",
            ("interleaved_tiny_policy",),
            overrides,
            self.trained(gamma),
            self.steps,
            experiment="interleaved_policy",
            mode="train_and_eval" if watched else "train",
        )

    def modes(self, name: str) -> dict[str, dict]:
        """What an evaluation wrote, by mode."""
        return pipeline.read(self.path("results", f"{name}.json"))["modes"]


def at_share(points: Sequence[tuple[float, float]], share: float) -> float | None:
    """mAP of a family of schedules at a share of f0, between its points on a logarithmic axis.

    Args:
      points: (share, mAP) of its members.
      share: of f0.

    Returns:
      None outside of the family's shares.
    """
    shares, values = np.array(sorted(points)).T
    if not shares[0] <= share <= shares[-1]:
        return None
    return float(np.interp(np.log(share), np.log(shares), values))


def point(mode: dict) -> tuple[float, float]:
    """(share of f0, mAP) of a mode's result."""
    return mode["f0_share"], mode["mean_ap"]


def measured(policies: Policies, clips: policy_clips.Clips) -> dict:
    """The numbers of one base."""
    fixed = policies.modes(f"float_{policies.gammas[0]}")
    families = {
        "fixed": {name: point(fixed[name]) for name in FIXED},
        "random": {name: point(fixed[name]) for name in RANDOM},
    }
    adaptive = {}
    for gamma in policies.gammas:
        result = policies.modes(f"float_{gamma}")["adaptive"]
        int8 = policies.modes(f"int8_{gamma}")["adaptive"]
        share, mean_ap = point(result)
        frames = [[int(t) for t in text.split()] for text in result["f0_frames"]]
        adaptive[gamma] = {
            "share": share,
            "mAP": mean_ap,
            "fixed": at_share(families["fixed"].values(), share),
            "random": at_share(families["random"].values(), share),
            "int8_share": int8["f0_share"],
            "int8_mAP": int8["mean_ap"],
            "shares": policy_clips.shares(clips, frames),
            "f0_frames": frames,
        }
    int8_fixed = policies.modes(f"int8_{policies.gammas[0]}")
    return {
        **families,
        "int8_fixed": {name: point(int8_fixed[name]) for name in INT8_FIXED},
        "adaptive": adaptive,
    }


def over_seeds(seeds: Sequence[dict], gammas: Sequence[str]) -> dict[str, dict]:
    """Mean and spread over the seeds, by γ, of what the claims are about."""
    found = {}
    for gamma in gammas:
        rows = [seed["adaptive"][gamma] for seed in seeds]
        columns = {
            "share": [row["share"] for row in rows],
            "mAP": [row["mAP"] for row in rows],
            "above fixed": _above(rows, "fixed"),
            "above random": _above(rows, "random"),
            "int8 − float": [row["int8_mAP"] - row["mAP"] for row in rows],
            "int8 share": [row["int8_share"] for row in rows],
        }
        columns |= {name: [row["shares"][name] for row in rows] for name in rows[0]["shares"]}
        found[gamma] = {name: spread(values) for name, values in columns.items() if values}
    return found


def _above(rows, family):
    """mAP above a family's of each seed; none where a seed's share is not among the family's."""
    if any(row[family] is None for row in rows):
        return []
    return [row["mAP"] - row[family] for row in rows]


def claims(seeds: Sequence[dict], table: dict[str, dict]) -> list[dict]:
    """What the paper says, with numbers, and whether it holds. One seed has no spread."""
    above = [
        gamma
        for gamma, row in table.items()
        if len(seeds) > 1
        and "above fixed" in row
        and row["above fixed"]["mean"] > row["above fixed"]["spread"]
    ]
    gamma = middle(list(table))
    where = {
        name: [table[gamma][f"{name}, {part}"]["mean"] for part in parts]
        for name, parts in policy_clips.COMPARED.items()
    }
    monotone = all(
        all(a > b for a, b in zip(shares, shares[1:]))
        for shares in ([row["share"] for row in seed["adaptive"].values()] for seed in seeds)
    )
    loss = max(-row["int8 − float"]["mean"] for row in table.values())
    return [
        {
            "claim": "at equal share of f0 the policy is above the fixed τ by more than the spread "
            "over seeds, at three shares or more",
            "measured": f"at {len(above)} of {len(table)}: γ = {', '.join(above) or 'none'}",
            "holds": len(above) >= 3,
        },
        {
            "claim": "the share of f0 falls with every larger γ, in every seed",
            "measured": " > ".join(f"{row['share']['mean']:.3f}" for row in table.values()),
            "holds": monotone,
        },
        {
            "claim": "adaptive int8 loses at most .01 to adaptive float (largest loss)",
            "measured": f"{loss:.3f}",
            "holds": loss <= 0.01,
        },
        *(
            {
                "claim": f"γ={gamma}: f0 runs more often where there is more of it: {name}, "
                + " over ".join(policy_clips.COMPARED[name]),
                "measured": f"{more:.3f} over {less:.3f}",
                "holds": more > less,
            }
            for name, (more, less) in where.items()
        ),
    ]


def collected(all_policies: Sequence[Policies], info: records.DatasetInfo) -> dict:
    """The numbers of all bases, which have the same γ."""
    clips = policy_clips.read(info, SPLIT)
    seeds = [measured(policies, clips) for policies in all_policies]
    first = all_policies[0]
    table = over_seeds(seeds, first.gammas)
    split = info.split(SPLIT)
    return {
        "bases": [policies.base for policies in all_policies],
        "gammas": first.gammas,
        "steps": first.steps,
        "data": {
            "input_path": first.data,
            "split": SPLIT,
            "clips": split.clips,
            "motion_split": split.statistics["motion_split"],
        },
        "seeds": seeds,
        "table": table,
        "claims": claims(seeds, table),
        "curves": policy_page.read_curves(first.trained(middle(first.gammas))),
        "curves_gamma": middle(first.gammas),
    }


def overhead(path: str) -> list[dict]:
    """What π costs a frame, of each bundle and number of threads in a host results file.

    Shares are π's median of the mean frame of a schedule.
    """
    from benchmarks import measurements

    found = {}
    for summary in measurements.summaries(measurements.Results.load(path).measurements):
        setting = summary.setting
        key = (setting.subject, setting.threads)
        found.setdefault(key, {})[setting.name] = summary
    rows = []
    for (subject, threads), by_name in found.items():
        graph = by_name.get("policy/serving_default")
        if graph is None:
            continue
        rows.append(
            {
                "subject": subject,
                "threads": threads,
                "policy_us": graph.p50_ms * 1e3,
                **{
                    f"share of {name}": graph.p50_ms / by_name[name].mean_ms
                    for name in ("f1", "f0", "adaptive")
                    if name in by_name
                },
            }
        )
    return rows


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    if not FLAGS.base:
        raise errors.UserError(
            "--base is missing; name a detector's training, for example "
            "--base=runs/interleaved_papers/factored/seed_0/qat"
        )
    gammas = FLAGS.gammas
    try:
        values = [float(gamma) for gamma in gammas]
    except ValueError as error:
        raise errors.UserError(f"--gammas={','.join(gammas)} must be numbers") from error
    if not values or not all(0.0 <= value < math.inf for value in values):
        raise errors.UserError(f"--gammas={','.join(gammas)} must be numbers from 0 up")
    if sorted(values) != values:
        raise errors.UserError(f"--gammas={','.join(gammas)} must be ascending")
    from memvid_tf import provenance

    info = records.read_info(FLAGS.data)
    steps, overrides = (QUICK_STEPS, QUICK) if FLAGS.quick else (STEPS, ())
    all_policies = [
        Policies(
            base,
            os.path.join(FLAGS.work_dir, f"base_{seed}"),
            FLAGS.data,
            tuple(gammas),
            seed,
            steps,
            overrides,
        )
        for seed, base in enumerate(FLAGS.base)
    ]
    for policies in all_policies:
        pipeline.run(policies.everything())
    result = collected(all_policies, info)
    result |= {
        "quick": FLAGS.quick,
        "overhead": overhead(FLAGS.latency) if FLAGS.latency else [],
        "provenance": provenance.describe(),
    }
    policy_page.draw(result, info, FLAGS.output)
    page = policy_page.markdown(result, os.path.basename(FLAGS.output))
    pages.publish(FLAGS.output, result, page)


if __name__ == "__main__":
    define_flags()
    errors.run(main)
