"""One file per client; each is a program of its own.

A Python driver is a module that `asv_bench.compare.child` runs; `asv_bench.compare.job` says what it must define.
A C, Go or JavaScript driver speaks the protocol itself: it is started as `DRIVER describe` or as
`DRIVER run key=value ...` with the fields of `job.Task`, and prints JSON objects on standard output, one per line. The
last one counts:

    {"event": "described", "title", "version", "entries": [...], "not_possible": {kind: reason}}
    {"event": "measured", "messages", "seconds", "cpu_seconds", "peak_rss_bytes", "latency_p50_s", "latency_p99_s"}
    {"event": "failed", "reason"}

An entry has "kind", "how", "share" and, if need be, "cases", as `job.Entry`. Anything else on standard output is an
error. Standard error is shown when the driver fails.
"""

from __future__ import annotations
