// Finishes a label: computes its confidence, rejects it if that is too low, and makes the maps that
// are returned.
#include <algorithm>

#include "../confidence.h"
#include "workers.h"

namespace selfment::cpu {

namespace {

constexpr double kSteps = 2;  // operations for each patch, roughly

void finish_image(const FinishParams& p, int64_t image) {
  const int64_t n = p.n;
  const bool* labels = p.labels + image * n;
  const double* x = p.fiedler + image * n;
  int64_t foreground = 0;
  for (int64_t i = 0; i < n; ++i) foreground += labels[i];
  int64_t quarters = 0, first = 0;
  for (int64_t f = 0; f < p.frames; ++f) {
    quarters += corner_quarters(labels + first, p.grids[f]);
    first += p.grids[f].h * p.grids[f].w;
  }
  const double sure = confidence({p.eigenvalues[image], p.gaps[image], p.separation[image], n,
                                  foreground, quarters, p.frames});
  const bool rejected = sure < p.min_confidence;
  p.confidence[image] = sure;
  p.rejected[image] = rejected;
  bool* mask = p.mask + image * n;
  if (rejected) std::fill_n(mask, n, false);
  else std::copy_n(labels, n, mask);
  for (int64_t i = 0; i < n; ++i) p.vectors[image * n + i] = static_cast<float>(x[i]);
}

}  // namespace

void finish(const FinishParams& p, const Context& context) {
  for_each_image(p.batch, kSteps * static_cast<double>(p.n), context,
                 [&](int64_t image, Workers&) { finish_image(p, image); });
}

}  // namespace selfment::cpu
