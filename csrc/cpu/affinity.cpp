// From features to the affinity graph: a bit for each pair, and in weighted mode a float for each
// edge.
//
// The rule. Rows are normalised in double and rounded to float32. A pair is an edge iff the inner
// product of its two float32 rows, taken in double, is > tau (binary) or >= tau (weighted).
//
// The way. The product is taken in float32, tile by tile, on and above the diagonal. Its error has
// a bound, so a pair farther than that from tau is decided; the few others are taken in double.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "matvec.h"
#include "simd.h"
#include "workers.h"

namespace selfment::cpu {

namespace {

// The packed rows that an image needs at a time: a group of columns, in full depth. It bounds the
// scratch memory; a smaller group means that the rows before it are packed once more for it.
constexpr int64_t kGroupBytes = int64_t{16} << 20;

// Bound on |float32 product - exact product| of two rounded rows of d elements. A chunk is a sum of
// kChunk products, one rounding each (two without fma), from zero; then the chunks are summed. With
// u = 2^-24 an element passes at most m = kChunk + chunks + 1 roundings, so that the error is at
// most gamma_m = m u / (1 - m u) times sum |a_k b_k| <= |a| |b| (Cauchy-Schwarz), and a rounded row
// has |a| <= 1 + 2u. The last term covers underflow, flushed to zero or not.
double product_error(int64_t d) {
  const double u = std::ldexp(1.0, -24);
  const double m = static_cast<double>(std::min(d, kChunk) + (d + kChunk - 1) / kChunk + 1) * u;
  return m / (1 - m) * (1 + 5 * u) + static_cast<double>(d) * std::ldexp(1.0, -120);
}

// <a, b> of two rows of panels, to about 2^-100: the sum is taken with compensation and the
// products of floats are exact in double, so that a decision does not depend on an order of
// summation.
struct TwoDoubles {
  double high, low;
};
TwoDoubles exact_product(const float* a, const float* b, int64_t d) {
  double s = 0, c = 0;
  for (int64_t k = 0; k < d; ++k) {
    const double p = static_cast<double>(a[k * kLane]) * static_cast<double>(b[k * kLane]);
    const double t = s + p, v = t - s;
    c += (s - (t - v)) + (p - v);
    s = t;
  }
  return {s, c};
}

bool is_edge(const TwoDoubles& product, double tau, bool weighted) {
  // The difference to tau is exact where it matters: high is then within a factor 2 of tau.
  const double difference = (product.high - tau) + product.low;
  return weighted ? difference >= 0 : difference > 0;
}

const float* lane_of(const float* panels, int64_t row, int64_t d) {
  return panels + row / kLane * kLane * d + row % kLane;
}

// In: bit j of word i. Out: bit i of word j.
void transpose(const uint64_t* in, uint64_t* out) {
  std::memcpy(out, in, kTile * sizeof(uint64_t));
  uint64_t mask = 0x00000000FFFFFFFFull;
  for (int64_t step = 32; step != 0; step >>= 1, mask ^= mask << step) {
    for (int64_t i = 0; i < kTile; i = (i + step + 1) & ~step) {
      const uint64_t swapped = ((out[i] >> step) ^ out[i + step]) & mask;
      out[i] ^= swapped << step;
      out[i + step] ^= swapped;
    }
  }
}

template <class T>
class ImageGraph {
 public:
  ImageGraph(const AffinityParams& p, int64_t image, Workers& workers)
      : p_(p),
        workers_(workers),
        rows_(static_cast<const T*>(p.features) + image * p.n * p.d),
        bits_(p.bits + image * bits_size(p.n)),
        degrees_(p.degrees + image * p.n),
        weights_(p.weighted ? &p.weights[image] : nullptr),
        words_(word_count(p.n)),
        norms_(p.n) {
    const double error = product_error(p.d);
    low_ = std::nextafter(static_cast<float>(p.tau - error), -1e30f);
    high_ = std::nextafter(static_cast<float>(p.tau + error), 1e30f);
    group_ = std::max<int64_t>(1, kGroupBytes / (kTile * p.d * int64_t{sizeof(float)}));
    group_ = std::min(group_, words_);
  }

  // The first row whose norm is not finite, or -1.
  int64_t build() {
    if (weights_ != nullptr) weights_->strips.assign(words_, {});
    const auto panels = std::make_unique<float[]>(group_ * kTile * p_.d);
    for (int64_t first = 0; first < words_; first += group_) {
      const int64_t last = std::min(words_, first + group_);
      workers_.parallel_for((last - first) * kTile / kLane, [&](int64_t panel) {
        const int64_t row = first * kTile + panel * kLane;
        for (int64_t i = row; i < std::min(row + kLane, p_.n); ++i)
          norms_[i] = kernels_.norm(rows_ + i * p_.d, p_.d);
        pack(row, panels.get() + panel * kLane * p_.d);
      });
      for (int64_t i = first * kTile; i < std::min(last * kTile, p_.n); ++i)
        if (!std::isfinite(norms_[i])) return i;
      workers_.parallel_for(last, [&](int64_t strip) {
        std::unique_ptr<float[]> earlier;
        const float* a = panels.get() + (strip - first) * kTile * p_.d;
        if (strip < first) {
          earlier = std::make_unique<float[]>(kTile * p_.d);
          for (int64_t row = 0; row < kTile; row += kLane)
            pack(strip * kTile + row, earlier.get() + row * p_.d);
          a = earlier.get();
        }
        for (int64_t column = std::max(strip, first); column < last; ++column) {
          workers_.check();
          join(strip, column, a, panels.get() + (column - first) * kTile * p_.d);
        }
      });
    }
    sum_degrees();
    return -1;
  }

 private:
  // Rows [row, row + 16) as a panel; those from n on are zero.
  void pack(int64_t row, float* panel) const {
    const int64_t count = std::clamp<int64_t>(p_.n - row, 0, kLane);
    kernels_.pack(rows_ + row * p_.d, norms_.data() + row, count, p_.d, panel);
  }

  // The tile of rows [64 strip, ..) and columns [64 column, ..), column >= strip, and its mirror
  // image.
  void join(int64_t strip, int64_t column, const float* a, const float* b) {
    alignas(64) float tile[kTile * kTile];
    uint64_t edges[kTile], unsure[kTile], mirrored[kTile];
    simd_.tile_product(a, b, p_.d, tile);
    simd_.tile_threshold(tile, low_, high_, edges, unsure);
    const int64_t row_count = std::min(kTile, p_.n - strip * kTile);
    const int64_t column_count = std::min(kTile, p_.n - column * kTile);
    const uint64_t valid = column_count == kTile ? ~uint64_t{0} : (uint64_t{1} << column_count) - 1;
    for (int64_t i = 0; i < row_count; ++i) {
      edges[i] &= valid;
      for (uint64_t rest = unsure[i] & valid; rest != 0; rest &= rest - 1) {
        const int64_t j = __builtin_ctzll(rest);
        const TwoDoubles product = exact_product(lane_of(a, i, p_.d), lane_of(b, j, p_.d), p_.d);
        if (is_edge(product, p_.tau, p_.weighted)) edges[i] |= uint64_t{1} << j;
        tile[i * kTile + j] = static_cast<float>(product.high);
      }
    }
    for (int64_t i = row_count; i < kTile; ++i) edges[i] = 0;
    transpose(edges, mirrored);
    const int64_t rows = words_ * kTile;
    std::memcpy(bits_ + column * rows + strip * kTile, edges, sizeof edges);
    std::memcpy(bits_ + strip * rows + column * kTile, mirrored, sizeof mirrored);
    if (weights_ == nullptr) return;
    const auto eps = static_cast<float>(p_.eps);
    auto& weights = weights_->strips[strip];
    for (int64_t i = 0; i < kTile; ++i)
      for (uint64_t rest = edges[i]; rest != 0; rest &= rest - 1)
        weights.push_back(tile[i * kTile + __builtin_ctzll(rest)] - eps);
    if (column + 1 < words_) return;
    weights.insert(weights.end(), kStripPadding, 0.0f);
    weights.shrink_to_fit();
  }

  void sum_degrees() {
    if (weights_ != nullptr) {
      const Graph graph{bits_, weights_, p_.n, p_.eps};
      const std::vector<double> ones(p_.n, 1.0);
      GraphProduct(graph, workers_).apply(ones.data(), degrees_);
      return;
    }
    std::vector<int64_t> counts(words_ * kTile);
    for (int64_t w = 0; w < words_; ++w)
      simd_.add_popcounts(bits_ + w * words_ * kTile, words_ * kTile, counts.data());
    for (int64_t i = 0; i < p_.n; ++i)
      degrees_[i] = p_.eps * static_cast<double>(p_.n - counts[i]) + static_cast<double>(counts[i]);
  }

  const AffinityParams& p_;
  Workers& workers_;
  const Simd& simd_ = simd();
  const Rows<T>& kernels_ = simd_.rows<T>();
  const T* rows_;
  uint64_t* bits_;
  double* degrees_;
  EdgeWeights* weights_;
  int64_t words_, group_;
  float low_, high_;
  std::vector<double> norms_;
};

}  // namespace

int64_t affinity(const AffinityParams& p, const Context& context) {
  std::vector<int64_t> bad(p.batch);
  for_each_image(p.batch, context, [&](int64_t image, Workers& workers) {
    bad[image] = with_dtype(p.dtype, [&](auto* typed) {
      return ImageGraph<std::decay_t<decltype(*typed)>>(p, image, workers).build();
    });
  });
  return first_row(bad, p.n);
}

}  // namespace selfment::cpu
