// From features to the affinity graph, with the rule of the CPU twin: rows are normalised in double
// and rounded to float32, and a pair is an edge iff the inner product of its float32 rows is > tau
// (weighted: >= tau).
//
// The way. The product is taken by the tensor cores from half-precision rows: the features as they
// are where they are so, else the rounded rows once more rounded. Its error has a bound, so a pair
// farther than that from tau is decided. The few others go to a list, and a warp each settles them:
// in float32 with a bound of its own, and where that does not tell, in two doubles.
#include "degrees.cuh"
#include "norms.cuh"
#include "operand_product.cuh"
#include "pair_list.cuh"
#include "tile_edges.cuh"

namespace selfment::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kJoinThreads = 128;  // 2 x 2 warps' tiles are a block's
constexpr int kStages = 3;         // slabs on their way; then two blocks fit anywhere
constexpr unsigned kBand = 8;      // rows of tiles that blocks take side by side, to share columns
constexpr int64_t kSlabElements = int64_t{2} * kBlockTile * kSlab;
constexpr int64_t kTileBytes = kStages * kSlabElements * int64_t{sizeof(uint16_t)};
static_assert(kJoinThreads / kWarp * sizeof(TileNotes) <= kTileBytes);
static_assert(WarpTile::kRows == kWord && WarpTile::kColumns == kWord);
constexpr double kUnit = 0x1p-24;
constexpr auto kTauShare = static_cast<float>(4.04 * kUnit);  // of |tau|, for the comparison

// |sum - exact| of a product of half-precision rows of norm 1 or less, by the tensor cores.
//
// What is assumed of them, whose arithmetic is not documented: the products are exact; a group of
// them, of any size, is added to the sum at a time; before that, each term of a group is cut, not
// rounded, to no fewer bits than a float has below the largest term; and the new sum is cut to a
// float. (Fasi et al., Numerical behavior of NVIDIA tensor cores, 2021, found all of this, with
// groups of 4 and 8 and some more bits.) Whatever the grouping, each product and each sum is then
// cut once at most, by less than 2u = 2^-23 of the largest magnitude in its step. A sum starts anew
// with each slab; in a slab nothing exceeds the slab's share of sum |a_k b_k| but by its own error,
// for which are the 1 %, and the shares add up to |a| |b| <= 1 (Cauchy-Schwarz). The slabs' sums
// are added in float32.
double product_error(int64_t d) {
  const double slabs = static_cast<double>(d) / kSlab + 1;
  return ((2 * kSlab + 2) * 2 * kUnit + slabs * kUnit) * 1.01;
}

struct Args {
  AffinityParams p;
  const uint16_t* operand;  // (batch, n, stride)
  int64_t stride;
  float* scales;   // (batch, n), operand row * scale = rounded row, about
  float* errors;   // (batch, n), of that, in norm, or what stands for one
  uint16_t* copy;  // the operand, where it is not the features
  PairList undecided;
  float margin;  // what all pairs have in common, but for tau's share
  int64_t words, tiles, blocks;
  int64_t weights_each;  // floats of an image
};

// --- Rows ---

// A warp for each row: its norm, and the operand.
template <class T>
__global__ void prepare(Args a) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t row = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarp;
  if (row >= a.p.batch * a.p.n) return;
  const T* x = static_cast<const T*>(a.p.features) + row * a.p.d;
  const double length = warp_length(x, a.p.d, lane), norm = norm_of(length);
  float error = 0;
  if (a.copy != nullptr) {
    const Divisor<T> divided(norm);
    uint16_t* copy = a.copy + row * a.stride;
    for (int64_t k = lane; k < a.stride; k += kWarp) {
      const float f = k < a.p.d ? divided(x[k]) : 0.0f;
      const uint16_t half = isfinite(f) ? to_half(f) : uint16_t{0};
      const float rest = f - to_float(Float16{half});  // exact
      copy[k] = half;
      error += rest * rest;
    }
    // Rounded up; the factor covers e_i e_j, which |q_i| <= 1 + e_i brings in, and the sum's error.
    error = sqrtf(warp_sum(error)) * (1.002f + static_cast<float>(a.p.d) * 0x1p-29f);
  } else if (norm > 1e15) {
    error = kOverflows;
  }
  if (lane > 0) return;
  a.p.norms[row] = norm;
  a.p.degrees[row] = isfinite(norm) ? 0 : NAN;
  a.scales[row] = a.copy != nullptr ? 1.0f : 1 / static_cast<float>(norm);
  a.errors[row] = !isfinite(norm) ? kNotFinite : length == 0 ? kZeroRow : error;
}

// --- Single pairs ---

// <x, y> by a warp, in float32.
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

// |warp_product - exact| for rows of norm 1: a lane adds d / kWarp products and a piece at most,
// then its sums, then those of the lanes.
template <class T>
__device__ double warp_product_error(int64_t d) {
  return static_cast<double>(d / kWarp + kPieceSize<T> + 12) * kUnit;
}

// Whether rows i and j of an image are joined, by a warp; all lanes get the answer.
template <class T>
__device__ bool settle_pair(const Args& a, int64_t image, int64_t i, int64_t j, int lane) {
  const int64_t d = a.p.d, base = image * a.p.n;
  const T* x = static_cast<const T*>(a.p.features) + (base + i) * d;
  const T* y = static_cast<const T*>(a.p.features) + (base + j) * d;
  const double norm_x = a.p.norms[base + i], norm_y = a.p.norms[base + j];
  const double tau = a.p.taus[image];
  if (norm_x < 1e15 && norm_y < 1e15) {
    const double product = warp_product(x, y, d, lane) / (norm_x * norm_y);
    // 8 units are for the rows: those here are not rounded, or to float32 before the division; 1e-9
    // is for products that underflow.
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

__device__ void set_edge(const Args& a, int64_t image, int64_t i, int64_t j) {
  const int64_t rows = a.words * kWord;
  auto* bits = reinterpret_cast<unsigned long long*>(a.p.bits) + image * a.words * rows;
  atomicOr(bits + j / kWord * rows + i, 1ull << j % kWord);
  atomicOr(bits + i / kWord * rows + j, 1ull << i % kWord);
}

template <class T>
__global__ void settle(Args a) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t warp = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarp;
  const int64_t warps = int64_t{gridDim.x} * blockDim.x / kWarp;
  const int64_t found = static_cast<int64_t>(a.undecided.counts[0]);
  const auto decide = [&](const Pair& p) {
    if (settle_pair<T>(a, p.image, p.i, p.j, lane) && lane == 0) set_edge(a, p.image, p.i, p.j);
  };
  for (int64_t at = warp; at < min(found, a.undecided.capacity); at += warps) {
    const int64_t number = a.undecided.pairs[at];
    if (number != kNoPair) decide(pair_of(number, a.words));
  }
  const int64_t whole = static_cast<int64_t>(a.undecided.counts[1]);
  for (int64_t at = warp; at < whole * kTilePairs; at += warps) {
    const Pair pair =
        pair_of(a.undecided.tiles[at / kTilePairs] * kTilePairs + at % kTilePairs, a.words);
    if (pair.i <= pair.j && pair.j < a.p.n) decide(pair);
  }
}

// --- Tiles ---

// The tile of block `index` of an image, in bands of kBand rows of tiles, column by column. False
// for one below the diagonal, which a band's first columns hold.
__device__ bool tile_of(unsigned index, unsigned tiles, unsigned* row, unsigned* column) {
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

int64_t tile_blocks(int64_t tiles) {
  int64_t blocks = 0;
  for (int64_t first = 0; first < tiles; first += kBand)
    blocks += std::min(int64_t{kBand}, tiles - first) * (tiles - first);
  return blocks;
}

// Lists the unsure pairs of a warp's tile, or the tile.
__device__ void list_unsure(const PairList& list, int64_t number, const TileEdges& found,
                            int lane) {
  const unsigned mine =
      static_cast<unsigned>(__popcll(found.unsure[0]) + __popcll(found.unsure[1]));
  if (__any_sync(kAllLanes, static_cast<int>(mine > 0)) == 0) return;
  unsigned before = mine;  // and its own
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
    for (uint64_t rest = found.unsure[part]; rest != 0; rest &= rest - 1, ++at) {
      const int bit = __ffsll(static_cast<long long>(rest)) - 1;
      const int row = TileEdges::row(lane, part * 4 + bit / 16);
      if (at < list.capacity)
        list.pairs[at] =
            fits ? pair_number(number, row, TileEdges::column(lane, bit % 16)) : kNoPair;
    }
}

// A 128 x 128 tile of the graph and its mirror image.
template <bool kBFloat16>
__global__ void __launch_bounds__(kJoinThreads, 2) join(Args a) {
  // The blocks of a grid can be counted in 32 bits.
  const auto blocks = static_cast<unsigned>(a.blocks), tiles = static_cast<unsigned>(a.tiles);
  const int64_t image = blockIdx.x / blocks, n = a.p.n;
  unsigned tile_row, tile_column;
  if (!tile_of(blockIdx.x % blocks, tiles, &tile_row, &tile_column)) return;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  auto* slabs = reinterpret_cast<uint16_t*>(shared_memory());
  const int slab_count = static_cast<int>((a.p.d + kSlab - 1) / kSlab);

  // Rows 0 to 127 of a stage are A's, the others B's; a thread copies a piece of every 32nd.
  constexpr int kPieces = kSlab / kPiece, kRowsEach = kJoinThreads / kPieces;
  const int piece = thread % kPieces, to = piece_offset(thread / kPieces, piece);
  const int64_t first_row = int64_t{tile_row} * kBlockTile + thread / kPieces;
  const int64_t first_column = int64_t{tile_column} * kBlockTile + thread / kPieces;
  const auto rows_left = static_cast<int>(n - first_row);
  const auto columns_left = static_cast<int>(n - first_column);
  const auto slabs_left = static_cast<int>((a.stride - piece * kPiece + kSlab - 1) / kSlab);
  const uint16_t* first = a.operand + image * n * a.stride + piece * kPiece;
  const uint16_t *left = first + first_row * a.stride, *right = first + first_column * a.stride;
  const auto fetch = [&](int slab) {
    if (slab < slab_count) {
      uint16_t* stage = slabs + slab % kStages * kSlabElements + to;
      const int64_t k = int64_t{slab} * kSlab;
      const bool exists = slab < slabs_left;
#pragma unroll
      for (int r = 0; r < kBlockTile; r += kRowsEach) {
        copy_piece(stage + r * kSlab, left + k + r * a.stride, exists && r < rows_left);
        copy_piece(stage + (kBlockTile + r) * kSlab, right + k + r * a.stride,
                   exists && r < columns_left);
      }
    }
    end_copies();
  };

  const int row = warp / 2 * WarpTile::kRows, column = warp % 2 * WarpTile::kColumns;
  WarpTile tile{};
  for (int slab = 0; slab < kStages - 1; ++slab) fetch(slab);
  for (int slab = 0; slab < slab_count; ++slab) {
    wait_for_copies<kStages - 2>();
    __syncthreads();
    fetch(slab + kStages - 1);
    const uint16_t* stage = slabs + slab % kStages * kSlabElements;
    add_product<kBFloat16>(tile, stage, row, stage + kSlabElements / 2, column, lane);
  }
  __syncthreads();

  // From here the shared memory holds what the lanes of a warp tell one another.
  const int64_t row_word = 2 * tile_row + warp / 2, column_word = 2 * tile_column + warp % 2;
  if (row_word > column_word || column_word >= a.words) return;
  const double exact_tau = a.p.taus[image];
  const auto tau = static_cast<float>(exact_tau);
  const Rule rule{n,
                  a.scales + image * n,
                  a.errors + image * n,
                  tau,
                  a.margin + fabsf(tau) * kTauShare,
                  a.p.weights != nullptr ? 0 >= exact_tau : 0 > exact_tau};
  TileNotes& notes = reinterpret_cast<TileNotes*>(slabs)[warp];
  const TileEdges found =
      tile_edges(tile, rule, row_word * kWord, column_word * kWord, notes, lane);
  const int64_t rows = a.words * kWord;
  uint64_t* graph = a.p.bits + image * a.words * rows + lane;
  const bool diagonal = row_word == column_word;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    graph[column_word * rows + row_word * kWord + half * kWarp] =
        found.rows[half] | (diagonal ? found.columns[half] : 0);
    if (!diagonal)
      graph[row_word * rows + column_word * kWord + half * kWarp] = found.columns[half];
  }
  list_unsure(a.undecided, tile_number(image, row_word, column_word, a.words), found, lane);
}

// --- Weights ---

constexpr int kWeightTile = 64, kDepth = 32;  // rows of a side, and their elements at a time

// The shared memory of a tile: the rows' elements, and what they are divided by.
template <class T>
struct WeightTile {
  float parts[2][kDepth][kWeightTile + 1];
  Divisor<T> divisors[2][kWeightTile];
};

// A 64 x 64 tile of weights, in float32 from the rounded rows.
template <class T>
__global__ void __launch_bounds__(kThreads) weigh(Args a) {
  constexpr int kTile = kWeightTile, kEach = 4;  // sums a side
  const int64_t tiles_each = a.words * (a.words + 1) / 2;
  const int64_t image = blockIdx.x / tiles_each;
  int64_t column = blockIdx.x % tiles_each, row = 0;
  while (column >= a.words - row) column -= a.words - row++;
  column += row;
  const int thread = static_cast<int>(threadIdx.x);
  auto& tile = *reinterpret_cast<WeightTile<T>*>(shared_memory());
  for (int at = thread; at < 2 * kTile; at += kThreads) {
    const int64_t source = (at < kTile ? row : column) * kTile + at % kTile;
    tile.divisors[at / kTile][at % kTile] =
        Divisor<T>(source < a.p.n ? a.p.norms[image * a.p.n + source] : 1);
  }
  float sums[kEach][kEach] = {};
  const int i0 = thread / (kTile / kEach) * kEach, j0 = thread % (kTile / kEach) * kEach;
  for (int64_t k0 = 0; k0 < a.p.d; k0 += kDepth) {
    __syncthreads();
    for (int at = thread; at < 2 * kTile * kDepth; at += kThreads) {
      const int side = at / (kTile * kDepth), i = at / kDepth % kTile, k = at % kDepth;
      const int64_t source = (side == 0 ? row : column) * kTile + i;
      float f = 0;
      if (source < a.p.n && k0 + k < a.p.d) {
        const int64_t from = image * a.p.n + source;
        const T* x = static_cast<const T*>(a.p.features) + from * a.p.d;
        f = tile.divisors[side][i](x[k0 + k]);
      }
      tile.parts[side][k][i] = f;
    }
    __syncthreads();
    float run[kEach][kEach] = {};  // a sum of its own: a long one would be less exact
    for (int k = 0; k < kDepth; ++k)
      for (int i = 0; i < kEach; ++i)
        for (int j = 0; j < kEach; ++j)
          run[i][j] = fmaf(tile.parts[0][k][i0 + i], tile.parts[1][k][j0 + j], run[i][j]);
    for (int i = 0; i < kEach; ++i)
      for (int j = 0; j < kEach; ++j) sums[i][j] += run[i][j];
  }
  const int64_t rows = a.words * kWord;
  const uint64_t* bits = a.p.bits + image * a.words * rows + column * rows + row * kWord;
  float* weights = a.p.weights + image * a.weights_each +
                   (row * a.words - row * (row - 1) / 2 + column - row) * kTile * kTile;
  for (int i = 0; i < kEach; ++i)
    for (int j = 0; j < kEach; ++j)
      weights[(i0 + i) * kTile + j0 + j] =
          (bits[i0 + i] >> (j0 + j) & 1) != 0 ? sums[i][j] - static_cast<float>(a.p.eps) : 0.0f;
}

// --- Scratch memory ---

int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// The features' own rows can be the operand only if all their pieces are aligned.
bool copies(Dtype dtype, int64_t d) {
  return (dtype != Dtype::kFloat16 && dtype != Dtype::kBFloat16) || d % kPiece != 0;
}

// Carves the scratch memory; returns its size.
int64_t carve(Args& a, void* scratch) {
  const AffinityParams& p = a.p;
  int64_t used = 0;
  const auto take = [&](auto*& pointer, int64_t count) {
    using Item = std::remove_reference_t<decltype(*pointer)>;
    pointer = reinterpret_cast<Item*>(static_cast<char*>(scratch) + used);
    used += aligned(count * static_cast<int64_t>(sizeof(Item)));
  };
  const int64_t rows = p.batch * p.n, words = word_count(p.n);
  a.undecided.capacity = pair_capacity(p.batch, p.n);
  take(a.undecided.counts, 2);
  take(a.undecided.pairs, a.undecided.capacity);
  take(a.undecided.tiles, p.batch * words * (words + 1) / 2);
  take(a.scales, rows);
  take(a.errors, rows);
  if (p.norms == nullptr) take(a.p.norms, rows);
  a.copy = nullptr;
  a.stride = p.d;
  if (copies(p.dtype, p.d)) {
    a.stride = (p.d + kPiece - 1) / kPiece * kPiece;
    take(a.copy, rows * a.stride);
  }
  return used;
}

int64_t blocks_for(int64_t items) { return (items + kThreads - 1) / kThreads; }

template <class T>
void run(Args a, cudaStream_t stream) {
  const int64_t rows = a.p.batch * a.p.n;
  check(cudaMemsetAsync(a.undecided.counts, 0, 2 * sizeof(unsigned long long), stream),
        "cudaMemsetAsync");
  launch("affinity: prepare", prepare<T>, blocks_for(rows * kWarp), kThreads, 0, stream, a);
  const bool bfloat16 = a.copy == nullptr && a.p.dtype == Dtype::kBFloat16;
  auto* kernel = bfloat16 ? join<true> : join<false>;
  launch("affinity: join", kernel, a.p.batch * a.blocks, kJoinThreads, kTileBytes, stream, a);
  launch("affinity: settle", settle<T>, int64_t{8} * device().multiprocessors, kThreads, 0, stream,
         a);
  if (a.p.weights != nullptr)
    launch("affinity: weigh", weigh<T>, a.p.batch * a.words * (a.words + 1) / 2, kThreads,
           sizeof(WeightTile<T>), stream, a);
  add_degrees({a.p.bits, a.p.weights, a.p.batch, a.p.n, a.p.eps}, a.p.degrees, stream);
}

}  // namespace

int64_t affinity_scratch(Dtype dtype, int64_t batch, int64_t n, int64_t d) {
  Args a{};
  a.p.dtype = dtype;
  a.p.batch = batch;
  a.p.n = n;
  a.p.d = d;
  return carve(a, nullptr);
}

void affinity(const AffinityParams& p, const Context& context) {
  Args a{};
  a.p = p;
  carve(a, context.scratch);
  a.operand = a.copy != nullptr ? a.copy : static_cast<const uint16_t*>(p.features);
  a.words = word_count(p.n);
  a.tiles = (p.n + kBlockTile - 1) / kBlockTile;
  a.blocks = tile_blocks(a.tiles);
  a.weights_each = weights_size(p.n);
  // The product; the rounding of the rows and of their scaling.
  a.margin = static_cast<float>((product_error(p.d) + 10 * kUnit + 1e-9) * 1.01);
  with_dtype(p.dtype, [&](auto* typed) {
    run<std::decay_t<decltype(*typed)>>(a, static_cast<cudaStream_t>(context.stream));
  });
}

}  // namespace selfment::cuda
