"""What stands in for phones and their faults: private adb servers, a cable that can be cut, devices
that never accept a key or never answer, and an adb that spoils what it does.

The tests of the device path and `benchmarks.device_faults` play with it.
"""

import contextlib
import os
import platform
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import adb as adb_lib
from benchmarks import packages, pixel
from memvid_tf.errors import UserError

SERVER_PORT = "ANDROID_ADB_SERVER_PORT"
ADB_29 = (
    "adb", "android-libbase", "android-libboringssl", "android-libcutils", "android-liblog",
    "libusb-1.0-0",
)  # fmt: skip


def adb_29(folder: Path) -> str:
    """Debian 12's adb with its libraries, as a program in a folder.

    Raises:
      UserError: it cannot be had here.
    """
    if platform.machine() != "x86_64":
        raise UserError(f"its package is for x86_64, and this is {platform.machine()}")
    root = packages.fetch("bookworm", "amd64", ADB_29)
    libraries = root / "usr/lib/x86_64-linux-gnu"
    return _program(
        folder / "adb29",
        f"#!/bin/sh\nLD_LIBRARY_PATH={libraries}:{libraries}/android "
        f'exec {root}/usr/lib/android-sdk/platform-tools/adb "$@"\n',
    )


@contextlib.contextmanager
def server(program: str) -> Iterator[str]:
    """An adb with a server of its own, which sees nothing else; yields the program."""
    before = os.environ.get(SERVER_PORT)
    os.environ[SERVER_PORT] = str(pixel.free_port())
    try:
        yield program
    finally:
        subprocess.run([program, "kill-server"], capture_output=True, timeout=30, check=False)
        if before is None:
            del os.environ[SERVER_PORT]
        else:
            os.environ[SERVER_PORT] = before


def connect(program: str, address: str) -> None:
    """`adb connect`; what becomes of it `adb devices` says."""
    command = [program, "connect", address]
    subprocess.run(command, capture_output=True, timeout=30, check=False)


def disconnect(program: str) -> None:
    """`adb disconnect` from everything."""
    subprocess.run([program, "disconnect"], capture_output=True, timeout=30, check=False)


def connected(program: str, address: str) -> adb_lib.Adb:
    """A device that answers.

    Raises:
      Offline: it does not within half a minute.
    """
    connect(program, address)
    device = adb_lib.Adb(program, address)
    if not device.wait(30):
        raise adb_lib.Offline(f"{address} does not answer")
    return device


@contextlib.contextmanager
def listener(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A TCP server whose every connection runs `answer`; yields its address."""
    with socket.create_server(("127.0.0.1", pixel.free_port())) as listening:

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


def never_accepts_the_key(connection: socket.socket) -> None:
    """A device whose user has not accepted this computer."""
    with contextlib.suppress(OSError):
        while header := connection.recv(24, socket.MSG_WAITALL):
            command, kind, _, size, _, _ = struct.unpack("<4s5I", header)
            connection.recv(size, socket.MSG_WAITALL) if size else b""
            if command == b"CNXN" or (command == b"AUTH" and kind == 2):
                connection.sendall(_packet(b"AUTH", 1, 0, b"\x07" * 20))


def never_answers(connection: socket.socket) -> None:
    """A device that takes a connection and says nothing."""
    time.sleep(60)


def _packet(command: bytes, first: int, second: int, data: bytes) -> bytes:
    magic = struct.unpack("<I", command)[0] ^ 0xFFFFFFFF
    return struct.pack("<4s5I", command, first, second, len(data), sum(data), magic) + data


class Cable:
    """What lies between adb and a device, and can be cut; afterwards it is whole again.

    Attributes:
      budget: bytes "to" the device and "from" it until the cable is cut, None for never.
      trigger: cut `delay_s` after these bytes went to the device, None for never.
      stays_cut: whether it is never whole again.
      cuts: how often it was cut.
    """

    def __init__(self, target: str):
        self._host, port = target.split(":")
        self._port = int(port)
        self.budget: dict[str, int | None] = {"to": None, "from": None}
        self.trigger: bytes | None = None
        self.delay_s, self.stays_cut, self.cuts = 0.0, False, 0

    def __call__(self, connection: socket.socket) -> None:
        """Carries one connection; see `listener`."""
        if self.stays_cut and self.cuts:
            connection.close()
            return
        far_end = (self._host, self._port)
        with contextlib.suppress(OSError), socket.create_connection(far_end) as far:
            ends = [(connection, far, "to"), (far, connection, "from")]
            pumps = [threading.Thread(target=self._pump, args=end, daemon=True) for end in ends]
            for pump in pumps:
                pump.start()
            for pump in pumps:
                pump.join()

    def cut(self) -> None:
        """Cuts it as soon as anything goes over it."""
        self.budget.update({"to": 0, "from": 0})

    def _pump(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if way == "to" and self.trigger is not None and self.trigger in data:
                    self.trigger = None
                    threading.Timer(self.delay_s, self.cut).start()
                if self.budget[way] is not None:
                    self.budget[way] -= len(data)
                    if self.budget[way] < 0:
                        self.budget.update({"to": None, "from": None})
                        self.cuts += 1
                        break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def play(device: adb_lib.Adb, name: str, text: str) -> None:
    """Lets the emulated device's getprop or dumpsys say something; see `pixel.SCRIPTED`."""
    device.check(f"mkdir -p {pixel.SCRIPTED} && echo '{text}' > {pixel.SCRIPTED}/{name}")


def play_nothing(device: adb_lib.Adb) -> None:
    """Takes back what `play` said."""
    device.check(f"rm -rf {pixel.SCRIPTED}; mkdir -p {pixel.SCRIPTED}")


def damaging_adb(program: str, folder: Path) -> str:
    """An adb that flips a bit of what it pushes."""
    return _program(
        folder / "damaging_adb",
        f"""#!{sys.executable}
import os, sys
words = sys.argv[1:]
if "push" in words:
    place = words.index("push") + 1
    data = bytearray(open(words[place], "rb").read())
    data[7] ^= 1
    words[place] = {str(folder / "damaged")!r}
    open(words[place], "wb").write(data)
os.execv({program!r}, ["adb", *words])
""",
    )


def removing_adb(program: str, folder: Path, file: str) -> str:
    """An adb whose device has lost a file whenever a command would run it."""
    return _program(
        folder / "removing_adb",
        f"""#!{sys.executable}
import os, sys
words = [word.replace("./{file}", "rm -f {file}; ./{file}") for word in sys.argv[1:]]
os.execv({program!r}, ["adb", *words])
""",
    )


def version(program: str) -> str:
    """What an adb calls its version."""
    done = subprocess.run([program, "version"], capture_output=True, text=True, check=False)
    found = re.search(r"^Version (\S+)", done.stdout, re.MULTILINE)
    return found[1] if found else "unknown"


def _program(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)
