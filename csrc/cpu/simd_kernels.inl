// The innermost loops: see simd.h. Included once per instruction set by simd_*.cpp, which are
// compiled with that set's flags and -ffp-contract=off: a product is fused into a sum only where
// fma() says so.

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "simd.h"

namespace selfment::cpu {

namespace {

// Eight doubles, in as many registers as the instruction set needs for them.
typedef double Doubles __attribute__((vector_size(64)));
typedef float Floats __attribute__((vector_size(32)));
typedef uint32_t Words __attribute__((vector_size(32)));
typedef int32_t Integers __attribute__((vector_size(32)));
typedef uint16_t Halves __attribute__((vector_size(16)));
constexpr int64_t kDoubles = 8;

inline double value(double x) { return x; }
inline double value(float x) { return x; }
inline double value(BFloat16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}
inline double value(Float16 x) {
  const uint32_t exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  const double sign = x.bits >> 15 ? -1 : 1;
  // Subnormal numbers come from an integer: as floats they might be flushed to zero.
  if (exponent == 0) return sign * fraction * 0x1p-24;
  const uint32_t bits = (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return sign * f;
}

inline Doubles load(const double* x) {
  Doubles v;
  std::memcpy(&v, x, sizeof v);
  return v;
}

inline Doubles load(const float* x) {
  Floats v;
  std::memcpy(&v, x, sizeof v);
  return __builtin_convertvector(v, Doubles);
}

inline Doubles load(const BFloat16* x) {
  Halves bits;
  std::memcpy(&bits, x, sizeof bits);
  return __builtin_convertvector(Floats(__builtin_convertvector(bits, Words) << 16), Doubles);
}

inline Doubles load(const Float16* x) {
#if defined(__F16C__)
  __m128i bits;
  std::memcpy(&bits, x, sizeof bits);
  return __builtin_convertvector(Floats(_mm256_cvtph_ps(bits)), Doubles);
#elif defined(__aarch64__)
  // Conversions keep subnormal halves, whether or not FPCR.FZ16 flushes them in arithmetic.
  uint16x8_t bits;
  std::memcpy(&bits, x, sizeof bits);
  const float16x8_t halves = vreinterpretq_f16_u16(bits);
  const float32x4_t low = vcvt_f32_f16(vget_low_f16(halves)), high = vcvt_high_f32_f16(halves);
  const float64x2_t parts[4] = {vcvt_f64_f32(vget_low_f32(low)), vcvt_high_f64_f32(low),
                                vcvt_f64_f32(vget_low_f32(high)), vcvt_high_f64_f32(high)};
  Doubles v;
  std::memcpy(&v, parts, sizeof v);
  return v;
#else
  Doubles v;
  for (int i = 0; i < kDoubles; ++i) v[i] = value(x[i]);
  return v;
#endif
}

inline void store(double* x, const Doubles& v) { std::memcpy(x, &v, sizeof v); }
inline void store(float* x, const Floats& v) { std::memcpy(x, &v, sizeof v); }

inline double sum(const Doubles& v) {
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

// --- Rows ---

template <class T>
double norm(const T* x, int64_t d) {
  // Knuth's TwoSum: s + c is the sum of the squares to twice the precision of a double, so it
  // rounds to the same number in any order. The square of a float is exact. The square of a double
  // is rounded first, which does not depend on the order either.
  Doubles s = {}, c = {};
  const auto add = [&](const Doubles& v) __attribute__((always_inline)) {
    const Doubles p = v * v, t = s + p, b = t - s;
    c += (s - (t - b)) + (p - b);
    s = t;
  };
  int64_t k = 0;
  for (; k + kDoubles <= d; k += kDoubles) add(load(x + k));
  if (k < d) {
    T rest[kDoubles] = {};
    std::memcpy(rest, x + k, (d - k) * sizeof(T));
    add(load(rest));
  }
  double total = 0, low = 0;
  for (int lane = 0; lane < kDoubles; ++lane) {
    const double p = s[lane], t = total + p, b = t - total;
    low += (total - (t - b)) + (p - b) + c[lane];
    total = t;
  }
  const double length = __builtin_sqrt(total + low);
  return length < 1e-12 ? 1e-12 : length;
}

template <class T>
void round(const T* x, double norm, int64_t d, float* f) {
  int64_t k = 0;
  for (; k + kDoubles <= d; k += kDoubles)
    store(f + k, __builtin_convertvector(load(x + k) / norm, Floats));
  for (; k < d; ++k) f[k] = static_cast<float>(value(x[k]) / norm);
}

template <class T>
void pack(const T* rows, const double* norms, int64_t count, int64_t d, float* panel) {
  constexpr int64_t kSpan = 64;
  float block[kLane][kSpan] = {};
  for (int64_t k0 = 0; k0 < d; k0 += kSpan) {
    const int64_t span = d - k0 < kSpan ? d - k0 : kSpan;
    for (int64_t r = 0; r < count; ++r) round(rows + r * d + k0, norms[r], span, block[r]);
    for (int64_t k = 0; k < span; ++k)
      for (int64_t r = 0; r < kLane; ++r) panel[(k0 + k) * kLane + r] = block[r][k];
  }
}

template <class T, class U>
double dot(const T* x, const U* w, int64_t d) {
  Doubles s[4] = {};
  int64_t k = 0;
  for (; k + 4 * kDoubles <= d; k += 4 * kDoubles)
    for (int u = 0; u < 4; ++u) s[u] += load(x + k + u * kDoubles) * load(w + k + u * kDoubles);
  double total = sum((s[0] + s[2]) + (s[1] + s[3]));
  for (; k < d; ++k) total += value(x[k]) * value(w[k]);
  return total;
}

template <class T>
double rounded_dot(const T* x, double norm, const double* w, int64_t d) {
  double total = 0;
  for (int64_t k = 0; k < d; ++k) total += static_cast<float>(value(x[k]) / norm) * w[k];
  return total;
}

template <class T>
void add_rounded(const T* x, double norm, double sign, int64_t d, double* total) {
  int64_t k = 0;
  for (; k + kDoubles <= d; k += kDoubles) {
    const Floats f = __builtin_convertvector(load(x + k) / norm, Floats);
    store(total + k, load(total + k) + sign * __builtin_convertvector(f, Doubles));
  }
  for (; k < d; ++k) total[k] += sign * static_cast<float>(value(x[k]) / norm);
}

// --- Graph ---

#if defined(__AVX512F__)
typedef __m512 Vector;
constexpr int kRows = 8, kVectors = 2;
inline Vector fma(const Vector& a, const Vector& b, const Vector& c) {
  return _mm512_fmadd_ps(a, b, c);
}
#elif defined(__AVX2__)
typedef __m256 Vector;
constexpr int kRows = 4, kVectors = 2;
inline Vector fma(const Vector& a, const Vector& b, const Vector& c) {
  return _mm256_fmadd_ps(a, b, c);
}
#elif defined(__aarch64__)
typedef float32x4_t Vector;
constexpr int kRows = 4, kVectors = 4;
inline Vector fma(const Vector& a, const Vector& b, const Vector& c) { return vfmaq_f32(c, a, b); }
#else
typedef float Vector __attribute__((vector_size(16)));
constexpr int kRows = 2, kVectors = 4;
inline Vector fma(const Vector& a, const Vector& b, const Vector& c) { return a * b + c; }
#endif
constexpr int kWidth = sizeof(Vector) / sizeof(float);
constexpr int kColumns = kVectors * kWidth;

inline Vector broadcast(float x) { return x - Vector{}; }

inline Vector load_vector(const float* x) {
  Vector v;
  std::memcpy(&v, x, sizeof v);
  return v;
}

// kRows x kColumns products over `depth` elements: `a` points at kRows lanes of a panel, `b` at the
// panel of the first column; the next panel is `stride` floats further on.
inline void micro_product(const float* a, const float* b, int64_t stride, int64_t depth, bool first,
                          float* tile) {
  Vector s[kRows][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vector column[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v)
      column[v] = load_vector(b + v * kWidth / kLane * stride + k * kLane + v * kWidth % kLane);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vector row = broadcast(a[k * kLane + r]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) s[r][v] = fma(row, column[v], s[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      float* out = tile + r * kTile + v * kWidth;
      if (!first) s[r][v] += load_vector(out);
      std::memcpy(out, &s[r][v], sizeof(Vector));
    }
  }
}

void tile_product(const float* a, const float* b, int64_t d, float* tile) {
  const int64_t stride = d * kLane;
  for (int64_t k = 0; k < d; k += kChunk) {
    const int64_t depth = d - k < kChunk ? d - k : kChunk;
    for (int64_t col = 0; col < kTile; col += kColumns) {
      const float* b_panel = b + col / kLane * stride + k * kLane + col % kLane;
      for (int64_t row = 0; row < kTile; row += kRows) {
        const float* a_lanes = a + row / kLane * stride + k * kLane + row % kLane;
        micro_product(a_lanes, b_panel, stride, depth, k == 0, tile + row * kTile + col);
      }
    }
  }
}

#if defined(__aarch64__)
// A byte for each of 16 comparisons: the bit of its place in a byte of eight, or 0. Adding
// neighbours three times makes these eight bits one byte.
inline uint8x16_t places(uint32x4_t a, uint32x4_t b, uint32x4_t c, uint32x4_t d) {
  const uint16x8_t ab = vuzp1q_u16(vreinterpretq_u16_u32(a), vreinterpretq_u16_u32(b));
  const uint16x8_t cd = vuzp1q_u16(vreinterpretq_u16_u32(c), vreinterpretq_u16_u32(d));
  const uint8x16_t all = vuzp1q_u8(vreinterpretq_u8_u16(ab), vreinterpretq_u8_u16(cd));
  return vandq_u8(all, vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201)));
}
#endif

void tile_threshold(const float* tile, float low, float high, uint64_t* above, uint64_t* unsure) {
  for (int64_t i = 0; i < kTile; ++i) {
    uint64_t over = 0, from = 0;
    const float* row = tile + i * kTile;
#if defined(__AVX512F__)
    for (int64_t j = 0; j < kTile; j += 16) {
      const __m512 v = _mm512_loadu_ps(row + j);
      over |= uint64_t{_mm512_cmp_ps_mask(v, _mm512_set1_ps(high), _CMP_GT_OQ)} << j;
      from |= uint64_t{_mm512_cmp_ps_mask(v, _mm512_set1_ps(low), _CMP_GE_OQ)} << j;
    }
#elif defined(__AVX2__)
    for (int64_t j = 0; j < kTile; j += 8) {
      const __m256 v = _mm256_loadu_ps(row + j);
      const auto bits = [](__m256 compared) {
        return static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_ps(compared)));
      };
      over |= bits(_mm256_cmp_ps(v, _mm256_set1_ps(high), _CMP_GT_OQ)) << j;
      from |= bits(_mm256_cmp_ps(v, _mm256_set1_ps(low), _CMP_GE_OQ)) << j;
    }
#elif defined(__aarch64__)
    const float32x4_t least = vdupq_n_f32(low), most = vdupq_n_f32(high);
    uint8x16_t o[4], f[4];
    for (int64_t j = 0; j < 4; ++j) {
      float32x4_t v[4];
      for (int64_t k = 0; k < 4; ++k) v[k] = vld1q_f32(row + 16 * j + 4 * k);
      o[j] = places(vcgtq_f32(v[0], most), vcgtq_f32(v[1], most), vcgtq_f32(v[2], most),
                    vcgtq_f32(v[3], most));
      f[j] = places(vcgeq_f32(v[0], least), vcgeq_f32(v[1], least), vcgeq_f32(v[2], least),
                    vcgeq_f32(v[3], least));
    }
    const uint8x16_t both = vpaddq_u8(vpaddq_u8(vpaddq_u8(o[0], o[1]), vpaddq_u8(o[2], o[3])),
                                      vpaddq_u8(vpaddq_u8(f[0], f[1]), vpaddq_u8(f[2], f[3])));
    over = vgetq_lane_u64(vreinterpretq_u64_u8(both), 0);
    from = vgetq_lane_u64(vreinterpretq_u64_u8(both), 1);
#else
    for (int64_t j = 0; j < kTile; ++j) {
      over |= uint64_t{row[j] > high} << j;
      from |= uint64_t{row[j] >= low} << j;
    }
#endif
    above[i] = over;
    unsure[i] = from & ~over;
  }
}

#include "simd_integers.inl"

void add_popcounts(const uint64_t* words, int64_t size, int64_t* counts) {
  for (int64_t i = 0; i < size; ++i) counts[i] += __builtin_popcountll(words[i]);
}

#include "simd_products.inl"

// --- Vectors ---

void axpy(double a, const double* x, int64_t n, double* y) {
  int64_t i = 0;
  for (; i + kDoubles <= n; i += kDoubles) store(y + i, load(y + i) + a * load(x + i));
  for (; i < n; ++i) y[i] += a * x[i];
}

template <class T>
constexpr Rows<T> kRowsOf = {norm<T>,        round<T>,       dot<T, T>,     pack<T>,
                             dot<T, double>, rounded_dot<T>, add_rounded<T>};

}  // namespace

extern const Simd SELFMENT_SIMD = {
    SELFMENT_SIMD_NAME,
    kRowsOf<Float16>,
    kRowsOf<BFloat16>,
    kRowsOf<float>,
    kRowsOf<double>,
    tile_product,
    tile_threshold,
    quantise,
    integer_product,
    integer_threshold,
    add_popcounts,
    kTableSize,
    subset_sums,
    bits_matvec,
    tile_matvec,
    dot<double, double>,
    axpy,
};

}  // namespace selfment::cpu
