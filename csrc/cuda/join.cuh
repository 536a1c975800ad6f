// Decides nearly all pairs: the product of the operand's rows by the tensor cores, tile by tile,
// and its comparison with tau.
#pragma once

#include "affinity_args.cuh"
#include "operand_product.cuh"
#include "tile_edges.cuh"

namespace selfment::cuda {

inline constexpr int kJoinThreads = 128;  // 4 warps, whose 2 x 2 tiles make a block's tile
inline constexpr int kStages = 3;         // slabs on their way; then two blocks fit anywhere
inline constexpr unsigned kBand = 8;      // rows of tiles in a band, whose blocks share columns
inline constexpr int64_t kSlabElements = int64_t{2} * kBlockTile * kSlab;
inline constexpr int64_t kTileBytes = kStages * kSlabElements * int64_t{sizeof(uint16_t)};
static_assert(kJoinThreads / kWarp * sizeof(TileNotes) <= kTileBytes);
static_assert(WarpTile::kRows == kWord && WarpTile::kColumns == kWord);

inline constexpr auto kTauShare = static_cast<float>(4.04 * kUnit);  // of |tau|, for the comparison

// Bounds |sum - exact| of a product of half-precision rows of norm 1 or less, by the tensor cores.
//
// Their arithmetic is not documented. The bound assumes that the products are exact; that a group
// of them, of any size, is added to the sum at a time; that before this each term of a group is
// cut, not rounded, to no fewer bits than a float has below the largest term; and that the new sum
// is cut to a float. (Fasi et al., Numerical behavior of NVIDIA tensor cores, 2021, observed all of
// this, with groups of 4 and 8 and some more bits.) Whatever the grouping, each product and each
// sum is then cut once at most, by less than 2u = 2^-23 of the largest magnitude in its step. A sum
// starts anew with each slab. In a slab nothing exceeds the slab's share of sum |a_k b_k| by more
// than its own error, which the 1 % cover, and the shares add up to |a| |b| <= 1 (Cauchy-Schwarz).
// The slabs' sums are added in float32.
inline double product_error(int64_t d) {
  const double slabs = static_cast<double>(d) / kSlab + 1;
  return ((2 * kSlab + 2) * 2 * kUnit + slabs * kUnit) * 1.01;
}

// What the margins of all pairs have in common, except for tau's share: it covers the product, and
// the rounding of the rows and of their scaling.
inline float pair_margin(int64_t d) {
  return static_cast<float>((product_error(d) + 10 * kUnit + 1e-9) * 1.01);
}

// Computes the tile of block `index` of an image: bands of kBand rows of tiles, column by column.
// False for a tile below the diagonal; the first columns of a band have such tiles.
__device__ inline bool block_tile(unsigned index, unsigned tiles, unsigned* row, unsigned* column) {
  unsigned first = 0, height = min(kBand, tiles);
  while (index >= height * (tiles - first)) {
    index -= height * (tiles - first);
    first += height;
    height = min(kBand, tiles - first);
  }
  *row = first + index % height;
  *column = first + index / height;
  return *row <= *column;
}

// The blocks of an image of tiles x tiles tiles.
inline int64_t tile_blocks(int64_t tiles) {
  int64_t blocks = 0;
  for (int64_t first = 0; first < tiles; first += kBand)
    blocks += std::min(int64_t{kBand}, tiles - first) * (tiles - first);
  return blocks;
}

// Lists the unsure pairs of a warp's tile, or the whole tile if there is no room for them.
__device__ inline void list_unsure(const PairList& list, int64_t number, const TileEdges& edges,
                                   int lane) {
  const unsigned mine =
      static_cast<unsigned>(__popcll(edges.unsure[0]) + __popcll(edges.unsure[1]));
  if (__any_sync(kAllLanes, static_cast<int>(mine > 0)) == 0) return;
  unsigned before = mine;  // pairs of the lanes up to this one
  for (unsigned lanes = 1; lanes < kWarp; lanes *= 2) {
    const unsigned others = __shfl_up_sync(kAllLanes, before, lanes);
    if (static_cast<unsigned>(lane) >= lanes) before += others;
  }
  const unsigned all = __shfl_sync(kAllLanes, before, kWarp - 1);
  unsigned long long reserved = 0;
  if (lane == 0) reserved = atomicAdd(list.counts, static_cast<unsigned long long>(all));
  auto at = static_cast<int64_t>(__shfl_sync(kAllLanes, reserved, 0));
  const bool fits = at + all <= list.capacity;
  if (!fits && lane == 0)
    list.tiles[atomicAdd(list.counts + 1, 1ull)] = static_cast<uint32_t>(number);
  at += before - mine;
#pragma unroll
  for (int part = 0; part < 2; ++part)
    for (uint64_t rest = edges.unsure[part]; rest != 0; rest &= rest - 1, ++at) {
      const int bit = __ffsll(static_cast<long long>(rest)) - 1;
      const int row = TileEdges::row(lane, part * 4 + bit / 16);
      if (at < list.capacity)
        list.pairs[at] =
            fits ? pair_number(number, row, TileEdges::column(lane, bit % 16)) : kNoPair;
    }
}

// Copies slabs of a block's rows into shared memory, in the background. Rows 0 to 127 of a stage
// are the tile's rows, the others its columns; a thread copies a piece of every 32nd.
class SlabCopies {
 public:
  __device__ SlabCopies(const Operand& rows, const Operand& columns, int64_t d, unsigned tile_row,
                        unsigned tile_column, uint16_t* stages)
      : stride_(rows.stride), slab_count_(static_cast<int>((d + kSlab - 1) / kSlab)) {
    const int thread = static_cast<int>(threadIdx.x), piece = thread % kPieces;
    const int64_t row = int64_t{tile_row} * kBlockTile + thread / kPieces;
    const int64_t column = int64_t{tile_column} * kBlockTile + thread / kPieces;
    to_ = stages + piece_offset(thread / kPieces, piece);
    rows_left_ = static_cast<int>(rows.n - row);
    columns_left_ = static_cast<int>(columns.n - column);
    slabs_left_ = static_cast<int>((stride_ - piece * kPiece + kSlab - 1) / kSlab);
    rows_ = rows.rows + piece * kPiece + row * stride_;
    columns_ = columns.rows + piece * kPiece + column * stride_;
  }

  __device__ int slab_count() const { return slab_count_; }

  // Starts the copies of a slab, if there is such a one; they are a group in any case.
  __device__ void start(int slab) const {
    if (slab < slab_count_) {
      uint16_t* stage = to_ + slab % kStages * kSlabElements;
      const int64_t k = int64_t{slab} * kSlab;
      const bool exists = slab < slabs_left_;
#pragma unroll
      for (int r = 0; r < kBlockTile; r += kRowsEach) {
        copy_piece(stage + r * kSlab, rows_ + k + r * stride_, exists && r < rows_left_);
        copy_piece(stage + (kBlockTile + r) * kSlab, columns_ + k + r * stride_,
                   exists && r < columns_left_);
      }
    }
    end_copies();
  }

 private:
  static constexpr int kPieces = kSlab / kPiece, kRowsEach = kJoinThreads / kPieces;

  int64_t stride_;
  int slab_count_, rows_left_, columns_left_, slabs_left_;
  uint16_t* to_;
  const uint16_t *rows_, *columns_;
};

// The sums of a warp's tile, whose rows and columns of a slab begin at `row` and `column`.
template <bool kBFloat16>
__device__ WarpTile multiply_slabs(const SlabCopies& copies, const uint16_t* stages, int row,
                                   int column, int lane) {
  WarpTile tile{};
  for (int slab = 0; slab < kStages - 1; ++slab) copies.start(slab);
  for (int slab = 0; slab < copies.slab_count(); ++slab) {
    wait_for_copies<kStages - 2>();
    __syncthreads();
    copies.start(slab + kStages - 1);
    const uint16_t* stage = stages + slab % kStages * kSlabElements;
    add_product<kBFloat16>(tile, stage, row, stage + kSlabElements / 2, column, lane);
  }
  __syncthreads();
  return tile;
}

// Writes a warp's words of the graph, and those of the mirror image.
__device__ inline void store_edges(const AffinityArgs& a, int64_t image, int64_t row_word,
                                   int64_t column_word, const TileEdges& edges, int lane) {
  const int64_t rows = a.words * kWord;
  uint64_t* graph = a.p.bits + image * a.words * rows + lane;
  const bool diagonal = row_word == column_word;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    graph[column_word * rows + row_word * kWord + half * kWarp] =
        edges.rows[half] | (diagonal ? edges.columns[half] : 0);
    if (!diagonal)
      graph[row_word * rows + column_word * kWord + half * kWarp] = edges.columns[half];
  }
}

// How the products of two sides are compared with tau; `zero_joins`: true if a similarity of 0 is
// an edge.
__device__ inline Rule make_rule(const Operand& rows, const Operand& columns, double exact_tau,
                                 float margin, bool zero_joins) {
  const auto tau = static_cast<float>(exact_tau);
  return {rows, columns, tau, margin + fabsf(tau) * kTauShare, zero_joins};
}

// Makes a 128 x 128 tile of the graph and its mirror image.
template <bool kBFloat16>
__global__ void __launch_bounds__(kJoinThreads, 2) join(AffinityArgs a) {
  // The blocks of a grid can be counted in 32 bits.
  const auto blocks = static_cast<unsigned>(a.blocks), tiles = static_cast<unsigned>(a.tiles);
  const int64_t image = blockIdx.x / blocks;
  unsigned tile_row, tile_column;
  if (!block_tile(blockIdx.x % blocks, tiles, &tile_row, &tile_column)) return;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  auto* stages = reinterpret_cast<uint16_t*>(shared_memory());
  const Operand operand = a.side.operand.part(image * a.p.n, a.p.n);
  const SlabCopies copies(operand, operand, a.p.d, tile_row, tile_column, stages);
  const WarpTile tile = multiply_slabs<kBFloat16>(copies, stages, warp / 2 * WarpTile::kRows,
                                                  warp % 2 * WarpTile::kColumns, lane);

  // From here on the shared memory holds what the lanes of a warp exchange.
  const int64_t row_word = 2 * tile_row + warp / 2, column_word = 2 * tile_column + warp % 2;
  if (row_word > column_word || column_word >= a.words) return;
  TileNotes& notes = reinterpret_cast<TileNotes*>(stages)[warp];
  const double tau = a.p.taus[image];
  const bool zero_joins = a.p.weights != nullptr ? 0 >= tau : 0 > tau;
  const Rule rule = make_rule(operand, operand, tau, a.margin, zero_joins);
  const TileEdges edges = tile_edges(tile, rule, row_word * kWord, column_word * kWord,
                                     row_word == column_word, notes, lane);
  store_edges(a, image, row_word, column_word, edges, lane);
  const int64_t number = tile_number(image, row_word, column_word, a.words, a.words);
  list_unsure(a.undecided, number, edges, lane);
}

}  // namespace selfment::cuda
