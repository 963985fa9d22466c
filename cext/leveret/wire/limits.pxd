# Default limits.
cdef enum:
    # The deepest nesting of tables and arrays. Deeper ones are an attack or a mistake.
    DEFAULT_TABLE_DEPTH = 32
    # The most values in one table and all tables in it. Each costs memory many times its bytes.
    DEFAULT_TABLE_ENTRIES = 16384
    # The largest frame before connection.tune (AMQP 0-9-1 section 4.2.3).
    DEFAULT_FRAME_MAX_BEFORE_TUNE = 4096
    DEFAULT_MAX_BODY_SIZE = 67108864
