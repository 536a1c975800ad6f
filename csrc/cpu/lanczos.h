// The leading eigenpairs of a normalised graph, by Lanczos.
#pragma once

#include <cstdint>
#include <vector>

#include "normalized_graph.h"

namespace selfment::cpu {

struct SymmetricEigen;
class Basis;

// An approximate eigenpair M y = theta y.
struct Pair {
  double theta;
  double gap;             // distance of theta to the nearest other eigenvalue found
  std::vector<double> y;  // (n,), norm 1
};

// The distance of values[i] to its nearest neighbour among the leading `size` of them, which are in
// descending order.
double gap_of(const std::vector<double>& values, int64_t i, int64_t size);

// Finds eigenpairs orthogonal to its locked vectors: the trivial one, and pairs that are known.
class Lanczos {
 public:
  explicit Lanczos(NormalizedGraph& graph) : graph_(graph), locked_{graph.trivial()} {}

  // The `want` pairs of largest theta, descending, from `starts` random vectors. After kMaxProducts
  // it returns the pairs that it has; their residuals show that they have not converged.
  std::vector<Pair> leading_pairs(int64_t want, int64_t starts);

  // Locks these pairs in place of those locked before; the trivial one stays.
  void lock(const std::vector<Pair>& pairs);

  // Makes v orthogonal to the locked vectors.
  void project(double* v) const;

 private:
  void random_vector(Basis& basis, int64_t index);
  void extend(Basis& basis, int64_t j, int64_t place, int64_t room);
  int64_t restart(Basis& basis, const SymmetricEigen& ritz, int64_t size, int64_t ahead,
                  int64_t keep) const;
  void combine(const Basis& basis, const SymmetricEigen& ritz, int64_t i, int64_t size,
               double* y) const;
  std::vector<Pair> ritz_pairs(const Basis& basis, const SymmetricEigen& ritz, int64_t count,
                               int64_t size) const;

  NormalizedGraph& graph_;
  std::vector<std::vector<double>> locked_;  // unit vectors: the trivial one, then known pairs
  // All starts draw from one sequence: a start vector that is used again would lie in the space
  // that it has spanned before.
  int64_t draws_ = 0;
};

}  // namespace selfment::cpu
