r"""Trains in one process and in two that meet on 127.0.0.1, and compares what they learn.

  python -m benchmarks.devices --output=benchmarks/results/devices

Both see the same batches of the same size; two processes divide each of them. Then one of two
workers is killed, and both are started again. Float32 sums in another order differ by rounding,
which a training amplifies from step to step: the page gives the difference at each step.
"""

import os
import re
import socket
import subprocess
import tempfile
import time

from absl import flags

from benchmarks import pages, small_training
from benchmarks.small_training import SmallTraining
from memvid_tf import errors

FLAGS = flags.FLAGS
flags.DEFINE_integer("steps", 40, "Steps of each training. Example: --steps=40", 4)
flags.DEFINE_string(
    "output",
    "",
    "Results, as PATH.json and PATH.md; by default they are only printed. "
    "Example: --output=benchmarks/results/devices",
)

WORKERS = 2


def _free_ports(count: int) -> list[int]:
    with_port = [socket.socket() for _ in range(count)]
    try:
        for listener in with_port:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in with_port]
    finally:
        for listener in with_port:
            listener.close()


def _last_checkpoint(model_dir: str) -> int:
    """Step of the last checkpoint that is whole; 0 before the first."""
    names = os.listdir(model_dir) if os.path.isdir(model_dir) else ()
    found = (re.fullmatch(r"ckpt-(\d+)\.index", name) for name in names)
    return max((int(match[1]) for match in found if match), default=0)


def start_workers(training: SmallTraining, model_dir: str, overrides: dict) -> list:
    """Starts the processes of one training on this machine."""
    # Quoted, since a comma would end the value.
    hosts = ",".join(f"127.0.0.1:{port}" for port in _free_ports(WORKERS))
    return [
        training.start(
            model_dir,
            overrides={
                **overrides,
                "runtime.distribution_strategy": "multi_worker_mirrored",
                "runtime.worker_hosts": f"'{hosts}'",
                "runtime.task_index": index,
            },
        )
        for index in range(WORKERS)
    ]


def train(training: SmallTraining, model_dir: str, overrides: dict) -> dict[int, float]:
    """The loss at each step of a training by several workers.

    Raises:
      UserError: if one of them fails.
    """
    workers = start_workers(training, model_dir, overrides)
    said = [worker.communicate()[1] for worker in workers]
    for worker, words in zip(workers, said):
        if worker.returncode:
            raise errors.UserError(f"a worker ended with {worker.returncode}: {words[-800:]}")
    return small_training.losses(model_dir)


def train_with_a_kill(
    training: SmallTraining, model_dir: str, overrides: dict, step: int, wait_s: float = 120
) -> tuple[dict[int, float], dict]:
    """Kills a worker once a checkpoint of `step` or later is there, then starts all of them again.

    Returns:
      The loss at each step; from which step it went on and how the other worker ended.

    Raises:
      UserError: if a worker fails, but by the kill.
    """
    workers = start_workers(training, model_dir, overrides)
    while _last_checkpoint(model_dir) < step:
        ended = [worker for worker in workers if worker.poll() is not None]
        if ended:
            for worker in workers:
                worker.kill()
            raise errors.UserError(f"a worker ended too early: {ended[0].communicate()[1][-800:]}")
        time.sleep(0.05)
    workers[1].kill()
    workers[1].communicate()
    try:
        said = workers[0].communicate(timeout=wait_s)[1]
        end = f"exit code {workers[0].returncode}: {said.strip().splitlines()[-1]}"
    except subprocess.TimeoutExpired:
        workers[0].kill()
        workers[0].communicate()
        end = f"still waiting after {wait_s} s, then killed as well"
    kept = small_training.step(model_dir)
    return train(training, model_dir, overrides), {"went_on_from": kept, "other_worker": end}


def measure(training: SmallTraining, folder: str, steps: int) -> dict:
    """Everything; see `markdown`."""
    overrides = {"trainer.train_steps": steps}
    code, said = training.run(os.path.join(folder, "one"), overrides=overrides)
    if code:
        raise errors.UserError(f"one process ended with {code}: {said[-800:]}")
    one = small_training.losses(os.path.join(folder, "one"))
    two = train(training, os.path.join(folder, "two"), overrides)
    killed, ending = train_with_a_kill(
        training, os.path.join(folder, "killed"), overrides, steps // 2
    )
    return {"losses": {"one": one, "two": two, "killed": killed}, **ending}


def difference(a: dict[int, float], b: dict[int, float]) -> float:
    """The largest relative difference of two loss curves, which must have the same steps."""
    if a.keys() != b.keys():
        raise ValueError(f"losses at {sorted(a)} cannot be compared with losses at {sorted(b)}")
    return max(abs(a[step] - b[step]) / abs(a[step]) for step in a)


def markdown(result: dict) -> str:
    """The curves as a page."""
    from tabulate import tabulate

    made, curves = result["provenance"], result["losses"]
    one, two, killed = (curves[name] for name in ("one", "two", "killed"))
    rows = [
        [
            step,
            *(f"{curve[step]:.5f}" for curve in (one, two, killed)),
            f"{abs(two[step] - one[step]) / abs(one[step]):.1e}",
        ]
        for step in sorted(one)
    ]
    header = ["step", "one process", "two processes", "two, one killed", "two against one"]
    return "\n".join(
        [
            "# Training on two workers",
            "",
            f"{made['machine']['processor']}, {made['date']}, version {made['code_version']}. The "
            "loss of each step, with the same batches of the same size.",
            "",
            f"The largest relative difference of two processes and one is "
            f"{difference(one, two):.1e}. One of two workers was killed; training went on from "
            f"step {result['went_on_from']}, and its losses differ from those of two that were not "
            f"killed by at most {difference(two, killed):.1e}. The other worker: "
            f"{result['other_worker']}.",
            "",
            tabulate(rows, header, tablefmt="github", disable_numparse=True),
            "",
        ]
    )


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    import memvid_tf.tasks.training  # noqa: F401
    from memvid_tf import provenance

    with tempfile.TemporaryDirectory() as folder:
        training = SmallTraining(small_training.write_data(os.path.join(folder, "data")))
        result = measure(training, folder, FLAGS.steps)
    result = {"schema_version": 1, **result, "provenance": provenance.describe()}
    pages.publish(FLAGS.output, result, markdown(result))


if __name__ == "__main__":
    errors.run(main)
