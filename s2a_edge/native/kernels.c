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

void pack_row(const float* x, const float* unit, int64_t n, int offset, uint16_t* out) {
  uint8_t codes[RUN];
  for (int64_t i = 0; i < n; i += RUN) {
    int64_t count = n - i < RUN ? n - i : RUN;
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

void unpack_words(const uint16_t* words, int64_t n, const float levels[16], float* out) {
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

void unpack_times(const uint16_t* words, int64_t n, const float levels[16], const float* factor,
                  float* out) {
  float values[RUN];
  for (int64_t i = 0; i < n; i += RUN) {
    int64_t count = n - i < RUN ? n - i : RUN;
    unpack_words(words + i / 4, count, levels, values);
    for (int64_t k = 0; k < count; ++k) out[i + k] = values[k] * factor[i + k];
  }
}

void unpack_row(const uint16_t* words, const uint16_t* scale, int64_t n, const float levels[16],
                float* out) {
  float values[RUN];
  for (int64_t i = 0; i < n; i += RUN) {
    int64_t count = n - i < RUN ? n - i : RUN;
    unpack_words(words + i / 4, count, levels, values);
    for (int64_t k = 0; k < count; ++k) out[i + k] = values[k] * from_bfloat16(scale[i + k]);
  }
}

/* e**x for x below 43, relative error below 2e-7; Cody and Waite's reduction and a polynomial of degree 6. */
static inline float exponential(float x) {
  x = x > -87.0f ? x : -87.0f;
  x = x < 43.0f ? x : 43.0f; /* two of them multiplied are finite still */
  float whole = rintf(x * 1.44269504f);
  float r = x - whole * 0.693145752f - whole * 1.42860677e-6f;
  float p = 1.0f + r * (1.0f + r * (0.5f + r * (0.166666667f + r * (0.0416666667f +
            r * (0.00833333333f + r * 0.00138888889f)))));
  int32_t bits = ((int32_t)whole + 127) << 23;
  float power;
  memcpy(&power, &bits, sizeof power);
  return p * power;
}

/* Phi(x) for x below 0 is t q(t) e**(-x*x/2), t = 1 / (1 + 0.2316419 |x|), and 1 minus that of -x
 * above: Abramowitz and Stegun's 26.2.17 with an absolute error below 1e-7. */
static inline float tail_of(float t, float x) {
  return t * (0.127414796f + t * (-0.142248368f + t * (0.7107068705f + t * (-0.7265760135f +
         t * 0.5307027145f)))) * exponential(-0.5f * x * x);
}

/* Of at most RUN elements. A division is the slowest step: one serves both of its denominators. */
static inline void gelu_run(const float* restrict x, const float* restrict bias, int64_t n,
                            float per_step, const int tanh_form, float* restrict y,
                            uint8_t* restrict codes) {
  for (int64_t k = 0; k < n; ++k) {
    float v = x[k] + bias[k];
    float a = 1.0f + exponential(-v);
    float b = tanh_form ? 1.0f + exponential(-1.59576912f * (v + 0.044715f * v * v * v))
                        : 1.0f + 0.231641888f * fabsf(v);
    float both = 1.0f / (a * b);
    if (tanh_form) {
      y[k] = v * a * both;
    } else {
      float tail = tail_of(a * both, v);
      y[k] = v * (v < 0.0f ? tail : 1.0f - tail);
    }
    codes[k] = code_of(b * both * per_step, 0.0f);
  }
}

void gelu_words(const float* x, const float* bias, int64_t rows, int64_t inner, float step,
                int tanh_form, float* y, uint16_t* words) {
  uint8_t codes[RUN];
  for (int64_t row = 0; row < rows; ++row, x += inner, y += inner, words += inner / 4)
    for (int64_t i = 0; i < inner; i += RUN) {
      int64_t count = inner - i < RUN ? inner - i : RUN;
      if (tanh_form)
        gelu_run(x + i, bias + i, count, 1.0f / step, 1, y + i, codes);
      else
        gelu_run(x + i, bias + i, count, 1.0f / step, 0, y + i, codes);
      join(codes, count, words + i / 4);
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

void unpack_halves(const uint8_t* codes, const uint8_t* scales, int64_t n, float step, int high,
                   float* out) {
  if (high)
    for (int64_t i = 0; i < n; ++i)
      out[i] = (float)((codes[i] >> 4) - 8) * ((float)scales[i] * step);
  else
    for (int64_t i = 0; i < n; ++i)
      out[i] = (float)((codes[i] & 15) - 8) * ((float)scales[i] * step);
}

void add_all(const float* const* x, int count, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += RUN) {
    int64_t some = n - i < RUN ? n - i : RUN;
    for (int64_t k = 0; k < some; ++k) out[i + k] = x[0][i + k] + x[1][i + k];
    for (int term = 2; term < count; ++term)
      for (int64_t k = 0; k < some; ++k) out[i + k] += x[term][i + k];
  }
}

void column_sums(const float* x, int64_t rows, int64_t inner, int64_t columns, float* out) {
  float part[RUN];
  for (int64_t c = 0; c < columns; c += RUN) {
    int64_t some = columns - c < RUN ? columns - c : RUN;
    for (int64_t k = 0; k < some; ++k) out[c + k] = 0.0f;
    for (int64_t row = 0; row < rows; row += 32) { /* in parts, for small rounding errors */
      int64_t end = rows - row < 32 ? rows : row + 32;
      for (int64_t k = 0; k < some; ++k) part[k] = 0.0f;
      for (int64_t r = row; r < end; ++r)
        for (int64_t k = 0; k < some; ++k) part[k] += x[r * inner + c + k];
      for (int64_t k = 0; k < some; ++k) out[c + k] += part[k];
    }
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

void layer_norm(const float* x, const float* gamma, const float* beta, float epsilon, int64_t rows,
                int64_t n, float* y, float* unit, float* inverse) {
  for (int64_t row = 0; row < rows; ++row, x += n, y += n, unit += n) {
    float sum = 0.0f, squares = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; ++i) sum += x[i];
    float mean = sum / (float)n;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
    inverse[row] = 1.0f / sqrtf(squares / (float)n + epsilon);
    for (int64_t i = 0; i < n; ++i) {
      unit[i] = (x[i] - mean) * inverse[row];
      y[i] = unit[i] * gamma[i] + beta[i];
    }
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
