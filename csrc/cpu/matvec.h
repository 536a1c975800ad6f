// The product y = A x with the affinity matrix of one image, which is never stored.
#pragma once

#include <vector>

#include "simd.h"
#include "workers.h"

namespace selfment::cpu {

class GraphProduct {
 public:
  GraphProduct(const Graph& graph, Workers& workers);

  // y = A x for `columns` vectors of n elements, one after another; x and y do not overlap. A
  // vector's result depends neither on the threads nor on the other vectors.
  void apply(const double* x, double* y, int64_t columns = 1);

  const Graph& graph() const { return graph_; }

 private:
  void apply_bits(double* y);
  void apply_weights(double* y, int64_t columns);

  const Graph& graph_;
  Workers& workers_;
  const Simd& simd_ = simd();
  const int64_t words_;
  std::vector<double> x_;      // up to kAtOnce vectors, each padded with zeros to whole words
  std::vector<double> table_;  // binary mode: sums of subsets of x

  // In weighted mode a tile adds to two parts of y, so each chunk of strips has a y of its own. The
  // few chunks have about equally many weights. Their number does not depend on the threads, and so
  // neither does the sum.
  int64_t edges_ = 0;
  std::vector<int64_t> chunk_ends_;
  std::vector<double> partial_;
};

// Writes the row sums of A, (n,).
void sum_degrees(const Graph& graph, Workers& workers, double* degrees);

}  // namespace selfment::cpu
