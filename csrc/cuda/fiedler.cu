// The smallest nontrivial eigenpairs of (D - A) x = lambda D x, by Lanczos on the graph: the
// algorithm of the CPU twin, where it is explained. A team of blocks solves an image: each block
// owns some rows of all vectors, and the blocks exchange the vector that is multiplied and partial
// inner products. The basis is orthogonalised by classical Gram-Schmidt, twice, which needs one
// exchange a pass. The graph lies in the team's shared memory where it fits.
#include "../reflections.h"
#include "graph_product.cuh"
#include "jacobi.cuh"
#include "team.cuh"
#include "tridiagonal.cuh"

namespace selfment::cuda {

namespace {

// As in the CPU twin.
constexpr double kVectorError = 1e-9;
constexpr double kResidualFloor = 1e-14;
constexpr int64_t kDense = 48;
constexpr int64_t kBasis = 64;
constexpr int64_t kMaxProducts = 4000;
constexpr double kBreakdown = 1e-13;

// Until a pair has converged, the error that its Ritz value may have, as a share of its gap. The
// residual that is read off then has a relative error of some ten times that.
constexpr double kRoughly = 0x1p-12;
static_assert(kBasis <= kTridiagonalRows);

constexpr int kVectorsAtOnce = 8;  // whose products with one vector a warp makes at a time
constexpr int kTotals = 4;         // of which it adds up the parts at a time
constexpr int kExchanges = 4;      // buffers in turn: one is not written before all have read it

struct Args {
  FiedlerParams p;
  int64_t words, weights_each;
  int64_t limit;     // vectors of the basis
  int64_t kept;      // Ritz vectors that a restart keeps, at most
  int64_t columns;   // of reflections, for LAPACK's sign; 0 without
  int64_t vectors;   // that the memory of the basis has room for
  int64_t partials;  // doubles of an exchange
  int64_t teams, team_size;
  int64_t resident;  // where in shared memory the blocks keep their bits; 0: they do not
  unsigned* arrivals;
  // Of each team, one after the other:
  double *scale, *scaled, *work, *pairs, *basis, *kept_vectors, *exchange, *projected, *ritz_values,
      *ritz_vectors, *jacobi, *thetas, *gaps, *signs, *factors;
};

// Numbers in [-1, 1): splitmix64 (Steele, Lea, Flood, 2014), the `index`-th of the CPU's sequence.
__device__ double random_number(int64_t index) {
  uint64_t z = 1 + (static_cast<uint64_t>(index) + 1) * 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  z ^= z >> 31;
  return static_cast<double>(z >> 11) * 0x1p-52 - 1;
}

// What decides how many blocks share an image: a step of Lanczos multiplies all words of rows with
// the graph, and a team meets three times in it, for the product and for two orthogonalisations. A
// look-up of a warp reads 32 sums of 8 bytes, and shared memory gives 128 bytes a clock; the four
// instructions that it takes are issued meanwhile. A meeting is some five trips to the L2 cache, of
// about 260 clocks each: until the block's stores are there, for the counter, one and a half until
// the others' counts are seen, and one more for what the first-level cache has lost; with two
// barriers. (Counted, not measured.) What every block of a team does alike makes no difference.
constexpr int64_t kLookUpClocks = 2;
constexpr int64_t kMeetingClocks = 1300;
constexpr int64_t kMeetings = 3;

// What all threads of a block know alike, in its shared memory.
struct Block {
  Args args;
  GraphView graph;
  int64_t number;       // of the team
  int64_t first, last;  // words of rows, the block's own
  bool leads;           // the team
};

// The block's shared memory: the product's arrays, a Block, the last sums, and its own bits.
constexpr int64_t kBlockBytes = (int64_t{sizeof(Block)} + 15) / 16 * 16;
constexpr int64_t kSumsAt = kProductBytes + kBlockBytes;

class Solver {
 public:
  __device__ Solver(const Args& a, const Team& team, int64_t number) : team_(team) {
    if (threadIdx.x == 0)
      block() = {a, {}, number, team.first(a.words), team.last(a.words), team.rank() == 0};
    __syncthreads();
  }

  __device__ void solve(int64_t image) {
    const int k = static_cast<int>(args().p.k);
    products_ = draws_ = 0;
    view(image);
    bool finite = start(image) && lanczos(1, 1, k);
    if (n() <= kDense) products_ = 0;
    // Copies of repeated eigenvalues: see the CPU twin.
    while (finite && k > 1 && k + 1 < n() && n() > kDense) {
      finite = lanczos(k + 1, k + 1, 1);
      if (!finite) break;
      const double below = theta(k) - theta(k + 1);
      // Only that thread reads and writes gaps until the next search; for thetas merge() meets.
      if (leads() && threadIdx.x == 0) gap(k) = fmin(gap(k), fabs(below));
      if (!(below < -kBreakdown)) break;
      merge();
    }
    for (int slot = 1; slot <= k && finite; ++slot) finite = give(image, slot);
    if (finite && args().p.sign == Sign::kLapack) orient_as_lapack(image);
    if (!finite) give_up(image);
    else if (leads() && threadIdx.x == 0) global(args().p.iterations)[image] = products_;
  }

 private:
  // What the team has written before is seen by all of it after.
  __device__ void meet() { local(this)->team_.sync(); }

  // --- Own rows ---

  // Calls body(i) for the block's own rows; its threads meet after.
  template <class Body>
  __device__ void own_rows(const Body& body) {
    for (int64_t i = first() * kWord + threadIdx.x; i < min(last() * kWord, n()); i += blockDim.x)
      body(i);
    __syncthreads();
  }

  // sums()[j] = <vector(j), v> for j < count: the sums of a word of rows by a warp, kAtOnce of them
  // at a time, then those of the words in order. All blocks get the same sums, and have met.
  template <int kAtOnce, class Vector>
  __device__ void multiply_with(const double* v, int count, const Vector& vector) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    const int words = static_cast<int>(args().words), rows = static_cast<int>(n());
    const int own = static_cast<int>(last() - first());
    const int sharing = max(1, kProductWarps / max(1, own));  // warps that share a word
    double* parts = next_exchange();
    for (int at = warp; at < own * sharing; at += kProductWarps) {
      const int word = static_cast<int>(first()) + at / sharing;
      const int low = word * kWarp * 2 + lane, high = low + kWarp;
      const double at_low = low < rows ? v[low] : 0, at_high = high < rows ? v[high] : 0;
      for (int j = at % sharing * kAtOnce; j < count; j += sharing * kAtOnce) {
        double sums[kAtOnce];
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) {
          const double* other = vector(min(j + u, count - 1));
          const double other_low = low < rows ? other[low] : 0;
          const double other_high = high < rows ? other[high] : 0;
          sums[u] = other_low * at_low + other_high * at_high;
        }
        const int mine = j + lane / (kWarp / kAtOnce);
        const double sum = warp_sums(sums);
        if (lane % (kWarp / kAtOnce) == 0 && mine < count) parts[mine * words + word] = sum;
      }
    }
    meet();
    for (int j = warp * kTotals; j < count; j += kProductWarps * kTotals) {
      double totals[kTotals] = {};
      for (int word = lane; word < words; word += kWarp)
#pragma unroll
        for (int u = 0; u < kTotals; ++u) totals[u] += parts[min(j + u, count - 1) * words + word];
      const int mine = j + lane / (kWarp / kTotals);
      const double total = warp_sums(totals);
      if (lane % (kWarp / kTotals) == 0 && mine < count) sums()[mine] = total;
    }
    __syncthreads();
  }

  // The largest value(i) of all rows.
  template <class Value>
  __device__ double largest(const Value& value) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    double* parts = next_exchange();
    for (int64_t word = first() + warp; word < last(); word += kProductWarps) {
      double part = -INFINITY;
      for (int64_t i = word * kWord + lane; i < min((word + 1) * kWord, n()); i += kWarp)
        part = fmax(part, value(i));
      part = warp_max(part);
      if (lane == 0) parts[word] = part;
    }
    meet();
    double found = -INFINITY;
    for (int64_t word = 0; word < args().words; ++word) found = fmax(found, parts[word]);
    return found;
  }

  __device__ SELFMENT_CALL double dot(const double* x, const double* y) {
    x = global(x);
    y = global(y);
    multiply_with<1>(x, 1, [=](int) { return y; });
    return sums()[0];
  }

  // Returns the norm that v had.
  __device__ SELFMENT_CALL double normalize(double* v) {
    v = global(v);
    const double norm = sqrt(dot(v, v));
    own_rows([=](int64_t i) { v[i] /= norm; });
    return norm;
  }

  // --- The operator ---

  // Makes the image's graph the block's, and copies its own rows of bits where there is room. The
  // block meets in start(), before a product reads them.
  __device__ SELFMENT_CALL void view(int64_t image) {
    const Graphs& graphs = args().p.graphs;
    const int64_t words = args().words, rows = words * kWord;
    const int64_t own = (last() - first()) * kWord, resident = args().resident;
    const uint64_t* bits = global(graphs.bits) + image * words * rows;
    if (threadIdx.x == 0)
      block().graph = {
          bits,
          graphs.weights == nullptr ? nullptr : graphs.weights + image * args().weights_each,
          n(),
          words,
          graphs.eps,
          resident};
    if (resident != 0) {
      auto* copy = reinterpret_cast<uint64_t*>(shared_memory() + resident);
      for (int64_t word = 0; word < words; ++word)
        for (int64_t row = threadIdx.x; row < own; row += blockDim.x)
          copy[word * own + row] = bits[word * rows + first() * kWord + row];
    }
  }

  // out = M y
  __device__ SELFMENT_CALL void multiply_by_graph(const double* y, double* out) {
    ++local(this)->products_;
    y = global(y);
    out = global(out);
    double *scaled = Solver::scaled(), *scale = Solver::scale();
    own_rows([=](int64_t i) { scaled[i] = scale[i] * y[i]; });
    const double total = dot(scale, y);  // scaled is published with the sums
    multiply(block().graph, scaled, total, first(), last(), out);
    own_rows([=](int64_t i) { out[i] *= scale[i]; });
  }

  // Whether numbers are finite is decided by sums, which all blocks of a team have alike: they must
  // take the same way, or they would wait for each other forever.

  // The trivial pair; false if the degrees are not finite and positive.
  __device__ SELFMENT_CALL bool start(int64_t image) {
    const double* degrees = global(args().p.degrees) + image * n();
    double *trivial = pair(0), *scale = Solver::scale();
    own_rows([=](int64_t i) {
      trivial[i] = degrees[i] > 0 ? sqrt(degrees[i]) : NAN;
      scale[i] = 1 / trivial[i];
    });
    const double norm = normalize(trivial);
    return isfinite(norm) && norm > 0;
  }

  // --- Lanczos ---

  // v -= its parts along the known vectors, `locked` pairs and then the basis; they stay in sums().
  // Returns the norm that is left.
  __device__ SELFMENT_CALL double project(double* v, int locked, int count) {
    v = global(v);
    const int n = static_cast<int>(Solver::n());
    const double *pairs = pair(0), *vectors = basis(0);
    multiply_with<kVectorsAtOnce>(v, count + 1, [=](int j) {
      const double* known = j < locked ? pairs + int64_t{j} * n : vectors + int64_t{j - locked} * n;
      return global(j == count ? v : known);
    });
    own_rows([=](int64_t i) {
      double part = 0;
      for (int j = 0; j < locked; ++j) part = fma(sums()[j], pair(j)[i], part);
      const double* entry = basis(0) + i;
#pragma unroll 8
      for (int j = locked; j < count; ++j, entry += n) part = fma(sums()[j], *entry, part);
      v[i] -= part;
    });
    double parts = 0;
    for (int j = static_cast<int>(threadIdx.x) % kWarp; j < count; j += kWarp)
      parts = fma(sums()[j], sums()[j], parts);
    const double left = sums()[count] - warp_sum(parts);
    return left < 0 ? 0 : sqrt(left);
  }

  // A new basis vector at `index`: random, orthogonal to the known ones.
  __device__ SELFMENT_CALL void random_vector(int locked, int index) {
    double* v = basis(index);
    const int64_t from = local(this)->draws_++ * n();
    own_rows([=](int64_t i) { v[i] = random_number(from + i); });
    for (int pass = 0; pass < 3; ++pass) {
      const double norm = project(v, locked, locked + index);
      own_rows([=](int64_t i) { v[i] /= norm; });
    }
  }

  // Makes M v_j, at j + 1 in the basis, orthogonal to all known vectors and returns the norm that
  // is left; rank 0 fills row and column j of the projected matrix.
  __device__ double extend(int locked, int j, int kept) {
    double* v = basis(j + 1);
    const int limit = static_cast<int>(args().limit);
    project(v, locked, locked + j + 1);
    if (leads())
      for (int i = static_cast<int>(threadIdx.x); i <= j; i += kProductThreads)
        if (i + 1 >= j || j == kept)
          projected()[i * limit + j] = projected()[j * limit + i] = sums()[locked + i];
    return project(v, locked, locked + j + 1);
  }

  // Ritz values, descending, and vectors of the leading `size` rows of the projected matrix.
  __device__ SELFMENT_CALL void solve_projected(int size) {
    if (leads()) {
      if (2 * size * size * int64_t{sizeof(double)} <= kProductBytes)
        solve_projected_in(product_table(), size);
      else solve_projected_in(mine(args().jacobi, 2 * args().limit * args().limit), size);
    }
    meet();
  }

  // The same, with room for two matrices.
  __device__ __forceinline__ void solve_projected_in(double* a, int size) {
    const int limit = static_cast<int>(args().limit);
    for (int at = static_cast<int>(threadIdx.x); at < size * size; at += kProductThreads)
      a[at] = projected()[at / size * limit + at % size];
    jacobi(a, a + size * size, size, ritz_values(), ritz_vectors(), sums(), busy());
  }

  // The two leading Ritz values and the first one's vector, of a projected matrix that is
  // tridiagonal: see leading_pair.
  __device__ SELFMENT_CALL void solve_leading(int size, double share) {
    if (leads() && threadIdx.x < kWarp) {
      auto& t = *reinterpret_cast<Tridiagonal*>(shared_memory());
      const int limit = static_cast<int>(args().limit);
      for (int i = static_cast<int>(threadIdx.x); i < size; i += kWarp) {
        t.diagonal[i] = projected()[i * limit + i];
        t.beside[i] = i + 1 < size ? projected()[(i + 1) * limit + i] : 0;
      }
      leading_pair(t, size, share, ritz_values(), ritz_vectors());
    }
    meet();
  }

  __device__ static double distance(const double* values, int i, int size) {
    const double above = i == 0 ? INFINITY : values[i - 1] - values[i];
    const double below = i + 1 < size ? values[i] - values[i + 1] : INFINITY;
    return fmin(above, below);
  }

  // The `want` leading pairs orthogonal to the first `locked` ones, into the pairs from `slot` on.
  // False if a product is not finite.
  __device__ SELFMENT_CALL bool lanczos(int locked, int slot, int want) {
    const int room = static_cast<int>(n()) - locked;
    const int limit = min(room, max(static_cast<int>(kBasis), 3 * want));
    const bool whole = n() <= kDense;
    want = min(want, room);
    if (leads())
      for (int64_t at = threadIdx.x; at < args().limit * args().limit; at += blockDim.x)
        projected()[at] = 0;
    random_vector(locked, 0);
    int size = 0, kept = 0, next_check = whole ? limit : min(limit, want + 9);
    while (true) {
      multiply_by_graph(basis(size), basis(size + 1));
      double beta = extend(locked, size, kept);
      if (!isfinite(beta)) return false;
      ++size;
      double* next = basis(size);
      if (beta > kBreakdown) {
        own_rows([=](int64_t i) { next[i] /= beta; });
      } else {
        beta = 0;
        if (size < limit) random_vector(locked, size);
      }
      const bool last = size == room || local(this)->products_ >= kMaxProducts + want;
      if (size < next_check && size < limit && !last) continue;
      next_check = size + max(2, size / 6);
      if (whole) next_check = limit;

      // Of one start the projected matrix is tridiagonal up to a restart.
      const bool tridiagonal = want == 1 && kept == 0;
      if (tridiagonal) solve_leading(size, last ? 0 : kRoughly);
      else solve_projected(size);
      bool converged = size > want || size == room;
      for (int i = 0; i < want && converged; ++i)
        converged = beta * fabs(ritz_vectors()[i * size + size - 1]) <=
                    fmax(kResidualFloor, kVectorError * distance(ritz_values(), i, size));
      if (converged || last) {
        if (tridiagonal && !last) {
          meet();  // all have read what is written again
          solve_leading(size, 0);
        }
        take(slot, min(want, size), size);
        return true;
      }
      if (size < limit) continue;
      if (tridiagonal) {
        meet();  // all have read the vector that is written again
        solve_projected(size);
      }
      size = kept = restart(limit, want);
    }
  }

  // Keeps the leading Ritz vectors and the residual's direction; returns how many of the former.
  // The team meets in the product that follows, before Ritz pairs are written again.
  __device__ SELFMENT_CALL int restart(int limit, int want) {
    const int keep = min(limit - 1, want + (limit - want) / 3);
    const int n = static_cast<int>(Solver::n());
    double *basis = Solver::basis(0), *vectors = kept_vectors();
    const double* ritz = ritz_vectors();
    own_rows([=](int64_t i) {
      for (int r = 0; r < keep; ++r) {
        double sum = 0;
        for (int j = 0; j < limit; ++j)
          sum = fma(ritz[r * limit + j], basis[int64_t{j} * n + i], sum);
        vectors[int64_t{r} * n + i] = sum;
      }
      basis[int64_t{keep} * n + i] = basis[int64_t{limit} * n + i];
      for (int64_t r = 0; r < keep; ++r) basis[r * n + i] = vectors[r * n + i];
    });
    if (leads()) {
      const int stride = static_cast<int>(args().limit);
      for (int at = static_cast<int>(threadIdx.x); at < stride * stride; at += kProductThreads)
        projected()[at] =
            at / stride == at % stride && at / stride < keep ? ritz_values()[at / stride] : 0;
    }
    return keep;
  }

  // --- Pairs: vector 0 is the trivial one, 1 to k are the pairs, k + 1 is a found one ---

  __device__ SELFMENT_CALL void take(int slot, int count, int size) {
    for (int r = 0; r < count; ++r) {
      double *y = pair(slot + r), *basis = Solver::basis(0);
      const double* ritz = ritz_vectors() + r * size;
      const int64_t n = Solver::n();
      own_rows([=](int64_t i) {
        double sum = 0;
        for (int j = 0; j < size; ++j) sum = fma(ritz[j], basis[j * n + i], sum);
        y[i] = sum;
      });
      normalize(y);
    }
    if (leads())
      for (int r = static_cast<int>(threadIdx.x); r < count; r += kProductThreads) {
        theta(slot + r) = ritz_values()[r];
        gap(slot + r) = distance(ritz_values(), r, size);
      }
    meet();
  }

  // Inserts the found pair by its theta and drops the last one. The team meets in the search that
  // follows, before it reads the thetas again.
  __device__ SELFMENT_CALL void merge() {
    const int64_t k = args().p.k, n = args().p.graphs.n;
    const double found = theta(k + 1), dropped = theta(k);
    int64_t place = 1;
    while (place <= k && theta(place) >= found) ++place;
    double* pairs = pair(0);
    own_rows([=](int64_t i) {
      for (int64_t slot = k; slot > place; --slot) pairs[slot * n + i] = pairs[(slot - 1) * n + i];
      pairs[place * n + i] = pairs[(k + 1) * n + i];
    });
    meet();  // all have read the thetas
    if (leads() && threadIdx.x == 0) {
      for (int64_t slot = k; slot > place; --slot) {
        theta(slot) = theta(slot - 1);
        gap(slot) = gap(slot - 1);
      }
      theta(place) = found;
      for (int64_t slot = 1; slot <= k; ++slot) {
        if (llabs(slot - place) > 1 && slot != k) continue;
        const double above = slot == 1 ? INFINITY : theta(slot - 1) - theta(slot);
        const double below = theta(slot) - (slot == k ? dropped : theta(slot + 1));
        gap(slot) = fmin(above, below);
      }
    }
  }

  // One product more, and the results; false if they are not finite.
  __device__ SELFMENT_CALL bool give(int64_t image, int slot) {
    double *y = pair(slot), *work = Solver::work();
    multiply_by_graph(y, work);
    if (fabs(theta(slot)) > 0.01) {
      const double norm = project(work, 1, 1);
      own_rows([=](int64_t i) { y[i] = work[i] / norm; });
      multiply_by_graph(y, work);
    }
    const double rayleigh = dot(y, work);
    own_rows([=](int64_t i) { work[i] -= rayleigh * y[i]; });
    const double residual = sqrt(dot(work, work));

    double *x = global(args().p.vectors) + (image * args().p.k + slot - 1) * n(),
           *scale = Solver::scale();
    own_rows([=](int64_t i) { x[i] = scale[i] * y[i]; });
    const double peak = largest([=](int64_t i) { return fabs(x[i]); });
    if (!isfinite(residual) || !isfinite(peak)) return false;
    const double enough = peak - kPeakTie * peak;
    // The first peak is the one of the least index.
    const auto at = static_cast<int64_t>(-largest(
        [=](int64_t i) { return fabs(x[i]) >= enough ? -static_cast<double>(i) : -INFINITY; }));
    const bool negative = x[at] < 0;
    meet();
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

  // Gives the vectors LAPACK's signs: see the CPU twin. The columns of the reflections take the
  // place of the basis.
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
        const double along = dot(basis(j), pair(slot));
        entry.add(j == 0 ? along : signs()[j - 1] * along);
      }
      if (ended && !entry.certain()) continue;
      double* x = global(args().p.vectors) + (image * args().p.k + slot - 1) * n();
      const double sign = entry.value < 0 ? -1 : 1, *y = pair(slot), *scale = Solver::scale();
      own_rows([=](int64_t i) { x[i] = sign * (scale[i] * y[i]); });
    }
  }

  // Column j of the product of reflections, up to the sign; false if the space ends before, but for
  // the last one, which is what is left of y. The entries that decide the sign are rows of several
  // blocks; these may read it after they have met again.
  __device__ SELFMENT_CALL bool make_column(int j, const double* y) {
    y = global(y);
    double* v = basis(j);
    if (j == 0) {
      own_rows([=](int64_t i) { v[i] = i == 0 ? 1 : 0; });
      return true;
    }
    const GraphView& graph = block().graph;
    if (j == 1 && graph.weights == nullptr) {  // the first column of M is read off the bits
      const double *scale = Solver::scale(), eps = graph.eps;
      const uint64_t* bits = global(graph.bits);
      own_rows([=](int64_t i) { v[i] = scale[0] * scale[i] * ((bits[i] & 1) != 0 ? 1 : eps); });
    } else {
      multiply_by_graph(basis(j - 1), v);
    }
    project(v, 0, j);
    double norm = project(v, 0, j);
    if (norm <= kBreakdown && j == n() - 1) {
      own_rows([=](int64_t i) { v[i] = y[i]; });
      project(v, 0, j);
      norm = project(v, 0, j);
    }
    if (norm <= kBreakdown) return false;
    own_rows([=](int64_t i) { v[i] /= norm; });
    settle_sign(j - 1);
    return true;
  }

  __device__ SELFMENT_CALL void settle_sign(int column) {
    meet();
    if (!leads() || threadIdx.x != 0) return;
    const auto entry = [](int64_t i, int64_t j) { return basis(j + 1)[i + 1]; };
    signs()[column] = column_sign(column, column == n() - 2, entry, factors(), args().columns);
  }

  __device__ SELFMENT_CALL void give_up(int64_t image) {
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

  // --- Memory: of the team, and shared; addresses are made when needed, to spare registers ---

  __device__ static Block& block() {
    return *reinterpret_cast<Block*>(shared_memory() + kProductBytes);
  }
  __device__ static double* sums() { return reinterpret_cast<double*>(shared_memory() + kSumsAt); }
  __device__ static int* busy() {
    return reinterpret_cast<int*>(sums() + args().partials / args().words);
  }
  __device__ static const Args& args() { return block().args; }
  __device__ static int64_t n() { return args().p.graphs.n; }
  __device__ static int64_t first() { return block().first; }
  __device__ static int64_t last() { return block().last; }
  __device__ static bool leads() { return block().leads; }

  // The team's own `count` numbers of an array, from the `at`-th on.
  __device__ static double* mine(double* all, int64_t count, int64_t at = 0) {
    return global(all) + block().number * count + at;
  }
  __device__ static double* scale() { return mine(args().scale, n()); }
  __device__ static double* scaled() { return mine(args().scaled, n()); }
  __device__ static double* work() { return mine(args().work, n()); }
  __device__ static double* pair(int64_t i) {
    return mine(args().pairs, (args().p.k + 2) * n(), i * n());
  }
  __device__ static double* basis(int64_t j) {
    return mine(args().basis, args().vectors * n(), j * n());
  }
  __device__ static double* kept_vectors() { return mine(args().kept_vectors, args().kept * n()); }
  __device__ static double* projected() {
    return mine(args().projected, args().limit * args().limit);
  }
  __device__ static double* ritz_values() { return mine(args().ritz_values, args().limit); }
  __device__ static double* ritz_vectors() {
    return mine(args().ritz_vectors, args().limit * args().limit);
  }
  __device__ static double* signs() { return mine(args().signs, args().columns); }
  __device__ static double* factors() {
    return mine(args().factors, args().columns * args().columns);
  }
  __device__ static double& theta(int64_t i) { return *mine(args().thetas, args().p.k + 2, i); }
  __device__ static double& gap(int64_t i) { return *mine(args().gaps, args().p.k + 2, i); }
  __device__ double* next_exchange() {
    int& turn = local(this)->turn_;
    turn = (turn + 1) % kExchanges;
    return mine(args().exchange, kExchanges * args().partials, turn * args().partials);
  }

  Team team_;
  int64_t products_ = 0, draws_ = 0;
  int turn_ = 0;
};

__global__ void __launch_bounds__(kProductThreads, 1) solve(const __grid_constant__ Args a) {
  const int64_t number = blockIdx.x / a.team_size;
  const Team team(static_cast<int>(blockIdx.x % a.team_size), static_cast<int>(a.team_size),
                  a.arrivals + number);
  Solver solver(a, team, number);
  for (int64_t image = number; image < a.p.graphs.batch; image += a.teams) solver.solve(image);
}

// Fills in the sizes, the teams and the addresses; returns the bytes of scratch memory.
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

  int64_t used = 0;
  const auto take = [&](auto*& pointer, int64_t count) {
    using Item = std::remove_reference_t<decltype(*pointer)>;
    pointer = reinterpret_cast<Item*>(static_cast<char*>(scratch) + used);
    used += (a.teams * count * static_cast<int64_t>(sizeof(Item)) + 255) / 256 * 256;
  };
  take(a.arrivals, 1);
  take(a.scale, n);
  take(a.scaled, n);
  take(a.work, n);
  take(a.pairs, (k + 2) * n);
  take(a.basis, a.vectors * n);
  take(a.kept_vectors, a.kept * n);
  take(a.exchange, kExchanges * a.partials);
  take(a.projected, a.limit * a.limit);
  take(a.ritz_values, a.limit);
  take(a.ritz_vectors, a.limit * a.limit);
  take(a.jacobi, 2 * a.limit * a.limit);
  take(a.thetas, k + 2);
  take(a.gaps, k + 2);
  take(a.signs, a.columns);
  take(a.factors, a.columns * a.columns);
  return used;
}

}  // namespace

int64_t fiedler_scratch(int64_t batch, int64_t n, int64_t k, bool weighted, Sign sign) {
  Args a{};
  a.p.graphs.batch = batch;
  a.p.graphs.n = n;
  a.p.k = k;
  a.p.sign = sign;
  int64_t shared_bytes = 0;
  return plan(a, weighted, nullptr, &shared_bytes);
}

void fiedler(const FiedlerParams& p, const Context& context) {
  Args a{};
  a.p = p;
  int64_t shared_bytes = 0;
  plan(a, p.graphs.weights != nullptr, context.scratch, &shared_bytes);
  const auto stream = static_cast<cudaStream_t>(context.stream);
  check(cudaMemsetAsync(a.arrivals, 0, a.teams * sizeof(unsigned), stream), "cudaMemsetAsync");
  launch("fiedler", solve, a.teams * a.team_size, kProductThreads, shared_bytes, stream, a, true);
}

}  // namespace selfment::cuda
