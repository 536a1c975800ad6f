// The smallest nontrivial eigenpairs of (D - A) x = lambda D x, by Lanczos on the graph.
//
// With M = D^-1/2 A D^-1/2 and y = D^1/2 x the problem is M y = theta y with theta = 1 - lambda,
// largest theta first. The leading pair, (1, D^1/2 1), is known exactly and projected out of
// everything. The basis is short, so it is kept orthogonal in full, and all is done in double: a
// float would leave an error of 1e-6 in x, which moves patches across its mean.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "../reflections.h"
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
constexpr double kProducts = 40;      // for a pair, or so
constexpr double kBreakdown = 1e-13;  // a residual of this norm is rounding: the space is invariant

// Start vectors when there is more than one pair to find. A Krylov space holds as many vectors of
// an eigenspace as it has starts, if there are so many: copies of an eigenvalue can be missing only
// where it holds that many. Eigenvalues nearer to each other than kRepeated count as equal. In a
// cluster of more than kStarts that is not told apart, the residuals are about as large as its
// width; and they have converged to kVectorError of gaps that are no larger, or to kResidualFloor.
constexpr int64_t kStarts = 2;
constexpr double kRepeated = 1e-9;

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

  // Whether T may hold something at i < j + starts. It is a band, but for the first columns after a
  // restart, which meet all vectors kept.
  bool meets(int64_t i, int64_t j) const { return i + starts_ >= j || j < kept_ + starts_; }

  // The leading part of T, (size, size).
  std::vector<double> square(int64_t size) const {
    std::vector<double> leading(size * size);
    for (int64_t i = 0; i < size; ++i)
      std::copy_n(t_.begin() + i * stride_, size, leading.begin() + i * size);
    return leading;
  }

  // |M y - theta y| of Ritz vector i of the first `size` vectors: what the `ahead` next ones take.
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

  // T of the `keep` leading Ritz vectors.
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

class Solver {
 public:
  Solver(const Graph& graph, const double* degrees, Workers& workers)
      : n_(graph.n), product_(graph, workers), scale_(n_) {
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
    if (n_ <= kDense) return dense(k);
    std::vector<Pair> pairs = lanczos(k, k > 1 ? kStarts : 1);
    // Copies that the space could not hold show among what is orthogonal to the pairs.
    const bool complete = k + 1 >= n_ || !repeated(pairs);
    while (!complete) {
      lock(pairs);
      Pair missed = std::move(lanczos(1, 1).front());
      const double below = pairs.back().theta - missed.theta;
      pairs.back().gap = std::min(pairs.back().gap, std::abs(below));
      if (below >= -kBreakdown) break;
      merge(pairs, std::move(missed));
    }
    locked_.resize(1);
    return pairs;
  }

  // Gives each pair the sign that LAPACK gives it: after `polish`.
  //
  // xSYGVX makes C = I - M tridiagonal by reflections, C = Q T Q^T with Q e_1 = e_1, and xSTEIN
  // makes the entry of largest magnitude of T's eigenvector z = Q^T y positive. The columns of Q
  // are, up to sign, the Lanczos vectors of M from e_1, whose space holds nearly all of y after a
  // few steps. No entry of z that is not known yet exceeds the norm of what is left of y: a known
  // one that is larger is the largest. Where the space ends before, y is orthogonal to it: T falls
  // apart, LAPACK's sign is that of a rounding error, and the peak's is as good. Only a last column
  // is known all the same, as there is one direction left.
  void orient_as_lapack(std::vector<Pair>& pairs) {
    const int64_t most = std::min(kSignVectors, n_);
    std::vector<std::vector<double>> columns;
    std::vector<double> next(n_), factors;
    std::vector<LargestEntry> entries(pairs.size());
    next[0] = 1;
    bool certain = false;
    while (true) {
      if (!orthogonalize(next, columns)) {
        if (static_cast<int64_t>(columns.size()) != n_ - 1 || n_ > most) break;
        const auto open = [](const LargestEntry& entry) { return !entry.certain(); };
        next = pairs[std::find_if(entries.begin(), entries.end(), open) - entries.begin()].y;
        if (!orthogonalize(next, columns)) break;
      }
      columns.push_back(next);
      const auto index = static_cast<int64_t>(columns.size()) - 1;
      factors.resize(index * most);
      // Reflections leave the first entry alone: the first column is e_1.
      const auto entry = [&](int64_t i, int64_t j) { return columns[j + 1][i + 1]; };
      const double sign =
          index == 0 ? 1 : column_sign(index - 1, index == n_ - 1, entry, factors.data(), most);
      certain = true;
      for (size_t i = 0; i < pairs.size(); ++i) {
        entries[i].add(sign * dot(next.data(), pairs[i].y.data()));
        certain = certain && entries[i].certain();
      }
      if (certain || index == most - 1) break;
      if (index == 0) multiply_first(next.data());
      else multiply(columns.back().data(), next.data(), 1);
    }
    const bool ended = !certain && static_cast<int64_t>(columns.size()) < most;
    for (size_t i = 0; i < pairs.size(); ++i)
      if (entries[i].certain() || !ended) orient(pairs[i], entries[i].value);
      else orient_by_peak(pairs[i]);
  }

  // The sign that makes the entry of x with the largest magnitude positive.
  void orient_by_peak(Pair& pair) const {
    const auto x = [&](int64_t j) { return scale_[j] * pair.y[j]; };
    orient(pair, x(first_peak(n_, [&](int64_t j) { return std::abs(x(j)); })));
  }

  // One product more: y <- M y / |M y|. What is left of the start vector among patches with equal
  // rows vanishes, so that they get equal entries, to the bit. Returns the residuals of the new y.
  std::vector<double> polish(std::vector<Pair>& pairs) {
    std::vector<double> y, image(pairs.size() * n_), moved, image_of_moved;
    for (const auto& pair : pairs) y.insert(y.end(), pair.y.begin(), pair.y.end());
    multiply(y.data(), image.data(), static_cast<int64_t>(pairs.size()));
    const auto moves = [](const Pair& pair) { return std::abs(pair.theta) > 0.01; };
    for (size_t i = 0; i < pairs.size(); ++i) {
      if (!moves(pairs[i])) continue;
      double* next = image.data() + i * n_;
      project(next);
      normalize(next);
      pairs[i].y.assign(next, next + n_);
      moved.insert(moved.end(), next, next + n_);
    }
    image_of_moved.resize(moved.size());
    multiply(moved.data(), image_of_moved.data(), static_cast<int64_t>(moved.size()) / n_);
    std::vector<double> residuals;
    double* next = image_of_moved.data();
    for (size_t i = 0; i < pairs.size(); ++i) {
      Pair& pair = pairs[i];
      double* my = image.data() + i * n_;
      if (moves(pair)) std::copy_n(std::exchange(next, next + n_), n_, my);
      pair.theta = dot(pair.y.data(), my);
      axpy(-pair.theta, pair.y.data(), my);
      residuals.push_back(std::sqrt(dot(my, my)));
    }
    return residuals;
  }

 private:
  // Makes the pair's entry whose value is given positive.
  static void orient(Pair& pair, double entry) {
    if (entry < 0)
      for (double& y : pair.y) y = -y;
  }

  double dot(const double* x, const double* y) const { return simd_.dot(x, y, n_); }
  void axpy(double a, const double* x, double* y) const { simd_.axpy(a, x, n_, y); }

  double normalize(double* v) const {
    const double norm = std::sqrt(dot(v, v));
    for (int64_t i = 0; i < n_; ++i) v[i] /= norm;
    return norm;
  }

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

  // out = M e_1: of a binary graph it is read off the bits.
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

  void project(double* v) const {
    for (const auto& known : locked_) axpy(-dot(known.data(), v), known.data(), v);
  }

  // Makes v orthogonal to the others and of norm 1; false if only rounding is left of it.
  bool orthogonalize(std::vector<double>& v, const std::vector<std::vector<double>>& others) const {
    for (int pass = 0; pass < 2; ++pass)
      for (const auto& other : others) axpy(-dot(other.data(), v.data()), other.data(), v.data());
    if (std::sqrt(dot(v.data(), v.data())) <= kBreakdown) return false;
    normalize(v.data());
    return true;
  }

  void lock(const std::vector<Pair>& pairs) {
    locked_.resize(1);
    for (const auto& pair : pairs) locked_.push_back(pair.y);
  }

  static bool repeated(const std::vector<Pair>& pairs) {
    const auto equal = [](const Pair& a, const Pair& b) { return a.theta - b.theta <= kRepeated; };
    return std::adjacent_find(pairs.begin(), pairs.end(), equal) != pairs.end();
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
      multiply(unit.data(), column.data(), 1);
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
  std::vector<Pair> lanczos(int64_t want, int64_t starts) {
    const int64_t room = n_ - static_cast<int64_t>(locked_.size());
    const int64_t limit = std::min(room, std::max(kBasis, 5 * want));
    want = std::min(want, room);
    // M V = V T + R: `size` vectors V have been multiplied, and the next `ahead`, which span R, not
    // yet. Ruhe's band Lanczos (Mathematics of Computation, 1979) is that of one start, vector by
    // vector, but for the width of T.
    Basis basis(n_, limit + starts, starts);
    int64_t size = 0, ahead = std::min(starts, room), next_check = starts * (want + 9);
    for (int64_t i = 0; i < ahead; ++i) random_vector(basis, i);
    while (true) {
      multiply(basis[size], basis[size + ahead], ahead);
      const int64_t block = size + ahead;
      for (; size < block; ++size) extend(basis, size, size + ahead, room);
      ahead = std::min(starts, room - size);
      const bool last = ahead == 0 || products_ >= kMaxProducts + want;
      const bool full = size + ahead > limit;
      if (size < next_check && !full && !last) continue;
      next_check = size + std::max<int64_t>(2, size / 6);

      const SymmetricEigen ritz = symmetric_eigen(basis.square(size), size);
      bool converged = size > want || size == room;
      for (int64_t i = 0; i < want && converged; ++i)
        converged = basis.residual(ritz, i, size, ahead) <=
                    std::max(kResidualFloor, kVectorError * gap(ritz.values, i, size));
      if (converged || last) return ritz_pairs(basis, ritz, std::min(want, size), size);
      if (full) size = restart(basis, ritz, size, ahead, want + (limit - want) / 3);
    }
  }

  // A new basis vector at `index`: random, orthogonal to the locked vectors and to those before it.
  void random_vector(Basis& basis, int64_t index) {
    double* v = basis[index];
    for (int64_t i = 0; i < n_; ++i) v[i] = random_.next();
    for (int pass = 0; pass < 3; ++pass) {
      project(v);
      for (int64_t j = 0; j < index; ++j) axpy(-dot(basis[j], v), basis[j], v);
      normalize(v);
    }
  }

  // Makes w = M v_j, at `place` in the basis, orthogonal to everything before it and of norm 1, and
  // fills row and column j of T. Twice is enough (Parlett, 6.9). A random vector takes the place of
  // rounding, and nothing where the whole space is full.
  void extend(Basis& basis, int64_t j, int64_t place, int64_t room) {
    double* w = basis[place];
    for (int pass = 0; pass < 2; ++pass) {
      project(w);
      for (int64_t i = place - 1; i >= 0; --i) {
        const double h = dot(basis[i], w);
        axpy(-h, basis[i], w);
        if (pass == 0 && basis.meets(i, j)) basis.t(i, j) = basis.t(j, i) = h;
      }
    }
    if (place >= room) return;
    const double beta = std::sqrt(dot(w, w));
    if (beta <= kBreakdown) return random_vector(basis, place);
    for (int64_t i = 0; i < n_; ++i) w[i] /= beta;
    basis.t(place, j) = beta;
  }

  // Keeps the leading Ritz vectors and what spans R; returns how many of the former.
  int64_t restart(Basis& basis, const SymmetricEigen& ritz, int64_t size, int64_t ahead,
                  int64_t keep) const {
    std::vector<double> kept(keep * n_);
    for (int64_t i = 0; i < keep; ++i) combine(basis, ritz, i, size, kept.data() + i * n_);
    std::copy_n(basis[size], ahead * n_, basis[keep]);
    std::copy(kept.begin(), kept.end(), basis[0]);
    basis.reset(ritz, keep);
    return keep;
  }

  void combine(const Basis& basis, const SymmetricEigen& ritz, int64_t i, int64_t size,
               double* y) const {
    for (int64_t j = 0; j < size; ++j) axpy(ritz.vectors[i * size + j], basis[j], y);
  }

  std::vector<Pair> ritz_pairs(const Basis& basis, const SymmetricEigen& ritz, int64_t count,
                               int64_t size) const {
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
  const double work =
      kProducts * static_cast<double>(p.k) * static_cast<double>(n * (n + kTile) / 8);
  for_each_image(p.batch, work, context, [&](int64_t image, Workers& workers) {
    Solver solver(p.graphs[image], p.degrees + image * n, workers);
    std::vector<Pair> pairs = solver.solve(p.k);
    const std::vector<double> residuals = solver.polish(pairs);
    if (p.sign == Sign::kLapack) solver.orient_as_lapack(pairs);
    else std::for_each(pairs.begin(), pairs.end(), [&](Pair& y) { solver.orient_by_peak(y); });
    for (int64_t i = 0; i < p.k; ++i) {
      const int64_t at = image * p.k + i;
      p.residuals[at] = residuals[i];
      p.eigenvalues[at] = 1 - pairs[i].theta;
      p.gaps[at] = pairs[i].gap;
      double* x = p.vectors + at * n;
      for (int64_t j = 0; j < n; ++j) x[j] = solver.scale()[j] * pairs[i].y[j];
    }
    p.iterations[image] = solver.products();
  });
}

}  // namespace selfment::cpu
