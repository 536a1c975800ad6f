// Replaces tests/emulation/emulation.h: it records launches instead of making them, on a device that
// Python describes. So the host code of csrc/cuda shows what it would launch there.
#pragma once

#include "../../tests/emulation/emulation.h"

// The emulation has these functions under their own names.
#define cudaDeviceGetAttribute selfment_recorded_attribute
#define cudaFuncSetAttribute selfment_recorded_allow
#define cudaLaunchKernelEx selfment_recorded_launch
#define cudaMemcpyAsync selfment_recorded_memcpy
#define cudaMemsetAsync selfment_recorded_memset
#define cudaOccupancyMaxActiveBlocksPerMultiprocessor selfment_recorded_occupancy

struct Recorder {
  int multiprocessors, shared_bytes;
  // Returns how many blocks of the kernel a multiprocessor can run at a time.
  int (*occupancy)(const void* kernel, int threads, int64_t shared_bytes);
  // Without a kernel, `blocks` bytes of memory are set, or copied if `threads` is 1.
  void (*launch)(const void* kernel, int64_t blocks, int threads, int64_t shared_bytes);
};
extern "C" __attribute__((visibility("default"))) inline Recorder selfment_recorder{};

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? selfment_recorder.multiprocessors
                                                       : selfment_recorder.shared_bytes;
  return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel,
                                                                 int threads, size_t shared_bytes) {
  *blocks = selfment_recorder.occupancy(kernel, threads, static_cast<int64_t>(shared_bytes));
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void*, int, size_t bytes, cudaStream_t = nullptr) {
  selfment_recorder.launch(nullptr, static_cast<int64_t>(bytes), 0, 0);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void*, const void*, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t = nullptr) {
  selfment_recorder.launch(nullptr, static_cast<int64_t>(bytes), 1, 0);
  return cudaSuccess;
}
template <class... Expected, class... Actual>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...),
                               Actual&&...) {
  selfment_recorder.launch(reinterpret_cast<const void*>(kernel), config->gridDim.x,
                           static_cast<int>(config->blockDim.x),
                           static_cast<int64_t>(config->dynamicSmemBytes));
  return cudaSuccess;
}
