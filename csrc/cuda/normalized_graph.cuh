// M = D^-1/2 A D^-1/2 of one image, and operations on vectors of its n patches, by a team of
// blocks. Each block owns some rows of all vectors; the blocks exchange the vector that is
// multiplied and partial inner products. The graph lies in the team's shared memory if it fits.
#pragma once

#include "solver_memory.cuh"
#include "team.cuh"

namespace selfment::cuda::solver {

inline constexpr int kTotals = 4;  // a warp adds up the parts of so many inner products at a time

class NormalizedGraph {
 public:
  __device__ explicit NormalizedGraph(const Team& team) : team_(team) {}

  // Vectors multiplied since the image's start.
  __device__ int64_t products() const { return local(this)->products_; }
  __device__ void reset_products() { products_ = 0; }

  // Waits for the team. All of it sees afterwards what any of it has written before.
  __device__ void meet() { local(this)->team_.sync(); }

  // Begins with an image and makes its trivial pair; false if its degrees are not finite and
  // positive. Blocks of a team must all decide this alike, or they would wait for each other
  // forever: so it is decided by a sum, which is the same for all of them.
  __device__ bool start(int64_t image) {
    products_ = 0;
    view(image);
    return make_trivial(image);
  }

  // out = M y
  __device__ SELFMENT_CALL void multiply_by_graph(const double* y, double* out) {
    ++local(this)->products_;
    y = global(y);
    out = global(out);
    double *scaled = solver::scaled(), *scale = solver::scale();
    own_rows([=](int64_t i) { scaled[i] = scale[i] * y[i]; });
    const double total = dot(scale, y);  // the team meets in it, so all see `scaled`
    multiply(block().graph, scaled, total, first(), last(), out);
    own_rows([=](int64_t i) { out[i] *= scale[i]; });
  }

  // sums()[j] = <vector(j), v> for j < count. A warp sums over a word of rows, for kAtOnce vectors
  // at a time; then the sums of the words are added up in order. All blocks get the same sums, and
  // the team has met.
  template <int kAtOnce, class Vector>
  __device__ void multiply_with(const double* v, int count, const Vector& vector) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    const int words = static_cast<int>(args().words), rows = static_cast<int>(n());
    const int own = static_cast<int>(last() - first());
    const int sharing = max(1, kProductWarps / max(1, own));  // warps that share a word
    double* parts = next_exchange();
    for (int at = warp; at < own * sharing; at += kProductWarps) {
      const int word = static_cast<int>(first()) + at / sharing;
      const int low = word * kWarp * 2 + lane, high = low + kWarp;
      const double at_low = low < rows ? v[low] : 0, at_high = high < rows ? v[high] : 0;
      for (int j = at % sharing * kAtOnce; j < count; j += sharing * kAtOnce) {
        double sums[kAtOnce];
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) {
          const double* other = vector(min(j + u, count - 1));
          const double other_low = low < rows ? other[low] : 0;
          const double other_high = high < rows ? other[high] : 0;
          sums[u] = other_low * at_low + other_high * at_high;
        }
        const int mine = j + lane / (kWarp / kAtOnce);
        const double sum = warp_sums(sums);
        if (lane % (kWarp / kAtOnce) == 0 && mine < count) parts[mine * words + word] = sum;
      }
    }
    meet();
    for (int j = warp * kTotals; j < count; j += kProductWarps * kTotals) {
      double totals[kTotals] = {};
      for (int word = lane; word < words; word += kWarp)
#pragma unroll
        for (int u = 0; u < kTotals; ++u) totals[u] += parts[min(j + u, count - 1) * words + word];
      const int mine = j + lane / (kWarp / kTotals);
      const double total = warp_sums(totals);
      if (lane % (kWarp / kTotals) == 0 && mine < count) sums()[mine] = total;
    }
    __syncthreads();
  }

  // Returns the largest value(i) of all rows.
  template <class Value>
  __device__ double largest(const Value& value) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    double* parts = next_exchange();
    for (int64_t word = first() + warp; word < last(); word += kProductWarps) {
      double part = -INFINITY;
      for (int64_t i = word * kWord + lane; i < min((word + 1) * kWord, n()); i += kWarp)
        part = fmax(part, value(i));
      part = warp_max(part);
      if (lane == 0) parts[word] = part;
    }
    meet();
    double most = -INFINITY;
    for (int64_t word = 0; word < args().words; ++word) most = fmax(most, parts[word]);
    return most;
  }

  __device__ SELFMENT_CALL double dot(const double* x, const double* y) {
    x = global(x);
    y = global(y);
    multiply_with<1>(x, 1, [=](int) { return y; });
    return sums()[0];
  }

  // Makes v a unit vector; returns the norm that it had.
  __device__ SELFMENT_CALL double normalize(double* v) {
    v = global(v);
    const double norm = sqrt(dot(v, v));
    own_rows([=](int64_t i) { v[i] /= norm; });
    return norm;
  }

 private:
  // Makes the image's graph the block's, and copies the block's own rows of bits if there is room.
  // The block meets in make_trivial(), before a product reads them.
  __device__ SELFMENT_CALL void view(int64_t image) {
    const Graphs& graphs = args().p.graphs;
    const int64_t words = args().words, rows = words * kWord;
    const int64_t own = (last() - first()) * kWord, resident = args().resident;
    const uint64_t* bits = global(graphs.bits) + image * words * rows;
    if (threadIdx.x == 0) {
      GraphView& graph = block().graph;
      graph.bits = bits;
      graph.weights =
          graphs.weights == nullptr ? nullptr : graphs.weights + image * args().weights_each;
      graph.n = n();
      graph.words = words;
      graph.eps = graphs.eps;
      graph.resident = resident;
    }
    if (resident != 0) {
      auto* copy = reinterpret_cast<uint64_t*>(shared_memory() + resident);
      for (int64_t word = 0; word < words; ++word)
        for (int64_t row = threadIdx.x; row < own; row += blockDim.x)
          copy[word * own + row] = bits[word * rows + first() * kWord + row];
    }
  }

  // Makes the trivial pair, and the scale.
  __device__ SELFMENT_CALL bool make_trivial(int64_t image) {
    const double* degrees = global(args().p.degrees) + image * n();
    double *trivial = pair(0), *scale = solver::scale();
    own_rows([=](int64_t i) {
      trivial[i] = degrees[i] > 0 ? sqrt(degrees[i]) : NAN;
      scale[i] = 1 / trivial[i];
    });
    const double norm = normalize(trivial);
    return isfinite(norm) && norm > 0;
  }

  __device__ double* next_exchange() {
    int& turn = local(this)->turn_;
    turn = (turn + 1) % kExchanges;
    return exchange(turn);
  }

  Team team_;
  int64_t products_ = 0;
  int turn_ = 0;
};

}  // namespace selfment::cuda::solver
