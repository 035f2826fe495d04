/* What few.c, many.c and plain.c ask of a processor: registers of LANES numbers, side by side those of as many rows of the matrix.
 *
 * Bytes holds 4 bytes for each lane, of 4 columns; `unpack` makes them of the part of each digit that is asked for. VECTORS
 * registers hold a unit of 16 rows. `larger_size` compares with the size of its second number; `sum_lanes` adds VECTORS
 * registers of numbers, halves to halves.
 *
 * Where there are many rows of inputs, a register of Weights holds those of TOGETHER columns for each lane, and Input is one
 * number that they are multiplied with. `round_weights` makes all those of 4 columns, EACH registers apart, of bytes × times +
 * plus, between 0 and 255, less 128 and plus ABOVE; TOKENS rows of inputs are multiplied with AT_A_TIME registers.
 *
 * Sums IN_PAIRS have room for groups of 256 columns: 8 × 16 × 32639 × 256 is less than 2^31.
 */
#ifdef __SSE2__
#include <immintrin.h>
#endif

/* What is made of a digit: itself; itself times 16; its lower or its upper two bits, times 16. */
enum { AS_IT_IS, RAISED, LOWER_TWO, UPPER_TWO };

/* By how many bits that is above where it lies in a digit, and where it is then. */
INLINE int lift(int part) { return part == AS_IT_IS ? 0 : part == UPPER_TWO ? 2 : 4; }
INLINE int kept_bits(int part) { return part == AS_IT_IS ? 0x0f : part == RAISED ? 0xf0 : 0x30; }

#ifdef __AVX2__
/* Half of what is left to the other half, until one is left. */
INLINE float sum_eight(__m256 eight) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
#endif

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__) && defined(__AVX512BW__) && defined(__AVX512VL__)

enum { LANES = 16, VECTORS = 1, ROWS = 4, AT_ONCE = 2, HAS_FAST_MANY = 1 };
enum { TOKENS = 12, AT_A_TIME = 2, TOGETHER = 4, ABOVE = 128 };
typedef __m512i Bytes;
typedef __m512i Weights;
typedef int8_t Input;
typedef __m512i Ints;
typedef __m512 Floats;

/* A part of the digits of a unit, whose bytes begin `first` bytes into each of 4 columns. */
INLINE void unpack(const uint8_t *at, int half, int first, int part, Bytes *digits) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i rows = _mm512_mullo_epi32(_mm512_add_epi32(lanes, _mm512_set1_epi32(first)), _mm512_set1_epi32(0x01010101));
    const __m512i from = _mm512_add_epi8(rows, _mm512_set1_epi32(half == 16 ? 0x30201000 : 0x60402000));
    __m512i pairs = _mm512_loadu_si512(at);
    if (half == 16) pairs = _mm512_permutexvar_epi8(from, pairs);
    else pairs = _mm512_permutex2var_epi8(pairs, from, _mm512_loadu_si512(at + 64));
    const __m512i kept = _mm512_set1_epi8((char)kept_bits(part));
    digits[0] = _mm512_and_si512(_mm512_slli_epi16(pairs, lift(part)), kept);
    digits[1] = _mm512_and_si512(_mm512_srli_epi16(pairs, 4 - lift(part)), kept);
}

INLINE Bytes same_four(const int8_t *four) {
    int32_t whole;
    memcpy(&whole, four, 4);
    return _mm512_set1_epi32(whole);
}
INLINE Ints dot4(Ints sum, Bytes digits, Bytes inputs) {
    return _mm512_dpbusd_epi32(sum, digits, inputs);
}
INLINE Ints all_ints(int32_t value) { return _mm512_set1_epi32(value); }
INLINE Ints join_halves(Ints high, Ints low) { return _mm512_add_epi32(_mm512_slli_epi32(high, 8), low); }
INLINE Ints load_ints(const void *from) { return _mm512_loadu_si512(from); }
INLINE Ints load_shorts(const void *from) { return _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)from)); }
INLINE Ints low_bytes(Ints shorts) { return _mm512_and_si512(shorts, _mm512_set1_epi32(255)); }
INLINE Ints high_bytes(Ints shorts) { return _mm512_srai_epi32(shorts, 8); }
INLINE Floats first_of_pairs(Ints pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
INLINE Floats second_of_pairs(Ints pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000)));
}
INLINE Floats to_floats(Ints whole) { return _mm512_cvtepi32_ps(whole); }
INLINE Floats all_floats(float value) { return _mm512_set1_ps(value); }
INLINE Floats multiply(Floats one, Floats other) { return _mm512_mul_ps(one, other); }
INLINE Floats multiply_add(Floats one, Floats other, Floats sum) { return _mm512_fmadd_ps(one, other, sum); }
INLINE Floats add(Floats one, Floats other) { return _mm512_add_ps(one, other); }
INLINE Floats divide(Floats one, Floats other) { return _mm512_div_ps(one, other); }
INLINE Floats larger_size(Floats one, Floats other) { return _mm512_max_ps(one, _mm512_abs_ps(other)); }
INLINE Floats load_floats(const float *from) { return _mm512_loadu_ps(from); }
INLINE void store_floats(float *to, Floats values) { _mm512_storeu_ps(to, values); }
INLINE float sum_lanes(const Floats *parts) {
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(*parts), _mm512_extractf32x8_ps(*parts, 1));
    return sum_eight(eight);
}
INLINE void round_weights(Bytes bytes, Floats times, Floats plus, Weights *into, int each) {
    (void)each;
    Weights scaled = _mm512_setzero_si512();
    UNROLLED for (int k = 0; k < 4; k++) {
        Ints column = _mm512_and_si512(_mm512_srli_epi32(bytes, 8 * k), _mm512_set1_epi32(255));
        Ints whole = _mm512_cvtps_epi32(_mm512_fmadd_ps(_mm512_cvtepi32_ps(column), times, plus));
        scaled = _mm512_or_si512(scaled, _mm512_slli_epi32(whole, 8 * k));
    }
    *into = scaled;
}
INLINE Weights in_register(Weights weights) { return weights; }
INLINE Bytes same_inputs(const Input *four) { return same_four(four); }
INLINE Ints dot_weights(Ints sum, Weights weights, Bytes inputs) { return dot4(sum, weights, inputs); }

#elif defined(__AVX2__) && defined(__FMA__)

#if defined(__AVX512VNNI__) && defined(__AVX512VL__) || defined(__AVXVNNI__)
enum { AT_ONCE = 1 };
#else /* two products of bytes may be too large for the sums that there are, those of 16 bits are not */
enum { AT_ONCE = 2 };
#define IN_PAIRS
#endif
enum { LANES = 8, VECTORS = 2, ROWS = 2, TOKENS = 6, AT_A_TIME = 2, HAS_FAST_MANY = 1 };
typedef __m256i Bytes;
typedef __m256i Ints;
typedef __m256 Floats;

INLINE void unpack(const uint8_t *at, int half, int first, int part, Bytes *digits) {
    __m128i column[4];
    for (int k = 0; k < 4; k++) column[k] = _mm_loadu_si128((const __m128i *)(at + k * half + first));
    __m128i front_up = _mm_unpacklo_epi8(column[0], column[1]), front_down = _mm_unpackhi_epi8(column[0], column[1]);
    __m128i back_up = _mm_unpacklo_epi8(column[2], column[3]), back_down = _mm_unpackhi_epi8(column[2], column[3]);
    __m256i pairs[2] = {
        _mm256_set_m128i(_mm_unpackhi_epi16(front_up, back_up), _mm_unpacklo_epi16(front_up, back_up)),
        _mm256_set_m128i(_mm_unpackhi_epi16(front_down, back_down), _mm_unpacklo_epi16(front_down, back_down)),
    };
    const __m256i kept = _mm256_set1_epi8((char)kept_bits(part));
    UNROLLED for (int v = 0; v < 2; v++) {
        digits[v] = _mm256_and_si256(_mm256_slli_epi16(pairs[v], lift(part)), kept);
        digits[2 + v] = _mm256_and_si256(_mm256_srli_epi16(pairs[v], 4 - lift(part)), kept);
    }
}

INLINE Ints all_ints(int32_t value) { return _mm256_set1_epi32(value); }
INLINE Ints join_halves(Ints high, Ints low) { return _mm256_add_epi32(_mm256_slli_epi32(high, 8), low); }
INLINE Ints load_ints(const void *from) { return _mm256_loadu_si256((const __m256i *)from); }
INLINE Ints load_shorts(const void *from) { return _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)from)); }
INLINE Ints low_bytes(Ints shorts) { return _mm256_and_si256(shorts, _mm256_set1_epi32(255)); }
INLINE Ints high_bytes(Ints shorts) { return _mm256_srai_epi32(shorts, 8); }
INLINE Floats first_of_pairs(Ints pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
INLINE Floats second_of_pairs(Ints pairs) {
    return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32((int)0xffff0000)));
}
INLINE Floats to_floats(Ints whole) { return _mm256_cvtepi32_ps(whole); }
INLINE Floats all_floats(float value) { return _mm256_set1_ps(value); }
INLINE Floats multiply(Floats one, Floats other) { return _mm256_mul_ps(one, other); }
INLINE Floats multiply_add(Floats one, Floats other, Floats sum) { return _mm256_fmadd_ps(one, other, sum); }
INLINE Floats add(Floats one, Floats other) { return _mm256_add_ps(one, other); }
INLINE Floats divide(Floats one, Floats other) { return _mm256_div_ps(one, other); }
INLINE Floats larger_size(Floats one, Floats other) {
    return _mm256_max_ps(one, _mm256_andnot_ps(_mm256_set1_ps(-0.0f), other));
}
INLINE Floats load_floats(const float *from) { return _mm256_loadu_ps(from); }
INLINE void store_floats(float *to, Floats values) { _mm256_storeu_ps(to, values); }
INLINE float sum_lanes(const Floats *parts) { return sum_eight(_mm256_add_ps(parts[0], parts[1])); }
INLINE Ints round_column(Bytes bytes, int k, Floats times, Floats plus) {
    Ints column = _mm256_and_si256(_mm256_srli_epi32(bytes, 8 * k), _mm256_set1_epi32(255));
    return _mm256_cvtps_epi32(_mm256_fmadd_ps(_mm256_cvtepi32_ps(column), times, plus));
}

#ifdef IN_PAIRS
enum { TOGETHER = 2, ABOVE = 0 };
typedef __m256i Weights;
typedef int16_t Input;

INLINE Ints same_two(const int16_t *two) {
    int32_t whole;
    memcpy(&whole, two, 4);
    return _mm256_set1_epi32(whole);
}
INLINE Ints dot2(Ints sum, Ints digits, Ints inputs) { return _mm256_add_epi32(sum, _mm256_madd_epi16(digits, inputs)); }

INLINE __m256i round_two(Bytes bytes, int k, Floats times, Floats plus) {
    Ints one = round_column(bytes, k, times, plus), other = round_column(bytes, k + 1, times, plus);
    return _mm256_sub_epi16(_mm256_or_si256(one, _mm256_slli_epi32(other, 16)), _mm256_set1_epi16(128));
}
INLINE void round_weights(Bytes bytes, Floats times, Floats plus, Weights *into, int each) {
    into[0] = round_two(bytes, 0, times, plus);
    into[each] = round_two(bytes, 2, times, plus);
}
/* What is used so often that reading it again each time would take longer. */
INLINE Weights in_register(Weights weights) {
    __asm__("" : "+x"(weights));
    return weights;
}
INLINE Ints same_inputs(const Input *two) { return same_two(two); }
INLINE Ints dot_weights(Ints sum, Weights weights, Ints inputs) { return dot2(sum, weights, inputs); }

/* The bytes of `units` units in two columns: 16 bits of the one beside those of the other, which are of rows 2i and 2i + 1. */
INLINE void pair_columns(const uint8_t *at, int half, int first, int units, Ints *pairs) {
    at += first * 16;
    if (units == 2) {
        Ints one = load_ints(at), other = load_ints(at + half);
        pairs[0] = _mm256_unpacklo_epi16(one, other);
        pairs[1] = _mm256_unpackhi_epi16(one, other);
    } else {
        __m128i one = _mm_loadu_si128((const __m128i *)at), other = _mm_loadu_si128((const __m128i *)(at + half));
        pairs[0] = _mm256_set_m128i(_mm_unpackhi_epi16(one, other), _mm_unpacklo_epi16(one, other));
    }
}
/* A part of one digit of each pair of bytes, those of odd rows where `which` is odd, from 2 on those of lower rows.
 *
 * Where there is one plane of digits, those of lower rows are times 16: `order_sums` knows that. */
INLINE Ints digits_of(Ints pairs, int which, int bits, int part) {
    const int lies = 8 * (which % 2) + 4 * (which / 2), raised = bits == 4 ? 4 * (which / 2) : lift(part);
    Ints shifted = lies >= raised ? _mm256_srli_epi16(pairs, lies - raised) : _mm256_slli_epi16(pairs, raised - lies);
    return _mm256_and_si256(shifted, _mm256_set1_epi16((int16_t)(bits == 4 ? 15 << raised : kept_bits(part))));
}
/* Bring the sums of `digits_of` pairs, 4 of each, into the order of rows: EACH registers for each unit. */
INLINE void order_sums(const Ints *sums, int units, int bits, Ints *ordered) {
    UNROLLED for (int p = 0; p < units; p++)
        UNROLLED for (int lower = 0; lower < 2; lower++) {
            Ints even = sums[4 * p + 2 * lower], odd = sums[4 * p + 2 * lower + 1];
            Ints front = _mm256_unpacklo_epi32(even, odd), back = _mm256_unpackhi_epi32(even, odd);
            Ints one = _mm256_permute2x128_si256(front, back, 0x20), other = _mm256_permute2x128_si256(front, back, 0x31);
            if (bits == 4 && lower) one = _mm256_srai_epi32(one, 4), other = _mm256_srai_epi32(other, 4);
            ordered[units == 2 ? 2 * lower + p : 2 * lower] = one;
            ordered[units == 2 ? 4 + 2 * lower + p : 2 * lower + 1] = other;
        }
}
#else
enum { TOGETHER = 4, ABOVE = 128 };
typedef __m256i Weights;
typedef int8_t Input;

INLINE Bytes same_four(const int8_t *four) {
    int32_t whole;
    memcpy(&whole, four, 4);
    return _mm256_set1_epi32(whole);
}
INLINE Ints dot4(Ints sum, Bytes digits, Bytes inputs) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return _mm256_dpbusd_epi32(sum, digits, inputs);
#else
    return _mm256_dpbusd_avx_epi32(sum, digits, inputs);
#endif
}
INLINE void round_weights(Bytes bytes, Floats times, Floats plus, Weights *into, int each) {
    (void)each;
    Weights scaled = _mm256_setzero_si256();
    UNROLLED for (int k = 0; k < 4; k++)
        scaled = _mm256_or_si256(scaled, _mm256_slli_epi32(round_column(bytes, k, times, plus), 8 * k));
    *into = scaled;
}
INLINE Weights in_register(Weights weights) { return weights; }
INLINE Bytes same_inputs(const Input *four) { return same_four(four); }
INLINE Ints dot_weights(Ints sum, Weights weights, Bytes inputs) { return dot4(sum, weights, inputs); }
#endif

#else /* any processor; the compiler makes of it what it can */

enum { LANES = 16, VECTORS = 1, ROWS = 1, AT_ONCE = 1, HAS_FAST_MANY = 0 };
enum { TOKENS = 1, AT_A_TIME = 2, TOGETHER = 4, ABOVE = 128 };
#define LOOP for (int i = 0; i < LANES; i++)
typedef struct { uint8_t at[4][LANES]; } Bytes;
typedef Bytes Weights;
typedef int8_t Input;
typedef struct { int32_t at[LANES]; } Ints;
typedef struct { float at[LANES]; } Floats;

INLINE void unpack(const uint8_t *at, int half, int first, int part, Bytes *digits) {
    for (int k = 0; k < 4; k++)
        LOOP {
            uint8_t pair = at[k * half + first + i];
            digits[0].at[k][i] = (uint8_t)((pair & 15) << lift(part) & kept_bits(part));
            digits[1].at[k][i] = (uint8_t)((pair >> 4) << lift(part) & kept_bits(part));
        }
}
INLINE Bytes same_four(const int8_t *four) {
    Bytes same;
    for (int k = 0; k < 4; k++) memset(same.at[k], four[k], LANES);
    return same;
}
INLINE Ints dot4(Ints sum, Bytes digits, Bytes inputs) {
    for (int k = 0; k < 4; k++) LOOP sum.at[i] += (int32_t)digits.at[k][i] * (int8_t)inputs.at[k][i];
    return sum;
}
INLINE Ints all_ints(int32_t value) {
    Ints all;
    LOOP all.at[i] = value;
    return all;
}
INLINE Ints join_halves(Ints high, Ints low) {
    LOOP low.at[i] = (int32_t)((uint32_t)high.at[i] << 8) + low.at[i];
    return low;
}
INLINE Ints load_ints(const void *from) {
    Ints loaded;
    memcpy(&loaded, from, sizeof loaded);
    return loaded;
}
/* 16 bits for each lane; their lower byte is 0 to 255, the upper one -128 to 127. */
INLINE Ints load_shorts(const void *from) {
    int16_t shorts[LANES];
    Ints loaded;
    memcpy(shorts, from, sizeof shorts);
    LOOP loaded.at[i] = shorts[i];
    return loaded;
}
INLINE Ints low_bytes(Ints shorts) {
    LOOP shorts.at[i] &= 255;
    return shorts;
}
INLINE Ints high_bytes(Ints shorts) {
    LOOP shorts.at[i] = (int8_t)((uint32_t)shorts.at[i] >> 8);
    return shorts;
}
INLINE Floats first_of_pairs(Ints pairs) {
    Floats first;
    LOOP pairs.at[i] = (int32_t)((uint32_t)pairs.at[i] << 16);
    memcpy(&first, &pairs, sizeof first);
    return first;
}
INLINE Floats second_of_pairs(Ints pairs) {
    Floats second;
    LOOP pairs.at[i] &= (int32_t)0xffff0000;
    memcpy(&second, &pairs, sizeof second);
    return second;
}
INLINE Floats to_floats(Ints whole) {
    Floats floats;
    LOOP floats.at[i] = (float)whole.at[i];
    return floats;
}
INLINE Floats all_floats(float value) {
    Floats all;
    LOOP all.at[i] = value;
    return all;
}
INLINE Floats multiply(Floats one, Floats other) {
    LOOP one.at[i] *= other.at[i];
    return one;
}
INLINE Floats multiply_add(Floats one, Floats other, Floats sum) {
    LOOP sum.at[i] = fmaf(one.at[i], other.at[i], sum.at[i]);
    return sum;
}
INLINE Floats add(Floats one, Floats other) {
    LOOP one.at[i] += other.at[i];
    return one;
}
INLINE Floats divide(Floats one, Floats other) {
    LOOP one.at[i] /= other.at[i];
    return one;
}
INLINE Floats larger_size(Floats one, Floats other) {
    LOOP one.at[i] = one.at[i] > fabsf(other.at[i]) ? one.at[i] : fabsf(other.at[i]);
    return one;
}
INLINE Floats load_floats(const float *from) {
    Floats loaded;
    memcpy(&loaded, from, sizeof loaded);
    return loaded;
}
INLINE void store_floats(float *to, Floats values) { memcpy(to, &values, sizeof values); }
INLINE float sum_lanes(const Floats *parts) {
    Floats sums = *parts;
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) sums.at[i] += sums.at[i + width];
    return sums.at[0];
}
INLINE void round_weights(Bytes bytes, Floats times, Floats plus, Weights *into, int each) {
    (void)each;
    for (int k = 0; k < 4; k++) LOOP bytes.at[k][i] = (uint8_t)rintf(fmaf((float)bytes.at[k][i], times.at[i], plus.at[i]));
    *into = bytes;
}
INLINE Weights in_register(Weights weights) { return weights; }
INLINE Bytes same_inputs(const Input *four) { return same_four(four); }
INLINE Ints dot_weights(Ints sum, Weights weights, Bytes inputs) { return dot4(sum, weights, inputs); }

#endif
