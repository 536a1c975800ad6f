// The product y = A x with the affinity matrix of one image, which never exists.
//
// Binary mode is the method of the Four Russians: sums of all subsets of four neighbouring elements
// are tabulated in shared memory, and four bits look up theirs. The 16 sums of a group fill all
// banks once, so that the lanes of a warp, which are rows, never collide.
#pragma once

#include "platform.h"
#include "rows.cuh"

namespace selfment::cuda {

inline constexpr int kProductThreads = 512;
inline constexpr int kProductWarps = kProductThreads / kWarp;
inline constexpr int kGroup = 4;                           // bits that look up a sum
inline constexpr int kWordSums = (64 / kGroup) << kGroup;  // table entries of a word
inline constexpr int kTableWords = 16;                     // words of columns at a time
inline constexpr int kSegments = 4;                        // of a table; sums of a row
inline constexpr int kSegmentWords = kTableWords / kSegments;
inline constexpr int kPassRows = 640;  // rows at a time
inline constexpr int64_t kProductBytes =
    int64_t{sizeof(double)} * (kTableWords * kWordSums + kSegments * kPassRows);

// An image's graph as a block reads it. Bits of the block's own rows may lie in shared memory.
struct GraphView {
  const uint64_t* bits;  // (words, stride), from row `base` on
  int64_t stride, base;
  const float* weights;  // nullptr in binary mode
  int64_t n, words;
  double eps;
};

// sums of the subsets of x[word * 64 ..), for kTableWords words from `first` on
__device__ inline void tabulate(const GraphView& graph, const double* x, int64_t first,
                                double* table) {
  for (int at = static_cast<int>(threadIdx.x); at < kTableWords * kWordSums;
       at += kProductThreads) {
    const int64_t column = first * kWord + (at >> kGroup) * kGroup;
    double sum = 0;
#pragma unroll
    for (int bit = 0; bit < kGroup; ++bit)
      if ((at >> bit & 1) != 0 && column + bit < graph.n) sum += x[column + bit];
    table[at] = sum;
  }
}

// y[i] = eps sum(x) + (1 - eps) sum of x over the row's edges, for the words [first, last) of rows.
// The sum of a row is taken in an order of its own, whatever the rows around it.
__device__ inline void multiply_bits(const GraphView& graph, const double* x, double total,
                                     int64_t first, int64_t last, double* y,
                                     unsigned char* shared) {
  auto* table = reinterpret_cast<double*>(shared);
  double* sums = table + kTableWords * kWordSums;  // (kSegments, kPassRows)
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int64_t row0 = first * kWord; row0 < last * kWord; row0 += kPassRows) {
    const int rows = static_cast<int>(min(int64_t{kPassRows}, last * kWord - row0));
    for (int64_t word0 = 0; word0 < graph.words; word0 += kTableWords) {
      __syncthreads();
      tabulate(graph, x, word0, table);
      __syncthreads();
      for (int task = warp; task < rows / kWarp * kSegments; task += kProductWarps) {
        const int segment = task % kSegments, row = task / kSegments * kWarp + lane;
        const int low = segment * kSegmentWords;
        const int high = static_cast<int>(min(int64_t{low + kSegmentWords}, graph.words - word0));
        double sum = word0 == 0 ? 0.0 : sums[segment * kPassRows + row];
        for (int word = low; word < high; ++word) {
          const uint64_t bits = graph.bits[(word0 + word) * graph.stride + row0 - graph.base + row];
          const double* entries = table + word * kWordSums;
#pragma unroll
          for (int group = 0; group < 64 / kGroup; ++group)
            sum += entries[(group << kGroup) +
                           static_cast<int>(bits >> (group * kGroup) & ((1 << kGroup) - 1))];
        }
        sums[segment * kPassRows + row] = sum;
      }
    }
    __syncthreads();
    for (int row = static_cast<int>(threadIdx.x); row < rows && row0 + row < graph.n;
         row += kProductThreads) {
      double sum = 0;
      for (int segment = 0; segment < kSegments; ++segment) sum += sums[segment * kPassRows + row];
      y[row0 + row] = graph.eps * total + (1 - graph.eps) * sum;
    }
    __syncthreads();
  }
}

// The same with weights. Tiles right of the diagonal are read row by row, a warp for each row of
// the graph; those left of it are mirror images, which are read row by row, too, a lane for each
// row of the graph.
__device__ inline void multiply_weights(const GraphView& graph, const double* x, double total,
                                        int64_t first, int64_t last, double* y,
                                        unsigned char* shared) {
  constexpr int kTile = static_cast<int>(kWord), kParts = kProductWarps / (kTile / kWarp);
  auto* left = reinterpret_cast<double*>(shared);  // (kParts, 64)
  double* right = left + kParts * kTile;           // (64,)
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const auto tile = [&](int64_t row, int64_t column) {
    return graph.weights + (row * graph.words - row * (row - 1) / 2 + column - row) * kTile * kTile;
  };
  for (int64_t own = first; own < last; ++own) {
    const int part = warp / (kTile / kWarp), mine = warp % (kTile / kWarp) * kWarp + lane;
    double sum = 0;
    for (int64_t word = 0; word < own; ++word)
      for (int j = part * (kTile / kParts); j < (part + 1) * (kTile / kParts); ++j)
        sum += double{tile(word, own)[j * kTile + mine]} * x[word * kTile + j];
    left[part * kTile + mine] = sum;
    for (int i = warp; i < kTile; i += kProductWarps) {
      sum = 0;
      for (int64_t column = own * kTile + lane; column < graph.n; column += kWarp)
        sum += double{tile(own, column / kTile)[i * kTile + column % kTile]} * x[column];
      sum = warp_sum(sum);
      if (lane == 0) right[i] = sum;
    }
    __syncthreads();
    const auto i = static_cast<int>(threadIdx.x);
    if (i < kTile && own * kTile + i < graph.n) {
      sum = graph.eps * total + right[i];
      for (int p = 0; p < kParts; ++p) sum += left[p * kTile + i];
      y[own * kTile + i] = sum;
    }
    __syncthreads();
  }
}

// y = A x for the words [first, last) of rows, by a block of kProductThreads with kProductBytes of
// shared memory. `total` is the sum of x. The block's y is complete on return.
__device__ SELFMENT_CALL inline void multiply(const GraphView& graph, const double* x, double total,
                                              int64_t first, int64_t last, double* y,
                                              unsigned char* shared) {
  if (graph.weights == nullptr) multiply_bits(graph, x, total, first, last, y, shared);
  else multiply_weights(graph, x, total, first, last, y, shared);
}

}  // namespace selfment::cuda
