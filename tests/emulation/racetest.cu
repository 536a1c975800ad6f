// Checks of the race detector: `racetest NAME` runs one small kernel. Kernels named "..._right"
// have no race, all others have one.
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/operand_product.cuh"
#include "cuda/platform.h"

using namespace selfment::cuda;

namespace {

struct Args {
  int* memory;
  unsigned* flag;
  bool right;  // with what orders the accesses
};

__device__ int lane() { return static_cast<int>(threadIdx.x); }

// Pass a value through shared memory to the neighbour.
__global__ void barrier_kernel(Args args) {
  auto* shared = reinterpret_cast<int*>(shared_memory());
  shared[lane()] = lane();
  if (args.right) __syncthreads();
  args.memory[lane()] = shared[(lane() + 1) % 64];
}

__global__ void turn_kernel(Args args) {
  auto* shared = reinterpret_cast<int*>(shared_memory());
  for (int i = 0; i < 2; ++i) {
    if (lane() == 0) shared[0] = i;
    __syncthreads();
    args.memory[lane()] = shared[0];
    if (args.right) __syncthreads();
  }
}

__global__ void warp_kernel(Args args) {
  auto* shared = reinterpret_cast<int*>(shared_memory());
  shared[lane()] = lane();
  __any_sync(kAllLanes, 1);  // orders nothing
  if (args.right) __syncwarp();
  args.memory[lane()] = shared[lane() ^ 1];
}

__global__ void same_value_kernel(Args args) {
  if (args.right) atomicExch(args.memory, 1);
  else args.memory[0] = 1;
}

// Pass a value from one block to another.
__device__ void pass_on(const Args& args, bool release, bool acquire, bool strong) {
  if (lane() != 0) return;
  if (blockIdx.x == 0) {
    args.memory[0] = 7;
    if (release) __threadfence();
    if (strong) atomicAdd(args.flag, 1u);
    else *args.flag = 1;
  } else {
    while (*const_cast<volatile unsigned*>(args.flag) == 0) pause_thread();
    if (acquire) __threadfence();
    args.memory[1] = args.memory[0];
  }
}
__global__ void release_kernel(Args args) { pass_on(args, args.right, true, true); }
__global__ void acquire_kernel(Args args) { pass_on(args, true, args.right, true); }
__global__ void strong_kernel(Args args) { pass_on(args, true, true, args.right); }

__global__ void blocks_kernel(Args args) {
  if (lane() == 0) args.memory[args.right ? blockIdx.x : 0] += 1;
}

__global__ void copy_kernel(Args args) {
  auto* shared = reinterpret_cast<uint16_t*>(shared_memory());
  const auto* from = reinterpret_cast<const uint16_t*>(args.memory);
  copy_piece(shared + 8 * lane(), from + 8 * lane(), true);
  end_copies();
  if (args.right) wait_for_copies<0>();
  args.flag[lane()] = shared[8 * lane()];
}

__global__ void noncoherent_kernel(Args args) {
  args.memory[lane()] = lane();
  args.flag[lane()] =
      static_cast<unsigned>(args.right ? args.memory[lane()] : __ldg(args.memory + lane()));
}

__global__ void uninitialised_kernel(Args args) {
  auto* shared = reinterpret_cast<int*>(shared_memory());
  if (args.right) shared[lane()] = 0;
  args.memory[lane()] = shared[lane()];
}

}  // namespace

int main(int count, char** arguments) {
  std::string name = count > 1 ? arguments[1] : "";
  const size_t end = name.find("_right");
  const bool right = end != std::string::npos;
  if (right) name.resize(end);
  struct Case {
    const char* name;
    void (*kernel)(Args);
    int blocks, threads;
    bool cooperative;
  };
  const Case cases[] = {
      {"barrier", barrier_kernel, 1, 64, false},
      {"turn", turn_kernel, 1, 64, false},
      {"warp", warp_kernel, 1, 32, false},
      {"same_value", same_value_kernel, 1, 64, false},
      {"release", release_kernel, 2, 32, true},
      {"acquire", acquire_kernel, 2, 32, true},
      {"strong", strong_kernel, 2, 32, true},
      {"blocks", blocks_kernel, 2, 32, false},
      {"copy", copy_kernel, 1, 32, false},
      {"noncoherent", noncoherent_kernel, 1, 32, false},
      {"uninitialised", uninitialised_kernel, 1, 32, false},
  };
  std::vector<int> memory(256);
  std::vector<unsigned> flag(64);
  for (const Case& one : cases) {
    if (name != one.name) continue;
    launch(one.name, one.kernel, one.blocks, one.threads, 1024, nullptr,
           Args{memory.data(), flag.data(), right}, one.cooperative);
    return 0;
  }
  return 2;
}
