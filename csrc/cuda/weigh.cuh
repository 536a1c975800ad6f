// The weights of the edges, in float32 from the rounded rows.
#pragma once

#include "affinity_args.cuh"
#include "norms.cuh"
#include "weight_tiles.cuh"

namespace selfment::cuda {

inline constexpr int kWeighThreads = 256;
inline constexpr int kDepth = 32;  // elements of a row at a time

// The shared memory of a tile: elements of its rows and of its columns, and what they are divided
// by.
template <class T>
struct WeightTile {
  float parts[2][kDepth][kWord + 1];
  Divisor<T> divisors[2][kWord];
};

// A thread's sums of a tile: kEach rows from i0 on by kEach columns from j0 on.
struct WeightSums {
  static constexpr int kEach = 4;
  float sums[kEach][kEach] = {};
  int i0, j0;

  __device__ explicit WeightSums(int thread)
      : i0(thread / (static_cast<int>(kWord) / kEach) * kEach),
        j0(thread % (static_cast<int>(kWord) / kEach) * kEach) {}

  // Adds the products of the elements in the tile: by sums of their own, as long sums would be less
  // exact.
  template <class T>
  __device__ void add(const WeightTile<T>& tile) {
    float run[kEach][kEach] = {};
    for (int k = 0; k < kDepth; ++k)
      for (int i = 0; i < kEach; ++i)
        for (int j = 0; j < kEach; ++j)
          run[i][j] = fmaf(tile.parts[0][k][i0 + i], tile.parts[1][k][j0 + j], run[i][j]);
    for (int i = 0; i < kEach; ++i)
      for (int j = 0; j < kEach; ++j) sums[i][j] += run[i][j];
  }
};

// Loads the divisors of a tile's rows and columns.
template <class T>
__device__ void load_divisors(const AffinityArgs& a, int64_t image, const TilePlace& place,
                              WeightTile<T>& tile) {
  constexpr int kTile = static_cast<int>(kWord);
  for (int at = static_cast<int>(threadIdx.x); at < 2 * kTile; at += kWeighThreads) {
    const int64_t source = (at < kTile ? place.row : place.column) * kTile + at % kTile;
    tile.divisors[at / kTile][at % kTile] =
        Divisor<T>(source < a.p.n ? a.side.norms[image * a.p.n + source] : 1);
  }
}

// Loads kDepth rounded elements of a tile's rows and columns, from k0 on.
template <class T>
__device__ void load_parts(const AffinityArgs& a, int64_t image, const TilePlace& place, int64_t k0,
                           WeightTile<T>& tile) {
  constexpr int kTile = static_cast<int>(kWord);
  for (int at = static_cast<int>(threadIdx.x); at < 2 * kTile * kDepth; at += kWeighThreads) {
    const int side = at / (kTile * kDepth), i = at / kDepth % kTile, k = at % kDepth;
    const int64_t source = (side == 0 ? place.row : place.column) * kTile + i;
    float f = 0;
    if (source < a.p.n && k0 + k < a.p.d) {
      const int64_t from = image * a.p.n + source;
      const T* x = static_cast<const T*>(a.p.features) + from * a.p.d;
      f = tile.divisors[side][i](x[k0 + k]);
    }
    tile.parts[side][k][i] = f;
  }
}

// Makes a 64 x 64 tile of weights.
template <class T>
__global__ void __launch_bounds__(kWeighThreads) weigh(AffinityArgs a) {
  const int64_t tiles_each = a.words * (a.words + 1) / 2;
  const int64_t image = blockIdx.x / tiles_each;
  const TilePlace place = tile_place(blockIdx.x % tiles_each, a.words);
  auto& tile = *reinterpret_cast<WeightTile<T>*>(shared_memory());
  load_divisors(a, image, place, tile);
  WeightSums mine(static_cast<int>(threadIdx.x));
  for (int64_t k0 = 0; k0 < a.p.d; k0 += kDepth) {
    __syncthreads();
    load_parts(a, image, place, k0, tile);
    __syncthreads();
    mine.add(tile);
  }
  const int64_t rows = a.words * kWord;
  const uint64_t* bits =
      a.p.bits + image * a.words * rows + place.column * rows + place.row * kWord;
  float* weights = tile_of(a.p.weights, place.row, place.column, a.words) + image * a.weights_each;
  for (int i = 0; i < WeightSums::kEach; ++i)
    for (int j = 0; j < WeightSums::kEach; ++j)
      weights[(mine.i0 + i) * kWord + mine.j0 + j] =
          (bits[mine.i0 + i] >> (mine.j0 + j) & 1) != 0
              ? mine.sums[i][j] - static_cast<float>(a.p.eps)
              : 0.0f;
}

}  // namespace selfment::cuda
