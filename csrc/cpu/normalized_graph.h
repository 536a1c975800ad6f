// M = D^-1/2 A D^-1/2 of one image, and operations on vectors of its n patches.
#pragma once

#include <cmath>
#include <vector>

#include "matvec.h"
#include "simd.h"

namespace selfment::cpu {

class NormalizedGraph {
 public:
  // `degrees`: (n,), the diagonal of D.
  NormalizedGraph(const Graph& graph, const double* degrees, Workers& workers)
      : n_(graph.n), product_(graph, workers), scale_(n_), trivial_(n_) {
    for (int64_t i = 0; i < n_; ++i) {
      trivial_[i] = std::sqrt(degrees[i]);
      scale_[i] = 1 / trivial_[i];
    }
    normalize(trivial_.data());
  }

  int64_t n() const { return n_; }
  const std::vector<double>& scale() const { return scale_; }  // (n,), the diagonal of D^-1/2
  // (n,), D^1/2 1 / |D^1/2 1|: the eigenvector of theta = 1.
  const std::vector<double>& trivial() const { return trivial_; }
  int64_t products() const { return products_; }  // vectors multiplied so far
  void reset_products() { products_ = 0; }

  // out = M y for `columns` vectors, one after another.
  void multiply(const double* y, double* out, int64_t columns) {
    products_ += columns;
    scaled_.resize(columns * n_);
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t i = 0; i < n_; ++i) scaled_[c * n_ + i] = scale_[i] * y[c * n_ + i];
    product_.apply(scaled_.data(), out, columns);
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t i = 0; i < n_; ++i) out[c * n_ + i] *= scale_[i];
  }

  // out = M e_1. A binary graph shows it in its bits, without a product.
  void multiply_first(double* out) {
    const Graph& graph = product_.graph();
    if (graph.weights != nullptr) {
      std::vector<double> first(n_);
      first[0] = 1;
      return multiply(first.data(), out, 1);
    }
    for (int64_t i = 0; i < n_; ++i)
      out[i] = scale_[0] * scale_[i] * ((graph.bits[i] & 1) != 0 ? 1 : graph.eps);
  }

  double dot(const double* x, const double* y) const { return simd_.dot(x, y, n_); }
  void axpy(double a, const double* x, double* y) const { simd_.axpy(a, x, n_, y); }
  double norm(const double* v) const { return std::sqrt(dot(v, v)); }

  void normalize(double* v) const {
    const double length = norm(v);
    for (int64_t i = 0; i < n_; ++i) v[i] /= length;
  }

  // v -= its part along the unit vector `known`; returns the length of that part.
  double remove(const double* known, double* v) const {
    const double along = dot(known, v);
    axpy(-along, known, v);
    return along;
  }

 private:
  const int64_t n_;
  const Simd& simd_ = simd();
  GraphProduct product_;
  std::vector<double> scale_, trivial_;
  std::vector<double> scaled_;
  int64_t products_ = 0;
};

}  // namespace selfment::cpu
