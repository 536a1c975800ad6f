// The edges of a block of rows to the landmarks, which are used and thrown away: the rows' means
// over their landmarks, and the landmarks' sums over the rows. Pairs are decided as those of a
// graph (affinity.cu); the two products with the bits are those of matvec.cu.
//
// Each number is made by one block, from sums whose order depends on nothing but the sizes.
#include "graph_product.cuh"
#include "join.cuh"
#include "scratch.h"
#include "settle.cuh"

namespace selfment::cuda {

namespace {

constexpr int64_t kBlockWords = 4;  // words of rows that a block multiplies

struct Args {
  LandmarksParams p;
  Side rows, landmarks;
  PairList undecided;
  float margin;
  int64_t row_words, words;  // of the rows and of the landmarks
  int row_bits;  // 2^row_bits, at least as many as the rows of tiles: a division by their number
                 // would take registers that the sums need
  uint64_t* to_landmarks;  // (words, 64 row_words), bits of landmarks
  uint64_t* to_rows;       // (row_words, 64 words), bits of rows
};

// Makes a 128 x 128 tile of the bits, in both orientations. Blocks that run at a time share
// landmarks; all the rows of a block of features fit into the L2 cache.
template <bool kBFloat16>
__global__ void __launch_bounds__(kJoinThreads, 2) join_block(Args a) {
  const unsigned tile_row = blockIdx.x & ((1u << a.row_bits) - 1);
  const unsigned tile_column = blockIdx.x >> a.row_bits;
  if (int64_t{tile_row} * kBlockTile >= a.p.n) return;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  auto* stages = reinterpret_cast<uint16_t*>(shared_memory());
  const SlabCopies copies(a.rows.operand, a.landmarks.operand, a.p.d, tile_row, tile_column,
                          stages);
  const WarpTile tile = multiply_slabs<kBFloat16>(copies, stages, warp / 2 * WarpTile::kRows,
                                                  warp % 2 * WarpTile::kColumns, lane);

  // From here on the shared memory holds what the lanes of a warp exchange.
  const int64_t row_word = 2 * tile_row + warp / 2, column_word = 2 * tile_column + warp % 2;
  if (row_word >= a.row_words || column_word >= a.words) return;
  TileNotes& notes = reinterpret_cast<TileNotes*>(stages)[warp];
  const Rule rule = make_rule(a.rows.operand, a.landmarks.operand, a.p.tau, a.margin, 0 > a.p.tau);
  const TileEdges edges =
      tile_edges(tile, rule, row_word * kWord, column_word * kWord, false, notes, lane);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t row = row_word * kWord + half * kWarp + lane;
    const int64_t column = column_word * kWord + half * kWarp + lane;
    a.to_landmarks[column_word * a.row_words * kWord + row] = edges.rows[half];
    a.to_rows[row_word * a.words * kWord + column] = edges.columns[half];
  }
  const int64_t number = tile_number(0, row_word, column_word, a.row_words, a.words);
  list_unsure(a.undecided, number, edges, lane);
}

template <class T>
__global__ void settle_block(Args a) {
  for_undecided(a.undecided, [&](int64_t number, int lane) {
    const Pair pair = pair_of(number, a.row_words, a.words);
    if (pair.i >= a.p.n || pair.j >= a.p.m) return;
    if (!settle_pair<T>(a.rows, pair.i, a.landmarks, pair.j, a.p.tau, false, lane)) return;
    if (lane != 0) return;
    set_bit(a.to_landmarks, a.row_words * kWord, pair.i, pair.j);
    set_bit(a.to_rows, a.words * kWord, pair.j, pair.i);
  });
}

// Returns the edges of row i, whose words are `stride` apart.
__device__ int64_t count_edges(const uint64_t* bits, int64_t stride, int64_t words, int64_t i) {
  int64_t count = 0;
  for (int64_t w = 0; w < words; ++w) count += __popcll(bits[w * stride + i]);
  return count;
}

// The blocks of a column that multiply `words` words of rows.
__host__ __device__ int64_t blocks_for(int64_t words) {
  return (words + kBlockWords - 1) / kBlockWords;
}

// means = A x / A 1 of the rows, where A has the landmarks as columns; NaN if a row is not finite.
__global__ void __launch_bounds__(kProductThreads, 1) set_means(Args a) {
  const int64_t blocks = blocks_for(a.row_words), column = blockIdx.x / blocks;
  const int64_t first = blockIdx.x % blocks * kBlockWords, m = a.p.m;
  const int64_t last = min(first + kBlockWords, a.row_words), stride = a.row_words * kWord;
  const double* x = global(a.p.x) + column * m;
  const uint64_t* bits = global(a.to_landmarks);
  double* means = global(a.p.means) + column * a.p.stride;
  const double *norms = global(a.rows.norms), eps = a.p.eps, total = block_sum(x, m);
  multiply_bits(bits + first * kWord, stride, a.p.n, x, m, a.words, first, last,
                [&](int64_t i, double sum) {
                  const auto edges = static_cast<double>(count_edges(bits, stride, a.words, i));
                  const double degree = eps * (static_cast<double>(m) - edges) + edges;
                  const double mean = (eps * total + (1 - eps) * sum) / degree;
                  means[i] = isfinite(norms[i]) ? mean : NAN;
                });
}

// Adds this block's part of E^T means and E^T 1, where E has the edges of the rows.
__global__ void __launch_bounds__(kProductThreads, 1) add_sums(Args a) {
  const int64_t blocks = blocks_for(a.words), column = blockIdx.x / blocks;
  const int64_t first = blockIdx.x % blocks * kBlockWords;
  const int64_t last = min(first + kBlockWords, a.words), stride = a.words * kWord;
  const double* means = global(a.p.means) + column * a.p.stride;
  const uint64_t* bits = global(a.to_rows);
  double* sums = global(a.p.sums) + column * a.p.m;
  int64_t* edges = global(a.p.edges);
  const double total = block_sum(means, a.p.n);
  if (first == 0 && threadIdx.x == 0) a.p.totals[column] += total;
  multiply_bits(bits + first * kWord, stride, a.p.m, means, a.p.n, a.row_words, first, last,
                [&](int64_t j, double sum) {
                  sums[j] += sum;
                  if (column == 0) edges[j] += count_edges(bits, stride, a.row_words, j);
                });
}

// Carves the scratch memory into arrays; returns its size.
int64_t carve(Args& a, void* scratch) {
  const LandmarksParams& p = a.p;
  Scratch memory(scratch);
  a.row_words = word_count(p.n);
  a.words = word_count(p.m);
  const int64_t tiles = a.row_words * a.words, pairs = p.n * p.m;
  const int64_t capacity = std::min({pairs, std::max(int64_t{4096}, pairs / 64), kMostPairs});
  a.undecided = make_list(capacity, tiles, memory);
  memory.allocate(a.to_landmarks, tiles * kWord);
  memory.allocate(a.to_rows, tiles * kWord);
  a.rows = make_side(p.features, p.dtype, p.n, p.d, nullptr, memory);
  a.landmarks = make_side(p.landmarks, p.dtype, p.m, p.d, nullptr, memory);
  return memory.used();
}

}  // namespace

int64_t landmarks_scratch(Dtype dtype, int64_t n, int64_t m, int64_t d) {
  Args a{};
  a.p.dtype = dtype;
  a.p.n = n;
  a.p.m = m;
  a.p.d = d;
  return carve(a, nullptr);
}

void landmarks(const LandmarksParams& p, const Context& context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  Args a{};
  a.p = p;
  carve(a, context.scratch);
  while (int64_t{kBlockTile} << a.row_bits < p.n) ++a.row_bits;
  const int64_t tiles = (p.m + kBlockTile - 1) / kBlockTile << a.row_bits;
  a.margin = pair_margin(p.d);
  check(cudaMemsetAsync(a.undecided.counts, 0, 2 * sizeof(unsigned long long), stream),
        "cudaMemsetAsync");
  prepare_side(a.rows, p.dtype, nullptr, stream);
  prepare_side(a.landmarks, p.dtype, nullptr, stream);
  auto* kernel = a.rows.is_bfloat16(p.dtype) ? join_block<true> : join_block<false>;
  launch("landmarks: join", kernel, tiles, kJoinThreads, kTileBytes, stream, a);
  with_dtype(p.dtype, [&](auto* typed) {
    using T = std::decay_t<decltype(*typed)>;
    launch("landmarks: settle", settle_block<T>, settle_blocks(), kSettleThreads, 0, stream, a);
  });
  if (p.x != nullptr) {
    allow_shared("landmarks: means", set_means);
    launch("landmarks: means", set_means, p.columns * blocks_for(a.row_words), kProductThreads,
           kProductBytes, stream, a);
  }
  allow_shared("landmarks: sums", add_sums);
  launch("landmarks: sums", add_sums, p.columns * blocks_for(a.words), kProductThreads,
         kProductBytes, stream, a);
}

}  // namespace selfment::cuda
