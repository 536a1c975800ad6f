// The automatic threshold, for both twins: Otsu's rule, in one order of operations, so that both
// compute the same bits. N. Otsu, A threshold selection method from gray-level histograms, 1979.
#pragma once

#include <cstdint>

#include "params.h"

namespace selfment {

inline constexpr int kBins = 256;  // of [-1, 1]

// The bin of a similarity; NaN is in the first bin.
SELFMENT_EVERYWHERE inline int bin_of(double similarity) {
  const double place = (similarity + 1) * (kBins / 2);
  if (!(place >= 0)) return 0;
  return place < kBins ? static_cast<int>(place) : kBins - 1;
}

// How many values there are, and the sum of the numbers of their bins. Both stay below 2^53.
struct Moments {
  int64_t count, sum;
};

// The between-class variance, up to a factor, of an edge that has `below` of all `values` below it.
SELFMENT_EVERYWHERE inline double class_variance(const Moments& below, const Moments& values) {
  const auto count = static_cast<double>(below.count), sum = static_cast<double>(below.sum);
  const auto total = static_cast<double>(values.count), whole = static_cast<double>(values.sum);
  const double difference = sum * total - count * whole;
  const double product = count * (total - count);
  return difference * difference / (product < 1 ? 1 : product);
}

// The threshold if `edges` edges, whose numbers have the sum `numbers`, are equally good; bin k
// begins at edge k. It is the mean of these edges, and at least 1 / 128.
SELFMENT_EVERYWHERE inline double threshold_of(int64_t numbers, int64_t edges) {
  constexpr double kWidth = 2.0 / kBins;
  const double sum = static_cast<double>(numbers) * kWidth - static_cast<double>(edges);
  const double mean = sum / static_cast<double>(edges);
  return mean < kWidth ? kWidth : mean;
}

}  // namespace selfment
