// From features to the affinity graph: a bit for each pair, and in weighted mode a float for each
// edge. Pairs are decided by the rule of edges.h, tile by tile, on and above the diagonal.
#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <type_traits>
#include <vector>

#include "edges.h"
#include "matvec.h"
#include "workers.h"

namespace selfment::cpu {

namespace {

template <class T>
class ImageGraph {
 public:
  ImageGraph(const AffinityParams& p, int64_t image, Workers& workers)
      : p_(p),
        image_(image),
        workers_(workers),
        rule_(p.taus[image], p.weighted, p.d),
        rows_(rule_, static_cast<const T*>(p.features) + image * p.n * p.d, p.n),
        bits_(p.bits + image * bits_size(p.n)),
        weights_(p.weighted ? &p.weights[image] : nullptr),
        words_(word_count(p.n)),
        group_(rule_.group_words(words_)),
        scales_(words_),
        undecided_(words_) {}

  // Makes the graph. Returns the first row whose norm is not finite, or -1.
  int64_t build() {
    if (weights_ != nullptr) weights_->strips.assign(words_, {});
    const auto panels = std::make_unique<Byte[]>(group_ * kTile * rule_.row_bytes);
    for (int64_t first = 0; first < words_; first += group_) {
      const int64_t last = std::min(words_, first + group_);
      pack_group(first, last, panels.get());
      const int64_t bad = rows_.first_bad(first * kTile, last * kTile);
      if (bad >= 0) return bad;
      join_group(first, last, panels.get());
    }
    sum_degrees({bits_, weights_, p_.n, p_.eps}, workers_, p_.degrees + image_ * p_.n);
    if (p_.undecided != nullptr)
      p_.undecided[image_] = std::accumulate(undecided_.begin(), undecided_.end(), int64_t{0});
    return -1;
  }

 private:
  // Packs the rows of the words [first, last), and computes their norms.
  void pack_group(int64_t first, int64_t last, Byte* panels) {
    const double work = static_cast<double>((last - first) * kTile) * static_cast<double>(p_.d);
    workers_.parallel_for((last - first) * kTile / kLane, work, [&](int64_t panel) {
      const int64_t row = first * kTile + panel * kLane;
      rows_.measure(row);
      rows_.pack(row, panels + panel * kLane * rule_.row_bytes, scales_[row / kTile]);
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
      const Byte* a = panels + (strip - first) * kTile * rule_.row_bytes;
      if (strip < first) {
        own = std::make_unique<Byte[]>(kTile * rule_.row_bytes);
        rows_.pack_word(strip, own.get(), scales);
        a = own.get();
      }
      for (int64_t column = std::max(strip, first); column < last; ++column) {
        workers_.check();
        const Byte* b = panels + (column - first) * kTile * rule_.row_bytes;
        join(strip, column, {a, scales}, {b, scales_[column]});
      }
    });
  }

  // Makes the tile of rows [64 strip, ..) and columns [64 column, ..), column >= strip, and its
  // mirror image.
  void join(int64_t strip, int64_t column, const Strip& a, const Strip& b) {
    Tile tile;
    uint64_t edges[kTile];
    const TilePairs<T> pairs{rule_, rows_, rows_, strip, column, strip == column};
    undecided_[strip] += pairs.join(a, b, tile, edges);
    store_edges(strip, column, edges);
    if (weights_ != nullptr) store_weights(strip, column, edges, tile.floats);
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

  const AffinityParams& p_;
  int64_t image_;
  Workers& workers_;
  const EdgeRule rule_;
  EdgeRows<T> rows_;
  uint64_t* bits_;
  EdgeWeights* weights_;
  int64_t words_, group_;
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
