# AMQP's numbers (AMQP 0-9-1 section 4.2.3 and the class grammar), and flags of settlements.
cdef enum:
    FRAME_METHOD = 1
    FRAME_HEADER = 2
    FRAME_BODY = 3
    FRAME_HEARTBEAT = 8
    FRAME_END = 0xCE
    # Bytes of a frame beside its payload: type, channel and size before it, the end octet behind it.
    FRAME_OVERHEAD = 8

cdef enum:
    CHANNEL = 20
    CHANNEL_OPEN = 10
    CHANNEL_OPEN_OK = 11
    CHANNEL_CLOSE = 40
    CHANNEL_CLOSE_OK = 41

cdef enum:
    BASIC = 60
    BASIC_PUBLISH = 40
    BASIC_RETURN = 50
    BASIC_DELIVER = 60
    BASIC_GET_OK = 71
    BASIC_ACK = 80
    BASIC_REJECT = 90
    BASIC_NACK = 120

cdef enum:
    SETTLE_MULTIPLE = 1
    SETTLE_NACK = 2
    SETTLE_REQUEUE = 4
