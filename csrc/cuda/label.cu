// A label in one call: the operations run one after the other, on one piece of memory.
#include "platform.h"
#include "scratch.h"

namespace selfment::cuda {

namespace {

constexpr int kThreads = 256;

// The arrays that operations pass on to one another. All operations use the same scratch.
struct Parts {
  uint64_t* bits;
  float* weights;
  double *degrees, *norms, *vectors;
  bool* labels;
  unsigned char* scratch;
};

// Carves the memory into arrays; returns its size.
int64_t carve(const LabelParams& p, void* memory, Parts& parts) {
  Scratch arrays(memory);
  const int64_t rows = p.batch * p.n;
  arrays.allocate(parts.bits, p.batch * bits_size(p.n));
  if (p.weighted) arrays.allocate(parts.weights, p.batch * weights_size(p.n));
  arrays.allocate(parts.degrees, rows);
  arrays.allocate(parts.norms, rows);
  arrays.allocate(parts.vectors, rows);
  arrays.allocate(parts.labels, rows);
  int64_t scratch = std::max({affinity_scratch(p.dtype, p.batch, p.n, p.d),
                              components_scratch(p.batch, p.n, p.frames),
                              ipo_scratch(p.dtype, p.batch, p.n, p.d), finish_scratch(p.frames)});
  if (p.n > 1)
    scratch = std::max(scratch, fiedler_scratch(p.batch, p.n, 1, p.weighted, Sign::kPeak));
  arrays.allocate(parts.scratch, scratch);
  return arrays.used();
}

struct Args {
  LabelParams p;
  Parts parts;
};

// Makes the pairs of single patches, which have only the trivial one. They are NaN if the patch is
// not finite.
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

  AffinityParams graph{};
  graph.features = p.features;
  graph.dtype = p.dtype;
  graph.batch = p.batch;
  graph.n = p.n;
  graph.d = p.d;
  graph.taus = p.taus;
  graph.eps = p.eps;
  graph.bits = parts.bits;
  graph.weights = parts.weights;
  graph.degrees = parts.degrees;
  graph.norms = parts.norms;
  affinity(graph, own);

  if (p.n > 1) {
    FiedlerParams cut{};
    cut.graphs.bits = parts.bits;
    cut.graphs.weights = parts.weights;
    cut.graphs.batch = p.batch;
    cut.graphs.n = p.n;
    cut.graphs.eps = p.eps;
    cut.degrees = parts.degrees;
    cut.k = 1;
    cut.sign = Sign::kPeak;
    cut.eigenvalues = p.eigenvalues;
    cut.vectors = parts.vectors;
    cut.gaps = p.gaps;
    cut.residuals = p.residuals;
    cut.iterations = p.products;
    fiedler(cut, own);
  } else {
    launch("label: single patches", trivial_pairs, (p.batch + kThreads - 1) / kThreads, kThreads, 0,
           stream, a);
  }

  ComponentsParams start{};
  start.fiedler = parts.vectors;
  start.batch = p.batch;
  start.n = p.n;
  start.grids = p.grids;
  start.frames = p.frames;
  start.corners = p.corners;
  start.mask = p.ncut_mask;
  start.seed = p.seed;
  start.peaks = p.peaks;
  components(start, own);
  check(cudaMemcpyAsync(parts.labels, p.ncut_mask, static_cast<size_t>(p.batch * p.n),
                        cudaMemcpyDeviceToDevice, stream),
        "cudaMemcpyAsync");

  IpoParams refine{};
  refine.features = p.features;
  refine.dtype = p.dtype;
  refine.batch = p.batch;
  refine.n = p.n;
  refine.d = p.d;
  refine.iters = p.iters;
  refine.min_count = p.min_count;
  refine.labels = parts.labels;
  refine.steps = p.steps;
  refine.separation = p.separation;
  ipo(refine, parts.norms, own);

  FinishParams end{};
  end.eigenvalues = p.eigenvalues;
  end.gaps = p.gaps;
  end.separation = p.separation;
  end.fiedler = parts.vectors;
  end.labels = parts.labels;
  end.batch = p.batch;
  end.n = p.n;
  end.grids = p.grids;
  end.frames = p.frames;
  end.min_confidence = p.min_confidence;
  end.confidence = p.confidence;
  end.rejected = p.rejected;
  end.mask = p.mask;
  end.vectors = p.fiedler;
  finish(end, own);
}

}  // namespace selfment::cuda
