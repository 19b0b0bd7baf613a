"""Says in one clear block what this machine lacks for `pip install 'llmesh-network[node]'`.

libp2p brings fastecdsa, which is built from source: that takes a C compiler and the headers of
Python and GMP.  Run as `python3 -m llmesh.prerequisites` before the install; standard library only,
and old enough syntax to speak up on a Python that is too old.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

__all__ = ["main", "missing"]

OLDEST, NEWEST = (3, 11), (3, 13)
INSTALL = {
    "apt-get": "sudo apt-get install -y gcc libc6-dev libgmp-dev python3-dev python3-venv",
    "dnf": "sudo dnf install -y gcc gmp-devel python3-devel",
    # fastecdsa does not look where Homebrew puts things; the compiler does, when told.
    "brew": "xcode-select --install; brew install gmp;"
    ' export CPATH="$(brew --prefix)/include" LIBRARY_PATH="$(brew --prefix)/lib"',
}
PROBE = "#include <Python.h>\n#include <gmp.h>\nint main(void) { mpz_t n; mpz_init(n); return 0; }\n"


def missing(version: tuple[int, int]) -> list[str]:
    """What is missing, one line each; empty where the install will find all it needs."""
    return [fault for fault in (_python_fault(version), _venv_fault(), _compiler_fault()) if fault]


def main() -> int:
    """Print what is missing and the command that installs it; 0 if nothing is, else 2."""
    faults = missing((sys.version_info[0], sys.version_info[1]))
    if not faults:
        sys.stdout.write(f"Python {platform.python_version()}, C compiler and GMP headers: all there.\n")
        return 0
    sys.stderr.write("LLMESH cannot be installed here yet:\n")
    sys.stderr.writelines(f"  - {fault}\n" for fault in faults)
    sys.stderr.write(f"Install what is missing, then try again:\n  {_command()}\n")
    return 2


def _python_fault(version: tuple[int, int]) -> str:
    if OLDEST <= version <= NEWEST:
        return ""
    return f"Python 3.11, 3.12 or 3.13 is needed; this is {version[0]}.{version[1]} ({sys.executable})."


def _venv_fault() -> str:
    if importlib.util.find_spec("ensurepip") and importlib.util.find_spec("venv"):
        return ""
    return "Python's venv module is not installed."


def _compiler_fault() -> str:
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    found = shutil.which(compiler[0]) or shutil.which("gcc") or shutil.which("clang")
    if not found:
        return "No C compiler (gcc or clang) is installed."
    error = _compile([found, *compiler[1:]])
    if not error:
        return ""
    header = "GMP (gmp.h)" if "gmp" in error else "Python (Python.h)" if "Python.h" in error else ""
    what = f"The headers of {header} are not installed" if header else "The C compiler does not work here"
    return f"{what} (a test program did not build: {error.strip().splitlines()[0]})."


def _compile(compiler: list[str]) -> str:
    """Build and link the probe the way an extension is; what the compiler said if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.c"
        source.write_text(PROBE)
        flags = shlex.split(os.environ.get("CFLAGS", "")) + shlex.split(os.environ.get("LDFLAGS", ""))
        include = ["-I" + sysconfig.get_paths()["include"], "-I" + sysconfig.get_paths()["platinclude"]]
        command = [*compiler, *flags, *include, str(source)]
        done = subprocess.run(  # noqa: S603 - the compiler of this machine, on a text of ours
            [*command, "-lgmp", "-o", str(Path(folder) / "probe")],
            capture_output=True,
            text=True,
            check=False,
        )
    return "" if done.returncode == 0 else done.stderr or "it said nothing"


def _command() -> str:
    for tool, command in INSTALL.items():
        if shutil.which(tool):
            return command
    return "(your package manager: a C compiler, the GMP headers, the headers of Python 3.11 to 3.13)"


if __name__ == "__main__":
    sys.exit(main())
