// Iterative Patch Optimization: a patch belongs to the class whose mean it is closer to.
//
// A step reads the features once: it scores a row, <f, mu_f - mu_b>, and adds the row to the class
// sums if its label changed. The score is computed from the unrounded row; f, the normalised row
// rounded to float32, is computed only if the score is too close to 0, and for the sums.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <type_traits>
#include <vector>

#include "simd.h"
#include "workers.h"

namespace selfment::cpu {

namespace {

// Rows are summed in this many parts for any number of threads, so that the sums do not depend on
// it.
constexpr int64_t kParts = 16;
constexpr double kSweeps = 4;  // through the features, roughly

// More than twice the margin of a score in `step`, for directions of norm up to 2 + 1e-6.
constexpr double kMostMargin = 6e-7;

constexpr int64_t kCheckEvery = 256;  // rows between two looks for an interruption

template <class T>
class Optimizer {
 public:
  Optimizer(const IpoParams& p, int64_t image, Workers& workers)
      : p_(p),
        workers_(workers),
        rows_(static_cast<const T*>(p.features) + (p.blocks == nullptr ? image * p.n * p.d : 0)),
        block_rows_(p.blocks == nullptr ? p.n : p.blocks->rows),
        labels_(p.labels + image * p.n),
        norms_(p.n),
        foreground_(p.d),
        background_(p.d),
        direction_(p.d),
        before_(p.d),
        scores_(p.n),
        seen_(p.n, -infinity()),
        parts_(kParts * 2 * p.d),
        changed_(kParts) {}

  // Runs IPO. Returns the first row whose norm is not finite, or -1.
  int64_t run(int64_t* steps, double* separation) {
    *steps = 0;
    *separation = 0;
    sum_rows([&](int64_t i, double* foreground, double* background) {
      norms_[i] = kernels_.norm(row(i), p_.d);
      add(i, 1, labels_[i] ? foreground : background);
      return false;
    });
    for (int64_t i = 0; i < p_.n; ++i)
      if (!std::isfinite(norms_[i])) return i;
    if (uniform()) return -1;
    set_direction();
    const std::vector<double> reference = direction_;
    while (*steps < p_.iters && std::min(count_, p_.n - count_) >= p_.min_count) {
      ++*steps;
      int64_t changed = step();
      if (uniform()) return -1;
      set_direction();
      if (simd_.dot(direction_.data(), reference.data(), p_.d) < 0) {
        complement();
        changed = p_.n - changed;
      }
      if (changed == 0) break;
    }
    *separation = length();
    return -1;
  }

 private:
  // Row i, of the block that is read.
  const T* row(int64_t i) const { return rows_ + (i - first_) * p_.d; }

  // Makes the block that begins with row `first` the one that is read.
  void read_block(int64_t first) {
    if (p_.blocks == nullptr) return;
    rows_ = static_cast<const T*>(p_.blocks->read(p_.blocks->source, first / block_rows_));
    if (rows_ == nullptr) throw Interrupted();
    first_ = first;
  }

  void add(int64_t i, double sign, double* sum) const {
    kernels_.add_rounded(row(i), norms_[i], sign, p_.d, sum);
  }

  // Counts the foreground; true if all labels are the same.
  bool uniform() {
    count_ = std::count(labels_, labels_ + p_.n, true);
    return count_ == 0 || count_ == p_.n;
  }

  // Calls body(row, foreground sum, background sum) for each row, on all threads, and adds the sums
  // to the class sums. Returns the number of rows for which body returned true.
  template <class Body>
  int64_t sum_rows(const Body& body) {
    int64_t hits = 0;
    for (int64_t first = 0; first < p_.n; first += block_rows_) {
      read_block(first);
      hits += sum_block(first, std::min(block_rows_, p_.n - first), body);
    }
    return hits;
  }

  template <class Body>
  int64_t sum_block(int64_t first, int64_t count, const Body& body) {
    std::fill(parts_.begin(), parts_.end(), 0.0);
    workers_.parallel_for(kParts, static_cast<double>(count * p_.d), [&](int64_t part) {
      double* sums = parts_.data() + part * 2 * p_.d;
      int64_t hits = 0;
      const int64_t end = first + (part + 1) * count / kParts;
      for (int64_t i = first + part * count / kParts; i < end; ++i) {
        if (i % kCheckEvery == 0) workers_.check();
        hits += body(i, sums, sums + p_.d);
      }
      changed_[part] = hits;
    });
    for (int64_t part = 0; part < kParts; ++part) {
      const double* sums = parts_.data() + part * 2 * p_.d;
      simd_.axpy(1, sums, p_.d, foreground_.data());
      simd_.axpy(1, sums + p_.d, p_.d, background_.data());
    }
    return std::accumulate(changed_.begin(), changed_.end(), int64_t{0});
  }

  static double infinity() { return std::numeric_limits<double>::infinity(); }

  double length() const { return std::sqrt(simd_.dot(direction_.data(), direction_.data(), p_.d)); }

  // Makes the direction, which is the difference of the class means, and adds its move to the way.
  void set_direction() {
    before_ = direction_;
    const auto count = static_cast<double>(count_), others = static_cast<double>(p_.n - count_);
    for (int64_t k = 0; k < p_.d; ++k)
      direction_[k] = foreground_[k] / count - background_[k] / others;
    simd_.axpy(-1, direction_.data(), p_.d, before_.data());
    way_ += std::sqrt(simd_.dot(before_.data(), before_.data(), p_.d));
  }

  // Sets the labels by the direction and updates the class sums; returns how many labels changed.
  int64_t step() {
    // |<x, w> / norm - <f, w>| <= u |f| |w|, as f is x / norm with a relative error of u = 2^-24 in
    // each element. Twice that bound, and twice the tie, cover the rounding of the sums in double.
    const double margin = std::ldexp(length(), -23) + 2 * kIpoTie;
    return sum_rows([&, margin](int64_t i, double* foreground, double* background) {
      // 1.001 covers |f| <= 1 + 2u and the rounding of the way. kMostMargin covers the errors of
      // the last score and of this one, as directions have a norm of 2 at most.
      const double moved = 1.001 * (way_ - seen_[i]) + kMostMargin;
      if (scores_[i] > moved) return false;
      double score = kernels_.dot(row(i), direction_.data(), p_.d) / norms_[i];
      if (std::abs(score) <= margin)
        score = kernels_.rounded_dot(row(i), norms_[i], direction_.data(), p_.d);
      scores_[i] = std::abs(score);
      seen_[i] = way_;
      const bool label = score > kIpoTie;
      if (label == labels_[i]) return false;
      labels_[i] = label;
      add(i, label ? 1 : -1, foreground);
      add(i, label ? -1 : 1, background);
      return true;
    });
  }

  void complement() {
    for (int64_t i = 0; i < p_.n; ++i) labels_[i] = !labels_[i];
    count_ = p_.n - count_;
    std::swap(foreground_, background_);
    for (double& v : direction_) v = -v;
  }

  const IpoParams& p_;
  Workers& workers_;
  const Simd& simd_ = simd();
  const Rows<T>& kernels_ = simd_.rows<T>();
  const T* rows_;  // of the block that is read, from row first_ on
  int64_t first_ = 0, block_rows_;
  bool* labels_;
  std::vector<double> norms_, foreground_, background_, direction_, before_;
  std::vector<double> scores_, seen_;  // each row's last |score|, and the way at that time
  double way_ = 0;                     // how far the direction has moved so far
  std::vector<double> parts_;          // (kParts, 2, d), the sums of a part: foreground, background
  std::vector<int64_t> changed_;
  int64_t count_ = 0;
};

}  // namespace

int64_t ipo(const IpoParams& p, const Context& context) {
  std::vector<int64_t> bad(p.batch);
  const double work = kSweeps * static_cast<double>(p.n * p.d);
  for_each_image(p.batch, work, context, [&](int64_t image, Workers& workers) {
    bad[image] = with_dtype(p.dtype, [&](auto* typed) {
      return Optimizer<std::decay_t<decltype(*typed)>>(p, image, workers)
          .run(p.steps + image, p.separation + image);
    });
  });
  return first_row(bad, p.n);
}

}  // namespace selfment::cpu
