// The largest eigenvalue of a small symmetric tridiagonal matrix, its vector, and the second
// largest eigenvalue: by one warp, which waits for no other.
//
// Multisection finds the eigenvalues: each lane counts those above a point of its own, by the signs
// of leading principal minors (Wilkinson, The Algebraic Eigenvalue Problem, 5.38). The vector comes
// from factorizations of T - theta from both ends, which are twisted together at the row where it
// is largest (Dhillon and Parlett, Orthogonal eigenvectors and relative gaps, 2004). Its small
// entries are then products of pivots, without cancellation: the last entry, from which Lanczos
// computes its residual, has a small relative error as soon as theta's error is small against the
// gap to the second eigenvalue.
#pragma once

#include "platform.h"
#include "rows.cuh"

namespace selfment::cuda {

inline constexpr int kTridiagonalRows = 64;  // the most rows of T

// T and its factorizations, in shared memory. T is scaled by a power of two, so that all
// eigenvalues are within (-2, 2).
struct Tridiagonal {
  // diagonal[i] is at row i, and beside[i] between rows i and i + 1. squares[i] is the square of
  // the entry between rows i - 1 and i, but never 0.
  double diagonal[kTridiagonalRows], beside[kTridiagonalRows], squares[kTridiagonalRows];
  double down[kTridiagonalRows], up[kTridiagonalRows];  // pivots from the first and the last row
  double vector[kTridiagonalRows];
};

inline constexpr int kMinorsAtOnce = 8;    // rows between two looks at the range of numbers
inline constexpr int kPoints = kWarp / 2;  // points at a time, for each of two eigenvalues
inline constexpr int kMostRounds = 14;     // of multisection: 4 / 17^14 is below rounding
inline constexpr double kTinyBeside = 0x1p-60;
inline constexpr double kTinyPivot = 0x1p-200;

// Scales T, whose rows are in place. Fills in the squares, and the rows up to a multiple of
// kMinorsAtOnce, which add eigenvalues below all points. Returns the scale.
__device__ __forceinline__ double prepare(Tridiagonal& t, int size, int lane) {
  double bound = 0;
  for (int i = lane; i < size; i += kWarp)
    bound = fmax(bound, fabs(t.diagonal[i]) + (i == 0 ? 0 : fabs(t.beside[i - 1])) +
                            (i + 1 == size ? 0 : fabs(t.beside[i])));
  bound = warp_max(bound);
  __syncwarp();
  const double scale = bound > 0 ? ldexp(1.0, -ilogb(bound)) : 1;
  for (int i = lane; i < kTridiagonalRows; i += kWarp) {
    t.diagonal[i] = i < size ? scale * t.diagonal[i] : -4;
    t.beside[i] = i + 1 < size ? scale * t.beside[i] : 0;
  }
  __syncwarp();
  for (int i = lane; i < kTridiagonalRows; i += kWarp) {
    const double above = i == 0 ? 0 : t.beside[i - 1];
    t.squares[i] = fmax(above * above, kTinyBeside * kTinyBeside);
  }
  __syncwarp();
  return scale;
}

// Counts the eigenvalues above x: as many as leading minors of T - x have the sign of the minor
// before. A minor may vanish, but never two in turn, as no square is 0. The signs on its two sides
// are then opposite, so exactly one of the two comparisons counts, whatever its own sign is.
__device__ __forceinline__ int eigenvalues_above(const Tridiagonal& t, int size, double x) {
  double before = 0, minor = 1;
  int above = 0;
  for (int first = 0; first < size; first += kMinorsAtOnce) {
#pragma unroll
    for (int row = 0; row < kMinorsAtOnce; ++row) {
      const int i = first + row;
      const double next = fma(t.diagonal[i] - x, minor, -(t.squares[i] * before));
      above += (__double_as_longlong(next) ^ __double_as_longlong(minor)) >= 0 ? 1 : 0;
      before = minor;
      minor = next;
    }
    // Scales the minors back to about 1. In so few rows the larger of the two changes by a factor
    // between 2^-490 and 2^21.
    const double large = fmax(fabs(before), fabs(minor));
    const long long exponent = __double_as_longlong(large) >> 52;
    const double factor = __longlong_as_double((2046 - exponent) << 52);
    before *= factor;
    minor *= factor;
  }
  return above;
}

// Returns the largest eigenvalue to lanes below kPoints, and the second largest to the others, to
// an error of `share` of their distance, or of rounding.
__device__ __forceinline__ double two_largest(const Tridiagonal& t, int size, double share,
                                              int lane) {
  const int index = lane / kPoints, point = lane % kPoints, base = index * kPoints;
  double low = -2, high = 2;
  for (int round = 0; round < kMostRounds; ++round) {
    const double x = low + (high - low) * ((point + 1) / (kPoints + 1.0));
    const unsigned above = __ballot_sync(kAllLanes, eigenvalues_above(t, size, x) > index);
    const int below = __ffs(static_cast<int>(~(above >> base & 0xffffu))) - 1;  // points below it
    const double from = __shfl_sync(kAllLanes, x, base + max(below - 1, 0));
    const double to = __shfl_sync(kAllLanes, x, base + min(below, kPoints - 1));
    if (below > 0) low = from;
    if (below < kPoints) high = to;
    const double apart = __shfl_sync(kAllLanes, low, 0) - __shfl_sync(kAllLanes, high, kPoints);
    if (__all_sync(kAllLanes, high - low <= fmax(0x1p-53, share * apart))) break;
  }
  return (low + high) / 2;
}

// Factorizes T - theta from both ends: lane 0 goes down, lane 1 up. Returns the row where they meet
// with the smallest pivot, which is where the vector is large.
__device__ __forceinline__ int factorize(Tridiagonal& t, int size, double theta, int lane) {
  if (lane < 2) {
    double pivot = 1;
    for (int step = 0; step < size; ++step) {
      const int i = lane == 0 ? step : size - 1 - step;
      const double coupling = step == 0 ? 0 : t.beside[lane == 0 ? i - 1 : i];
      pivot = t.diagonal[i] - theta - coupling * coupling / pivot;
      if (fabs(pivot) < kTinyPivot) pivot = -kTinyPivot;
      (lane == 0 ? t.down : t.up)[i] = pivot;
    }
  }
  __syncwarp();
  double least = INFINITY;
  int twist = 0;
  for (int i = lane; i < size; i += kWarp) {
    const double below = i + 1 == size ? 0 : t.beside[i] * t.beside[i] / t.up[i + 1];
    const double pivot = fabs(t.down[i] - below);
    if (!(pivot < least)) continue;
    least = pivot;
    twist = i;
  }
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    const double other = __shfl_xor_sync(kAllLanes, least, lanes);
    const int at = __shfl_xor_sync(kAllLanes, twist, lanes);
    if (!(other < least || (other == least && at < twist))) continue;
    least = other;
    twist = at;
  }
  return twist;
}

// Solves for the unit vector of the factorizations that meet at row `twist`, into t.vector.
__device__ __forceinline__ void solve_twisted(Tridiagonal& t, int size, int twist, int lane) {
  for (int i = lane; i < size; i += kWarp)
    t.vector[i] = i < twist ? -t.beside[i] / t.down[i] : i > twist ? -t.beside[i - 1] / t.up[i] : 1;
  __syncwarp();
  if (lane < 2) {  // these are the ratios of neighbours
    const int step = lane == 0 ? -1 : 1;
    double entry = 1;
    for (int i = twist + step; i >= 0 && i < size; i += step) t.vector[i] = entry *= t.vector[i];
  }
  __syncwarp();
  double squares = 0;
  for (int i = lane; i < size; i += kWarp) squares += t.vector[i] * t.vector[i];
  const double norm = sqrt(warp_sum(squares));
  for (int i = lane; i < size; i += kWarp) t.vector[i] /= norm;
}

// Computes the two largest eigenvalues of the leading `size` rows of T, into values[0] and
// values[1] (the second is void if there is one row), and the unit vector of the first, by a warp:
// in full, or only to `share` of the distance of the two. T is in t.diagonal and t.beside, which it
// overwrites.
__device__ __forceinline__ void leading_pair(Tridiagonal& t, int size, double share, double* values,
                                             double* vector) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  __syncwarp();
  const double scale = prepare(t, size, lane);
  const double theta = two_largest(t, size, share, lane);
  const int twist = factorize(t, size, __shfl_sync(kAllLanes, theta, 0), lane);
  solve_twisted(t, size, twist, lane);
  if (lane % kPoints == 0) values[lane / kPoints] = theta / scale;
  for (int i = lane; i < size; i += kWarp) vector[i] = t.vector[i];
}

}  // namespace selfment::cuda
