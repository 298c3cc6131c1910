#include "kernels.h"

#include <math.h>
#include <string.h>

#define RUN 256 /* elements handled at once: codes of a run stay in registers and L1 */

static float from_bfloat16(uint16_t bits) {
  uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}

static uint16_t to_bfloat16(float value) { /* of finite numbers, ties to even */
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

void absolute_maxima(const float* x, int64_t size, int64_t inner, float* out) {
  memset(out, 0, (size_t)inner * sizeof *out);
  for (int64_t row = 0; row < size; ++row, x += inner)
    for (int64_t i = 0; i < inner; ++i) {
      float a = fabsf(x[i]);
      out[i] = a > out[i] ? a : out[i];
    }
}

static inline uint8_t code_of(float position, float offset) {
  float code = rintf(position) + offset;
  code = code > 0.0f ? code : 0.0f; /* also what is not a number */
  code = code < 15.0f ? code : 15.0f;
  return (uint8_t)(int32_t)code;
}

static void join(const uint8_t* codes, int64_t n, uint16_t* words) {
  for (int64_t w = 0; w < n / 4; ++w) {
    uint32_t four;
    memcpy(&four, codes + 4 * w, sizeof four);
    four |= four >> 4; /* 0d0c0b0a -> ....dc..ba */
    words[w] = (uint16_t)((four & 0xffu) | (four >> 8 & 0xff00u));
  }
}

void pack_words(const float* x, int64_t n, float step, int offset, uint16_t* out) {
  uint8_t codes[RUN];
  for (int64_t i = 0; i < n; i += RUN) {
    int64_t count = n - i < RUN ? n - i : RUN;
    for (int64_t k = 0; k < count; ++k) codes[k] = code_of(x[i + k] / step, (float)offset);
    join(codes, count, out + i / 4);
  }
}

void pack_columns(const float* x, const float* unit, int64_t size, int64_t inner, int offset,
                  uint16_t* out) {
  uint8_t codes[RUN];
  for (int64_t row = 0; row < size; ++row, x += inner, out += inner / 4)
    for (int64_t i = 0; i < inner; i += RUN) {
      int64_t count = inner - i < RUN ? inner - i : RUN;
      for (int64_t k = 0; k < count; ++k) codes[k] = code_of(x[i + k] * unit[i + k], (float)offset);
      join(codes, count, out + i / 4);
    }
}

/* Sixteen codes at once: each lane takes its word and shifts its four bits down. The compiler lowers
 * vectors of any width to what the machine has; clang lacks the shuffle. */
#define LANES 16
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint16_t Words __attribute__((vector_size(2 * LANES)));

static void look_up(const uint16_t* words, int64_t n, const float levels[16], float* out) {
  int64_t i = 0;
#if defined(__GNUC__) && !defined(__clang__)
  const Ints shift = {0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12};
  const Ints first = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
  Floats table;
  memcpy(&table, levels, sizeof table);
  for (; i + 4 * LANES <= n; i += 4 * LANES) {
    Words some;
    memcpy(&some, words + i / 4, sizeof some);
    Ints wide = __builtin_convertvector(some, Ints);
    for (int part = 0; part < 4; ++part) {
      Ints codes = (__builtin_shuffle(wide, first + 4 * part) >> shift) & 15;
      Floats found = __builtin_shuffle(table, codes);
      memcpy(out + i + LANES * part, &found, sizeof found);
    }
  }
#endif
  for (; i < n; ++i) out[i] = levels[words[i / 4] >> 4 * (i % 4) & 15];
}

void unpack_words(const uint16_t* words, int64_t n, const float levels[16], float* out) {
  look_up(words, n, levels, out);
}

void unpack_times(const uint16_t* words, int64_t n, const float levels[16], const float* factor,
                  float* out) {
  float values[RUN];
  for (int64_t i = 0; i < n; i += RUN) {
    int64_t count = n - i < RUN ? n - i : RUN;
    look_up(words + i / 4, count, levels, values);
    for (int64_t k = 0; k < count; ++k) out[i + k] = values[k] * factor[i + k];
  }
}

void unpack_columns(const uint16_t* words, const uint16_t* scale, int64_t size, int64_t inner,
                    const float levels[16], float* out) {
  float values[RUN];
  for (int64_t row = 0; row < size; ++row, words += inner / 4, out += inner)
    for (int64_t i = 0; i < inner; i += RUN) {
      int64_t count = inner - i < RUN ? inner - i : RUN;
      look_up(words + i / 4, count, levels, values);
      for (int64_t k = 0; k < count; ++k) out[i + k] = values[k] * from_bfloat16(scale[i + k]);
    }
}

void quantize_rows(const float* x, int64_t rows, int64_t n, int8_t* codes, uint16_t* scales) {
  for (int64_t row = 0; row < rows; ++row, x += n, codes += n) {
    float largest = 0.0f;
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < n; ++i) largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
    float scale = largest * (1.0f / 127.0f);
    scales[row] = to_bfloat16(scale > 0x1p-100f ? scale : 0x1p-100f);
    scale = from_bfloat16(scales[row]);
    for (int64_t i = 0; i < n; ++i) {
      float code = rintf(x[i] / scale);
      code = code > -128.0f ? code : -128.0f;
      code = code < 127.0f ? code : 127.0f;
      codes[i] = (int8_t)(int32_t)code;
    }
  }
}

void dequantize_rows(const int8_t* codes, const uint16_t* scales, int64_t rows, int64_t n,
                     float* out) {
  for (int64_t row = 0; row < rows; ++row, codes += n, out += n) {
    float scale = from_bfloat16(scales[row]);
    for (int64_t i = 0; i < n; ++i) out[i] = (float)codes[i] * scale;
  }
}

void softmax_gradient(const float* p, const float* dp, int64_t rows, int64_t n, float* out) {
  for (int64_t row = 0; row < rows; ++row, p += n, dp += n, out += n) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; ++i) sum += p[i] * dp[i];
    for (int64_t i = 0; i < n; ++i) out[i] = p[i] * (dp[i] - sum);
  }
}

void layer_norm_gradient(const float* dy, const float* gamma, const float* x, const float* inverse,
                         int64_t rows, int64_t n, float* out) {
  for (int64_t row = 0; row < rows; ++row, dy += n, x += n, out += n) {
    float mean = 0.0f, along = 0.0f;
#pragma omp simd reduction(+ : mean, along)
    for (int64_t i = 0; i < n; ++i) {
      float u = dy[i] * gamma[i];
      mean += u;
      along += u * x[i];
    }
    mean /= (float)n;
    along /= (float)n;
    for (int64_t i = 0; i < n; ++i)
      out[i] = (dy[i] * gamma[i] - mean - x[i] * along) * inverse[row];
  }
}
