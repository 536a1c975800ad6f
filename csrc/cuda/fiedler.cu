// The smallest nontrivial eigenpairs of (D - A) x = lambda D x, by Lanczos on the graph: the
// algorithm of the CPU twin, where it is explained. A team of blocks solves an image.
#include "../reflections.h"
#include "lanczos.cuh"
#include "scratch.h"

namespace selfment::cuda {

namespace solver {

namespace {

// These costs decide how many blocks share an image. A step of Lanczos multiplies all words of rows
// with the graph, and a team meets three times in it, for the product and for two
// orthogonalisations. A look-up of a warp reads 32 sums of 8 bytes, and shared memory delivers 128
// bytes a clock; its four instructions are issued meanwhile. A meeting takes about five trips to
// the L2 cache, of about 260 clocks each: one until the block's stores arrive, one for the counter,
// one and a half until the others' counts are seen, and one more for what the first-level cache has
// lost; and two barriers. (Counted, not measured.) Work that every block of a team repeats makes no
// difference.
constexpr int64_t kLookUpClocks = 2;
constexpr int64_t kMeetingClocks = 1300;
constexpr int64_t kMeetings = 3;

class Solver {
 public:
  __device__ Solver(const Args& a, const Team& team, int64_t number) : lanczos_(team) {
    if (threadIdx.x == 0) {
      Block own{};
      own.args = a;
      own.number = number;
      own.first = team.first(a.words);
      own.last = team.last(a.words);
      own.leads = team.rank() == 0;
      block() = own;
    }
    __syncthreads();
  }

  // Finds the image's pairs and writes them out.
  __device__ void solve(int64_t image) {
    const int k = static_cast<int>(args().p.k);
    bool finite = lanczos_.start(image) && lanczos_.leading_pairs(1, 1, k);
    if (n() <= kDense) graph().reset_products();
    // Finds missed copies of repeated eigenvalues: see the CPU twin.
    while (finite && k > 1 && k + 1 < n() && n() > kDense) {
      finite = lanczos_.leading_pairs(k + 1, k + 1, 1);
      if (!finite) break;
      const double below = theta(k) - theta(k + 1);
      // Only this thread reads and writes gaps until the next search; for the thetas, the team
      // meets in merge().
      if (leads() && threadIdx.x == 0) gap(k) = fmin(gap(k), fabs(below));
      if (!(below < -kBreakdown)) break;
      merge();
    }
    for (int slot = 1; slot <= k && finite; ++slot) finite = store_result(image, slot);
    if (finite && args().p.sign == Sign::kLapack) orient_as_lapack(image);
    if (!finite) store_nan(image);
    else if (leads() && threadIdx.x == 0) global(args().p.iterations)[image] = graph().products();
  }

 private:
  __device__ NormalizedGraph& graph() { return lanczos_.graph(); }

  // Inserts the missed pair, k + 1, by its theta and drops the last one. The team meets in the
  // search that follows, before it reads the thetas again.
  __device__ void merge() {
    const int64_t k = args().p.k, n = args().p.graphs.n;
    const double missed = theta(k + 1), dropped = theta(k);
    int64_t place = 1;
    while (place <= k && theta(place) >= missed) ++place;
    double* pairs = pair(0);
    own_rows([=](int64_t i) {
      for (int64_t slot = k; slot > place; --slot) pairs[slot * n + i] = pairs[(slot - 1) * n + i];
      pairs[place * n + i] = pairs[(k + 1) * n + i];
    });
    graph().meet();  // until here the blocks read the thetas
    if (leads() && threadIdx.x == 0) {
      for (int64_t slot = k; slot > place; --slot) {
        theta(slot) = theta(slot - 1);
        gap(slot) = gap(slot - 1);
      }
      theta(place) = missed;
      for (int64_t slot = 1; slot <= k; ++slot) {
        if (llabs(slot - place) > 1 && slot != k) continue;
        const double above = slot == 1 ? INFINITY : theta(slot - 1) - theta(slot);
        const double below = theta(slot) - (slot == k ? dropped : theta(slot + 1));
        gap(slot) = fmin(above, below);
      }
    }
  }

  // Polishes the pair by one more product and writes it out; false if it is not finite.
  __device__ SELFMENT_CALL bool store_result(int64_t image, int slot) {
    double *y = pair(slot), *work = solver::work();
    graph().multiply_by_graph(y, work);
    if (fabs(theta(slot)) > 0.01) {
      const double norm = lanczos_.project(work, 1, 1);
      own_rows([=](int64_t i) { y[i] = work[i] / norm; });
      graph().multiply_by_graph(y, work);
    }
    const double rayleigh = graph().dot(y, work);
    own_rows([=](int64_t i) { work[i] -= rayleigh * y[i]; });
    const double residual = sqrt(graph().dot(work, work));

    double *x = global(args().p.vectors) + (image * args().p.k + slot - 1) * n(),
           *scale = solver::scale();
    own_rows([=](int64_t i) { x[i] = scale[i] * y[i]; });
    const double peak = graph().largest([=](int64_t i) { return fabs(x[i]); });
    if (!isfinite(residual) || !isfinite(peak)) return false;
    const double enough = peak - kPeakTie * peak;
    // The first of several peaks is the one with the least index.
    const auto at = static_cast<int64_t>(-graph().largest(
        [=](int64_t i) { return fabs(x[i]) >= enough ? -static_cast<double>(i) : -INFINITY; }));
    const bool negative = x[at] < 0;
    graph().meet();
    own_rows([=](int64_t i) {
      if (negative) x[i] = -x[i];
    });
    if (leads() && threadIdx.x == 0) {
      const int64_t result = image * args().p.k + slot - 1;
      global(args().p.eigenvalues)[result] = 1 - rayleigh;
      global(args().p.gaps)[result] = gap(slot);
      global(args().p.residuals)[result] = residual;
    }
    return true;
  }

  // Gives the vectors LAPACK's signs: see the CPU twin. The columns of the reflections overwrite
  // the basis.
  __device__ SELFMENT_CALL void orient_as_lapack(int64_t image) {
    const int most = static_cast<int>(args().columns);
    int columns = 0;
    bool ended = false;
    for (int slot = 1; slot <= args().p.k; ++slot) {
      LargestEntry entry;
      for (int j = 0; j < most && !entry.certain(); ++j) {
        if (j == columns && !ended) {
          ended = !make_column(j, pair(slot));
          if (!ended) ++columns;
        }
        if (j == columns) break;
        const double along = graph().dot(basis(j), pair(slot));
        entry.add(j == 0 ? along : signs()[j - 1] * along);
      }
      if (ended && !entry.certain()) continue;
      double* x = global(args().p.vectors) + (image * args().p.k + slot - 1) * n();
      const double sign = entry.value < 0 ? -1 : 1, *y = pair(slot), *scale = solver::scale();
      own_rows([=](int64_t i) { x[i] = sign * (scale[i] * y[i]); });
    }
  }

  // Makes column j of the product of reflections, up to its sign; false if the space ends before
  // it. Only the very last column is then known all the same: it is what is left of y. The entries
  // that decide the sign are rows of several blocks, which may read it once they have met again.
  __device__ SELFMENT_CALL bool make_column(int j, const double* y) {
    y = global(y);
    double* v = basis(j);
    if (j == 0) {
      own_rows([=](int64_t i) { v[i] = i == 0 ? 1 : 0; });
      return true;
    }
    const GraphView& view = block().graph;
    if (j == 1 && view.weights == nullptr) {  // the bits show the first column of M
      const double *scale = solver::scale(), eps = view.eps;
      const uint64_t* bits = global(view.bits);
      own_rows([=](int64_t i) { v[i] = scale[0] * scale[i] * ((bits[i] & 1) != 0 ? 1 : eps); });
    } else {
      graph().multiply_by_graph(basis(j - 1), v);
    }
    lanczos_.project(v, 0, j);
    double norm = lanczos_.project(v, 0, j);
    if (norm <= kBreakdown && j == n() - 1) {
      own_rows([=](int64_t i) { v[i] = y[i]; });
      lanczos_.project(v, 0, j);
      norm = lanczos_.project(v, 0, j);
    }
    if (norm <= kBreakdown) return false;
    own_rows([=](int64_t i) { v[i] /= norm; });
    settle_sign(j - 1);
    return true;
  }

  // Computes the sign of a column; one thread of the team does.
  __device__ SELFMENT_CALL void settle_sign(int column) {
    graph().meet();
    if (!leads() || threadIdx.x != 0) return;
    const auto entry = [](int64_t i, int64_t j) { return basis(j + 1)[i + 1]; };
    signs()[column] = column_sign(column, column == n() - 2, entry, factors(), args().columns);
  }

  // Marks an image whose numbers are not finite.
  __device__ SELFMENT_CALL void store_nan(int64_t image) {
    const int64_t k = args().p.k, n = args().p.graphs.n;
    double* x = global(args().p.vectors) + image * k * n;
    own_rows([=](int64_t i) {
      for (int64_t pair = 0; pair < k; ++pair) x[pair * n + i] = NAN;
    });
    if (!leads()) return;
    const int64_t from = image * k;
    for (int64_t pair = threadIdx.x; pair < k; pair += blockDim.x)
      global(args().p.eigenvalues)[from + pair] = global(args().p.gaps)[from + pair] =
          global(args().p.residuals)[from + pair] = NAN;
    if (threadIdx.x == 0) global(args().p.iterations)[image] = 0;
  }

  Lanczos lanczos_;
};

__global__ void __launch_bounds__(kProductThreads, 1) solve(const __grid_constant__ Args a) {
  // The blocks of a grid, and so its teams, can be counted in 32 bits.
  const auto size = static_cast<unsigned>(a.team_size);
  const int number = static_cast<int>(blockIdx.x / size);
  const Team team(static_cast<int>(blockIdx.x % size), static_cast<int>(size), a.arrivals + number);
  Solver solver(a, team, number);
  for (int64_t image = number; image < a.p.graphs.batch; image += a.teams) solver.solve(image);
}

// Fills in the sizes, the teams and the addresses of `a`; returns the bytes of scratch memory.
int64_t plan(Args& a, bool weighted, void* scratch, int64_t* shared_bytes) {
  const int64_t n = a.p.graphs.n, k = a.p.k, batch = a.p.graphs.batch;
  a.words = word_count(n);
  a.weights_each = weights_size(n);
  a.limit = std::min(n - 1, std::max(kBasis, 3 * k));
  a.columns = a.p.sign == Sign::kLapack ? std::min(kSignVectors, n) : 0;
  a.vectors = std::max(a.limit + 1, a.columns);
  a.kept = k + (a.limit - std::min(a.limit, k)) / 3 + 1;
  a.partials = (std::max(a.limit, a.columns) + k + 4) * a.words;
  *shared_bytes = kSumsAt + (a.partials / a.words + 2) * int64_t{sizeof(double)};
  const Device has = device();
  allow_shared("fiedler", solve);
  const int64_t word_clocks = kWord / kWarp * (kWord / kGroup) * a.words * kLookUpClocks;
  const Teams teams =
      teams_for(batch, resident_blocks("fiedler", solve, kProductThreads, has.shared_bytes),
                a.words, (kMeetings * kMeetingClocks + word_clocks - 1) / word_clocks);
  const int64_t own = (a.words + teams.size - 1) / teams.size * kWord;
  const int64_t bits = own * a.words * int64_t{sizeof(uint64_t)};
  a.resident = !weighted && *shared_bytes + bits <= has.shared_bytes ? *shared_bytes : 0;
  if (a.resident != 0) *shared_bytes += bits;
  if (*shared_bytes > has.shared_bytes)
    throw Error("fiedler: k = " + std::to_string(k) +
                " needs more shared memory than the device has");
  a.teams = teams.count;
  a.team_size = teams.size;

  Scratch memory(scratch, a.teams);
  memory.allocate(a.arrivals, 1);
  memory.allocate(a.scale, n);
  memory.allocate(a.scaled, n);
  memory.allocate(a.work, n);
  memory.allocate(a.pairs, (k + 2) * n);
  memory.allocate(a.basis, a.vectors * n);
  memory.allocate(a.kept_vectors, a.kept * n);
  memory.allocate(a.exchange, kExchanges * a.partials);
  memory.allocate(a.projected, a.limit * a.limit);
  memory.allocate(a.ritz_values, a.limit);
  memory.allocate(a.ritz_vectors, a.limit * a.limit);
  memory.allocate(a.jacobi_matrices, 2 * a.limit * a.limit);
  memory.allocate(a.thetas, k + 2);
  memory.allocate(a.gaps, k + 2);
  memory.allocate(a.signs, a.columns);
  memory.allocate(a.factors, a.columns * a.columns);
  return memory.used();
}

}  // namespace

}  // namespace solver

int64_t fiedler_scratch(int64_t batch, int64_t n, int64_t k, bool weighted, Sign sign) {
  solver::Args a{};
  a.p.graphs.batch = batch;
  a.p.graphs.n = n;
  a.p.k = k;
  a.p.sign = sign;
  int64_t shared_bytes = 0;
  return solver::plan(a, weighted, nullptr, &shared_bytes);
}

void fiedler(const FiedlerParams& p, const Context& context) {
  solver::Args a{};
  a.p = p;
  int64_t shared_bytes = 0;
  solver::plan(a, p.graphs.weights != nullptr, context.scratch, &shared_bytes);
  const auto stream = static_cast<cudaStream_t>(context.stream);
  check(cudaMemsetAsync(a.arrivals, 0, a.teams * sizeof(unsigned), stream), "cudaMemsetAsync");
  launch("fiedler", solver::solve, a.teams * a.team_size, kProductThreads, shared_bytes, stream, a,
         true);
}

}  // namespace selfment::cuda
