// The confidence of a label, for both twins: the rule of selfment/core/confidence.py, in the same
// order of operations, so that both compute the same bits. NaN stays NaN.
#pragma once

#include <math.h>

#include <cstdint>

#include "params.h"

namespace selfment {

struct ConfidenceTerms {
  double eigenvalue, gap, separation;
  int64_t n, foreground;     // patches
  int64_t quarters, frames;  // the sum over the frames of corner_quarters
};

// Four times the share of a frame's corners that are foreground. A grid with a side of 1 has two
// corners, or one: then each counts twice, or four times.
SELFMENT_EVERYWHERE inline int64_t corner_quarters(const bool* labels, const Grid& grid) {
  const int64_t last = grid.h * grid.w - 1;
  return int64_t{labels[0]} + int64_t{labels[grid.w - 1]} + int64_t{labels[last - grid.w + 1]} +
         int64_t{labels[last]};
}

SELFMENT_EVERYWHERE inline double confidence(const ConfidenceTerms& t) {
  const auto size = static_cast<double>(t.n), foreground = static_cast<double>(t.foreground);
  // 1 / n_f + 1 / n_b; infinite if a class is empty.
  const double chance = 1 / (foreground * (size - foreground)) * size;
  const double separation = t.separation > 1 ? 1 : t.separation;
  const double above = separation * separation - chance;
  const double apart = sqrt(above < 0 ? 0 : above);
  const double cost = t.eigenvalue < 0 ? 0 : t.eigenvalue > 1 ? 1 : t.eigenvalue;
  const double both = cost + t.gap;
  const double ambiguous = cost / (both < 1e-30 ? 1e-30 : both);
  const double corners = static_cast<double>(t.quarters) / 4 / static_cast<double>(t.frames);
  const double ground = foreground * corners / size;
  return (1 - cost) * apart * (1 - (ambiguous + ground) / 4);
}

}  // namespace selfment
