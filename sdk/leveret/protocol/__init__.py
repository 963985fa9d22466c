"""The AMQP 0-9-1 conversation without I/O: no sockets, no event loop, no clock (time is passed in)."""
