// Iterative Patch Optimization: a patch belongs to the class whose mean it is closer to. A team of
// blocks does all steps of an image and stops at the fixed point. Of features that are read block
// by block, one image at a time, it does a step's part for each of the blocks, and the host decides
// when to stop.
#include "optimizer.cuh"
#include "scratch.h"

namespace selfment::cuda {

namespace {

template <class T>
__global__ void __launch_bounds__(kIpoThreads, 2) optimize(const __grid_constant__ IpoArgs a) {
  const int64_t number = blockIdx.x / a.team_size;
  Team team(static_cast<int>(blockIdx.x % a.team_size), static_cast<int>(a.team_size),
            a.arrivals + number);
  Optimizer<T> optimizer(a, team, number, shared_memory());
  for (int64_t image = number; image < a.p.batch; image += a.teams) optimizer.run(image);
}

struct PassArgs {
  IpoArgs ipo;  // of the rows of a block
  bool begin, fresh;
};

template <class T>
__global__ void __launch_bounds__(kIpoThreads, 2) pass(const __grid_constant__ PassArgs a) {
  Team team(static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x), a.ipo.arrivals);
  Optimizer<T>(a.ipo, team, 0, shared_memory()).pass(a.begin, a.fresh);
}

template <class T>
__global__ void __launch_bounds__(kIpoThreads, 2) turn(const __grid_constant__ PassArgs a) {
  Team team(static_cast<int>(blockIdx.x), static_cast<int>(gridDim.x), a.ipo.arrivals);
  Optimizer<T>(a.ipo, team, 0, shared_memory()).turn(a.begin);
}

constexpr int64_t kSharedBytes = kIpoWarps * int64_t{sizeof(Tally)};

// Fills in the teams and the addresses; returns the bytes of scratch memory.
template <class T>
int64_t plan(IpoArgs& a, void* scratch) {
  const int64_t n = a.p.n, d = a.p.d;
  a.chunks = (d + kChunk<T> - 1) / kChunk<T>;
  a.padded = (d + kPieceSize<T> - 1) / kPieceSize<T> * kPieceSize<T>;
  // The meetings of a step take about as long as a warp takes to read 1 + 8192 / d rows.
  const Teams teams =
      teams_for(a.p.batch, resident_blocks("ipo", optimize<T>, kIpoThreads, kSharedBytes),
                (n + kIpoWarps - 1) / kIpoWarps, 1 + 8192 / d);
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
  memory.allocate(a.state, 1);
  return memory.used();
}

// IPO of features that are read block by block. The host waits for each step, as it has to know
// whether there is another one.
template <class T>
class BlockSteps {
 public:
  BlockSteps(const IpoArgs& a, cudaStream_t stream) : a_(a), p_(a.p), stream_(stream) {
    const int64_t most = std::min(resident_blocks("ipo", pass<T>, kIpoThreads, kSharedBytes),
                                  resident_blocks("ipo", turn<T>, kIpoThreads, kSharedBytes));
    a_.team_size = std::min(a_.team_size, most);
  }

  void run() {
    check(cudaMemsetAsync(a_.state, 0, sizeof(IpoState), stream_), "cudaMemsetAsync");
    step(true);
    int64_t steps = 0;
    double separation = 0;
    if (last_.counts.bad > 0) {
      check(cudaMemsetAsync(p_.labels, 0, static_cast<size_t>(p_.n), stream_), "cudaMemsetAsync");
      separation = NAN;
    } else {
      while (!uniform() && steps < p_.iters && smaller_class() >= p_.min_count) {
        ++steps;
        step(false);
        if (last_.counts.changed == 0) break;
      }
      if (!uniform()) separation = std::sqrt(last_.square_length);
    }
    copy(p_.steps, &steps, sizeof steps, cudaMemcpyHostToDevice);
    copy(p_.separation, &separation, sizeof separation, cudaMemcpyHostToDevice);
  }

 private:
  bool uniform() const { return smaller_class() == 0; }
  int64_t smaller_class() const {
    return std::min(last_.counts.foreground, p_.n - last_.counts.foreground);
  }

  // Reads all rows once and makes the direction; sets last_.
  void step(bool begin) {
    check(cudaMemsetAsync(&a_.state->counts, 0, sizeof(Tally), stream_), "cudaMemsetAsync");
    for (int64_t first = 0; first < p_.n; first += p_.blocks->rows) {
      PassArgs part{a_, begin, begin && first == 0};
      IpoArgs& rows = part.ipo;
      rows.p.features = p_.blocks->read(p_.blocks->source, first / p_.blocks->rows);
      if (rows.p.features == nullptr) throw Interrupted();
      rows.p.n = std::min(p_.blocks->rows, p_.n - first);
      rows.p.labels += first;
      rows.norms += first;
      rows.until += first;
      rows.changes += first;
      launch_team("ipo: pass", pass<T>, part);
    }
    launch_team("ipo: turn", turn<T>, {a_, begin, false});
    copy(&last_, a_.state, sizeof last_, cudaMemcpyDeviceToHost);
    check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  }

  void launch_team(const char* name, void (*kernel)(PassArgs), const PassArgs& args) {
    check(cudaMemsetAsync(a_.arrivals, 0, sizeof(unsigned), stream_), "cudaMemsetAsync");
    launch(name, kernel, a_.team_size, kIpoThreads, kSharedBytes, stream_, args, true);
  }

  void copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    check(cudaMemcpyAsync(to, from, bytes, kind, stream_), "cudaMemcpyAsync");
  }

  IpoArgs a_;
  const IpoParams& p_;
  cudaStream_t stream_;
  IpoState last_{};
};

template <class Body>
auto with_plan(IpoArgs& a, void* scratch, const Body& body) {
  return with_dtype(a.p.dtype, [&](auto* typed) {
    using T = std::decay_t<decltype(*typed)>;
    return body(plan<T>(a, scratch), static_cast<const T*>(nullptr));
  });
}

}  // namespace

int64_t ipo_scratch(Dtype dtype, int64_t batch, int64_t n, int64_t d) {
  IpoArgs a{};
  a.p.dtype = dtype;
  a.p.batch = batch;
  a.p.n = n;
  a.p.d = d;
  return with_plan(a, nullptr, [](int64_t bytes, auto*) { return bytes; });
}

void ipo(const IpoParams& p, const double* norms, const Context& context) {
  IpoArgs a{};
  a.p = p;
  a.known = norms;
  const auto stream = static_cast<cudaStream_t>(context.stream);
  with_plan(a, context.scratch, [&](int64_t, auto* typed) {
    using T = std::decay_t<decltype(*typed)>;
    if (p.blocks != nullptr) return BlockSteps<T>(a, stream).run();
    check(cudaMemsetAsync(a.arrivals, 0, a.teams * sizeof(unsigned), stream), "cudaMemsetAsync");
    launch("ipo", optimize<T>, a.teams * a.team_size, kIpoThreads, kSharedBytes, stream, a, true);
  });
}

}  // namespace selfment::cuda
