// The innermost loops, compiled once per instruction set from simd_kernels.inl and chosen when
// first used. They read and write raw pointers, allocate nothing, and start no threads.
//
// Only these functions are compiled for newer instruction sets: if a standard-library template were
// instantiated there, the linker might keep that copy for all callers.
#pragma once

#include <cstdint>

#include "../params.h"

namespace selfment::cpu {

inline constexpr int64_t kTile = 64;    // rows and columns of a tile of the graph
inline constexpr int64_t kLane = 16;    // rows interleaved in a panel
inline constexpr int64_t kQuantum = 8;  // the length of a row of integers is a multiple of this
inline constexpr int64_t kAtOnce = 2;   // vectors that a tile of weights multiplies at once

// Loops over one row of features. The rounded row is float32(x / norm), element by element, with
// IEEE rounding in every step.
template <class T>
struct Rows {
  // |x|, at least 1e-12, or not finite if an element is not. The sum of the squares is compensated,
  // so that the result does not depend on its order.
  double (*norm)(const T* x, int64_t d);
  // f = the rounded row.
  void (*round)(const T* x, double norm, int64_t d, float* f);
  // <x, y> of two unrounded rows.
  double (*product)(const T* x, const T* y, int64_t d);
  // Writes `count` <= 16 rounded rows into a panel (d, 16); lanes from `count` on are 0.
  void (*pack)(const T* rows, const double* norms, int64_t count, int64_t d, float* panel);
  // <x, w> of the unrounded row, and of the rounded row.
  double (*dot)(const T* x, const double* w, int64_t d);
  double (*rounded_dot)(const T* x, double norm, const double* w, int64_t d);
  // sum += sign * rounded row
  void (*add_rounded)(const T* x, double norm, double sign, int64_t d, double* sum);
};

// The factors of 64 rows of integers, and each row's share in the error.
struct RowScales {
  float step[kTile], margin[kTile];
};

struct Simd {
  const char* name;

  Rows<Float16> float16;
  Rows<BFloat16> bfloat16;
  Rows<float> float32;
  Rows<double> float64;

  template <class T>
  const Rows<T>& rows() const;

  // --- Graph ---

  // The 64 x 64 inner products of 4 panels with 4 panels. A sum runs over chunks of kChunk
  // elements, each from zero, and then over the chunks: see edges.cpp for its error bound.
  void (*tile_product)(const float* a, const float* b, int64_t d, float* tile);
  // Bit j of above[i]: tile[i][j] > high. Bit j of unsure[i]: low <= tile[i][j] <= high.
  void (*tile_threshold)(const float* tile, float low, float high, uint64_t* above,
                         uint64_t* unsure);

  // The same from integers; nullptr if integers are not faster. A row of integers has `depth`
  // elements, d rounded up to kQuantum; 16 rows make a panel (depth / 2, 16, 2).
  //
  // integers = f / step, rounded; step is at least `least`, so that they fit. f has `depth`
  // elements, 0 from d on. Returns |f - step * integers|.
  double (*quantise)(const float* f, int64_t depth, float least, int16_t* integers, float* step);
  // The 64 x 64 inner products of 4 panels with 4 panels.
  void (*integer_product)(const int16_t* a, const int16_t* b, int64_t depth, int32_t* tile);
  // Does what tile_threshold does for similarities product * step * step; low and high are tau -+
  // the sum of the margins of the row and the column.
  void (*integer_threshold)(const int32_t* tile, const RowScales& rows, const RowScales& columns,
                            float tau, uint64_t* above, uint64_t* unsure);

  // counts[i] += set bits of words[i].
  void (*add_popcounts)(const uint64_t* words, int64_t size, int64_t* counts);

  // --- Products with the graph ---

  // Sums of subsets of x, `table_size` doubles for each 64 elements, for bits_matvec.
  int64_t table_size;
  void (*subset_sums)(const double* x, int64_t words, double* table);
  // y[i] = sum of x[j] over the set bits j of row i, for the 64 rows of a block: bits[w * rows +
  // i].
  void (*bits_matvec)(const uint64_t* bits, int64_t words, int64_t rows, const double* table,
                      double* y);
  // One tile of weights V: yi += V xj and, unless yj is null, yj += V^T xi, for each of `columns`
  // <= kAtOnce vectors, `stride` apart. Returns the number of weights, one for each set bit.
  int64_t (*tile_matvec)(const uint64_t* mask, const float* weights, int64_t columns,
                         int64_t stride, const double* xi, const double* xj, double* yi,
                         double* yj);

  // --- Vectors ---

  double (*dot)(const double* x, const double* y, int64_t n);
  void (*axpy)(double a, const double* x, int64_t n, double* y);  // y += a x
};

inline constexpr int64_t kChunk = 256;

template <>
inline const Rows<Float16>& Simd::rows() const {
  return float16;
}
template <>
inline const Rows<BFloat16>& Simd::rows() const {
  return bfloat16;
}
template <>
inline const Rows<float>& Simd::rows() const {
  return float32;
}
template <>
inline const Rows<double>& Simd::rows() const {
  return float64;
}

// The best instruction set that this processor has; SELFMENT_ISA, one of their names, limits it.
const Simd& simd();

extern const Simd kSimdPortable;
#if defined(SELFMENT_X86)
extern const Simd kSimdAvx2;
extern const Simd kSimdAvx512;
extern const Simd kSimdAvx512Vnni;
#endif

}  // namespace selfment::cpu
