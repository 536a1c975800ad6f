// The edges of a warp's tile of the product: 64 rows by 64 columns of a graph, as its bits.
#pragma once

#include "operand.cuh"
#include "operand_product.cuh"

namespace selfment::cuda {

// These values stand in place of a row's error. With the first two there is nothing to compute: the
// product of a zero row and a finite one is 0, and a row that is not finite has no edges.
inline constexpr float kZeroRow = -INFINITY;
inline constexpr float kNotFinite = NAN;
inline constexpr float kOverflows = INFINITY;  // the product might overflow: it decides nothing

// How the products of the rows of two sides are decided; the errors of an operand may be one of the
// values above.
struct Rule {
  Operand rows, columns;
  float tau, margin;  // a pair's margin is this one plus its rows' errors
  bool zero_joins;    // true if a similarity of 0 is an edge
};

// A thread's part of a tile: the words of rows and of columns `lane` and `lane` + 32, and its
// unsure pairs.
struct TileEdges {
  uint64_t rows[2], columns[2];
  uint64_t unsure[2];  // bit 16 (g % 4) + c of unsure[g / 4] belongs to row(g) and column(c)

  __device__ static int row(int lane, int g) { return WarpTile::row(lane, g / 2, g % 2 * 2); }
  __device__ static int column(int lane, int c) { return WarpTile::column(lane, c / 2, c % 2); }
};

// The values that the lanes of a warp exchange, in shared memory.
struct TileNotes {
  float2 limits[kWord];        // a row's tau, and how far from it a pair is decided
  float scales[kWord];         // of the columns
  uint8_t edges[kWord][2][4];  // of a row: by halves of the columns and lanes, two bits for each n
};

// Transposes the 4 x 4 pairs of bits of a word.
__device__ inline uint32_t transpose_pairs(uint32_t x) {
  uint32_t moved = (x ^ x >> 12) & 0x0000f0f0u;
  x ^= moved ^ moved << 12;
  moved = (x ^ x >> 6) & 0x00cc00ccu;
  return x ^ moved ^ moved << 6;
}

// Transposes a 32 x 32 block of bits, of which each lane has a row, and gets a column: halves of it
// are exchanged, then quarters, and so on.
__device__ inline uint32_t transpose(uint32_t row, int lane) {
  uint32_t lower = 0x0000ffffu;  // columns that lanes without the bit keep
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    const bool upper = (lane & lanes) != 0;
    const uint32_t other = __shfl_xor_sync(kAllLanes, row, lanes), kept = upper ? ~lower : lower;
    const int left = upper ? kWarp - lanes : lanes;
    row = (row & kept) | ((other << left | other >> (kWarp - left)) & ~kept);
    lower ^= lower << lanes / 2;
  }
  return row;
}

// The errors of a tile's rows and columns `lane` and `lane` + 32, or the values that stand for
// them.
struct TileErrors {
  float rows[2], columns[2];
};

// Rows and columns of a tile, as bits.
struct TileFlags {
  uint64_t zero_columns;
  uint64_t columns;                  // that exist and are finite
  uint64_t open_columns, open_rows;  // whose products have to be computed
};

// Loads the errors, and notes the limits of the rows and the scales of the columns.
__device__ inline TileErrors note_limits(const Rule& rule, int64_t i0, int64_t j0, TileNotes& notes,
                                         int lane) {
  TileErrors errors;
  float most = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int at = half * kWarp + lane;
    const int64_t j = min(j0 + at, rule.columns.n - 1);
    const float error = errors.columns[half] = rule.columns.errors[j];
    // A NaN is never farther from tau than a limit, so the pair stays unsure.
    notes.scales[at] = error == kOverflows ? NAN : rule.columns.scales[j];
    if (error > most && error != kOverflows) most = error;
  }
  most = warp_max(most);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int at = half * kWarp + lane;
    const int64_t i = min(i0 + at, rule.rows.n - 1);
    const float error = errors.rows[half] = rule.rows.errors[i], unit = 1 / rule.rows.scales[i];
    notes.limits[at] = error >= 0 ? float2{rule.tau * unit, (error + most + rule.margin) * unit}
                                  : float2{1, -INFINITY};
  }
  return errors;
}

// True if row or column `first` + `lane` + 32 `half` exists.
__device__ inline bool exists(const Operand& side, int64_t first, int half, int lane) {
  return first + half * kWarp + lane < side.n;
}

__device__ inline TileFlags flags_of(const Rule& rule, int64_t i0, int64_t j0,
                                     const TileErrors& errors, int lane) {
  const auto flags = [](bool lower, bool upper) {
    return uint64_t{__ballot_sync(kAllLanes, static_cast<int>(lower))} |
           uint64_t{__ballot_sync(kAllLanes, static_cast<int>(upper))} << 32;
  };
  TileFlags all{};
  all.zero_columns = flags(errors.columns[0] == kZeroRow, errors.columns[1] == kZeroRow);
  all.columns = flags(exists(rule.columns, j0, 0, lane) && !isnan(errors.columns[0]),
                      exists(rule.columns, j0, 1, lane) && !isnan(errors.columns[1]));
  all.open_columns = all.columns & ~all.zero_columns;
  all.open_rows = flags(exists(rule.rows, i0, 0, lane) && errors.rows[0] >= 0,
                        exists(rule.rows, i0, 1, lane) && errors.rows[1] >= 0);
  return all;
}

// Compares a thread's products with the limits: notes the edges, and sets the unsure pairs.
__device__ inline void compare(const WarpTile& tile, TileNotes& notes, int lane, TileEdges& mine) {
  float scales[16];
#pragma unroll
  for (int c = 0; c < 16; ++c) scales[c] = notes.scales[TileEdges::column(lane, c)];
#pragma unroll
  for (int g = 0; g < 8; ++g) {
    const int row = TileEdges::row(lane, g);
    const float2 limit = notes.limits[row];
    uint32_t below = 0, near = 0;
#pragma unroll
    for (int c = 15; c >= 0; --c) {
      const float above = fmaf(tile.sums[g / 2][c / 2][g % 2 * 2 + c % 2], scales[c], -limit.x);
      below = __funnelshift_l(__float_as_uint(above), below, 1);  // shifts the sign in
      if (!(fabsf(above) > limit.y)) near |= 1u << c;
    }
    const uint32_t edges = ~(below | near);
    notes.edges[row][0][lane % 4] = static_cast<uint8_t>(edges);
    notes.edges[row][1][lane % 4] = static_cast<uint8_t>(edges >> 8);
    mine.unsure[g / 4] |= uint64_t{near} << 16 * (g % 4);
  }
}

// Clears those of the unsure pairs that are no pairs, or whose product is known.
__device__ inline void clear_known(const TileFlags& flags, bool diagonal, int lane,
                                   TileEdges& mine) {
#pragma unroll
  for (int part = 0; part < 2; ++part)
    for (uint64_t rest = mine.unsure[part]; rest != 0; rest &= rest - 1) {
      const int bit = __ffsll(static_cast<long long>(rest)) - 1;
      const int row = TileEdges::row(lane, part * 4 + bit / 16);
      const int column = TileEdges::column(lane, bit % 16);
      if ((flags.open_rows >> row & flags.open_columns >> column & 1) == 0 ||
          (diagonal && column < row))
        mine.unsure[part] ^= uint64_t{1} << bit;
    }
}

// Decides the edges of a tile that starts at row i0 and column j0. In a tile on the `diagonal` of a
// graph, the pairs below it have none.
__device__ inline TileEdges tile_edges(const WarpTile& tile, const Rule& rule, int64_t i0,
                                       int64_t j0, bool diagonal, TileNotes& notes, int lane) {
  const TileErrors errors = note_limits(rule, i0, j0, notes, lane);
  const TileFlags flags = flags_of(rule, i0, j0, errors, lane);
  __syncwarp();
  TileEdges mine{};
  compare(tile, notes, lane, mine);
  __syncwarp();
  clear_known(flags, diagonal, lane, mine);

  // The noted edges make the words of the rows; these, transposed, make the words of the columns.
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int at = half * kWarp + lane;
    const auto* parts = reinterpret_cast<const uint32_t*>(notes.edges[at]);
    uint64_t word = uint64_t{transpose_pairs(parts[0])} | uint64_t{transpose_pairs(parts[1])} << 32;
    const uint64_t zeros = errors.rows[half] == kZeroRow ? ~uint64_t{0} : flags.zero_columns;
    word = rule.zero_joins ? word | zeros : word & ~zeros;
    word &= flags.columns & (diagonal ? ~uint64_t{0} << at : ~uint64_t{0});
    mine.rows[half] = exists(rule.rows, i0, half, lane) && !isnan(errors.rows[half]) ? word : 0;
  }
#pragma unroll
  for (int half = 0; half < 2; ++half)
    mine.columns[half] =
        uint64_t{transpose(static_cast<uint32_t>(mine.rows[0] >> half * kWarp), lane)} |
        uint64_t{transpose(static_cast<uint32_t>(mine.rows[1] >> half * kWarp), lane)} << 32;
  return mine;
}

}  // namespace selfment::cuda
