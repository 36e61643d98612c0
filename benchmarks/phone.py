"""What is known about a device, and what is done to it so that a number can be defended.

A sensor that cannot be read is None and is never waited for. Settings that are changed are put back.
"""

import contextlib
import dataclasses
import re
import time
from collections.abc import Callable, Iterator

from benchmarks.adb import Adb, AdbError
from benchmarks.payload import ABI
from memvid_tf.errors import UserError

MAX_BATTERY_C = 37.0  # a battery warmer than this is a phone that throttles soon
FREQUENCIES = "/sys/devices/system/cpu/cpu*/cpufreq"
PROPERTIES = {
    "model": "ro.product.model",
    "soc": "ro.soc.model",
    "fingerprint": "ro.build.fingerprint",
    "android": "ro.build.version.release",
    "abi": "ro.product.cpu.abi",
}


class TooHot(UserError):
    """The device did not cool down in time."""


class WrongDevice(UserError):
    """A device that the payload cannot run on."""


@dataclasses.dataclass(frozen=True)
class Sensors:
    """Readings; None where there is none.

    Attributes:
      battery_c: temperature of the battery.
      thermal_status: Android's, 0 for none to 6 for shutdown.
      hal_c: temperatures of the thermal HAL by name, empty where it is not ready.
      clocks_khz: current clock of each core.
    """

    battery_c: float | None
    thermal_status: int | None
    hal_c: dict[str, float]
    clocks_khz: dict[str, int]

    @property
    def missing(self) -> list[str]:
        """Names of what could not be read."""
        return [name for name, value in vars(self).items() if value is None or value == {}]


def parse_battery(text: str) -> float | None:
    """°C in what `dumpsys battery` says, which is in tenths."""
    found = re.search(r"^\s*temperature:\s*(-?\d+)\s*$", text, re.MULTILINE)
    return int(found[1]) / 10 if found else None


def parse_thermal(text: str) -> tuple[int | None, dict[str, float]]:
    """Status and current temperatures in what `dumpsys thermalservice` says.

    The cached section is ignored: its values may be of any age. The status is Android's own and is
    known without the HAL, which gives the temperatures.
    """
    status = re.search(r"Thermal Status:\s*(\d+)", text)
    _, _, current = text.partition("Current temperatures from HAL:")
    current = current.split("Current cooling devices", 1)[0]
    found = re.findall(r"Temperature\{mValue=(-?[\d.]+),[^}]*?mName=([^,}]+)", current)
    return int(status[1]) if status else None, {name: float(value) for value, name in found}


def read_frequencies(adb: Adb, name: str) -> dict[str, int]:
    """kHz by core ("cpu0") of one file of cpufreq; empty where they are not readable."""
    done = adb.shell(f"grep -H . {FREQUENCIES}/{name} 2>/dev/null")
    return {core: int(khz) for core, khz in re.findall(r"/(cpu\d+)/\S*:(\d+)", done.stdout)}


def sensors(adb: Adb) -> Sensors:
    """All readings of a device."""
    battery = adb.shell("dumpsys battery 2>/dev/null").stdout
    status, hal = parse_thermal(adb.shell("dumpsys thermalservice 2>/dev/null").stdout)
    return Sensors(parse_battery(battery), status, hal, read_frequencies(adb, "scaling_cur_freq"))


def fastest_mask(max_khz: dict[str, int], cores: int) -> str | None:
    """Hexadecimal mask of the fastest clusters that together have at least `cores` cores; None where
    the clocks are not known."""
    chosen: list[int] = []
    for khz in sorted(set(max_khz.values()), reverse=True):
        if len(chosen) >= cores:
            break
        chosen += [int(name[3:]) for name, value in max_khz.items() if value == khz]
    return f"{sum(1 << core for core in chosen):x}" if chosen else None


def describe(adb: Adb) -> dict:
    """The device, as results name it.

    Raises:
      WrongDevice: another architecture.
    """
    facts = {key: adb.shell(f"getprop {name}").stdout.strip() for key, name in PROPERTIES.items()}
    if facts["abi"] != ABI:
        raise WrongDevice(
            f"device {adb.serial} is {facts['abi'] or 'of unknown ABI'}, and the runner is built "
            f"for {ABI}; use a 64-bit ARM device"
        )
    # qemu says so in the fingerprint or the SoC; Google's own emulator in the hardware's name.
    hardware = adb.shell("getprop ro.hardware").stdout.strip()
    words = " ".join((facts["fingerprint"], facts["soc"], facts["model"], hardware)).lower()
    physical = not re.search(r"emulat|qemu|ranchu|goldfish|generic_x86|sdk_gphone", words)
    return {"name": f"{facts['model']} ({adb.serial})", "physical": physical, **facts}


def wait_until_cool(
    adb: Adb,
    limit_s: float,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Sensors:
    """Readings of a device that is cool enough, waiting for it if need be.

    Raises:
      TooHot: it is not after `limit_s`.
    """
    deadline = clock() + limit_s
    while True:
        found = sensors(adb)
        hot = found.battery_c is not None and found.battery_c > MAX_BATTERY_C
        if not hot and not found.thermal_status:
            return found
        state = f"battery {found.battery_c} °C, thermal status {found.thermal_status}"
        if clock() >= deadline:
            raise TooHot(
                f"device {adb.serial} is too hot to measure after {limit_s:.0f} s: {state}, wanted at "
                f"most {MAX_BATTERY_C:g} °C and status 0; let it rest off the charger and run the "
                "same command again, what was measured is kept"
            )
        say(f"{adb.serial}: {state}; waiting for it to cool down")
        sleep(min(5.0, max(0.1, deadline - clock())))


@contextlib.contextmanager
def steady(adb: Adb) -> Iterator[bool]:
    """Android's fixed performance mode for as long as the block runs; yields whether it is allowed."""
    command = "cmd power set-fixed-performance-mode-enabled"
    allowed = adb.shell(f"{command} true 2>/dev/null").code == 0
    try:
        yield allowed
    finally:
        if allowed:
            with contextlib.suppress(AdbError):  # a device that is gone forgets it when it boots
                adb.shell(f"{command} false 2>/dev/null")
