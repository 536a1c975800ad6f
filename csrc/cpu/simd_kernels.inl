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

// Eight doubles, in as many registers as the instruction set needs.
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
  // Subnormal numbers are made from an integer: as floats they might be flushed to zero.
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
  // Knuth's TwoSum: s + c is the sum of the squares to twice the precision of a double, so what it
  // rounds to is the same whatever the order. The square of a float is exact; that of a double is
  // rounded first, which is a rule of its own, and as independent of the order.
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

// kRows x kColumns products over `depth` elements: `a` points at kRows lanes of a panel, b_panels
// at the panel of the first column, whose neighbour lies `stride` floats further on.
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

// --- The same from integers ---

#if defined(__AVX2__)

double quantise(const float* f, int64_t depth, float least, int16_t* integers, float* step) {
  const auto at = [f](int64_t k) __attribute__((always_inline)) {
    Floats v;
    std::memcpy(&v, f + k, sizeof v);
    return v;
  };
  Floats largest = {};
  for (int64_t k = 0; k < depth; k += kQuantum) {
    const Floats v = at(k), size = v < 0 ? -v : v;
    largest = size > largest ? size : largest;
  }
  float unit = least;
  for (int l = 0; l < kDoubles; ++l)
    unit = largest[l] / 32766.0f > unit ? largest[l] / 32766.0f : unit;
  const float inverse = 1 / unit;
  // Adding it rounds to an integer.
  constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23
  Doubles squares = {};
  for (int64_t k = 0; k < depth; k += kQuantum) {
    const Floats v = at(k), q = (v * inverse + kRounder) - kRounder;
    const Doubles rest = __builtin_convertvector(v - q * unit, Doubles);
    squares += rest * rest;
    const Halves halves = __builtin_convertvector(__builtin_convertvector(q, Integers), Halves);
    std::memcpy(integers + k, &halves, sizeof halves);
  }
  *step = unit;
  return __builtin_sqrt(sum(squares));
}

#if defined(__AVX512F__)
typedef __m512i Pairs;
constexpr int kPairRows = 8;
inline Pairs repeat(int32_t pair) { return _mm512_set1_epi32(pair); }
inline void add_products(Pairs& sum, const Pairs& a, const Pairs& b) {
#if defined(__AVX512VNNI__)
  // The intrinsic makes GCC 12 copy every sum.
  asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#else
  sum = _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
#endif
}
#else
typedef __m256i Pairs;
constexpr int kPairRows = 4;
inline Pairs repeat(int32_t pair) { return _mm256_set1_epi32(pair); }
inline void add_products(Pairs& sum, const Pairs& a, const Pairs& b) {
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}
#endif

void integer_product(const int16_t* a, const int16_t* b, int64_t depth, int32_t* tile) {
  constexpr int64_t kDeep = 256;  // pairs of elements at a time, which the cache holds
  constexpr int kVectors = 2, kWide = sizeof(Pairs) / 4;
  const int64_t panel = depth * kLane;
  for (int64_t first = 0; first < depth / 2; first += kDeep) {
    const int64_t deep = depth / 2 - first < kDeep ? depth / 2 - first : kDeep;
    for (int64_t column = 0; column < kTile; column += kVectors * kWide) {
      const int16_t* right[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        const int64_t at = column + v * kWide;
        right[v] = b + at / kLane * panel + (first * kLane + at % kLane) * 2;
      }
      for (int64_t row = 0; row < kTile; row += kPairRows) {
        const int16_t* left = a + row / kLane * panel + (first * kLane + row % kLane) * 2;
        Pairs s[kPairRows][kVectors] = {};
        for (int64_t k = 0; k < deep; ++k) {
          Pairs columns[kVectors];
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v)
            std::memcpy(&columns[v], right[v] + k * kLane * 2, sizeof(Pairs));
#pragma GCC unroll 8
          for (int r = 0; r < kPairRows; ++r) {
            int32_t pair;
            std::memcpy(&pair, left + (k * kLane + r) * 2, sizeof pair);
            const Pairs repeated = repeat(pair);
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) add_products(s[r][v], repeated, columns[v]);
          }
        }
#pragma GCC unroll 8
        for (int r = 0; r < kPairRows; ++r) {
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v) {
            typedef int32_t Sums __attribute__((vector_size(sizeof(Pairs))));
            int32_t* out = tile + (row + r) * kTile + column + v * kWide;
            Sums total, before;
            std::memcpy(&total, &s[r][v], sizeof total);
            if (first > 0) {
              std::memcpy(&before, out, sizeof before);
              total += before;
            }
            std::memcpy(out, &total, sizeof total);
          }
        }
      }
    }
  }
}

void integer_threshold(const int32_t* tile, const RowScales& rows, const RowScales& columns,
                       float tau, uint64_t* above, uint64_t* unsure) {
  for (int64_t i = 0; i < kTile; ++i) {
    uint64_t over = 0, under = 0;
    for (int64_t j = 0; j < kTile; j += kDoubles) {
      Integers products;
      Floats steps, margins;
      std::memcpy(&products, tile + i * kTile + j, sizeof products);
      std::memcpy(&steps, columns.step + j, sizeof steps);
      std::memcpy(&margins, columns.margin + j, sizeof margins);
      const Floats difference =
          __builtin_convertvector(products, Floats) * (steps * rows.step[i]) - tau;
      margins += rows.margin[i];
      const auto bits = [](const Integers& mask) __attribute__((always_inline)) {
        const int set = _mm256_movemask_ps(reinterpret_cast<const __m256&>(mask));
        return static_cast<uint64_t>(static_cast<uint32_t>(set));
      };
      over |= bits(difference > margins) << j;
      under |= bits(difference < -margins) << j;
    }
    above[i] = over;
    unsure[i] = ~(over | under);
  }
}

#else

constexpr decltype(Simd::quantise) quantise = nullptr;
constexpr decltype(Simd::integer_product) integer_product = nullptr;
constexpr decltype(Simd::integer_threshold) integer_threshold = nullptr;

#endif

void add_popcounts(const uint64_t* words, int64_t size, int64_t* counts) {
  for (int64_t i = 0; i < size; ++i) counts[i] += __builtin_popcountll(words[i]);
}

// --- Products with the graph: the method of the Four Russians. All sums of subsets of a few
// neighbouring elements of x are tabulated; a few bits of a row then look up their sum. ---

#if defined(__AVX512F__)

// 16 sums for each 4 elements: a table is two registers, and one permutation looks up 8 rows.
constexpr int64_t kTableSize = 16 * 16;

void subset_sums(const double* x, int64_t words, double* table) {
  for (int64_t nibble = 0; nibble < words * 16; ++nibble, x += 4, table += 16) {
    __m512d low = _mm512_maskz_mov_pd(0b10101010, _mm512_set1_pd(x[0]));
    low = _mm512_add_pd(low, _mm512_maskz_mov_pd(0b11001100, _mm512_set1_pd(x[1])));
    low = _mm512_add_pd(low, _mm512_maskz_mov_pd(0b11110000, _mm512_set1_pd(x[2])));
    _mm512_storeu_pd(table, low);
    _mm512_storeu_pd(table + 8, _mm512_add_pd(low, _mm512_set1_pd(x[3])));
  }
}

void bits_matvec(const uint64_t* bits, int64_t words, int64_t rows, const double* table,
                 double* y) {
  constexpr int kBlocks = kTile / kDoubles;
  __m512d s[kBlocks];
  for (int r = 0; r < kBlocks; ++r) s[r] = _mm512_setzero_pd();
  for (int64_t w = 0; w < words; ++w) {
    __m512i row[kBlocks];
    for (int r = 0; r < kBlocks; ++r) row[r] = _mm512_loadu_si512(bits + w * rows + r * kDoubles);
    for (int nibble = 0; nibble < 16; ++nibble, table += 16) {
      const __m512d low = _mm512_loadu_pd(table), high = _mm512_loadu_pd(table + 8);
#pragma GCC unroll 8
      for (int r = 0; r < kBlocks; ++r) {
        // The permutation reads the lowest four bits of each index and no others.
        s[r] = _mm512_add_pd(s[r], _mm512_permutex2var_pd(low, row[r], high));
        row[r] = _mm512_srli_epi64(row[r], 4);
      }
    }
  }
  for (int r = 0; r < kBlocks; ++r) _mm512_storeu_pd(y + r * kDoubles, s[r]);
}

#else

// 256 sums for each 8 elements.
constexpr int64_t kTableSize = 8 * 256;

void subset_sums(const double* x, int64_t words, double* table) {
  for (int64_t byte = 0; byte < words * 8; ++byte, x += 8, table += 256) {
    table[0] = 0;
    for (int b = 0; b < 8; ++b)
      for (int s = 0; s < 1 << b; ++s) table[(1 << b) + s] = table[s] + x[b];
  }
}

void bits_matvec(const uint64_t* bits, int64_t words, int64_t rows, const double* table,
                 double* y) {
  for (int64_t i = 0; i < kTile; ++i) y[i] = 0;
  for (int64_t w = 0; w < words; ++w, table += kTableSize) {
    for (int64_t i = 0; i < kTile; ++i) {
      const uint64_t row = bits[w * rows + i];
      double s[8];
#pragma GCC unroll 8
      for (int b = 0; b < 8; ++b) s[b] = table[b * 256 + (row >> (8 * b) & 255)];
      y[i] += ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
    }
  }
}

#endif

#if defined(__AVX512F__)

// The sums of eight rows, each in the order of sum().
inline __m512d sums(const __m512d* row) {
  const auto halves = [](const __m512d& a, const __m512d& b) __attribute__((always_inline)) {
    return _mm512_add_pd(_mm512_shuffle_f64x2(a, b, 0x44), _mm512_shuffle_f64x2(a, b, 0xEE));
  };
  const auto quarters = [](const __m512d& a, const __m512d& b) __attribute__((always_inline)) {
    return _mm512_add_pd(_mm512_shuffle_f64x2(a, b, 0x88), _mm512_shuffle_f64x2(a, b, 0xDD));
  };
  const __m512d even = quarters(halves(row[0], row[2]), halves(row[4], row[6]));
  const __m512d odd = quarters(halves(row[1], row[3]), halves(row[5], row[7]));
  return _mm512_add_pd(_mm512_unpacklo_pd(even, odd), _mm512_unpackhi_pd(even, odd));
}

#endif

int64_t tile_matvec(const uint64_t* mask, const float* weights, const double* xi, const double* xj,
                    double* yi, double* yj) {
  const float* weight = weights;
#if defined(__AVX512F__)
  constexpr int kBlocks = kTile / kDoubles;
  Doubles x[kBlocks], y[kBlocks] = {};
  for (int b = 0; b < kBlocks; ++b) x[b] = load(xj + b * kDoubles);
  for (int64_t first = 0; first < kTile; first += kDoubles) {
    __m512d s[kDoubles];
    for (int r = 0; r < kDoubles; ++r) {
      const uint64_t row = mask[first + r];
      const __m512d xr = _mm512_set1_pd(xi[first + r]);
      s[r] = _mm512_setzero_pd();
#pragma GCC unroll 8
      for (int b = 0; b < kBlocks; ++b) {
        const __mmask8 bits = static_cast<__mmask8>(row >> (8 * b));
        // Expanding straight from memory is microcode on AMD: the barrier keeps the load apart. The
        // strip is padded for it.
        __m256 next = _mm256_loadu_ps(weight);
        __asm__("" : "+v"(next));
        const __m512d v = _mm512_cvtps_pd(_mm256_maskz_expand_ps(bits, next));
        weight += __builtin_popcount(bits);
        s[r] = _mm512_fmadd_pd(v, x[b], s[r]);
        y[b] = _mm512_fmadd_pd(v, xr, y[b]);
      }
    }
    store(yi + first, load(yi + first) + sums(s));
  }
  if (yj != nullptr)
    for (int b = 0; b < kBlocks; ++b) store(yj + b * kDoubles, load(yj + b * kDoubles) + y[b]);
#else
  double unused[kTile];
  if (yj == nullptr) {
    std::memset(unused, 0, sizeof unused);
    yj = unused;
  }
  for (int64_t i = 0; i < kTile; ++i) {
    double s = 0;
    for (uint64_t bits = mask[i]; bits != 0; bits &= bits - 1, ++weight) {
      const int j = __builtin_ctzll(bits);
      s += *weight * xj[j];
      yj[j] += *weight * xi[i];
    }
    yi[i] += s;
  }
#endif
  return weight - weights;
}

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
