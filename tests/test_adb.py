"""adb as it answers in reports: the right device, the right error, no wait that is too short."""

import stat
import time

import pytest

from benchmarks import adb as adb_lib

HEAD = "List of devices attached\n"


@pytest.mark.parametrize(
    "text, states",
    [
        (f"{HEAD}A1\tdevice\n\n", {"A1": "device"}),
        (f"{HEAD}A1\tdevice\r\nB2\toffline\r\n", {"A1": "device", "B2": "offline"}),
        (f"{HEAD}A1                     device usb:1-7 product:host model:M transport_id:3\n",
         {"A1": "device"}),
        (f"* daemon not running; starting now at tcp:5037\n{HEAD}A1\tdevice\n", {"A1": "device"}),
        (f"{HEAD}* daemon started successfully *\nA1\tdevice\n", {"A1": "device"}),
        (f"{HEAD}adb server version (32) doesn't match this client (36); killing...\nA1\tdevice\n",
         {"A1": "device"}),
        (f"{HEAD}adb-12 (2)._adb-tls-connect._tcp\tdevice\n",
         {"adb-12 (2)._adb-tls-connect._tcp": "device"}),
        (f"{HEAD}A1\tno permissions (missing udev rules? see [http://x]); transport_id:1\n",
         {"A1": "no permissions (missing udev rules? see [http://x]); transport_id:1"}),
        (f"{HEAD}????????????    no permissions\n", {"????????????": "no permissions"}),
        (HEAD, {}),
    ],
)  # fmt: skip
def test_every_form_of_the_list_is_read(text, states):
    assert adb_lib.parse_devices(text) == states


@pytest.fixture
def fake(tmp_path):
    """Makes an adb program of a shell script; `$1` is the command, without the serial."""

    def make(script):
        path = tmp_path / "adb"
        path.write_text(f'#!/bin/sh\n[ "$1" = -s ] && shift 2\n{script}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make


@pytest.mark.parametrize(
    "listed, kind, hint",
    [
        ("A1 unauthorized", adb_lib.Unauthorized, "accept the RSA key"),
        ("A1 authorizing", adb_lib.Offline, "wait a moment"),
        ("A1 connecting", adb_lib.Offline, "wait a moment"),
        ("A1 offline", adb_lib.Offline, "plug it in again"),
        ("A1 recovery", adb_lib.NotBooted, "adb reboot"),
        ("A1 sideload", adb_lib.NotBooted, "adb reboot"),
        ("A1 bootloader", adb_lib.NotBooted, "fastboot reboot"),
        ("A1 no permissions (missing udev rules?)", adb_lib.NoAccess, "udev rules"),
        ("A1 device\nB2 device", adb_lib.ManyDevices, "--serial"),
        ("A1 device\nB2 unauthorized", adb_lib.ManyDevices, "B2 (unauthorized)"),
        ("", adb_lib.NoDevice, "plug it in"),
    ],
)
def test_a_device_that_cannot_be_used_says_why(fake, listed, kind, hint):
    program = fake(f"cat <<'END'\n{HEAD}{listed}\nEND")
    with pytest.raises(adb_lib.AdbError) as caught:
        adb_lib.pick(program)
    assert type(caught.value) is kind and hint in str(caught.value)


def test_what_is_offline_does_not_count(fake):
    program = fake(f"cat <<'END'\n{HEAD}emulator-5554 offline\nA1 device\nEND")
    assert adb_lib.pick(program).serial == "A1"


@pytest.mark.parametrize(
    "script",
    [
        "echo 'error: cannot connect to daemon' >&2; exit 1",
        "echo '* failed to start daemon'",
        "echo 'something new' >&2; exit 1",
        f"echo '{HEAD.strip()}'; exit 1",
    ],
)
def test_a_server_that_does_not_start_is_no_missing_device(fake, script):
    with pytest.raises(adb_lib.NoServer, match="adb's server does not start"):
        adb_lib.pick(fake(script))


BANNER = "WARNING: linker: libx.so has text relocations. Please fix."


def test_lines_of_the_linker_are_no_answer(fake):
    device = adb_lib.Adb(fake(f"echo '{BANNER}'; echo arm64-v8a; echo memvid_rc=0"), "A1")
    assert device.check("getprop ro.product.cpu.abi") == "arm64-v8a\n"
    # The hash of "two\n", of a file that is read behind such a line.
    found = "27dd8ed44a83ff94d557f9fd0412ed5a8cbca69ea04922d88c01184a07300a5a"
    script = f"""echo '{BANNER}'
        case $1 in
        exec-out) echo two;;
        shell) echo '{found}  f'; echo memvid_rc=0;;
        esac"""
    device = adb_lib.Adb(fake(script), "A1")
    assert device.read("f") == b"two\n"


@pytest.mark.parametrize(
    "said, code, kind",
    [
        ("connection closed; EOF; device offline; unauthorized", 1, adb_lib.Failed),
        ("ERROR: /dev/kgsl-3d0: Permission denied", 1, adb_lib.Failed),
        ("mkdir: '/sys/x': Permission denied", 1, adb_lib.Denied),
        ("/system/bin/sh: can't create x: Read-only file system", 1, adb_lib.Denied),
        ("cat: write: No space left on device", 1, adb_lib.NoSpace),
    ],
)
def test_a_command_that_ended_is_judged_by_its_code(fake, said, code, kind):
    device = adb_lib.Adb(fake(f'echo "{said}"; echo memvid_rc={code}'), "A1")
    with pytest.raises(adb_lib.AdbError, match=f"exit code {code}: ") as caught:
        device.check("./benchmark_model")
    assert type(caught.value) is kind and not isinstance(caught.value, adb_lib.AWAY)
    assert said in adb_lib.Adb(fake(f'echo "{said}"; echo memvid_rc=0'), "A1").check("x")


@pytest.mark.parametrize(
    "script, kind",
    [
        ("echo 'No space left on device'", adb_lib.Disconnected),
        ("echo 'unauthorized' >&2", adb_lib.Disconnected),
        ("echo 'error: closed' >&2; exit 1", adb_lib.Disconnected),
        ("echo 'error: device offline' >&2; exit 1", adb_lib.Offline),
        ("echo \"adb: device 'A1' not found\" >&2; exit 1", adb_lib.NoDevice),
        ("true", adb_lib.Disconnected),
    ],
)
def test_a_command_that_did_not_end_was_cut_off(fake, script, kind):
    """What a command had printed until then says nothing; what adb says does."""
    with pytest.raises(adb_lib.AdbError) as caught:
        adb_lib.Adb(fake(script), "A1").shell("./runner")
    assert type(caught.value) is kind and isinstance(caught.value, adb_lib.AWAY)


def test_a_connect_that_hangs_does_not_end_the_wait(fake, tmp_path, monkeypatch):
    """Every connect hangs; the device is there at the second look."""
    monkeypatch.setattr(adb_lib, "CONNECT_S", 0.2)
    up = tmp_path / "up"
    program = fake(
        f"""case $1 in
        connect) exec sleep 60;;
        shell) [ -e {up} ] && echo memvid_rc=0; touch {up};;
        esac"""
    )
    assert adb_lib.Adb(program, "10.0.0.7:5555").wait(30.0)


def test_a_device_that_stays_away_is_waited_for_so_long(fake):
    start = time.monotonic()
    assert not adb_lib.Adb(fake("exit 1"), "10.0.0.7:5555").wait(1.0)
    assert time.monotonic() - start > 1.0
