"""The bar of a training: what it is at, how far it is, the time left and the last loss.

TensorFlow traces and compiles the first step and the first validation, which takes a minute or
more, and answers only when a loop of steps is over. A thread therefore redraws the bar and reads
the step counter, which the loop moves.
"""

import contextlib
import sys
import threading

from tqdm import tqdm

COMPILING = "compiling the training step (once)"
TRAINING = "training"
COMPILING_VALIDATION = "compiling the validation (once)"
VALIDATING = "validating"
# Seconds between two drawings: on a terminal, and in a file, where each of them is a line.
TERMINAL_S, FILE_S = 1.0, 30.0


class Progress:
    """Train action that draws the bar, until it is closed.

    Args:
      start: step from which training goes on.
      steps: step at which it ends.
      hidden: whether another worker shows the bar.

    Attributes:
      global_step: the trainer's step variable; set when the trainer exists.
    """

    def __init__(self, start: int, steps: int, hidden: bool = False):
        self.global_step = None
        self._compiled = self._validated = False
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._bar = tqdm(total=steps, initial=start, desc=COMPILING, unit="step", disable=hidden)
        self._thread = threading.Thread(target=self._keep_drawing, daemon=True)
        if not hidden:
            self._thread.start()

    def __call__(self, output):
        with self._lock:
            self._bar.set_postfix(loss=f"{float(output['training_loss']):.3f}", refresh=False)
        self._draw()

    @contextlib.contextmanager
    def validating(self):
        """Says in the block that there is a validation, the first of which is compiled."""
        self._say(VALIDATING if self._validated else COMPILING_VALIDATION)
        try:
            yield
        finally:
            self._validated = True
            self._say(TRAINING)

    def validated(self, batches: int) -> None:
        """Takes note of how many batches the validation has seen."""
        self._say(f"{VALIDATING}, {batches} batch{'es' * (batches != 1)} done")

    def close(self):
        self._closed.set()
        if self._thread.is_alive():
            # Not for ever: after Ctrl-C in the middle of a drawing, tqdm's lock may be held.
            self._thread.join(TERMINAL_S)
        self._bar.close()

    def _keep_drawing(self):
        while not self._closed.wait(TERMINAL_S if sys.stderr.isatty() else FILE_S):
            self._draw()

    def _draw(self):
        step = self._bar.n if self.global_step is None else int(self.global_step.numpy())
        with self._lock:
            if step > self._bar.n and not self._compiled:
                self._compiled = True
                self._bar.set_description(TRAINING, refresh=False)
                # The time left follows from the steps to come; these were waited for.
                self._bar.initial = self._bar.n = self._bar.last_print_n = step
                self._bar.unpause()
            # An update by nothing would count as progress, too.
            if step == self._bar.n or not self._bar.update(step - self._bar.n):
                self._bar.refresh()

    def _say(self, what):
        with self._lock:
            self._bar.unpause()  # the time left does not count validations
            self._bar.set_description(what)
