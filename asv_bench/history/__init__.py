"""What a message cost at each commit that mattered: `make history`; see docs/speed-history.md."""
