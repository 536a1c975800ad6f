// The smallest nontrivial eigenpairs of (D - A) x = lambda D x, by Lanczos on the graph: the
// algorithm of the CPU twin, where it is explained. A team of blocks solves an image: each block
// owns some rows of all vectors, and the blocks exchange the vector that is multiplied and partial
// inner products. The basis is orthogonalised by classical Gram-Schmidt, twice, which needs one
// exchange a pass. The graph lies in the team's shared memory where it fits.
#include "../reflections.h"
#include "graph_product.cuh"
#include "jacobi.cuh"
#include "team.cuh"

namespace selfment::cuda {

namespace {

// As in the CPU twin.
constexpr double kVectorError = 1e-9;
constexpr double kResidualFloor = 1e-14;
constexpr int64_t kDense = 48;
constexpr int64_t kBasis = 64;
constexpr int64_t kMaxProducts = 4000;
constexpr double kBreakdown = 1e-13;

constexpr int kExchanges = 4;  // buffers in turn: one is not written before all have read it

struct Args {
  FiedlerParams p;
  int64_t words, weights_each;
  int64_t limit;     // vectors of the basis
  int64_t kept;      // Ritz vectors that a restart keeps, at most
  int64_t columns;   // of reflections, for LAPACK's sign; 0 without
  int64_t vectors;   // that the memory of the basis has room for
  int64_t partials;  // doubles of an exchange
  int64_t teams, team_size;
  bool resident;  // the graph is copied to shared memory
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

class Solver {
 public:
  __device__ Solver(const Args& a, Team& team, int64_t number, unsigned char* shared)
      : a_(a),
        team_(team),
        number_(number),
        product_(shared),
        sums_(reinterpret_cast<double*>(shared + kProductBytes)) {}

  __device__ void solve(int64_t image) {
    const int64_t k = a_.p.k;
    products_ = draws_ = 0;
    view(image);
    bool finite = start(image) && lanczos(1, 1, k);
    if (n() <= kDense) products_ = 0;
    // Copies of repeated eigenvalues: see the CPU twin.
    while (finite && k > 1 && k + 1 < n() && n() > kDense) {
      finite = lanczos(k + 1, k + 1, 1);
      if (!finite) break;
      const double below = theta(k) - theta(k + 1);
      team_.sync();
      if (team_.rank() == 0 && threadIdx.x == 0) gap(k) = fmin(gap(k), fabs(below));
      if (!(below < -kBreakdown)) break;
      merge();
    }
    team_.sync();
    for (int64_t slot = 1; slot <= k && finite; ++slot) finite = give(image, slot);
    if (finite && a_.p.sign == Sign::kLapack) orient_as_lapack(image);
    if (!finite) give_up(image);
    else if (team_.rank() == 0 && threadIdx.x == 0) a_.p.iterations[image] = products_;
  }

 private:
  // --- Own rows ---

  // Calls body(i) for the block's own rows; its threads meet after.
  template <class Body>
  __device__ void own_rows(const Body& body) {
    for (int64_t i = first() * kWord + threadIdx.x; i < min(last() * kWord, n()); i += blockDim.x)
      body(i);
    __syncthreads();
  }

  // sums_[j] = sum over all rows i of term(j, i), for j < count: the sum of a word of rows by a
  // warp, then that of the words in order. All blocks get the same sums.
  template <class Term>
  __device__ void sum(int64_t count, const Term& term) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    double* parts = next_exchange();
    for (int64_t task = warp; task < (last() - first()) * count; task += kProductWarps) {
      const int64_t word = first() + task / count, j = task % count;
      double part = 0;
      for (int64_t i = word * kWord + lane; i < min((word + 1) * kWord, n()); i += kWarp)
        part += term(j, i);
      part = warp_sum(part);
      if (lane == 0) parts[j * a_.words + word] = part;
    }
    team_.sync();
    for (int64_t j = warp; j < count; j += kProductWarps) {
      double total = 0;
      for (int64_t word = lane; word < a_.words; word += kWarp) total += parts[j * a_.words + word];
      total = warp_sum(total);
      if (lane == 0) sums_[j] = total;
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
    team_.sync();
    double found = -INFINITY;
    for (int64_t word = 0; word < a_.words; ++word) found = fmax(found, parts[word]);
    return found;
  }

  __device__ SELFMENT_CALL double dot(const double* x, const double* y) {
    sum(1, [=](int64_t, int64_t i) { return x[i] * y[i]; });
    const double result = sums_[0];
    __syncthreads();
    return result;
  }

  // Returns the norm that v had.
  __device__ SELFMENT_CALL double normalize(double* v) {
    const double norm = sqrt(dot(v, v));
    own_rows([=](int64_t i) { v[i] /= norm; });
    return norm;
  }

  // --- The operator ---

  __device__ void view(int64_t image) {
    const int64_t rows = a_.words * kWord;
    const Graphs& graphs = a_.p.graphs;
    graph_ = {graphs.bits + image * a_.words * rows,
              rows,
              0,
              graphs.weights == nullptr ? nullptr : graphs.weights + image * a_.weights_each,
              n(),
              a_.words,
              graphs.eps};
    if (!a_.resident) return;
    const int64_t own = (last() - first()) * kWord;
    __syncthreads();
    for (int64_t at = threadIdx.x; at < a_.words * own; at += blockDim.x)
      own_bits()[at] = graph_.bits[at / own * rows + first() * kWord + at % own];
    __syncthreads();
    graph_.bits = own_bits();
    graph_.stride = own;
    graph_.base = first() * kWord;
  }

  // out = M y
  __device__ SELFMENT_CALL void multiply_by_graph(const double* y, double* out) {
    ++products_;
    double *scaled = this->scaled(), *scale = this->scale();
    own_rows([=](int64_t i) { scaled[i] = scale[i] * y[i]; });
    sum(1, [=](int64_t, int64_t i) { return scaled[i]; });  // scaled is published with the sums
    const double total = sums_[0];
    multiply(graph_, scaled, total, first(), last(), out, product_);
    own_rows([=](int64_t i) { out[i] *= scale[i]; });
  }

  // Whether numbers are finite is decided by sums, which all blocks of a team have alike: they must
  // take the same way, or they would wait for each other forever.

  // The trivial pair; false if the degrees are not finite and positive.
  __device__ bool start(int64_t image) {
    const double* degrees = a_.p.degrees + image * n();
    double *trivial = pair(0), *scale = this->scale();
    own_rows([=](int64_t i) {
      trivial[i] = degrees[i] > 0 ? sqrt(degrees[i]) : NAN;
      scale[i] = 1 / trivial[i];
    });
    const double norm = normalize(trivial);
    return isfinite(norm) && norm > 0;
  }

  // --- Lanczos ---

  // Vector j of `locked` known ones and the basis.
  __device__ double* known(int64_t locked, int64_t j) const {
    return j < locked ? pair(j) : basis(j - locked);
  }

  // v -= its parts along the known vectors, which stay in sums_.
  __device__ SELFMENT_CALL void project(double* v, int64_t locked, int64_t count) {
    sum(count, [=](int64_t j, int64_t i) { return known(locked, j)[i] * v[i]; });
    own_rows([=](int64_t i) {
      double part = 0;
      for (int64_t j = 0; j < count; ++j) part = fma(sums_[j], known(locked, j)[i], part);
      v[i] -= part;
    });
  }

  // A new basis vector at `index`: random, orthogonal to the known ones.
  __device__ SELFMENT_CALL void random_vector(int64_t locked, int64_t index) {
    double* v = basis(index);
    const int64_t from = draws_++ * n();
    own_rows([=](int64_t i) { v[i] = random_number(from + i); });
    for (int pass = 0; pass < 3; ++pass) {
      project(v, locked, locked + index);
      normalize(v);
    }
  }

  // Makes M v_j, at j + 1 in the basis, orthogonal to all known vectors and returns the norm that
  // is left; rank 0 fills row and column j of the projected matrix.
  __device__ double extend(int64_t locked, int64_t j, int64_t kept) {
    double* v = basis(j + 1);
    const int64_t limit = a_.limit;
    for (int pass = 0; pass < 2; ++pass) {
      project(v, locked, locked + j + 1);
      if (pass == 0 && team_.rank() == 0)
        for (int64_t i = threadIdx.x; i <= j; i += blockDim.x)
          if (i + 1 >= j || j == kept)
            projected()[i * limit + j] = projected()[j * limit + i] = sums_[locked + i];
    }
    return sqrt(dot(v, v));
  }

  // Ritz values, descending, and vectors of the leading `size` rows of the projected matrix.
  __device__ SELFMENT_CALL void solve_projected(int64_t size) {
    if (team_.rank() == 0) {
      const bool fits = 2 * size * size * int64_t{sizeof(double)} <= kProductBytes;
      double* a = fits ? reinterpret_cast<double*>(product_)
                       : a_.jacobi + number_ * 2 * a_.limit * a_.limit;
      __syncthreads();
      for (int64_t at = threadIdx.x; at < size * size; at += blockDim.x)
        a[at] = projected()[at / size * a_.limit + at % size];
      jacobi(a, a + size * size, static_cast<int>(size), ritz_values(), ritz_vectors(), sums_,
             busy());
    }
    team_.sync();
  }

  __device__ static double distance(const double* values, int64_t i, int64_t size) {
    const double above = i == 0 ? INFINITY : values[i - 1] - values[i];
    const double below = i + 1 < size ? values[i] - values[i + 1] : INFINITY;
    return fmin(above, below);
  }

  // The `want` leading pairs orthogonal to the first `locked` ones, into the pairs from `slot` on.
  // False if a product is not finite.
  __device__ SELFMENT_CALL bool lanczos(int64_t locked, int64_t slot, int64_t want) {
    const int64_t room = n() - locked;
    const int64_t limit = min(room, max(kBasis, 3 * want));
    const bool whole = n() <= kDense;
    want = min(want, room);
    if (team_.rank() == 0)
      for (int64_t at = threadIdx.x; at < a_.limit * a_.limit; at += blockDim.x)
        projected()[at] = 0;
    random_vector(locked, 0);
    int64_t size = 0, kept = 0, next_check = whole ? limit : min(limit, want + 9);
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
      const bool last = size == room || products_ >= kMaxProducts + want;
      if (size < next_check && size < limit && !last) continue;
      next_check = size + max(int64_t{2}, size / 6);
      if (whole) next_check = limit;

      solve_projected(size);
      bool converged = size > want || size == room;
      for (int64_t i = 0; i < want && converged; ++i)
        converged = beta * fabs(ritz_vectors()[i * size + size - 1]) <=
                    fmax(kResidualFloor, kVectorError * distance(ritz_values(), i, size));
      if (converged || last) {
        take(slot, min(want, size), size);
        return true;
      }
      if (size == limit) size = kept = restart(limit, want);
    }
  }

  // Keeps the leading Ritz vectors and the residual's direction; returns how many of the former.
  __device__ SELFMENT_CALL int64_t restart(int64_t limit, int64_t want) {
    const int64_t keep = min(limit - 1, want + (limit - want) / 3), n = a_.p.graphs.n;
    double *basis = this->basis(0), *vectors = a_.kept_vectors + number_ * a_.kept * n;
    const double* ritz = ritz_vectors();
    own_rows([=](int64_t i) {
      for (int64_t r = 0; r < keep; ++r) {
        double sum = 0;
        for (int64_t j = 0; j < limit; ++j) sum = fma(ritz[r * limit + j], basis[j * n + i], sum);
        vectors[r * n + i] = sum;
      }
      basis[keep * n + i] = basis[limit * n + i];
      for (int64_t r = 0; r < keep; ++r) basis[r * n + i] = vectors[r * n + i];
    });
    if (team_.rank() == 0) {
      for (int64_t at = threadIdx.x; at < a_.limit * a_.limit; at += blockDim.x)
        projected()[at] = at / a_.limit == at % a_.limit && at / a_.limit < keep
                              ? ritz_values()[at / a_.limit]
                              : 0;
    }
    team_.sync();
    return keep;
  }

  // --- Pairs: vector 0 is the trivial one, 1 to k are the pairs, k + 1 is a found one ---

  __device__ void take(int64_t slot, int64_t count, int64_t size) {
    for (int64_t r = 0; r < count; ++r) {
      double *y = pair(slot + r), *basis = this->basis(0);
      const double* ritz = ritz_vectors() + r * size;
      const int64_t n = a_.p.graphs.n;
      own_rows([=](int64_t i) {
        double sum = 0;
        for (int64_t j = 0; j < size; ++j) sum = fma(ritz[j], basis[j * n + i], sum);
        y[i] = sum;
      });
      normalize(y);
    }
    if (team_.rank() == 0)
      for (int64_t r = threadIdx.x; r < count; r += blockDim.x) {
        theta(slot + r) = ritz_values()[r];
        gap(slot + r) = distance(ritz_values(), r, size);
      }
    team_.sync();
  }

  // Inserts the found pair by its theta and drops the last one.
  __device__ void merge() {
    const int64_t k = a_.p.k, n = a_.p.graphs.n;
    const double found = theta(k + 1), dropped = theta(k);
    int64_t place = 1;
    while (place <= k && theta(place) >= found) ++place;
    double* pairs = pair(0);
    own_rows([=](int64_t i) {
      for (int64_t slot = k; slot > place; --slot) pairs[slot * n + i] = pairs[(slot - 1) * n + i];
      pairs[place * n + i] = pairs[(k + 1) * n + i];
    });
    team_.sync();
    if (team_.rank() == 0 && threadIdx.x == 0) {
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
    team_.sync();
  }

  // One product more, and the results; false if they are not finite.
  __device__ SELFMENT_CALL bool give(int64_t image, int64_t slot) {
    double *y = pair(slot), *work = this->work();
    multiply_by_graph(y, work);
    if (fabs(theta(slot)) > 0.01) {
      project(work, 1, 1);
      normalize(work);
      own_rows([=](int64_t i) { y[i] = work[i]; });
      multiply_by_graph(y, work);
    }
    const double rayleigh = dot(y, work);
    own_rows([=](int64_t i) { work[i] -= rayleigh * y[i]; });
    const double residual = sqrt(dot(work, work));

    double *x = a_.p.vectors + (image * a_.p.k + slot - 1) * n(), *scale = this->scale();
    own_rows([=](int64_t i) { x[i] = scale[i] * y[i]; });
    const double peak = largest([=](int64_t i) { return fabs(x[i]); });
    if (!isfinite(residual) || !isfinite(peak)) return false;
    const double enough = peak - kPeakTie * peak;
    // The first peak is the one of the least index.
    const auto at = static_cast<int64_t>(-largest(
        [=](int64_t i) { return fabs(x[i]) >= enough ? -static_cast<double>(i) : -INFINITY; }));
    const bool negative = x[at] < 0;
    team_.sync();
    own_rows([=](int64_t i) {
      if (negative) x[i] = -x[i];
    });
    if (team_.rank() == 0 && threadIdx.x == 0) {
      const int64_t result = image * a_.p.k + slot - 1;
      a_.p.eigenvalues[result] = 1 - rayleigh;
      a_.p.gaps[result] = gap(slot);
      a_.p.residuals[result] = residual;
    }
    return true;
  }

  // Gives the vectors LAPACK's signs: see the CPU twin. The columns of the reflections take the
  // place of the basis.
  __device__ SELFMENT_CALL void orient_as_lapack(int64_t image) {
    const int64_t most = a_.columns;
    int64_t columns = 0;
    bool ended = false;
    for (int64_t slot = 1; slot <= a_.p.k; ++slot) {
      double *y = pair(slot), *x = a_.p.vectors + (image * a_.p.k + slot - 1) * n();
      LargestEntry entry;
      for (int64_t j = 0; j < most && !entry.certain(); ++j) {
        if (j == columns && !ended) {
          ended = !make_column(j, y);
          if (!ended) ++columns;
        }
        if (j == columns) break;
        const double along = dot(basis(j), y);
        entry.add(j == 0 ? along : signs()[j - 1] * along);
      }
      if (ended && !entry.certain()) continue;
      const double sign = entry.value < 0 ? -1 : 1, *scale = this->scale();
      own_rows([=](int64_t i) { x[i] = sign * (scale[i] * y[i]); });
    }
  }

  // Column j of the product of reflections, up to the sign; false if the space ends before, but for
  // the last one, which is what is left of y. The entries that decide the sign are rows of several
  // blocks; these may read it after they have met again.
  __device__ SELFMENT_CALL bool make_column(int64_t j, const double* y) {
    double* v = basis(j);
    if (j == 0) {
      own_rows([=](int64_t i) { v[i] = i == 0 ? 1 : 0; });
      return true;
    }
    if (j == 1 && graph_.weights == nullptr) {  // the first column of M is read off the bits
      const double* scale = this->scale();
      own_rows([=](int64_t i) {
        v[i] = scale[0] * scale[i] * ((graph_.bits[i - graph_.base] & 1) != 0 ? 1 : graph_.eps);
      });
    } else {
      multiply_by_graph(basis(j - 1), v);
    }
    for (int pass = 0; pass < 2; ++pass) project(v, 0, j);
    double norm = sqrt(dot(v, v));
    if (norm <= kBreakdown && j == n() - 1) {
      own_rows([=](int64_t i) { v[i] = y[i]; });
      for (int pass = 0; pass < 2; ++pass) project(v, 0, j);
      norm = sqrt(dot(v, v));
    }
    if (norm <= kBreakdown) return false;
    own_rows([=](int64_t i) { v[i] /= norm; });
    team_.sync();
    if (team_.rank() == 0 && threadIdx.x == 0) {
      const auto entry = [this](int64_t row, int64_t column) { return basis(column + 1)[row + 1]; };
      signs()[j - 1] = column_sign(j - 1, j == n() - 1, entry, factors(), a_.columns);
    }
    return true;
  }

  __device__ void give_up(int64_t image) {
    const int64_t k = a_.p.k, n = a_.p.graphs.n;
    double* x = a_.p.vectors + image * k * n;
    own_rows([=](int64_t i) {
      for (int64_t pair = 0; pair < k; ++pair) x[pair * n + i] = NAN;
    });
    if (team_.rank() != 0) return;
    for (int64_t pair = threadIdx.x; pair < k; pair += blockDim.x)
      a_.p.eigenvalues[image * k + pair] = a_.p.gaps[image * k + pair] =
          a_.p.residuals[image * k + pair] = NAN;
    if (threadIdx.x == 0) a_.p.iterations[image] = 0;
  }

  // --- Memory: of the team, and shared; addresses are made when needed, to spare registers ---

  __device__ int64_t n() const { return a_.p.graphs.n; }
  __device__ int64_t first() const { return team_.first(a_.words); }
  __device__ int64_t last() const { return team_.last(a_.words); }
  __device__ double* scale() const { return a_.scale + number_ * n(); }
  __device__ double* scaled() const { return a_.scaled + number_ * n(); }
  __device__ double* work() const { return a_.work + number_ * n(); }
  __device__ double* pair(int64_t i) const { return a_.pairs + (number_ * (a_.p.k + 2) + i) * n(); }
  __device__ double* basis(int64_t j) const { return a_.basis + (number_ * a_.vectors + j) * n(); }
  __device__ double* projected() const { return a_.projected + number_ * a_.limit * a_.limit; }
  __device__ double* ritz_values() const { return a_.ritz_values + number_ * a_.limit; }
  __device__ double* ritz_vectors() const {
    return a_.ritz_vectors + number_ * a_.limit * a_.limit;
  }
  __device__ double* signs() const { return a_.signs + number_ * a_.columns; }
  __device__ double* factors() const { return a_.factors + number_ * a_.columns * a_.columns; }
  __device__ double& theta(int64_t i) const { return a_.thetas[number_ * (a_.p.k + 2) + i]; }
  __device__ double& gap(int64_t i) const { return a_.gaps[number_ * (a_.p.k + 2) + i]; }
  __device__ double* next_exchange() {
    turn_ = (turn_ + 1) % kExchanges;
    return a_.exchange + (number_ * kExchanges + turn_) * a_.partials;
  }
  __device__ int* busy() const { return reinterpret_cast<int*>(sums_ + a_.partials / a_.words); }
  __device__ uint64_t* own_bits() const {
    return reinterpret_cast<uint64_t*>(sums_ + a_.partials / a_.words + 2);
  }

  const Args& a_;
  Team& team_;
  const int64_t number_;    // of the team
  unsigned char* product_;  // shared memory of products
  double* sums_;            // shared: the last sums
  GraphView graph_{};
  int64_t products_ = 0, draws_ = 0;
  int turn_ = 0;
};

__global__ void __launch_bounds__(kProductThreads, 1) solve(const __grid_constant__ Args a) {
  const int64_t number = blockIdx.x / a.team_size;
  Team team(static_cast<int>(blockIdx.x % a.team_size), static_cast<int>(a.team_size),
            a.arrivals + number);
  Solver solver(a, team, number, shared_memory());
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
  *shared_bytes = kProductBytes + (a.partials / a.words + 2) * int64_t{sizeof(double)};
  const Device has = device();
  allow_shared("fiedler", solve);
  // A step tabulates all of the vector and meets some four times, which takes as long as the
  // product of so many words of rows; that of one takes time in proportion to the words.
  const Teams teams =
      teams_for(batch, resident_blocks("fiedler", solve, kProductThreads, has.shared_bytes),
                a.words, 1 + 320 / a.words);
  const int64_t own = (a.words + teams.size - 1) / teams.size * kWord;
  const int64_t bits = own * a.words * int64_t{sizeof(uint64_t)};
  a.resident = !weighted && *shared_bytes + bits <= has.shared_bytes;
  if (a.resident) *shared_bytes += bits;
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
