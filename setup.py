"""Which folder is which package, and the native library; everything else about the package is in pyproject.toml.

The Triton kernels lie in `kernels/` and are imported as `altclip_fast.kernels`. That folder has no
`__init__.py`, so that it is never installed as `kernels`: another well-known package has that name.

The native library is built by ninja with the compiler that $CXX names (else c++). It needs torch and ninja where pip
runs: use --no-build-isolation. Without them, without a compiler, or with ALTCLIP_FAST_NATIVE=0, the package installs
as pure Python, says so once, and works.
"""

import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
CSRC = ROOT / "csrc"
LIBRARY = "altclip_fast_native"

FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror=return-type"]
# The oldest torch whose interface is used: one library serves it and all later ones.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma", "-mf16c"]
INSTRUCTION_SETS = {"portable": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    INSTRUCTION_SETS |= {"avx2": ["-mavx2", "-mfma", "-mf16c"], "avx512": AVX512}
    INSTRUCTION_SETS |= {"avx512_bf16": [*AVX512, "-mavx512bf16"]}


class BuildNative(build_ext):
    """Runs ninja; an optional extension, so that what is missing costs speed and not the installation."""

    def build_extension(self, ext):
        missing = why_not()
        if missing is None:
            try:
                self.build_with_ninja(Path(self.get_ext_fullpath(ext.name)))
                return
            except subprocess.CalledProcessError as error:
                missing = f"the build failed: {error}"
        print(f"altclip_fast: installed without its native library, which makes the CPU slower: {missing}")

    def build_with_ninja(self, target):
        work = Path(self.build_temp).resolve()
        work.mkdir(parents=True, exist_ok=True)
        target = target.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        (work / "build.ninja").write_text(ninja_file(target), encoding="utf-8")
        subprocess.run([*ninja(), "-C", str(work)], check=True)
        told = {"compiler": compiler_version(), "flags": FLAGS, "instruction_sets": list(INSTRUCTION_SETS)}
        target.with_suffix(".json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split("."))) + ".so"

    def get_outputs(self):
        """What was built, which may be nothing."""
        library = Path(self.build_lib, self.get_ext_filename(f"altclip_fast.{LIBRARY}"))
        return [str(path) for path in (library, library.with_suffix(".json")) if path.exists()]

    def get_output_mapping(self):
        """Where a copy of it lies in an editable installation."""
        return {path: str(ROOT / Path(path).relative_to(self.build_lib)) for path in self.get_outputs()}

    def copy_extensions_to_source(self):
        for built, place in self.get_output_mapping().items():
            self.copy_file(built, place)


def why_not():
    """What keeps the native library from being built, or None."""
    if os.environ.get("ALTCLIP_FAST_NATIVE") == "0":
        return "ALTCLIP_FAST_NATIVE is 0"
    if shutil.which(shlex.split(compiler())[0]) is None:
        return f"there is no compiler {compiler()!r} (set CXX)"
    if ninja() is None:
        return "ninja is not installed"
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed where the build runs (use --no-build-isolation)"
    return None


def ninja():
    """The command; the package of that name is not on the PATH of an environment that is not activated."""
    if importlib.util.find_spec("ninja") is not None:
        return [sys.executable, "-m", "ninja"]
    return ["ninja"] if shutil.which("ninja") else None


def compiler():
    return os.environ.get("CXX", "c++")


def compiler_version():
    told = subprocess.run([*shlex.split(compiler()), "--version"], capture_output=True, text=True, check=True).stdout
    return told.splitlines()[0]


def ninja_file(target):
    """The same kernels for each instruction set, and the bindings."""
    torch = Path(importlib.util.find_spec("torch").origin).parent
    lines = [
        f"cxx = {compiler()}",
        f"flags = {' '.join(FLAGS)}",
        "rule compile",
        "  command = $cxx $flags $extra -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = $cxx -shared $in -L{torch / 'lib'} -ltorch -ltorch_cpu -lc10 -o $out",
        f"build bindings.o: compile {CSRC.resolve() / 'bindings.cpp'}",
        f"  extra = {TORCH_TARGET} -isystem {torch / 'include'}",
    ]
    objects = ["bindings.o"]
    for name, flags in INSTRUCTION_SETS.items():
        objects.append(f"kernels_{name}.o")
        lines.append(f"build {objects[-1]}: compile {CSRC.resolve() / 'cpu' / 'kernels.cpp'}")
        lines.append(f"  extra = -DISA={name} {' '.join(flags)}")
    return "\n".join([*lines, f"build {target}: link {' '.join(objects)}", ""])


packages = find_packages(include=["altclip_fast", "altclip_fast.*"])
package_dir = {}
if (ROOT / "kernels").is_dir():
    packages.append("altclip_fast.kernels")
    package_dir["altclip_fast.kernels"] = "kernels"

setup(
    packages=packages,
    package_dir=package_dir,
    package_data={
        "altclip_fast": ["py.typed", "*.json", "embedded/**/*"],
        "altclip_fast.kernels": ["tuned/*.json"],
    },
    ext_modules=[Extension(f"altclip_fast.{LIBRARY}", sources=[])],
    cmdclass={"build_ext": BuildNative},
)
