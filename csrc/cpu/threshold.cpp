// Otsu's threshold of the similarities of a sample of patches.
#include "../threshold.h"

#include "workers.h"

namespace selfment::cpu {

namespace {

double otsu(const double* similarities, int64_t m) {
  int64_t counts[kBins] = {};
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = i + 1; j < m; ++j) ++counts[bin_of(similarities[i * m + j])];
  Moments values{};
  for (int k = 0; k < kBins; ++k) {
    values.count += counts[k];
    values.sum += counts[k] * k;
  }
  Moments below{};
  double best = -1;
  int64_t numbers = 0, edges = 0;
  for (int k = 1; k < kBins; ++k) {
    below.count += counts[k - 1];
    below.sum += counts[k - 1] * (k - 1);
    const double variance = class_variance(below, values);
    if (variance < best) continue;
    if (variance > best) numbers = edges = 0;
    best = variance;
    numbers += k;
    ++edges;
  }
  return threshold_of(numbers, edges);
}

}  // namespace

void threshold(const ThresholdParams& p, const Context& context) {
  const int64_t pairs = p.m * p.m;
  for_each_image(p.batch, static_cast<double>(pairs), context, [&](int64_t image, Workers&) {
    p.taus[image] = otsu(p.similarities + image * pairs, p.m);
  });
}

}  // namespace selfment::cpu
