// The classes of IPO: the sums of their rows, and the direction, which is the difference of their
// means. A warp works on a chunk of columns.
#pragma once

#include "norms.cuh"
#include "team.cuh"

namespace selfment::cuda {

inline constexpr int kIpoThreads = 256;
inline constexpr int kIpoWarps = kIpoThreads / kWarp;
inline constexpr int64_t kParts = 16;  // parts of the rows that are summed apart

template <class T>
inline constexpr int64_t kChunk = int64_t{kPieceSize<T>} * kWarp;  // columns of a warp

// Counts of rows.
struct Tally {
  int64_t foreground, changed, bad;
};

// The state of IPO on features that are read block by block: the counts of the last step, which the
// host reads, and the direction.
struct IpoState {
  Tally counts;
  double square_length, way;  // of the direction, see ClassMeans
};

struct IpoArgs {
  IpoParams p;
  const double* known;  // (batch, n), the norms; nullptr if they have to be computed
  int64_t chunks;       // of columns
  int64_t padded;       // d, rounded up to a multiple of a piece
  int64_t teams, team_size;
  unsigned* arrivals;  // (teams,)
  // Each team has its own of these arrays, one team's after the other's:
  double* norms;         // (n,)
  double* until;         // (n,), how far the direction may go before the label could change
  signed char* changes;  // (n,), +1: to the foreground, -1: to the background
  int* touched;          // (2, kParts), true if a part has changes
  double* parts;         // (2, kParts, d), their sums; at the start those of the classes
  double* sums;          // (2, d)
  double* first;         // (d,), the first direction
  double* direction;     // (d,), the difference of the class means
  float* rounded;        // (padded,), the direction in float32, then 0
  double* products;      // (3, chunks): see Products
  Tally* tallies;        // (team_size,)
  IpoState* state;       // of a batch of one
};

template <class T>
class ClassMeans {
 public:
  // `number` is that of the team.
  __device__ ClassMeans(const IpoArgs& a, Team& team, int64_t number)
      : a_(a), team_(team), number_(number) {}

  // Begins with an image.
  __device__ void start(int64_t image) {
    rows_ = static_cast<const T*>(a_.p.features) + image * a_.p.n * a_.p.d;
    way_ = square_length_ = 0;
  }

  // Goes on with the direction that was stored, for the rows of a block.
  __device__ void resume() {
    start(0);
    square_length_ = a_.state->square_length;
    way_ = a_.state->way;
  }

  // Adds the changes to the class sums: the rows that joined the foreground, minus those that left
  // it. At the `start` it adds the rows of each class. The sums begin at 0 if they are `fresh`. A
  // task of a warp is a chunk of columns of a part of the rows.
  __device__ SELFMENT_CALL void sum_changes(bool start, bool fresh) {
    const int64_t d = a_.p.d, tasks = a_.chunks * kParts * (start ? 2 : 1);
    for (int64_t task = team_.first(tasks) + warp(); task < team_.last(tasks); task += kIpoWarps) {
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
    // The columns that the thread also sets the direction in.
    for (int64_t chunk = team_.first(a_.chunks) + warp(); chunk < team_.last(a_.chunks);
         chunk += kIpoWarps)
      for (int64_t k = chunk * kChunk<T> + lane(); k < min((chunk + 1) * kChunk<T>, d); k += kWarp)
        add_parts(k, start, fresh);
  }

  // Makes the direction, which is the difference of the class means; `count` rows are foreground.
  // Returns its inner product with the first direction.
  __device__ SELFMENT_CALL double set_direction(int64_t count, bool start) {
    for (int64_t chunk = team_.first(a_.chunks) + warp(); chunk < team_.last(a_.chunks);
         chunk += kIpoWarps) {
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

  // Exchanges the classes.
  __device__ void exchange() {
    const int64_t d = a_.p.d;
    double* sums = a_.sums + number_ * 2 * d;
    const int64_t last = team_.last(a_.chunks) * kChunk<T>;
    for (int64_t k = team_.first(a_.chunks) * kChunk<T> + threadIdx.x; k < min(last, d);
         k += kIpoThreads) {
      const double foreground = sums[k];
      sums[k] = sums[d + k];
      sums[d + k] = foreground;
      direction()[k] = -direction()[k];
      rounded_direction()[k] = -rounded_direction()[k];
    }
    team_.sync();
  }

  __device__ const IpoArgs& args() const { return a_; }
  __device__ Team& team() const { return team_; }
  __device__ double square_length() const { return square_length_; }  // of the direction
  __device__ double way() const { return way_; }                      // the direction's, so far

  // The team's arrays: see IpoArgs.
  __device__ const T* row(int64_t i) const { return rows_ + i * a_.p.d; }
  __device__ double* norms() const { return a_.norms + number_ * a_.p.n; }
  __device__ double* until() const { return a_.until + number_ * a_.p.n; }
  __device__ signed char* changes() const { return a_.changes + number_ * a_.p.n; }
  __device__ double* direction() const { return a_.direction + number_ * a_.p.d; }
  __device__ float* rounded_direction() const { return a_.rounded + number_ * a_.padded; }
  __device__ Tally* tallies() const { return a_.tallies + number_ * a_.team_size; }

  __device__ static int first_lane(unsigned lanes) { return __ffs(static_cast<int>(lanes)) - 1; }
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
  __device__ static int warp() { return static_cast<int>(threadIdx.x) / kWarp; }

 private:
  // Inner products of the direction with the first one and with itself, and of its last move with
  // itself.
  struct Products {
    double with_first = 0, with_itself = 0, moved = 0;
  };

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

  // Adds the parts' sums to the class sums of column k.
  __device__ void add_parts(int64_t k, bool start, bool fresh) {
    const int64_t d = a_.p.d;
    double* sums = a_.sums + number_ * 2 * d;
    double foreground = fresh ? 0 : sums[k], background = fresh ? 0 : sums[d + k];
    for (int64_t part = 0; part < kParts; ++part) {
      if (touched()[part] != 0) {
        foreground += parts(0, part)[k];
        if (!start) background -= parts(0, part)[k];
      }
      if (start && touched()[kParts + part] != 0) background += parts(1, part)[k];
    }
    sums[k] = foreground;
    sums[d + k] = background;
  }

  // Makes the direction's entry of column k; adds to `mine`.
  __device__ void set_entry(int64_t k, int64_t count, bool start, Products& mine) {
    const double* sums = a_.sums + number_ * 2 * a_.p.d;
    const double foreground = sums[k], background = sums[a_.p.d + k];
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
    square_length_ = 0;
    for (int64_t chunk = 0; chunk < a_.chunks; ++chunk) {
      with_first += products(0)[chunk];
      square_length_ += products(1)[chunk];
      moved += products(2)[chunk];
    }
    way_ += sqrt(moved);
    return with_first;
  }

  __device__ int* touched() const { return a_.touched + number_ * 2 * kParts; }
  __device__ double* parts(int64_t side, int64_t part) const {
    return a_.parts + ((number_ * 2 + side) * kParts + part) * a_.p.d;
  }
  __device__ double* products(int64_t which) const {  // (chunks,): see Products
    return a_.products + (number_ * 3 + which) * a_.chunks;
  }
  __device__ double* first() const { return a_.first + number_ * a_.p.d; }

  const IpoArgs& a_;
  Team& team_;
  const int64_t number_;
  const T* rows_ = nullptr;
  double square_length_ = 0;
  double way_ = 0;
};

}  // namespace selfment::cuda
