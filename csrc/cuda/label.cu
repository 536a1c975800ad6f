// A label in one call: the operations one after the other, on one piece of memory.
#include "platform.h"

namespace selfment::cuda {

namespace {

constexpr int kThreads = 256;

// What the operations hand on to one another; each takes its own scratch from the same place.
struct Parts {
  uint64_t* bits;
  float* weights;
  double *degrees, *norms, *vectors;
  bool* labels;
  void* scratch;
};

// Carves the memory; returns its size.
int64_t carve(const LabelParams& p, void* memory, Parts& parts) {
  int64_t used = 0;
  const auto take = [&](auto*& pointer, int64_t bytes) {
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(
        static_cast<char*>(memory) + used);
    used += (bytes + 255) / 256 * 256;
  };
  const int64_t rows = p.batch * p.n, number = sizeof(double);
  take(parts.bits, p.batch * bits_size(p.n) * number);
  if (p.weighted) take(parts.weights, p.batch * weights_size(p.n) * int64_t{sizeof(float)});
  take(parts.degrees, rows * number);
  take(parts.norms, rows * number);
  take(parts.vectors, rows * number);
  take(parts.labels, rows);
  int64_t scratch = std::max({affinity_scratch(p.dtype, p.batch, p.n, p.d),
                              components_scratch(p.batch, p.n, p.frames),
                              ipo_scratch(p.dtype, p.batch, p.n, p.d), finish_scratch(p.frames)});
  if (p.n > 1)
    scratch = std::max(scratch, fiedler_scratch(p.batch, p.n, 1, p.weighted, Sign::kPeak));
  take(parts.scratch, scratch);
  return used;
}

struct Args {
  LabelParams p;
  Parts parts;
};

// Of single patches, which have no pair but the trivial one: that. NaN where one is not finite.
__global__ void trivial_pairs(Args a) {
  const int64_t image = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (image >= a.p.batch) return;
  const double degree = a.parts.degrees[image], zero = degree - degree;
  a.parts.vectors[image] = 1 / sqrt(degree);
  a.p.eigenvalues[image] = a.p.residuals[image] = zero;
  a.p.gaps[image] = zero + INFINITY;
  a.p.products[image] = 0;
}

}  // namespace

int64_t label_scratch(const LabelParams& p) {
  Parts parts{};
  return carve(p, nullptr, parts);
}

void label(const LabelParams& p, const Context& context) {
  Args a{p, {}};
  carve(p, context.scratch, a.parts);
  const Parts& parts = a.parts;
  const auto stream = static_cast<cudaStream_t>(context.stream);
  const Context own{parts.scratch, context.stream};
  affinity({p.features, p.dtype, p.batch, p.n, p.d, p.taus, p.eps, parts.bits, parts.weights,
            parts.degrees, parts.norms},
           own);
  if (p.n > 1)
    fiedler({{parts.bits, parts.weights, p.batch, p.n, p.eps},
             parts.degrees,
             1,
             Sign::kPeak,
             p.eigenvalues,
             parts.vectors,
             p.gaps,
             p.residuals,
             p.products},
            own);
  else
    launch("label: single patches", trivial_pairs, (p.batch + kThreads - 1) / kThreads, kThreads, 0,
           stream, a);
  components(
      {parts.vectors, p.batch, p.n, p.grids, p.frames, p.corners, p.ncut_mask, p.seed, p.peaks},
      own);
  check(cudaMemcpyAsync(parts.labels, p.ncut_mask, static_cast<size_t>(p.batch * p.n),
                        cudaMemcpyDeviceToDevice, stream),
        "cudaMemcpyAsync");
  ipo({p.features, p.dtype, p.batch, p.n, p.d, p.iters, p.min_count, parts.labels, p.steps,
       p.separation},
      parts.norms, own);
  finish({p.eigenvalues, p.gaps, p.separation, parts.vectors, parts.labels, p.batch, p.n, p.grids,
          p.frames, p.min_confidence, p.confidence, p.rejected, p.mask, p.fiedler},
         own);
}

}  // namespace selfment::cuda
