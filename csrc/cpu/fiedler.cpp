// The smallest nontrivial eigenpairs of (D - A) x = lambda D x, by Lanczos on the graph.
//
// With M = D^-1/2 A D^-1/2 and y = D^1/2 x the problem is M y = theta y with theta = 1 - lambda,
// largest theta first. The leading pair, (1, D^1/2 1), is known exactly and projected out of
// everything. The basis is short, so it is kept orthogonal in full. Everything is done in double: a
// float would leave an error of 1e-6 in x, which moves patches across its mean.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "../reflections.h"
#include "../stopping_rule.h"
#include "lanczos.h"
#include "normalized_graph.h"
#include "peak.h"
#include "symmetric_eigen.h"
#include "workers.h"

namespace selfment::cpu {

namespace {

constexpr double kProducts = 40;  // of a pair, roughly

// Start vectors if more than one pair is wanted. A Krylov space has at most as many vectors of an
// eigenspace as it has starts, so copies of an eigenvalue can be missing only if that many were
// found. Eigenvalues closer than kRepeated count as equal. This may miss a cluster of more than
// kStarts eigenvalues, but only a narrow one: the residuals are then about as large as its width,
// and they have converged to kVectorError of gaps that are no larger, or to kResidualFloor.
constexpr int64_t kStarts = 2;
constexpr double kRepeated = 1e-9;

// --- Pairs ---

bool has_repeated(const std::vector<Pair>& pairs) {
  const auto equal = [](const Pair& a, const Pair& b) { return a.theta - b.theta <= kRepeated; };
  return std::adjacent_find(pairs.begin(), pairs.end(), equal) != pairs.end();
}

// Inserts a pair by its theta and drops the last one.
void merge(std::vector<Pair>& pairs, Pair missed) {
  constexpr double kNone = std::numeric_limits<double>::infinity();
  const auto place = std::find_if(pairs.begin(), pairs.end(),
                                  [&](const Pair& pair) { return pair.theta < missed.theta; });
  const auto inserted = pairs.insert(place, std::move(missed));
  const double dropped = pairs.back().theta;
  pairs.pop_back();
  for (auto pair = pairs.begin(); pair != pairs.end(); ++pair) {
    const double above = pair == pairs.begin() ? kNone : (pair - 1)->theta;
    const double below = pair + 1 == pairs.end() ? dropped : (pair + 1)->theta;
    if (std::abs(pair - inserted) <= 1 || pair + 1 == pairs.end())
      pair->gap = std::min(above - pair->theta, pair->theta - below);
  }
}

// The k leading pairs of a small graph, from its whole spectrum.
std::vector<Pair> dense_pairs(NormalizedGraph& graph, int64_t k) {
  const int64_t n = graph.n();
  const std::vector<double>& trivial = graph.trivial();
  std::vector<double> m(n * n), unit(n), column(n);
  for (int64_t j = 0; j < n; ++j) {
    unit[j] = 1;
    graph.multiply(unit.data(), column.data(), 1);
    unit[j] = 0;
    // Moves the trivial pair to theta = -2, below all others.
    for (int64_t i = 0; i < n; ++i) m[j * n + i] = column[i] - 3 * trivial[i] * trivial[j];
  }
  graph.reset_products();
  const SymmetricEigen eigen = symmetric_eigen(std::move(m), n);
  std::vector<Pair> pairs;
  for (int64_t i = 0; i < k; ++i) {
    const auto row = eigen.vectors.begin() + i * n;
    pairs.push_back({eigen.values[i], gap_of(eigen.values, i, n - 1), {row, row + n}});
  }
  return pairs;
}

// The k pairs of largest theta, descending.
std::vector<Pair> leading_pairs(NormalizedGraph& graph, Lanczos& lanczos, int64_t k) {
  if (graph.n() <= kDense) return dense_pairs(graph, k);
  std::vector<Pair> pairs = lanczos.leading_pairs(k, k > 1 ? kStarts : 1);
  if (k + 1 >= graph.n() || !has_repeated(pairs)) return pairs;
  // Copies of eigenvalues that the space had no room for are orthogonal to the pairs.
  while (true) {
    lanczos.lock(pairs);
    Pair missed = std::move(lanczos.leading_pairs(1, 1).front());
    const double below = pairs.back().theta - missed.theta;
    pairs.back().gap = std::min(pairs.back().gap, std::abs(below));
    if (below >= -kBreakdown) break;
    merge(pairs, std::move(missed));
  }
  lanczos.lock({});
  return pairs;
}

// One more product: y <- M y / |M y|. What is left of the start vector among patches with equal
// rows vanishes, so that they get equal entries, to the bit. Returns the residuals of the new y.
std::vector<double> polish(NormalizedGraph& graph, const Lanczos& lanczos,
                           std::vector<Pair>& pairs) {
  const int64_t n = graph.n();
  std::vector<double> y, image(pairs.size() * n), moved, image_of_moved;
  for (const auto& pair : pairs) y.insert(y.end(), pair.y.begin(), pair.y.end());
  graph.multiply(y.data(), image.data(), static_cast<int64_t>(pairs.size()));
  const auto moves = [](const Pair& pair) { return std::abs(pair.theta) > 0.01; };
  for (size_t i = 0; i < pairs.size(); ++i) {
    if (!moves(pairs[i])) continue;
    double* next = image.data() + i * n;
    lanczos.project(next);
    graph.normalize(next);
    pairs[i].y.assign(next, next + n);
    moved.insert(moved.end(), next, next + n);
  }
  image_of_moved.resize(moved.size());
  graph.multiply(moved.data(), image_of_moved.data(), static_cast<int64_t>(moved.size()) / n);
  std::vector<double> residuals;
  double* next = image_of_moved.data();
  for (size_t i = 0; i < pairs.size(); ++i) {
    Pair& pair = pairs[i];
    double* my = image.data() + i * n;
    if (moves(pair)) std::copy_n(std::exchange(next, next + n), n, my);
    pair.theta = graph.dot(pair.y.data(), my);
    graph.axpy(-pair.theta, pair.y.data(), my);
    residuals.push_back(graph.norm(my));
  }
  return residuals;
}

// --- Signs ---

// Turns the pair so that its entry with this value becomes positive.
void orient(Pair& pair, double entry) {
  if (entry < 0)
    for (double& y : pair.y) y = -y;
}

// Makes the entry of x with the largest magnitude positive.
void orient_by_peak(const NormalizedGraph& graph, Pair& pair) {
  const auto x = [&](int64_t j) { return graph.scale()[j] * pair.y[j]; };
  orient(pair, x(first_peak(graph.n(), [&](int64_t j) { return std::abs(x(j)); })));
}

// Makes v orthogonal to the others and of norm 1; false if only rounding is left of it.
bool orthogonalize(const NormalizedGraph& graph, std::vector<double>& v,
                   const std::vector<std::vector<double>>& others) {
  for (int pass = 0; pass < 2; ++pass)
    for (const auto& other : others) graph.remove(other.data(), v.data());
  if (graph.norm(v.data()) <= kBreakdown) return false;
  graph.normalize(v.data());
  return true;
}

// Gives each pair the sign that LAPACK would give it, after `polish`.
//
// xSYGVX makes C = I - M tridiagonal by reflections, C = Q T Q^T with Q e_1 = e_1, and xSTEIN
// makes the entry of largest magnitude of T's eigenvector z = Q^T y positive. The columns of Q
// are, up to sign, the Lanczos vectors of M from e_1, whose space contains nearly all of y after a
// few steps. No unknown entry of z exceeds the norm of what is left of y: a known entry that is
// larger is the largest. If the space ends earlier, y is orthogonal to it: T falls apart, LAPACK's
// sign is that of a rounding error, and the peak's sign is as good. Only the very last column is
// known even then, as there is one direction left.
void orient_as_lapack(NormalizedGraph& graph, std::vector<Pair>& pairs) {
  const int64_t n = graph.n(), most = std::min(kSignVectors, n);
  std::vector<std::vector<double>> columns;
  std::vector<double> next(n), factors;
  std::vector<LargestEntry> entries(pairs.size());
  next[0] = 1;
  bool certain = false;
  while (true) {
    if (!orthogonalize(graph, next, columns)) {
      if (static_cast<int64_t>(columns.size()) != n - 1 || n > most) break;
      const auto open = [](const LargestEntry& entry) { return !entry.certain(); };
      next = pairs[std::find_if(entries.begin(), entries.end(), open) - entries.begin()].y;
      if (!orthogonalize(graph, next, columns)) break;
    }
    columns.push_back(next);
    const auto index = static_cast<int64_t>(columns.size()) - 1;
    factors.resize(index * most);
    // Reflections leave the first entry alone: the first column is e_1.
    const auto entry = [&](int64_t i, int64_t j) { return columns[j + 1][i + 1]; };
    const double sign =
        index == 0 ? 1 : column_sign(index - 1, index == n - 1, entry, factors.data(), most);
    certain = true;
    for (size_t i = 0; i < pairs.size(); ++i) {
      entries[i].add(sign * graph.dot(next.data(), pairs[i].y.data()));
      certain = certain && entries[i].certain();
    }
    if (certain || index == most - 1) break;
    if (index == 0) graph.multiply_first(next.data());
    else graph.multiply(columns.back().data(), next.data(), 1);
  }
  const bool ended = !certain && static_cast<int64_t>(columns.size()) < most;
  for (size_t i = 0; i < pairs.size(); ++i)
    if (entries[i].certain() || !ended) orient(pairs[i], entries[i].value);
    else orient_by_peak(graph, pairs[i]);
}

void solve(const FiedlerParams& p, int64_t image, Workers& workers) {
  const int64_t n = p.graphs[image].n;
  NormalizedGraph graph(p.graphs[image], p.degrees + image * n, workers);
  Lanczos lanczos(graph);
  std::vector<Pair> pairs = leading_pairs(graph, lanczos, p.k);
  const std::vector<double> residuals = polish(graph, lanczos, pairs);
  if (p.sign == Sign::kLapack) orient_as_lapack(graph, pairs);
  else
    for (Pair& pair : pairs) orient_by_peak(graph, pair);
  for (int64_t i = 0; i < p.k; ++i) {
    const int64_t at = image * p.k + i;
    p.residuals[at] = residuals[i];
    p.eigenvalues[at] = 1 - pairs[i].theta;
    p.gaps[at] = pairs[i].gap;
    double* x = p.vectors + at * n;
    for (int64_t j = 0; j < n; ++j) x[j] = graph.scale()[j] * pairs[i].y[j];
  }
  p.iterations[image] = graph.products();
}

}  // namespace

void fiedler(const FiedlerParams& p, const Context& context) {
  const int64_t n = p.graphs[0].n;
  const double work =
      kProducts * static_cast<double>(p.k) * static_cast<double>(n * (n + kTile) / 8);
  for_each_image(p.batch, work, context,
                 [&](int64_t image, Workers& workers) { solve(p, image, workers); });
}

}  // namespace selfment::cpu
