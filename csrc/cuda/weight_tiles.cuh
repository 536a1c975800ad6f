// Where the 64 x 64 tiles of an image's weights are: those on and above the diagonal, row by row of
// tiles, `words` in a row of the graph.
#pragma once

#include "platform.h"

namespace selfment::cuda {

inline constexpr int kTileWeights = static_cast<int>(kWord * kWord);

struct TilePlace {
  int64_t row, column;
};

// The place of tile number `index` of an image.
__device__ inline TilePlace tile_place(int64_t index, int64_t words) {
  int64_t column = index, row = 0;
  while (column >= words - row) column -= words - row++;
  return {row, column + row};
}

// The weights of a tile, (64, 64), of the image whose weights begin at `weights`.
template <class Weight>
__device__ Weight* tile_of(Weight* weights, int64_t row, int64_t column, int64_t words) {
  return weights + (row * words - row * (row - 1) / 2 + column - row) * kTileWeights;
}

}  // namespace selfment::cuda
