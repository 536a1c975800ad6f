// Norms of rows, and the rounded rows f = float32(x / norm) on which all rules are defined. Both
// equal the results of double arithmetic to the bit, and are computed in float32 if that is enough
// to know them: on many devices an operation in double takes 64 times as long.
#pragma once

#include "rows.cuh"

namespace selfment::cuda {

// True if doubles take at most twice as long as floats. Then they sum the squares faster, as they
// need fewer levels.
#if defined(__CUDA_ARCH__) && \
    (__CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000)
inline constexpr bool kFastDoubles = true;
#else
inline constexpr bool kFastDoubles = false;
#endif

// --- Norms ---

// A sum of floats in levels: each adds up the rounding errors of the level before.
//
// Level l starts at `start(l)`: 2^e for the first, 1.5 times 2^(e - 18 l) for the others. Numbers
// of the first are not negative, and their sum is 2^e or less; those added from the second on are
// 2^(e - 24) or less in magnitude; and a level gets 32 numbers at most. Then the first stays in
// [2^e, 2^(e+1)] and, by induction, level l within 2^(e - 18 l - 1) of its start, which is in
// [2^(e - 18 l), 2^(e - 18 l + 1)]: it is a whole number of units of 2^(e - 18 l - 23), its
// rounding error for a number is half of a unit or less, 2^(e - 18 (l + 1) - 6), and that is
// computed exactly (Dekker's FastTwoSum, as the level exceeds the number). The last level passes
// nothing on, but rounds each number by 2^(e - 78) at most.
class Levels {
 public:
  static constexpr int kCount = 4;

  __device__ explicit Levels(unsigned biased) : biased_(biased) {  // e + 127
#pragma unroll
    for (int l = 0; l < kCount; ++l) sums_[l] = start(l);
  }

  template <int kFirst>
  __device__ void add(float x) {
#pragma unroll
    for (int l = kFirst; l + 1 < kCount; ++l) {
      const float sum = sums_[l] + x;
      x -= sum - sums_[l];
      sums_[l] = sum;
    }
    sums_[kCount - 1] += x;
  }

  // The units that all lanes have added to a level.
  __device__ int64_t units(int l) const {
    const unsigned mine = __float_as_uint(sums_[l]) - __float_as_uint(start(l));
    return __reduce_add_sync(kAllLanes, static_cast<int>(mine));
  }

 private:
  __device__ float start(int l) const {
    return __uint_as_float((biased_ - 18u * static_cast<unsigned>(l)) << 23 |
                           (l > 0 ? 0x400000u : 0u));
  }

  unsigned biased_;
  float sums_[kCount];
};

// Calls use(for_elements) for each run of a row, which is the part that a warp reads at a time.
// for_elements(body) calls body with each of the lane's numbers of the run.
template <class T, class Use>
__device__ void for_runs(const T* x, int64_t d, int lane, const Use& use) {
  constexpr int64_t kStep = int64_t{kWarp} * kPieceSize<T>;
  for (int64_t first = 0; first < d; first += kInFlight * kStep) {
    uint4 pieces[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u)
      pieces[u] = load_piece(x, first + u * kStep + lane * kPieceSize<T>, d);
    use([&](const auto& body) {
#pragma unroll
      for (int u = 0; u < kInFlight; ++u) {
        if (first + u * kStep >= d) break;
#pragma unroll
        for (int i = 0; i < kPieceSize<T>; ++i) body(to_float(element<T>(pieces[u], i)));
      }
    });
  }
}

// Returns |x| of a row, by a warp. The sum of the squares is two doubles whose relative error is
// 2^-89 or less, so that it rounds to the same double in any order, except for sums next to the
// middle of two doubles.
//
// The square of a float is exact, the square of a double is rounded first. A run of floats has 32
// squares or less, each below 2^(2 m) for a power 2^m above the largest. Added to 2^(2 m + 5) they
// stay below twice that: the rounding error of the sum is a double and is computed exactly (Dekker,
// as above). The square of a double may overflow, so that no start is known to exceed it.
template <class T>
__device__ double exact_length(const T* x, int64_t d, int lane) {
  TwoDoubles sum;
  if constexpr (std::is_same_v<T, double>) {
    for_pieces(x, d, lane, [&](int, int64_t, const uint4& piece) {
#pragma unroll
      for (int i = 0; i < kPieceSize<T>; ++i) {
        const double v = element<T>(piece, i);
        sum.add(v * v);
      }
    });
  } else {
    for_runs(x, d, lane, [&](const auto& for_elements) {
      float largest = 0;
      for_elements([&](float v) { largest = fmaxf(largest, fabsf(v)); });
      const auto exponent = static_cast<long long>(__float_as_uint(largest) >> 23) - 127 + 1;
      const double start = __longlong_as_double((2 * exponent + 5 + 1023) << 52);
      double high = start, low = 0;
      for_elements([&](float f) {
        const double v = f, next = fma(v, v, high);
        low += fma(v, v, high - next);
        high = next;
      });
      sum.add(high - start);
      sum.low += low;
    });
  }
  sum = warp_sum(sum);
  return sqrt(sum.high + sum.low);
}

// Computes the same from float32 levels. False if they do not determine what the sum rounds to:
// next to the middle of two doubles, or if squares are out of range.
//
// A run has 32 squares or less of a lane. The square of v is p + q with the floats p = v v,
// rounded, and q = fma(v, v, -p); q is 0 for a half-precision v. With 2^m above the largest `about`
// of the warp and e = m + 1, a lane's p sum up to 2^m (1 + 2^-18) < 2^e; the first level, whose
// unit is 2^(e - 23), leaves 2^(e - 24) or less of a p; and a q is 2^(e - 26) or less. If there are
// q's, a run has 16 squares. So a level gets at most 32 numbers, the units of a lane are within
// 2^23 and those of the warp fit into an int, and the sum of the run is off by 32 32 2^(e - 78) =
// 2^(e - 68) at most. The slack is twice that, to cover underflow: of squares and q's, by 2^-150
// each, with e >= -63. Nothing overflows for e <= 125. If all squares are multiples of the last
// level's unit, 2^(e - 77), nothing is off: so a sum of half-precision squares may even be the
// middle of two doubles.
template <class T>
__device__ bool quick_length(const T* x, int64_t d, int lane, double* length) {
  constexpr unsigned kLeast = 64, kMost = 252;                         // e + 127
  constexpr double kGrain = std::is_same_v<T, Float16> ? 0x1p-48 : 0;  // of squares
  TwoDoubles sum;
  double slack = 0;
  bool in_range = true;
  for_runs(x, d, lane, [&](const auto& for_elements) {
    float about = 0;
    for_elements([&](float v) { about = fmaf(v, v, about); });
    // Compares bits, which are in the order of the numbers; those of NaN are above all.
    const unsigned top = __reduce_max_sync(kAllLanes, __float_as_uint(about)) >> 23;
    const unsigned biased = max(top + 2, kLeast);
    in_range = in_range && biased <= kMost;
    Levels levels(min(biased, kMost));
    for_elements([&](float v) {
      const float p = v * v;
      levels.template add<0>(p);
      if constexpr (sizeof(T) == 4) levels.template add<1>(fmaf(v, v, -p));
    });
    // In units of the second level.
    const double unit =
        __longlong_as_double(static_cast<long long>(biased + 1023 - 127 - 41) << 52);
    sum.add(static_cast<double>(levels.units(0) * (1 << 18) + levels.units(1)) * unit);
    sum.low += static_cast<double>(levels.units(2) * (1 << 18) + levels.units(3)) * 0x1p-36 * unit;
    if (0x1p-36 * unit > kGrain) slack += 0x1p-26 * unit;
  });
  const double square = sum.high + (sum.low + slack);
  *length = sqrt(square);
  return in_range && square == sum.high + (sum.low - slack);
}

// Returns |x| of a row, by a warp; 0 only if the rounded row is 0, and not finite if an element is
// not.
template <class T>
__device__ double warp_length(const T* x, int64_t d, int lane) {
  [[maybe_unused]] double length;
  if constexpr (!std::is_same_v<T, double> && !kFastDoubles)
    if (quick_length(x, d, lane, &length)) return length;
  return exact_length(x, d, lane);
}

// The divisor of a row of this length.
__device__ inline double norm_of(double length) { return length < 1e-12 ? 1e-12 : length; }

// --- Rounded rows ---

// Divides the elements of a row by its norm.
//
// With u = 2^-24, y = `inverse_`, the float nearest to 1 / high, and Q = x / norm the steps are
//   y = (1 + 2.01u) / norm,  q = x y (1 + u),  |q - Q| <= 3.02u |Q|,
//   rest = x - q norm, where |x - q norm| <= 3.02u |x|, up to an error of 8.1u^2 |x|: 4.04u^2 and
//     3.03u^2 from the roundings of the inner and the outer fma, and 1.01u^2 from norm - high -
//     low,
//   Q = q + rest y, up to errors of 8.1u^2 |Q| from rest and of 6.1u^2 |Q| from y,
// each bound for the worst case. With the rounding of the sum of rest y and the slack, 3.1u^2 |Q|,
// that is 17.3u^2 |Q|, and the slack is 20u^2 |q|. So Q lies between the two sums that are compared
// before they are rounded; if they round to the same float, so does Q. The range of norms and
// quotients keeps all of it from underflow: |x| > 2^-90, and 2^-150, the most that an fma can lose
// to it, is below 2^-12 u^2 |x|.
template <class T>
class Divisor {
 public:
  __device__ explicit Divisor(double norm)
      : norm_(norm), high_(static_cast<float>(norm)), low_(static_cast<float>(norm - high_)) {
    inverse_ = norm >= 0x1p-40 && norm <= 0x1p100 ? 1 / high_ : NAN;
  }

  // Computes f = float32(x / norm); false if floats do not determine it.
  __device__ bool quick(T element, float* f) const {
    const float x = to_float(element), q = x * inverse_;
    const float rest = fmaf(-q, low_, fmaf(-q, high_, x)), slack = fabsf(q) * 0x1.4p-44f;
    *f = q + fmaf(rest, inverse_, slack);
    return *f == q + fmaf(rest, inverse_, -slack) && (fabsf(q) > 0x1p-50f || x == 0);
  }

  // float32(x / norm)
  __device__ float operator()(T element) const {
    float f;
    return quick(element, &f) ? f : static_cast<float>(value(element) / norm_);
  }

  // Another lane's divisor.
  __device__ Divisor of_lane(int lane) const {
    Divisor other(*this);
    other.norm_ = __shfl_sync(kAllLanes, norm_, lane);
    other.high_ = __shfl_sync(kAllLanes, high_, lane);
    other.low_ = __shfl_sync(kAllLanes, low_, lane);
    other.inverse_ = __shfl_sync(kAllLanes, inverse_, lane);
    return other;
  }

 private:
  double norm_;
  float high_, low_, inverse_;
};

// The product with the inverse is off by less than 2 units of its last place; it divides only if
// that could change the rounding.
template <>
class Divisor<double> {
 public:
  __device__ explicit Divisor(double norm) : norm_(norm), inverse_(1 / norm) {}

  __device__ float operator()(double x) const {
    const double q = x * inverse_;
    const auto tail = static_cast<uint32_t>(__double_as_longlong(q)) & 0x1fffffffu;  // cut off
    const bool clear = tail - 0x0ffffff0u > 0x20u && fabs(q) > 1e-37;
    return static_cast<float>(clear ? q : x / norm_);
  }

  __device__ Divisor of_lane(int lane) const {
    Divisor other(*this);
    other.norm_ = __shfl_sync(kAllLanes, norm_, lane);
    other.inverse_ = __shfl_sync(kAllLanes, inverse_, lane);
    return other;
  }

 private:
  double norm_, inverse_;
};

}  // namespace selfment::cuda
