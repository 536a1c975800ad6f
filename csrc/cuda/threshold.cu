// Otsu's threshold of the similarities of a sample of patches. Each image has a block, and each bin
// a thread.
#include "../threshold.h"

#include "rows.cuh"

namespace selfment::cuda {

namespace {

constexpr int kThreads = kBins;
constexpr int kWarps = kThreads / kWarp;

// The shared memory of a block.
struct Shared {
  double best[kWarps];
  int counts[kBins];
  int edges, numbers;
};

__global__ void __launch_bounds__(kThreads) otsu(ThresholdParams p) {
  auto& shared = *reinterpret_cast<Shared*>(shared_memory());
  const int thread = static_cast<int>(threadIdx.x), m = static_cast<int>(p.m);
  const double* similarities = p.similarities + int64_t{blockIdx.x} * m * m;
  shared.counts[thread] = 0;
  if (thread == 0) shared.edges = shared.numbers = 0;
  __syncthreads();
  for (int at = thread; at < m * m; at += kThreads)
    if (at / m < at % m) atomicAdd(shared.counts + bin_of(similarities[at]), 1);
  __syncthreads();
  // Edge `thread` is where the thread's bin begins; the first bin's edge divides nothing.
  Moments below{}, values{};
  for (int k = 0; k < kBins; ++k) {
    const int64_t count = shared.counts[k];
    values.count += count;
    values.sum += count * k;
    if (k >= thread) continue;
    below.count += count;
    below.sum += count * k;
  }
  const double variance = thread == 0 ? -1 : class_variance(below, values);
  const auto larger = [](double x, double y) { return y > x ? y : x; };
  const double best = block_reduce<kWarps>(variance, -1.0, larger, shared.best);
  if (variance == best) {
    atomicAdd(&shared.edges, 1);
    atomicAdd(&shared.numbers, thread);
  }
  __syncthreads();
  if (thread == 0) p.taus[blockIdx.x] = threshold_of(shared.numbers, shared.edges);
}

}  // namespace

void threshold(const ThresholdParams& p, const Context& context) {
  launch("threshold", otsu, p.batch, kThreads, sizeof(Shared),
         static_cast<cudaStream_t>(context.stream), p);
}

}  // namespace selfment::cuda
