"""Ten minutes of faults, and the books that show that nothing was lost: `make faults` (see docs/long-runs.md).

`plan` draws the faults from a seed. `attacks` makes them, on the broker and with `leveret.testing.FaultProxy`.
`service` is the client, in a process of its own, with default settings. `ledger` has what it says that it published and
handled. `run` is the program.
"""
