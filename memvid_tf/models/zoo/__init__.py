"""The zoo: the networks of the papers that the repository has, and what is known about each.

How a network is made is written in the header of its configuration (`zoo.headers`), with which an
entry begins: what the zoo says is what the programs run. Some entries have a trained bundle of their
tiny twin in `bundles/`, which runs at once.
"""

import dataclasses
import json
import pathlib

from memvid_tf.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[3]
BUNDLES = pathlib.Path(__file__).resolve().parent / "bundles"
CARD = "card.json"  # in a bundle: the command that made it, and its accuracy on some clips
LFS, PW = "Looking Fast and Slow", "Patchwork"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A network.

    Attributes:
      name: in the zoo.
      what: it is, in a line.
      paper: which, and where in it.
      reported: what the paper says of it; "" where it says nothing.
      config, tiny: configurations at paper scale and of the tiny twin, without folder and suffix.
      settings, tiny_settings: `key=value` pairs that are laid over each.
    """

    name: str
    what: str
    paper: str
    reported: str
    config: str
    tiny: str
    settings: tuple[str, ...] = ()
    tiny_settings: tuple[str, ...] = ()

    @property
    def bundle(self) -> pathlib.Path | None:
        """Folder of the twin's trained bundle, or None."""
        path = BUNDLES / self.name
        return path if (path / CARD).is_file() else None

    @property
    def card(self) -> dict:
        """What is known about that bundle; empty without one."""
        return json.loads((self.bundle / CARD).read_text()) if self.bundle else {}

    def settings_of(self, config: str) -> tuple[str, ...]:
        """The pairs that are laid over one of the two configurations."""
        return self.settings if config == self.config else self.tiny_settings


def config_path(name: str) -> pathlib.Path:
    """The file of a configuration.

    Raises:
      UserError: outside of a checkout, to which the configurations belong.
    """
    path = ROOT / "configs" / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"{str(path)!r} is not there; the zoo is read in a checkout of memvid_tf")
    return path


SECTIONS_WITH_SIZE = ("model", "train_data", "validation_data")
# α of the tiny twins by that of the paper. Theirs have channels in multiples of 8 too, so that
# narrower ones would be alike.
TWIN_ALPHA = {"1.4": 0.75, "1.0": 0.5, "0.5": 0.35, "0.35": 0.25}
TWIN_SIDE = 96  # of the frames of configs/interleaved_tiny.yaml


def _image_size(side: int) -> tuple[str, ...]:
    return tuple(f"task.{section}.image_size=[{side},{side}]" for section in SECTIONS_WITH_SIZE)


def _ssdlite(alpha: str, reported: str) -> Entry:
    return Entry(
        f"ssdlite_{alpha}",
        f"MobileNetV2-SSDLite of single frames, α = {alpha}, 320 px",
        f"{LFS}, table 2",
        reported,
        "detector",
        "detector_tiny",
        (f"task.model.depth_multiplier={alpha}", *_image_size(320)),
        (
            f"task.model.depth_multiplier={TWIN_ALPHA[alpha]}",
            *_image_size(TWIN_SIDE),
            "task.train_data.input_path=data/synthetic",
            "task.validation_data.input_path=data/synthetic",
            "task.model.extra_depths=[96]",  # two more do not fit so small a frame
        ),
    )


def _rival(cell: str, title: str, reported: str) -> Entry:
    # The output of ours is [h, b], twice as deep as its state; that of the others is h.
    return Entry(
        f"interleaved_{cell}",
        f"the interleaved detector with a {title} for its memory, of the same 640 channels",
        f"{LFS}, table 1",
        f"{reported}, of the cell alone, in a detector in which f0 alone runs (ours: 63.37 and 39)",
        "interleaved",
        "interleaved_tiny",
        (f"task.model.cell={cell}", "task.model.state_channels=640"),
        (f"task.model.cell={cell}", "task.model.state_channels=128"),
    )


def _flow_guided() -> Entry:
    shared = ("task.model.cell=flow_guided", "task.flow_weight=1.0")
    return Entry(
        "flow_guided",
        "features that flow carries from the frames of f0 to the others, whose f1 is the encoder of "
        "the flow network: the interleaved detector with another memory",
        f"{LFS}, table 2, flow-guided (Zhu et al. 2018)",
        "61.2 mAP, 205 M multiply-adds, 9.0 M parameters, of a MobileNet and a flow network of "
        "their own, both at their full width",
        "interleaved",
        "interleaved_tiny",
        (*shared, "task.model.state_channels=640"),
        (*shared, "task.model.state_channels=128"),
    )


def _ssdlite_lstm(alpha: str, state_channels: int, twin_channels: int, reported: str) -> Entry:
    # The paper does not say how deep the state is: 256·α, which at α = 1 gives its multiply-adds.
    # The widest twin has the memory of that of interleaved_bottleneck_conv_lstm.
    # Training gives f1 a frame of each clip, so that it can be exported too.
    shared = (
        "task.model.cell=bottleneck_conv_lstm",
        "task.f0_probability=1.0",
        "task.validation_tau=0",
    )
    return Entry(
        f"ssdlite_lstm_{alpha}",
        f"MobileNetV2-SSDLite with the Bottleneck LSTM of Liu & Zhu 2018, α = {alpha}: the "
        "interleaved detector in which f0 runs on every frame (--modes=f0, --tau=0)",
        f"{LFS}, table 2, MobilenetV2-SSDLite + LSTM",
        reported,
        "interleaved",
        "interleaved_tiny",
        (
            *shared,
            f"task.model.depth_multiplier_f0={alpha}",
            "task.model.min_depth=16",
            f"task.model.state_channels={state_channels}",
        ),
        (
            *shared,
            f"task.model.depth_multiplier_f0={TWIN_ALPHA[alpha]}",
            f"task.model.state_channels={twin_channels}",
        ),
    )


ENTRIES = (
    Entry(
        "interleaved",
        "memory-guided interleaved detector: f0 α = 1.4 at 320 px, f1 α = .35 at 160 px",
        f"{LFS}, table 2, interleaved",
        "61.4 mAP at τ = 9, 190 M multiply-adds, 4.9 M parameters",
        "interleaved",
        "interleaved_tiny",
    ),
    Entry(
        "interleaved_int8",
        "the same, quantization-aware",
        f"{LFS}, table 2, + quantization",
        "60.3 mAP at τ = 9",
        "interleaved_qat",
        "interleaved_tiny_qat",
    ),
    Entry(
        "interleaved_policy",
        "the same with the policy that learns which extractor runs next",
        f"{LFS}, table 2, + quantization + adaptive",
        "202 M multiply-adds, 5 M parameters",
        "interleaved_policy",
        "interleaved_tiny_policy",
    ),
    Entry(
        "f0_only",
        "the interleaved detector with f0 on every frame (--modes=f0, --tau=0)",
        f"{LFS}, table 2, large (f0) only",
        "63.9 mAP, 1153 M multiply-adds, 4.4 M parameters",
        "interleaved",
        "interleaved_tiny",
    ),
    Entry(
        "f1_only",
        "the interleaved detector with f1 on every frame, whose memory stays empty (--modes=f1)",
        f"{LFS}, table 2, small (f1) only",
        "30.6 mAP, 84 M multiply-adds, 1.5 M parameters",
        "interleaved",
        "interleaved_tiny",
    ),
    _rival("conv_lstm", "ConvLSTM", "63.40 mAP and 317 M multiply-adds"),
    _rival("conv_gru", "ConvGRU", "63.20 mAP and 240 M multiply-adds"),
    _rival("bottleneck_conv_lstm", "Bottleneck LSTM", "61.92 mAP and 186 M multiply-adds"),
    _flow_guided(),
    _ssdlite_lstm("1.4", 360, 128, "64.1 mAP, 1182 M multiply-adds, 5.1 M parameters"),
    _ssdlite_lstm("1.0", 256, 88, "59.1 mAP, 630 M multiply-adds, 2.9 M parameters"),
    _ssdlite_lstm("0.5", 128, 64, "50.3 mAP, 255 M multiply-adds, 1.1 M parameters"),
    _ssdlite_lstm("0.35", 88, 40, "45.1 mAP, 207 M multiply-adds, 0.7 M parameters"),
    _ssdlite("1.4", "1345 M multiply-adds, 6.4 M parameters"),
    _ssdlite("1.0", "710 M multiply-adds, 3.5 M parameters"),
    _ssdlite("0.5", "266 M multiply-adds, 1.1 M parameters"),
    _ssdlite("0.35", "204 M multiply-adds, 0.6 M parameters"),
    Entry(
        "detector",
        "MobileNetV2-SSDLite of single frames, α = 1, 384 px: the twin of detector_patchwork",
        f"{PW}, table 1, single-frame",
        "54.7 mAP",
        "detector",
        "detector_tiny",
    ),
    Entry(
        "detector_patchwork",
        "Patchwork: one window of each frame, a quarter of it, picked by attention",
        f"{PW}, table 1, M = 4, N = 2, DQN",
        "54.3 mAP, 543 MFLOPs, of which a multiply-add is two",
        "detector_patchwork",
        "detector_patchwork_tiny",
    ),
    Entry(
        "segmenter",
        "MobileNetV2 with a DeepLab-style head, binary masks, 384 px",
        f"{PW}, 4.2, single-frame",
        "J 63.6, F 59.5 on DAVIS 2016",
        "segmenter",
        "segmenter_tiny",
    ),
    Entry(
        "segmenter_patchwork",
        "Patchwork of masks",
        f"{PW}, 4.2",
        "J 62.1, F 58.8 on DAVIS 2016",
        "segmenter_patchwork",
        "segmenter_patchwork_tiny",
    ),
)


def find(name: str) -> Entry:
    """The entry of a name.

    Raises:
      UserError: naming those that there are.
    """
    for entry in ENTRIES:
        if entry.name == name:
            return entry
    raise UserError(f"{name!r} is not in the zoo; it has {', '.join(e.name for e in ENTRIES)}")
