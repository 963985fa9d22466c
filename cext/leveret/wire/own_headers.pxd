from libc.stdint cimport int64_t, uint32_t

cdef bytes with_resent(bytes raw, uint32_t resent)
cdef bytes with_sent_at(bytes raw, Py_ssize_t* value_at)
cdef int64_t sent_at_of(bytes raw) noexcept
cdef bytes sent_at_entry()
cdef bytes original_size_entry(int64_t size)
