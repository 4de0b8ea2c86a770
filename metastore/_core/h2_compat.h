/* Names of libnghttp2 that changed in 1.60 (ssize_t gave way to nghttp2_ssize), chosen at compile time. */
#ifndef METASTORE_H2_COMPAT_H
#define METASTORE_H2_COMPAT_H

#include <sys/types.h>
#include <nghttp2/nghttp2.h>

#if NGHTTP2_VERSION_NUM >= 0x013c00
typedef nghttp2_ssize ms_h2_ssize;
typedef nghttp2_data_provider2 ms_h2_data_provider;
#define ms_h2_mem_recv nghttp2_session_mem_recv2
#define ms_h2_mem_send nghttp2_session_mem_send2
#define ms_h2_submit_response nghttp2_submit_response2
#else
typedef ssize_t ms_h2_ssize;
typedef nghttp2_data_provider ms_h2_data_provider;
#define ms_h2_mem_recv nghttp2_session_mem_recv
#define ms_h2_mem_send nghttp2_session_mem_send
#define ms_h2_submit_response nghttp2_submit_response
#endif

/* Since 1.57, and in what distributions made of older ones (CVE-2023-44487), the library itself ends a connection that
 * resets more than 1,000 streams at once, whatever work was finished beside: we count resets ourselves. Weak, for the
 * version does not tell whether it is there. */
extern void nghttp2_option_set_stream_reset_rate_limit(nghttp2_option *, uint64_t, uint64_t) __attribute__((weak));

static inline void ms_h2_no_reset_limit(nghttp2_option *option) {
    if (nghttp2_option_set_stream_reset_rate_limit)
        nghttp2_option_set_stream_reset_rate_limit(option, (uint64_t)1 << 40, (uint64_t)1 << 40);
}

#endif
