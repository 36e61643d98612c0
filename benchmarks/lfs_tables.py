"""LFS tables 1 and 2 beside what the networks of this repository cost.

Every cost is counted in a graph traced from the network itself (`memvid_tf.evaluation.counting`),
at paper scale. Systems that the repository does not have keep their row, with a blank cell and the
reason.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import tensorflow as tf

from memvid_tf.evaluation.counting import Cost, count, trace
from memvid_tf.layers.conv_lstm import CELLS, EXTRACTORS, State
from memvid_tf.layers.recurrent import RIVALS
from memvid_tf.models import zoo
from memvid_tf.models.interleaved import AnchorConfig, InterleavedConfig, InterleavedDetector
from memvid_tf.models.policy import Policy, PolicyConfig
from memvid_tf.models.single_frame import SingleFrameConfig, SingleFrameDetector
from memvid_tf.models.ssdlite import SSDLite
from memvid_tf.models.zoo import costs

# LFS table 2: multiply-adds and parameters in millions.
F0_ONLY, F1_ONLY, INTERLEAVED = (1153, 4.4), (84, 1.5), (190, 4.9)
SSDLITE = {1.4: (1345, 6.4), 1.0: (710, 3.5), 0.5: (266, 1.1), 0.35: (204, 0.6)}
SSDLITE_LSTM = {1.4: (1182, 5.1), 1.0: (630, 2.9), 0.5: (255, 1.1), 0.35: (207, 0.7)}
FLOW_GUIDED = {(1, 1): (205, 9.0), (1, 0.5): (170, 7.1), (0.75, 0.75): (115, 5.3)}
TAU = 9  # "All of our non-adaptive models use a fixed interleave policy with τ=9"
POLICY = (1.76, 0.0896)  # LFS 4.3

# LFS table 1: multiply-adds in millions, of cells on the 10×10 map.
RIVAL_MULTIPLY_ADDS = {
    "ConvLSTM": ("conv_lstm", 317),
    "ConvGRU": ("conv_gru", 240),
    "Bottleneck ConvLSTM": ("bottleneck_conv_lstm", 186),
}
OUR_CELL_MULTIPLY_ADDS = 39
TABLE_1_INPUT = (1, 10, 10, 1024)

READINGS_TEXT = (
    "What LFS does not settle, in every combination, nearest first to its multiply-adds: "
    f"{F0_ONLY[0]} for f0, {F1_ONLY[0]} for f1, {INTERLEAVED[0]} interleaved (its parameters: "
    f"{F0_ONLY[1]}, {F1_ONLY[1]}, {INTERLEAVED[1]}). Min depth: least number of channels of a "
    "backbone's layer, which only f1 meets. Anchors: of a cell; `3, then 4` has three on the "
    "largest map. Extras read: what feeds the first extra map, the 256-channel projection or the "
    "memory's 640 channels. The star marks the default."
)

BIASES = "with its biases the paper's parameters are met"
SHARE_IS_LEARNED = "depends on how often the learned policy runs f0"
NO_ADAPTER = "this form has no adapter"
OTHERS = "another paper's system, with backbones of its own"


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
      part: what is counted.
      paper: multiply-adds and parameters that the paper prints, in millions; None where it does
        not.
      cost: ours, or None where there is nothing to count.
      note: why a cell is blank, or what a number means.
    """

    part: str
    paper: tuple[float | None, float | None] = (None, None)
    cost: Cost | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
    """A table, its heading and what one has to know to read it."""

    title: str
    text: str
    rows: list[Row]


@dataclasses.dataclass(frozen=True)
class Reading:
    """Totals under one reading of what LFS 3.1 and 3.2 leave open.

    Attributes:
      choices: choice → what this reading takes.
      is_default: whether `InterleavedConfig()` is this reading.
      f0, f1, interleaved: costs of a frame of f0, of one of f1, and of an average one at τ = 9.
    """

    choices: dict[str, str]
    is_default: bool
    f0: Cost
    f1: Cost
    interleaved: Cost

    @property
    def largest_difference_percent(self) -> float:
        """Of the three totals from LFS table 2, in multiply-adds; at least 0."""
        totals = (self.f0, F0_ONLY), (self.f1, F1_ONLY), (self.interleaved, INTERLEAVED)
        return max(100 * abs(ours.multiply_adds / 1e6 / paper[0] - 1) for ours, paper in totals)


def amortised(f0: Cost, f1: Cost, tau: int) -> Cost:
    """Cost of an average frame where f0 runs once, then f1 tau times; kernels of both."""
    multiply_adds = round((f0.multiply_adds + tau * f1.multiply_adds) / (1 + tau))
    return dataclasses.replace(f0 + f1, multiply_adds=multiply_adds)


class Detector:
    """Counts the interleaved detector by its parts; no kernel belongs to two parts.

    Args:
      config: the network. Its variables are made when they are first counted.
    """

    def __init__(self, config: InterleavedConfig):
        self.model = InterleavedDetector(config)
        state = tf.TensorSpec([1, *self.model.map_size, config.state_channels])
        self._state = State(state, state)
        self.memory_output = tf.TensorSpec([*state.shape[:-1], 2 * config.state_channels])
        self._steps = {}

    def steps(self, extractor: str) -> dict[str, Cost]:
        """What runs on a frame of an extractor before the head, in order.

        Returns:
          "backbone", up to the last bottleneck; "adapter", what the memory adds to it; "memory".
        """
        if extractor not in self._steps:
            model = self.model
            image = tf.TensorSpec([1, *model.frame_size(extractor), 3])
            backbone, bottleneck = trace(model.extractors[extractor], image)
            adapter, features = trace(lambda x: model.memory.adapt(x, extractor), bottleneck)
            memory = count(lambda x, s: model.step(x, s, extractor), features, self._state)
            self._steps[extractor] = {"backbone": backbone, "adapter": adapter, "memory": memory}
        return self._steps[extractor]

    @functools.cached_property
    def head(self) -> dict[str, Cost]:
        """SSDLite: "projection" of the memory's output, "extras", "predictors"."""
        head = self.model.head
        projection, first = trace(head.project, self.memory_output)
        extras, maps = Cost(), [first]
        for extra in head.extras:
            cost, output = trace(extra, maps[-1])
            extras += cost
            maps.append(output)
        predictors = count(lambda *m: head.predict(m), *maps)
        return {"projection": projection, "extras": extras, "predictors": predictors}

    @functools.cached_property
    def policy(self) -> Cost:
        """The policy network, which reads the state after and before a frame, and η."""
        eta = tf.TensorSpec([1, PolicyConfig().history])
        return count(Policy(PolicyConfig()), self._state, self._state, eta)

    def frame(self, extractor: str) -> Cost:
        """All that runs on a frame which an extractor sees."""
        return _sum(self.steps(extractor)) + _sum(self.head)


def _sum(costs: dict[str, Cost]) -> Cost:
    return sum(costs.values(), Cost())


def detectors() -> dict[str, Detector]:
    """The default detector with each form of the memory's cell."""
    return {cell: Detector(InterleavedConfig(cell=cell)) for cell in CELLS}


def parts(by_cell: dict[str, Detector]) -> Section:
    """Every part of the detectors that `detectors` returned."""
    factored, paper = by_cell["factored"], by_cell["paper"]
    f0, f1, head = factored.steps("f0"), factored.steps("f1"), factored.head
    return Section(
        "Parts of the interleaved detector",
        "LFS prints no numbers for them. `paper` is the memory's bottleneck as LFS 3.2 writes it; "
        "`factored` is the same sum with the part that reads the features moved into the "
        "extractors, as their adapter.",
        [
            Row("f0 backbone", cost=f0["backbone"]),
            Row("f0 adapter, factored", cost=f0["adapter"]),
            Row("f1 backbone", cost=f1["backbone"]),
            Row("f1 adapter, factored", cost=f1["adapter"]),
            Row("memory step, factored", cost=f0["memory"], note="the same after f0 and f1"),
            Row("memory step, paper, after f0", cost=paper.steps("f0")["memory"], note=NO_ADAPTER),
            Row("memory step, paper, after f1", cost=paper.steps("f1")["memory"], note=NO_ADAPTER),
            Row("SSDLite: projection of the memory's output", cost=head["projection"]),
            Row("SSDLite: extra maps", cost=head["extras"]),
            Row("SSDLite: predictors", cost=head["predictors"]),
        ],
    )


def totals(by_cell: dict[str, Detector]) -> Section:
    """LFS table 2, our systems."""
    frames = {
        cell: {e: detector.frame(e) for e in EXTRACTORS} for cell, detector in by_cell.items()
    }
    average = {cell: amortised(f["f0"], f["f1"], TAU) for cell, f in frames.items()}
    cell = InterleavedConfig().cell
    quantized = Detector(InterleavedConfig(quantization="int8"))
    int8 = {e: quantized.frame(e) for e in EXTRACTORS}

    def asynchronous(f):
        return dataclasses.replace(f["f0"] + f["f1"], multiply_adds=f["f1"].multiply_adds)

    f1_frame = (F1_ONLY[0], INTERLEAVED[1])
    rows = [
        *(Row(f"f0 only, {c} cell", F0_ONLY, frames[c]["f0"]) for c in by_cell),
        *(Row(f"f1 only, {c} cell", F1_ONLY, frames[c]["f1"]) for c in by_cell),
        *(Row(f"interleaved, {c} cell", INTERLEAVED, average[c]) for c in by_cell),
        Row("+ async", f1_frame, asynchronous(frames[cell]), "a frame of f1; f0 runs beside it"),
        Row("+ adaptive", (168, 5.0), note=SHARE_IS_LEARNED),
        Row("+ adaptive + async", (84, 5.0), note=SHARE_IS_LEARNED),
        Row("+ quantization", INTERLEAVED, amortised(int8["f0"], int8["f1"], TAU)),
        Row("+ quantization + async", f1_frame, asynchronous(int8), "a frame of f1"),
        Row("+ quantization + adaptive", (202, 5.0), note=SHARE_IS_LEARNED),
        Row("+ quantization + adaptive + async", (84, 5.0), note=SHARE_IS_LEARNED),
        Row("policy network alone (LFS 4.3)", POLICY, by_cell[cell].policy, BIASES),
    ]
    return Section(
        "LFS table 2: the interleaved detector",
        f"τ = {TAU}; rows with + have the {cell} cell. LFS leaves open what the readings below "
        "list. No split gives all of its parameters: 4.9 - 1.5 leaves 3.4 M for what only f0 has, "
        "and the backbone of f0 alone has as many.",
        rows,
    )


def single_frame() -> Section:
    """LFS table 2, the single-frame baseline."""
    rows = []
    for alpha, paper in SSDLITE.items():
        config = SingleFrameConfig(depth_multiplier=alpha)
        frames = tf.TensorSpec([1, *config.image_size, 3], tf.uint8)
        cost = count(SingleFrameDetector(config), frames)
        rows.append(Row(f"MobileNetV2-SSDLite, α = {alpha}", paper, cost))
    return Section(
        "LFS table 2: single frames",
        "These rows fix the convention: kernels alone, and a minimum depth of 16.",
        rows,
    )


def recurrent() -> list[Section]:
    """LFS table 1, at the output depth of its caption and at the one that matches its numbers."""
    texts = {
        640: "The caption says a 1024-channel input and a 640-channel output.",
        512: "With a 512-channel output (state of ours: 256 channels) the paper's forms agree.",
    }
    features = tf.TensorSpec(TABLE_1_INPUT)

    def state(cell):
        tensors = cell.initial_state(*TABLE_1_INPUT[:3])
        return tf.nest.map_structure(tf.TensorSpec.from_tensor, tensors)

    def ours(cell):
        return lambda x, s: cell(cell.adapt(x, "f0"), s, "f0")

    sections = []
    for output, text in texts.items():
        rows = []
        for name, (key, paper) in RIVAL_MULTIPLY_ADDS.items():
            cell = RIVALS[key](output)
            rows.append(Row(name, (paper, None), count(cell, features, state(cell))))
        for name, make in CELLS.items():
            cell = make(output // 2, InterleavedConfig().groups)  # the output is [h, b]
            cost = count(ours(cell), features, state(cell))
            rows.append(Row(f"ours, {name} form", (OUR_CELL_MULTIPLY_ADDS, None), cost))
        sections.append(Section(f"LFS table 1: 1024 → {output} channels", text, rows))
    return sections


def other_systems() -> Section:
    """The rows of LFS table 2 that are of other papers: Liu and Zhu 2018, Zhu et al. 2018."""
    rows = []
    for alpha, paper in SSDLITE_LSTM.items():
        entry = zoo.find(f"ssdlite_lstm_{alpha}")
        model = InterleavedDetector(costs.task(entry, entry.config).model)
        rows.append(Row(f"SSDLite + LSTM, α = {alpha}", paper, costs.frame(model, "f0")))
    rows += [
        Row(f"flow-guided, α = {a}, β = {b}", paper, note=OTHERS)
        for (a, b), paper in FLOW_GUIDED.items()
    ]
    entry = zoo.find("flow_guided")
    model = InterleavedDetector(costs.task(entry, entry.config).model)
    ours = amortised(*(costs.frame(model, extractor) for extractor in EXTRACTORS), TAU)
    rows.append(Row("flow-guided, ours, at τ = 9", cost=ours, note="f0 α = 1.4, f1 α = .35"))
    return Section(
        "LFS table 2: other systems",
        "SSDLite + LSTM has a Bottleneck ConvLSTM on every frame. The paper does not say how deep "
        "its state is; it is 256·α here, in multiples of 8.",
        rows,
    )


def _head_from_memory(head: SSDLite) -> Callable:
    """SSDLite whose first extra map reads the memory's output, not its projection."""

    def run(x):
        maps = [head.project(x)]
        for k, extra in enumerate(head.extras):
            maps.append(extra(maps[-1] if k else x))
        return head.predict(maps)

    return run


def readings(by_cell: dict[str, Detector]) -> list[Reading]:
    """Totals under every combination of the open choices, nearest to LFS table 2 first."""
    default = InterleavedConfig()
    anchors = {
        "4": AnchorConfig(),
        "3, then 4": AnchorConfig(reduce_lowest=True),
        "3": AnchorConfig(interpolated=False),
    }
    heads = {}
    for name, source in itertools.product(anchors, ("projection", "memory")):
        detector = Detector(InterleavedConfig(anchors=anchors[name]))
        head = detector.model.head
        function = head if source == "projection" else _head_from_memory(head)
        heads[name, source] = count(function, detector.memory_output)
    small = {}  # f1's backbone and adapter; no layer of f0 is as narrow as a minimum depth
    for cell, depth in itertools.product(by_cell, (16, 8)):
        config = InterleavedConfig(cell=cell, min_depth=depth)
        detector = by_cell[cell] if depth == default.min_depth else Detector(config)
        steps = detector.steps("f1")
        small[cell, depth] = steps["backbone"] + steps["adapter"]
    result = []
    for (cell, depth), (name, source) in itertools.product(small, heads):
        head = heads[name, source]
        f0 = _sum(by_cell[cell].steps("f0")) + head
        f1 = small[cell, depth] + by_cell[cell].steps("f1")["memory"] + head
        result.append(
            Reading(
                {"cell": cell, "min depth": str(depth), "anchors": name, "extras read": source},
                is_default=(
                    (cell, depth, source) == (default.cell, default.min_depth, "projection")
                    and anchors[name].as_dict() == default.anchors.as_dict()
                ),
                f0=f0,
                f1=f1,
                interleaved=amortised(f0, f1, TAU),
            )
        )
    return sorted(result, key=lambda reading: reading.largest_difference_percent)
