// Turns a graph into the graph of the same features with some rows zeroed, to the bit. A zero row
// has the similarity 0 with every finite row, itself included: an edge with all of them, or with
// none. A row that is not finite has no edges, until it is zeroed.
#include "degrees.cuh"
#include "weight_tiles.cuh"

namespace selfment::cuda {

namespace {

constexpr int kThreads = 256;

struct Args {
  PaintParams p;
  int64_t words, tiles, weights_each;
  int64_t blocks_each;  // blocks of paint_bits for a column of words
};

// Paints a column of 64 patches for a block's rows, one row by each thread.
__global__ void __launch_bounds__(kThreads) paint_bits(Args a) {
  const int64_t n = a.p.graphs.n, rows = a.words * kWord, column = blockIdx.x / a.blocks_each;
  const int64_t image = column / a.words, word = column % a.words;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t i = blockIdx.x % a.blocks_each * kThreads + thread;
  const bool* mask = a.p.mask + image * n;
  const double* known = a.p.degrees + image * n;
  auto* halves = reinterpret_cast<uint32_t*>(shared_memory());  // painted, painted or finite
  if (thread < kWord) {
    const int64_t j = word * kWord + thread;
    const bool painted = j < n && mask[j];
    const bool exists = painted || (j < n && isfinite(known[j]));
    const uint32_t first = __ballot_sync(kAllLanes, painted ? 1 : 0);
    const uint32_t second = __ballot_sync(kAllLanes, exists ? 1 : 0);
    if (thread % kWarp == 0) {
      halves[thread / kWarp] = first;
      halves[2 + thread / kWarp] = second;
    }
  }
  __syncthreads();
  if (i >= rows) return;
  const uint64_t painted = halves[0] | uint64_t{halves[1]} << 32;
  const uint64_t zero_edges = 0 > a.p.taus[image] ? halves[2] | uint64_t{halves[3]} << 32 : 0;
  const int64_t at = (image * a.words + word) * rows + i;
  uint64_t bits = 0;
  if (i < n && mask[i]) bits = zero_edges;
  else if (i < n && isfinite(known[i]))
    bits = (a.p.graphs.bits[at] & ~painted) | (zero_edges & painted);
  a.p.bits[at] = bits;
}

// Paints a tile of weights by each block.
__global__ void __launch_bounds__(kThreads) paint_weights(Args a) {
  const int64_t n = a.p.graphs.n, image = blockIdx.x / a.tiles, tile = blockIdx.x % a.tiles;
  const TilePlace place = tile_place(tile, a.words);
  const bool* mask = a.p.mask + image * n;
  const int64_t first = image * a.weights_each + tile * kTileWeights;
  for (int at = static_cast<int>(threadIdx.x); at < kTileWeights; at += kThreads) {
    const int64_t i = place.row * kWord + at / kWord, j = place.column * kWord + at % kWord;
    const bool painted = i >= n || j >= n || mask[i] || mask[j];
    a.p.weights[first + at] = painted ? 0.0f : a.p.graphs.weights[first + at];
  }
}

// Sets the degrees to the values that add_degrees adds to.
__global__ void reset_degrees(Args a) {
  const int64_t at = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= a.p.graphs.batch * a.p.graphs.n) return;
  a.p.degrees[at] = a.p.mask[at] || isfinite(a.p.degrees[at]) ? 0 : NAN;
}

}  // namespace

void paint(const PaintParams& p, const Context& context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  Args a{};
  a.p = p;
  a.words = word_count(p.graphs.n);
  a.tiles = a.words * (a.words + 1) / 2;
  a.weights_each = weights_size(p.graphs.n);
  a.blocks_each = (a.words * kWord + kThreads - 1) / kThreads;
  launch("paint: bits", paint_bits, p.graphs.batch * a.words * a.blocks_each, kThreads,
         4 * int64_t{sizeof(uint32_t)}, stream, a);
  if (p.weights != nullptr)
    launch("paint: weights", paint_weights, p.graphs.batch * a.tiles, kThreads, 0, stream, a);
  launch("paint: degrees", reset_degrees, (p.graphs.batch * p.graphs.n + kThreads - 1) / kThreads,
         kThreads, 0, stream, a);
  add_degrees({p.bits, p.weights, p.graphs.batch, p.graphs.n, p.graphs.eps}, p.degrees, stream);
}

}  // namespace selfment::cuda
