// The pairs that a product of low precision cannot decide, as a list that all blocks append to. If
// there is no room for the pairs of a tile, the tile is listed as a whole instead.
#pragma once

#include "platform.h"
#include "scratch.h"

namespace selfment::cuda {

inline constexpr int64_t kTilePairs = kWord * kWord;  // a tile is a word of 64 rows
inline constexpr int64_t kNoPair = -1;
inline constexpr int64_t kMostPairs = int64_t{8} << 20;  // in a list: 64 MiB

struct PairList {
  unsigned long long* counts;  // (2,): pairs, including those without room; tiles
  int64_t* pairs;              // (capacity,), their numbers, or kNoPair
  uint32_t* tiles;             // the numbers of tiles all of whose pairs have to be settled
  int64_t capacity;            // the most pairs
};

// The capacity for a batch of images of n rows: a 64th of their pairs. Usually only a few in 10,000
// pairs are listed.
inline int64_t pair_capacity(int64_t batch, int64_t n) {
  const int64_t image = std::min(n * (n + 1) / 2, std::max(int64_t{4096}, n * n / 128));
  return std::min(batch * image, kMostPairs);
}

// Returns a list in scratch memory, for the pairs of so many tiles.
inline PairList make_list(int64_t capacity, int64_t tiles, Scratch& memory) {
  PairList list{};
  list.capacity = capacity;
  memory.allocate(list.counts, 2);
  memory.allocate(list.pairs, capacity);
  memory.allocate(list.tiles, tiles);
  return list;
}

// A tile's number in the batch, and a pair's number from its place in the tile; an image has `rows`
// x `columns` tiles. Graphs of 2^32 tiles would take 2 TiB, so 32 bits suffice for a tile.
__device__ inline int64_t tile_number(int64_t image, int64_t row, int64_t column, int64_t rows,
                                      int64_t columns) {
  return (image * rows + row) * columns + column;
}
__device__ inline int64_t pair_number(int64_t tile, int row, int column) {
  return tile * kTilePairs + row * kWord + column;
}

struct Pair {
  int64_t image, i, j;
};
__device__ inline Pair pair_of(int64_t number, int64_t rows, int64_t columns) {
  const int64_t tile = number / kTilePairs, within = number % kTilePairs;
  return {tile / columns / rows, tile / columns % rows * kWord + within / kWord,
          tile % columns * kWord + within % kWord};
}

}  // namespace selfment::cuda
