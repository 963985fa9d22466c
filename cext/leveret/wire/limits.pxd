# Limits that hold until a caller sets others.
cdef enum:
    # How deep tables and arrays may be nested: deeper ones are an attack, or a mistake.
    DEFAULT_TABLE_DEPTH = 32
    # How many values one table and all tables in it may hold: each costs memory many times its bytes.
    DEFAULT_TABLE_ENTRIES = 16384
    # Before tune no frame may be larger (AMQP 0-9-1 section 4.2.3).
    DEFAULT_FRAME_MAX_BEFORE_TUNE = 4096
    DEFAULT_MAX_BODY_SIZE = 67108864
