#!/bin/sh
# Makes sure that valgrind is installed, with the headers that counted programs are built against (asv_bench/benchmarks).
set -eu
. "$(dirname "$0")/packages.sh"

if ! command -v valgrind >/dev/null || ! printf '#include <valgrind/callgrind.h>\n' | ${CC:-cc} -E - >/dev/null 2>&1; then
    install_or_say "Instructions are counted with valgrind, which is missing or has no headers." valgrind
fi
