#include "symmetric_eigen.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace selfment::cpu {

namespace {

// sqrt(x^2 + y^2) by IEEE operations alone: std::hypot differs from one C library to another.
double hypotenuse(double x, double y) {
  const double a = std::abs(x), b = std::abs(y), larger = std::max(a, b);
  if (larger == 0) return 0;
  const double ratio = std::min(a, b) / larger;
  return larger * std::sqrt(1 + ratio * ratio);
}

// Computes a = Q T Q^T. Returns Q^T, and T as its diagonal and its off-diagonal, which ends with a
// 0.
std::vector<double> tridiagonalize(std::vector<double>& a, int64_t n, std::vector<double>& diagonal,
                                   std::vector<double>& off) {
  std::vector<double> q(n * n, 0.0), v(n), w(n);
  for (int64_t i = 0; i < n; ++i) q[i * n + i] = 1;
  for (int64_t k = 0; k + 2 < n; ++k) {
    double below = 0;
    for (int64_t i = k + 2; i < n; ++i) below = std::max(below, std::abs(a[i * n + k]));
    if (below == 0) continue;
    double norm = 0;
    for (int64_t i = k + 1; i < n; ++i) norm = hypotenuse(norm, a[i * n + k]);
    // The reflection I - tau v v^T maps column k below the diagonal to -+norm e_1.
    const double first = a[(k + 1) * n + k], target = first > 0 ? -norm : norm;
    std::fill(v.begin(), v.end(), 0.0);
    for (int64_t i = k + 1; i < n; ++i) v[i] = a[i * n + k];
    v[k + 1] -= target;
    const double tau = 2 / std::inner_product(v.begin(), v.end(), v.begin(), 0.0);
    for (int64_t i = k; i < n; ++i)
      w[i] = tau * std::inner_product(v.begin() + k, v.end(), a.begin() + i * n + k, 0.0);
    const double half = tau / 2 * std::inner_product(v.begin() + k, v.end(), w.begin() + k, 0.0);
    for (int64_t i = k; i < n; ++i) w[i] -= half * v[i];
    for (int64_t i = k; i < n; ++i)
      for (int64_t j = k; j < n; ++j) a[i * n + j] -= v[i] * w[j] + w[i] * v[j];
    // Q^T <- (I - tau v v^T) Q^T, row by row.
    std::fill(w.begin(), w.end(), 0.0);
    for (int64_t i = k + 1; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) w[j] += v[i] * q[i * n + j];
    for (int64_t i = k + 1; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) q[i * n + j] -= tau * v[i] * w[j];
  }
  for (int64_t i = 0; i < n; ++i) {
    diagonal[i] = a[i * n + i];
    off[i] = i + 1 < n ? a[(i + 1) * n + i] : 0;
  }
  return q;
}

// Makes T = Q^T a Q diagonal, and updates Q^T, the rows of `q`, accordingly.
void implicit_ql(std::vector<double>& diagonal, std::vector<double>& off, std::vector<double>& q) {
  const auto n = static_cast<int64_t>(diagonal.size());
  double scale = 0;
  for (int64_t i = 0; i < n; ++i) scale = std::max(scale, std::abs(diagonal[i]) + std::abs(off[i]));
  const double negligible = scale * std::numeric_limits<double>::epsilon();
  for (int64_t l = 0; l < n; ++l) {
    while (true) {
      int64_t m = l;
      while (m + 1 < n && std::abs(off[m]) > negligible) ++m;
      if (m == l) break;
      // Wilkinson's shift, from the leading 2 x 2 block.
      double g = (diagonal[l + 1] - diagonal[l]) / (2 * off[l]);
      g = diagonal[m] - diagonal[l] + off[l] / (g + std::copysign(hypotenuse(g, 1.0), g));
      double s = 1, c = 1, p = 0;
      int64_t i = m - 1;
      for (; i >= l; --i) {
        const double f = s * off[i], b = c * off[i], r = hypotenuse(f, g);
        off[i + 1] = r;
        if (r == 0) {
          // The chase ended early: the matrix splits here.
          diagonal[i + 1] -= p;
          off[m] = 0;
          break;
        }
        s = f / r;
        c = g / r;
        g = diagonal[i + 1] - p;
        const double t = (diagonal[i] - g) * s + 2 * c * b;
        p = s * t;
        diagonal[i + 1] = g + p;
        g = c * t - b;
        double *lower = &q[i * n], *upper = &q[(i + 1) * n];
        for (int64_t k = 0; k < n; ++k) {
          const double x = lower[k], y = upper[k];
          upper[k] = s * x + c * y;
          lower[k] = c * x - s * y;
        }
      }
      if (i >= l) continue;
      diagonal[l] -= p;
      off[l] = g;
      off[m] = 0;
    }
  }
}

}  // namespace

SymmetricEigen symmetric_eigen(std::vector<double> a, int64_t n) {
  std::vector<double> diagonal(n), off(n);
  std::vector<double> q = tridiagonalize(a, n, diagonal, off);
  implicit_ql(diagonal, off, q);
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t i, int64_t j) { return diagonal[i] > diagonal[j]; });
  SymmetricEigen result{std::vector<double>(n), std::vector<double>(n * n)};
  for (int64_t i = 0; i < n; ++i) {
    result.values[i] = diagonal[order[i]];
    std::copy_n(q.begin() + order[i] * n, n, result.vectors.begin() + i * n);
  }
  return result;
}

}  // namespace selfment::cpu
