r"""Injects faults into small trainings and writes what became of them.

  python -m benchmarks.faults --tries=3 --output=benchmarks/results/faults

After a fault the same command is started again. A try has survived if what lies on disk can be
read, training goes on to its end, and the end is the one of a training without a fault, bit for
bit. What was lost is what training could not use: steps that are done again are not lost.

A full disk is a small file system in memory, which only root can mount; without it that fault is
left out, and the page says so.
"""

import collections
import contextlib
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator

from absl import flags

from benchmarks import injection, pages, small_training
from benchmarks.small_training import SmallTraining
from memvid_tf import errors

FLAGS = flags.FLAGS
flags.DEFINE_integer("tries", 3, "Tries of each fault. Example: --tries=3", 1)
flags.DEFINE_integer("seed", 0, "Seed of what is random about the faults. Example: --seed=0", 0)
flags.DEFINE_list(
    "faults",
    [],
    "Which faults; by default all. Example: --faults=terminated,full_disk",
)
flags.DEFINE_string(
    "output",
    "",
    "Results, as PATH.json and PATH.md; by default they are only printed. "
    "Example: --output=benchmarks/results/faults",
)


class Failed(Exception):
    """A try did not end as it should; the message says how."""


def expect(right: bool, what: str) -> None:
    """Raises Failed unless `right`."""
    if not right:
        raise Failed(what)


class Bench:
    """Trainings with faults, compared with one without.

    Args:
      training: what is trained.
      folder: for its runs.
      steps: `trainer.train_steps` of the training.
      rng: of what is random about a fault.
    """

    def __init__(self, training: SmallTraining, folder: str, steps: int, rng: random.Random):
        self.training, self.folder, self.steps, self.rng = training, folder, steps, rng
        self._runs = 0
        self._wanted = None

    def new_folder(self) -> str:
        """The model_dir of another run."""
        self._runs += 1
        return os.path.join(self.folder, f"run_{self._runs}")

    def uninterrupted(self) -> dict:
        """The variables at the end of a training without a fault."""
        if self._wanted is None:
            model_dir = os.path.join(self.folder, "uninterrupted")
            code, said = self.training.run(model_dir)
            expect(code == 0, f"without a fault it ended with {code}: {said[-500:]}")
            self._wanted = small_training.variables(model_dir)
        return self._wanted

    def goes_on(self, model_dir: str, training: SmallTraining | None = None) -> None:
        """Starts a training again and compares its end; raises Failed."""
        import numpy as np

        small_training.step(model_dir)  # what lies there can be read
        code, said = (training or self.training).run(model_dir)
        expect(code == 0, f"started again it ended with {code}: {said[-500:]}")
        found, wanted = small_training.variables(model_dir), self.uninterrupted()
        expect(found.keys() == wanted.keys(), "the last checkpoint holds other variables")
        for name, value in wanted.items():
            expect(np.array_equal(found[name], value), f"{name} ended as another value")
        left = [name for name in os.listdir(model_dir) if "temp" in name or ".tmp" in name]
        expect(not left, f"{', '.join(left)} was left behind")


def killed_saving(bench: Bench) -> str:
    """SIGKILL while a checkpoint is written."""
    point, number = bench.rng.choice(injection.POINTS), bench.rng.choice((1, 2))
    model_dir = bench.new_folder()
    code, said = bench.training.run(model_dir, f"killed_saving:{point}:{number}")
    expect(code == -9, f"it was to be killed at {point}, and ended with {code}: {said[-500:]}")
    bench.goes_on(model_dir)
    return "none"


def terminated(bench: Bench) -> str:
    """SIGTERM between two steps."""
    step, model_dir = bench.rng.randrange(1, bench.steps), bench.new_folder()
    code, said = bench.training.run(model_dir, f"terminate:{step}")
    expect(code == 143, f"it ended with {code}, not 143: {said[-500:]}")
    expect(
        small_training.step(model_dir) == step,
        f"its checkpoint is of step {small_training.step(model_dir)}, not of {step}",
    )
    bench.goes_on(model_dir)
    return "none"


@contextlib.contextmanager
def small_disk(folder: str, size: int) -> Iterator[Callable[[int], None]]:
    """A file system of `size` bytes at `folder`, while the block runs.

    Yields a function that changes its size.

    Raises:
      PermissionError: if this process may not mount one.
    """
    os.makedirs(folder, exist_ok=True)

    def mount(options):
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise PermissionError(f"no file system can be mounted: {done.stderr.strip()}")

    try:
        mount(f"size={size}")
    except FileNotFoundError as error:
        raise PermissionError("no file system can be mounted: there is no mount") from error
    try:
        yield lambda size: mount(f"remount,size={size}")
    finally:
        subprocess.run(["umount", folder], check=True)


def full_disk(bench: Bench) -> str:
    """A disk that is full before the last checkpoint is written."""
    bench.uninterrupted()
    kept = os.path.join(bench.folder, "uninterrupted")
    one = max(
        os.path.getsize(os.path.join(kept, name))
        for name in os.listdir(kept)
        if ".data-" in name
    )
    model_dir = bench.new_folder()
    # Room for one checkpoint and a part of the next.
    with small_disk(model_dir, int((1.2 + 0.6 * bench.rng.random()) * one)) as resize:
        code, said = bench.training.run(model_dir)
        expect(code == 2, f"it ended with {code}, not 2: {said[-500:]}")
        expect("there is no room to write" in said, f"it said {said[-500:]}")
        resize(100 * one)
        bench.goes_on(model_dir)
    return "none"


def _copied(bench: Bench) -> tuple[SmallTraining, str]:
    """The training on a copy of its data, and a shard of the copy."""
    data = os.path.join(bench.new_folder(), "data")
    shutil.copytree(bench.training.data, data)
    shards = sorted(name for name in os.listdir(data) if name.startswith("train-"))
    return bench.training.with_data(data), os.path.join(data, bench.rng.choice(shards))


def truncated_shard(bench: Bench) -> str:
    """A shard that ends too early; it is put back."""
    training, shard = _copied(bench)
    model_dir = bench.new_folder()
    whole = os.path.getsize(shard)
    shutil.copy(shard, f"{shard}.kept")
    os.truncate(shard, bench.rng.randrange(whole))
    code, said = training.run(model_dir)
    expect(code == 2 and os.path.basename(shard) in said, f"it ended with {code}: {said[-500:]}")
    os.replace(f"{shard}.kept", shard)
    bench.goes_on(model_dir, training)
    return "none"


def corrupt_picture(bench: Bench) -> str:
    """Bytes of a picture that have changed: without leave training stops, with it goes on."""
    from memvid_tf.data import records

    training, shard = _copied(bench)
    info = records.read_info(training.data)
    with open(shard, "r+b") as file:
        data = file.read()
        # The second half of a picture of the first record.
        start = data.index(b"\xff\xd8\xff")
        place = bench.rng.randrange(start + 200, start + 600)
        file.seek(place)
        file.write(bytes([data[place] ^ 0x55]))
    model_dir, clips = bench.new_folder(), info.split("train").clips
    code, said = training.run(model_dir)
    expect(
        code == 2 and "1 clips cannot be decoded, allowed are 0" in said,
        f"it ended with {code}: {said[-500:]}",
    )
    # What the configuration allows is a share.
    share = {"task.train_data.max_unreadable": f"{1.5 / clips:.4f}"}
    code, said = training.run(model_dir, overrides=share)
    expect(code == 0, f"with leave to skip it, it ended with {code}: {said[-500:]}")
    expect("is skipped: 1 of at most 1" in said, f"it skipped without a word: {said[-500:]}")
    expect(small_training.step(model_dir) == bench.steps, "it did not reach its last step")
    return f"1 clip of {clips}, skipped and named"


FAULTS = {
    "killed_saving": killed_saving,
    "full_disk": full_disk,
    "truncated_shard": truncated_shard,
    "corrupt_picture": corrupt_picture,
    "terminated": terminated,
}


def measure(bench: Bench, names: list[str], tries: int) -> list[dict]:
    """Tries faults; returns a row for each, see `markdown`."""
    from tqdm import tqdm

    rows = []
    with tqdm(total=len(names) * tries, unit="try") as bar:
        for name in names:
            row = {"fault": name, "what": FAULTS[name].__doc__, "tries": 0, "survived": 0}
            lost, failures, skipped = collections.Counter(), [], ""
            for _ in range(tries):
                bar.set_description(name)
                try:
                    lost[FAULTS[name](bench)] += 1
                    row["survived"] += 1
                except Failed as failure:
                    failures.append(str(failure))
                except PermissionError as error:
                    skipped = str(error)
                    bar.update(tries)
                    break
                row["tries"] += 1
                bar.update()
            rows.append({**row, "lost": dict(lost), "failures": failures, "skipped": skipped})
    return rows


def markdown(result: dict) -> str:
    """The fault table as a page."""
    from tabulate import tabulate

    made = result["provenance"]
    rows = [
        [
            row["what"].rstrip("."),
            row["tries"] or "",
            row["survived"] if row["tries"] else f"not tried: {row['skipped']}",
            "; ".join(row["lost"]),
        ]
        for row in result["faults"]
    ]
    failures = [f"- {row['fault']}: {what}" for row in result["faults"] for what in row["failures"]]
    return "\n".join(
        [
            "# Faults in training",
            "",
            f"{made['date']}, version {made['code_version']}; seed {result['seed']}. After each "
            "fault the same command is started again, and ends with the bits of a training without "
            "a fault; where a picture is corrupt, it ends without that clip.",
            "",
            tabulate(
                rows,
                ["fault", "tries", "survived", "data lost"],
                tablefmt="github",
                disable_numparse=True,
            ),
            "",
            *([*failures, ""] if failures else []),
        ]
    )


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    unknown = sorted(set(FLAGS.faults) - set(FAULTS))
    if unknown:
        raise errors.UserError(f"--faults={unknown[0]} is not one of {', '.join(FAULTS)}")
    import memvid_tf.tasks.training  # noqa: F401
    from memvid_tf import provenance

    with tempfile.TemporaryDirectory() as folder:
        training = SmallTraining(small_training.write_data(os.path.join(folder, "data")))
        steps = small_training.OVERRIDES["trainer.train_steps"]
        bench = Bench(training, folder, steps, random.Random(FLAGS.seed))
        rows = measure(bench, FLAGS.faults or list(FAULTS), FLAGS.tries)
    result = {
        "schema_version": 1,
        "seed": FLAGS.seed,
        "faults": rows,
        "provenance": provenance.describe(),
    }
    pages.publish(FLAGS.output, result, markdown(result))


if __name__ == "__main__":
    errors.run(main)
