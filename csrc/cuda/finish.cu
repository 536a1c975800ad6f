// Finishes a label: computes its confidence, rejects it if that is too low, and makes the maps that
// are returned. Each image has a block.
#include "../confidence.h"
#include "frames.cuh"

namespace selfment::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

struct Args {
  FinishParams p;  // its grids are in the host's memory
  Frames frames;
};

__global__ void __launch_bounds__(kThreads) finish_image(Args a) {
  auto* parts = reinterpret_cast<int64_t*>(shared_memory());
  const int64_t image = blockIdx.x, n = a.p.n, thread = threadIdx.x;
  const bool* labels = a.p.labels + image * n;
  const double* x = a.p.fiedler + image * n;
  int64_t foreground = 0, quarters = 0;
  for (int64_t i = thread; i < n; i += kThreads) foreground += labels[i] ? 1 : 0;
  for (int64_t f = thread; f < a.p.frames; f += kThreads) {
    const Frame frame = a.frames.at(static_cast<int>(f));
    quarters += corner_quarters(labels + frame.first, {frame.h, frame.w});
  }
  const auto add = [](int64_t x, int64_t y) { return x + y; };
  foreground = block_reduce<kWarps>(foreground, int64_t{0}, add, parts);
  quarters = block_reduce<kWarps>(quarters, int64_t{0}, add, parts);
  const double sure = confidence({a.p.eigenvalues[image], a.p.gaps[image], a.p.separation[image], n,
                                  foreground, quarters, a.p.frames});
  const bool rejected = sure < a.p.min_confidence;
  if (thread == 0) {
    a.p.confidence[image] = sure;
    a.p.rejected[image] = rejected;
  }
  for (int64_t i = thread; i < n; i += kThreads) {
    a.p.mask[image * n + i] = labels[i] && !rejected;
    a.p.vectors[image * n + i] = static_cast<float>(x[i]);
  }
}

}  // namespace

int64_t finish_scratch(int64_t frames) { return frames_size(frames); }

void finish(const FinishParams& p, const Context& context) {
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const Args a{p, store_frames("finish", p.grids, p.frames, context.scratch, stream)};
  launch("finish", finish_image, p.batch, kThreads, kWarps * int64_t{sizeof(int64_t)}, stream, a);
}

}  // namespace selfment::cuda
