"""The AMQP 0-9-1 conversation without input or output: no socket, no event loop, no clock (time is passed in).

`connection` and `channel` are the client's state machines with their tables, `commands` packs and unpacks methods,
`recovery` says which errors may mend and how long to wait, and `transitions` checks the tables. This room knows `wire`
and what is below. Method frames of a read come in and events go out; messages pass it by, except for answers to
basic.get.
"""

from __future__ import annotations
