// The grids of frames that share a vector, from the host to kernels.
#pragma once

#include "platform.h"
#include "rows.cuh"

namespace selfment::cuda {

// A frame of a vector: its first patch and its grid.
struct Frame {
  int first, h, w;
};

struct Frames {
  Frame only;
  const Frame* many;  // (frames,); nullptr if there is `only` one

  __device__ Frame at(int i) const { return many == nullptr ? only : many[i]; }
};

// More than one frame go to the device as arguments of kernels, as a copy from pageable memory
// might wait.
constexpr int kFramesAtOnce = 64;
struct FrameArgs {
  Frame frames[kFramesAtOnce];
  int count;
  Frame* target;
};

static __global__ void copy_frames(FrameArgs a) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < a.count) a.target[i] = a.frames[i];
}

// The bytes of scratch memory that `store_frames` fills.
inline int64_t frames_size(int64_t frames) {
  return frames > 1 ? frames * static_cast<int64_t>(sizeof(Frame)) : 0;
}

// Makes the frames available to later kernels on the stream. `name` is for errors.
inline Frames store_frames(const char* name, const Grid* grids, int64_t count, void* scratch,
                           cudaStream_t stream) {
  auto* many = count > 1 ? static_cast<Frame*>(scratch) : nullptr;
  Frame frame{0, static_cast<int>(grids[0].h), static_cast<int>(grids[0].w)};
  const Frames frames{frame, many};
  for (int64_t done = 0; many != nullptr && done < count; done += kFramesAtOnce) {
    FrameArgs some{};
    some.target = many + done;
    for (; some.count < std::min<int64_t>(kFramesAtOnce, count - done); ++some.count) {
      const Grid& grid = grids[done + some.count];
      frame.h = static_cast<int>(grid.h);
      frame.w = static_cast<int>(grid.w);
      some.frames[some.count] = frame;
      frame.first += frame.h * frame.w;
    }
    launch(name, copy_frames, 1, kFramesAtOnce, 0, stream, some);
  }
  return frames;
}

}  // namespace selfment::cuda
