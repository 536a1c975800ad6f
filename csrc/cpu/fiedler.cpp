// The smallest nontrivial eigenpairs of (D - A) x = lambda D x, by Lanczos on the graph.
//
// With M = D^-1/2 A D^-1/2 and y = D^1/2 x the problem is M y = theta y with theta = 1 - lambda,
// largest theta first. The leading pair, (1, D^1/2 1), is known exactly and projected out of
// everything. The basis is short, so it is kept orthogonal in full, and all is done in double: a
// float would leave an error of 1e-6 in x, which moves patches across its mean.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "matvec.h"
#include "peak.h"
#include "simd.h"
#include "symmetric_eigen.h"
#include "workers.h"

namespace selfment::cpu {

namespace {

// A pair has converged when its residual is below this share of its gap: the error of the unit
// vector y is at most residual / gap (Parlett, The Symmetric Eigenvalue Problem, 11.7). The floor
// is for gaps of 0, where any vector of the eigenspace is as good.
constexpr double kVectorError = 1e-9;
constexpr double kResidualFloor = 1e-14;

constexpr int64_t kDense = 48;  // up to so many patches the whole spectrum is cheaper
constexpr int64_t kBasis = 64;  // vectors, for few pairs; then Lanczos restarts
constexpr int64_t kMaxProducts = 4000;
constexpr double kBreakdown = 1e-13;  // a residual of this norm is rounding: the space is invariant

struct Pair {
  double theta, gap;
  std::vector<double> y;  // (n,), norm 1
};

// A fixed sequence of numbers in [-1, 1): splitmix64 (Steele, Lea, Flood, 2014).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  double next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    return std::ldexp(static_cast<double>(z >> 11), -52) - 1;
  }

 private:
  uint64_t state_;
};

class Solver {
 public:
  Solver(const Graph& graph, const double* degrees, Workers& workers)
      : n_(graph.n), product_(graph, workers), scale_(n_), scaled_(n_) {
    std::vector<double> trivial(n_);
    for (int64_t i = 0; i < n_; ++i) {
      trivial[i] = std::sqrt(degrees[i]);
      scale_[i] = 1 / trivial[i];
    }
    normalize(trivial.data());
    locked_.push_back(std::move(trivial));
  }

  int64_t products() const { return products_; }
  const std::vector<double>& scale() const { return scale_; }

  // The k pairs of largest theta, descending.
  std::vector<Pair> solve(int64_t k) {
    std::vector<Pair> pairs = n_ <= kDense ? dense(k) : lanczos(k);
    // A Krylov space holds one vector of an eigenspace, whatever its dimension, so that of a
    // repeated eigenvalue all but one may be missing. They would show among what is orthogonal to
    // the pairs.
    while (k > 1 && k + 1 < n_ && n_ > kDense) {
      lock(pairs);
      Pair missed = std::move(lanczos(1).front());
      const double below = pairs.back().theta - missed.theta;
      pairs.back().gap = std::min(pairs.back().gap, std::abs(below));
      if (below >= -kBreakdown) break;
      merge(pairs, std::move(missed));
    }
    locked_.resize(1);
    return pairs;
  }

  // One product more: y <- M y / |M y|. What is left of the start vector among patches with equal
  // rows vanishes, so that they get equal entries, to the bit. Returns the residual of the new y.
  double polish(Pair& pair) {
    std::vector<double> next(n_);
    multiply(pair.y.data(), next.data());
    if (std::abs(pair.theta) > 0.01) {
      project(next.data());
      normalize(next.data());
      pair.y.swap(next);
      multiply(pair.y.data(), next.data());
    }
    pair.theta = dot(pair.y.data(), next.data());
    axpy(-pair.theta, pair.y.data(), next.data());
    return std::sqrt(dot(next.data(), next.data()));
  }

 private:
  double dot(const double* x, const double* y) const { return simd_.dot(x, y, n_); }
  void axpy(double a, const double* x, double* y) const { simd_.axpy(a, x, n_, y); }

  double normalize(double* v) const {
    const double norm = std::sqrt(dot(v, v));
    for (int64_t i = 0; i < n_; ++i) v[i] /= norm;
    return norm;
  }

  // out = M y
  void multiply(const double* y, double* out) {
    ++products_;
    for (int64_t i = 0; i < n_; ++i) scaled_[i] = scale_[i] * y[i];
    product_.apply(scaled_.data(), out);
    for (int64_t i = 0; i < n_; ++i) out[i] *= scale_[i];
  }

  void project(double* v) const {
    for (const auto& known : locked_) axpy(-dot(known.data(), v), known.data(), v);
  }

  void lock(const std::vector<Pair>& pairs) {
    locked_.resize(1);
    for (const auto& pair : pairs) locked_.push_back(pair.y);
  }

  // Inserts the pair by its theta and drops the last one.
  static void merge(std::vector<Pair>& pairs, Pair found) {
    const auto place = std::find_if(pairs.begin(), pairs.end(),
                                    [&](const Pair& pair) { return pair.theta < found.theta; });
    const auto next = pairs.insert(place, std::move(found));
    const double dropped = pairs.back().theta;
    pairs.pop_back();
    for (auto pair = pairs.begin(); pair != pairs.end(); ++pair) {
      const double above = pair == pairs.begin() ? infinity() : (pair - 1)->theta;
      const double below = pair + 1 == pairs.end() ? dropped : (pair + 1)->theta;
      if (std::abs(pair - next) <= 1 || pair + 1 == pairs.end())
        pair->gap = std::min(above - pair->theta, pair->theta - below);
    }
  }

  static double infinity() { return std::numeric_limits<double>::infinity(); }

  static double gap(const std::vector<double>& thetas, int64_t i, int64_t size) {
    const double above = i == 0 ? infinity() : thetas[i - 1] - thetas[i];
    const double below = i + 1 < size ? thetas[i] - thetas[i + 1] : infinity();
    return std::min(above, below);
  }

  std::vector<Pair> dense(int64_t k) {
    std::vector<double> m(n_ * n_), unit(n_), column(n_);
    for (int64_t j = 0; j < n_; ++j) {
      unit[j] = 1;
      multiply(unit.data(), column.data());
      unit[j] = 0;
      // The trivial pair goes to theta = -2, below all others.
      for (int64_t i = 0; i < n_; ++i)
        m[j * n_ + i] = column[i] - 3 * locked_[0][i] * locked_[0][j];
    }
    products_ = 0;
    const SymmetricEigen eigen = symmetric_eigen(std::move(m), n_);
    std::vector<Pair> pairs;
    for (int64_t i = 0; i < k; ++i) {
      const auto row = eigen.vectors.begin() + i * n_;
      pairs.push_back({eigen.values[i], gap(eigen.values, i, n_ - 1), {row, row + n_}});
    }
    return pairs;
  }

  // The `want` leading pairs orthogonal to the locked ones. Thick restarts (Wu and Simon, 2000)
  // when the basis is full. After kMaxProducts it returns what it has; the residual then tells.
  std::vector<Pair> lanczos(int64_t want) {
    const int64_t room = n_ - static_cast<int64_t>(locked_.size());
    const int64_t limit = std::min(room, std::max(kBasis, 3 * want));
    want = std::min(want, room);
    std::vector<double> basis((limit + 1) * n_);
    std::vector<double> projected(limit * limit);  // V^T M V
    const auto v = [&](int64_t i) { return basis.data() + i * n_; };
    random_vector(basis, 0);
    int64_t size = 0, kept = 0, next_check = std::min(limit, want + 9);
    while (true) {
      multiply(v(size), v(size + 1));
      double beta = extend(basis, projected, size, limit, kept);
      ++size;
      const bool invariant = beta <= kBreakdown;
      if (!invariant) {
        for (int64_t i = 0; i < n_; ++i) v(size)[i] /= beta;
      } else {
        beta = 0;
        if (size < limit) random_vector(basis, size);
      }
      const bool last = size == room || products_ >= kMaxProducts + want;
      if (size < next_check && size < limit && !last) continue;
      next_check = size + std::max<int64_t>(2, size / 6);

      std::vector<double> square(size * size);
      for (int64_t i = 0; i < size; ++i)
        std::copy_n(projected.begin() + i * limit, size, square.begin() + i * size);
      const SymmetricEigen ritz = symmetric_eigen(std::move(square), size);
      const auto residual = [&](int64_t i) {
        return beta * std::abs(ritz.vectors[i * size + size - 1]);
      };
      bool converged = size > want || size == room;
      for (int64_t i = 0; i < want && converged; ++i)
        converged =
            residual(i) <= std::max(kResidualFloor, kVectorError * gap(ritz.values, i, size));
      if (converged || last) return ritz_pairs(basis, ritz, std::min(want, size), size);
      if (size == limit) size = kept = restart(basis, projected, ritz, limit, want);
    }
  }

  // A new basis vector at `index`: random, orthogonal to the locked vectors and to those before it.
  void random_vector(std::vector<double>& basis, int64_t index) {
    double* v = basis.data() + index * n_;
    for (int64_t i = 0; i < n_; ++i) v[i] = random_.next();
    for (int pass = 0; pass < 3; ++pass) {
      project(v);
      for (int64_t j = 0; j < index; ++j) {
        const double* earlier = basis.data() + j * n_;
        axpy(-dot(earlier, v), earlier, v);
      }
      normalize(v);
    }
  }

  // Makes w = M v_j, at j + 1 in the basis, orthogonal to everything before it, fills row and
  // column j of the projected matrix, and returns the norm that is left. Twice is enough
  // (Parlett, 6.9). The matrix is tridiagonal but for the first column after a restart, which meets
  // all `kept` vectors.
  double extend(std::vector<double>& basis, std::vector<double>& projected, int64_t j,
                int64_t limit, int64_t kept) const {
    double* w = basis.data() + (j + 1) * n_;
    for (int pass = 0; pass < 2; ++pass) {
      project(w);
      for (int64_t i = j; i >= 0; --i) {
        const double* earlier = basis.data() + i * n_;
        const double h = dot(earlier, w);
        axpy(-h, earlier, w);
        if (pass > 0 || (i + 1 < j && j != kept)) continue;
        projected[i * limit + j] = projected[j * limit + i] = h;
      }
    }
    return std::sqrt(dot(w, w));
  }

  // Keeps the leading Ritz vectors and the residual's direction; returns how many of the former.
  int64_t restart(std::vector<double>& basis, std::vector<double>& projected,
                  const SymmetricEigen& ritz, int64_t limit, int64_t want) const {
    const int64_t keep = std::min(limit - 1, want + (limit - want) / 3);
    std::vector<double> kept(keep * n_);
    for (int64_t i = 0; i < keep; ++i) combine(basis, ritz, i, limit, kept.data() + i * n_);
    std::copy_n(basis.begin() + limit * n_, n_, basis.begin() + keep * n_);
    std::copy(kept.begin(), kept.end(), basis.begin());
    std::fill(projected.begin(), projected.end(), 0.0);
    for (int64_t i = 0; i < keep; ++i) projected[i * limit + i] = ritz.values[i];
    return keep;
  }

  void combine(const std::vector<double>& basis, const SymmetricEigen& ritz, int64_t i,
               int64_t size, double* y) const {
    for (int64_t j = 0; j < size; ++j) axpy(ritz.vectors[i * size + j], basis.data() + j * n_, y);
  }

  std::vector<Pair> ritz_pairs(const std::vector<double>& basis, const SymmetricEigen& ritz,
                               int64_t count, int64_t size) const {
    std::vector<Pair> pairs;
    for (int64_t i = 0; i < count; ++i) {
      pairs.push_back({ritz.values[i], gap(ritz.values, i, size), std::vector<double>(n_)});
      combine(basis, ritz, i, size, pairs.back().y.data());
      normalize(pairs.back().y.data());
    }
    return pairs;
  }

  const int64_t n_;
  const Simd& simd_ = simd();
  GraphProduct product_;
  std::vector<double> scale_;  // D^-1/2
  std::vector<double> scaled_;
  std::vector<std::vector<double>> locked_;  // unit vectors: the trivial one, then known pairs
  // One stream for all starts: a start that is used again lies in what it has already found.
  Random random_{1};
  int64_t products_ = 0;
};

}  // namespace

void fiedler(const FiedlerParams& p, const Context& context) {
  const int64_t n = p.graphs[0].n;
  for_each_image(p.batch, context, [&](int64_t image, Workers& workers) {
    Solver solver(p.graphs[image], p.degrees + image * n, workers);
    std::vector<Pair> pairs = solver.solve(p.k);
    for (int64_t i = 0; i < p.k; ++i) {
      const int64_t at = image * p.k + i;
      p.residuals[at] = solver.polish(pairs[i]);
      p.eigenvalues[at] = 1 - pairs[i].theta;
      p.gaps[at] = pairs[i].gap;
      double* x = p.vectors + at * n;
      for (int64_t j = 0; j < n; ++j) x[j] = solver.scale()[j] * pairs[i].y[j];
      if (x[first_peak(n, [x](int64_t j) { return std::abs(x[j]); })] < 0)
        for (int64_t j = 0; j < n; ++j) x[j] = -x[j];
    }
    p.iterations[image] = solver.products();
  });
}

}  // namespace selfment::cpu
