from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

cdef extern from "Python.h":
    int _PyBytes_Resize(PyObject** op, Py_ssize_t newsize) except -1
    Py_ssize_t Py_REFCNT(PyObject*) noexcept
    void _drop "Py_DECREF"(PyObject*) noexcept
    PyObject* PyList_GET_ITEM(object list, Py_ssize_t i) noexcept


# Resizes a bytes object under construction. Takes over the caller's reference in `raw`, also when it fails.
cdef inline object resize_bytes(PyObject* raw, Py_ssize_t used, Py_ssize_t size):
    cdef object block
    if Py_REFCNT(raw) == 1:
        # _PyBytes_Resize takes the reference over. On failure it frees the object.
        _PyBytes_Resize(&raw, size)
        block = <object>raw
        _drop(raw)
        return block
    # A leak checker holds the object as well (gc.get_referents). Copy it, and leave the old one to the checker.
    try:
        block = PyBytes_FromStringAndSize(NULL, size)
        memcpy(PyBytes_AS_STRING(block), PyBytes_AS_STRING(<object>raw), min(used, size))
    finally:
        _drop(raw)
    return block


cdef extern from *:
    """
    /* Without a GIL, a reference count of one does not prove that no other thread holds the object. */
    #ifdef Py_GIL_DISABLED
    #define LV_POOLS_BODIES 0
    #else
    #define LV_POOLS_BODIES 1
    #endif
    """
    bint POOLS_BODIES "LV_POOLS_BODIES"

cdef extern from *:
    """
    /* Sets the size of a bytes object within its memory. The caller holds the only reference. Does what
       _PyBytes_Resize does, without asking the allocator. */
    static CYTHON_INLINE void lv_set_bytes_size(PyObject *block, Py_ssize_t size) {
        Py_SET_SIZE((PyVarObject *)block, size);
        PyBytes_AS_STRING(block)[size] = 0;
    _Py_COMP_DIAG_PUSH
    _Py_COMP_DIAG_IGNORE_DEPR_DECLS
        ((PyBytesObject *)block)->ob_shash = -1;
    _Py_COMP_DIAG_POP
    }
    """
    void set_bytes_size "lv_set_bytes_size"(object block, Py_ssize_t size) noexcept


cdef class RecvBuffer:
    cdef object store
    cdef object view
    cdef uint8_t* data
    cdef Py_ssize_t start
    cdef Py_ssize_t end
    cdef Py_ssize_t capacity
    cdef Py_ssize_t most
    # Reads in a row that the first buffer would have had room for.
    cdef Py_ssize_t calm
    # The last read took all that was offered, so there may be more.
    cdef bint filled
    cdef readonly uint64_t received_bytes

    cdef int allocate(self, Py_ssize_t capacity) except -1
    cdef int release(self) except -1
    cdef int make_room(self, Py_ssize_t n) except -1


cdef class SendBuffer:
    cdef object block
    cdef list spares
    cdef list pieces
    cdef Py_ssize_t piece_bytes
    cdef uint8_t* base
    cdef Py_ssize_t used
    cdef Py_ssize_t room
    cdef Py_ssize_t hint
    cdef Py_ssize_t full_room
    cdef readonly bint in_pieces
    cdef readonly Py_ssize_t flush_bytes
    cdef readonly uint64_t sent_bytes
    cdef object on_data
    cdef object on_full
    cdef public bint paused
    cdef public bint blocked
    # The caller that appends now flushes as well, so `on_data` is not called.
    cdef bint attended

    cdef int grow(self, Py_ssize_t n) except -1
    cdef uint8_t* reserve(self, Py_ssize_t n) except NULL
    cdef int commit(self, Py_ssize_t n) except -1
    cdef object start_block(self, Py_ssize_t room)
    cdef object end_block(self)
    cdef list seal(self)
    cdef int splice(self, list pieces, Py_ssize_t n) except -1
    cdef int call(self, callback) except -1


# The memory of a received body. The pool holds one reference.
cdef struct BodyBlock:
    PyObject* bytes
    Py_ssize_t room
    uint64_t turn


cdef class BodyPool:
    cdef readonly Py_ssize_t max_blocks
    cdef readonly Py_ssize_t max_bytes
    cdef readonly Py_ssize_t pooled_bytes
    cdef readonly uint64_t hits
    cdef readonly uint64_t misses
    cdef BodyBlock* blocks
    cdef Py_ssize_t count

    cdef uint64_t room_for(self, uint64_t size) noexcept
    cdef object take(self, uint64_t size)
    cdef int keep(self, object block, Py_ssize_t room) except -1
    cdef bint droppable(self, BodyBlock* block) noexcept
    cdef int drop(self, Py_ssize_t i) noexcept
