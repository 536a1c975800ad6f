// Iterative Patch Optimization: a patch belongs to the class whose mean it is closer to. A team of
// blocks does all steps of an image and stops at the fixed point.
//
// A step reads the features once, a warp for each row, and scores the row as it is given, in
// float32. Only where that is too close to 0 to tell is the rounded row scored in double. The rows
// whose labels changed are then added to the class sums, in an order that no team changes.
#include "rows.cuh"
#include "team.cuh"

namespace selfment::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int64_t kParts = 16;                      // parts of the rows that are summed apart
constexpr int kEach = 4;                            // columns of a lane
constexpr int64_t kChunk = int64_t{kEach} * kWarp;  // columns of a warp
constexpr double kUnit = 0x1p-24;

// What a block counted in its rows.
struct Tally {
  int64_t foreground, changed, bad;
};

struct Args {
  IpoParams p;
  int64_t chunks;  // of columns
  int64_t teams, team_size;
  unsigned* arrivals;  // (teams,)
  // Of each team, one after the other:
  double* norms;         // (n,)
  signed char* changes;  // (n,), +1: to the foreground, -1: to the background
  double* parts;         // (kParts, 2, d), sums of the changes: foreground, background
  double* sums;          // (2, d)
  double* first;         // (d,), the first direction
  double* direction;     // (d,), the difference of the class means
  float* rounded;        // (d,), that in float32
  double* products;      // (2, chunks), of the direction with the first one and with itself
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
    const int64_t steps = optimize();
    if (team_.rank() == 0 && threadIdx.x == 0) a_.p.steps[image] = steps;
    team_.sync();  // before the memory serves the next image
  }

 private:
  __device__ int64_t optimize() {
    const int64_t n = a_.p.n;
    Tally found = tally_rows([this](int64_t i, Tally& mine) {
      const double norm = warp_norm(row(i), a_.p.d, lane());
      const bool label = labels_[i];
      if (lane() == 0) {
        norms()[i] = norm;
        changes()[i] = label ? 1 : -1;
      }
      mine.foreground += label ? 1 : 0;
      mine.bad += isfinite(norm) ? 0 : 1;
    });
    if (found.bad > 0) {
      set_labels([](bool) { return false; });
      return 0;
    }
    if (uniform(found.foreground)) return 0;
    sum_changes(true);
    set_direction(found.foreground, true);
    int64_t steps = 0;
    while (steps < a_.p.iters && min(found.foreground, n - found.foreground) >= a_.p.min_count) {
      ++steps;
      found = score();
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

  // Calls body(i, tally) for the block's own rows; all get the sum of the team's tallies. What
  // body's first lanes wrote is seen by the whole team.
  template <class Body>
  __device__ Tally tally_rows(const Body& body) {
    Tally mine{};
    for (int64_t i = team_.first(a_.p.n) + warp(); i < team_.last(a_.p.n); i += kWarps)
      body(i, mine);
    __syncthreads();
    if (lane() == 0) tally_[warp()] = mine;
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

  template <class Label>
  __device__ void set_labels(const Label& label) {
    const int64_t last = team_.last(a_.p.n);
    for (int64_t i = team_.first(a_.p.n) + threadIdx.x; i < last; i += kThreads)
      labels_[i] = label(labels_[i]);
    __syncthreads();
  }

  // New labels from the direction.
  __device__ SELFMENT_CALL Tally score() {
    const int64_t d = a_.p.d;
    const float* w = rounded_direction();
    // As in the CPU twin, and for the roundings of a lane's sum, of the warp's and of w.
    const double margin = sqrt(length_) * static_cast<double>(d / kWarp + 14) * kUnit + 2 * kIpoTie;
    return tally_rows([=](int64_t i, Tally& mine) {
      const T* x = row(i);
      const double norm = norms()[i];
      float sum = 0;
#pragma unroll 4
      for (int64_t k = lane(); k < d; k += kWarp) sum = fmaf(to_float(x[k]), w[k], sum);
      double score = warp_sum(sum) / norm;
      // 1e15: beyond that the sum might overflow.
      if (!(fabs(score) > margin) || norm > 1e15) score = exact_score(x, norm);
      const bool label = score > kIpoTie, changed = label != labels_[i];
      __syncwarp();
      if (lane() == 0) {
        changes()[i] = static_cast<signed char>(!changed ? 0 : label ? 1 : -1);
        labels_[i] = label;
      }
      mine.foreground += label ? 1 : 0;
      mine.changed += changed ? 1 : 0;
    });
  }

  __device__ SELFMENT_CALL double exact_score(const T* x, double norm) const {
    const double inverse = 1 / norm;
    double sum = 0;
    for (int64_t k = lane(); k < a_.p.d; k += kWarp)
      sum += double{rounded(value(x[k]), norm, inverse)} * direction()[k];
    return warp_sum(sum);
  }

  // --- Columns: a warp for a chunk of them ---

  // The sums of the rows whose labels changed. `start`: of all rows, each in the class of its
  // label only.
  __device__ SELFMENT_CALL void sum_changes(bool start) {
    const int64_t n = a_.p.n, d = a_.p.d, tasks = a_.chunks * kParts;
    for (int64_t task = team_.first(tasks) + warp(); task < team_.last(tasks); task += kWarps) {
      const int64_t part = task / a_.chunks, k0 = task % a_.chunks * kChunk + lane();
      double foreground[kEach] = {}, background[kEach] = {};
      for (int64_t i = part * n / kParts; i < (part + 1) * n / kParts; ++i) {
        const int change = changes()[i];
        if (change == 0) continue;
        const double norm = norms()[i], inverse = 1 / norm;
        const T* x = row(i);
#pragma unroll
        for (int e = 0; e < kEach; ++e) {
          const int64_t k = k0 + e * kWarp;
          const double f = k < d ? rounded(value(x[k]), norm, inverse) : 0.0f;
          if (!start || change > 0) foreground[e] += change > 0 ? f : -f;
          if (!start || change < 0) background[e] += change > 0 ? -f : f;
        }
      }
      double* sums = a_.parts + ((number_ * kParts + part) * 2) * d;
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        const int64_t k = k0 + e * kWarp;
        if (k >= d) continue;
        sums[k] = foreground[e];
        sums[d + k] = background[e];
      }
    }
    team_.sync();
  }

  // The difference of the class means, from the sums and their changes; returns its inner product
  // with the first one.
  __device__ SELFMENT_CALL double set_direction(int64_t count, bool start) {
    const int64_t d = a_.p.d;
    double* sums = a_.sums + number_ * 2 * d;
    double* products = a_.products + number_ * 2 * a_.chunks;
    for (int64_t chunk = team_.first(a_.chunks) + warp(); chunk < team_.last(a_.chunks);
         chunk += kWarps) {
      double with_first = 0, with_itself = 0;
      for (int64_t k = chunk * kChunk + lane(); k < min((chunk + 1) * kChunk, d); k += kWarp) {
        double foreground = start ? 0 : sums[k], background = start ? 0 : sums[d + k];
        for (int64_t part = 0; part < kParts; ++part) {
          const double* changes = a_.parts + ((number_ * kParts + part) * 2) * d;
          foreground += changes[k];
          background += changes[d + k];
        }
        sums[k] = foreground;
        sums[d + k] = background;
        const double w = foreground / static_cast<double>(count) -
                         background / static_cast<double>(a_.p.n - count);
        direction()[k] = w;
        rounded_direction()[k] = static_cast<float>(w);
        if (start) first()[k] = w;
        with_first += w * first()[k];
        with_itself += w * w;
      }
      with_first = warp_sum(with_first);
      with_itself = warp_sum(with_itself);
      if (lane() == 0) {
        products[chunk] = with_first;
        products[a_.chunks + chunk] = with_itself;
      }
    }
    team_.sync();
    double with_first = 0;
    length_ = 0;
    for (int64_t chunk = 0; chunk < a_.chunks; ++chunk) {
      with_first += products[chunk];
      length_ += products[a_.chunks + chunk];
    }
    return with_first;
  }

  // Exchanges the classes.
  __device__ SELFMENT_CALL void complement() {
    set_labels([](bool label) { return !label; });
    const int64_t d = a_.p.d;
    double* sums = a_.sums + number_ * 2 * d;
    const int64_t last = team_.last(a_.chunks) * kChunk;
    for (int64_t k = team_.first(a_.chunks) * kChunk + threadIdx.x; k < min(last, d);
         k += kThreads) {
      const double foreground = sums[k];
      sums[k] = sums[d + k];
      sums[d + k] = foreground;
      direction()[k] = -direction()[k];
      rounded_direction()[k] = -rounded_direction()[k];
    }
    team_.sync();
  }

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
  __device__ static int warp() { return static_cast<int>(threadIdx.x) / kWarp; }
  __device__ const T* row(int64_t i) const { return rows_ + i * a_.p.d; }
  __device__ double* norms() const { return a_.norms + number_ * a_.p.n; }
  __device__ signed char* changes() const { return a_.changes + number_ * a_.p.n; }
  __device__ double* first() const { return a_.first + number_ * a_.p.d; }
  __device__ double* direction() const { return a_.direction + number_ * a_.p.d; }
  __device__ float* rounded_direction() const { return a_.rounded + number_ * a_.p.d; }

  const Args& a_;
  Team& team_;
  const int64_t number_;  // of the team
  Tally* tally_;          // shared, (kWarps,)
  const T* rows_ = nullptr;
  bool* labels_ = nullptr;
  double length_ = 0;  // of the direction, squared
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
  a.chunks = (d + kChunk - 1) / kChunk;
  const Teams teams =
      teams_for(a.p.batch, resident_blocks("ipo", optimize<T>, kThreads, kSharedBytes),
                (n + kWarps - 1) / kWarps);
  a.teams = teams.count;
  a.team_size = teams.size;
  int64_t used = 0;
  const auto take = [&](auto*& pointer, int64_t count) {
    using Item = std::remove_reference_t<decltype(*pointer)>;
    pointer = reinterpret_cast<Item*>(static_cast<char*>(scratch) + used);
    used += (a.teams * count * static_cast<int64_t>(sizeof(Item)) + 255) / 256 * 256;
  };
  take(a.arrivals, 1);
  take(a.norms, n);
  take(a.changes, n);
  take(a.parts, kParts * 2 * d);
  take(a.sums, 2 * d);
  take(a.first, d);
  take(a.direction, d);
  take(a.rounded, d);
  take(a.products, 2 * a.chunks);
  take(a.tallies, a.team_size);
  return used;
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

void ipo(const IpoParams& p, const Context& context) {
  Args a{};
  a.p = p;
  const auto stream = static_cast<cudaStream_t>(context.stream);
  with_plan(a, context.scratch, [&](int64_t, auto* kernel) {
    check(cudaMemsetAsync(a.arrivals, 0, a.teams * sizeof(unsigned), stream), "cudaMemsetAsync");
    launch("ipo", kernel, a.teams * a.team_size, kThreads, kSharedBytes, stream, a, true);
  });
}

}  // namespace selfment::cuda
