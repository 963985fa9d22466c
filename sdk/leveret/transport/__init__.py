"""The client's only sockets: dialing, the stream of frames, the event loop, and tasks that wait."""

from __future__ import annotations
