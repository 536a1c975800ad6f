// The parts of the CUDA language and runtime that the kernels use beyond C++. For tests on a host
// without a device, an emulation of a grid replaces them (SELFMENT_EMULATE, see tests/emulation).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>

#include "../params.h"

#if defined(SELFMENT_EMULATE)
#include "emulation.h"
#else
#include <cuda_runtime.h>
#endif

namespace selfment::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

// A failed call of the CUDA runtime; what() names the kernel or the call.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // or the next call would report it again
  throw Error(std::string("CUDA error in ") + what + ": " + cudaGetErrorString(status));
}

// Properties of the current device.
struct Device {
  int multiprocessors;
  int shared_bytes;  // the most shared memory of a block
};

inline Device device() {
  int id = 0;
  Device properties{};
  check(cudaGetDevice(&id), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&properties.multiprocessors, cudaDevAttrMultiProcessorCount, id),
        "cudaDeviceGetAttribute");
  check(
      cudaDeviceGetAttribute(&properties.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, id),
      "cudaDeviceGetAttribute");
  return properties;
}

// Allows the kernel as much dynamic shared memory as a block can have. It must not allow less: the
// limit belongs to the kernel, and another thread may be about to launch it with more.
template <class Kernel>
void allow_shared(const char* name, Kernel* kernel) {
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, device().shared_bytes),
        name);
}

// Returns how many blocks of a kernel the whole device can run at a time, each with this much
// shared memory.
template <class Kernel>
int64_t resident_blocks(const char* name, Kernel* kernel, int threads, int64_t shared_bytes) {
  int each = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, reinterpret_cast<const void*>(kernel),
                                                      threads, static_cast<size_t>(shared_bytes)),
        name);
  return int64_t{each} * device().multiprocessors;
}

// Launches kernel(args) on the stream. The blocks of a `cooperative` grid are all resident at once,
// so that they may wait for each other; a grid that is too large for that is an error.
template <class Args>
void launch(const char* name, void (*kernel)(Args), int64_t blocks, int threads,
            int64_t shared_bytes, cudaStream_t stream, const Args& args, bool cooperative = false) {
  if (blocks == 0) return;
  if (blocks > INT32_MAX)
    throw Error(std::string(name) + ": the batch needs a grid of " + std::to_string(blocks) +
                " blocks, and a device takes " + std::to_string(INT32_MAX));
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = cooperative ? 1 : 0;
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, args), name);
}

#if defined(SELFMENT_EMULATE)
#define SELFMENT_CALL
template <class T>
T* global(T* address) {
  return address;
}
template <class T>
T* local(T* address) {
  return address;
}
inline unsigned shared_address(const void* address) {
  return static_cast<unsigned>(static_cast<const unsigned char*>(address) - shared_memory());
}
inline double load_shared(unsigned address) {
  return *reinterpret_cast<const double*>(shared_memory() + address);
}
#elif defined(__CUDACC__)
// Marks a function that must not be inlined: inlined everywhere, it would need more registers than
// there are.
#define SELFMENT_CALL __noinline__

// The block's dynamic shared memory.
__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(256) unsigned char selfment_shared[];
  return selfment_shared;
}

// Returns the same address, and tells the compiler that it is in global memory, or that it belongs
// to a local variable of the thread. Otherwise every load and store would have to check.
template <class T>
__device__ T* global(T* address) {
  __builtin_assume(__isGlobal(address));
  return address;
}
template <class T>
__device__ T* local(T* address) {
  __builtin_assume(__isLocal(address));
  return address;
}

// Addresses in shared memory as numbers. The address of shared_memory() is a multiple of 256.
__device__ inline unsigned shared_address(const void* address) {
  return static_cast<unsigned>(__cvta_generic_to_shared(address));
}
__device__ inline double load_shared(unsigned address) {
  return *static_cast<const double*>(__cvta_shared_to_generic(address));
}

// Adds 1 to a counter in global memory. A thread that reads the new count by load_acquire sees all
// that this thread, and the threads that it has met at a barrier, wrote before; and so do the
// threads that meet the reader.
__device__ inline void add_release(unsigned* counter) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(__cvta_generic_to_global(counter))
               : "memory");
}
__device__ inline unsigned load_acquire(const unsigned* counter) {
  unsigned count;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
               : "=r"(count)
               : "l"(__cvta_generic_to_global(counter))
               : "memory");
  return count;
}

// Lets other threads run while this one waits for another block.
__device__ inline void pause_thread() { __nanosleep(20); }
#endif

}  // namespace selfment::cuda
