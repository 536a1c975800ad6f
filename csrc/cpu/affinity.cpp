// From features to the affinity graph: a bit for each pair, and in weighted mode a float for each
// edge.
//
// The rule. Rows are normalised in double and rounded to float32. A pair is an edge iff the inner
// product of its two float32 rows, computed in double, is > tau (binary) or >= tau (weighted).
//
// The way there. A cheap product decides every pair that is farther from tau than the product's
// error can be; the few others are computed in double. For a binary graph on x86 the cheap product
// is one of 16-bit integers, otherwise, and for weights, one of floats. It is computed tile by
// tile, on and above the diagonal.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <type_traits>
#include <vector>

#include "matvec.h"
#include "simd.h"
#include "workers.h"

namespace selfment::cpu {

namespace {

// Bytes of the packed rows that an image needs at a time, a group of columns in full depth. This
// bounds the scratch memory; the smaller a group, the more often the rows before it are packed
// again.
constexpr int64_t kGroupBytes = int64_t{24} << 20;

// Bounds |float32 product - exact product| of two rounded rows of d elements. A chunk is a sum of
// kChunk products, one rounding each (two without fma), from zero; then the chunks are summed. With
// u = 2^-24 an element passes through at most m = kChunk + chunks + 1 roundings, so the error is at
// most gamma_m = m u / (1 - m u) times sum |a_k b_k| <= |a| |b| (Cauchy-Schwarz), and a rounded row
// has |a| <= 1 + 2u. The last term covers underflow, flushed to zero or not.
double product_error(int64_t d) {
  const double u = std::ldexp(1.0, -24);
  const double m = static_cast<double>(std::min(d, kChunk) + (d + kChunk - 1) / kChunk + 1) * u;
  return m / (1 - m) * (1 + 5 * u) + static_cast<double>(d) * std::ldexp(1.0, -120);
}

// A rounded row f, of norm 1 or less, becomes a row of integers q = f / step, rounded.
//
// Inner products of such rows fit into 32 bits, partial sums included: sum |q_k r_k| <= |q| |r| <
// kIntegerNorm^2 < 2^31, as a step is at least 1 / (kIntegerNorm - sqrt(d)) and rounding adds at
// most sqrt(d) / 2 to a norm. A step also keeps elements within 16 bits.
constexpr double kIntegerNorm = 46000;
constexpr int64_t kMostIntegers = int64_t{1} << 16;  // elements of a row, so that sqrt(d) is small

float least_step(int64_t d) {
  return static_cast<float>(1 / (kIntegerNorm - std::sqrt(static_cast<double>(d))));
}

// Returns a row's share m in the bound of |step step' <q, r> - <f, g>| for rows f and g; the bound
// is the sum of the two rows' shares. With E >= |f - step q|, u = 2^-24 and |f| <= 1 + 2u the
// Cauchy-Schwarz inequality yields
//   |<f, g> - step step' <q, r>| <= |<f - step q, g>| + |<step q, g - step' r>|
//                                <= E (1 + 2u) + (1 + 2u + E) E' <= m + m',
//   m = (1 + 3u) E + E^2 / 2.
// E is the measured error plus at most 2u for the roundings of its measurement, of step * q and of
// the difference. The comparison adds its own roundings to m: those of the product, its scaling,
// tau, the difference and the margins' sum, each at most u times 1 + 2u or |tau|.
double row_margin(double error, double tau) {
  const double u = std::ldexp(1.0, -24), total = error + 3 * u;
  return (1 + 3 * u) * total + total * total / 2 + 6 * u * std::max(1.0, std::abs(tau));
}

// Returns <a, b> of two rows, whose elements are `stride` apart, to about 2^-100: the sum is
// compensated and the products of floats are exact in double, so a decision does not depend on the
// order of summation.
struct TwoDoubles {
  double high, low;
};
TwoDoubles exact_product(const float* a, const float* b, int64_t d, int64_t stride) {
  double s = 0, c = 0;
  for (int64_t k = 0; k < d; ++k) {
    const double p = static_cast<double>(a[k * stride]) * static_cast<double>(b[k * stride]);
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

// Transposes a tile of bits: bit j of word i of `in` becomes bit i of word j of `out`.
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
        image_(image),
        workers_(workers),
        rows_(static_cast<const T*>(p.features) + image * p.n * p.d),
        bits_(p.bits + image * bits_size(p.n)),
        weights_(p.weighted ? &p.weights[image] : nullptr),
        tau_(p.taus[image]),
        words_(word_count(p.n)),
        norms_(p.n),
        scales_(words_),
        undecided_(words_) {
    depth_ = (p.d + kQuantum - 1) / kQuantum * kQuantum;
    integers_ = simd_.integer_product != nullptr && !p.weighted && p.d <= kMostIntegers;
    row_bytes_ = integers_ ? depth_ * int64_t{sizeof(int16_t)} : p.d * int64_t{sizeof(float)};
    const double error = product_error(p.d);
    low_ = std::nextafter(static_cast<float>(tau_ - error), -1e30f);
    high_ = std::nextafter(static_cast<float>(tau_ + error), 1e30f);
    group_ = std::max<int64_t>(1, kGroupBytes / (kTile * row_bytes_));
    group_ = std::min(group_, words_);
  }

  // Makes the graph. Returns the first row whose norm is not finite, or -1.
  int64_t build() {
    if (weights_ != nullptr) weights_->strips.assign(words_, {});
    const auto panels = std::make_unique<Byte[]>(group_ * kTile * row_bytes_);
    for (int64_t first = 0; first < words_; first += group_) {
      const int64_t last = std::min(words_, first + group_);
      pack_group(first, last, panels.get());
      for (int64_t i = first * kTile; i < std::min(last * kTile, p_.n); ++i)
        if (!std::isfinite(norms_[i])) return i;
      join_group(first, last, panels.get());
    }
    sum_degrees({bits_, weights_, p_.n, p_.eps}, workers_, p_.degrees + image_ * p_.n);
    if (p_.undecided != nullptr)
      p_.undecided[image_] = std::accumulate(undecided_.begin(), undecided_.end(), int64_t{0});
    return -1;
  }

 private:
  using Byte = unsigned char;

  // A tile's products: floats, or sums of integers.
  union Tile {
    alignas(64) float floats[kTile * kTile];
    int32_t sums[kTile * kTile];
  };

  // Packs the rows of the words [first, last), and computes their norms.
  void pack_group(int64_t first, int64_t last, Byte* panels) {
    const double work = static_cast<double>((last - first) * kTile) * static_cast<double>(p_.d);
    workers_.parallel_for((last - first) * kTile / kLane, work, [&](int64_t panel) {
      const int64_t row = first * kTile + panel * kLane;
      for (int64_t i = row; i < std::min(row + kLane, p_.n); ++i)
        norms_[i] = kernels_.norm(rows_ + i * p_.d, p_.d);
      pack(row, panels + panel * kLane * row_bytes_, scales_[row / kTile]);
    });
  }

  // Joins all rows up to the group's end with the group's, which are its columns. A strip before
  // the group is packed once more.
  void join_group(int64_t first, int64_t last, const Byte* panels) {
    const double rows = static_cast<double>(last - first) * kTile;
    const double before = static_cast<double>(first) * kTile, d = static_cast<double>(p_.d);
    const double products = rows * (before + rows / 2) * d / kLane;
    workers_.parallel_for(last, products, [&](int64_t strip) {
      std::unique_ptr<Byte[]> own;
      RowScales scales = scales_[strip];
      const Byte* a = panels + (strip - first) * kTile * row_bytes_;
      if (strip < first) {
        own = std::make_unique<Byte[]>(kTile * row_bytes_);
        for (int64_t row = 0; row < kTile; row += kLane)
          pack(strip * kTile + row, own.get() + row * row_bytes_, scales);
        a = own.get();
      }
      for (int64_t column = std::max(strip, first); column < last; ++column) {
        workers_.check();
        join(strip, column, a, scales, panels + (column - first) * kTile * row_bytes_);
      }
    });
  }

  // Packs rows [row, row + 16) into a panel; those from n on are zero.
  void pack(int64_t row, Byte* panel, RowScales& scales) const {
    const int64_t count = std::clamp<int64_t>(p_.n - row, 0, kLane);
    if (integers_) pack_integers(row, count, panel, scales);
    else
      kernels_.pack(rows_ + row * p_.d, norms_.data() + row, count, p_.d,
                    reinterpret_cast<float*>(panel));
  }

  void pack_integers(int64_t row, int64_t count, Byte* panel, RowScales& scales) const {
    std::vector<float> f(depth_);
    std::vector<int16_t> integers(depth_);
    for (int64_t lane = 0; lane < kLane; ++lane) {
      float step = 0, margin = 0;
      if (lane < count) {
        const int64_t i = row + lane;
        kernels_.round(rows_ + i * p_.d, norms_[i], p_.d, f.data());
        const double error =
            simd_.quantise(f.data(), depth_, least_step(p_.d), integers.data(), &step);
        margin = std::nextafter(static_cast<float>(row_margin(error, tau_)), 1e30f);
      } else {
        std::fill(integers.begin(), integers.end(), int16_t{0});
      }
      scales.step[row % kTile + lane] = step;
      scales.margin[row % kTile + lane] = margin;
      for (int64_t pair = 0; pair < depth_ / 2; ++pair)
        std::memcpy(panel + (pair * kLane + lane) * 4, integers.data() + pair * 2, 4);
    }
  }

  // Makes the tile of rows [64 strip, ..) and columns [64 column, ..), column >= strip, and its
  // mirror image.
  void join(int64_t strip, int64_t column, const Byte* a, const RowScales& scales, const Byte* b) {
    Tile tile;
    uint64_t edges[kTile], unsure[kTile];
    compare(column, a, scales, b, tile, edges, unsure);
    settle_tile(strip, column, a, b, unsure, tile, edges);
    store_edges(strip, column, edges);
    if (weights_ != nullptr) store_weights(strip, column, edges, tile.floats);
  }

  // Multiplies the tile's rows and columns, and compares the products with tau.
  void compare(int64_t column, const Byte* a, const RowScales& scales, const Byte* b, Tile& tile,
               uint64_t* edges, uint64_t* unsure) const {
    if (integers_) {
      simd_.integer_product(reinterpret_cast<const int16_t*>(a),
                            reinterpret_cast<const int16_t*>(b), depth_, tile.sums);
      simd_.integer_threshold(tile.sums, scales, scales_[column], static_cast<float>(tau_), edges,
                              unsure);
    } else {
      simd_.tile_product(reinterpret_cast<const float*>(a), reinterpret_cast<const float*>(b), p_.d,
                         tile.floats);
      simd_.tile_threshold(tile.floats, low_, high_, edges, unsure);
    }
  }

  // Decides the unsure pairs, and clears the edges of what is not a pair. On the diagonal only the
  // upper half of a tile is kept, as the pairs of the lower half are the same.
  void settle_tile(int64_t strip, int64_t column, const Byte* a, const Byte* b,
                   const uint64_t* unsure, Tile& tile, uint64_t* edges) {
    const int64_t row_count = std::min(kTile, p_.n - strip * kTile);
    const int64_t column_count = std::min(kTile, p_.n - column * kTile);
    const uint64_t valid = column_count == kTile ? ~uint64_t{0} : (uint64_t{1} << column_count) - 1;
    for (int64_t i = 0; i < row_count; ++i) {
      const uint64_t pairs = strip == column ? valid & ~uint64_t{0} << i : valid;
      edges[i] &= pairs;
      const uint64_t open = unsure[i] & pairs;
      undecided_[strip] += __builtin_popcountll(open);
      for (uint64_t rest = open; rest != 0; rest &= rest - 1) {
        const int64_t j = __builtin_ctzll(rest);
        bool edge;
        if (integers_) {
          edge = settle(strip * kTile + i, column * kTile + j);
        } else {
          const TwoDoubles product =
              exact_product(lane_of(reinterpret_cast<const float*>(a), i, p_.d),
                            lane_of(reinterpret_cast<const float*>(b), j, p_.d), p_.d, kLane);
          edge = is_edge(product, tau_, p_.weighted);
          tile.floats[i * kTile + j] = static_cast<float>(product.high);
          if (strip == column) tile.floats[j * kTile + i] = tile.floats[i * kTile + j];
        }
        if (edge) edges[i] |= uint64_t{1} << j;
      }
    }
    for (int64_t i = row_count; i < kTile; ++i) edges[i] = 0;
  }

  // Writes the tile's edges and their mirror image into the graph. On the diagonal `edges` become
  // those of both halves.
  void store_edges(int64_t strip, int64_t column, uint64_t* edges) {
    uint64_t mirrored[kTile];
    transpose(edges, mirrored);
    if (strip == column)
      for (int64_t i = 0; i < kTile; ++i) edges[i] = mirrored[i] |= edges[i];
    const int64_t rows = words_ * kTile;
    std::memcpy(bits_ + column * rows + strip * kTile, edges, sizeof mirrored);
    std::memcpy(bits_ + strip * rows + column * kTile, mirrored, sizeof mirrored);
  }

  // Appends the weights of the tile's edges to those of the strip.
  void store_weights(int64_t strip, int64_t column, const uint64_t* edges, const float* products) {
    const auto eps = static_cast<float>(p_.eps);
    auto& weights = weights_->strips[strip];
    for (int64_t i = 0; i < kTile; ++i)
      for (uint64_t rest = edges[i]; rest != 0; rest &= rest - 1)
        weights.push_back(products[i * kTile + __builtin_ctzll(rest)] - eps);
    if (column + 1 < words_) return;
    weights.insert(weights.end(), kStripPadding, 0.0f);
    weights.shrink_to_fit();
  }

  // Decides whether rows i and j are joined if the product of integers does not.
  bool settle(int64_t i, int64_t j) const {
    const T *x = rows_ + i * p_.d, *y = rows_ + j * p_.d;
    // First from the unrounded rows, in double: f is x / norm, with a rounding of u = 2^-24 of each
    // element.
    const double product = kernels_.product(x, y, p_.d) / norms_[i] / norms_[j];
    const double bound = 2.1 * std::ldexp(1.0, -24) + static_cast<double>(p_.d) * 0x1p-52 + 1e-12;
    if (std::abs(product) <= 2 && std::abs(product - tau_) > bound) return product > tau_;
    std::vector<float> f(2 * p_.d);
    kernels_.round(x, norms_[i], p_.d, f.data());
    kernels_.round(y, norms_[j], p_.d, f.data() + p_.d);
    return is_edge(exact_product(f.data(), f.data() + p_.d, p_.d, 1), tau_, false);
  }

  const AffinityParams& p_;
  int64_t image_;
  Workers& workers_;
  const Simd& simd_ = simd();
  const Rows<T>& kernels_ = simd_.rows<T>();
  const T* rows_;
  uint64_t* bits_;
  EdgeWeights* weights_;
  double tau_;
  int64_t words_, group_;
  bool integers_;      // true if the product is one of integers
  int64_t depth_;      // elements of a row of integers
  int64_t row_bytes_;  // bytes of a row in a panel
  float low_, high_;
  std::vector<double> norms_;
  std::vector<RowScales> scales_;   // (words,)
  std::vector<int64_t> undecided_;  // (words,), pairs of a strip that were computed in double
};

}  // namespace

int64_t affinity(const AffinityParams& p, const Context& context) {
  std::vector<int64_t> bad(p.batch);
  const auto n = static_cast<double>(p.n), d = static_cast<double>(p.d);
  for_each_image(p.batch, n * (n / 2 / kLane + 1) * d, context,
                 [&](int64_t image, Workers& workers) {
                   bad[image] = with_dtype(p.dtype, [&](auto* typed) {
                     return ImageGraph<std::decay_t<decltype(*typed)>>(p, image, workers).build();
                   });
                 });
  return first_row(bad, p.n);
}

}  // namespace selfment::cpu
