// Rows of features: their values, sums over the lanes of a warp, and rows read in pieces.
#pragma once

#include <type_traits>

#include "platform.h"

namespace selfment::cuda {

inline constexpr double kUnit = 0x1p-24;  // the relative error of a rounding to float32

__device__ inline float to_float(BFloat16 x) { return __uint_as_float(uint32_t{x.bits} << 16); }
__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(double x) { return static_cast<float>(x); }
__device__ inline float to_float(Float16 x) {
#if defined(SELFMENT_EMULATE)
  const uint32_t sign = uint32_t{x.bits} >> 15 << 31, exponent = x.bits >> 10 & 31;
  const uint32_t fraction = x.bits & 1023;
  if (exponent == 0) return (sign != 0 ? -1.0f : 1.0f) * static_cast<float>(fraction) * 0x1p-24f;
  return __uint_as_float(sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13);
#else
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x.bits));
  return f;
#endif
}
template <class T>
__device__ double value(T x) {
  return to_float(x);
}
__device__ inline double value(double x) { return x; }

// The nearest half of a float in [-1, 1], ties to even.
__device__ inline uint16_t to_half(float f) {
  const uint32_t bits = __float_as_uint(f), sign = bits >> 16 & 0x8000, magnitude = bits << 1 >> 1;
  if (magnitude < 0x38800000u)  // below 2^-14: a multiple of 2^-24
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(rintf(fabsf(f) * 0x1p24f)));
  const uint32_t half = ((magnitude + 0xfff + (magnitude >> 13 & 1)) >> 13) - (uint32_t{112} << 10);
  return static_cast<uint16_t>(sign | half);
}

// Two doubles whose sum is the value: sums in them do not depend on the order of their terms.
struct TwoDoubles {
  double high = 0, low = 0;
  __device__ void add(double p) {
    const double t = high + p, v = t - high;
    low += (high - (t - v)) + (p - v);
    high = t;
  }
};

__device__ inline TwoDoubles warp_sum(TwoDoubles sum) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    const double high = __shfl_xor_sync(kAllLanes, sum.high, lanes);
    const double low = __shfl_xor_sync(kAllLanes, sum.low, lanes);
    // Adds in the order of the lanes, so that all get the same sum.
    const bool upper = (threadIdx.x & static_cast<unsigned>(lanes)) != 0;
    TwoDoubles total = upper ? TwoDoubles{high, low} : sum;
    total.low += upper ? sum.low : low;
    total.add(upper ? sum.high : high);
    sum = total;
  }
  return sum;
}

template <class Number>
__device__ Number warp_sum(Number sum) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kAllLanes, sum, lanes);
  return sum;
}

// Sums several numbers over the lanes: lane l gets the sum of number l / (kWarp / kCount). Halves
// of the lanes add up halves of the numbers, so there are fewer shuffles than in kCount calls of
// warp_sum, and the same additions.
template <int kCount>
__device__ double warp_sums(double (&x)[kCount]) {
  static_assert((kCount & (kCount - 1)) == 0 && kCount <= kWarp);
  int lanes = kWarp / 2;
#pragma unroll
  for (int half = kCount / 2; half > 0; half /= 2, lanes /= 2) {
    const bool upper = (threadIdx.x & static_cast<unsigned>(lanes)) != 0;
#pragma unroll
    for (int u = 0; u < half; ++u) {
      const double other = __shfl_xor_sync(kAllLanes, upper ? x[u] : x[u + half], lanes);
      x[u] = (upper ? x[u + half] : x[u]) + other;
    }
  }
  for (; lanes > 0; lanes /= 2) x[0] += __shfl_xor_sync(kAllLanes, x[0], lanes);
  return x[0];
}

template <class Number>
__device__ Number warp_max(Number v) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    const Number other = __shfl_xor_sync(kAllLanes, v, lanes);
    v = other > v ? other : v;
  }
  return v;
}

// Combines the numbers of all threads of a block of kWarps warps by join(x, y); all threads get the
// result. `parts` is shared memory for kWarps numbers, which may be reused at once.
template <int kWarps, class Number, class Join>
__device__ Number block_reduce(Number v, Number none, const Join& join, Number* parts) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2)
    v = join(v, __shfl_xor_sync(kAllLanes, v, lanes));
  __syncthreads();
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = v;
  __syncthreads();
  v = none;
  for (int warp = 0; warp < kWarps; ++warp) v = join(v, parts[warp]);
  return v;
}

// --- Rows as pieces of 16 bytes; a lane reads several of them before it uses the first ---

template <class T>
inline constexpr int kPieceSize = 16 / int{sizeof(T)};  // elements
inline constexpr int kInFlight = 4;                     // pieces that a lane reads at a time

// Loads the elements of a row from k on; those from d on are 0.
template <class T>
__device__ uint4 load_piece(const T* x, int64_t k, int64_t d) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8);
  if (d % kPieceSize<T> == 0)  // then all rows are aligned
    return k < d ? __ldg(reinterpret_cast<const uint4*>(x + k)) : uint4{};
  using Bits = std::conditional_t<sizeof(T) == 2, uint16_t,
                                  std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>;
  const auto* bits = reinterpret_cast<const Bits*>(x);
  uint64_t halves[2] = {};
#pragma unroll
  for (int e = 0; e < kPieceSize<T>; ++e)
    if (k + e < d)
      halves[e * int{sizeof(T)} / 8] |= uint64_t{bits[k + e]} << (e * int{sizeof(T)} % 8 * 8);
  return {static_cast<uint32_t>(halves[0]), static_cast<uint32_t>(halves[0] >> 32),
          static_cast<uint32_t>(halves[1]), static_cast<uint32_t>(halves[1] >> 32)};
}

// Element e of a piece.
template <class T>
__device__ T element(const uint4& piece, int e) {
  const uint32_t words[4] = {piece.x, piece.y, piece.z, piece.w};
  if constexpr (sizeof(T) == 2) return T{static_cast<uint16_t>(words[e / 2] >> (e % 2 * 16))};
  else if constexpr (sizeof(T) == 4) return __uint_as_float(words[e]);
  else
    return __longlong_as_double(
        static_cast<long long>(uint64_t{words[2 * e]} | uint64_t{words[2 * e + 1]} << 32));
}

// Calls use(u, k, piece) for each of the lane's pieces of a row, which begins with element k;
// u < kInFlight counts the pieces that are read at a time.
template <class T, class Use>
__device__ void for_pieces(const T* x, int64_t d, int lane, const Use& use) {
  for (int64_t k0 = int64_t{lane} * kPieceSize<T>; k0 < d;
       k0 += kInFlight * kWarp * kPieceSize<T>) {
    uint4 pieces[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u)
      pieces[u] = load_piece(x, k0 + u * kWarp * kPieceSize<T>, d);
#pragma unroll
    for (int u = 0; u < kInFlight; ++u)
      if (k0 + u * kWarp * kPieceSize<T> < d) use(u, k0 + u * kWarp * kPieceSize<T>, pieces[u]);
  }
}

}  // namespace selfment::cuda
