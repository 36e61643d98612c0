"""The way from nothing to a measured bundle, as restartable steps.

Every step is one of the programs that the README names, in a process of its own, and is left out
where its result is there already. A step that was interrupted goes on where it was.
"""

import dataclasses
import json
import os
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence

from benchmarks import child
from memvid_tf import errors, files

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@dataclasses.dataclass(frozen=True)
class Step:
    """One program with its arguments.

    Attributes:
      title: what it does, for people.
      module: run as `python -m module`.
      flags: by name.
      done: whether the result is there already.
      arguments: before the flags.
      minutes: that it takes, where somebody measured it, else 0.
    """

    title: str
    module: str
    flags: dict[str, object]
    done: Callable[[], bool]
    arguments: tuple[str, ...] = ()
    minutes: float = 0.0

    @property
    def command(self) -> list[str]:
        """The command line after `python`."""
        flags = []
        for name, value in self.flags.items():
            values = value if isinstance(value, (list, tuple)) else [value]
            flags += [f"--{name}={item}" for item in values]
        return ["-m", self.module, *self.arguments, *flags]


def run(steps: Sequence[Step], log_dir: str | None = None) -> dict[str, float]:
    """Runs the steps that are not done, one after another.

    Args:
      steps: in their order. Where they say how long they take, what is left is said at each.
      log_dir: where a step that fails leaves what it said; by default the folder for such files.

    Returns:
      Seconds of each step that ran, by title.

    Raises:
      UserError: if a step fails; names the step, the cause and the log.
      Terminated: after SIGTERM, which ends the step that runs.
    """
    seconds, expected = {}, 0.0
    for number, step in enumerate(steps, start=1):
        title = f"[{number}/{len(steps)}] {step.title}"
        if step.done():
            print(f"{title}: there already", flush=True)
            continue
        # How much slower than the measured ones this machine was so far.
        pace = sum(seconds.values()) / 60 / expected if expected else 1.0
        print(f"{title}{_time_left(steps[number - 1 :], pace)}", flush=True)
        start = time.monotonic()
        ended = child.run(step.command, ROOT)
        if ended.code == 130:
            raise KeyboardInterrupt
        if ended.code == 143:
            raise errors.Terminated(f"terminated in step {step.title!r}; the same command goes on")
        if ended.code:
            log = _keep_log(step, ended, log_dir or tempfile.gettempdir())
            raise errors.UserError(
                f"step {number} of {len(steps)}, {step.title}: {ended.cause}; the same command "
                f"again goes on from here; log: {log}"
            )
        seconds[step.title] = time.monotonic() - start
        expected += step.minutes
    return seconds


def _time_left(steps: Sequence[Step], pace: float) -> str:
    """What is said of the time behind the title of the first of some steps."""
    first, *others = (pace * step.minutes for step in steps if not step.done())
    if not first:
        return ""
    rest = f", then {minutes(sum(others))} more" if sum(others) else ""
    return f": about {minutes(first)}{rest}"


def minutes(value: float) -> str:
    """A number of minutes as people say it."""
    if value < 0.95:
        return f"{60 * value:.0f} s"
    return f"{round(value, 1 if value < 5 else None):g} min"


def _keep_log(step: Step, ended: child.Ended, folder: str) -> str:
    """Writes what a step said on stderr below its command; returns the path."""
    path = os.path.join(folder, re.sub(r"\W+", "_", step.title) + ".log")
    files.write_text(path, f"python {shlex.join(step.command)}\n\n{ended.said}")
    return path


def exists(path: str) -> Callable[[], bool]:
    """Done where a file is."""
    return lambda: os.path.exists(path)


def read(path: str) -> dict:
    """What a step wrote as JSON."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def trained_for(model_dir: str, steps: int) -> Callable[[], bool]:
    """Done where a checkpoint of this step is."""
    return exists(os.path.join(model_dir, f"ckpt-{steps}.index"))


def training(
    title: str,
    configs: Sequence[str],
    overrides: Sequence[str],
    model_dir: str,
    steps: int,
    **flags: object,
) -> Step:
    """A training.

    Args:
      title: see `Step`.
      configs: YAML files, without folder and suffix.
      overrides: `key=value` pairs, of which one says `steps`.
      model_dir: folder of the training.
      steps: at which it ends.
      **flags: further ones of memvid_tf.train.
    """
    return Step(
        title,
        "memvid_tf.train",
        {
            "config_file": [f"configs/{config}.yaml" for config in configs],
            "params_override": ",".join(overrides),
            "model_dir": model_dir,
            **flags,
        },
        trained_for(model_dir, steps),
    )


def export(model_dir: str, bundle: str, precision: str, verify: bool = True) -> Step:
    """The bundle of a training."""
    return Step(
        f"{precision} bundle" + (" and its verification" if verify else ""),
        "export",
        {"model_dir": model_dir, "output_dir": bundle, "precision": precision, "verify": verify},
        exists(os.path.join(bundle, "report.json" if verify else "manifest.json")),
    )


def evaluation(title: str, modes: Sequence[str], output: str, **flags: object) -> Step:
    """Scores a checkpoint or a bundle.

    Args:
      title: see `Step`.
      modes: see `rollout.parse_mode`.
      output: the results file.
      **flags: further ones of memvid_tf.evaluate, of which one says what is scored.
    """
    return Step(
        title,
        "memvid_tf.evaluate",
        {**flags, "modes": ",".join(modes), "output": output},
        exists(output),
    )


@dataclasses.dataclass(frozen=True)
class Phase:
    """One training, which starts from the weights of an earlier one.

    Attributes:
      name: of its folder.
      configs: YAML files, without folder and suffix.
      steps: training steps.
      pairs: further `key=value` overrides.
      experiment: whose defaults are used.
      follows: name of the phase it starts from; by default the one before, "" for none.
      start_key: field of the configuration that names that phase's folder.
      decays: whether the learning rate falls as a cosine, to its end at the last step.
    """

    name: str
    configs: tuple[str, ...]
    steps: int
    pairs: tuple[str, ...] = ()
    experiment: str = "interleaved"
    follows: str | None = None
    start_key: str = "task.init_checkpoint"
    decays: bool = True


def tiny_phases(float_steps: int, memory_steps: int, qat_steps: int) -> tuple[Phase, ...]:
    """The phases of the tiny interleaved detector; none of those with 0 steps."""
    # The end of each phase is scored in every mode; a validation on the way shows that it learns.
    middle = f"trainer.validation_interval={max(50, float_steps // 2)}"
    # BN is frozen after two thirds.
    frozen = f"task.freeze_norm_step={2 * qat_steps // 3}"
    phases = (
        Phase("float", ("interleaved_tiny",), float_steps, (middle,)),
        Phase("memory", ("interleaved_tiny", "interleaved_tiny_memory"), memory_steps),
        Phase("qat", ("interleaved_tiny", "interleaved_tiny_qat"), qat_steps, (frozen,)),
    )
    return tuple(phase for phase in phases if phase.steps)


@dataclasses.dataclass(frozen=True)
class Run:
    """One network through all phases, in one folder.

    Attributes:
      folder: of everything but the data.
      data: the data set.
      phases: the trainings, the last one quantization-aware.
      overrides: `key=value` pairs of all phases.
      seed: of weights, schedules and data order.
      validates: whether trainings are validated at their end, beside being scored afterwards.
      scoring: further flags of memvid_tf.evaluate.
    """

    folder: str
    data: str
    phases: tuple[Phase, ...]
    overrides: tuple[str, ...] = ()
    seed: int = 0
    validates: bool = True
    scoring: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def path(self, *parts: str) -> str:
        """A path in the folder."""
        return os.path.join(os.path.abspath(self.folder), *parts)

    @property
    def float_phase(self) -> str:
        """Name of the last phase without quantization, whose network is the float network."""
        return [phase.name for phase in self.phases if phase.name != "qat"][-1]

    def training(self, name: str) -> Step:
        """The training of one phase."""
        number = [phase.name for phase in self.phases].index(name)
        phase, data = self.phases[number], os.path.abspath(self.data)
        overrides = [
            f"task.seed={self.seed}",
            # Another order of the data in every phase.
            f"task.train_data.seed={100 * number + self.seed}",
            f"trainer.train_steps={phase.steps}",
            f"trainer.validation_interval={phase.steps}",
            *self.overrides,
            *phase.pairs,
            f"task.train_data.input_path={data}",
            f"task.validation_data.input_path={data}",
        ]
        if phase.decays:
            rate = "trainer.optimizer_config.learning_rate"
            overrides.append(f"{rate}.cosine.decay_steps={phase.steps}")
        earlier = phase.follows
        if earlier is None and number:
            earlier = self.phases[number - 1].name
        if earlier:
            overrides.append(f"{phase.start_key}={self.path(earlier)}")
        return training(
            f"{phase.name} training, seed {self.seed}, {phase.steps} steps",
            phase.configs,
            overrides,
            self.path(phase.name),
            phase.steps,
            experiment=phase.experiment,
            mode="train_and_eval" if self.validates else "train",
        )

    def trainings(self) -> list[Step]:
        """The trainings of all phases."""
        return [self.training(phase.name) for phase in self.phases]

    def export(self, precision: str, verify: bool = True) -> Step:
        """The bundle of one precision: int8 from the last phase, float32 from the one before."""
        phase = "qat" if precision == "int8" else self.float_phase
        return export(self.path(phase), self.path("bundles", precision), precision, verify)

    def phase_export(self, name: str, verify: bool = True) -> Step:
        """The int8 bundle of a phase."""
        return export(self.path(name), self.path("bundles", name), "int8", verify)

    def phase_evaluation(
        self, name: str, modes: Sequence[str], *, simulate_quantization: bool = True
    ) -> Step:
        """Scores the last checkpoint of a phase; `result` knows it as NAME or NAME_float."""
        suffix = "" if simulate_quantization else "_float"
        which = {
            "model_dir": self.path(name),
            "simulate_quantization": simulate_quantization,
        }
        return self._evaluation(f"{name}{suffix}", which, modes)

    def bundle_evaluation(self, name: str, modes: Sequence[str]) -> Step:
        """Scores a bundle of `phase_export`; `result` knows it as NAME_int8."""
        return self._evaluation(f"{name}_int8", {"bundle": self.path("bundles", name)}, modes)

    def evaluation(self, source: str, modes: Sequence[str]) -> Step:
        """Scores a checkpoint or a bundle in inference modes.

        Args:
          source: "first" for the network after the first phase, "float" for the float network,
            "qat" for the quantization-aware one, "qat_float" for its weights in float, "int8" or
            "float32" for a bundle.
          modes: see `rollout.parse_mode`.
        """
        phases = {"first": self.phases[0].name, "float": self.float_phase}
        which = {"bundle": self.path("bundles", source)}
        if source in phases:
            which = {"model_dir": self.path(phases[source])}
        elif source in ("qat", "qat_float"):
            which = {"model_dir": self.path("qat"), "simulate_quantization": source == "qat"}
        return self._evaluation(source, which, modes)

    def _evaluation(self, source: str, which: dict[str, object], modes: Sequence[str]) -> Step:
        output = self.path("results", f"{source}.json")
        return evaluation(f"evaluation of {source}", modes, output, **which, **self.scoring)

    def result(self, source: str) -> dict:
        """What an evaluation wrote."""
        return read(self.path("results", f"{source}.json"))


def check_seeds(flag: str, seeds: Sequence[str]) -> None:
    """Raises UserError for a seed that is no whole number of at most nine digits."""
    if not all(re.fullmatch("[0-9]{1,9}", seed) for seed in seeds):
        raise errors.UserError(f"--{flag}={','.join(seeds)[:100]} must be whole numbers")


def runs_by_seed(
    seeds: Sequence[str],
    work_dir: str,
    data: str,
    phases: tuple[Phase, ...],
    quick: bool,
    scoring: Mapping[str, object] | None = None,
) -> dict[int, Run]:
    """A run for each seed, in a folder of its own; scored afterwards, so not validated on the way.

    Args:
      seeds: as they were typed.
      work_dir: of all of them.
      data, phases, scoring: see `Run`.
      quick: whether trainings are of a few steps.

    Raises:
      UserError: a seed that is no whole number.
    """
    check_seeds("seeds", seeds)
    loop = ("trainer.steps_per_loop=10", "trainer.summary_interval=10") if quick else ()
    return {
        int(seed): Run(
            os.path.join(work_dir, f"seed_{int(seed)}"),
            data,
            phases,
            loop,
            int(seed),
            validates=False,
            scoring=scoring or {},
        )
        for seed in seeds
    }
