// CUDA grids on the host, so that the sources of csrc/cuda run without a device: the parts of the
// language and of the runtime that they use, under the same names. For tests only.
//
// Every thread of a grid is a fiber, and all of them run on the one OS thread that launches; a
// launch returns when the grid has ended. Misuse that would hang or corrupt a device (a barrier
// that not all threads reach, a wait without end) makes the launch fail with a message that says
// where. A grid that is not cooperative runs block by block.
//
// Environment, read at every launch:
//   SELFMENT_EMULATED_ORDER         forward (default), reverse or shuffle: which thread runs next;
//                                   a shuffle is the same every time, and also switches at atomics
//   SELFMENT_EMULATED_SHARED_BYTES  the shared memory that a block may have; 101376
//   SELFMENT_EMULATED_PAUSES        calls of pause_thread() that a launch may make; 50000000
//   SELFMENT_EMULATED_TEAM          blocks of every team (at most as many as there are), whatever
//                                   teams_for would choose
//   SELFMENT_EMULATED_MMA_GROUP     products that a tensor core adds at a time, each truncated to
//                                   the precision of the largest: 4, 8 or 16; without it, one after
//                                   the other, rounded
#pragma once

#include <math.h>
#include <stdlib.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "race.h"

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

// Types.

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

#define SELFMENT_VECTOR(T, name)                                                  \
  struct __align__(2 * sizeof(T)) name##2 { T x, y; };                            \
  struct __align__(sizeof(T) < 8 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; }; \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                      \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
SELFMENT_VECTOR(int, int)
SELFMENT_VECTOR(unsigned, uint)
SELFMENT_VECTOR(long long, longlong)
SELFMENT_VECTOR(unsigned long long, ulonglong)
SELFMENT_VECTOR(float, float)
SELFMENT_VECTOR(double, double)
#undef SELFMENT_VECTOR

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

// The runtime.

using cudaStream_t = struct CUstream_st*;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidDevice = 101,
  cudaErrorLaunchFailure = 719,
  cudaErrorCooperativeLaunchTooLarge = 720,
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault,
};

enum cudaLaunchAttributeID { cudaLaunchAttributeIgnore = 0, cudaLaunchAttributeCooperative = 2 };
union cudaLaunchAttributeValue {
  char pad[64];
  int cooperative;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t status);  // after a failed launch: why and where
cudaError_t cudaGetDevice(int* device);              // there are two equal devices
cudaError_t cudaSetDevice(int device);
// For callers that have loaded a module: makes the device current, and returns the earlier one.
extern "C" __attribute__((visibility("default"))) int selfment_exchange_device(int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
// As on a device, a kernel must be allowed more than 48 KiB of shared memory before its launch.
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel,
                                                          int threads, size_t shared_bytes);
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream = nullptr);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream = nullptr);
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

namespace selfment::cuda {

unsigned char* shared_memory();
void pause_thread();

namespace emulation {

// The place where a thread waits, for messages.
struct Site {
  const char* file;
  int line;
};

enum class Wait { kNone, kBarrier, kSyncwarp, kIndex, kUp, kDown, kXor, kBallot, kAny, kAll };

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel,
                   const std::function<void()>& body);
// Waits for all threads of the block, each at this site; returns how many have a true `predicate`.
int barrier(bool predicate, Site site);
// Returns the bits of `value` in the lane that `operand` selects.
uint64_t shuffle(Wait kind, unsigned mask, uint64_t value, unsigned operand, int width, Site site);
// Returns the lanes of `mask` whose `predicate` is true.
unsigned vote(Wait kind, unsigned mask, bool predicate, Site site);
// Is called before an atomic operation: may let other threads run first.
void preempt();

// The settings of the environment; 0 if there is none.
int64_t forced_team();
int multiply_group();  // of this launch

// cp.async of 16 bytes, or of zeros. The bytes are read at once, but land at the wait; the old ones
// are gone from the start.
void copy_later(void* to, const void* from, bool exists, void* site);
void end_copies();
void land_copies(int pending);  // all groups but the last `pending`

template <class To, class From>
To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &value, sizeof to);
  return to;
}

template <class T>
T shuffle(Wait kind, unsigned mask, T value, unsigned operand, int width, Site site) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  const uint64_t bits = bits_as<Bits>(value);
  return bits_as<T>(static_cast<Bits>(shuffle(kind, mask, bits, operand, width, site)));
}

}  // namespace emulation
}  // namespace selfment::cuda

// Each thread gets its own copy of the arguments.
template <class... Expected, class... Actual>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...),
                               Actual&&... args) {
  const std::tuple<Expected...> copies(std::forward<Actual>(args)...);
  return selfment::cuda::emulation::launch(*config, reinterpret_cast<const void*>(kernel),
                                           [&] { std::apply(kernel, copies); });
}

// Barriers, shuffles and votes. The site is where the kernel calls them.

#define SELFMENT_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(SELFMENT_SITE) {
  selfment::cuda::emulation::barrier(false, {file, line});
}
inline int __syncthreads_count(int predicate, SELFMENT_SITE) {
  return selfment::cuda::emulation::barrier(predicate != 0, {file, line});
}
inline int __syncthreads_or(int predicate, SELFMENT_SITE) {
  return selfment::cuda::emulation::barrier(predicate != 0, {file, line}) != 0;
}
inline int __syncthreads_and(int predicate, SELFMENT_SITE) {
  return selfment::cuda::emulation::barrier(predicate == 0, {file, line}) == 0;
}

inline void __syncwarp(unsigned mask = 0xffffffffu, SELFMENT_SITE) {
  selfment::cuda::emulation::vote(selfment::cuda::emulation::Wait::kSyncwarp, mask, false,
                                  {file, line});
}

#define SELFMENT_SHUFFLE(name, kind, Operand)                                                     \
  template <class T>                                                                              \
  T name(unsigned mask, T value, Operand operand, int width = 32, SELFMENT_SITE) {                \
    return selfment::cuda::emulation::shuffle(selfment::cuda::emulation::Wait::kind, mask, value, \
                                              static_cast<unsigned>(operand), width,              \
                                              {file, line});                                      \
  }
SELFMENT_SHUFFLE(__shfl_sync, kIndex, int)
SELFMENT_SHUFFLE(__shfl_up_sync, kUp, unsigned)
SELFMENT_SHUFFLE(__shfl_down_sync, kDown, unsigned)
SELFMENT_SHUFFLE(__shfl_xor_sync, kXor, int)
#undef SELFMENT_SHUFFLE

inline unsigned __ballot_sync(unsigned mask, int predicate, SELFMENT_SITE) {
  using namespace selfment::cuda::emulation;
  return vote(Wait::kBallot, mask, predicate != 0, {file, line});
}
inline int __any_sync(unsigned mask, int predicate, SELFMENT_SITE) {
  using namespace selfment::cuda::emulation;
  return vote(Wait::kAny, mask, predicate != 0, {file, line}) != 0;
}
inline int __all_sync(unsigned mask, int predicate, SELFMENT_SITE) {
  using namespace selfment::cuda::emulation;
  return vote(Wait::kAll, mask, predicate != 0, {file, line}) == mask;
}

// Reductions over all lanes of a warp.
#define SELFMENT_REDUCE(name, T, joined)                                         \
  inline T name(unsigned mask, T value, SELFMENT_SITE) {                         \
    using namespace selfment::cuda::emulation;                                   \
    for (unsigned lanes = 16; lanes > 0; lanes /= 2) {                           \
      const T other = shuffle(Wait::kXor, mask, value, lanes, 32, {file, line}); \
      value = joined;                                                            \
    }                                                                            \
    return value;                                                                \
  }
SELFMENT_REDUCE(__reduce_add_sync, int, value + other)
SELFMENT_REDUCE(__reduce_max_sync, unsigned, value < other ? other : value)
#undef SELFMENT_REDUCE
#undef SELFMENT_SITE

// All threads are fibers of one OS thread, so each sees what the others have written.
inline void __threadfence() {
  __asm__ volatile("" ::: "memory");
  selfment::cuda::race::fence();
}
inline void __threadfence_block() { __asm__ volatile("" ::: "memory"); }

// Atomics, for the types for which CUDA has them. They return the old value.

#define SELFMENT_ATOMIC(name, T, result)                                            \
  SELFMENT_TOLD inline T name(T* address, T value) {                                \
    selfment::cuda::emulation::preempt();                                           \
    selfment::cuda::race::atomic_access(address, sizeof(T), true, SELFMENT_CALLER); \
    const T old = *address;                                                         \
    *address = static_cast<T>(result);                                              \
    return old;                                                                     \
  }
#define SELFMENT_ATOMICS(T)                                                         \
  SELFMENT_ATOMIC(atomicExch, T, value)                                             \
  SELFMENT_ATOMIC(atomicAnd, T, old& value)                                         \
  SELFMENT_ATOMIC(atomicOr, T, old | value)                                         \
  SELFMENT_ATOMIC(atomicXor, T, old ^ value)                                        \
  SELFMENT_ATOMIC(atomicMin, T, value < old ? value : old)                          \
  SELFMENT_ATOMIC(atomicMax, T, old < value ? value : old)                          \
  SELFMENT_TOLD inline T atomicCAS(T* address, T expected, T value) {               \
    selfment::cuda::emulation::preempt();                                           \
    selfment::cuda::race::atomic_access(address, sizeof(T), true, SELFMENT_CALLER); \
    const T old = *address;                                                         \
    if (old == expected) *address = value;                                          \
    return old;                                                                     \
  }
SELFMENT_ATOMICS(int)
SELFMENT_ATOMICS(unsigned)
SELFMENT_ATOMICS(unsigned long long)
// Signed sums wrap around.
SELFMENT_ATOMIC(atomicAdd, int, static_cast<unsigned>(old) + static_cast<unsigned>(value))
SELFMENT_ATOMIC(atomicSub, int, static_cast<unsigned>(old) - static_cast<unsigned>(value))
SELFMENT_ATOMIC(atomicAdd, unsigned, old + value)
SELFMENT_ATOMIC(atomicSub, unsigned, old - value)
SELFMENT_ATOMIC(atomicAdd, unsigned long long, old + value)
SELFMENT_ATOMIC(atomicAdd, float, old + value)
SELFMENT_ATOMIC(atomicAdd, double, old + value)
SELFMENT_ATOMIC(atomicExch, float, value)
#undef SELFMENT_ATOMICS
#undef SELFMENT_ATOMIC

// The counters at which teams of blocks meet.

namespace selfment::cuda {
inline void add_release(unsigned* counter) {
  __threadfence();
  atomicAdd(counter, 1u);
}
inline unsigned load_acquire(const unsigned* counter) {
  const unsigned count = *static_cast<const volatile unsigned*>(counter);
  __threadfence();
  return count;
}
}  // namespace selfment::cuda

// Loads and stores with a cache hint.

template <class T>
SELFMENT_TOLD T __ldg(const T* address) {
  selfment::cuda::race::noncoherent_read(address, sizeof(T), SELFMENT_CALLER);
  return *address;
}
template <class T>
T __ldcg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T>
void __stcg(T* address, T value) {
  *address = value;
}
template <class T>
void __stcs(T* address, T value) {
  *address = value;
}

// Bits.

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) {
  return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x));
}
inline unsigned long long __brevll(unsigned long long x) {
  unsigned long long reversed = 0;
  for (int i = 0; i < 64; ++i) reversed |= (x >> i & 1) << (63 - i);
  return reversed;
}
inline unsigned __brev(unsigned x) { return static_cast<unsigned>(__brevll(x) >> 32); }
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return shift % 32 == 0 ? high : high << shift % 32 | low >> (32 - shift % 32);
}

// Picks the bytes of x (0 to 3) and y (4 to 7) that the digits of the selector name.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = uint64_t{y} << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i)
    result |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return result;
}

inline unsigned __float_as_uint(float x) { return selfment::cuda::emulation::bits_as<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return selfment::cuda::emulation::bits_as<float>(x); }
inline int __float_as_int(float x) { return selfment::cuda::emulation::bits_as<int>(x); }
inline float __int_as_float(int x) { return selfment::cuda::emulation::bits_as<float>(x); }
inline long long __double_as_longlong(double x) {
  return selfment::cuda::emulation::bits_as<long long>(x);
}
inline double __longlong_as_double(long long x) {
  return selfment::cuda::emulation::bits_as<double>(x);
}

// Arithmetic, for sources compiled with -ffp-contract=off; <math.h> has the rest, in the global
// namespace.

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }

// Templates, so that functions of these names in <math.h>, which C23 has, come first.
template <class T, class = std::enable_if_t<std::is_floating_point_v<T>>>
T rsqrt(T x) {
  return 1 / std::sqrt(x);
}
template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
float rsqrtf(T x) {
  return 1 / std::sqrt(static_cast<float>(x));
}

// Only the overloads that CUDA has: a call that is ambiguous there is ambiguous here.
#define SELFMENT_MIN_MAX(A, B, T)                                                         \
  constexpr T min(A a, B b) {                                                             \
    return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(a) : static_cast<T>(b); \
  }                                                                                       \
  constexpr T max(A a, B b) {                                                             \
    return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a); \
  }
#define SELFMENT_MIN_MAX_MIXED(T)                      \
  SELFMENT_MIN_MAX(T, T, T)                            \
  SELFMENT_MIN_MAX(unsigned T, unsigned T, unsigned T) \
  SELFMENT_MIN_MAX(T, unsigned T, unsigned T)          \
  SELFMENT_MIN_MAX(unsigned T, T, unsigned T)
SELFMENT_MIN_MAX_MIXED(int)
SELFMENT_MIN_MAX_MIXED(long)
SELFMENT_MIN_MAX_MIXED(long long)
#undef SELFMENT_MIN_MAX_MIXED
#undef SELFMENT_MIN_MAX
#define SELFMENT_MIN_MAX(A, B, T)                          \
  inline T min(A a, B b) { return std::fmin(T{a}, T{b}); } \
  inline T max(A a, B b) { return std::fmax(T{a}, T{b}); }
SELFMENT_MIN_MAX(float, float, float)
SELFMENT_MIN_MAX(double, double, double)
SELFMENT_MIN_MAX(float, double, double)
SELFMENT_MIN_MAX(double, float, double)
#undef SELFMENT_MIN_MAX
