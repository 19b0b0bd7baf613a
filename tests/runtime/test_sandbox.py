"""What a locked-in process can still do, tried for real in a child."""

from __future__ import annotations

import json
import struct
import subprocess
import sys

import pytest

from llmesh.runtime import landlock, seccomp
from llmesh.runtime.sandbox import SandboxLevel

CHILD = """
import ctypes, json, os, platform, resource, socket, subprocess, sys, threading
from pathlib import Path
from llmesh.runtime.sandbox import enter

folder, parent = Path(sys.argv[1]), os.getppid()
level = enter([folder], 3 << 30)

def allowed(attempt):
    try:
        attempt()
    except (OSError, MemoryError):
        return False
    return True

def queued():
    only_on_linux()
    # Signal 0 only asks whether it may.
    number = 129 if platform.machine() == "x86_64" else 138
    said = (ctypes.c_int * 32)(0, 0, -1)  # SI_QUEUE
    if ctypes.CDLL(None, use_errno=True).syscall(number, parent, 0, said) != 0:
        raise OSError(ctypes.get_errno(), "refused")

def limits_of_others():
    only_on_linux()
    resource.prlimit(parent, resource.RLIMIT_NOFILE)

def only_on_linux():
    if sys.platform != "linux":
        raise OSError

ran = []
thread = threading.Thread(target=ran.append, args=(1,))
thread.start(); thread.join()
print(json.dumps({
    "level": int(level),
    "own file": allowed(lambda: (folder / "own").read_bytes()),
    "other file": allowed(lambda: (folder.parent / "other").read_bytes()),
    "library": allowed(lambda: __import__("sqlite3")),
    "write": allowed(lambda: (folder / "new").write_bytes(b"x")),
    "remove": allowed(lambda: (folder / "own").unlink()),
    "socket": allowed(socket.socket),
    "program": allowed(lambda: subprocess.run(["/bin/true"])),
    "fork": allowed(os.fork),
    "signal": allowed(lambda: os.kill(parent, 0)),
    "queued signal": allowed(queued),
    "limits of others": allowed(limits_of_others),
    "own limits": allowed(lambda: resource.getrlimit(resource.RLIMIT_NOFILE)),
    "memory": allowed(lambda: bytearray(4 << 30)),
    "thread": ran == [1],
}))
"""


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    folder = tmp_path_factory.mktemp("sandbox")
    (folder / "bundle").mkdir()
    (folder / "bundle" / "own").write_text("mine")
    (folder / "other").write_text("not mine")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder / "bundle")], capture_output=True, text=True, check=True
    )
    result: dict[str, int] = json.loads(done.stdout)
    return result


def test_what_a_model_needs_stays(tried: dict[str, int]) -> None:
    assert tried["own file"]
    assert tried["library"]
    assert tried["thread"]
    assert tried["own limits"]


def test_the_level_says_what_is_gone(tried: dict[str, int]) -> None:
    expected = SandboxLevel.CONFINED if landlock.abi() and seccomp.available() else tried["level"]
    assert tried["level"] == expected
    if tried["level"] >= SandboxLevel.LIMITS:
        assert not tried["memory"]
        assert not tried["write"]
    if tried["level"] >= SandboxLevel.FILTERED:
        others = ("signal", "queued signal", "limits of others")
        assert not any(tried[what] for what in ("socket", "program", "fork", *others))
    if tried["level"] >= SandboxLevel.CONFINED:
        assert not any(tried[what] for what in ("other file", "remove"))


def run(program: bytes, number: int, arch: int, argument: int = 0) -> int:
    """A classic BPF machine, as much of it as the filter uses."""
    data = struct.pack("=iIQQ", number, arch, 0, argument)
    steps = [struct.unpack_from("=HBBI", program, i) for i in range(0, len(program), 8)]
    at = accumulator = 0
    while True:
        code, if_true, if_false, operand = steps[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, operand)
        elif code == 0x06:
            return operand
        else:
            test = {0x15: accumulator == operand, 0x35: accumulator >= operand, 0x45: accumulator & operand}
            at += if_true if test[code] else if_false


ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x50001, 0x50026


@pytest.mark.parametrize(
    ("machine", "arch", "read", "socket", "clone", "tgkill", "prlimit"),
    [("x86_64", 0xC000003E, 0, 41, 56, 234, 302), ("aarch64", 0xC00000B7, 63, 198, 220, 131, 261)],
)
def test_the_filter_on_each_processor(
    machine: str, arch: int, read: int, socket: int, clone: int, tgkill: int, prlimit: int
) -> None:
    program = seccomp.filter_program(machine, pid=77)
    assert run(program, read, arch) == ALLOW
    assert run(program, socket, arch) == EPERM
    assert run(program, socket, arch=1) == EPERM
    assert run(program, 0x40000000 + read, arch) == EPERM
    assert run(program, clone, arch, argument=17) == EPERM
    assert run(program, clone, arch, argument=0x00010000 | 17) == ALLOW
    assert run(program, 435, arch) == ENOSYS
    assert run(program, tgkill, arch, argument=77) == ALLOW
    assert run(program, tgkill, arch, argument=78) == EPERM
    assert run(program, prlimit, arch, argument=0) == ALLOW
    assert run(program, prlimit, arch, argument=78) == EPERM


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_listed_call_is_refused_and_no_other(machine: str) -> None:
    program = seccomp.filter_program(machine, pid=77)
    which, arch = (0, 0xC000003E) if machine == "x86_64" else (1, 0xC00000B7)
    refused = {pair[which] for pair in seccomp._REFUSED.values()}
    special = {435, (56, 220)[which], (234, 131)[which], (302, 261)[which]}
    for number in range(600):
        if number not in special:
            assert run(program, number, arch) == (EPERM if number in refused else ALLOW)


def test_machines_without_landlock_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert landlock.abi() == 0
    assert not seccomp.available()


def test_paths_that_do_not_exist_are_passed_over() -> None:
    program = (
        "from pathlib import Path; from llmesh.runtime import landlock; landlock.restrict([Path('/no/such')])"
    )
    if landlock.abi():
        subprocess.run([sys.executable, "-c", program], check=True)
