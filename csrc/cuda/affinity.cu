// From features to the affinity graph, with the rule of the CPU twin: rows are normalised in double
// and rounded to float32, and a pair is an edge iff the inner product of its float32 rows is > tau
// (weighted: >= tau).
//
// The way there. `prepare` makes the operand, half-precision rows: the features themselves if they
// are of half precision, else the rounded rows rounded once more. `join` multiplies it by the
// tensor cores. The error of that product has a bound, so a pair farther than that from tau is
// decided. The few others go to a list, and `settle` decides each by a warp: in float32 with a
// bound of its own, and if that does not suffice, in two doubles. `weigh` makes the weights.
#include "degrees.cuh"
#include "join.cuh"
#include "norms.cuh"
#include "scratch.h"
#include "settle.cuh"
#include "weigh.cuh"

namespace selfment::cuda {

namespace {

constexpr int kThreads = 256;

// Makes the norm and the operand of a row, by a warp.
template <class T>
__global__ void prepare(AffinityArgs a) {
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
    // The factor rounds up: it covers e_i e_j, which |q_i| <= 1 + e_i brings in, and the sum's
    // error.
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

// True if the operand has to be a copy: the features' own rows can be the operand only if they are
// of half precision and all their pieces are aligned.
bool copies(Dtype dtype, int64_t d) {
  return (dtype != Dtype::kFloat16 && dtype != Dtype::kBFloat16) || d % kPiece != 0;
}

// Carves the scratch memory into arrays; returns its size.
int64_t carve(AffinityArgs& a, void* scratch) {
  const AffinityParams& p = a.p;
  Scratch memory(scratch);
  const int64_t rows = p.batch * p.n, words = word_count(p.n);
  a.undecided.capacity = pair_capacity(p.batch, p.n);
  memory.allocate(a.undecided.counts, 2);
  memory.allocate(a.undecided.pairs, a.undecided.capacity);
  memory.allocate(a.undecided.tiles, p.batch * words * (words + 1) / 2);
  memory.allocate(a.scales, rows);
  memory.allocate(a.errors, rows);
  if (p.norms == nullptr) memory.allocate(a.p.norms, rows);
  a.copy = nullptr;
  a.stride = p.d;
  if (copies(p.dtype, p.d)) {
    a.stride = (p.d + kPiece - 1) / kPiece * kPiece;
    memory.allocate(a.copy, rows * a.stride);
  }
  return memory.used();
}

int64_t blocks_for(int64_t items) { return (items + kThreads - 1) / kThreads; }

template <class T>
void run(AffinityArgs a, cudaStream_t stream) {
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
    launch("affinity: weigh", weigh<T>, a.p.batch * a.words * (a.words + 1) / 2, kWeighThreads,
           sizeof(WeightTile<T>), stream, a);
  add_degrees({a.p.bits, a.p.weights, a.p.batch, a.p.n, a.p.eps}, a.p.degrees, stream);
}

}  // namespace

int64_t affinity_scratch(Dtype dtype, int64_t batch, int64_t n, int64_t d) {
  AffinityArgs a{};
  a.p.dtype = dtype;
  a.p.batch = batch;
  a.p.n = n;
  a.p.d = d;
  return carve(a, nullptr);
}

void affinity(const AffinityParams& p, const Context& context) {
  AffinityArgs a{};
  a.p = p;
  carve(a, context.scratch);
  a.operand = a.copy != nullptr ? a.copy : static_cast<const uint16_t*>(p.features);
  a.words = word_count(p.n);
  a.tiles = (p.n + kBlockTile - 1) / kBlockTile;
  a.blocks = tile_blocks(a.tiles);
  a.weights_each = weights_size(p.n);
  // Covers the product, and the rounding of the rows and of their scaling.
  a.margin = static_cast<float>((product_error(p.d) + 10 * kUnit + 1e-9) * 1.01);
  with_dtype(p.dtype, [&](auto* typed) {
    run<std::decay_t<decltype(*typed)>>(a, static_cast<cudaStream_t>(context.stream));
  });
}

}  // namespace selfment::cuda
