// Decides the pairs that the product of tiles leaves undecided: a warp for each of them.
#pragma once

#include "affinity_args.cuh"
#include "norms.cuh"

namespace selfment::cuda {

// Returns <x, y>, by a warp, in float32.
template <class T>
__device__ float warp_product(const T* x, const T* y, int64_t d, int lane) {
  float sums[kInFlight] = {};
  constexpr int64_t kStep = int64_t{kWarp} * kPieceSize<T>;
  for (int64_t k = int64_t{lane} * kPieceSize<T>; k < d; k += kInFlight * kStep) {
    uint4 left[kInFlight], right[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      left[u] = load_piece(x, k + u * kStep, d);
      right[u] = load_piece(y, k + u * kStep, d);
    }
#pragma unroll
    for (int u = 0; u < kInFlight; ++u)
#pragma unroll
      for (int e = 0; e < kPieceSize<T>; ++e)
        sums[u] =
            fmaf(to_float(element<T>(left[u], e)), to_float(element<T>(right[u], e)), sums[u]);
  }
  return warp_sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// Bounds |warp_product - exact| for rows of norm 1: a lane adds up d / kWarp products and a piece's
// at most, then its sums; then the lanes' sums are added up.
template <class T>
__device__ double warp_product_error(int64_t d) {
  return static_cast<double>(d / kWarp + kPieceSize<T> + 12) * kUnit;
}

// Decides whether row i of one side and row j of another are joined, by a warp; all lanes get the
// answer.
template <class T>
__device__ bool settle_pair(const Side& rows, int64_t i, const Side& columns, int64_t j, double tau,
                            bool weighted, int lane) {
  const int64_t d = rows.d;
  const T* x = static_cast<const T*>(rows.features) + i * d;
  const T* y = static_cast<const T*>(columns.features) + j * d;
  const double norm_x = rows.norms[i], norm_y = columns.norms[j];
  if (norm_x < 1e15 && norm_y < 1e15) {
    const double product = warp_product(x, y, d, lane) / (norm_x * norm_y);
    // 8 units are for the rows: here they are not rounded, or rounded to float32 before the
    // division. 1e-9 is for products that underflow.
    const double bound = warp_product_error<T>(d) + 8 * kUnit + 1e-9;
    if (product > tau + bound) return true;
    if (product < tau - bound) return false;
  }
  const Divisor<T> divided_x(norm_x), divided_y(norm_y);
  TwoDoubles sum;
  for (int64_t k = lane; k < d; k += kWarp)
    sum.add(double{divided_x(x[k])} * double{divided_y(y[k])});
  sum = warp_sum(sum);
  const double difference = (sum.high - tau) + sum.low;
  return weighted ? difference >= 0 : difference > 0;
}

// Calls decide(number, lane), by a warp, for the listed pairs and for all pairs of the listed
// tiles; these include pairs that do not exist.
template <class Decide>
__device__ void for_undecided(const PairList& list, const Decide& decide) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t warp = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarp;
  const int64_t warps = int64_t{gridDim.x} * blockDim.x / kWarp;
  const int64_t pairs = static_cast<int64_t>(list.counts[0]);
  for (int64_t at = warp; at < min(pairs, list.capacity); at += warps)
    if (list.pairs[at] != kNoPair) decide(list.pairs[at], lane);
  const int64_t tiles = static_cast<int64_t>(list.counts[1]);
  for (int64_t at = warp; at < tiles * kTilePairs; at += warps)
    decide(list.tiles[at / kTilePairs] * kTilePairs + at % kTilePairs, lane);
}

inline constexpr int kSettleThreads = 256;

// The blocks of a grid that settles pairs, of which it does not know the number.
inline int64_t settle_blocks() { return int64_t{8} * device().multiprocessors; }

// Sets bit j of row i, in a column of words of `rows` rows for every 64 j.
__device__ inline void set_bit(uint64_t* bits, int64_t rows, int64_t i, int64_t j) {
  atomicOr(reinterpret_cast<unsigned long long*>(bits) + j / kWord * rows + i, 1ull << j % kWord);
}

// Settles the undecided pairs of a graph.
template <class T>
__global__ void settle(AffinityArgs a) {
  const int64_t rows = a.words * kWord;
  const bool weighted = a.p.weights != nullptr;
  for_undecided(a.undecided, [&](int64_t number, int lane) {
    const Pair pair = pair_of(number, a.words, a.words);
    if (pair.i > pair.j || pair.j >= a.p.n) return;
    const int64_t base = pair.image * a.p.n;
    const double tau = a.p.taus[pair.image];
    if (!settle_pair<T>(a.side, base + pair.i, a.side, base + pair.j, tau, weighted, lane)) return;
    if (lane != 0) return;
    uint64_t* bits = a.p.bits + pair.image * a.words * rows;
    set_bit(bits, rows, pair.i, pair.j);
    set_bit(bits, rows, pair.j, pair.i);
  });
}

}  // namespace selfment::cuda
