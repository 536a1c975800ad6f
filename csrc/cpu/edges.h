// The rule that makes a pair of rows an edge, and its way there, tile by tile.
//
// The rule. Rows are normalised in double and rounded to float32. A pair is an edge iff the inner
// product of its two float32 rows, computed in double, is > tau (binary) or >= tau (weighted).
//
// The way there. A cheap product decides every pair that is farther from tau than the product's
// error can be; the few others are computed in double. For a binary graph on x86 the cheap product
// is one of 16-bit integers, otherwise, and for weights, one of floats.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "simd.h"

namespace selfment::cpu {

using Byte = unsigned char;

// Bytes of packed rows in full depth that are in use at a time, a group of columns. This bounds the
// scratch memory; the smaller a group, the more often the rows that meet it are packed again.
inline constexpr int64_t kGroupBytes = int64_t{24} << 20;

// How the similarities of rows of d elements are compared with tau.
struct EdgeRule {
  EdgeRule(double tau, bool weighted, int64_t d);

  // Words of rows in a group of columns, of `words` in all.
  int64_t group_words(int64_t words) const {
    return std::clamp<int64_t>(kGroupBytes / (kTile * row_bytes), 1, words);
  }
  bool is_edge(double high, double low) const {
    // The difference to tau is exact where it matters: high is then within a factor 2 of tau.
    const double difference = (high - tau) + low;
    return weighted ? difference >= 0 : difference > 0;
  }

  double tau;
  bool weighted;
  int64_t d;
  bool integers;      // true if the product is one of integers
  int64_t depth;      // elements of a row of integers
  int64_t row_bytes;  // bytes of a row in a panel
  float low, high;    // a product of floats from low to high does not decide
};

// The products of a tile: floats, or sums of integers.
union Tile {
  alignas(64) float floats[kTile * kTile];
  int32_t sums[kTile * kTile];
};

// Packed rows of one word of patches: 4 panels, and in integers their scales.
struct Strip {
  const Byte* panels;
  const RowScales& scales;
};

// Returns <a, b> of two rows, whose elements are `stride` apart, to about 2^-100: the sum is
// compensated and the products of floats are exact in double, so a decision does not depend on the
// order of summation.
struct TwoDoubles {
  double high, low;
};
TwoDoubles exact_product(const float* a, const float* b, int64_t d, int64_t stride);

// A bound of a row of integers whose rounding error has the norm `error`: see edges.cpp.
double row_margin(double error, double tau);
float least_step(int64_t d);

// Transposes a tile of bits: bit j of word i of `in` becomes bit i of word j of `out`.
void transpose(const uint64_t* in, uint64_t* out);

// Multiplies the rows and columns of a tile, and compares the products with tau.
void compare(const EdgeRule& rule, const Strip& rows, const Strip& columns, Tile& tile,
             uint64_t* edges, uint64_t* unsure);

// The rows of one side of the pairs: n rows of rule.d elements.
template <class T>
class EdgeRows {
 public:
  EdgeRows(const EdgeRule& rule, const T* rows, int64_t n)
      : rule_(rule), rows_(rows), n_(n), norms_(n) {}

  int64_t size() const { return n_; }
  // The rows of a word; the last one may have fewer than 64.
  int64_t count(int64_t word) const { return std::min(kTile, n_ - word * kTile); }

  // Computes the norms of 16 rows from `row` on, before they are packed.
  void measure(int64_t row) {
    for (int64_t i = row; i < std::min(row + kLane, n_); ++i)
      norms_[i] = kernels_.norm(rows_ + i * rule_.d, rule_.d);
  }

  // Returns the first of the rows [first, last) whose norm is not finite, or -1.
  int64_t first_bad(int64_t first, int64_t last) const {
    for (int64_t i = first; i < std::min(last, n_); ++i)
      if (!std::isfinite(norms_[i])) return i;
    return -1;
  }

  // Packs rows [row, row + 16) into a panel; those from n on are zero.
  void pack(int64_t row, Byte* panel, RowScales& scales) const {
    const int64_t count = std::clamp<int64_t>(n_ - row, 0, kLane);
    if (rule_.integers) pack_integers(row, count, panel, scales);
    else
      kernels_.pack(rows_ + row * rule_.d, norms_.data() + row, count, rule_.d,
                    reinterpret_cast<float*>(panel));
  }

  // Packs the rows of a word.
  void pack_word(int64_t word, Byte* panels, RowScales& scales) const {
    for (int64_t row = 0; row < kTile; row += kLane)
      pack(word * kTile + row, panels + row * rule_.row_bytes, scales);
  }

  // Decides whether row i and row j of the other side are joined if the product of integers does
  // not.
  bool settle(int64_t i, const EdgeRows& other, int64_t j) const {
    const int64_t d = rule_.d;
    const T *x = rows_ + i * d, *y = other.rows_ + j * d;
    // First from the unrounded rows, in double: f is x / norm, with a rounding of u = 2^-24 of each
    // element.
    const double product = kernels_.product(x, y, d) / norms_[i] / other.norms_[j];
    const double bound = 2.1 * std::ldexp(1.0, -24) + static_cast<double>(d) * 0x1p-52 + 1e-12;
    if (std::abs(product) <= 2 && std::abs(product - rule_.tau) > bound) return product > rule_.tau;
    std::vector<float> f(2 * d);
    kernels_.round(x, norms_[i], d, f.data());
    kernels_.round(y, other.norms_[j], d, f.data() + d);
    const TwoDoubles exact = exact_product(f.data(), f.data() + d, d, 1);
    return rule_.is_edge(exact.high, exact.low);
  }

 private:
  void pack_integers(int64_t row, int64_t count, Byte* panel, RowScales& scales) const {
    std::vector<float> f(rule_.depth);
    std::vector<int16_t> integers(rule_.depth);
    for (int64_t lane = 0; lane < kLane; ++lane) {
      float step = 0, margin = 0;
      if (lane < count) {
        const int64_t i = row + lane;
        kernels_.round(rows_ + i * rule_.d, norms_[i], rule_.d, f.data());
        const double error =
            simd().quantise(f.data(), rule_.depth, least_step(rule_.d), integers.data(), &step);
        margin = std::nextafter(static_cast<float>(row_margin(error, rule_.tau)), 1e30f);
      } else {
        std::fill(integers.begin(), integers.end(), int16_t{0});
      }
      scales.step[row % kTile + lane] = step;
      scales.margin[row % kTile + lane] = margin;
      for (int64_t pair = 0; pair < rule_.depth / 2; ++pair)
        std::memcpy(panel + (pair * kLane + lane) * 4, integers.data() + pair * 2, 4);
    }
  }

  const EdgeRule& rule_;
  const Rows<T>& kernels_ = simd().rows<T>();
  const T* rows_;
  int64_t n_;
  std::vector<double> norms_;
};

// One tile of the pairs of two sides: rows [64 strip, ..) and columns [64 column, ..).
template <class T>
struct TilePairs {
  const EdgeRule& rule;
  const EdgeRows<T>&rows, &columns;
  int64_t strip, column;
  bool upper;  // true if only pairs i <= j of the tile count, as the others are the same

  // Makes bit j of edges[i] say whether row i and column j are joined, 0 for what is not a pair.
  // Returns the number of pairs that were computed in double.
  int64_t join(const Strip& a, const Strip& b, Tile& tile, uint64_t* edges) const {
    uint64_t unsure[kTile];
    compare(rule, a, b, tile, edges, unsure);
    const int64_t row_count = rows.count(strip), column_count = columns.count(column);
    const uint64_t valid = column_count == kTile ? ~uint64_t{0} : (uint64_t{1} << column_count) - 1;
    int64_t undecided = 0;
    for (int64_t i = 0; i < row_count; ++i) {
      const uint64_t pairs = upper ? valid & ~uint64_t{0} << i : valid;
      edges[i] &= pairs;
      const uint64_t open = unsure[i] & pairs;
      undecided += __builtin_popcountll(open);
      for (uint64_t rest = open; rest != 0; rest &= rest - 1) {
        const int64_t j = __builtin_ctzll(rest);
        if (settle(i, j, a.panels, b.panels, tile)) edges[i] |= uint64_t{1} << j;
      }
    }
    for (int64_t i = row_count; i < kTile; ++i) edges[i] = 0;
    return undecided;
  }

 private:
  bool settle(int64_t i, int64_t j, const Byte* a, const Byte* b, Tile& tile) const {
    if (rule.integers) return rows.settle(strip * kTile + i, columns, column * kTile + j);
    const auto lane_of = [this](const Byte* panels, int64_t row) {
      return reinterpret_cast<const float*>(panels) + row / kLane * kLane * rule.d + row % kLane;
    };
    const TwoDoubles product = exact_product(lane_of(a, i), lane_of(b, j), rule.d, kLane);
    tile.floats[i * kTile + j] = static_cast<float>(product.high);
    if (upper) tile.floats[j * kTile + i] = tile.floats[i * kTile + j];
    return rule.is_edge(product.high, product.low);
  }
};

}  // namespace selfment::cpu
