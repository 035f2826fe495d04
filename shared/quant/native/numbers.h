/* Numbers, one at a time or as many as the compiler finds registers for: the same operations in the same order everywhere. */

#define ROUNDER 12582912.0f /* 1.5 × 2^23: what is added to it is rounded, and the last bits are the whole number */
enum { PARTS = VECTORS * LANES }; /* in which long sums are made: 16 */

INLINE int32_t bits_of(float value) {
    int32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

INLINE float of_bits(int32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* The whole number that was added to ROUNDER. */
INLINE int32_t whole_of(float shifted) { return bits_of(shifted) - 0x4b400000; }

INLINE float from_bfloat(uint16_t half) { return of_bits((int32_t)((uint32_t)half << 16)); }

INLINE uint16_t to_bfloat(float value) {
    uint32_t bits = (uint32_t)bits_of(value);
    uint16_t rounded = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded;
}

INLINE void read_floats(int64_t bfloat, const void *from, int64_t at, int64_t count, float *into) {
    if (bfloat)
        for (int64_t i = 0; i < count; i++) into[i] = from_bfloat(((const uint16_t *)from)[at + i]);
    else
        memcpy(into, (const float *)from + at, (size_t)count * sizeof(float));
}

INLINE void add_floats(int64_t bfloat, const void *from, int64_t at, int64_t count, float *into) {
    if (bfloat)
        for (int64_t i = 0; i < count; i++) into[i] += from_bfloat(((const uint16_t *)from)[at + i]);
    else
        for (int64_t i = 0; i < count; i++) into[i] += ((const float *)from)[at + i];
}

INLINE void write_floats(int64_t bfloat, const float *values, int64_t count, void *to, int64_t at) {
    if (bfloat)
        for (int64_t i = 0; i < count; i++) ((uint16_t *)to)[at + i] = to_bfloat(values[i]);
    else
        memcpy((float *)to + at, values, (size_t)count * sizeof(float));
}

/* Add the products of `count` numbers, whole PARTS of them, with as many others. */
INLINE float dot(const float *one, const float *other, int64_t count) {
    Floats parts[VECTORS];
    UNROLLED for (int v = 0; v < VECTORS; v++) parts[v] = all_floats(0.0f);
    for (int64_t i = 0; i < count; i += PARTS)
        UNROLLED for (int v = 0; v < VECTORS; v++)
            parts[v] = multiply_add(load_floats(one + i + v * LANES), load_floats(other + i + v * LANES), parts[v]);
    return sum_lanes(parts);
}

/* Divide `values`, whole PARTS of them, by their root mean square and multiply them with `weights`. */
INLINE void normalise(int64_t bfloat, const void *weights, int64_t count, float epsilon, float *values) {
    float scale = 1.0f / sqrtf(dot(values, values, count) / (float)count + epsilon);
    if (bfloat)
        for (int64_t i = 0; i < count; i++) values[i] = values[i] * scale * from_bfloat(((const uint16_t *)weights)[i]);
    else
        for (int64_t i = 0; i < count; i++) values[i] = values[i] * scale * ((const float *)weights)[i];
}

/* e to the power of `value`, to about 1e-7, between -87 and 87; beyond that as at the end. */
INLINE float exponential(float value) {
    value = value < -87.0f ? -87.0f : value;
    value = value > 87.0f ? 87.0f : value;
    float shifted = fmaf(value, 1.44269504f, ROUNDER), power = shifted - ROUNDER;
    float rest = fmaf(power, 2.12194440e-4f, fmaf(power, -0.693359375f, value));
    float made = fmaf(1.9875691500e-4f, rest, 1.3981999507e-3f);
    made = fmaf(made, rest, 8.3334519073e-3f);
    made = fmaf(made, rest, 4.1665795894e-2f);
    made = fmaf(made, rest, 1.6666665459e-1f);
    made = fmaf(made, rest, 5.0000001201e-1f);
    made = fmaf(made, rest * rest, rest) + 1.0f;
    return made * of_bits((int32_t)((uint32_t)(whole_of(shifted) + 127) << 23));
}

INLINE float silu(float value) { return value / (1.0f + exponential(-value)); }
