#include "lanczos.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "../random.h"
#include "../stopping_rule.h"
#include "symmetric_eigen.h"

namespace selfment::cpu {

// Orthonormal vectors V of a Krylov space, and T = V^T M V.
class Basis {
 public:
  Basis(int64_t n, int64_t capacity, int64_t starts)
      : n_(n),
        stride_(capacity),
        starts_(starts),
        vectors_(capacity * n),
        t_(capacity * capacity) {}

  double* operator[](int64_t i) { return vectors_.data() + i * n_; }
  const double* operator[](int64_t i) const { return vectors_.data() + i * n_; }
  double& t(int64_t i, int64_t j) { return t_[i * stride_ + j]; }

  // True if T may be nonzero at row i < j + starts of column j. T is a band, except for the first
  // columns after a restart, which couple with all vectors kept.
  bool couples(int64_t i, int64_t j) const { return i + starts_ >= j || j < kept_ + starts_; }

  // The leading part of T, (size, size).
  std::vector<double> square(int64_t size) const {
    std::vector<double> leading(size * size);
    for (int64_t i = 0; i < size; ++i)
      std::copy_n(t_.begin() + i * stride_, size, leading.begin() + i * size);
    return leading;
  }

  // |M y - theta y| of Ritz vector i of the first `size` vectors: M y - theta y = R s lies in the
  // span of the `ahead` vectors after them.
  double residual(const SymmetricEigen& ritz, int64_t i, int64_t size, int64_t ahead) const {
    double squares = 0;
    for (int64_t next = size; next < size + ahead; ++next) {
      double part = 0;
      for (int64_t j = std::max<int64_t>(0, size - starts_); j < size; ++j)
        part += t_[next * stride_ + j] * ritz.vectors[i * size + j];
      squares += part * part;
    }
    return std::sqrt(squares);
  }

  // Makes T that of the `keep` leading Ritz vectors.
  void reset(const SymmetricEigen& ritz, int64_t keep) {
    kept_ = keep;
    std::fill(t_.begin(), t_.end(), 0.0);
    for (int64_t i = 0; i < keep; ++i) t(i, i) = ritz.values[i];
  }

 private:
  const int64_t n_, stride_, starts_;
  int64_t kept_ = 0;
  std::vector<double> vectors_, t_;
};

double gap_of(const std::vector<double>& values, int64_t i, int64_t size) {
  constexpr double kNone = std::numeric_limits<double>::infinity();
  const double above = i == 0 ? kNone : values[i - 1] - values[i];
  const double below = i + 1 < size ? values[i] - values[i + 1] : kNone;
  return std::min(above, below);
}

void Lanczos::lock(const std::vector<Pair>& pairs) {
  locked_.resize(1);
  for (const auto& pair : pairs) locked_.push_back(pair.y);
}

void Lanczos::project(double* v) const {
  for (const auto& known : locked_) graph_.remove(known.data(), v);
}

// The recurrences, for one start vector v_1. Vectors are kept orthogonal to the locked ones, too.
//
//   w = M v_j,  alpha_j = <v_j, w>
//   w -= <v_i, w> v_i  for i = j, ..., 1, and again: full reorthogonalisation, by modified
//                      Gram-Schmidt (`extend`)
//   beta_j = |w|,  v_{j+1} = w / beta_j
//
// After m steps M V = V T + beta_m v_{m+1} e_m^T, where T is tridiagonal with the alphas on its
// diagonal and the betas beside it. An eigenpair T s = theta s makes a Ritz pair (theta, y = V s)
// whose residual needs no product:
//
//   |M y - theta y| = beta_m |s_m|
//
// Stopping rule (`has_converged` in stopping_rule.h): every wanted pair has
//   residual <= max(kResidualFloor, kVectorError * gap),
// so that y is off by residual / gap <= kVectorError at most. `gap` is the distance of theta to the
// nearest other Ritz value. The rule is tried after about want + 9 steps, and then each time that
// the basis has grown by a sixth. Without convergence, Lanczos stops when the basis spans the whole
// space, or after kMaxProducts + want products.
//
// Restart (Wu and Simon, 2000), when the basis is full: the `keep` leading Ritz vectors and v_{m+1}
// become the basis. T is then diag(theta_1, ..., theta_keep), and its next column couples v_{m+1}
// with each of them by <y_i, M v_{m+1}> = beta_m s_m of pair i.
//
// For `starts` > 1 this is Ruhe's band Lanczos (Mathematics of Computation, 1979): `starts` vectors
// are multiplied at a time, T has that many diagonals on each side, and the residual R of
// M V = V T + R lies in the span of the next `ahead` vectors, not of one.
std::vector<Pair> Lanczos::leading_pairs(int64_t want, int64_t starts) {
  const int64_t n = graph_.n(), room = n - static_cast<int64_t>(locked_.size());
  const int64_t limit = std::min(room, std::max(kBasis, 5 * want));
  want = std::min(want, room);
  Basis basis(n, limit + starts, starts);
  // `size` vectors have been multiplied, the next `ahead` not yet.
  int64_t size = 0, ahead = std::min(starts, room), next_check = starts * (want + 9);
  for (int64_t i = 0; i < ahead; ++i) random_vector(basis, i);
  while (true) {
    graph_.multiply(basis[size], basis[size + ahead], ahead);
    const int64_t block = size + ahead;
    for (; size < block; ++size) extend(basis, size, size + ahead, room);
    ahead = std::min(starts, room - size);
    const bool last = ahead == 0 || graph_.products() >= kMaxProducts + want;
    const bool full = size + ahead > limit;
    if (size < next_check && !full && !last) continue;
    next_check = size + std::max<int64_t>(2, size / 6);

    const SymmetricEigen ritz = symmetric_eigen(basis.square(size), size);
    bool converged = size > want || size == room;
    for (int64_t i = 0; i < want && converged; ++i)
      converged = has_converged(basis.residual(ritz, i, size, ahead), gap_of(ritz.values, i, size));
    if (converged || last) return ritz_pairs(basis, ritz, std::min(want, size), size);
    if (full) size = restart(basis, ritz, size, ahead, want + (limit - want) / 3);
  }
}

// A new basis vector at `index`: random, orthogonal to the locked vectors and to those before it.
void Lanczos::random_vector(Basis& basis, int64_t index) {
  double* v = basis[index];
  for (int64_t i = 0; i < graph_.n(); ++i) v[i] = random_number(draws_++);
  for (int pass = 0; pass < 3; ++pass) {
    project(v);
    for (int64_t j = 0; j < index; ++j) graph_.remove(basis[j], v);
    graph_.normalize(v);
  }
}

// Makes w = M v_j, which is at `place` in the basis, orthogonal to everything before it and of norm
// 1, and fills row and column j of T. Two passes are enough (Parlett, 6.9). If only rounding is
// left of w, a random vector replaces it; if the basis spans the whole space, nothing does.
void Lanczos::extend(Basis& basis, int64_t j, int64_t place, int64_t room) {
  double* w = basis[place];
  for (int pass = 0; pass < 2; ++pass) {
    project(w);
    for (int64_t i = place - 1; i >= 0; --i) {
      const double along = graph_.remove(basis[i], w);
      if (pass == 0 && basis.couples(i, j)) basis.t(i, j) = basis.t(j, i) = along;
    }
  }
  if (place >= room) return;
  const double beta = graph_.norm(w);
  if (beta <= kBreakdown) return random_vector(basis, place);
  for (int64_t i = 0; i < graph_.n(); ++i) w[i] /= beta;
  basis.t(place, j) = beta;
}

// Makes the basis of the `keep` leading Ritz vectors and of the vectors that span R; returns
// `keep`.
int64_t Lanczos::restart(Basis& basis, const SymmetricEigen& ritz, int64_t size, int64_t ahead,
                         int64_t keep) const {
  const int64_t n = graph_.n();
  std::vector<double> kept(keep * n);
  for (int64_t i = 0; i < keep; ++i) combine(basis, ritz, i, size, kept.data() + i * n);
  std::copy_n(basis[size], ahead * n, basis[keep]);
  std::copy(kept.begin(), kept.end(), basis[0]);
  basis.reset(ritz, keep);
  return keep;
}

// y += V s for eigenvector s of T, number i.
void Lanczos::combine(const Basis& basis, const SymmetricEigen& ritz, int64_t i, int64_t size,
                      double* y) const {
  for (int64_t j = 0; j < size; ++j) graph_.axpy(ritz.vectors[i * size + j], basis[j], y);
}

std::vector<Pair> Lanczos::ritz_pairs(const Basis& basis, const SymmetricEigen& ritz, int64_t count,
                                      int64_t size) const {
  std::vector<Pair> pairs;
  for (int64_t i = 0; i < count; ++i) {
    pairs.push_back(
        {ritz.values[i], gap_of(ritz.values, i, size), std::vector<double>(graph_.n())});
    combine(basis, ritz, i, size, pairs.back().y.data());
    graph_.normalize(pairs.back().y.data());
  }
  return pairs;
}

}  // namespace selfment::cpu
