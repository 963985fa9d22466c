"""`leveret doctor URL`: tries out what Leveret needs of a broker, and says what is missing and what to do about it.

`checks` has the table of checks, and runs it in its order. Each check is a function that takes a `Visit`
(the settings, the deadline, and what checks before it have found) and returns a `Finding`.
"""

from __future__ import annotations
