// The steps of Iterative Patch Optimization, by a team of blocks.
//
// A step scores rows by a warp each: the unrounded row, in float32. Only if that score is too close
// to 0 does it score the rounded row, in double. It skips a row whose last score is farther from 0
// than the direction has moved since. The rows whose labels changed are then added to the class
// sums, in an order that does not depend on the team's size.
#pragma once

#include "class_means.cuh"

namespace selfment::cuda {

template <class T>
class Optimizer {
 public:
  __device__ Optimizer(const IpoArgs& a, Team& team, int64_t number, unsigned char* shared)
      : means_(a, team, number), tally_(reinterpret_cast<Tally*>(shared)) {}

  __device__ void run(int64_t image) {
    const IpoArgs& a = args();
    means_.start(image);
    labels_ = a.p.labels + image * a.p.n;
    known_ = a.known == nullptr ? nullptr : a.known + image * a.p.n;
    const int64_t steps = optimize();
    if (team().rank() == 0 && threadIdx.x == 0) {
      a.p.steps[image] = steps;
      a.p.separation[image] = separation_;
    }
    team().sync();  // before the memory serves the next image
  }

  // Does a step's part for the rows of a block, which are the image here, and adds its counts to
  // the state. At the `begin` the rows are new, and the class sums of the first block are `fresh`.
  __device__ void pass(bool begin, bool fresh) {
    means_.resume();
    labels_ = args().p.labels;
    const Tally counts = begin ? start() : score();
    means_.sum_changes(begin, fresh);
    if (team().rank() > 0 || threadIdx.x > 0) return;
    Tally& all = args().state->counts;
    all.foreground += counts.foreground;
    all.changed += counts.changed;
    all.bad += counts.bad;
  }

  // Ends a step of all rows, whose counts are in the state: makes the direction, and exchanges the
  // classes if it has turned over.
  __device__ void turn(bool begin) {
    means_.resume();
    labels_ = args().p.labels;
    const int64_t n = args().p.n;
    Tally counts = args().state->counts;
    if (uniform(counts.foreground)) return;
    if (means_.set_direction(counts.foreground, begin) < 0) {
      complement();
      counts.foreground = n - counts.foreground;
      counts.changed = n - counts.changed;
    }
    if (team().rank() == 0 && threadIdx.x == 0)
      *args().state = {counts, means_.square_length(), means_.way()};
  }

 private:
  // Moves the labels to a fixed point and measures the separation; returns the steps taken.
  __device__ int64_t optimize() {
    const int64_t n = args().p.n;
    Tally counts = start();
    if (counts.bad > 0) {
      set_labels([](bool) { return false; });
      separation_ = NAN;
      return 0;
    }
    separation_ = 0;
    if (uniform(counts.foreground)) return 0;
    means_.sum_changes(true, true);
    means_.set_direction(counts.foreground, true);
    int64_t steps = 0;
    while (steps < args().p.iters &&
           min(counts.foreground, n - counts.foreground) >= args().p.min_count) {
      ++steps;
      counts = score();
      if (uniform(counts.foreground)) return steps;
      if (counts.changed == 0) break;
      means_.sum_changes(false, false);
      if (means_.set_direction(counts.foreground, false) >= 0) continue;
      complement();
      if (counts.changed == n) break;
      counts.foreground = n - counts.foreground;
    }
    separation_ = sqrt(means_.square_length());
    return steps;
  }

  // Notes the norms of the rows, and all of them as changes.
  __device__ Tally start() {
    const auto unread = [](int64_t) { return true; };
    return tally_rows(unread, [this](int64_t i, Tally& mine) {
      const double norm =
          known_ != nullptr ? known_[i] : norm_of(warp_length(means_.row(i), args().p.d, lane()));
      const bool label = labels_[i];
      if (lane() == 0) {
        means_.norms()[i] = norm;
        means_.until()[i] = -INFINITY;
        means_.changes()[i] = label ? 1 : -1;
      }
      mine.foreground += label ? 1 : 0;
      mine.bad += isfinite(norm) ? 0 : 1;
    });
  }

  __device__ bool uniform(int64_t foreground) const {
    return foreground == 0 || foreground == args().p.n;
  }

  // --- Rows: a warp for each ---

  // Calls wanted(i) for each of the block's own rows, by one lane, and if it returns true
  // body(i, tally), by a warp. The other rows only count in the foreground, by their labels. All
  // threads get the sum of the team's tallies, and see what the first lanes wrote in body.
  template <class Wanted, class Body>
  __device__ Tally tally_rows(const Wanted& wanted, const Body& body) {
    Tally mine{};
    const int64_t last = team().last(args().p.n);
    for (int64_t i0 = team().first(args().p.n) + warp(); i0 < last; i0 += kIpoWarps * kWarp) {
      const int64_t own = i0 + lane() * kIpoWarps;
      const bool exists = own < last, chosen = exists && wanted(own);
      const bool label = exists && !chosen && labels_[own];
      mine.foreground += __popc(__ballot_sync(kAllLanes, label ? 1 : 0));
      for (unsigned rest = __ballot_sync(kAllLanes, chosen ? 1 : 0); rest != 0; rest &= rest - 1)
        body(i0 + ClassMeans<T>::first_lane(rest) * kIpoWarps, mine);
    }
    if (lane() == 0) tally_[warp()] = mine;  // the last tallies were read before the team met
    __syncthreads();
    Tally* tallies = means_.tallies();
    if (threadIdx.x == 0) tallies[team().rank()] = total(tally_, kIpoWarps);
    team().sync();
    return total(tallies, static_cast<int>(args().team_size));
  }

  __device__ static Tally total(const Tally* tallies, int count) {
    Tally sum{};
    for (int i = 0; i < count; ++i) {
      sum.foreground += tallies[i].foreground;
      sum.changed += tallies[i].changed;
      sum.bad += tallies[i].bad;
    }
    return sum;
  }

  // Sets the block's own labels to label(old label). The team has met since labels were read, and
  // meets before they are read again.
  template <class Label>
  __device__ void set_labels(const Label& label) {
    const int64_t last = team().last(args().p.n);
    for (int64_t i = team().first(args().p.n) + threadIdx.x; i < last; i += kIpoThreads)
      labels_[i] = label(labels_[i]);
  }

  // Sets the labels by the direction.
  __device__ SELFMENT_CALL Tally score() {
    const double relative = score_error();
    const double margin = sqrt(means_.square_length()) * relative + 2 * kIpoTie;
    // Bounds the errors of two scores together, this one and a later one: a direction is the
    // difference of two means of rows of norm 1 + 2u or less. 1.001 covers that norm and the
    // rounding of the way.
    const double twice = 2 * (2.001 * relative + 2 * kIpoTie), way = means_.way();
    const auto unsure = [=](int64_t i) {
      means_.changes()[i] = 0;
      return !(way < means_.until()[i]);
    };
    return tally_rows(unsure, [=](int64_t i, Tally& mine) {
      const T* x = means_.row(i);
      const double norm = means_.norms()[i];
      double score = fast_score(x) / norm;
      // The sum might overflow for norms beyond 1e15.
      if (!(fabs(score) > margin) || norm > 1e15) score = exact_score(x, norm);
      const bool label = score > kIpoTie, changed = label != labels_[i];
      __syncwarp();
      if (lane() == 0) {
        means_.until()[i] = way + (fabs(score) - twice) / 1.001;
        if (changed) means_.changes()[i] = label ? 1 : -1;
        labels_[i] = label;
      }
      mine.foreground += label ? 1 : 0;
      mine.changed += changed ? 1 : 0;
    });
  }

  // |fast_score / norm - <f, direction>| <= score_error() |direction|. It covers the errors that
  // the CPU twin has, and the roundings of w, of a lane's sums, of d / kWarp products and a piece's
  // at most, and of their sum over the lanes.
  __device__ double score_error() const {
    return static_cast<double>(args().p.d / kWarp + kPieceSize<T> + 16) * kUnit;
  }

  // <x, direction> of the unrounded row, in float32.
  __device__ float fast_score(const T* x) const {
    const float* w = means_.rounded_direction();
    float sums[kInFlight] = {};
    for_pieces(x, args().p.d, lane(), [&](int u, int64_t k, const uint4& piece) {
      const auto add = [&](int e, float v) {
        sums[u] = fmaf(to_float(element<T>(piece, e)), v, sums[u]);
      };
#pragma unroll
      for (int e = 0; e < kPieceSize<T>; e += 4) {
        if constexpr (kPieceSize<T> == 2) {
          const float2 v = *reinterpret_cast<const float2*>(w + k);
          add(0, v.x);
          add(1, v.y);
        } else {
          const float4 v = *reinterpret_cast<const float4*>(w + k + e);
          add(e, v.x);
          add(e + 1, v.y);
          add(e + 2, v.z);
          add(e + 3, v.w);
        }
      }
    });
    return warp_sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }

  // <f, direction> of the rounded row, in double.
  __device__ SELFMENT_CALL double exact_score(const T* x, double norm) const {
    const Divisor<T> divided(norm);
    double sum = 0;
    for (int64_t k = lane(); k < args().p.d; k += kWarp)
      sum += double{divided(x[k])} * means_.direction()[k];
    return warp_sum(sum);
  }

  // Exchanges the classes.
  __device__ SELFMENT_CALL void complement() {
    set_labels([](bool label) { return !label; });
    means_.exchange();
  }

  __device__ const IpoArgs& args() const { return means_.args(); }
  __device__ Team& team() const { return means_.team(); }
  __device__ static int lane() { return ClassMeans<T>::lane(); }
  __device__ static int warp() { return ClassMeans<T>::warp(); }

  ClassMeans<T> means_;
  Tally* tally_;  // shared, (kIpoWarps,)
  bool* labels_ = nullptr;
  const double* known_ = nullptr;  // (n,), the norms if they are known
  double separation_ = 0;          // the distance of the class means, NaN for bad rows
};

}  // namespace selfment::cuda
