"""The way to a phone, against a real adb server and a real adbd on an emulated Pixel."""

import collections
import dataclasses
import json
import os
import shutil
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
from benchmarks import benchmark_model, payload, phone, rig
from benchmarks import measurements as schema
from benchmarks.handset import Foreign, GoldenMismatch, Handset, LoaderFailed
from benchmarks.runner import local, schedules
from memvid_tf.errors import UserError

pixel = flagless.program("benchmarks.pixel")
ROOT = Path(__file__).parents[1]
FOLDER = "/data/local/tmp/memvid"


# ---- a real adb server --------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["newest", pytest.param("29", marks=pytest.mark.slow)])
def server(request, tmp_path_factory):
    """A real adb, of either generation, with a server of its own, which sees nothing else."""
    try:
        program = (
            adb_lib.find_adb()
            if request.param == "newest"
            else rig.adb_29(tmp_path_factory.mktemp("adb29"))
        )
    except UserError as error:
        pytest.skip(f"no adb of generation {request.param}: {error}")
    with rig.server(program):
        yield program


def test_no_device_unauthorized_and_offline(server):
    rig.disconnect(server)
    with pytest.raises(adb_lib.NoDevice, match="no devices"):
        adb_lib.pick(server)
    with rig.listener(rig.never_accepts_the_key) as address:
        rig.connect(server, address)
        with pytest.raises(adb_lib.Unauthorized, match="accept the RSA key"):
            adb_lib.pick(server, address)
        rig.disconnect(server)
    with rig.listener(rig.never_answers) as address:
        thread = threading.Thread(target=rig.connect, args=(server, address))
        thread.start()  # adb itself waits some seconds for an answer
        deadline = time.monotonic() + 20
        while address not in adb_lib.devices(server) and time.monotonic() < deadline:
            time.sleep(0.1)
        with pytest.raises(adb_lib.Offline, match="adb reconnect"):
            adb_lib.pick(server, address)
        with pytest.raises(adb_lib.NoDevice, match=r"\(offline\).*device 'other' not found"):
            adb_lib.pick(server, "other")
        rig.disconnect(server)
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


@pytest.fixture
def cable(server, address):
    """A device behind a cable; it keeps what was pushed before."""
    rig.disconnect(server)
    wire = rig.Cable(address)
    with rig.listener(wire) as where:
        wire.adb = rig.connected(server, where)
        rig.play_nothing(wire.adb)
        yield wire
    rig.disconnect(server)


def handset(cable, parts, **settings):
    return Handset(cable.adb, parts, FOLDER, **settings)


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
            adb = rig.connected(server, where)
            device = Handset(adb, parts, FOLDER)
            assert "7 of 7 files pushed" in device.prepare()
            assert "12 golden tensors" in device.check_goldens(bundle)
            result, files = device.run(job, None)
            assert len(result["latency_us"]) == 20 and len(files[schedules.RECORD]) == len(expected)
            assert not phone.describe(adb)["physical"]
            assert "0 of 7 files pushed" in Handset(adb, parts, FOLDER).prepare()
    rig.disconnect(server)


def test_two_devices_need_a_name(server, address):
    with pixel.booted() as other:
        rig.connect(server, address)
        rig.connect(server, other)
        with pytest.raises(adb_lib.ManyDevices, match="--serial"):
            adb_lib.pick(server)
        assert adb_lib.pick(server, other).serial == other
    rig.disconnect(server)


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
    cut = threading.Timer(2.0, cable.cut)
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
        adb = rig.connected(server, where)
        device = Handset(adb, parts, FOLDER, reconnect_s=2.0)
        device.prepare()
    start = time.monotonic()
    with pytest.raises(adb_lib.AdbError, match=where):
        device.run(f1_job(bundle), None)
    assert time.monotonic() - start < 60
    rig.disconnect(server)


def test_a_full_disk(server, parts, address):
    with pixel.booted(data_size="4m") as where:
        adb = rig.connected(server, where)
        with pytest.raises(adb_lib.NoSpace, match="free some space below /data/local/tmp"):
            Handset(adb, parts, FOLDER).prepare()
    rig.disconnect(server)


def test_our_folder_and_nothing_else_is_removed(cable, parts):
    cable.adb.check("mkdir -p /data/local/tmp/theirs && echo x >/data/local/tmp/theirs/photo")
    small = payload.Payload({n: parts.files[n] for n in (payload.RUNNER, payload.LITERT)})
    device = Handset(cable.adb, small, "/data/local/tmp/theirs")
    with pytest.raises(LoaderFailed):
        device.prepare()
    device.remove()
    assert cable.adb.check("ls -A /data/local/tmp/theirs") == "photo\n"
    cable.adb.check("cd /data/local/tmp/theirs && mkdir memvid_tf && mv photo memvid_tf/")
    with pytest.raises(Foreign, match="memvid_tf holds files that are not ours"):
        device.prepare()
    device.remove()
    assert cable.adb.check("ls -A /data/local/tmp/theirs/memvid_tf") == "photo\n"


def test_a_missing_loader_is_named(cable, parts):
    less = {n: p for n, p in parts.files.items() if n != payload.LOADER}
    with pytest.raises(LoaderFailed, match=r"ld-linux-aarch64.so.1 does not run \(code 127\)"):
        Handset(cable.adb, payload.Payload(less), f"{FOLDER}_less").prepare()


def test_another_architecture_is_refused(cable):
    rig.play(cable.adb, "ro.product.cpu.abi", "x86_64")
    with pytest.raises(phone.WrongDevice, match="is x86_64, and the runner is built for arm64"):
        phone.describe(cable.adb)


def test_a_damaged_push_is_noticed(cable, parts, tmp_path):
    """An adb that flips a byte of what it pushes."""
    program = rig.damaging_adb(cable.adb._program, tmp_path)
    damaged = adb_lib.Adb(program, cable.adb.serial)
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
    assert f"--graph={model} --num_threads=2 --num_runs=50 --use_gpu=true" in text
    assert benchmark_model.parse(text)["latency_us"] == [24123.4]
    with pytest.raises(adb_lib.AdbError, match="exit code 127"):
        device.call("./none", None)


def name_of(address):
    return f"{pixel.MODEL} ({address})"


def start_program(*flags):
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.device", *flags],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip


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
    rig.play(cable.adb, "dumpsys.battery", "  temperature: 412")
    done = program("--doctor", "--keep", flags[0], flags[2])
    assert done.returncode == 0 and "battery      41.2 °C" in done.stdout, done.stderr
    assert (
        "emulated: times are not latencies" in done.stdout and "loader       glibc" in done.stdout
    )
    done = program(*flags, "--keep")
    assert done.returncode == 2 and "too hot to measure after 0 s: battery 41.2" in done.stderr
    assert "Traceback" not in done.stderr and "golden tensors" in done.stdout
    rig.play(cable.adb, "dumpsys.battery", "  temperature: 300")
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
    assert cable.adb.shell("ls /data/local/tmp/memvid_tf").code, "the folder is removed"
    assert json.loads(Path(f"{output}.json").read_text())["schema_version"] == 2


@pytest.mark.slow
def test_faults_are_played_by_a_command(server, parts, bundle, tmp_path):
    """The table of all of them is a results page; here a few of each sort."""
    wanted = ["no adb", "disconnect in run", "wrong ABI", "sensor unreadable"]
    if server != adb_lib.find_adb():
        pytest.skip("the command takes both generations itself")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.device_faults", f"--bundle={bundle.path}",
         f"--only={','.join(wanted)}", f"--output={tmp_path / 'faults'}"],
        cwd=ROOT, capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "faults.json").read_text())
    assert len(result["adb"]) == 2
    for rows in result["adb"].values():
        found = {row["fault"]: row for row in rows}
        assert list(found) == wanted
        assert all(row["finished_kept"] and not row["traceback"] for row in rows)
        assert [found[name]["exit_code"] for name in wanted] == [2, 0, 2, 0]
        assert [found[name]["kept"] for name in wanted] == [1, 2, 1, 2]
        assert "apt-get install adb" in found["no adb"]["message"]
        assert found["disconnect in run"]["cuts"] >= 1
        assert "is x86_64" in found["wrong ABI"]["message"]
        assert "battery_c" in found["sensor unreadable"]["missing"]
    assert "traceback shown: none" in (tmp_path / "faults.md").read_text()


@pytest.mark.slow
def test_two_devices_side_by_side_of_which_one_dies(server, address, parts, bundle, tmp_path):
    """The program measures both at once into one file. One dies in the middle: what it had measured
    is kept, the other's results are whole, and the exit code tells."""
    repeats, output = 8, tmp_path / "results"
    with pixel.booted("cortex-a710") as other:
        for where in (address, other):
            rig.connected(server, where)
        running = start_program(
            f"--adb={server}", f"--peer={bundle.graph_path('f1')}", f"--output={output}",
            f"--serial={address}", f"--serial={other}", "--threads=1", "--runs=20",
            f"--repeats={repeats}", "--reconnect_s=2", "--job_s=60",
        )  # fmt: skip
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and running.poll() is None:
            found = schema.Results.load(f"{output}.json", missing_ok=True).measurements
            if {m.device["name"] for m in found} == {name_of(address), name_of(other)}:
                break
            time.sleep(0.1)
    out, err = running.communicate(timeout=400)
    assert running.returncode == 2 and "Traceback" not in err
    assert other in err.splitlines()[-1] and address not in err.splitlines()[-1]
    kept = schema.Results.load(f"{output}.json").measurements
    counts = collections.Counter(m.device["name"] for m in kept)
    assert counts[name_of(address)] == repeats > counts[name_of(other)] > 0
    assert [m.repeat for m in kept if m.device["name"] == name_of(address)] == list(range(repeats))
    assert "written:" in out and f"{address}: glibc" in out and f"{other}: glibc" in out
    # They were measured at the same time: one had not ended when the other began.
    assert {m.device["name"] for m in kept[:repeats]} == {name_of(address), name_of(other)}
    rig.disconnect(server)


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
