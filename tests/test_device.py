"""The way to a phone, against a real adb server and a real adbd on an emulated Pixel."""

import contextlib
import dataclasses
import json
import os
import platform
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import flagless
import pytest
import tiny_bundle
from test_device_text import CLASSIC

from benchmarks import adb as adb_lib
from benchmarks import benchmark_model, packages, payload, phone
from benchmarks import measurements as schema
from benchmarks.handset import GoldenMismatch, Handset, LoaderFailed
from benchmarks.runner import local, schedules
from memvid_tf.errors import UserError

pixel = flagless.program("benchmarks.pixel")
ROOT = Path(__file__).parents[1]
FOLDER = "/data/local/tmp/memvid"


# ---- a real adb server --------------------------------------------------------------------------


ADB_29 = (
    "adb", "android-libbase", "android-libboringssl", "android-libcutils", "android-liblog",
    "libusb-1.0-0",
)  # fmt: skip


@pytest.fixture(scope="module", params=["newest", pytest.param("29", marks=pytest.mark.slow)])
def server(request, tmp_path_factory):
    """A real adb, of either generation, with a server of its own, which sees nothing else."""
    try:
        program = adb_lib.find_adb() if request.param == "newest" else adb_29(tmp_path_factory)
    except UserError as error:
        pytest.skip(f"no adb of generation {request.param}: {error}")
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(pixel.free_port()))
        stack.callback(subprocess.run, [program, "kill-server"], timeout=30, check=False)
        yield program


def adb_29(tmp_path_factory):
    """Debian 12's adb, with its libraries."""
    if platform.machine() != "x86_64":
        raise UserError(f"its package is for x86_64, and this is {platform.machine()}")
    folder = packages.fetch("bookworm", "amd64", ADB_29)
    libraries = folder / "usr/lib/x86_64-linux-gnu"
    wrapper = tmp_path_factory.mktemp("adb29") / "adb"
    wrapper.write_text(
        f"#!/bin/sh\nLD_LIBRARY_PATH={libraries}:{libraries}/android "
        f'exec {folder}/usr/lib/android-sdk/platform-tools/adb "$@"\n'
    )
    wrapper.chmod(0o755)
    return str(wrapper)


def connect(program, address):
    subprocess.run([program, "connect", address], capture_output=True, timeout=30, check=False)


def disconnect(program):
    subprocess.run([program, "disconnect"], capture_output=True, timeout=30, check=False)


def packet(command, first, second, data=b""):
    magic = struct.unpack("<I", command)[0] ^ 0xFFFFFFFF
    return struct.pack("<4s5I", command, first, second, len(data), sum(data), magic) + data


@contextlib.contextmanager
def listener(answer):
    """A TCP server whose every connection runs `answer`."""
    with socket.create_server(("127.0.0.1", pixel.free_port())) as server:

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def never_accepts_the_key(connection):
    with contextlib.suppress(OSError):
        while header := connection.recv(24, socket.MSG_WAITALL):
            command, kind, _, size, _, _ = struct.unpack("<4s5I", header)
            connection.recv(size, socket.MSG_WAITALL) if size else b""
            if command == b"CNXN" or (command == b"AUTH" and kind == 2):
                connection.sendall(packet(b"AUTH", 1, 0, b"\x07" * 20))


def test_no_device_unauthorized_and_offline(server):
    disconnect(server)
    with pytest.raises(adb_lib.NoDevice, match="no devices"):
        adb_lib.pick(server)
    with listener(never_accepts_the_key) as address:
        connect(server, address)
        with pytest.raises(adb_lib.Unauthorized, match="accept the RSA key"):
            adb_lib.pick(server, address)
        disconnect(server)
    with listener(lambda connection: time.sleep(60)) as address:
        thread = threading.Thread(target=connect, args=(server, address))
        thread.start()  # adb itself waits some seconds for an answer
        deadline = time.monotonic() + 20
        while address not in adb_lib.devices(server) and time.monotonic() < deadline:
            time.sleep(0.1)
        with pytest.raises(adb_lib.Offline, match="adb reconnect"):
            adb_lib.pick(server, address)
        with pytest.raises(adb_lib.NoDevice, match=r"\(offline\).*device 'other' not found"):
            adb_lib.pick(server, "other")
        disconnect(server)
        thread.join(timeout=30)


# ---- an emulated Pixel --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts():
    try:
        return payload.arm64()
    except UserError as error:
        pytest.skip(f"no arm64 payload: {error}")


@pytest.fixture(scope="module")
def address(server, parts):
    try:
        with pixel.booted("cortex-a76") as where:
            yield where
    except pixel.NoPixel as error:
        pytest.skip(f"no emulated Pixel: {error}")


class Cable:
    """What lies between adb and a device, and can be cut after so many bytes to or from it."""

    def __init__(self, target):
        self.host, self.port = target.split(":")
        self.budget = {"to": None, "from": None}
        self.cuts = 0

    def __call__(self, connection):
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port)) as far:
            pumps = [
                threading.Thread(target=self._pump, args=(connection, far, "to"), daemon=True),
                threading.Thread(target=self._pump, args=(far, connection, "from"), daemon=True),
            ]
            for pump in pumps:
                pump.start()
            for pump in pumps:
                pump.join()

    def _pump(self, source, sink, way):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.budget[way] is not None:
                    self.budget[way] -= len(data)
                    if self.budget[way] < 0:
                        self.budget[way] = None
                        self.cuts += 1
                        break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def cable(server, address):
    """A device behind a cable; it keeps what was pushed before."""
    disconnect(server)
    wire = Cable(address)
    with listener(wire) as where:
        connect(server, where)
        wire.adb = adb_lib.pick(server, where)
        assert wire.adb.wait(30)
        wire.adb.check(f"rm -rf {pixel.SCRIPTED}; mkdir -p {pixel.SCRIPTED}")
        yield wire
    disconnect(server)


def handset(cable, parts, **settings):
    return Handset(cable.adb, parts, FOLDER, **settings)


def script(adb, name, text):
    adb.check(f"echo '{text}' > {pixel.SCRIPTED}/{name}")


@pytest.fixture(scope="module")
def bundle():
    return tiny_bundle.load("int8")


def f1_job(bundle, **changes):
    setting = schedules.ScheduleSetting("f1", None, frames=20, warm_up=0, record=True, **changes)
    return schedules.schedule(bundle, setting, schedules.random_frames(bundle, 2, seed=3))


def test_goldens_and_a_schedule_on_both_emulated_cores(server, parts, bundle, address):
    """Extractors byte for byte; a run of f1 alone has no state, so its outputs are the host's."""
    job = f1_job(bundle)
    expected = local.run(job)[1][schedules.RECORD]
    for cpu in pixel.CPUS:
        with pixel.booted(cpu) as where:
            connect(server, where)
            adb = adb_lib.Adb(server, where)
            assert adb.wait(30)
            device = Handset(adb, parts, FOLDER)
            assert "7 of 7 files pushed" in device.prepare()
            assert "12 golden tensors" in device.check_goldens(bundle)
            result, files = device.run(job, None)
            assert len(result["latency_us"]) == 20 and len(files[schedules.RECORD]) == len(expected)
            assert not phone.describe(adb)["physical"]
            assert "0 of 7 files pushed" in Handset(adb, parts, FOLDER).prepare()
    disconnect(server)


def test_two_devices_need_a_name(server, address):
    with pixel.booted() as other:
        connect(server, address)
        connect(server, other)
        with pytest.raises(adb_lib.ManyDevices, match="--serial"):
            adb_lib.pick(server)
        assert adb_lib.pick(server, other).serial == other
    disconnect(server)


def test_a_cut_in_a_push_is_survived(cable, parts, bundle):
    device = handset(cable, parts, reconnect_s=30.0)
    device.prepare()
    noise = os.urandom(2**21)  # adb compresses what it pushes
    wide = dataclasses.replace(f1_job(bundle), files=f1_job(bundle).files | {"x": noise})
    cable.budget["to"] = 2**20
    result, _ = device.run(wide, None)
    assert cable.cuts == 1 and len(result["latency_us"]) == 20


def test_a_cut_in_a_run_fetches_what_the_device_went_on_to_measure(cable, parts, bundle):
    device = handset(cable, parts, reconnect_s=30.0)
    device.prepare()
    device.run(f1_job(bundle), None)  # everything is pushed
    cut = threading.Timer(2.0, lambda: cable.budget.update({"from": 0, "to": 0}))
    cut.start()
    slow = f1_job(bundle, fps=4.0)  # five seconds
    start = time.monotonic()
    result, _ = device.run(slow, None)
    assert cable.cuts >= 1 and len(result["latency_us"]) == 20
    assert result["elapsed_us"] > 4e6 and time.monotonic() - start < 120


def test_a_cut_in_a_pull_is_survived(cable, parts, bundle):
    device = handset(cable, parts, reconnect_s=30.0)
    device.prepare()
    device.run(f1_job(bundle), None)
    cable.budget["from"] = 20_000  # the recorded outputs are more
    _, files = device.run(f1_job(bundle), None)
    assert cable.cuts == 1 and len(files[schedules.RECORD]) > 20_000


def test_a_device_that_stays_away_is_given_up(server, parts, bundle):
    with pixel.booted() as where:
        connect(server, where)
        adb = adb_lib.Adb(server, where)
        assert adb.wait(30)
        device = Handset(adb, parts, FOLDER, reconnect_s=2.0)
        device.prepare()
    start = time.monotonic()
    with pytest.raises(adb_lib.AdbError, match=where):
        device.run(f1_job(bundle), None)
    assert time.monotonic() - start < 60
    disconnect(server)


def test_a_full_disk(server, parts, address):
    with pixel.booted(data_size="4m") as where:
        connect(server, where)
        adb = adb_lib.Adb(server, where)
        assert adb.wait(30)
        with pytest.raises(adb_lib.NoSpace, match="free some space below /data/local/tmp"):
            Handset(adb, parts, FOLDER).prepare()
    disconnect(server)


def test_a_missing_loader_is_named(cable, parts):
    less = {n: p for n, p in parts.files.items() if n != payload.LOADER}
    with pytest.raises(LoaderFailed, match=r"ld-linux-aarch64.so.1 does not run \(code 127\)"):
        Handset(cable.adb, payload.Payload(less), f"{FOLDER}_less").prepare()


def test_another_architecture_is_refused(cable):
    script(cable.adb, "ro.product.cpu.abi", "x86_64")
    with pytest.raises(phone.WrongDevice, match="is x86_64, and the runner is built for arm64"):
        phone.describe(cable.adb)


def test_a_damaged_push_is_noticed(cable, parts, tmp_path):
    """An adb that flips a byte of what it pushes."""
    wrapper = tmp_path / "adb"
    wrapper.write_text(
        f"""#!{sys.executable}
import os, sys
words = sys.argv[1:]
if "push" in words:
    place = words.index("push") + 1
    data = bytearray(open(words[place], "rb").read())
    data[7] ^= 1
    words[place] = {str(tmp_path / "damaged")!r}
    open(words[place], "wb").write(data)
os.execv({cable.adb._program!r}, ["adb", *words])
"""
    )
    wrapper.chmod(0o755)
    damaged = adb_lib.Adb(str(wrapper), cable.adb.serial)
    with pytest.raises(adb_lib.AdbError, match=r"sha256 on the device is .*, wanted .* damaged"):
        Handset(damaged, parts, f"{FOLDER}_damaged").prepare()


def test_wrong_goldens_stop_everything(cable, parts, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle.build("int8"), folder)
    damaged = dataclasses.replace(tiny_bundle.load("int8"), path=folder)
    golden = folder / "golden/f0.serving_default.features.bin"
    data = bytearray(golden.read_bytes())
    data[0] ^= 1
    golden.write_bytes(data)
    device = handset(cable, parts)
    device.prepare()
    with pytest.raises(GoldenMismatch, match="f0.tflite:serving_default features: 1 of "):
        device.check_goldens(damaged)


def test_a_hung_runner_is_stopped_on_the_device(cable, parts, bundle):
    device = handset(cable, parts, job_s=3.0)
    device.prepare()
    with pytest.raises(local.RunnerError, match="hung and was stopped after 3 s"):
        device.run(f1_job(bundle, fps=0.1), None)
    assert not cable.adb.shell("pgrep -f '[m]emvid_runner'").stdout.strip()


def test_a_benchmark_model_of_the_users_is_run_and_read(cable, parts, bundle, tmp_path):
    binary = tmp_path / "their_benchmark"
    binary.write_text(f"#!/system/bin/sh\necho \"flags: $*\" >&2\ncat <<'EOF'\n{CLASSIC}EOF\n")
    device = handset(cable, parts)
    model = device.push(bundle.graph_path("f1"))
    call = f"./{device.push(binary)}"
    text = device.call(benchmark_model.command(call, model, 2, 50, "--use_gpu=true"), None)
    assert "--graph=f1.tflite --num_threads=2 --num_runs=50 --use_gpu=true" in text
    assert benchmark_model.parse(text)["latency_us"] == [24123.4]
    with pytest.raises(adb_lib.AdbError, match="exit code 127"):
        device.call("./none", None)


def program(*flags):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.device", *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=400, check=False, env=os.environ,
    )  # fmt: skip


@pytest.mark.slow
def test_the_program_measures_keeps_what_it_has_and_goes_on(cable, parts, bundle, tmp_path):
    output = tmp_path / "results"
    flags = [
        f"--adb={cable.adb._program}", f"--bundle={bundle.path}",
        f"--serial={cable.adb.serial}", f"--output={output}",
        "--threads=1", "--frames=20", "--runs=2", "--repeats=1", "--cool_down_s=0",
    ]  # fmt: skip
    script(cable.adb, "dumpsys.battery", "  temperature: 412")
    done = program("--doctor", "--keep", flags[0], flags[2])
    assert done.returncode == 0 and "battery      41.2 °C" in done.stdout, done.stderr
    assert (
        "emulated: times are not latencies" in done.stdout and "loader       glibc" in done.stdout
    )
    done = program(*flags, "--keep")
    assert done.returncode == 2 and "too hot to measure after 0 s: battery 41.2" in done.stderr
    assert "Traceback" not in done.stderr and "golden tensors" in done.stdout
    script(cable.adb, "dumpsys.battery", "  temperature: 300")
    done = program(*flags, "--keep")
    assert done.returncode == 0 and "0 of 7 files pushed" in done.stdout, done.stderr
    first = schema.Results.load(f"{output}.json").measurements
    assert len(first) == 5 + 4  # calls and schedules
    assert {m.device["physical"] for m in first} == {False}
    assert first[0].conditions["before"]["battery_c"] == 30.0
    assert "thermal_status" in first[0].conditions["before"]["missing"]
    assert "emulated, not a latency" in Path(f"{output}.md").read_text()
    switched = cable.adb.check(f"cat {pixel.SCRIPTED}/cmd").split("\n")
    assert switched[-2].endswith("enabled false"), "the setting is put back"
    done = program(*flags[:-2], "--repeats=2", "--cool_down_s=0", "--sustained_s=0.0001")
    assert done.returncode == 0, done.stderr
    again = schema.Results.load(f"{output}.json").measurements
    assert again[: len(first)] == first
    modes = [m.setting.mode for m in again]
    assert (modes.count("burst"), modes.count("sustained")) == (2 * len(first), 4)
    assert cable.adb.shell(f"ls {FOLDER}").code, "the folder is removed"
    assert json.loads(Path(f"{output}.json").read_text())["schema_version"] == 2


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--adb=/none"], "--adb=/none is no program"),
        (["--serial=X"], "device 'X' not found"),
    ],
)
def test_wrong_flags(server, flags, message):
    done = program(*flags)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
