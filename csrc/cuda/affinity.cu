// From features to the affinity graph, with the rule of the CPU twin: rows are normalised in double
// and rounded to float32, and a pair is an edge iff the inner product of its float32 rows is > tau
// (weighted: >= tau).
//
// The way there. `prepare` (operand.cu) makes the operand, half-precision rows. `join` multiplies
// it by the tensor cores. The error of that product has a bound, so a pair farther than that from
// tau is decided. The few others go to a list, and `settle` decides each by a warp: in float32 with
// a bound of its own, and if that does not suffice, in two doubles. `weigh` makes the weights.
#include "degrees.cuh"
#include "join.cuh"
#include "settle.cuh"
#include "weigh.cuh"

namespace selfment::cuda {

namespace {

// Carves the scratch memory into arrays; returns its size.
int64_t carve(AffinityArgs& a, void* scratch) {
  const AffinityParams& p = a.p;
  Scratch memory(scratch);
  const int64_t words = word_count(p.n), tiles = p.batch * words * (words + 1) / 2;
  a.undecided = make_list(pair_capacity(p.batch, p.n), tiles, memory);
  a.side = make_side(p.features, p.dtype, p.batch * p.n, p.d, p.norms, memory);
  return memory.used();
}

template <class T>
void run(AffinityArgs a, cudaStream_t stream) {
  check(cudaMemsetAsync(a.undecided.counts, 0, 2 * sizeof(unsigned long long), stream),
        "cudaMemsetAsync");
  prepare_side(a.side, a.p.dtype, a.p.degrees, stream);
  auto* kernel = a.side.is_bfloat16(a.p.dtype) ? join<true> : join<false>;
  launch("affinity: join", kernel, a.p.batch * a.blocks, kJoinThreads, kTileBytes, stream, a);
  launch("affinity: settle", settle<T>, settle_blocks(), kSettleThreads, 0, stream, a);
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
  a.words = word_count(p.n);
  a.tiles = (p.n + kBlockTile - 1) / kBlockTile;
  a.blocks = tile_blocks(a.tiles);
  a.weights_each = weights_size(p.n);
  a.margin = pair_margin(p.d);
  with_dtype(p.dtype, [&](auto* typed) {
    run<std::decay_t<decltype(*typed)>>(a, static_cast<cudaStream_t>(context.stream));
  });
}

}  // namespace selfment::cuda
