"""The extension modules; everything else about the distribution is in pyproject.toml.

Environment:
    LEVERET_BUILD: `release` (default), `quick` (not optimized, compiles sooner), `trace` (line tracing for coverage) or
        `asan` (address and undefined-behaviour sanitizers; run with libasan preloaded). `make coverage` and `make asan`
        build the last two under build/.
    LEVERET_ANNOTATE: `1` writes Cython's annotated HTML beside the C files in build/.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

HARDENING = ["-fvisibility=hidden", "-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
# Without the warnings that generated C cannot avoid; the rest of -Wall -Wextra is for our own code.
WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-missing-field-initializers", "-Wno-cast-function-type"]
SANITIZE = ["-fsanitize=address,undefined"]
MODES = {
    "release": ["-O3", "-g0", "-DNDEBUG", *HARDENING],
    "quick": ["-O0", "-g0", "-DNDEBUG"],
    "trace": ["-Og", "-g", "-DCYTHON_TRACE=1", "-DCYTHON_TRACE_NOGIL=1"],
    "asan": ["-O1", "-g", "-fno-omit-frame-pointer", *SANITIZE],
}
DIRECTIVES = {
    "language_level": 3,
    "embedsignature": True,
    "binding": True,
    "auto_pickle": False,
    "cdivision": True,
    "boundscheck": False,  # the sources check lengths themselves, before they read
    "wraparound": False,
    "initializedcheck": False,
}

#: Each source is built into the module of the same name: cext/leveret/wire/buffers.pyx is leveret.wire.buffers.
NAMES = sorted(".".join(path.with_suffix("").parts[2:]) for path in Path("cext/leveret").rglob("*.pyx"))

mode = os.environ.get("LEVERET_BUILD", "release")
if mode not in MODES:
    sys.exit(f"LEVERET_BUILD={mode!r} is none of {', '.join(MODES)}")
extensions = [
    Extension(
        f"leveret.{name}",
        [f"cext/leveret/{name.replace('.', '/')}.pyx"],
        include_dirs=["cext"],
        extra_compile_args=[] if sys.platform == "win32" else MODES[mode] + WARNINGS,
        extra_link_args=SANITIZE if mode == "asan" else [],
    )
    for name in NAMES
]
modules = cythonize(
    extensions,
    include_path=["cext"],
    # Generated C stays out of the tree. Line tracing generates other C, which the next release build must not find.
    build_dir="build/trace/cython" if mode == "trace" else "build/cython",
    compiler_directives=DIRECTIVES | {"linetrace": mode == "trace"},
    annotate=os.environ.get("LEVERET_ANNOTATE") == "1",
)
setup(ext_modules=modules, options={"build_ext": {"parallel": os.cpu_count()}})
