#include "matvec.h"

#include <algorithm>

namespace selfment::cpu {

namespace {

constexpr int64_t kBlocksAtOnce = 4;  // blocks of 64 rows in a thread's task
constexpr int64_t kChunks = 16;       // chunks of strips, about

}  // namespace

GraphProduct::GraphProduct(const Graph& graph, Workers& workers)
    : graph_(graph), workers_(workers), words_(word_count(graph.n)) {
  if (graph.weights == nullptr) {
    table_.resize(words_ * simd_.table_size);
    return;
  }
  const auto& strips = graph.weights->strips;
  int64_t done = 0;
  for (const auto& strip : strips) edges_ += static_cast<int64_t>(strip.size());
  for (int64_t strip = 0; strip < words_; ++strip) {
    done += static_cast<int64_t>(strips[strip].size());
    const int64_t chunk = static_cast<int64_t>(chunk_ends_.size()) + 1;
    if (done * kChunks >= edges_ * chunk || strip + 1 == words_) chunk_ends_.push_back(strip + 1);
  }
}

void GraphProduct::apply(const double* x, double* y, int64_t columns) {
  const int64_t n = graph_.n, rows = words_ * kTile;
  const int64_t step = graph_.weights == nullptr ? 1 : kAtOnce;
  for (int64_t first = 0; first < columns; first += step) {
    workers_.check();
    const int64_t count = std::min(step, columns - first);
    x_.resize(count * rows);
    for (int64_t c = 0; c < count; ++c) std::copy_n(x + (first + c) * n, n, x_.begin() + c * rows);
    if (graph_.weights == nullptr) apply_bits(y + first * n);
    else apply_weights(y + first * n, count);
  }
}

void GraphProduct::apply_bits(double* y) {
  simd_.subset_sums(x_.data(), words_, table_.data());
  double sum = 0;
  for (const double v : x_) sum += v;
  const int64_t rows = words_ * kTile;
  const auto block = [&](int64_t first) {
    double product[kTile];
    simd_.bits_matvec(graph_.bits + first * kTile, words_, rows, table_.data(), product);
    const int64_t count = std::min(kTile, graph_.n - first * kTile);
    for (int64_t i = 0; i < count; ++i)
      y[first * kTile + i] = graph_.eps * sum + (1 - graph_.eps) * product[i];
  };
  const auto bytes = static_cast<double>(rows * words_ * 8);
  workers_.parallel_for((words_ + kBlocksAtOnce - 1) / kBlocksAtOnce, bytes, [&](int64_t group) {
    const int64_t last = std::min(words_, (group + 1) * kBlocksAtOnce);
    for (int64_t first = group * kBlocksAtOnce; first < last; ++first) block(first);
  });
}

void GraphProduct::apply_weights(double* y, int64_t columns) {
  const int64_t rows = words_ * kTile;
  const auto chunks = static_cast<int64_t>(chunk_ends_.size());
  partial_.resize(chunks * columns * rows);
  workers_.parallel_for(chunks, static_cast<double>(edges_ * columns), [&](int64_t chunk) {
    double* part = partial_.data() + chunk * columns * rows;
    std::fill_n(part, columns * rows, 0.0);
    for (int64_t i = chunk == 0 ? 0 : chunk_ends_[chunk - 1]; i < chunk_ends_[chunk]; ++i) {
      const float* weight = graph_.weights->strips[i].data();
      for (int64_t j = i; j < words_; ++j)
        weight += simd_.tile_matvec(graph_.bits + j * rows + i * kTile, weight, columns, rows,
                                    x_.data() + i * kTile, x_.data() + j * kTile, part + i * kTile,
                                    i == j ? nullptr : part + j * kTile);
    }
  });
  for (int64_t c = 0; c < columns; ++c, y += graph_.n) {
    double sum = 0;
    for (int64_t i = 0; i < rows; ++i) sum += x_[c * rows + i];
    std::fill_n(y, graph_.n, graph_.eps * sum);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const double* part = partial_.data() + (chunk * columns + c) * rows;
      for (int64_t i = 0; i < graph_.n; ++i) y[i] += part[i];
    }
  }
}

void sum_degrees(const Graph& graph, Workers& workers, double* degrees) {
  const int64_t words = word_count(graph.n), rows = words * kTile;
  if (graph.weights != nullptr) {
    const std::vector<double> ones(graph.n, 1.0);
    GraphProduct(graph, workers).apply(ones.data(), degrees);
    return;
  }
  std::vector<int64_t> counts(rows);
  for (int64_t w = 0; w < words; ++w)
    simd().add_popcounts(graph.bits + w * rows, rows, counts.data());
  for (int64_t i = 0; i < graph.n; ++i)
    degrees[i] =
        graph.eps * static_cast<double>(graph.n - counts[i]) + static_cast<double>(counts[i]);
}

void matvec(const MatvecParams& p, const Context& context) {
  const auto n = static_cast<double>(p.graphs[0].n), columns = static_cast<double>(p.columns);
  for_each_image(p.batch, columns * n * n / 8, context, [&](int64_t image, Workers& workers) {
    const int64_t at = image * p.columns * p.graphs[image].n;
    GraphProduct(p.graphs[image], workers).apply(p.x + at, p.y + at, p.columns);
  });
}

}  // namespace selfment::cpu
