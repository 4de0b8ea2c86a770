"""Facts of this build: flavour, compiler, Cython version, and the HTTP/2 library that it is linked with."""

cdef extern from *:
    """
    #include <nghttp2/nghttp2.h>
    #ifdef __SANITIZE_ADDRESS__
    #define METASTORE_ASAN_BUILD 1
    #else
    #define METASTORE_ASAN_BUILD 0
    #endif
    #ifdef __clang__
    #define METASTORE_COMPILER "clang " __VERSION__
    #else
    #define METASTORE_COMPILER "gcc " __VERSION__
    #endif
    """
    const int METASTORE_DEBUG_BUILD
    const int METASTORE_ASAN_BUILD
    const char* METASTORE_COMPILER
    const unsigned int CYTHON_HEX_VERSION
    const char* NGHTTP2_VERSION
    ctypedef struct nghttp2_info:
        const char* version_str
    nghttp2_info* nghttp2_version(int least_version)


cdef object cython_version():
    """The version text, such as "3.3.1", from CYTHON_HEX_VERSION (one byte each: major, minor, micro, level)."""
    cdef unsigned int value = CYTHON_HEX_VERSION
    return f"{value >> 24}.{(value >> 16) & 0xFF}.{(value >> 8) & 0xFF}"


def build_info():
    """Return the facts of this build as a dict; see `metastore._core.build_info`."""
    cdef nghttp2_info* loaded = nghttp2_version(0)
    return {
        "flavour": "asan" if METASTORE_ASAN_BUILD else "debug" if METASTORE_DEBUG_BUILD else "release",
        "compiler": METASTORE_COMPILER.decode(),
        "cython": cython_version(),
        "nghttp2": loaded.version_str.decode(),
        "nghttp2_headers": NGHTTP2_VERSION.decode(),
    }
