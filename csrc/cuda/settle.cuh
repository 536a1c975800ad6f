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

// Decides whether rows i and j of an image are joined, by a warp; all lanes get the answer.
template <class T>
__device__ bool settle_pair(const AffinityArgs& a, int64_t image, int64_t i, int64_t j, int lane) {
  const int64_t d = a.p.d, base = image * a.p.n;
  const T* x = static_cast<const T*>(a.p.features) + (base + i) * d;
  const T* y = static_cast<const T*>(a.p.features) + (base + j) * d;
  const double norm_x = a.p.norms[base + i], norm_y = a.p.norms[base + j];
  const double tau = a.p.taus[image];
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
  return a.p.weights != nullptr ? difference >= 0 : difference > 0;
}

__device__ inline void set_edge(const AffinityArgs& a, int64_t image, int64_t i, int64_t j) {
  const int64_t rows = a.words * kWord;
  auto* bits = reinterpret_cast<unsigned long long*>(a.p.bits) + image * a.words * rows;
  atomicOr(bits + j / kWord * rows + i, 1ull << j % kWord);
  atomicOr(bits + i / kWord * rows + j, 1ull << i % kWord);
}

// Settles the listed pairs, and all pairs of the listed tiles.
template <class T>
__global__ void settle(AffinityArgs a) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t warp = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarp;
  const int64_t warps = int64_t{gridDim.x} * blockDim.x / kWarp;
  const int64_t pairs = static_cast<int64_t>(a.undecided.counts[0]);
  const auto decide = [&](const Pair& p) {
    if (settle_pair<T>(a, p.image, p.i, p.j, lane) && lane == 0) set_edge(a, p.image, p.i, p.j);
  };
  for (int64_t at = warp; at < min(pairs, a.undecided.capacity); at += warps) {
    const int64_t number = a.undecided.pairs[at];
    if (number != kNoPair) decide(pair_of(number, a.words));
  }
  const int64_t tiles = static_cast<int64_t>(a.undecided.counts[1]);
  for (int64_t at = warp; at < tiles * kTilePairs; at += warps) {
    const Pair pair =
        pair_of(a.undecided.tiles[at / kTilePairs] * kTilePairs + at % kTilePairs, a.words);
    if (pair.i <= pair.j && pair.j < a.p.n) decide(pair);
  }
}

}  // namespace selfment::cuda
