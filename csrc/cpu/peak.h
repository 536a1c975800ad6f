// The peak of a vector, chosen so that it does not depend on the rounding of a solver.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../params.h"

namespace selfment::cpu {

// Returns the first i in [0, n) whose value(i) equals the largest value up to kPeakTie.
template <class Value>
int64_t first_peak(int64_t n, const Value& value) {
  double peak = value(0);
  for (int64_t i = 1; i < n; ++i) peak = std::max(peak, value(i));
  const double enough = peak - kPeakTie * std::abs(peak);
  int64_t first = 0;
  while (value(first) < enough) ++first;
  return first;
}

}  // namespace selfment::cpu
