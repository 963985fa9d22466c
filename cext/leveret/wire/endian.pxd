# Big-endian loads and stores that are safe on unaligned pointers.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    #define LV_16(x) (x)
    #define LV_32(x) (x)
    #define LV_64(x) (x)
    #else
    #define LV_16(x) __builtin_bswap16(x)
    #define LV_32(x) __builtin_bswap32(x)
    #define LV_64(x) __builtin_bswap64(x)
    #endif
    static inline uint16_t lv_get16(const uint8_t *p) { uint16_t v; memcpy(&v, p, 2); return LV_16(v); }
    static inline uint32_t lv_get32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return LV_32(v); }
    static inline uint64_t lv_get64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return LV_64(v); }
    static inline void lv_put16(uint8_t *p, uint16_t v) { v = LV_16(v); memcpy(p, &v, 2); }
    static inline void lv_put32(uint8_t *p, uint32_t v) { v = LV_32(v); memcpy(p, &v, 4); }
    static inline void lv_put64(uint8_t *p, uint64_t v) { v = LV_64(v); memcpy(p, &v, 8); }
    """
    uint16_t lv_get16(const uint8_t *p) noexcept nogil
    uint32_t lv_get32(const uint8_t *p) noexcept nogil
    uint64_t lv_get64(const uint8_t *p) noexcept nogil
    void lv_put16(uint8_t *p, uint16_t v) noexcept nogil
    void lv_put32(uint8_t *p, uint32_t v) noexcept nogil
    void lv_put64(uint8_t *p, uint64_t v) noexcept nogil
