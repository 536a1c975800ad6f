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

namespace selfment::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kStages = 3;    // slabs on their way
constexpr int kFold = 8;      // slabs after which a sum starts anew
constexpr int64_t kBand = 8;  // rows of tiles that blocks take side by side, to share columns
constexpr int64_t kSlabElements = int64_t{2} * kBlockTile * kSlab;
constexpr int64_t kTileBytes = kStages * kSlabElements * int64_t{sizeof(uint16_t)};
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
// after kFold slabs, a run; in a run nothing exceeds the run's share of sum |a_k b_k| but by its
// own error, for which are the 1 %, and the shares add up to |a| |b| <= 1 (Cauchy-Schwarz). The
// runs are added in float32.
double product_error(int64_t d) {
  const auto run = static_cast<double>(d < kFold * kSlab ? d : kFold * kSlab);
  const double runs = static_cast<double>(d) / (kFold * kSlab) + 1;
  return ((2 * run + 2) * 2 * kUnit + runs * kUnit) * 1.01;
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

// In place of a row's error. The first two outweigh any error they are added to, and say that there
// is nothing to compute: the product of a zero row and a finite one is 0, and a row that is not
// finite has no edges.
constexpr float kZeroRow = -INFINITY;
constexpr float kNotFinite = NAN;
constexpr float kOverflows = 1e30f;  // the product might: nothing is known of it

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
    if (number != kNoPair) decide(pair_of(number, a.tiles));
  }
  const int64_t whole = static_cast<int64_t>(a.undecided.counts[1]);
  for (int64_t at = warp; at < whole * kTilePairs; at += warps) {
    const Pair pair =
        pair_of(a.undecided.tiles[at / kTilePairs] * kTilePairs + at % kTilePairs, a.tiles);
    if (pair.i <= pair.j && pair.j < a.p.n) decide(pair);
  }
}

// --- Tiles ---

// The tile of block `index` of an image, in bands of kBand rows of tiles, column by column. False
// for one below the diagonal, which a band's first columns hold.
__device__ bool tile_of(int64_t index, int64_t tiles, int64_t* row, int64_t* column) {
  int64_t first = 0, height = min(kBand, tiles);
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
    blocks += std::min(kBand, tiles - first) * (tiles - first);
  return blocks;
}

// Columns of a 32 x 32 block of bits, from its rows, one for each lane.
__device__ uint32_t transpose(uint32_t row, int lane) {
  uint32_t column = 0;
#pragma unroll
  for (int j = 0; j < kWarp; ++j) {
    const uint32_t bits = __ballot_sync(kAllLanes, static_cast<int>(row >> j & 1));
    if (lane == j) column = bits;
  }
  return column;
}

// A 128 x 128 tile of the graph and its mirror image.
template <bool kBFloat16>
__global__ void __launch_bounds__(kThreads) join(Args a) {
  const int64_t image = blockIdx.x / a.blocks;
  int64_t tile_row, tile_column;
  if (!tile_of(blockIdx.x % a.blocks, a.tiles, &tile_row, &tile_column)) return;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const int64_t n = a.p.n, first_row = tile_row * kBlockTile,
                first_column = tile_column * kBlockTile;
  auto* slabs = reinterpret_cast<uint16_t*>(shared_memory());
  const int slab_count = static_cast<int>((a.p.d + kSlab - 1) / kSlab);

  // Rows 0 to 127 of a stage are A's, the others B's.
  const auto fetch = [&](int slab) {
    if (slab < slab_count) {
      uint16_t* stage = slabs + slab % kStages * kSlabElements;
#pragma unroll
      for (int r = 0; r < 2 * kBlockTile * kSlab / kPiece / kThreads; ++r) {
        const int at = r * kThreads + thread, row = at / (kSlab / kPiece),
                  piece = at % (kSlab / kPiece);
        const int64_t source = row < kBlockTile ? first_row + row : first_column + row - kBlockTile;
        const int64_t k = int64_t{slab} * kSlab + piece * kPiece;
        const bool exists = source < n && k < a.stride;
        copy_piece(stage + piece_offset(row, piece),
                   a.operand + (exists ? (image * n + source) * a.stride + k : 0), exists);
      }
    }
    end_copies();
  };

  const int row = warp / 4 * WarpTile::kRows, column = warp % 4 * WarpTile::kColumns;
  WarpTile tile{}, total{};
  for (int slab = 0; slab < kStages - 1; ++slab) fetch(slab);
  for (int slab = 0; slab < slab_count; ++slab) {
    wait_for_copies<kStages - 2>();
    __syncthreads();
    fetch(slab + kStages - 1);
    const uint16_t* stage = slabs + slab % kStages * kSlabElements;
    add_product<kBFloat16>(tile, stage, row, stage + kSlabElements / 2, column, lane);
    if (slab % kFold != kFold - 1 && slab + 1 < slab_count) continue;
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
      for (int c = 0; c < 4; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          total.sums[m][c][e] += tile.sums[m][c][e];
          tile.sums[m][c][e] = 0;
        }
  }
  wait_for_copies<0>();
  __syncthreads();

  // From here the shared memory holds bits[128][4], mirrored[128][4], and two numbers.
  auto* bits = reinterpret_cast<uint32_t*>(slabs);
  uint32_t* mirrored = bits + kBlockTile * 4;
  auto* unsure_count = reinterpret_cast<unsigned*>(mirrored + kBlockTile * 4);
  auto* reserved = reinterpret_cast<unsigned long long*>(unsure_count + 2);
  if (thread == 0) *unsure_count = 0;
  __syncthreads();

  const float* scales = a.scales + image * n;
  const float* errors = a.errors + image * n;
  const double exact_tau = a.p.taus[image];
  const auto tau = static_cast<float>(exact_tau);
  const bool zero_joins = a.p.weights != nullptr ? 0 >= exact_tau : 0 > exact_tau;
  const float common = a.margin + fabsf(tau) * kTauShare;
  uint64_t unsure = 0;
#pragma unroll
  for (int m = 0; m < 4; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t i = first_row + row + WarpTile::row(lane, m, 2 * half);
      const float scale = i < n ? scales[i] : 0.0f;
      const float margin = (i < n ? errors[i] : 0.0f) + common;
      uint32_t edges = 0;
#pragma unroll
      for (int c = 0; c < 4; ++c)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int at = WarpTile::column(lane, c, e);
          const int64_t j = first_column + column + at;
          if (i >= n || j >= n || j < i) continue;
          const float s = total.sums[m][c][2 * half + e] * scale * scales[j];
          const float above = s - tau, limit = margin + errors[j];
          if (!(limit > 0)) {  // kZeroRow or kNotFinite
            if (limit < 0 && zero_joins) edges |= 1u << at;
          } else if (fabsf(s) <= 2 && above > limit) {
            edges |= 1u << at;
          } else if (!(fabsf(s) <= 2 && above < -limit)) {
            unsure |= uint64_t{1} << (m * 16 + half * 8 + c * 2 + e);
          }
        }
      edges |= __shfl_xor_sync(kAllLanes, edges, 1);
      edges |= __shfl_xor_sync(kAllLanes, edges, 2);
      if (lane % 4 == 0)
        bits[(row + WarpTile::row(lane, m, 2 * half)) * 4 + column / kWarp] = edges;
    }
  const auto mine = static_cast<unsigned>(__popcll(unsure));
  const unsigned before = mine > 0 ? atomicAdd(unsure_count, mine) : 0;
  __syncthreads();

  const int64_t number = tile_number(image, tile_row, tile_column, a.tiles);
  if (thread == 0 && *unsure_count > 0) {
    *reserved = atomicAdd(a.undecided.counts, static_cast<unsigned long long>(*unsure_count));
    if (static_cast<int64_t>(*reserved + *unsure_count) > a.undecided.capacity)
      a.undecided.tiles[atomicAdd(a.undecided.counts + 1, 1ull)] = number;
  }
  for (int block = warp; block < 16; block += kWarps) {
    const int r = block / 4, c = block % 4;
    mirrored[(c * kWarp + lane) * 4 + r] = transpose(bits[(r * kWarp + lane) * 4 + c], lane);
  }
  __syncthreads();

  if (mine > 0) {
    auto at = static_cast<int64_t>(*reserved);
    const bool fits = at + *unsure_count <= a.undecided.capacity;
    at += before;
    for (uint64_t rest = unsure; rest != 0; rest &= rest - 1, ++at) {
      const int bit = __ffsll(static_cast<long long>(rest)) - 1;
      const int i = row + WarpTile::row(lane, bit / 16, bit / 8 % 2 * 2);
      const int j = column + WarpTile::column(lane, bit / 2 % 4, bit % 2);
      if (at < a.undecided.capacity)
        a.undecided.pairs[at] = fits ? pair_number(number, i, j) : kNoPair;
    }
  }
  const int64_t rows = a.words * kWord;
  uint64_t* graph = a.p.bits + image * a.words * rows;
  const bool diagonal = tile_row == tile_column;
  const int r = thread % kBlockTile, half = thread / kBlockTile;
  const auto word = [&](const uint32_t* from) {
    return uint64_t{from[r * 4 + half * 2]} | uint64_t{from[r * 4 + half * 2 + 1]} << 32;
  };
  const int64_t column_word = tile_column * 2 + half, row_word = tile_row * 2 + half;
  if (column_word < a.words && first_row + r < rows)
    graph[column_word * rows + first_row + r] = word(bits) | (diagonal ? word(mirrored) : 0);
  if (!diagonal && row_word < a.words && first_column + r < rows)
    graph[row_word * rows + first_column + r] = word(mirrored);
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
  const int64_t rows = p.batch * p.n, tiles = (p.n + kBlockTile - 1) / kBlockTile;
  a.undecided.capacity = pair_capacity(p.batch, p.n);
  take(a.undecided.counts, 2);
  take(a.undecided.pairs, a.undecided.capacity);
  take(a.undecided.tiles, p.batch * tiles * (tiles + 1) / 2);
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
  allow_shared("affinity: join", kernel);
  launch("affinity: join", kernel, a.p.batch * a.blocks, kThreads, kTileBytes, stream, a);
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
