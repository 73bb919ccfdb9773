"""Which folder is which package, and the native library; everything else about the package is in pyproject.toml.

The Triton kernels lie in `kernels/` and are imported as `altclip_fast.kernels`. That folder has no
`__init__.py`, so that it is never installed as `kernels`: another well-known package has that name. In the same way
`benchmarks/` is installed as `altclip_fast.benchmarks`, which `altclip-fast bench` runs.

The native library is built by ninja with the compiler that $CXX names (else c++). It needs torch and ninja where pip
runs: use --no-build-isolation. Without them, without a compiler, or with ALTCLIP_FAST_NATIVE=0, the package installs
as pure Python, says so once, and works.

The CUDA kernels are a library of their own, built wherever nvcc is found (in $CUDA_HOME/bin, else on the PATH), also
with a torch that has no CUDA and without a GPU. $ALTCLIP_FAST_CUDA_ARCHS names other architectures than
CUDA_ARCHITECTURES, separated by spaces, commas or semicolons.
"""

import importlib.util
import json
import os
import platform
import re
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
CUDA_LIBRARY = "altclip_fast_cuda"

FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror=return-type", "-Wno-psabi"]
# The oldest torch whose interface is used: one library serves it and all later ones.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma", "-mf16c"]
INSTRUCTION_SETS = {"portable": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    INSTRUCTION_SETS |= {
        "avx2": ["-mavx2", "-mfma", "-mf16c"],
        "avx512": AVX512,
        "avx512_bf16": [*AVX512, "-mavx512bf16", "-mavx512vnni"],
    }

CUDA_FLAGS = ["-O3", "-std=c++17", "-Xcompiler=-fPIC,-fvisibility=hidden", "-Xfatbin=-compress-all"]
CUDA_ARCHITECTURES = ["80", "90a"]
ELEMENTS = ["bfloat16", "float16"]  # and float32, which has mma.sync only


class BuildNative(build_ext):
    """Runs ninja; optional extensions, so that what is missing costs speed and not the installation."""

    def build_extension(self, ext):
        cuda = ext.name.endswith(CUDA_LIBRARY)
        missing = why_not()
        if cuda:
            if missing is not None:
                return  # said once, for the first library
            missing = why_no_cuda()
        if missing is None:
            try:
                self.build_with_ninja(Path(self.get_ext_fullpath(ext.name)), cuda)
                return
            except subprocess.CalledProcessError as error:
                missing = f"the build failed: {error}"
        lost = "CUDA library: GPUs have the Triton kernels" if cuda else "native library, which makes the CPU slower"
        print(f"altclip_fast: installed without its {lost}: {missing}")

    def build_with_ninja(self, target, cuda):
        # An editable installation keeps its objects: the next one makes only what has changed.
        kept = getattr(self, "editable_mode", False)
        work = (ROOT / "build" / "native" if kept else Path(self.build_temp)).resolve() / target.stem
        work.mkdir(parents=True, exist_ok=True)
        target = target.resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        text = cuda_ninja_file(target) if cuda else ninja_file(target)
        (work / "build.ninja").write_text(text, encoding="utf-8")
        subprocess.run([*ninja(), "-C", str(work)], check=True)
        if cuda:
            told = {"compiler": version([nvcc()])[-2], "flags": CUDA_FLAGS, "architectures": architectures()}
        else:
            told = {
                "compiler": version(shlex.split(compiler()))[0],
                "flags": FLAGS,
                "instruction_sets": list(INSTRUCTION_SETS),
            }
        target.with_suffix(".json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split("."))) + ".so"

    def get_outputs(self):
        """What was built, which may be nothing."""
        libraries = [Path(self.build_lib, self.get_ext_filename(ext.name)) for ext in self.extensions]
        files = [path for library in libraries for path in (library, library.with_suffix(".json"))]
        return [str(path) for path in files if path.exists()]

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


def version(command):
    told = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
    return told.splitlines()


def why_no_cuda():
    """What keeps the CUDA library from being built where the other one can be, or None."""
    if nvcc() is None:
        return "nvcc was not found in $CUDA_HOME/bin or on the PATH"
    unknown = [name for name in architectures() if not re.fullmatch(r"(8|9|1\d)\d|90a", name)]
    return f"ALTCLIP_FAST_CUDA_ARCHS has {unknown[0]!r}; 80, 86, 90a and their like are allowed" if unknown else None


def nvcc():
    at_home = Path(os.environ.get("CUDA_HOME", "/nowhere"), "bin", "nvcc")
    return str(at_home) if at_home.exists() else shutil.which("nvcc")


def architectures():
    return re.findall(r"[^\s,;]+", os.environ.get("ALTCLIP_FAST_CUDA_ARCHS", "")) or CUDA_ARCHITECTURES


def torch_folder(name):
    """As a command of ninja names a folder of torch."""
    return shlex.quote(str(Path(importlib.util.find_spec("torch").origin).parent / name)).replace("$", "$$")


def path(*parts):
    """As a build line of ninja names a file."""
    return re.sub(r"[$ :]", r"$\g<0>", str(Path(*parts)))


def ninja_file(target):
    """The same kernels for each instruction set, and the bindings."""
    lines = [
        f"cxx = {compiler()}",
        f"flags = {' '.join(FLAGS)}",
        "rule compile",
        "  command = $cxx $flags $extra -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = $cxx -shared $in -L{torch_folder('lib')} -ltorch -ltorch_cpu -lc10 -o $out",
    ]
    objects = []
    for name in ("bindings", "encoder", "similarity"):
        objects.append(f"{name}.o")
        lines.append(f"build {objects[-1]}: compile {path(CSRC.resolve(), f'{name}.cpp')}")
        lines.append(f"  extra = {TORCH_TARGET} -isystem {torch_folder('include')}")
    for name, flags in INSTRUCTION_SETS.items():
        objects.append(f"kernels_{name}.o")
        lines.append(f"build {objects[-1]}: compile {path(CSRC.resolve(), 'cpu', 'kernels.cpp')}")
        lines.append(f"  extra = -DISA={name} {' '.join(flags)}")
    return "\n".join([*lines, f"build {path(target)}: link {' '.join(objects)}", ""])


def cuda_ninja_file(target):
    """The kernels for each element type, and their bindings. What wgmma serves on sm_90a needs no mma.sync there."""
    plain = [name for name in architectures() if name != "90a"]
    wgmma = "90a" in architectures()
    lowest = min(plain, key=int, default="90")

    def code(names, ptx=True):
        flags = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in names]
        return " ".join([*flags, *([f"-gencode=arch=compute_{lowest},code=compute_{lowest}"] if ptx else [])])

    flags = f"{' '.join(FLAGS)} {TORCH_TARGET} -isystem {torch_folder('include')}"
    lines = [
        f"nvcc = {shlex.quote(nvcc())} -ccbin {shlex.quote(shlex.split(compiler())[0])}",
        f"cxx = {compiler()}",
        "rule compile",
        f"  command = $cxx {flags} -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule compile_cuda",
        f"  command = $nvcc {' '.join(CUDA_FLAGS)} $extra -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = $nvcc -shared -cudart static $in -L{torch_folder('lib')} -ltorch -ltorch_cpu -lc10 -o $out",
        f"build bindings_cuda.o: compile {path(CSRC.resolve(), 'bindings_cuda.cpp')}",
    ]
    objects = ["bindings_cuda.o"]

    def build(source, extra, element=None):
        objects.append(f"{source}_{element}.o" if element else f"{source}.o")
        lines.append(f"build {objects[-1]}: compile_cuda {path(CSRC.resolve(), 'cuda', f'{source}.cu')}")
        lines.append(f"  extra = {extra}" + (f" -DELEMENT={element}" if element else ""))

    for element in ELEMENTS if wgmma else []:
        build("contrastive_wgmma", code(["90a"], ptx=False), element)
    for element in ELEMENTS:
        build("contrastive_mma", code(plain), element)
    build("contrastive_mma", code(architectures()), "float32")
    build("contrastive_rows", code(architectures()))
    build("contrastive", f"{code(architectures())} -DWGMMA={int(wgmma)}")
    return "\n".join([*lines, f"build {path(target)}: link {' '.join(objects)}", ""])


packages = find_packages(include=["altclip_fast", "altclip_fast.*"])
package_dir = {}
for folder in ("kernels", "benchmarks"):
    if (ROOT / folder).is_dir():
        packages.append(f"altclip_fast.{folder}")
        package_dir[f"altclip_fast.{folder}"] = folder

setup(
    packages=packages,
    package_dir=package_dir,
    package_data={
        "altclip_fast": ["py.typed", "*.json", "embedded/**/*"],
        "altclip_fast.kernels": ["tuned/*.json"],
    },
    ext_modules=[Extension(f"altclip_fast.{name}", sources=[]) for name in (LIBRARY, CUDA_LIBRARY)],
    cmdclass={"build_ext": BuildNative},
)
