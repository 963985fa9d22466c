"""Help for long-running processes: object pools, a policy for the garbage collector, waiting for tasks.

Each module stands for itself and may know settings and errors; `gc_policy` shows its counts to a client's monitor. A
handler may take an object from a pool for each message; nothing else here is on a message's way.
"""

from __future__ import annotations
