#pragma once

// One register of int32 or float lanes: 16 with AVX512, 8 with AVX2. A translation unit sees one of the two, by the
// instructions that it is compiled for; so everything here is internal to it.

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#define PYFASTV_INLINE inline __attribute__((always_inline))
#define PYFASTV_APART __attribute__((noinline))
// compilers leave lambdas of this size out of line, with their registers in memory
#define PYFASTV_LAMBDA __attribute__((always_inline))

namespace {

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)

constexpr int n_lanes = 16;

struct ints   { __m512i v; };
struct floats { __m512  v; };

PYFASTV_INLINE ints   load (const uint8_t * p)          { return { _mm512_loadu_si512(p) }; }
PYFASTV_INLINE void   store(uint8_t * p, ints a)        { _mm512_storeu_si512(p, a.v); }
PYFASTV_INLINE floats load (const float * p)            { return { _mm512_loadu_ps(p) }; }
PYFASTV_INLINE void   store(float * p, floats a)        { _mm512_storeu_ps(p, a.v); }
PYFASTV_INLINE ints   all  (int32_t a)                  { return { _mm512_set1_epi32(a) }; }
PYFASTV_INLINE floats all  (float a)                    { return { _mm512_set1_ps(a) }; }
PYFASTV_INLINE ints   operator&(ints a, ints b)         { return { _mm512_and_si512(a.v, b.v) }; }
PYFASTV_INLINE ints   operator|(ints a, ints b)         { return { _mm512_or_si512 (a.v, b.v) }; }
PYFASTV_INLINE ints   operator^(ints a, ints b)         { return { _mm512_xor_si512(a.v, b.v) }; }
PYFASTV_INLINE ints   operator+(ints a, ints b)         { return { _mm512_add_epi32(a.v, b.v) }; }
PYFASTV_INLINE ints   right(ints a, int n)              { return { _mm512_srli_epi32(a.v, n) }; }
PYFASTV_INLINE ints   left (ints a, int n)              { return { _mm512_slli_epi32(a.v, n) }; }
PYFASTV_INLINE ints   right_signed(ints a, int n)       { return { _mm512_srai_epi32(a.v, n) }; }
PYFASTV_INLINE ints   times(ints a, ints b)             { return { _mm512_mullo_epi32(a.v, b.v) }; }
PYFASTV_INLINE ints   lookup(__m128i table, ints a)     { return { _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), a.v) }; }
PYFASTV_INLINE floats to_float(ints a)                  { return { _mm512_cvtepi32_ps(a.v) }; }
PYFASTV_INLINE floats operator*(floats a, floats b)     { return { _mm512_mul_ps(a.v, b.v) }; }
PYFASTV_INLINE floats fma(floats a, floats b, floats c) { return { _mm512_fmadd_ps(a.v, b.v, c.v) }; }
PYFASTV_INLINE floats operator+(floats a, floats b) { return { _mm512_add_ps(a.v, b.v) }; }
PYFASTV_INLINE floats operator-(floats a, floats b) { return { _mm512_sub_ps(a.v, b.v) }; }
PYFASTV_INLINE floats operator/(floats a, floats b) { return { _mm512_div_ps(a.v, b.v) }; }
PYFASTV_INLINE floats larger(floats a, floats b)    { return { _mm512_max_ps(a.v, b.v) }; }
PYFASTV_INLINE float  largest_of(floats a)          { return _mm512_reduce_max_ps(a.v); }
PYFASTV_INLINE float  total_of(floats a)            { return _mm512_reduce_add_ps(a.v); }
PYFASTV_INLINE ints   round_to_int(floats a)        { return { _mm512_cvtps_epi32(a.v) }; }
PYFASTV_INLINE ints   bits_of(floats a)             { return { _mm512_castps_si512(a.v) }; }
PYFASTV_INLINE ints   larger(ints a, ints b)        { return { _mm512_max_epi32(a.v, b.v) }; }
PYFASTV_INLINE int32_t largest_of(ints a)           { return _mm512_reduce_max_epi32(a.v); }

// a lane's number as 16 bits, saturated
PYFASTV_INLINE void store_words(int16_t * p, ints a) { _mm256_storeu_si256((__m256i *) p, _mm512_cvtsepi32_epi16(a.v)); }

// lane i: low[i] and, above it, high[i]
PYFASTV_INLINE ints load_pairs(const int16_t * low, const int16_t * high) {
    const auto words = [](const int16_t * p) PYFASTV_LAMBDA { return ints{ _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *) p)) }; };
    return words(low) | left(words(high), 16);
}

// a where x >= least or x is not a number, else 0
PYFASTV_INLINE floats where_at_least(floats x, floats least, floats a) {
    return { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, least.v, _CMP_NLT_UQ), a.v) };
}

// a*2^n, if that is a normal number
PYFASTV_INLINE floats times_power_of_two(floats a, ints n) {
    return { _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a.v), _mm512_slli_epi32(n.v, 23))) };
}

// the f16 in the low half of every lane
PYFASTV_INLINE floats half_to_float(ints a) { return { _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a.v)) }; }

// as many f16 as there are lanes
PYFASTV_INLINE floats load_halves(const uint8_t * p) { return { _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) p)) }; }

// 16 bytes of every row -> 4 registers: lane r of register c has the bytes 4c to 4c + 3 of row r
PYFASTV_INLINE void transpose(const uint8_t * const rows[n_lanes], size_t at, ints out[4]) {
    const auto every_fourth = [&](int r) PYFASTV_LAMBDA {
        const auto row = [&](int i) PYFASTV_LAMBDA { return _mm_loadu_si128((const __m128i *) (rows[r + 4*i] + at)); };
        return _mm512_inserti32x4(_mm512_inserti32x4(_mm512_inserti32x4(_mm512_castsi128_si512(row(0)), row(1), 1), row(2), 2), row(3), 3);
    };
    const __m512i a = every_fourth(0), b = every_fourth(1), c = every_fourth(2), d = every_fourth(3);

    const __m512i ab0 = _mm512_unpacklo_epi32(a, b), ab1 = _mm512_unpackhi_epi32(a, b);
    const __m512i cd0 = _mm512_unpacklo_epi32(c, d), cd1 = _mm512_unpackhi_epi32(c, d);

    out[0] = { _mm512_unpacklo_epi64(ab0, cd0) };
    out[1] = { _mm512_unpackhi_epi64(ab0, cd0) };
    out[2] = { _mm512_unpacklo_epi64(ab1, cd1) };
    out[3] = { _mm512_unpackhi_epi64(ab1, cd1) };
}

#else

constexpr int n_lanes = 8;

struct ints   { __m256i v; };
struct floats { __m256  v; };

PYFASTV_INLINE ints   load (const uint8_t * p)          { return { _mm256_loadu_si256((const __m256i *) p) }; }
PYFASTV_INLINE void   store(uint8_t * p, ints a)        { _mm256_storeu_si256((__m256i *) p, a.v); }
PYFASTV_INLINE floats load (const float * p)            { return { _mm256_loadu_ps(p) }; }
PYFASTV_INLINE void   store(float * p, floats a)        { _mm256_storeu_ps(p, a.v); }
PYFASTV_INLINE ints   all  (int32_t a)                  { return { _mm256_set1_epi32(a) }; }
PYFASTV_INLINE floats all  (float a)                    { return { _mm256_set1_ps(a) }; }
PYFASTV_INLINE ints   operator&(ints a, ints b)         { return { _mm256_and_si256(a.v, b.v) }; }
PYFASTV_INLINE ints   operator|(ints a, ints b)         { return { _mm256_or_si256 (a.v, b.v) }; }
PYFASTV_INLINE ints   operator^(ints a, ints b)         { return { _mm256_xor_si256(a.v, b.v) }; }
PYFASTV_INLINE ints   operator+(ints a, ints b)         { return { _mm256_add_epi32(a.v, b.v) }; }
PYFASTV_INLINE ints   right(ints a, int n)              { return { _mm256_srli_epi32(a.v, n) }; }
PYFASTV_INLINE ints   left (ints a, int n)              { return { _mm256_slli_epi32(a.v, n) }; }
PYFASTV_INLINE ints   right_signed(ints a, int n)       { return { _mm256_srai_epi32(a.v, n) }; }
PYFASTV_INLINE ints   times(ints a, ints b)             { return { _mm256_mullo_epi32(a.v, b.v) }; }
PYFASTV_INLINE ints   lookup(__m128i table, ints a)     { return { _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), a.v) }; }
PYFASTV_INLINE floats to_float(ints a)                  { return { _mm256_cvtepi32_ps(a.v) }; }
PYFASTV_INLINE floats operator*(floats a, floats b)     { return { _mm256_mul_ps(a.v, b.v) }; }
PYFASTV_INLINE floats fma(floats a, floats b, floats c) { return { _mm256_fmadd_ps(a.v, b.v, c.v) }; }
PYFASTV_INLINE floats operator+(floats a, floats b) { return { _mm256_add_ps(a.v, b.v) }; }
PYFASTV_INLINE floats operator-(floats a, floats b) { return { _mm256_sub_ps(a.v, b.v) }; }
PYFASTV_INLINE floats operator/(floats a, floats b) { return { _mm256_div_ps(a.v, b.v) }; }
PYFASTV_INLINE floats larger(floats a, floats b)    { return { _mm256_max_ps(a.v, b.v) }; }
PYFASTV_INLINE ints   round_to_int(floats a)        { return { _mm256_cvtps_epi32(a.v) }; }
PYFASTV_INLINE ints   bits_of(floats a)             { return { _mm256_castps_si256(a.v) }; }
PYFASTV_INLINE ints   larger(ints a, ints b)        { return { _mm256_max_epi32(a.v, b.v) }; }

// a lane's number as 16 bits, saturated
PYFASTV_INLINE void store_words(int16_t * p, ints a) {
    _mm_storeu_si128((__m128i *) p, _mm_packs_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1)));
}

// lane i: low[i] and, above it, high[i]
PYFASTV_INLINE ints load_pairs(const int16_t * low, const int16_t * high) {
    const auto words = [](const int16_t * p) PYFASTV_LAMBDA { return ints{ _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *) p)) }; };
    return words(low) | left(words(high), 16);
}

PYFASTV_INLINE float largest_of(floats a) {
    __m128 m = _mm_max_ps(_mm256_extractf128_ps(a.v, 1), _mm256_castps256_ps128(a.v));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

PYFASTV_INLINE int32_t largest_of(ints a) {
    __m128i m = _mm_max_epi32(_mm256_extracti128_si256(a.v, 1), _mm256_castsi256_si128(a.v));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1)));
}

PYFASTV_INLINE float total_of(floats a) {
    __m128 s = _mm_add_ps(_mm256_extractf128_ps(a.v, 1), _mm256_castps256_ps128(a.v));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// a where x >= least or x is not a number, else 0
PYFASTV_INLINE floats where_at_least(floats x, floats least, floats a) {
    return { _mm256_and_ps(_mm256_cmp_ps(x.v, least.v, _CMP_NLT_UQ), a.v) };
}

// a*2^n, if that is a normal number
PYFASTV_INLINE floats times_power_of_two(floats a, ints n) {
    return { _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a.v), _mm256_slli_epi32(n.v, 23))) };
}

// the f16 in the low half of every lane
PYFASTV_INLINE floats half_to_float(ints a) {
    const __m256i low = _mm256_and_si256(a.v, _mm256_set1_epi32(0xffff));
    return { _mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1))) };
}

// as many f16 as there are lanes
PYFASTV_INLINE floats load_halves(const uint8_t * p) { return { _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) p)) }; }

// 16 bytes of every row -> 4 registers: lane r of register c has the bytes 4c to 4c + 3 of row r
PYFASTV_INLINE void transpose(const uint8_t * const rows[n_lanes], size_t at, ints out[4]) {
    const auto every_fourth = [&](int r) PYFASTV_LAMBDA {
        const auto row = [&](int i) PYFASTV_LAMBDA { return _mm_loadu_si128((const __m128i *) (rows[r + 4*i] + at)); };
        return _mm256_inserti128_si256(_mm256_castsi128_si256(row(0)), row(1), 1);
    };
    const __m256i a = every_fourth(0), b = every_fourth(1), c = every_fourth(2), d = every_fourth(3);

    const __m256i ab0 = _mm256_unpacklo_epi32(a, b), ab1 = _mm256_unpackhi_epi32(a, b);
    const __m256i cd0 = _mm256_unpacklo_epi32(c, d), cd1 = _mm256_unpackhi_epi32(c, d);

    out[0] = { _mm256_unpacklo_epi64(ab0, cd0) };
    out[1] = { _mm256_unpackhi_epi64(ab0, cd0) };
    out[2] = { _mm256_unpacklo_epi64(ab1, cd1) };
    out[3] = { _mm256_unpackhi_epi64(ab1, cd1) };
}

#endif

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define PYFASTV_DPBUSD(s, w, a) _mm512_dpbusd_epi32(s, w, a)
#define PYFASTV_DPWSSD(s, a, b) _mm512_dpwssd_epi32(s, a, b)
#elif defined(__AVXVNNI__)
#define PYFASTV_DPBUSD(s, w, a) _mm256_dpbusd_avx_epi32(s, w, a)
#define PYFASTV_DPWSSD(s, a, b) _mm256_dpwssd_avx_epi32(s, a, b)
#else
#define PYFASTV_DPWSSD(s, a, b) _mm256_add_epi32(s, _mm256_madd_epi16(a, b))
#endif

// s + what 4*n weights of every lane give with 4*n activations; n = 4: half a block. Weights are unsigned numbers of
// `bits` bits; where there is no dpbusd, those of 8 bits are signed (see signed_bytes).
template <int bits, int n>
PYFASTV_INLINE ints dot(ints s, const ints * w, const int8_t * a) {
    // not memcpy(): GCC would load two at a time, and broadcast from general registers
    typedef int32_t four_bytes __attribute__((may_alias));
    const auto * x = (const four_bytes *) a;
#ifdef PYFASTV_DPBUSD
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) {
        s.v = PYFASTV_DPBUSD(s.v, w[i].v, all(x[i]).v);
    }
#else
    // sums of 16 bits, as many as fit
    constexpr int run = bits == 4 ? 8 : bits == 5 ? 4 : bits == 6 ? 2 : 1;
    const __m256i one = _mm256_set1_epi16(1);
#pragma GCC unroll 8
    for (int i = 0; i < n; i += run) {
        __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 8
        for (int j = i; j < i + run && j < n; ++j) {
            __m256i weights = w[j].v, activations = all(x[j]).v;
            if (bits == 8) {
                activations = _mm256_sign_epi8(activations, weights);
                weights     = _mm256_abs_epi8(weights);
            }
            const __m256i product = _mm256_maddubs_epi16(weights, activations);
            sum = j == i ? product : _mm256_add_epi16(sum, product);
        }
        s.v = _mm256_add_epi32(s.v, _mm256_madd_epi16(sum, one));
    }
#endif
    return s;
}

// s + the products of two numbers of 16 bits a lane
PYFASTV_INLINE ints dot_pairs(ints s, ints a, ints b) { return { PYFASTV_DPWSSD(s.v, a.v, b.v) }; }

#ifdef PYFASTV_DPBUSD
constexpr bool signed_bytes = false;
#else
constexpr bool signed_bytes = true;
#endif

template <typename F, int... i>
PYFASTV_INLINE void unroll(F && f, std::integer_sequence<int, i...>) { (f(std::integral_constant<int, i>()), ...); }

// f(0), ..., f(n - 1), with numbers that are constants
template <int n, typename F>
PYFASTV_INLINE void unroll(F && f) { unroll(f, std::make_integer_sequence<int, n>()); }

} // namespace
