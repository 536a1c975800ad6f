// A happens-before race detector for the emulated grids (see README.md): the events that the
// scheduler and the device functions report to it. Without SELFMENT_RACES the calls are empty.
#pragma once

#include <cstddef>
#include <cstdint>

namespace selfment::cuda::race {

#if defined(SELFMENT_RACES)

// --- From the scheduler ---

void begin_launch();
// Blocks begin that run at the same time; their threads are numbered block by block.
void begin_round(int blocks, int threads_each);
void end_round();
// A block's shared memory, of which nothing is written yet.
void shared_memory(int block, void* address, size_t size);
void barrier(int first_thread, int threads);
void syncwarp(int first_lane, unsigned mask);
// State of the scheduler: the running thread, -1 outside kernels; true if an address is on a
// fiber's stack.
int current_thread();
bool is_stack(const void* address);

// --- From device functions; `site` is where they are called ---

void fence();
void atomic_access(const void* address, int size, bool writes, void* site);
void noncoherent_read(const void* address, int size, void* site);
void plain_read(const void* address, int size, void* site);
void begin_copy(const void* to, const void* from, int size, void* site);  // from: nullptr for zeros
void land_copy(const void* to, int size, void* site);

#else

inline void begin_launch() {}
inline void begin_round(int, int) {}
inline void end_round() {}
inline void shared_memory(int, void*, size_t) {}
inline void barrier(int, int) {}
inline void syncwarp(int, unsigned) {}
inline void fence() {}
inline void atomic_access(const void*, int, bool, void*) {}
inline void noncoherent_read(const void*, int, void*) {}
inline void plain_read(const void*, int, void*) {}
inline void begin_copy(const void*, const void*, int, void*) {}
inline void land_copy(const void*, int, void*) {}

#endif

}  // namespace selfment::cuda::race

// Marks a device function of the emulation, which reports its accesses itself.
#if defined(SELFMENT_RACES)
#define SELFMENT_TOLD __attribute__((noinline, no_sanitize("thread")))
#else
#define SELFMENT_TOLD
#endif
#define SELFMENT_CALLER __builtin_return_address(0)
