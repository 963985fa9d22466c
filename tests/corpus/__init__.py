"""Bytes for the codec's tests: frames built by hand, generated streams, and malformed input with its story."""
