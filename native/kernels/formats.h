#pragma once

// What ggml's quantized types look like, a step (layout.h) of as many rows as there are lanes at a time.
//
// unpack(step, n, out): the blocks of a step, to an `out` that takes, in this order,
//     out.block<b>(q, scale, scale_of_the_last_16)   32 columns, b < n: q[c] has the columns 4c to 4c + 3 of every row
//     out.minimum(pairs, scale)                      where has_min: pairs[j] the minimums of the blocks 2j and 2j + 1

#include "kernels/lanes.h"
#include "kernels/kernel.h"

#include <type_traits>

namespace {

using pyfastv::kernels::panel_rows;
using pyfastv::kernels::step_panels;

// weight = scale*(q - offset) - minimum, with q of `bits` bits. block: columns, bytes: of one block of the type;
// group: columns that share a scale. The activations of the K types share one, too, by 256, as ggml's do.
template <ggml_type> struct format;

template <int bits_, int offset_, int block_, size_t bytes_, int group_, bool has_min_>
struct properties {
    static constexpr int    bits    = bits_;
    static constexpr int    offset  = bits == 8 && signed_bytes ? 0 : offset_;
    static constexpr int    block   = block_;
    static constexpr size_t bytes   = bytes_;
    static constexpr int    group   = group_;
    static constexpr bool   has_min = has_min_;
    static constexpr bool   shared  = block_ == 256;
};

PYFASTV_INLINE ints nibble(ints a) { return a & all(0x0f0f0f0f); }

// Where a step begins, for the first of the lanes.
struct step {
    const uint8_t * begin;
    const uint8_t * tail; // the last 2 bytes of a block of the K types

    // the i-th 4 bytes of every row
    PYFASTV_INLINE ints word(int i) const { return load(begin + 64*i); }

    // the 4 bytes behind an even byte
    template <int byte>
    PYFASTV_INLINE ints four() const {
        if constexpr (byte % 4 == 0) {
            return word(byte/4);
        } else {
            return right(word(byte/4), 16) | left(word(byte/4 + 1), 16);
        }
    }

    // 2 bytes, in the low half
    template <int byte>
    PYFASTV_INLINE ints two() const { return right(word(byte/4), byte % 4*8); }
};

// f(b) for the n blocks of a step, of eight at most
template <typename F>
PYFASTV_INLINE void each_block(int64_t n, F && f) {
    unroll<8>([&](auto b) PYFASTV_LAMBDA {
        if (b < n) {
            f(b);
        }
    });
}

template <> struct format<GGML_TYPE_Q4_0> : properties<4, 8, 32, 18, 32, false> {
    template <typename Out>
    static PYFASTV_INLINE void unpack(const step & s, int64_t n, Out & out) {
        each_block(n, [&](auto b) PYFASTV_LAMBDA {
            ints q[8];
            unroll<4>([&](auto c) PYFASTV_LAMBDA {
                const ints both = s.template four<bytes*b + 2 + 4*c>();
                q[c]     = nibble(both);
                q[4 + c] = nibble(right(both, 4));
            });
            const floats scale = half_to_float(s.template two<bytes*b>());
            out.template block<b>(q, scale, scale);
        });
    }
};

template <> struct format<GGML_TYPE_IQ4_NL> : properties<8, 128, 32, 18, 32, false> {
    template <typename Out>
    static PYFASTV_INLINE void unpack(const step & s, int64_t n, Out & out) {
        static const int8_t values[16] = { -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113 };

        const __m128i table = _mm_xor_si128(_mm_loadu_si128((const __m128i *) values), _mm_set1_epi8(signed_bytes ? 0 : -128));

        each_block(n, [&](auto b) PYFASTV_LAMBDA {
            ints q[8];
            unroll<4>([&](auto c) PYFASTV_LAMBDA {
                const ints both = s.template four<bytes*b + 2 + 4*c>();
                q[c]     = lookup(table, nibble(both));
                q[4 + c] = lookup(table, nibble(right(both, 4)));
            });
            const floats scale = half_to_float(s.template two<bytes*b>());
            out.template block<b>(q, scale, scale);
        });
    }
};

template <> struct format<GGML_TYPE_Q5_0> : properties<5, 16, 32, 22, 32, false> {
    // the low 4 bits of every lane -> bit 4 of its 4 bytes
    static PYFASTV_INLINE ints spread(ints a) { return left(times(a & all(15), all(0x00204081)) & all(0x01010101), 4); }

    template <typename Out>
    static PYFASTV_INLINE void unpack(const step & s, int64_t n, Out & out) {
        each_block(n, [&](auto b) PYFASTV_LAMBDA {
            const ints high = s.template four<bytes*b + 2>();

            ints q[8];
            unroll<4>([&](auto c) PYFASTV_LAMBDA {
                const ints both = s.template four<bytes*b + 6 + 4*c>();
                q[c]     = nibble(both)           | spread(right(high, 4*c));
                q[4 + c] = nibble(right(both, 4)) | spread(right(high, 4*c + 16));
            });
            const floats scale = half_to_float(s.template two<bytes*b>());
            out.template block<b>(q, scale, scale);
        });
    }
};

template <> struct format<GGML_TYPE_Q8_0> : properties<8, 128, 32, 34, 32, false> {
    template <typename Out>
    static PYFASTV_INLINE void unpack(const step & s, int64_t n, Out & out) {
        const ints flip = all(signed_bytes ? 0 : (int32_t) 0x80808080);

        each_block(n, [&](auto b) PYFASTV_LAMBDA {
            ints q[8];
            unroll<8>([&](auto c) PYFASTV_LAMBDA { q[c] = s.template four<bytes*b + 2 + 4*c>() ^ flip; });
            const floats scale = half_to_float(s.template two<bytes*b>());
            out.template block<b>(q, scale, scale);
        });
    }
};

// Scales and minimums of the 8 groups of a block of Q4_K or Q5_K: two f16, then 12 bytes.
struct scales_and_minimums {
    floats scale[8], scale_of_minimums;
    ints   minimums[4]; // two a lane

    PYFASTV_INLINE scales_and_minimums(const step & s) {
        const ints t[4] = { s.word(0), s.word(1), s.word(2), s.word(3) };

        const ints six = all(0x3f3f3f3f), upper = all(0x30303030);
        const ints of_scale[2] = { t[1] & six, nibble(t[3])           | (right(t[1], 2) & upper) };
        const ints of_min  [2] = { t[2] & six, nibble(right(t[3], 4)) | (right(t[2], 2) & upper) };

        const floats d = half_to_float(t[0]);
        unroll<8>([&](auto j) PYFASTV_LAMBDA { scale[j] = d*to_float(right(of_scale[j/4], 8*(j % 4)) & all(0xff)); });

        scale_of_minimums = half_to_float(right(t[0], 16))*all(-1.0f);
        unroll<4>([&](auto j) PYFASTV_LAMBDA {
            const ints a = right(of_min[j/2], 16*(j % 2));
            minimums[j] = (a & all(0xff)) | left(a & all(0xff00), 8);
        });
    }
};

template <> struct format<GGML_TYPE_Q4_K> : properties<4, 0, 256, 144, 32, true> {
    template <typename Out>
    static PYFASTV_INLINE void unpack(const step & s, int64_t, Out & out) {
        const scales_and_minimums of(s);

        unroll<4>([&](auto j) PYFASTV_LAMBDA {
            ints q[8];
            unroll<8>([&](auto c) PYFASTV_LAMBDA { q[c] = nibble(s.word(4 + 8*j + c)); });
            out.template block<2*j>(q, of.scale[2*j], of.scale[2*j]);

            unroll<8>([&](auto c) PYFASTV_LAMBDA { q[c] = nibble(right(s.word(4 + 8*j + c), 4)); });
            out.template block<2*j + 1>(q, of.scale[2*j + 1], of.scale[2*j + 1]);
        });
        out.minimum(of.minimums, of.scale_of_minimums);
    }
};

template <> struct format<GGML_TYPE_Q5_K> : properties<5, 0, 256, 176, 32, true> {
    template <typename Out>
    static PYFASTV_INLINE void unpack(const step & s, int64_t, Out & out) {
        const scales_and_minimums of(s);

        unroll<4>([&](auto j) PYFASTV_LAMBDA {
            const auto both  = [&](int c) PYFASTV_LAMBDA { return s.word(12 + 8*j + c); };
            const auto fifth = [&](int c, int bit) PYFASTV_LAMBDA { return left(right(s.word(4 + c), bit) & all(0x01010101), 4); };

            ints q[8];
            unroll<8>([&](auto c) PYFASTV_LAMBDA { q[c] = nibble(both(c)) | fifth(c, 2*j); });
            out.template block<2*j>(q, of.scale[2*j], of.scale[2*j]);

            unroll<8>([&](auto c) PYFASTV_LAMBDA { q[c] = nibble(right(both(c), 4)) | fifth(c, 2*j + 1); });
            out.template block<2*j + 1>(q, of.scale[2*j + 1], of.scale[2*j + 1]);
        });
        out.minimum(of.minimums, of.scale_of_minimums);
    }
};

template <> struct format<GGML_TYPE_Q6_K> : properties<6, 32, 256, 210, 16, false> {
    template <typename Out>
    static PYFASTV_INLINE void unpack(const step & s, int64_t, Out & out) {
        // it is not read in order: unless it is asked for in order, the hardware does not see a stream, and a product takes twice as long
        for (size_t i = 0; i < panel_rows*bytes; i += 64) {
            _mm_prefetch((const char *) s.begin + i, _MM_HINT_T0);
        }
        const floats d     = load_halves(s.tail);
        const auto   scale = [&](int j) PYFASTV_LAMBDA { return d*to_float(right_signed(left(s.word(48 + j/4), 24 - 8*(j % 4)), 24)); };

        unroll<2>([&](auto n) PYFASTV_LAMBDA {
            const auto a    = [&](int c) PYFASTV_LAMBDA { return s.word(16*n + c); };
            const auto b    = [&](int c) PYFASTV_LAMBDA { return s.word(16*n + 8 + c); };
            const auto high = [&](int c) PYFASTV_LAMBDA { return s.word(32 + 8*n + c); };

            const ints upper = all(0x30303030);
            const auto give  = [&](auto i, auto && make) PYFASTV_LAMBDA {
                constexpr int block = 4*n + i;

                ints q[8];
                unroll<8>([&](auto c) PYFASTV_LAMBDA { q[c] = make(c); });
                out.template block<block>(q, scale(2*block), scale(2*block + 1));
            };
            give(std::integral_constant<int, 0>(), [&](int c) PYFASTV_LAMBDA { return nibble(a(c))           | (left (high(c), 4) & upper); });
            give(std::integral_constant<int, 1>(), [&](int c) PYFASTV_LAMBDA { return nibble(b(c))           | (left (high(c), 2) & upper); });
            give(std::integral_constant<int, 2>(), [&](int c) PYFASTV_LAMBDA { return nibble(right(a(c), 4)) | (high(c) & upper); });
            give(std::integral_constant<int, 3>(), [&](int c) PYFASTV_LAMBDA { return nibble(right(b(c), 4)) | (right(high(c), 2) & upper); });
        });
    }
};

} // namespace
