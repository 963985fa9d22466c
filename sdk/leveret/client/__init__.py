"""What a user holds first: the client, its connections, and what is made on them."""

from __future__ import annotations
