cdef class BodyCompressor:
    cdef readonly str encoding
    cdef readonly long long compressed
    cdef readonly long long incompressible
    cdef readonly long long original_bytes
    cdef readonly long long compressed_bytes
    # The compressor's own function.
    cdef object function
    cdef str name
    cdef str who
    cdef Py_ssize_t threshold
    cdef double ratio
    cdef Py_ssize_t max_size
    cdef Py_ssize_t max_uncompressed

    cpdef bytes compress(self, bytes body)
