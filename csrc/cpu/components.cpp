// Makes the initial mask from the Fiedler vector, in each of the frames that share the vector: by
// TokenCut's rule, and MaskCut's corner rule.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "peak.h"
#include "workers.h"

namespace selfment::cpu {

namespace {

constexpr double kSteps = 20;  // operations for each patch, roughly

// Marks in `mask` the 4-connected component of `side` that has the patch `seed`.
void keep_component(const char* side, const Grid& grid, int64_t seed, bool* mask) {
  const auto [h, w] = grid;
  std::vector<int64_t> open;
  const auto visit = [&, mask](int64_t i) {
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

// The side of the cut that is the foreground. Its peak is where sign * x is largest.
struct Foreground {
  std::vector<char> side;  // (n,)
  int64_t seed;
  double sign;
};

Foreground foreground(const double* x, const ComponentsParams& p) {
  const int64_t n = p.n;
  double average = 0;
  for (int64_t i = 0; i < n; ++i) average += x[i];
  average /= static_cast<double>(n);
  std::vector<char> side(n);
  for (int64_t i = 0; i < n; ++i) side[i] = x[i] > average;
  const auto complement = [&] {
    for (auto& s : side) s = !s;
  };
  int64_t seed = first_peak(n, [x](int64_t i) { return std::abs(x[i]); });
  double sign = side[seed] ? 1 : -1;
  if (sign < 0) complement();
  if (!p.corners) return {std::move(side), seed, sign};
  int64_t inside = 0, first = 0;
  for (int64_t f = 0; f < p.frames; ++f) {
    const auto [h, w] = p.grids[f];
    const char* corner = side.data() + first;
    inside += corner[0] + corner[w - 1] + corner[(h - 1) * w] + corner[h * w - 1];
    first += h * w;
  }
  if (inside >= 3 * p.frames && std::count(side.begin(), side.end(), 0) > 0) {
    // Changes to the other side, whose seed is the patch that is deepest in it.
    complement();
    sign = -sign;
    seed = first_peak(n, [x, sign](int64_t i) { return sign * x[i]; });
  }
  return {std::move(side), seed, sign};
}

void initial_masks(const double* x, const ComponentsParams& p, int64_t image) {
  const Foreground kept = foreground(x, p);
  bool* mask = p.mask + image * p.n;
  std::fill_n(mask, p.n, false);
  p.seed[image] = kept.seed;
  int64_t first = 0;
  for (int64_t f = 0; f < p.frames; ++f) {
    const int64_t size = p.grids[f].h * p.grids[f].w;
    const char* side = kept.side.data() + first;
    int64_t peak = kept.seed - first;
    if (peak < 0 || peak >= size)
      peak = first_peak(size, [&](int64_t i) {
        return side[i] ? kept.sign * x[first + i] : -std::numeric_limits<double>::infinity();
      });
    keep_component(side, p.grids[f], peak, mask + first);
    p.peaks[image * p.frames + f] = side[peak] ? peak : -1;
    first += size;
  }
}

}  // namespace

void components(const ComponentsParams& p, const Context& context) {
  for_each_image(p.batch, kSteps * static_cast<double>(p.n), context, [&](int64_t image, Workers&) {
    initial_masks(p.fiedler + image * p.n, p, image);
  });
}

}  // namespace selfment::cpu
