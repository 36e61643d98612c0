"""The way from nothing to a measured bundle, as restartable steps.

Every step is one of the programs that the README names, in a process of its own, and is left out
where its result is there already. A step that was interrupted goes on where it was.
"""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from memvid_tf import errors

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@dataclasses.dataclass(frozen=True)
class Step:
    """One program with its arguments.

    Attributes:
      title: what it does, for people.
      module: run as `python -m module`.
      flags: by name.
      done: whether the result is there already.
    """

    title: str
    module: str
    flags: dict[str, object]
    done: Callable[[], bool]
    arguments: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        """The command line after `python`."""
        flags = []
        for name, value in self.flags.items():
            values = value if isinstance(value, (list, tuple)) else [value]
            flags += [f"--{name}={item}" for item in values]
        return ["-m", self.module, *self.arguments, *flags]


def run(steps: Sequence[Step]) -> dict[str, float]:
    """Runs the steps that are not done, one after another.

    Returns:
      Seconds of each step that ran, by title.

    Raises:
      UserError: if a step fails; names the command with which to look at it.
    """
    seconds = {}
    for number, step in enumerate(steps, start=1):
        title = f"[{number}/{len(steps)}] {step.title}"
        if step.done():
            print(f"{title}: there already", flush=True)
            continue
        print(title, flush=True)
        start = time.monotonic()
        result = subprocess.run([sys.executable, *step.command], cwd=ROOT, check=False)
        if result.returncode:
            raise errors.UserError(
                f"step {step.title!r} ended with code {result.returncode}; the same command "
                f"again goes on from here; this step alone: python {shlex.join(step.command)}"
            )
        seconds[step.title] = time.monotonic() - start
    return seconds


def exists(path: str) -> Callable[[], bool]:
    """Done where a file is."""
    return lambda: os.path.exists(path)


def trained_for(model_dir: str, steps: int) -> Callable[[], bool]:
    """Done where a checkpoint of this step is."""
    return exists(os.path.join(model_dir, f"ckpt-{steps}.index"))


@dataclasses.dataclass(frozen=True)
class Run:
    """One network through all phases, in one folder.

    Attributes:
      folder: of everything but the data.
      data: the data set.
      config: YAML of the float phase, without folder and suffix; its quantization-aware phase is
        `{config}_qat`.
      float_steps, qat_steps: training steps of the two phases.
      overrides: `key=value` pairs of both phases.
      seed: of weights, schedules and data order.
    """

    folder: str
    data: str
    config: str
    float_steps: int
    qat_steps: int
    overrides: tuple[str, ...] = ()
    seed: int = 0

    def path(self, *parts: str) -> str:
        """A path in the folder."""
        return os.path.join(os.path.abspath(self.folder), *parts)

    def _train(self, phase: str, configs: Sequence[str], steps: int, pairs: Sequence[str]) -> Step:
        data = os.path.abspath(self.data)
        overrides = [
            f"task.train_data.input_path={data}",
            f"task.validation_data.input_path={data}",
            f"task.seed={self.seed}",
            f"task.train_data.seed={self.seed}",
            f"trainer.train_steps={steps}",
            f"trainer.optimizer_config.learning_rate.cosine.decay_steps={steps}",
            *self.overrides,
            *pairs,
        ]
        return Step(
            f"{phase} training, seed {self.seed}, {steps} steps",
            "memvid_tf.train",
            {
                "config_file": [f"configs/{name}.yaml" for name in configs],
                "params_override": ",".join(overrides),
                "model_dir": self.path(phase),
            },
            trained_for(self.path(phase), steps),
        )

    def float_training(self) -> Step:
        """Phase one."""
        # A validation in the middle shows that it learns; the end is scored in every mode below.
        middle = f"trainer.validation_interval={max(50, self.float_steps // 2)}"
        return self._train("float", [self.config], self.float_steps, [middle])

    def quantized_training(self) -> Step:
        """Phase two: simulated quantization, batch normalisation frozen after two thirds."""
        return self._train(
            "qat",
            [self.config, f"{self.config}_qat"],
            self.qat_steps,
            [
                f"task.init_checkpoint={self.path('float')}",
                f"task.freeze_norm_step={2 * self.qat_steps // 3}",
                f"trainer.validation_interval={self.qat_steps}",
            ],
        )

    def export(self, precision: str, verify: bool = True) -> Step:
        """The bundle of one precision: int8 from the second phase, float32 from the first."""
        phase = "qat" if precision == "int8" else "float"
        bundle = self.path("bundles", precision)
        proof = "report.json" if verify else "manifest.json"
        return Step(
            f"{precision} bundle" + (" and its verification" if verify else ""),
            "export",
            {
                "model_dir": self.path(phase),
                "output_dir": bundle,
                "precision": precision,
                "verify": verify,
            },
            exists(os.path.join(bundle, proof)),
        )

    def evaluation(self, source: str, modes: Sequence[str]) -> Step:
        """Scores "float" or "qat", the checkpoints, or "int8", the bundle."""
        output = self.path("results", f"{source}.json")
        which = {"bundle": self.path("bundles", source)}
        if source in ("float", "qat"):
            which = {"model_dir": self.path(source)}
        return Step(
            f"evaluation of {source}",
            "memvid_tf.evaluate",
            {**which, "modes": ",".join(modes), "output": output},
            exists(output),
        )

    def result(self, source: str) -> dict:
        """What an evaluation wrote."""
        with open(self.path("results", f"{source}.json"), encoding="utf-8") as file:
            return json.load(file)
