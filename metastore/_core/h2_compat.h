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

#endif
