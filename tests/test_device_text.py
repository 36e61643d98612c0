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
        ("error: insufficient permissions for device: udev rules?", adb_lib.NoAccess, "plugdev"),
        ("error: device still authorizing", adb_lib.Offline, "wait a moment"),
        ("* could not install *smartsocket* listener: in use\nerror: cannot connect to daemon",
         adb_lib.NoServer, "adb kill-server"),
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
    # The service knows its status without the HAL.
    unready = "Thermal Status: 3\nCached temperatures:\nHAL Ready: false\n"
    assert phone.parse_thermal(unready) == (3, {})
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


# The shape of what the tools print, as seen in public reports of runs on phones; numbers and names
# are made up.
CLASSIC = """STARTING!
Log parameter values verbosely: [0]
Num threads: [2]
Graph: [net.tflite]
#threads used for CPU inference: [2]
Loaded model net.tflite
INFO: Created TensorFlow Lite delegate for GPU.
Explicitly applied GPU delegate, and the model graph will be completely executed by the delegate.
The input model file size (MB): 1.25
Initialized session in 81.5ms.
Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if exceeding 150 seconds.
count=21 first=40120 curr=24310 min=23002 max=40120 avg=25001.5 std=3111

Running benchmark for at least 50 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
count=50 first=24005 curr=24410 min=22950 max=25777 avg=24123.4 std=512

Inference timings in us: Init: 81500, First inference: 40120, Warmup (avg): 25001.5, Inference (avg): 24123.4
Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to the actual memory footprint of the model at runtime. Take the information at your discretion.
Peak memory footprint (MB): init=2.5 overall=14.25
"""
OLDEST = """Initialized session in 7.25ms
Running benchmark for at least 4 iterations and at least 0.5 seconds
count=9 first=90210 curr=61300 min=61111 max=90210 avg=64500.2 std=9000

Running benchmark for at least 10 iterations and at least 1 seconds
count=17 first=61200 curr=61250 min=61005 max=61404 avg=61220.5 std=88

Average inference timings in us: Warmup: 64500.2, Init: 7250, no stats: 61220.5
"""
PREFIXED = """INFO: STARTING!
INFO: Replacing 57 out of 64 node(s) with delegate (TfLiteXNNPackDelegate) node, yielding 1 partitions.
INFO: count=12 first=5210 curr=4103 min=4088 max=5210 avg=4240.5 std=301 p5=4090 median=4120 p95=5210

INFO: count=50 curr=4100(all same) p5=4100 median=4100 p95=4100

INFO: Inference timings in us: Init: 8123, First inference: 5210, Warmup (avg): 4240.5, Inference (avg): 4100
"""
LITERT = """INFO: STARTING!
INFO: Graph: [net.tflite]
WARN: Unconsumed cmdline flags: --use_nnapi=false
INFO: [compiled_model.cc:201] Replacing 31 out of 31 node(s) with delegate (LITERT_CL) node, yielding 1 partitions for subgraph 0 (main).
INFO: count=1 curr=9120
INFO: count=50 first=3101 curr=3055 min=3001 max=3490 avg=3070.25 std=71 p5=3010 median=3060 p95=3201
INFO: [benchmark_litert_model.h:90] 
========== BENCHMARK RESULTS ==========
INFO: [benchmark_litert_model.h:92] Signature name:       serving_default
INFO: [benchmark_litert_model.h:94] Model initialization: 120.55 ms
INFO: [benchmark_litert_model.h:96] Warmup (first):       9.12 ms
INFO: [benchmark_litert_model.h:98] Warmup (avg):         9.12 ms (1 runs)
INFO: [benchmark_litert_model.h:100] Inference (avg):      3.07 ms (50 runs)
INFO: [benchmark_litert_model.h:104] Inference (min):      3.00 ms
INFO: [benchmark_litert_model.h:106] Inference (max):      3.49 ms
INFO: [benchmark_litert_model.h:108] Inference (std):      0.07
INFO: [benchmark_litert_model.h:115] Throughput:           25.02 MB/s
INFO: [benchmark_litert_model.h:124] 
Memory Usage:
INFO: [benchmark_litert_model.h:126] Init footprint:       41.50 MB
INFO: [benchmark_litert_model.h:128] Overall footprint:    44.00 MB
INFO: [benchmark_litert_model.h:135] Peak memory usage not available. (peak_mem_mb <= 0)
INFO: [benchmark_litert_model.h:137] ======================================
"""


@pytest.mark.parametrize(
    "text, average, count, init, warm_up, nodes",
    [
        (CLASSIC, 24123.4, 50, 81500, 25001.5, None),
        (OLDEST, 61220.5, 17, 7250, 64500.2, None),
        (PREFIXED, 4100.0, 50, 8123, 4240.5, 57),
        (LITERT, 3070.25, 50, 120550, 9120.0, 31),
    ],
)
def test_every_generation_of_benchmark_model_is_read(text, average, count, init, warm_up, nodes):
    found = benchmark_model.parse(text)
    assert found["latency_us"] == pytest.approx([average])
    assert found["reported"]["count"] == count
    times = (found["init_us"], found["warm_up_us"])
    assert times == pytest.approx((init, warm_up)) and found["delegated_nodes"] == nodes


def test_which_delegate_took_how_many_nodes_is_said():
    assert benchmark_model.parse(CLASSIC)["delegates"] == "GPU: completely"
    assert benchmark_model.parse(OLDEST)["delegates"] == ""
    assert benchmark_model.parse(LITERT)["delegates"] == "LITERT_CL: 31 of 31 nodes"
    line = "Replacing {} out of {} node(s) with delegate ({}) node, yielding 2 partitions."
    two = "\n".join(line.format(*words) for words in ((57, 64, "TfLiteGpu"), (5, 8, "TfLiteXNN")))
    assert benchmark_model.delegates(two) == "TfLiteGpu: 57 of 64 nodes; TfLiteXNN: 5 of 8 nodes"


def test_statistics_are_read_with_all_their_digits():
    found = benchmark_model.parse(LITERT)["reported"]
    assert (found["avg"], found["median"], found["p95"]) == (3070.25, 3060.0, 3201.0)
    silent = "\n".join(line for line in LITERT.splitlines() if "count=" not in line)
    rounded = benchmark_model.parse(silent)["reported"]
    assert rounded == pytest.approx({"count": 50, "avg": 3070.0, "min": 3000.0, "max": 3490.0})
    same = benchmark_model.parse(PREFIXED)["reported"]
    assert (same["avg"], same["min"], same["median"]) == (4100.0, 4100.0, 4100.0)


@pytest.mark.parametrize(
    "text",
    [
        CLASSIC.split("Inference timings")[0],
        OLDEST.split("Average")[0],
        LITERT.split("=====")[0],
        LITERT.split("INFO: [benchmark_litert_model.h:100]")[0],
        "ERROR: failed to load",
        "",
    ],
)
def test_output_that_was_cut_short_is_refused(text):
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
