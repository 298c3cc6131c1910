/* The numeric part: plain loops over contiguous arrays, one call for a run of rows or groups.
 *
 * Semantics are those of the ONNX nodes that each replaces (s2a_edge/pack/native); tests compare
 * the two. Compiled for the machine that runs it, so that the compiler's own vectors are the widest.
 */
#ifndef S2A_KERNELS_H
#define S2A_KERNELS_H

#include <stdint.h>

/* largest |x| of each column of [size, inner] */
void absolute_maxima(const float* x, int64_t size, int64_t inner, float* out);

/* four 4-bit codes a word, clamp(round(x / step) + offset, 0, 15); n is divisible by 4 */
void pack_words(const float* x, int64_t n, float step, int offset, uint16_t* out);
/* the same of x * unit, elementwise */
void pack_row(const float* x, const float* unit, int64_t n, int offset, uint16_t* out);
void unpack_words(const uint16_t* words, int64_t n, const float levels[16], float* out);
/* the level times factor[i], elementwise */
void unpack_times(const uint16_t* words, int64_t n, const float levels[16], const float* factor,
                  float* out);
/* the level times scale[i], in bfloat16, elementwise */
void unpack_row(const uint16_t* words, const uint16_t* scale, int64_t n, const float levels[16],
                float* out);

/* y = gelu(x + bias[column]) of [rows, inner], and the codes of sigmoid(x + bias) / step */
void gelu_words(const float* x, const float* bias, int64_t rows, int64_t inner, float step,
                int tanh_form, float* y, uint16_t* words);

/* int8 codes of each row of [rows, n], and their scale in bfloat16 */
void quantize_rows(const float* x, int64_t rows, int64_t n, int8_t* codes, uint16_t* scales);
void dequantize_rows(const int8_t* codes, const uint16_t* scales, int64_t rows, int64_t n,
                     float* out);

/* (code - 8) * (scale[i] * step) of n bytes, the codes in their high halves or in their low ones */
void unpack_halves(const uint8_t* codes, const uint8_t* scales, int64_t n, float step, int high,
                   float* out);

/* the sum of 2 to 5 arrays, from the first to the last */
void add_all(const float* const* x, int count, int64_t n, float* out);

/* the sum of each of `columns` columns, which lie side by side in [rows, inner] */
void column_sums(const float* x, int64_t rows, int64_t inner, int64_t columns, float* out);

/* p (dp - sum(p dp)) of each row */
void softmax_gradient(const float* p, const float* dp, int64_t rows, int64_t n, float* out);
/* unit = (x - mean(x)) inverse, inverse = 1 / sqrt(var(x) + epsilon), y = unit gamma + beta */
void layer_norm(const float* x, const float* gamma, const float* beta, float epsilon, int64_t rows,
                int64_t n, float* y, float* unit, float* inverse);
/* (u - mean(u) - x mean(u x)) inverse[row], u = dy gamma, of each row */
void layer_norm_gradient(const float* dy, const float* gamma, const float* x, const float* inverse,
                         int64_t rows, int64_t n, float* out);

#endif
