// The edges of a block of rows to the landmarks, which are used and thrown away: the rows' means
// over their landmarks, and the landmarks' sums over the rows. Pairs are decided by the rule of
// edges.h; the two products with the bits are those of matvec.cpp.
#include <algorithm>
#include <memory>
#include <type_traits>
#include <vector>

#include "edges.h"
#include "workers.h"

namespace selfment::cpu {

namespace {

// A vector for each column, padded with zeros to whole words, and its sums of subsets.
class Tables {
 public:
  Tables(const double* x, int64_t columns, int64_t stride, int64_t n, Workers& workers)
      : words_(word_count(n)), tables_(columns * words_ * simd().table_size), sums_(columns) {
    std::vector<double> padded(columns * words_ * kTile);
    for (int64_t c = 0; c < columns; ++c) {
      std::copy_n(x + c * stride, n, padded.begin() + c * words_ * kTile);
      for (int64_t i = 0; i < n; ++i) sums_[c] += x[c * stride + i];
    }
    workers.parallel_for(columns, static_cast<double>(tables_.size()), [&](int64_t c) {
      simd().subset_sums(padded.data() + c * words_ * kTile, words_, tables_.data() + place(c));
    });
  }

  double sum(int64_t column) const { return sums_[column]; }

  // y[i] = sum of the column's x[j] over the set bits j of row i, for 64 rows of `stride`.
  void multiply(const uint64_t* bits, int64_t stride, int64_t column, double* y) const {
    simd().bits_matvec(bits, words_, stride, tables_.data() + place(column), y);
  }

 private:
  int64_t place(int64_t column) const { return column * words_ * simd().table_size; }

  int64_t words_;
  std::vector<double> tables_, sums_;
};

// Counts the set bits of 64 rows of `words` words.
void count_bits(const uint64_t* bits, int64_t words, int64_t stride, int64_t* counts) {
  std::fill_n(counts, kTile, int64_t{0});
  for (int64_t w = 0; w < words; ++w) simd().add_popcounts(bits + w * stride, kTile, counts);
}

template <class T>
class LandmarkBlock {
 public:
  LandmarkBlock(const LandmarksParams& p, Workers& workers)
      : p_(p),
        workers_(workers),
        rule_(p.tau, false, p.d),
        rows_(rule_, static_cast<const T*>(p.features), p.n),
        landmarks_(rule_, static_cast<const T*>(p.landmarks), p.m),
        row_words_(word_count(p.n)),
        words_(word_count(p.m)),
        to_landmarks_(p.x == nullptr ? 0 : words_ * row_words_ * kTile),
        to_rows_(words_ * row_words_ * kTile) {}

  // Returns the first row whose norm is not finite, or -1.
  int64_t run() {
    measure(rows_, row_words_);
    const int64_t bad = rows_.first_bad(0, p_.n);
    if (bad >= 0) return bad;
    measure(landmarks_, words_);
    const int64_t group = rule_.group_words(words_);
    const auto panels = std::make_unique<Byte[]>(group * kTile * rule_.row_bytes);
    for (int64_t first = 0; first < words_; first += group)
      join_group(first, std::min(words_, first + group), panels.get());
    if (p_.x != nullptr) set_means();
    add_sums();
    return -1;
  }

 private:
  void measure(EdgeRows<T>& rows, int64_t words) {
    const auto work = static_cast<double>(rows.size() * p_.d);
    workers_.parallel_for(words * kTile / kLane, work,
                          [&](int64_t panel) { rows.measure(panel * kLane); });
  }

  // Joins all rows with the landmarks of the words [first, last).
  void join_group(int64_t first, int64_t last, Byte* panels) {
    std::vector<RowScales> scales(last - first);
    const double columns = static_cast<double>(last - first) * kTile;
    const double d = static_cast<double>(p_.d);
    workers_.parallel_for(last - first, columns * d, [&](int64_t word) {
      landmarks_.pack_word(first + word, panels + word * kTile * rule_.row_bytes, scales[word]);
    });
    const double products = static_cast<double>(p_.n) * columns * d / kLane;
    workers_.parallel_for(row_words_, products, [&](int64_t strip) {
      const auto own = std::make_unique<Byte[]>(kTile * rule_.row_bytes);
      RowScales own_scales;
      rows_.pack_word(strip, own.get(), own_scales);
      for (int64_t column = first; column < last; ++column) {
        workers_.check();
        const Byte* b = panels + (column - first) * kTile * rule_.row_bytes;
        join(strip, column, {own.get(), own_scales}, {b, scales[column - first]});
      }
    });
  }

  void join(int64_t strip, int64_t column, const Strip& a, const Strip& b) {
    Tile tile;
    uint64_t edges[kTile];
    TilePairs<T>{rule_, rows_, landmarks_, strip, column, false}.join(a, b, tile, edges);
    if (p_.x != nullptr)
      std::copy_n(edges, kTile, to_landmarks_.data() + (column * row_words_ + strip) * kTile);
    transpose(edges, to_rows_.data() + (strip * words_ + column) * kTile);
  }

  // means = A x / A 1 of the rows, where A has the landmarks as columns.
  void set_means() {
    const Tables tables(p_.x, p_.columns, p_.m, p_.m, workers_);
    const int64_t stride = row_words_ * kTile;
    const auto work = static_cast<double>(p_.columns * p_.n * words_);
    workers_.parallel_for(row_words_, work, [&](int64_t strip) {
      const uint64_t* bits = to_landmarks_.data() + strip * kTile;
      int64_t counts[kTile];
      double product[kTile];
      count_bits(bits, words_, stride, counts);
      for (int64_t c = 0; c < p_.columns; ++c) {
        tables.multiply(bits, stride, c, product);
        for (int64_t i = 0; i < rows_.count(strip); ++i) {
          const auto edges = static_cast<double>(counts[i]);
          const double degree = p_.eps * static_cast<double>(p_.m - counts[i]) + edges;
          const double sum = p_.eps * tables.sum(c) + (1 - p_.eps) * product[i];
          p_.means[c * p_.stride + strip * kTile + i] = sum / degree;
        }
      }
    });
  }

  // Adds this block's part of E^T means and E^T 1, where E has the edges of the rows.
  void add_sums() {
    const Tables tables(p_.means, p_.columns, p_.stride, p_.n, workers_);
    const int64_t stride = words_ * kTile;
    const auto work = static_cast<double>((p_.columns + 1) * p_.m * row_words_);
    workers_.parallel_for(words_, work, [&](int64_t word) {
      const uint64_t* bits = to_rows_.data() + word * kTile;
      int64_t counts[kTile];
      double product[kTile];
      count_bits(bits, row_words_, stride, counts);
      const int64_t count = landmarks_.count(word);
      for (int64_t j = 0; j < count; ++j) p_.edges[word * kTile + j] += counts[j];
      for (int64_t c = 0; c < p_.columns; ++c) {
        tables.multiply(bits, stride, c, product);
        for (int64_t j = 0; j < count; ++j) p_.sums[c * p_.m + word * kTile + j] += product[j];
      }
    });
    for (int64_t c = 0; c < p_.columns; ++c) p_.totals[c] += tables.sum(c);
  }

  const LandmarksParams& p_;
  Workers& workers_;
  const EdgeRule rule_;
  EdgeRows<T> rows_, landmarks_;
  int64_t row_words_, words_;           // of the rows and of the landmarks
  std::vector<uint64_t> to_landmarks_;  // (words, 64 row_words), bits of landmarks
  std::vector<uint64_t> to_rows_;       // (row_words, 64 words), bits of rows
};

}  // namespace

int64_t landmarks(const LandmarksParams& p, const Context& context) {
  Workers workers(context);
  return with_dtype(p.dtype, [&](auto* typed) {
    return LandmarkBlock<std::decay_t<decltype(*typed)>>(p, workers).run();
  });
}

}  // namespace selfment::cpu
