// Iterative Patch Optimization: a patch belongs to the class whose mean it is closer to. A team of
// blocks does all steps of an image and stops at the fixed point.
//
// A step scores rows, a warp each, as they are given, in float32. Only where that is too close to 0
// to tell is the rounded row scored in double, and a row is left unread where the last score is
// farther from 0 than the direction has moved since. The rows whose labels changed are then added
// to the class sums, in an order that no team changes.
#include "norms.cuh"
#include "scratch.h"
#include "team.cuh"

namespace selfment::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int64_t kParts = 16;  // parts of the rows that are summed apart

template <class T>
constexpr int64_t kChunk = int64_t{kPieceSize<T>} * kWarp;  // columns of a warp

// What a block counted in its rows.
struct Tally {
  int64_t foreground, changed, bad;
};

struct Args {
  IpoParams p;
  const double* known;  // (batch, n), the norms; nullptr where they are to be computed
  int64_t chunks;       // of columns
  int64_t padded;       // d, to a multiple of a piece
  int64_t teams, team_size;
  unsigned* arrivals;  // (teams,)
  // Of each team, one after the other:
  double* norms;         // (n,)
  double* until;         // (n,), how far the direction may go before the label could change
  signed char* changes;  // (n,), +1: to the foreground, -1: to the background
  int* touched;          // (2, kParts), whether there are changes in a part
  double* parts;         // (2, kParts, d), their sums; at the start those of the classes
  double* sums;          // (2, d)
  double* first;         // (d,), the first direction
  double* direction;     // (d,), the difference of the class means
  float* rounded;        // (padded,), that in float32, then 0
  double* products;      // (3, chunks): see Products
  Tally* tallies;        // (team_size,)
};

template <class T>
class Optimizer {
 public:
  __device__ Optimizer(const Args& a, Team& team, int64_t number, unsigned char* shared)
      : a_(a), team_(team), number_(number), tally_(reinterpret_cast<Tally*>(shared)) {}

  __device__ void run(int64_t image) {
    rows_ = static_cast<const T*>(a_.p.features) + image * a_.p.n * a_.p.d;
    labels_ = a_.p.labels + image * a_.p.n;
    known_ = a_.known == nullptr ? nullptr : a_.known + image * a_.p.n;
    const int64_t steps = optimize();
    if (team_.rank() == 0 && threadIdx.x == 0) {
      a_.p.steps[image] = steps;
      a_.p.separation[image] = sqrt(length_);
    }
    team_.sync();  // before the memory serves the next image
  }

 private:
  // Steps taken; length_ is then that of the final labels.
  __device__ int64_t optimize() {
    const int64_t n = a_.p.n;
    way_ = length_ = 0;
    const auto unread = [](int64_t) { return true; };
    Tally found = tally_rows(unread, [this](int64_t i, Tally& mine) {
      const double norm =
          known_ != nullptr ? known_[i] : norm_of(warp_length(row(i), a_.p.d, lane()));
      const bool label = labels_[i];
      if (lane() == 0) {
        norms()[i] = norm;
        until()[i] = -INFINITY;
        changes()[i] = label ? 1 : -1;
      }
      mine.foreground += label ? 1 : 0;
      mine.bad += isfinite(norm) ? 0 : 1;
    });
    if (found.bad > 0) {
      set_labels([](bool) { return false; });
      length_ = NAN;
      return 0;
    }
    if (uniform(found.foreground)) return 0;
    sum_changes(true);
    set_direction(found.foreground, true);
    int64_t steps = 0;
    while (steps < a_.p.iters && min(found.foreground, n - found.foreground) >= a_.p.min_count) {
      ++steps;
      found = score();
      if (uniform(found.foreground)) length_ = 0;
      if (uniform(found.foreground) || found.changed == 0) break;
      sum_changes(false);
      if (set_direction(found.foreground, false) >= 0) continue;
      complement();
      if (found.changed == n) break;
      found.foreground = n - found.foreground;
    }
    return steps;
  }

  __device__ bool uniform(int64_t foreground) const {
    return foreground == 0 || foreground == a_.p.n;
  }

  // --- Rows: a warp for each ---

  // Calls wanted(i) for the block's own rows, by a lane each, and body(i, tally) for those of which
  // that is true; all get the sum of the team's tallies. Labels of the others count as they are.
  // What body's first lanes wrote is seen by the whole team.
  template <class Wanted, class Body>
  __device__ Tally tally_rows(const Wanted& wanted, const Body& body) {
    Tally mine{};
    const int64_t last = team_.last(a_.p.n);
    for (int64_t i0 = team_.first(a_.p.n) + warp(); i0 < last; i0 += kWarps * kWarp) {
      const int64_t own = i0 + lane() * kWarps;
      const bool exists = own < last, chosen = exists && wanted(own);
      const bool label = exists && !chosen && labels_[own];
      mine.foreground += __popc(__ballot_sync(kAllLanes, label ? 1 : 0));
      for (unsigned rest = __ballot_sync(kAllLanes, chosen ? 1 : 0); rest != 0; rest &= rest - 1)
        body(i0 + first_lane(rest) * kWarps, mine);
    }
    if (lane() == 0) tally_[warp()] = mine;  // the last ones were read before the team met
    __syncthreads();
    Tally* tallies = a_.tallies + number_ * a_.team_size;
    if (threadIdx.x == 0) tallies[team_.rank()] = total(tally_, kWarps);
    team_.sync();
    return total(tallies, static_cast<int>(a_.team_size));
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

  // The team has met since labels were read, and meets before they are read again.
  template <class Label>
  __device__ void set_labels(const Label& label) {
    const int64_t last = team_.last(a_.p.n);
    for (int64_t i = team_.first(a_.p.n) + threadIdx.x; i < last; i += kThreads)
      labels_[i] = label(labels_[i]);
  }

  // New labels from the direction.
  __device__ SELFMENT_CALL Tally score() {
    const double relative = score_error();
    const double margin = sqrt(length_) * relative + 2 * kIpoTie;
    // The most that two scores can be off by, this one and one to come: a direction is the
    // difference of two means of rows of norm 1 + 2u or less. 1.001 covers that norm and the
    // rounding of the way.
    const double twice = 2 * (2.001 * relative + 2 * kIpoTie), way = way_;
    const auto unsure = [=](int64_t i) {
      changes()[i] = 0;
      return !(way < until()[i]);
    };
    return tally_rows(unsure, [=](int64_t i, Tally& mine) {
      const T* x = row(i);
      const double norm = norms()[i];
      double score = fast_score(x) / norm;
      // 1e15: beyond that the sum might overflow.
      if (!(fabs(score) > margin) || norm > 1e15) score = exact_score(x, norm);
      const bool label = score > kIpoTie, changed = label != labels_[i];
      __syncwarp();
      if (lane() == 0) {
        until()[i] = way + (fabs(score) - twice) / 1.001;
        if (changed) changes()[i] = label ? 1 : -1;
        labels_[i] = label;
      }
      mine.foreground += label ? 1 : 0;
      mine.changed += changed ? 1 : 0;
    });
  }

  // |fast_score / norm - <f, direction>| <= score_error() |direction|: as in the CPU twin, and for
  // the roundings of w, of a lane's sums of up to d / kWarp and a piece's products in all, and of
  // their sum over the lanes.
  __device__ double score_error() const {
    return static_cast<double>(a_.p.d / kWarp + kPieceSize<T> + 16) * kUnit;
  }

  __device__ float fast_score(const T* x) const {
    const float* w = rounded_direction();
    float sums[kInFlight] = {};
    for_pieces(x, a_.p.d, lane(), [&](int u, int64_t k, const uint4& piece) {
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

  __device__ SELFMENT_CALL double exact_score(const T* x, double norm) const {
    const Divisor<T> divided(norm);
    double sum = 0;
    for (int64_t k = lane(); k < a_.p.d; k += kWarp) sum += double{divided(x[k])} * direction()[k];
    return warp_sum(sum);
  }

  // --- Columns: a warp for a chunk of them ---

  // Sums the changes: the rows that joined the foreground, minus those that left it. At the `start`
  // it sums the rows of each class. A task of a warp is a chunk of columns of a part of the rows.
  __device__ SELFMENT_CALL void sum_changes(bool start) {
    const int64_t d = a_.p.d, tasks = a_.chunks * kParts * (start ? 2 : 1);
    for (int64_t task = team_.first(tasks) + warp(); task < team_.last(tasks); task += kWarps) {
      const int64_t chunk = task % a_.chunks, side = task / a_.chunks / kParts;
      const int64_t part = task / a_.chunks % kParts;
      const int64_t k0 = chunk * kChunk<T> + lane() * kPieceSize<T>;
      double sums[kPieceSize<T>] = {};
      const bool touched = sum_part(part, side, start, k0, sums);
      if (chunk == 0 && lane() == 0) this->touched()[side * kParts + part] = touched ? 1 : 0;
      if (!touched) continue;
      double* to = parts(side, part);
#pragma unroll
      for (int e = 0; e < kPieceSize<T>; ++e)
        if (k0 + e < d) to[k0 + e] = sums[e];
    }
    team_.sync();
  }

  // Adds the changed rows of a part to the sums of a lane's columns, which are a piece from k0 on.
  // At the `start` these are the rows of the class `side`. False if there are none.
  __device__ bool sum_part(int64_t part, int64_t side, bool start, int64_t k0,
                           double (&sums)[kPieceSize<T>]) const {
    const int64_t n = a_.p.n, last = (part + 1) * n / kParts;
    bool touched = false;
    for (int64_t i0 = part * n / kParts; i0 < last; i0 += kWarp) {
      const bool exists = i0 + lane() < last;
      const int change = exists ? changes()[i0 + lane()] : 0;
      const bool wanted = change != 0 && (!start || (change > 0) == (side == 0));
      const unsigned wants = __ballot_sync(kAllLanes, wanted ? 1 : 0);
      if (wants == 0) continue;
      const unsigned leave = __ballot_sync(kAllLanes, !start && change < 0 ? 1 : 0);
      const Divisor<T> own(exists ? norms()[i0 + lane()] : 1);
      touched = true;
      add_rows(i0, k0, wants, leave, own, sums);
    }
    return touched;
  }

  // Adds those of 32 rows from i0 on whose bit is set in `wants`; those in `leave` are subtracted.
  // `own` is the divisor of the lane's row.
  __device__ void add_rows(int64_t i0, int64_t k0, unsigned wants, unsigned leave,
                           const Divisor<T>& own, double (&sums)[kPieceSize<T>]) const {
    for (unsigned next = wants, rest = wants; rest != 0;) {
      uint4 pieces[kInFlight];
#pragma unroll
      for (int u = 0; u < kInFlight; ++u) {
        pieces[u] = next == 0 ? uint4{} : load_piece(row(i0 + first_lane(next)), k0, a_.p.d);
        next &= next - 1;
      }
#pragma unroll
      for (int u = 0; u < kInFlight; ++u) {
        if (rest == 0) break;
        const int from = first_lane(rest);
        const Divisor<T> divided = own.of_lane(from);
#pragma unroll
        for (int e = 0; e < kPieceSize<T>; ++e) {
          const float f = divided(element<T>(pieces[u], e));
          sums[e] += (leave >> from & 1) != 0 ? -f : f;
        }
        rest &= rest - 1;
      }
    }
  }

  // Inner products of the direction with the first one and with itself, and of its last move with
  // itself.
  struct Products {
    double with_first = 0, with_itself = 0, moved = 0;
  };

  // Makes the direction, which is the difference of the class means, from the sums and their
  // changes; `count` rows are foreground. Returns its inner product with the first direction.
  __device__ SELFMENT_CALL double set_direction(int64_t count, bool start) {
    for (int64_t chunk = team_.first(a_.chunks) + warp(); chunk < team_.last(a_.chunks);
         chunk += kWarps) {
      Products mine;
      for (int64_t k = chunk * kChunk<T> + lane(); k < min((chunk + 1) * kChunk<T>, a_.padded);
           k += kWarp) {
        if (k < a_.p.d) set_entry(k, count, start, mine);
        else rounded_direction()[k] = 0;
      }
      share_products(chunk, mine);
    }
    team_.sync();
    return add_products();
  }

  // Updates the class sums of column k and makes its entry of the direction; adds to `mine`.
  __device__ void set_entry(int64_t k, int64_t count, bool start, Products& mine) {
    const int64_t d = a_.p.d;
    double* sums = a_.sums + number_ * 2 * d;
    double foreground = start ? 0 : sums[k], background = start ? 0 : sums[d + k];
    for (int64_t part = 0; part < kParts; ++part) {
      if (touched()[part] != 0) {
        foreground += parts(0, part)[k];
        if (!start) background -= parts(0, part)[k];
      }
      if (start && touched()[kParts + part] != 0) background += parts(1, part)[k];
    }
    sums[k] = foreground;
    sums[d + k] = background;
    const double w =
        foreground / static_cast<double>(count) - background / static_cast<double>(a_.p.n - count);
    const double change = start ? 0 : w - direction()[k];
    direction()[k] = w;
    rounded_direction()[k] = static_cast<float>(w);
    if (start) first()[k] = w;
    mine.with_first += w * first()[k];
    mine.with_itself += w * w;
    mine.moved += change * change;
  }

  // Leaves the products of a warp's chunk of columns where the team sees them.
  __device__ void share_products(int64_t chunk, const Products& mine) const {
    const double with_first = warp_sum(mine.with_first);
    const double with_itself = warp_sum(mine.with_itself), moved = warp_sum(mine.moved);
    if (lane() != 0) return;
    products(0)[chunk] = with_first;
    products(1)[chunk] = with_itself;
    products(2)[chunk] = moved;
  }

  // Adds up the chunks' products: sets the length of the direction and how far it has gone. Returns
  // its inner product with the first one.
  __device__ double add_products() {
    double with_first = 0, moved = 0;
    length_ = 0;
    for (int64_t chunk = 0; chunk < a_.chunks; ++chunk) {
      with_first += products(0)[chunk];
      length_ += products(1)[chunk];
      moved += products(2)[chunk];
    }
    way_ += sqrt(moved);
    return with_first;
  }

  // Exchanges the classes.
  __device__ SELFMENT_CALL void complement() {
    set_labels([](bool label) { return !label; });
    const int64_t d = a_.p.d;
    double* sums = a_.sums + number_ * 2 * d;
    const int64_t last = team_.last(a_.chunks) * kChunk<T>;
    for (int64_t k = team_.first(a_.chunks) * kChunk<T> + threadIdx.x; k < min(last, d);
         k += kThreads) {
      const double foreground = sums[k];
      sums[k] = sums[d + k];
      sums[d + k] = foreground;
      direction()[k] = -direction()[k];
      rounded_direction()[k] = -rounded_direction()[k];
    }
    team_.sync();
  }

  __device__ static int first_lane(unsigned lanes) { return __ffs(static_cast<int>(lanes)) - 1; }
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
  __device__ static int warp() { return static_cast<int>(threadIdx.x) / kWarp; }
  __device__ const T* row(int64_t i) const { return rows_ + i * a_.p.d; }
  __device__ double* norms() const { return a_.norms + number_ * a_.p.n; }
  __device__ double* until() const { return a_.until + number_ * a_.p.n; }
  __device__ signed char* changes() const { return a_.changes + number_ * a_.p.n; }
  __device__ int* touched() const { return a_.touched + number_ * 2 * kParts; }
  __device__ double* parts(int64_t side, int64_t part) const {
    return a_.parts + ((number_ * 2 + side) * kParts + part) * a_.p.d;
  }
  __device__ double* products(int64_t which) const {  // (chunks,): see Products
    return a_.products + (number_ * 3 + which) * a_.chunks;
  }
  __device__ double* first() const { return a_.first + number_ * a_.p.d; }
  __device__ double* direction() const { return a_.direction + number_ * a_.p.d; }
  __device__ float* rounded_direction() const { return a_.rounded + number_ * a_.padded; }

  const Args& a_;
  Team& team_;
  const int64_t number_;  // of the team
  Tally* tally_;          // shared, (kWarps,)
  const T* rows_ = nullptr;
  bool* labels_ = nullptr;
  const double* known_ = nullptr;  // (n,), the norms, where they are known
  double length_ = 0;              // of the direction, squared
  double way_ = 0;                 // that the direction has gone
};

template <class T>
__global__ void __launch_bounds__(kThreads, 2) optimize(const __grid_constant__ Args a) {
  const int64_t number = blockIdx.x / a.team_size;
  Team team(static_cast<int>(blockIdx.x % a.team_size), static_cast<int>(a.team_size),
            a.arrivals + number);
  Optimizer<T> optimizer(a, team, number, shared_memory());
  for (int64_t image = number; image < a.p.batch; image += a.teams) optimizer.run(image);
}

constexpr int64_t kSharedBytes = kWarps * int64_t{sizeof(Tally)};

// Fills in the teams and the addresses; returns the bytes of scratch memory.
template <class T>
int64_t plan(Args& a, void* scratch) {
  const int64_t n = a.p.n, d = a.p.d;
  a.chunks = (d + kChunk<T> - 1) / kChunk<T>;
  a.padded = (d + kPieceSize<T> - 1) / kPieceSize<T> * kPieceSize<T>;
  // The meetings of a step take about as long as it takes a warp to read so many rows.
  const Teams teams =
      teams_for(a.p.batch, resident_blocks("ipo", optimize<T>, kThreads, kSharedBytes),
                (n + kWarps - 1) / kWarps, 1 + 8192 / d);
  a.teams = teams.count;
  a.team_size = teams.size;
  Scratch memory(scratch, a.teams);
  memory.allocate(a.arrivals, 1);
  memory.allocate(a.norms, n);
  memory.allocate(a.until, n);
  memory.allocate(a.changes, n);
  memory.allocate(a.touched, 2 * kParts);
  memory.allocate(a.parts, 2 * kParts * d);
  memory.allocate(a.sums, 2 * d);
  memory.allocate(a.first, d);
  memory.allocate(a.direction, d);
  memory.allocate(a.rounded, a.padded);
  memory.allocate(a.products, 3 * a.chunks);
  memory.allocate(a.tallies, a.team_size);
  return memory.used();
}

template <class Body>
auto with_plan(Args& a, void* scratch, const Body& body) {
  return with_dtype(a.p.dtype, [&](auto* typed) {
    using T = std::decay_t<decltype(*typed)>;
    return body(plan<T>(a, scratch), optimize<T>);
  });
}

}  // namespace

int64_t ipo_scratch(Dtype dtype, int64_t batch, int64_t n, int64_t d) {
  Args a{};
  a.p.dtype = dtype;
  a.p.batch = batch;
  a.p.n = n;
  a.p.d = d;
  return with_plan(a, nullptr, [](int64_t bytes, auto*) { return bytes; });
}

void ipo(const IpoParams& p, const double* norms, const Context& context) {
  Args a{};
  a.p = p;
  a.known = norms;
  const auto stream = static_cast<cudaStream_t>(context.stream);
  with_plan(a, context.scratch, [&](int64_t, auto* kernel) {
    check(cudaMemsetAsync(a.arrivals, 0, a.teams * sizeof(unsigned), stream), "cudaMemsetAsync");
    launch("ipo", kernel, a.teams * a.team_size, kThreads, kSharedBytes, stream, a, true);
  });
}

}  // namespace selfment::cuda
