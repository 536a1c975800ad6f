// Teams of blocks that work on one image together: a persistent kernel launches as many blocks as
// the device can run at a time, and they meet at barriers in device memory. The results of a team
// do not depend on its size, so that an image has the same bits alone and in a batch.
#pragma once

#include "platform.h"

namespace selfment::cuda {

class Team {
 public:
  // `arrivals` is a counter of the team's own, and 0 before the launch.
  __device__ Team(int rank, int size, unsigned* arrivals)
      : rank_(rank), size_(size), arrivals_(arrivals) {}

  __device__ int rank() const { return rank_; }

  // Waits for the whole team. All of it sees afterwards what any of it has written before.
  __device__ void sync() {
    __syncthreads();
    if (size_ == 1) return;
    due_ += static_cast<unsigned>(size_);
    if (threadIdx.x == 0) {
      add_release(arrivals_);
      // Compares the difference, as the count may wrap around.
      while (static_cast<int>(load_acquire(arrivals_) - due_) < 0) pause_thread();
    }
    __syncthreads();
  }

  // This block's share of `count` items: [first(count), last(count)).
  __device__ int64_t first(int64_t count) const { return count * rank_ / size_; }
  __device__ int64_t last(int64_t count) const { return count * (rank_ + 1) / size_; }

 private:
  int rank_, size_;
  unsigned* arrivals_;
  unsigned due_ = 0;
};

// `count` teams of `size` blocks.
struct Teams {
  int64_t count, size;
};

// Chooses the teams with the least total time for a batch. One image costs `items` units, split
// evenly among the blocks of its team; the barriers cost a team of several blocks `meeting` units.
// The batch takes as many rounds as the teams need. Ties go to the larger team, and for a count of
// teams only the largest size is considered, which keeps most blocks busy.
inline Teams teams_for(int64_t batch, int64_t blocks, int64_t items, int64_t meeting) {
  Teams best{};
  int64_t least = INT64_MAX;
  const int64_t most = std::max<int64_t>(1, std::min(items, blocks));
#if defined(SELFMENT_EMULATE)
  if (const int64_t size = std::min(blocks, emulation::forced_team()); size > 0)
    return {std::max<int64_t>(1, std::min(batch, blocks / size)), size};
#endif
  for (int64_t size = 1; size <= most; ++size) {
    const int64_t count = std::max<int64_t>(1, std::min(batch, blocks / size));
    if (size > 1) size = std::min(most, blocks / count);
    const int64_t share = (items + size - 1) / size + (size > 1 ? meeting : 0);
    const int64_t time = (batch + count - 1) / count * share;
    if (time > least) continue;
    least = time;
    best = {count, size};
  }
  return best;
}

}  // namespace selfment::cuda
