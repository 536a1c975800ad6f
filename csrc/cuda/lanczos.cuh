// The leading eigenpairs of a normalised graph, by Lanczos: the algorithm of cpu/lanczos.cpp, where
// its recurrences and its stopping rule are explained, with one start vector. The basis is
// orthogonalised by classical Gram-Schmidt, twice, which needs one exchange a pass.
#pragma once

#include "../random.h"
#include "../stopping_rule.h"
#include "jacobi.cuh"
#include "normalized_graph.cuh"
#include "tridiagonal.cuh"

namespace selfment::cuda::solver {

// Until a pair has converged, its Ritz value may have an error of this share of its gap. The
// residual that follows from it then has a relative error of about ten times that.
inline constexpr double kRoughly = 0x1p-12;
static_assert(kBasis <= kTridiagonalRows);

inline constexpr int kVectorsAtOnce = 8;  // a warp multiplies one vector with so many at a time

class Lanczos {
 public:
  __device__ explicit Lanczos(const Team& team) : graph_(team) {}

  __device__ NormalizedGraph& graph() { return graph_; }

  // Begins with an image; false if its degrees are not finite and positive.
  __device__ bool start(int64_t image) {
    draws_ = 0;
    return graph_.start(image);
  }

  // Writes the `want` leading pairs orthogonal to the first `locked` ones into the pairs from
  // `slot` on. False if a product is not finite.
  __device__ SELFMENT_CALL bool leading_pairs(int locked, int slot, int want) {
    const int room = static_cast<int>(n()) - locked;
    const int limit = min(room, max(static_cast<int>(kBasis), 3 * want));
    const bool whole = n() <= kDense;
    want = min(want, room);
    if (leads())
      for (int64_t at = threadIdx.x; at < args().limit * args().limit; at += blockDim.x)
        projected()[at] = 0;
    random_vector(locked, 0);
    int size = 0, kept = 0, next_check = whole ? limit : min(limit, want + 9);
    while (true) {
      graph_.multiply_by_graph(basis(size), basis(size + 1));
      double beta = extend(locked, size, kept);
      if (!isfinite(beta)) return false;
      ++size;
      double* next = basis(size);
      if (beta > kBreakdown) {
        own_rows([=](int64_t i) { next[i] /= beta; });
      } else {
        beta = 0;
        if (size < limit) random_vector(locked, size);
      }
      const bool last = size == room || graph_.products() >= kMaxProducts + want;
      if (size < next_check && size < limit && !last) continue;
      next_check = size + max(2, size / 6);
      if (whole) next_check = limit;

      // T is tridiagonal until the first restart.
      const bool tridiagonal = want == 1 && kept == 0;
      if (tridiagonal) solve_leading(size, last ? 0 : kRoughly);
      else solve_projected(size);
      bool converged = size > want || size == room;
      for (int i = 0; i < want && converged; ++i)
        converged = has_converged(beta * fabs(ritz_vectors()[i * size + size - 1]),
                                  gap_of(ritz_values(), i, size));
      if (converged || last) {
        if (tridiagonal && !last) {
          graph_.meet();  // until here the blocks read the Ritz pair that is overwritten now
          solve_leading(size, 0);
        }
        store_ritz_pairs(slot, min(want, size), size);
        return true;
      }
      if (size < limit) continue;
      if (tridiagonal) {
        graph_.meet();  // until here the blocks read the Ritz pair that is overwritten now
        solve_projected(size);
      }
      size = kept = restart(limit, want);
    }
  }

  // v -= its parts along the known vectors, which are `locked` pairs and then the basis, `count` in
  // all. The inner products stay in sums(). Returns the norm that is left.
  __device__ SELFMENT_CALL double project(double* v, int locked, int count) {
    v = global(v);
    const int n = static_cast<int>(solver::n());
    const double *pairs = pair(0), *vectors = basis(0);
    graph_.multiply_with<kVectorsAtOnce>(v, count + 1, [=](int j) {
      const double* known = j < locked ? pairs + int64_t{j} * n : vectors + int64_t{j - locked} * n;
      return global(j == count ? v : known);
    });
    own_rows([=](int64_t i) {
      double part = 0;
      for (int j = 0; j < locked; ++j) part = fma(sums()[j], pair(j)[i], part);
      const double* entry = basis(0) + i;
#pragma unroll 8
      for (int j = locked; j < count; ++j, entry += n) part = fma(sums()[j], *entry, part);
      v[i] -= part;
    });
    double parts = 0;
    for (int j = static_cast<int>(threadIdx.x) % kWarp; j < count; j += kWarp)
      parts = fma(sums()[j], sums()[j], parts);
    const double left = sums()[count] - warp_sum(parts);
    return left < 0 ? 0 : sqrt(left);
  }

 private:
  // Makes a new basis vector at `index`: random, orthogonal to the known ones.
  __device__ SELFMENT_CALL void random_vector(int locked, int index) {
    double* v = basis(index);
    const int64_t from = local(this)->draws_++ * n();
    own_rows([=](int64_t i) { v[i] = random_number(from + i); });
    for (int pass = 0; pass < 3; ++pass) {
      const double norm = project(v, locked, locked + index);
      own_rows([=](int64_t i) { v[i] /= norm; });
    }
  }

  // Makes M v_j, which is at j + 1 in the basis, orthogonal to all known vectors and returns the
  // norm that is left. The leading block fills row and column j of T.
  __device__ double extend(int locked, int j, int kept) {
    double* v = basis(j + 1);
    const int limit = static_cast<int>(args().limit);
    project(v, locked, locked + j + 1);
    if (leads())
      for (int i = static_cast<int>(threadIdx.x); i <= j; i += kProductThreads)
        if (i + 1 >= j || j == kept)
          projected()[i * limit + j] = projected()[j * limit + i] = sums()[locked + i];
    return project(v, locked, locked + j + 1);
  }

  // Computes all Ritz values, descending, and vectors from the leading `size` rows of T.
  __device__ SELFMENT_CALL void solve_projected(int size) {
    if (leads()) {
      if (2 * size * size * int64_t{sizeof(double)} <= kProductBytes)
        solve_projected_in(product_table(), size);
      else solve_projected_in(jacobi_matrices(), size);
    }
    graph_.meet();
  }

  // Does the same with room for two matrices at `a`.
  __device__ __forceinline__ void solve_projected_in(double* a, int size) {
    const int limit = static_cast<int>(args().limit);
    for (int at = static_cast<int>(threadIdx.x); at < size * size; at += kProductThreads)
      a[at] = projected()[at / size * limit + at % size];
    jacobi(a, a + size * size, size, ritz_values(), ritz_vectors(), sums(), busy());
  }

  // Computes the two leading Ritz values, and the first one's vector, from a tridiagonal T: see
  // leading_pair.
  __device__ SELFMENT_CALL void solve_leading(int size, double share) {
    if (leads() && threadIdx.x < kWarp) {
      auto& t = *reinterpret_cast<Tridiagonal*>(shared_memory());
      const int limit = static_cast<int>(args().limit);
      for (int i = static_cast<int>(threadIdx.x); i < size; i += kWarp) {
        t.diagonal[i] = projected()[i * limit + i];
        t.beside[i] = i + 1 < size ? projected()[(i + 1) * limit + i] : 0;
      }
      leading_pair(t, size, share, ritz_values(), ritz_vectors());
    }
    graph_.meet();
  }

  // The distance of values[i] to its nearest neighbour; values are in descending order.
  __device__ static double gap_of(const double* values, int i, int size) {
    const double above = i == 0 ? INFINITY : values[i - 1] - values[i];
    const double below = i + 1 < size ? values[i] - values[i + 1] : INFINITY;
    return fmin(above, below);
  }

  // Makes the basis of the leading Ritz vectors and the residual's direction; returns how many of
  // the former. The team meets in the product that follows, before Ritz pairs are written again.
  __device__ SELFMENT_CALL int restart(int limit, int want) {
    const int keep = min(limit - 1, want + (limit - want) / 3);
    const int n = static_cast<int>(solver::n());
    double *basis = solver::basis(0), *vectors = kept_vectors();
    const double* ritz = ritz_vectors();
    own_rows([=](int64_t i) {
      for (int r = 0; r < keep; ++r) {
        double sum = 0;
        for (int j = 0; j < limit; ++j)
          sum = fma(ritz[r * limit + j], basis[int64_t{j} * n + i], sum);
        vectors[int64_t{r} * n + i] = sum;
      }
      basis[int64_t{keep} * n + i] = basis[int64_t{limit} * n + i];
      for (int64_t r = 0; r < keep; ++r) basis[r * n + i] = vectors[r * n + i];
    });
    if (leads()) {
      const int stride = static_cast<int>(args().limit);
      for (int at = static_cast<int>(threadIdx.x); at < stride * stride; at += kProductThreads)
        projected()[at] =
            at / stride == at % stride && at / stride < keep ? ritz_values()[at / stride] : 0;
    }
    return keep;
  }

  // Writes the `count` leading Ritz pairs into the pairs from `slot` on.
  __device__ SELFMENT_CALL void store_ritz_pairs(int slot, int count, int size) {
    for (int r = 0; r < count; ++r) {
      double *y = pair(slot + r), *basis = solver::basis(0);
      const double* ritz = ritz_vectors() + r * size;
      const int64_t n = solver::n();
      own_rows([=](int64_t i) {
        double sum = 0;
        for (int j = 0; j < size; ++j) sum = fma(ritz[j], basis[j * n + i], sum);
        y[i] = sum;
      });
      graph_.normalize(y);
    }
    if (leads())
      for (int r = static_cast<int>(threadIdx.x); r < count; r += kProductThreads) {
        theta(slot + r) = ritz_values()[r];
        gap(slot + r) = gap_of(ritz_values(), r, size);
      }
    graph_.meet();
  }

  NormalizedGraph graph_;
  int64_t draws_ = 0;
};

}  // namespace selfment::cuda::solver
