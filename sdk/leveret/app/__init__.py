"""Applications: handlers that are registered once, and a process that keeps their consumers running.

`App` (`app`) holds what was registered (`registration`), a run of it connects, supervises its consumers and shuts down
(`supervision`), and `process` makes a program of it, with signals. This room may know the client and every room below
it. A message never passes through it: it goes from its consumer straight to the handler.
"""

from __future__ import annotations
