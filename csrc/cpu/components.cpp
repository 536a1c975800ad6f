// From the Fiedler vector to the initial mask: TokenCut's rule, and MaskCut's corner rule.
#include <algorithm>
#include <cmath>
#include <vector>

#include "peak.h"
#include "workers.h"

namespace selfment::cpu {

namespace {

// Keeps the seed's 4-connected component of `side` in `mask`.
void keep_component(const std::vector<char>& side, int64_t h, int64_t w, int64_t seed, bool* mask) {
  std::fill_n(mask, h * w, false);
  std::vector<int64_t> open;
  const auto visit = [&](int64_t i) {
    if (!side[i] || mask[i]) return;
    mask[i] = true;
    open.push_back(i);
  };
  visit(seed);
  while (!open.empty()) {
    const int64_t i = open.back(), column = i % w;
    open.pop_back();
    if (i >= w) visit(i - w);
    if (i < (h - 1) * w) visit(i + w);
    if (column > 0) visit(i - 1);
    if (column < w - 1) visit(i + 1);
  }
}

int64_t initial_mask(const double* x, int64_t h, int64_t w, bool corners, bool* mask) {
  const int64_t n = h * w;
  double average = 0;
  for (int64_t i = 0; i < n; ++i) average += x[i];
  average /= static_cast<double>(n);
  std::vector<char> side(n);
  for (int64_t i = 0; i < n; ++i) side[i] = x[i] > average;
  const auto complement = [&] {
    for (auto& s : side) s = !s;
  };
  int64_t seed = first_peak(n, [x](int64_t i) { return std::abs(x[i]); });
  const bool reversed = !side[seed];
  if (reversed) complement();
  if (corners && side[0] + side[w - 1] + side[(h - 1) * w] + side[n - 1] >= 3 &&
      std::count(side.begin(), side.end(), 0) > 0) {
    // The other side: its seed is the patch that is deepest in it.
    complement();
    const double sign = reversed ? 1 : -1;
    seed = first_peak(n, [x, sign](int64_t i) { return sign * x[i]; });
  }
  keep_component(side, h, w, seed, mask);
  return seed;
}

}  // namespace

void components(const ComponentsParams& p, const Context& context) {
  const int64_t n = p.h * p.w;
  for_each_image(p.batch, context, [&](int64_t image, Workers&) {
    p.seed[image] = initial_mask(p.fiedler + image * n, p.h, p.w, p.corners, p.mask + image * n);
  });
}

}  // namespace selfment::cpu
