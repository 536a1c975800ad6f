#include "degrees.cuh"

#include "rows.cuh"
#include "weight_tiles.cuh"

namespace selfment::cuda {

namespace {

constexpr int kThreads = 256;

struct Args {
  Graphs graphs;
  double* degrees;
  int64_t words, weights_each;
};

__global__ void count_edges(Args a) {
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, n = a.graphs.n;
  if (at >= a.graphs.batch * n) return;
  const int64_t image = at / n, i = at % n, rows = a.words * kWord;
  const uint64_t* bits = a.graphs.bits + image * a.words * rows;
  int64_t count = 0;
  for (int64_t w = 0; w < a.words; ++w) count += __popcll(bits[w * rows + i]);
  a.degrees[at] += a.graphs.eps * static_cast<double>(n - count) + static_cast<double>(count);
}

// Sums the weights of each row by a warp.
__global__ void sum_weights(Args a) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t at = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarp, n = a.graphs.n;
  if (at >= a.graphs.batch * n) return;
  const int64_t image = at / n, i = at % n, row = i / kWord;
  const float* weights = a.graphs.weights + image * a.weights_each;
  double sum = 0;
  for (int64_t j = lane; j < n; j += kWarp) {
    const int64_t column = j / kWord, low = min(row, column), high = max(row, column);
    const float* tile = tile_of(weights, low, high, a.words);
    sum +=
        row <= column ? tile[i % kWord * kWord + j % kWord] : tile[j % kWord * kWord + i % kWord];
  }
  sum = warp_sum(sum) + a.graphs.eps * static_cast<double>(n);
  if (lane == 0) a.degrees[at] += sum;
}

int64_t blocks_for(int64_t items) { return (items + kThreads - 1) / kThreads; }

}  // namespace

void add_degrees(const Graphs& graphs, double* degrees, cudaStream_t stream) {
  const Args a{graphs, degrees, word_count(graphs.n), weights_size(graphs.n)};
  const int64_t rows = graphs.batch * graphs.n;
  if (graphs.weights == nullptr)
    launch("degrees: count_edges", count_edges, blocks_for(rows), kThreads, 0, stream, a);
  else
    launch("degrees: sum_weights", sum_weights, blocks_for(rows * kWarp), kThreads, 0, stream, a);
}

}  // namespace selfment::cuda
