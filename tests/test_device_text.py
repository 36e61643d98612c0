"""What a device and its tools say: adb's messages, sensors, benchmark_model, goldens."""

import shutil

import pytest
import tiny_bundle

from benchmarks import adb as adb_lib
from benchmarks import benchmark_model, packages, phone
from benchmarks.handset import golden_limit


@pytest.mark.parametrize(
    "text, kind, hint",
    [
        ("error: no devices/emulators found", adb_lib.NoDevice, "USB debugging"),
        ("adb: device 'X' not found", adb_lib.NoDevice, "adb devices"),
        ("error: more than one device/emulator", adb_lib.ManyDevices, "--serial"),
        ("error: device unauthorized.\nThis adb server's $ADB_VENDOR_KEYS is not set",
         adb_lib.Unauthorized, "RSA key"),
        ("error: device offline", adb_lib.Offline, "adb reconnect"),
        ("adb: error: failed to copy 'a' to 'b': remote couldn't create file: No space left on "
         "device", adb_lib.NoSpace, "free some space"),
        ("mkdir: '/sys/x': Permission denied", adb_lib.Denied, "--device_dir"),
        ("error: closed", adb_lib.Disconnected, "cable"),
        ("adb: error: failed to read copy response: EOF", adb_lib.Disconnected, "cable"),
        ("error: protocol fault (couldn't read status): Connection reset by peer",
         adb_lib.Disconnected, "goes on"),
        ("something new", adb_lib.AdbError, "adb reconnect"),
    ],
)  # fmt: skip
def test_what_adb_says_becomes_an_error_with_a_hint(text, kind, hint):
    error = adb_lib.error_for(text, "pushing f0.tflite")
    assert type(error) is kind and hint in str(error) and "pushing f0.tflite" in str(error)


THERMAL = """IsStatusOverride: false
Thermal Status: 2
Cached temperatures:
\tTemperature{mValue=99.0, mType=3, mName=skin, mStatus=0}
HAL Ready: true
HAL connection:
\tThermalHAL 2.0 connected: yes
Current temperatures from HAL:
\tTemperature{mValue=31.4, mType=3, mName=VIRTUAL-SKIN, mStatus=0}
\tTemperature{mValue=45.25, mType=0, mName=BIG, mStatus=0}
Current cooling devices from HAL:
\tCoolingDevice{mValue=0, mType=2, mName=Temperature{mValue=7, mName=no}}
"""


def test_sensors_are_read_where_there_are_any():
    assert phone.parse_battery("  level: 80\n  temperature: 312\n  technology: Li-ion") == 31.2
    assert phone.parse_battery("Can't find service: battery") is None
    assert phone.parse_thermal(THERMAL) == (2, {"VIRTUAL-SKIN": 31.4, "BIG": 45.25})
    assert phone.parse_thermal(THERMAL.replace("Ready: true", "Ready: false")) == (None, {})
    assert phone.parse_thermal("") == (None, {})
    nothing = phone.Sensors(None, None, {}, {})
    assert nothing.missing == ["battery_c", "thermal_status", "hal_c", "clocks_khz"]


def test_the_fastest_cores_are_chosen():
    tensor = {"cpu0": 1803, "cpu1": 1803, "cpu4": 2253, "cpu5": 2253, "cpu6": 2802, "cpu7": 2802}
    assert phone.fastest_mask(tensor, 1) == phone.fastest_mask(tensor, 2) == "c0"
    assert phone.fastest_mask(tensor, 3) == "f0"
    assert phone.fastest_mask(tensor, 8) == "f3"
    assert phone.fastest_mask({}, 1) is None


class Tape:
    """A device without a shell that answers from a list; the last answer stays."""

    serial = "tape"

    def __init__(self, *temperatures):
        self.temperatures = list(temperatures)

    def shell(self, command, timeout_s=0.0):
        text = ""
        if command.startswith("dumpsys battery"):
            now = self.temperatures.pop(0) if len(self.temperatures) > 1 else self.temperatures[0]
            text = "" if now is None else f"  temperature: {now * 10:.0f}\n"
        return adb_lib.Shell(0, text, "")


def test_a_hot_device_is_waited_for_and_no_longer_than_that():
    slept, said = [], []

    def wait(tape, limit):
        slept.clear()
        return phone.wait_until_cool(
            tape, limit, said.append, clock=lambda: sum(slept), sleep=slept.append
        )

    assert wait(Tape(41.0, 39.0, 36.5), 60).battery_c == 36.5 and slept == [5.0, 5.0]
    assert "41.0 °C" in said[0]
    with pytest.raises(phone.TooHot, match=r"too hot .* 41.0 °C.* at most 37 °C.*is kept"):
        wait(Tape(41.0), 12)
    assert sum(slept) == pytest.approx(12)
    assert wait(Tape(None), 60).battery_c is None and not slept  # never waited for


CLASSIC = """STARTING!
Log parameter values verbosely: [0]
Num threads: [4]
Graph: [/data/local/tmp/espcn.tflite]
Loaded model /data/local/tmp/espcn.tflite
Initialized session in 0.855ms.
Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
count=15 first=49060 curr=33682 min=32825 max=49060 avg=34825.1 std=3930

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
count=50 first=32891 curr=33978 min=32641 max=34005 avg=33209.4 std=450

Inference timings in us: Init: 855, First inference: 49060, Warmup (avg): 34825.1, Inference (avg): 33209.4
Peak memory footprint (MB): init=0 overall=12.8672
"""
OLDEST = """Initialized session in 9.933ms
count=7 first=127425 curr=66709 min=66709 max=127425 avg=76605.9 std=20944

count=15 first=66753 curr=66800 min=66699 max=66838 avg=66767.6 std=39

Average inference timings in us: Warmup: 76605.9, Init: 9933, no stats: 66767.6
"""
NEWER = """INFO: STARTING!
INFO: Replacing 57 out of 64 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 1 partitions.
INFO: count=12 first=5210 curr=4103 min=4088 max=5210 avg=4240.5 std=301 p5=4090 median=4120 p95=5210

INFO: count=50 curr=4100 (all same)

INFO: Inference timings in us: Init: 8123, First inference: 5210, Warmup (avg): 4240.5, Inference (avg): 4100
"""


@pytest.mark.parametrize(
    "text, average, count, init, nodes",
    [(CLASSIC, 33209.4, 50, 855, None), (OLDEST, 66767.6, 15, 9933, None),
     (NEWER, 4100.0, 50, 8123, 57)],
)  # fmt: skip
def test_every_generation_of_benchmark_model_is_read(text, average, count, init, nodes):
    found = benchmark_model.parse(text)
    assert found["latency_us"] == [average] and found["reported"]["count"] == count
    assert (found["init_us"], found["delegated_nodes"]) == (init, nodes)
    assert found["warm_up_us"] in (34825.1, 76605.9, 4240.5)


def test_percentiles_are_read_and_cut_output_is_refused():
    found = benchmark_model.parse(NEWER.replace("INFO: count=50 curr=4100 (all same)", ""))
    assert found["reported"]["median"] == 4120 and found["reported"]["p95"] == 5210
    for text in (CLASSIC.split("Inference timings")[0], "ERROR: failed to load", ""):
        with pytest.raises(benchmark_model.ParseError, match="failed or was cut short"):
            benchmark_model.parse(text)


def test_node_types_may_hold_commas():
    text = """Number of nodes executed,2
============================== Run Order ==============================
node type, first, avg_ms, %, cdf%, mem KB, times called, name
Convolution (NHWC, QC8) IGEMM, 36.4, 10.7, 92.2%, 92.2%, 0, 5, conv:0
Add (ND), 0.003, 0.002, 0.02%, 92.2%, 0, 5, add:1

============================== Top by Computation Time ==============================
"""
    assert benchmark_model.parse_profile(text) == [
        {"type": "Convolution (NHWC, QC8) IGEMM", "ms": 10.7, "times": 5, "name": "conv:0"},
        {"type": "Add (ND)", "ms": 0.002, "times": 5, "name": "add:1"},
    ]


def test_limits_of_goldens_follow_from_what_a_tensor_is():
    int8, float32 = tiny_bundle.load("int8"), tiny_bundle.load("float32")
    assert golden_limit(int8, "f0.tflite", "serving_default", "features") == (0, True)
    assert golden_limit(int8, "memory.tflite", "update", "c_next") == (1, True)
    assert golden_limit(int8, "memory.tflite", "step", "class_logits") == (4, True)
    assert golden_limit(int8, "post.tflite", "serving_default", "boxes")[1] is False
    assert golden_limit(float32, "f0.tflite", "serving_default", "features")[1] is False


def test_the_mirror_of_the_system_is_found(tmp_path):
    with pytest.raises(packages.NoPackages, match="no Debian mirror"):
        packages.mirror(tmp_path)
    (tmp_path / "sources.list").write_text("deb [arch=amd64] http://a/debian trixie main\n")
    assert packages.mirror(tmp_path) == "http://a/debian"
    (tmp_path / "sources.list").unlink()
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / "x.sources").write_text(
        "Types: deb\nURIs: http://a/debian-security\n\nTypes: deb\nURIs: http://b/debian\n"
    )
    assert packages.mirror(tmp_path) == "http://b/debian"


def test_no_adb_says_where_to_get_one(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(adb_lib.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(adb_lib.NoAdb, match="apt-get install adb.*adbutils"):
        adb_lib.find_adb()
    with pytest.raises(adb_lib.NoAdb, match="--adb=/none"):
        adb_lib.find_adb("/none")
