// Turns a graph into the graph of the same features with some rows zeroed, to the bit. A zero row
// has the similarity 0 with every row, itself included: an edge with all patches, or with none.
#include <algorithm>
#include <vector>

#include "matvec.h"
#include "workers.h"

namespace selfment::cpu {

namespace {

class PaintedGraph {
 public:
  PaintedGraph(const PaintParams& p, int64_t image, Workers& workers)
      : old_(p.graphs[image]),
        workers_(workers),
        zero_joins_(0 > p.taus[image]),
        bits_(p.bits + image * bits_size(old_.n)),
        degrees_(p.degrees + image * old_.n),
        weights_(p.weights == nullptr ? nullptr : &p.weights[image]),
        words_(word_count(old_.n)),
        painted_(words_),
        kept_(old_.n) {
    const bool* mask = p.mask + image * old_.n;
    for (int64_t i = 0; i < old_.n; ++i) {
      painted_[i / kWord] |= uint64_t{mask[i]} << i % kWord;
      kept_[i] = mask[i] ? 0 : ~uint64_t{0};
    }
  }

  void build() {
    const double work = static_cast<double>(words_ * old_.n);
    workers_.parallel_for(words_, work, [&](int64_t word) { paint_column(word); });
    if (weights_ != nullptr) {
      weights_->strips.assign(words_, {});
      workers_.parallel_for(words_, kWord * work, [&](int64_t strip) { keep_weights(strip); });
    }
    sum_degrees({bits_, weights_, old_.n, old_.eps}, workers_, degrees_);
  }

 private:
  void paint_column(int64_t word) {
    const int64_t rows = words_ * kWord, rest = old_.n - word * kWord;
    const uint64_t valid = rest >= kWord ? ~uint64_t{0} : (uint64_t{1} << rest) - 1;
    const uint64_t painted = painted_[word], joined = zero_joins_ ? valid : 0;
    const uint64_t* from = old_.bits + word * rows;
    uint64_t* to = bits_ + word * rows;
    for (int64_t i = 0; i < old_.n; ++i)
      to[i] = (from[i] & kept_[i] & ~painted) | (joined & (painted | ~kept_[i]));
    std::fill(to + old_.n, to + rows, uint64_t{0});
  }

  // Copies those of a strip's weights whose bits are still set.
  void keep_weights(int64_t strip) {
    const int64_t rows = words_ * kWord;
    const float* weight = old_.weights->strips[strip].data();
    auto& weights = weights_->strips[strip];
    weights.reserve(old_.weights->strips[strip].size());
    for (int64_t column = strip; column < words_; ++column) {
      workers_.check();
      const int64_t tile = column * rows + strip * kWord;
      for (int64_t i = 0; i < kWord; ++i) {
        const uint64_t now = bits_[tile + i];
        for (uint64_t left = old_.bits[tile + i]; left != 0; left &= left - 1, ++weight)
          if ((now & left & -left) != 0) weights.push_back(*weight);
      }
    }
    weights.insert(weights.end(), kStripPadding, 0.0f);
    weights.shrink_to_fit();
  }

  const Graph& old_;
  Workers& workers_;
  bool zero_joins_;  // true if a similarity of 0 is an edge
  uint64_t* bits_;
  double* degrees_;
  EdgeWeights* weights_;
  int64_t words_;
  std::vector<uint64_t> painted_;  // (words,), a bit for each patch
  std::vector<uint64_t> kept_;     // (n,), all bits set if the row is kept, else none
};

}  // namespace

void paint(const PaintParams& p, const Context& context) {
  const int64_t n = p.graphs[0].n;
  for_each_image(p.batch, static_cast<double>(n * word_count(n)), context,
                 [&](int64_t image, Workers& workers) { PaintedGraph(p, image, workers).build(); });
}

}  // namespace selfment::cpu
