// The product y = A x with the affinity matrix of one image, which is never stored.
//
// Binary mode uses the method of the Four Russians: the sums of all subsets of four neighbouring
// elements are tabulated in shared memory, and four bits look up their sum. The 16 sums of a group
// fill all banks once, so that the lanes of a warp, which are rows, never collide.
#pragma once

#include "platform.h"
#include "rows.cuh"
#include "weight_tiles.cuh"

namespace selfment::cuda {

inline constexpr int kProductThreads = 512;
inline constexpr int kProductWarps = kProductThreads / kWarp;
inline constexpr int kGroup = 4;  // bits that look up a sum together
inline constexpr int kSubsets = 1 << kGroup;
inline constexpr int kWordSums = 64 / kGroup * kSubsets;  // table entries of a word
inline constexpr unsigned kWordBytes = kWordSums * sizeof(double);
inline constexpr int kTableWords = 16;  // words of columns at a time
inline constexpr int kSegments = 4;     // of a table; sums of a row
inline constexpr int kSegmentWords = kTableWords / kSegments;
inline constexpr int kPassRows = 640;  // rows at a time
inline constexpr int64_t kProductBytes =
    int64_t{sizeof(double)} * (kTableWords * kWordSums + kSegments * kPassRows);

// The graph of an image as a block reads it.
struct GraphView {
  const uint64_t* bits;  // (words, 64 * words)
  const float* weights;  // nullptr in binary mode
  int64_t n, words;
  double eps;
  int64_t resident;  // where in shared memory the bits of the block's own rows are, (words, own
                     // rows); 0 if they are not there
};

// The arrays of a product, at the start of shared memory. They are called by name and never passed
// as arguments, so that the compiler knows that they are in shared memory.
__device__ inline double* product_table() { return reinterpret_cast<double*>(shared_memory()); }
__device__ inline double* row_sums() {  // (kSegments, kPassRows)
  return product_table() + kTableWords * kWordSums;
}

// Tabulates the sums of the subsets of x[word * 64 ..), for kTableWords words from `first` on.
__device__ inline void tabulate(const double* x, int64_t n, int64_t first) {
  static_assert(kProductThreads % kSubsets == 0, "the subset of a thread is always the same");
  const int thread = static_cast<int>(threadIdx.x), subset = thread % kSubsets;
  const int columns = static_cast<int>(min(n - first * kWord, int64_t{kTableWords} * kWord));
  x += first * kWord;
#pragma unroll 2
  for (int at = thread; at < kTableWords * kWordSums; at += kProductThreads) {
    const int column = at / kSubsets * kGroup;
    double sum = 0;
#pragma unroll
    for (int bit = 0; bit < kGroup; ++bit)
      if ((subset >> bit & 1) != 0 && column + bit < columns) sum += x[column + bit];
    product_table()[at] = sum;
  }
}

// Returns `sum` plus the sums that a word of bits looks up in its table, which has this address.
// Four bits times the size of a sum make the lowest byte of an address, and a permutation puts them
// there.
__device__ __forceinline__ double look_up(uint64_t bits, unsigned table, double sum) {
  static_assert(kGroup == 4 && kSubsets * sizeof(double) <= 256 && kWordBytes % 256 == 0);
  constexpr unsigned kSubsetBytes = kSubsets * sizeof(double);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const auto word = static_cast<unsigned>(bits >> (32 * half));
    const unsigned parts[2] = {word << 3 & 0x78787878u, word >> 1 & 0x78787878u};
#pragma unroll
    for (int group = 0; group < 8; ++group) {
      const unsigned at = __byte_perm(parts[group % 2], table, 0x7650u + group / 2);
      sum += load_shared(at + (8 * half + group) * kSubsetBytes);
    }
  }
  return sum;
}

// Adds the products of `rows` rows with the columns in the table, which are `words` words, to the
// sums of the rows. `bits` begins with the first row and the first of these columns.
__device__ __forceinline__ void add_products(const uint64_t* bits, int64_t stride, int rows,
                                             int words, bool first) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const unsigned table = shared_address(product_table());
  for (int task = warp; task < rows / kWarp * kSegments; task += kProductWarps) {
    const int segment = task % kSegments, row = task / kSegments * kWarp + lane;
    const int low = segment * kSegmentWords, high = min(low + kSegmentWords, words);
    const uint64_t* next = bits + low * stride + row;
    uint64_t word_bits = low < high ? *next : 0;
    double sum = first ? 0.0 : row_sums()[segment * kPassRows + row];
    for (int word = low; word < high; ++word) {
      next += stride;
      const uint64_t ahead = word + 1 < high ? *next : 0;  // loaded one word before it is needed
      sum = look_up(word_bits, table + static_cast<unsigned>(word) * kWordBytes, sum);
      word_bits = ahead;
    }
    row_sums()[segment * kPassRows + row] = sum;
  }
}

// Calls store(i, the sum of x over the set bits of row i) for each i < `rows` of the words [first,
// last) of rows. `bits` begins with the first of these rows; x has n numbers, for `words` words of
// columns. The order of a row's sum does not depend on the rows around it. What the block stores is
// complete on return.
template <class Store>
__device__ __forceinline__ void multiply_bits(const uint64_t* bits, int64_t stride, int64_t rows,
                                              const double* x, int64_t n, int64_t words,
                                              int64_t first, int64_t last, const Store& store) {
  for (int64_t row0 = first * kWord; row0 < last * kWord; row0 += kPassRows, bits += kPassRows) {
    const int count = static_cast<int>(min(int64_t{kPassRows}, last * kWord - row0));
    for (int64_t word0 = 0; word0 < words; word0 += kTableWords) {
      __syncthreads();
      tabulate(x, n, word0);
      __syncthreads();
      add_products(bits + word0 * stride, stride, count,
                   static_cast<int>(min(words - word0, int64_t{kTableWords})), word0 == 0);
    }
    __syncthreads();
    for (int row = static_cast<int>(threadIdx.x); row < count && row0 + row < rows;
         row += kProductThreads) {
      double sum = 0;
#pragma unroll
      for (int segment = 0; segment < kSegments; ++segment)
        sum += row_sums()[segment * kPassRows + row];
      store(row0 + row, sum);
    }
    __syncthreads();
  }
}

// y[i] = eps sum(x) + (1 - eps) sum of x over the row's edges, for the words [first, last) of rows.
__device__ __forceinline__ void multiply_edges(const GraphView& graph, const uint64_t* bits,
                                               int64_t stride, const double* x, double total,
                                               int64_t first, int64_t last, double* y) {
  const double eps = graph.eps;
  multiply_bits(bits, stride, graph.n, x, graph.n, graph.words, first, last,
                [=](int64_t i, double sum) { y[i] = eps * total + (1 - eps) * sum; });
}

// Returns the sum of x, to all threads of a block. It uses the memory of the product.
__device__ inline double block_sum(const double* x, int64_t n) {
  double* parts = product_table();
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kProductThreads) sum += x[i];
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = sum;
  __syncthreads();
  double total = 0;
  for (int warp = 0; warp < kProductWarps; ++warp) total += parts[warp];
  __syncthreads();
  return total;
}

// Does the same with weights. Tiles right of the diagonal are read row by row, each row of the
// graph by a warp. Tiles left of it are mirror images, which are read row by row too, so that each
// row of the graph belongs to a lane.
__device__ inline void multiply_weights(const GraphView& graph, const double* x, double total,
                                        int64_t first, int64_t last, double* y) {
  constexpr int kTile = static_cast<int>(kWord), kParts = kProductWarps / (kTile / kWarp);
  double* left = product_table();         // (kParts, 64)
  double* right = left + kParts * kTile;  // (64,)
  const float* weights = global(graph.weights);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const auto tile = [&](int64_t row, int64_t column) {
    return tile_of(weights, row, column, graph.words);
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

// y = A x for the words [first, last) of rows, by a block of kProductThreads with kProductBytes at
// the start of shared memory. `total` is the sum of x. The block's y is complete on return.
__device__ SELFMENT_CALL inline void multiply(const GraphView& graph, const double* x, double total,
                                              int64_t first, int64_t last, double* y) {
  x = global(x);
  y = global(y);
  if (graph.weights != nullptr) return multiply_weights(graph, x, total, first, last, y);
  if (graph.resident == 0)
    return multiply_edges(graph, global(graph.bits) + first * kWord, graph.words * kWord, x, total,
                          first, last, y);
  const auto* bits = reinterpret_cast<const uint64_t*>(shared_memory() + graph.resident);
  multiply_edges(graph, bits, (last - first) * kWord, x, total, first, last, y);
}

}  // namespace selfment::cuda
