/* CRC-32 (IEEE 802.3) by carry-less multiplication, for x86 processors that have PCLMULQDQ. After the method of
   V. Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction", Intel, 2009.

   The CRC of a message M is M * x^32 mod P over GF(2), with P = x^32 + x^26 + ... + 1. It does not change when a part
   of M is replaced by anything congruent to it mod P. So 128 bits A = H * x^64 + L that stand D bits before another
   128 bits need not stay there: they are added to those as H * (x^(D+64) mod P) + L * (x^D mod P), which is two
   multiplications of 64 by 32 bits and has fewer than 128 bits. Four such lanes go side by side (D = 512), for a
   multiplication takes several cycles but the next can start at once; in the end lane is added to lane (D = 128).
   The 128 bits that remain, and the rest of less than 16 bytes, go through the table of the caller.

   This CRC takes in the lowest bit of a byte first. So bit i of a register stands for x^(127-i), of a 64-bit half for
   x^(63-i), and H is the lower half. The product of two halves that are read like that comes out one bit too low:
   bit i stands for x^(126-i). As 128 bits it reads as the product times x, and the factors are made for one x less. */

#ifndef METASTORE_CRC_FOLD_H
#define METASTORE_CRC_FOLD_H

#include <stddef.h>
#include <stdint.h>

#define CRC_FOLD_MIN 64   /* bytes; the four lanes must be full */

#if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__))

#include <emmintrin.h>
#include <wmmintrin.h>

/* Factors for D = 512 and D = 128: {x^(D+63) mod P, x^(D-1) mod P}, for H and for L. Written once, by the import. */
static uint64_t crc_fold_far[2], crc_fold_near[2];

/* x^n mod P as a 64-bit half: x^0 is the highest bit of 32, times x is a shift down. */
static uint64_t crc_fold_power(int n)
{
    uint32_t value = 0x80000000u;
    while (n-- > 0)
        value = (value >> 1) ^ (value & 1 ? 0xEDB88320u : 0);
    return (uint64_t)value << 32;
}

/* Whether this processor can do it. Must be called, once, before crc_fold. */
static int crc_fold_init(void)
{
    crc_fold_far[0] = crc_fold_power(512 + 63);
    crc_fold_far[1] = crc_fold_power(512 - 1);
    crc_fold_near[0] = crc_fold_power(128 + 63);
    crc_fold_near[1] = crc_fold_power(128 - 1);
    __builtin_cpu_init();
    return __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse2");
}

#define CRC_FOLD_TARGET __attribute__((target("pclmul,sse2")))

CRC_FOLD_TARGET static inline __m128i crc_fold_load(const uint8_t *p)
{
    return _mm_loadu_si128((const __m128i *)p);
}

/* The lane, moved on by the factors' D and added to `next`. */
CRC_FOLD_TARGET static inline __m128i crc_fold_step(__m128i lane, __m128i factors, __m128i next)
{
    __m128i high = _mm_clmulepi64_si128(lane, factors, 0x00);
    __m128i low = _mm_clmulepi64_si128(lane, factors, 0x11);
    return _mm_xor_si128(_mm_xor_si128(high, low), next);
}

/* Fold size / 16 blocks of 16 bytes, size >= CRC_FOLD_MIN, into `rest`: 16 bytes whose CRC, begun with a register of
   zero, is that of all of them begun with `crc` (the register as it stands, not inverted). */
CRC_FOLD_TARGET static void crc_fold(uint32_t crc, const uint8_t *p, size_t size, uint8_t rest[16])
{
    const __m128i far = crc_fold_load((const uint8_t *)crc_fold_far);
    const __m128i near = crc_fold_load((const uint8_t *)crc_fold_near);
    __m128i a = _mm_xor_si128(crc_fold_load(p), _mm_cvtsi32_si128((int)crc));
    __m128i b = crc_fold_load(p + 16);
    __m128i c = crc_fold_load(p + 32);
    __m128i d = crc_fold_load(p + 48);
    for (p += 64, size -= 64; size >= 64; p += 64, size -= 64) {
        a = crc_fold_step(a, far, crc_fold_load(p));
        b = crc_fold_step(b, far, crc_fold_load(p + 16));
        c = crc_fold_step(c, far, crc_fold_load(p + 32));
        d = crc_fold_step(d, far, crc_fold_load(p + 48));
    }
    a = crc_fold_step(a, near, b);
    a = crc_fold_step(a, near, c);
    a = crc_fold_step(a, near, d);
    for (; size >= 16; p += 16, size -= 16)
        a = crc_fold_step(a, near, crc_fold_load(p));
    _mm_storeu_si128((__m128i *)rest, a);
}

#else   /* other processors, other compilers: the table does it all */

static int crc_fold_init(void)
{
    return 0;
}

static void crc_fold(uint32_t crc, const uint8_t *p, size_t size, uint8_t rest[16])
{
    (void)crc, (void)p, (void)size, (void)rest;
}

#endif
#endif
