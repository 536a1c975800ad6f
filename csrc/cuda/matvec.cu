// Products with the graph for callers of the library; the solver has a loop of its own around the
// same product.
#include "graph_product.cuh"

namespace selfment::cuda {

namespace {

constexpr int64_t kBlockWords = kPassRows / kWord;  // words of rows that a block multiplies

struct Args {
  MatvecParams p;
  int64_t words, weights_each, blocks_each;
};

__global__ void __launch_bounds__(kProductThreads, 1) product(Args a) {
  const int64_t image = blockIdx.x / a.blocks_each, block = blockIdx.x % a.blocks_each;
  const Graphs& graphs = a.p.graphs;
  const int64_t owner = image / a.p.columns;
  GraphView graph{};
  graph.bits = graphs.bits + owner * a.words * a.words * kWord;
  graph.weights = graphs.weights == nullptr ? nullptr : graphs.weights + owner * a.weights_each;
  graph.n = graphs.n;
  graph.words = a.words;
  graph.eps = graphs.eps;
  const double* x = a.p.x + image * graphs.n;
  const double total = block_sum(x, graphs.n);
  const int64_t first = block * kBlockWords;
  multiply(graph, x, total, first, min(first + kBlockWords, a.words), a.p.y + image * graphs.n);
}

}  // namespace

void matvec(const MatvecParams& p, const Context& context) {
  Args a{};
  a.p = p;
  a.words = word_count(p.graphs.n);
  a.weights_each = weights_size(p.graphs.n);
  a.blocks_each = (a.words + kBlockWords - 1) / kBlockWords;
  allow_shared("matvec", product);
  launch("matvec", product, p.graphs.batch * p.columns * a.blocks_each, kProductThreads,
         kProductBytes, static_cast<cudaStream_t>(context.stream), a);
}

}  // namespace selfment::cuda
