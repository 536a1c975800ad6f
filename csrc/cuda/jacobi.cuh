// All eigenpairs of a small symmetric matrix, by one block: by Jacobi's rotations, of all disjoint
// pairs of rows at the same time (Golub and Van Loan, 8.5.5).
#pragma once

#include "platform.h"

namespace selfment::cuda {

inline constexpr int kMostSweeps = 40;

// Computes the eigenvalues of the (size, size) matrix `a`, descending, in `values`, and its
// eigenvectors in the rows of `vectors`. It overwrites `a`, and `v` of the same size. `rotations`
// has size + 1 doubles and `busy` is an int, both in shared memory. The function is inlined, so
// that the compiler knows in which memory the other arrays are.
__device__ __forceinline__ void jacobi(double* a, double* v, int size, double* values,
                                       double* vectors, double* rotations, int* busy) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int even = size + size % 2, pairs = even / 2;
  for (int at = thread; at < size * size; at += threads) v[at] = at / size == at % size ? 1 : 0;
  __syncthreads();
  double scale = 0;
  for (int i = 0; i < size; ++i) scale = fmax(scale, fabs(a[i * size + i]));
  for (int i = 0; i + 1 < size; ++i) scale = fmax(scale, fabs(a[i * size + i + 1]));
  const double negligible = scale * 0x1p-54;
  // Computes pair p of a round: every row meets every other once in even - 1 rounds. False if one
  // of them is row `size`, which does not exist.
  const auto pair_of = [&](int round, int p, int* i, int* j) {
    const int one = p == 0 ? even - 1 : (round + p) % (even - 1);
    const int other = (round - p + even - 1) % (even - 1);
    *i = min(one, other);
    *j = max(one, other);
    return *j < size;
  };
  for (int sweep = 0; sweep < kMostSweeps; ++sweep) {
    __syncthreads();
    if (thread == 0) *busy = 0;
    __syncthreads();
    for (int round = 0; round < even - 1; ++round) {
      for (int p = thread; p < pairs; p += threads) {
        int i, j;
        double c = 1, s = 0;
        if (pair_of(round, p, &i, &j) && fabs(a[i * size + j]) > negligible) {
          const double tau = (a[j * size + j] - a[i * size + i]) / (2 * a[i * size + j]);
          const double t = copysign(1 / (fabs(tau) + sqrt(1 + tau * tau)), tau);
          c = 1 / sqrt(1 + t * t);
          s = t * c;
          atomicExch(busy, 1);
        }
        rotations[2 * p] = c;
        rotations[2 * p + 1] = s;
      }
      __syncthreads();
      for (int at = thread; at < pairs * size; at += threads) {
        const int p = at / size, k = at % size;
        int i, j;
        if (!pair_of(round, p, &i, &j)) continue;
        const double c = rotations[2 * p], s = rotations[2 * p + 1];
        double x = a[i * size + k], y = a[j * size + k];
        a[i * size + k] = c * x - s * y;
        a[j * size + k] = s * x + c * y;
        x = v[i * size + k];
        y = v[j * size + k];
        v[i * size + k] = c * x - s * y;
        v[j * size + k] = s * x + c * y;
      }
      __syncthreads();
      for (int at = thread; at < pairs * size; at += threads) {
        const int p = at / size, k = at % size;
        int i, j;
        if (!pair_of(round, p, &i, &j)) continue;
        const double c = rotations[2 * p], s = rotations[2 * p + 1];
        const double x = a[k * size + i], y = a[k * size + j];
        // A rotation is chosen to make this entry 0; rounding would leave enough for another sweep.
        a[k * size + i] = s != 0 && k == j ? 0 : c * x - s * y;
        a[k * size + j] = s != 0 && k == i ? 0 : s * x + c * y;
      }
      __syncthreads();
    }
    if (*busy == 0) break;
  }
  for (int i = thread; i < size; i += threads) {
    const double value = a[i * size + i];
    int rank = 0;
    for (int j = 0; j < size; ++j)
      rank += a[j * size + j] > value || (a[j * size + j] == value && j < i) ? 1 : 0;
    values[rank] = value;
    for (int k = 0; k < size; ++k) vectors[rank * size + k] = v[i * size + k];
  }
}

}  // namespace selfment::cuda
