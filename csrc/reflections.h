// The sign that LAPACK gives an eigenvector, for both twins.
#pragma once

#include <cstdint>

#include "params.h"

namespace selfment {

// Returns the sign of column `index` of Q, 1 or -1. Q = H_1 .. H_m is a product of reflections, H_j
// of the entries from j on, as xSYTRD and xGEQRF make them; its columns are known up to their
// signs, as orthonormal vectors. The signs of the columns before `index` come first, by earlier
// calls.
//
// Q = I - V U with V unit lower and U upper triangular, so an LU decomposition of the vectors minus
// a diagonal of signs S yields V. After elimination the entry at (index, index) is that of the
// column after the reflections before it. xLARFG makes it negative, which settles S; only the
// `last` entry has nothing to be reflected with, and is 1 (Ballard, Demmel, Grigori, Jacquelin,
// Knight and Nguyen, Reconstructing Householder vectors from TSQR, 2015). Pivots are 1 or more.
//
// entry(i, j): entry i of vector j, for i, j <= index. factors: (index + 1, stride), kept from call
// to call.
template <class Entry>
SELFMENT_EVERYWHERE double column_sign(int64_t index, bool last, const Entry& entry,
                                       double* factors, int64_t stride) {
  for (int64_t i = 0; i <= index; ++i) {
    const auto reduced = [&](int64_t row, int64_t column, int64_t steps) {
      double value = entry(row, column);
      for (int64_t k = 0; k < steps; ++k)
        value -= factors[row * stride + k] * factors[k * stride + column];
      return value;
    };
    if (i < index) factors[index * stride + i] = reduced(index, i, i) / factors[i * stride + i];
    factors[i * stride + index] = reduced(i, index, i);
  }
  double& pivot = factors[index * stride + index];
  const double sign = (pivot > 0) == last ? 1 : -1;
  pivot -= sign;
  return sign;
}

// The entry of largest magnitude of a unit vector whose entries become known one by one. Among
// equal entries, which only rounding distinguishes, it is the first.
struct LargestEntry {
  double value = 0, left = 1;  // left: the sum of the squares of the unknown entries

  SELFMENT_EVERYWHERE void add(double entry) {
    left -= entry * entry;
    if (entry * entry > (1 + kPeakTie) * value * value) value = entry;
  }

  // True if no entry that is still unknown can be larger.
  SELFMENT_EVERYWHERE bool certain() const { return (1 + kPeakTie) * value * value >= left; }
};

}  // namespace selfment
