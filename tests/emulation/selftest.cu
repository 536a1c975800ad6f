// Checks of the emulation: `selftest good` runs kernels that must work; `selftest NAME` runs one
// kernel, which usually is wrong, and prints the result.
#include <sys/resource.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/jacobi.cuh"
#include "cuda/pair_list.cuh"
#include "cuda/platform.h"
#include "cuda/team.cuh"

using selfment::kWord;
using selfment::word_count;
using namespace selfment::cuda;

namespace {

struct Args {
  int64_t* out;
  int* counter;
  int rounds;
};

void require(bool holds, const char* what, int line) {
  if (holds) return;
  std::printf("line %d: %s\n", line, what);
  std::exit(1);
}
#define REQUIRE(condition) require(condition, #condition, __LINE__)

__device__ __forceinline__ int64_t thread_number() {
  return int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
}

// The sum over the block of a value of each thread, by shuffles and shared memory.
__device__ int64_t block_sum(int64_t value) {
  auto* sums = reinterpret_cast<long long*>(shared_memory());
  long long sum = value;
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = sum;
  __syncthreads();
  sum = 0;
  for (unsigned i = 0; i < blockDim.x / kWarp; ++i) sum += sums[i];
  return sum;
}

__global__ void __launch_bounds__(1024) sum_kernel(const __grid_constant__ Args args) {
  const int64_t sum = block_sum(thread_number());
  args.out[thread_number()] = sum;
}

// Shows which lane each shuffle reads, in types of 4 and 8 bytes; and the votes.
__global__ void warp_kernel(Args args) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  bool right = __shfl_sync(kAllLanes, lane, 7) == 7;
  right = right && __shfl_sync(kAllLanes, lane + 0.5, lane + 1) == (lane + 1) % kWarp + 0.5;
  right = right && __shfl_sync(kAllLanes, lane, 9, 8) == lane / 8 * 8 + 1;
  right =
      right && __shfl_up_sync(kAllLanes, -1.5f * lane, 3) == -1.5f * (lane < 3 ? lane : lane - 3);
  right = right && __shfl_down_sync(kAllLanes, 1ll << lane, 5) ==
                       1ll << (lane + 5 < kWarp ? lane + 5 : lane);
  right = right && __shfl_down_sync(kAllLanes, lane, 1, 4) == (lane % 4 == 3 ? lane : lane + 1);
  right = right && __shfl_xor_sync(kAllLanes, 3u * lane, 10) == 3u * (lane ^ 10);
  right = right && __ballot_sync(kAllLanes, lane % 3 == 0) == 0x49249249u;
  right = right && __any_sync(kAllLanes, lane == 31) && !__any_sync(kAllLanes, lane == 32);
  right = right && __all_sync(kAllLanes, lane < 32) && !__all_sync(kAllLanes, lane < 31);
  // Each half of the warp on its own.
  const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  for (int i = 0; i < (lane < 16 ? 3 : 5); ++i)
    right = right && __ballot_sync(half, lane & 1) == (half & 0xaaaaaaaau);
  __syncwarp();
  args.out[thread_number()] = right ? 1 : 0;
}

__global__ void vote_kernel(Args args) {
  const int i = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  bool right = __syncthreads_count(i % 2) == n / 2;
  right = right && __syncthreads_or(i == 5) != 0 && __syncthreads_or(0) == 0;
  right = right && __syncthreads_and(1) != 0 && __syncthreads_and(i != 5) == 0;
  args.out[thread_number()] = right ? 1 : 0;
}

__global__ void index_kernel(Args args) {
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const int size = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  args.out[block * size + thread] += thread + 1000 * block;
  args.out = nullptr;  // of this thread only
}

__global__ void atomic_kernel(Args args) {
  const int i = static_cast<int>(thread_number());
  auto* sum = reinterpret_cast<unsigned long long*>(args.out);
  auto* real = reinterpret_cast<double*>(args.out + 1);
  atomicAdd(sum, 1ull << 32);
  atomicAdd(real, 0.5);
  atomicOr(sum + 2, 1ull << (i % 64));
  atomicMax(args.counter, i);
  atomicMin(args.counter + 1, -i);
  // A sum by compare and swap.
  unsigned long long seen = sum[3], expected;
  do {
    expected = seen;
    seen = atomicCAS(sum + 3, expected, expected + i);
  } while (seen != expected);
}

struct JacobiArgs {
  double *a, *v, *values, *vectors;
  int size;
};

__global__ void jacobi_kernel(JacobiArgs args) {
  auto* shared = reinterpret_cast<double*>(shared_memory());
  jacobi(args.a, args.v, args.size, args.values, args.vectors, shared,
         reinterpret_cast<int*>(shared + args.size + 1));
}

// The last block to arrive releases the others; then each reads what its neighbour has written.
__global__ void grid_kernel(Args args) {
  const int blocks = static_cast<int>(gridDim.x);
  for (int round = 0; round < args.rounds; ++round) {
    const int64_t n = int64_t{blocks} * blockDim.x;
    args.out[thread_number()] += round;
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      atomicAdd(args.counter, 1);
      while (*const_cast<volatile int*>(args.counter) < blocks * (2 * round + 1)) pause_thread();
      __threadfence();
    }
    __syncthreads();
    const int64_t next = args.out[(thread_number() + blockDim.x) % n];
    if (next != round * (round + 1) / 2) args.counter[1] = 1;
    __syncthreads();
    if (threadIdx.x == 0) {
      atomicAdd(args.counter, 1);
      while (*const_cast<volatile int*>(args.counter) < blocks * (2 * round + 2)) pause_thread();
    }
    __syncthreads();
  }
}

__global__ void garbage_kernel(Args args) {
  const auto address = reinterpret_cast<uintptr_t>(shared_memory());
  const bool right = address % 128 == 0 && shared_memory()[threadIdx.x] == 0xAB;
  __syncthreads();
  shared_memory()[threadIdx.x] = 0;
  args.out[thread_number()] = right ? 1 : 0;
}

__global__ void barrier_kernel(Args args) {
  for (int i = 0; i < args.rounds; ++i) __syncthreads();
}

// Shows the order in which threads run.
__global__ void order_kernel(Args args) {
  args.out[thread_number()] = args.counter[0];
  args.counter[0] += 1;
}

// Wrong kernels.

__global__ void missing_kernel(Args args) {
  auto* values = reinterpret_cast<int*>(shared_memory());
  const unsigned i = threadIdx.x, n = blockDim.x;
  values[i] = static_cast<int>(i);
  args.out[i] = int64_t{values[(i + 1) % n]} + values[(i + n - 1) % n];
}

__global__ void racing_kernel(Args args) {
  const int old = args.counter[0];
  atomicAdd(args.counter + 1, 1);
  args.counter[0] = old + 1;
}

__global__ void divergent_kernel(Args) {
  __syncthreads();
  __syncwarp();
  if (threadIdx.x < kWarp) __syncthreads();
}

__global__ void branches_kernel(Args) {
  if (threadIdx.x < kWarp) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void lanes_kernel(Args args) {
  if (threadIdx.x % kWarp != 3) args.out[0] = __shfl_sync(kAllLanes, 1, 0);
}

__global__ void mixed_kernel(Args args) {
  if (threadIdx.x % kWarp < 16) {
    args.out[0] = __shfl_xor_sync(kAllLanes, 1, 1);
  } else {
    args.out[0] = __shfl_down_sync(kAllLanes, 1, 1);
  }
}

__global__ void outside_kernel(Args args) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (lane < 16) args.out[0] = __shfl_sync(0xffffu, lane, 16);
}

__global__ void waiting_kernel(Args args) {
  if (threadIdx.x == 0)
    while (*const_cast<volatile int*>(args.counter) == 0) pause_thread();
  __syncthreads();
}

__global__ void overrun_kernel(Args args) {
  args.out[threadIdx.x] = shared_memory()[threadIdx.x + 1];
}

__global__ void overflow_kernel(Args args) {
  volatile int deep[1 << 10];
  deep[0] = args.rounds;
  if (deep[0] > 0) overflow_kernel({args.out, args.counter, deep[0] + 1});
  args.out[0] = deep[0];
}

struct Grid {
  std::vector<int64_t> out = std::vector<int64_t>(4096);
  std::vector<int> counter = std::vector<int>(2);

  void run(void (*kernel)(Args), int blocks, int threads, int64_t shared, bool cooperative = false,
           int rounds = 0) {
    launch("kernel", kernel, blocks, threads, shared, nullptr,
           Args{out.data(), counter.data(), rounds}, cooperative);
  }

  bool all(int64_t value, int64_t size) const {
    for (int64_t i = 0; i < size; ++i)
      if (out[i] != value) return false;
    return true;
  }
};

// Returns the message of a launch that must fail.
template <class Call>
std::string failure(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

bool contains(const std::string& text, const char* part) {
  return text.find(part) != std::string::npos;
}

void check_kernels() {
  for (const int threads : {32, 96, 1024}) {
    Grid grid;
    grid.run(sum_kernel, 2, threads, 32 * 8);
    const int64_t n = threads;
    REQUIRE(grid.out[0] == n * (n - 1) / 2 && grid.out[2 * n - 1] == n * (3 * n - 1) / 2);
    REQUIRE(grid.out[n - 1] == grid.out[0] && grid.out[n] == grid.out[2 * n - 1]);
  }
  Grid warp, vote, atomic, together, garbage;
  warp.run(warp_kernel, 2, 64, 0);
  REQUIRE(warp.all(1, 128));
  vote.run(vote_kernel, 1, 64, 0);
  REQUIRE(vote.all(1, 64));
  atomic.run(atomic_kernel, 3, 128, 0);
  double half;
  std::memcpy(&half, &atomic.out[1], sizeof half);
  REQUIRE(atomic.out[0] == int64_t{384} << 32 && half == 192 && atomic.out[2] == -1);
  REQUIRE(atomic.counter[0] == 383 && atomic.counter[1] == -383);
  REQUIRE(atomic.out[3] == 383 * 384 / 2);
  together.run(grid_kernel, 3, 512, 0, true, 5);
  REQUIRE(together.all(10, 3 * 512) && together.counter[0] == 30 && together.counter[1] == 0);
  garbage.run(garbage_kernel, 5, 64, 64);
  REQUIRE(garbage.all(1, 5 * 64));

  Grid grid;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(2, 3, 2);
  config.blockDim = dim3(4, 8, 2);
  REQUIRE(cudaLaunchKernelEx(&config, index_kernel, Args{grid.out.data(), nullptr, 0}) ==
          cudaSuccess);
  for (int i = 0; i < 12 * 64; ++i) REQUIRE(grid.out[i] == i % 64 + i / 64 * 1000);
}

void check_limits() {
  Grid grid;
  const auto run = [&](int blocks, int threads, int64_t shared, bool cooperative) {
    return failure([&] { grid.run(barrier_kernel, blocks, threads, shared, cooperative); });
  };
  REQUIRE(run(3, 32, 0, true) == "no error");
  REQUIRE(contains(run(4, 32, 0, true), "too many blocks in cooperative launch"));
  REQUIRE(run(4, 1024, 0, false) == "no error");
  REQUIRE(contains(run(1, 1056, 0, false), "a block of 1056 threads"));
  REQUIRE(contains(run(1, 48, 0, false), "a block of 48 threads"));
  REQUIRE(contains(
      failure([&] { launch("kernel", barrier_kernel, int64_t{1} << 32, 32, 0, nullptr, Args{}); }),
      "kernel: the batch needs a grid of 4294967296 blocks"));
  REQUIRE(cudaGetLastError() == cudaSuccess);

  const Device found = device();
  REQUIRE(found.multiprocessors == 3);
  REQUIRE(resident_blocks("resident", barrier_kernel, 512, found.shared_bytes) == 3);
  REQUIRE(resident_blocks("resident", barrier_kernel, 512, found.shared_bytes + 1) == 0);
  REQUIRE(run(1, 32, 48 << 10, false) == "no error");
  REQUIRE(contains(run(1, 32, (48 << 10) + 1, false), "where the kernel may have 49152"));
  allow_shared("allow", barrier_kernel);
  REQUIRE(run(1, 32, found.shared_bytes, false) == "no error");
  REQUIRE(contains(run(1, 32, found.shared_bytes + 1, false), "bytes of shared memory"));
  int current = -1;
  REQUIRE(cudaSetDevice(1) == cudaSuccess && cudaSetDevice(2) == cudaErrorInvalidDevice);
  REQUIRE(cudaGetDevice(&current) == cudaSuccess && current == 1);
  REQUIRE(cudaSetDevice(0) == cudaSuccess);
  REQUIRE(cudaGetLastError() == cudaErrorInvalidDevice && cudaGetLastError() == cudaSuccess);
}

// Tries matrices like those after a restart, which are diagonal except for a row, and full ones:
// the eigenpairs are right, and the sweeps end because nothing is left to rotate.
void check_jacobi() {
  for (const int size : {1, 2, 7, 48, 64})
    for (const bool full : {false, true}) {
      std::vector<double> a(size * size), v(size * size), values(size), vectors(size * size);
      for (int i = 0; i < size; ++i)
        for (int j = 0; j <= i; ++j)
          if (full || i == j || j == size / 3 || i == size / 3)
            a[i * size + j] = a[j * size + i] =
                std::sin(1.0 + 7 * i * i + 3 * j) / (i == j ? 1 : 9);
      const std::vector<double> given = a;
      launch("jacobi", jacobi_kernel, 1, 64, (size + 2) * 8, nullptr,
             JacobiArgs{a.data(), v.data(), values.data(), vectors.data(), size});
      for (int i = 0; i < size; ++i) {
        REQUIRE(i == 0 || values[i - 1] >= values[i]);
        for (int j = 0; j < size; ++j) {
          double image = 0, product = 0;
          for (int k = 0; k < size; ++k) {
            image += given[j * size + k] * vectors[i * size + k];
            product += vectors[i * size + k] * vectors[j * size + k];
          }
          REQUIRE(std::fabs(image - values[i] * vectors[i * size + j]) < 1e-13);
          REQUIRE(std::fabs(product - (i == j ? 1 : 0)) < 1e-13);
          REQUIRE(i == j || std::fabs(a[i * size + j]) <= 0x1p-52);
        }
      }
    }
}

// A pair's number identifies it, in the last image of a large batch, in a large image, and between
// sides of other sizes.
void check_pairs() {
  struct Last {
    int64_t batch, n, m;
  };
  for (const auto& [batch, n, m] : {Last{70000, 4, 4},
                                    {100000000, 1, 1},
                                    {300, 100000, 100000},
                                    {1, 8192, 300},
                                    {1, 70, 90000}}) {
    const int64_t rows = word_count(n), columns = word_count(m), i = n - 1;
    for (const int64_t j : {m / 3, m - 1}) {
      const int64_t tile = tile_number(batch - 1, i / kWord, j / kWord, rows, columns);
      const int row = static_cast<int>(i % kWord), column = static_cast<int>(j % kWord);
      const Pair pair = pair_of(pair_number(tile, row, column), rows, columns);
      REQUIRE(pair.image == batch - 1 && pair.i == i && pair.j == j);
    }
  }
  REQUIRE(pair_capacity(1, 4) == 10 && pair_capacity(70000, 4) == 700000);
  REQUIRE(pair_capacity(1, 2304) == 41472 && pair_capacity(1, 100000) == kMostPairs);
  REQUIRE(pair_capacity(100000000, 100) == kMostPairs && kMostPairs * sizeof(int64_t) == 64 << 20);
}

void check_teams() {
  // A single image uses the whole device, if it is large enough; many images have a block each.
  REQUIRE(teams_for(1, 132, 36, 9).size == 36 && teams_for(1, 132, 400, 1).size == 132);
  REQUIRE(teams_for(132, 132, 36, 9).size == 1 && teams_for(5000, 132, 36, 9).count == 132);
  REQUIRE(teams_for(1, 132, 2, 161).size == 1 && teams_for(8, 132, 36, 9).size == 16);
  REQUIRE(teams_for(3, 0, 36, 9).size == 1 && teams_for(3, 0, 36, 9).count == 1);
  for (int64_t batch = 1; batch < 300; ++batch)
    for (const int64_t items : {1, 15, 36, 400}) {
      const Teams teams = teams_for(batch, 132, items, 1 + 320 / items);
      REQUIRE(teams.size >= 1 && teams.size <= items && teams.count <= batch);
      REQUIRE(teams.count * teams.size <= 132);
    }
  // A batch of just over half of the blocks: in teams of one nearly half of them would be idle.
  const Teams teams = teams_for(67, 132, 400, 1);
  REQUIRE((67 + teams.count - 1) / teams.count * (400 + teams.size - 1) / teams.size < 300);
}

void check_arithmetic() {
  REQUIRE(__popc(0xf0u) == 4 && __popcll(~0ull) == 64);
  REQUIRE(__ffs(0) == 0 && __ffs(8) == 4 && __ffsll(1ll << 40) == 41);
  REQUIRE(__clz(0) == 32 && __clz(1) == 31 && __clzll(0) == 64 && __clzll(-1) == 0);
  REQUIRE(__brev(1u) == 1u << 31 && __brev(6u) == 3u << 29 && __brevll(2) == 1ull << 62);
  REQUIRE(__float_as_uint(1.f) == 0x3f800000u && __uint_as_float(0x40000000u) == 2.f);
  REQUIRE(__longlong_as_double(__double_as_longlong(-0.1)) == -0.1);
  REQUIRE(min(3, -1) == -1 && max(-1, 1u) == ~0u && min(int64_t{5}, int64_t{4}) == 4);
  REQUIRE(min(1.5f, 1.25) == 1.25 && max(NAN, 2.f) == 2.f && fabs(-1.5f) == 1.5f);
  REQUIRE(rsqrt(0.25) == 2 && rsqrtf(4.f) == 0.5f && sizeof(sqrt(1.f)) == 4 && INFINITY > 1e38f);
  REQUIRE(__fmaf_rn(1 + 0x1p-12f, 1 - 0x1p-12f, -1.f) == -0x1p-24f);
  REQUIRE(make_float4(1, 2, 3, 4).w == 4 && alignof(float4) == 16 && alignof(double2) == 16);
}

}  // namespace

int main(int count, char** arguments) {
  const std::string name = count > 1 ? arguments[1] : "";
  struct Wrong {
    const char* name;
    void (*kernel)(Args);
    bool cooperative;
  };
  const Wrong wrongs[] = {
      {"divergent", divergent_kernel, false}, {"branches", branches_kernel, false},
      {"lanes", lanes_kernel, false},         {"mixed", mixed_kernel, false},
      {"outside", outside_kernel, false},     {"waiting", waiting_kernel, true},
      {"overrun", overrun_kernel, false},     {"overflow", overflow_kernel, false}};
  Grid grid;
  if (name == "good") {
    check_kernels();
    check_limits();
    check_jacobi();
    check_pairs();
    check_teams();
    check_arithmetic();
    return 0;
  }
  if (name == "missing") {
    grid.run(missing_kernel, 1, 64, 64 * 4);
    int wrong = 0;
    for (int i = 0; i < 64; ++i) wrong += grid.out[i] != (i + 1) % 64 + (i + 63) % 64;
    std::printf("%d of 64 are wrong\n", wrong);
    return 0;
  }
  if (name == "racing") {
    grid.run(racing_kernel, 1, 64, 0);
    std::printf("%d of %d\n", grid.counter[0], grid.counter[1]);
    return 0;
  }
  if (name == "order") {
    std::printf("%s\n", failure([&] { grid.run(order_kernel, 2, 32, 0); }).c_str());
    for (int i = 0; i < 64; ++i) std::printf("%d ", static_cast<int>(grid.out[i]));
    std::printf("\n");
    return 0;
  }
  if (name == "shared") {
    std::printf("%d\n", device().shared_bytes);
    return 0;
  }
  if (name == "switches") {
    // Processor seconds for six million switches, and the system's part of them.
    const auto seconds = [](const timeval& time) { return time.tv_sec + 1e-6 * time.tv_usec; };
    rusage before, after;
    grid.run(barrier_kernel, 3, 512, 0, true, 1);  // the stacks are there from here on
    getrusage(RUSAGE_SELF, &before);
    grid.run(barrier_kernel, 3, 512, 0, true, 4000);
    getrusage(RUSAGE_SELF, &after);
    const double system = seconds(after.ru_stime) - seconds(before.ru_stime);
    const double user = seconds(after.ru_utime) - seconds(before.ru_utime);
    std::printf("%.6f %.6f\n", user + system, system);
    return 0;
  }
  for (const Wrong& wrong : wrongs) {
    if (name != wrong.name) continue;
    const auto run = [&] { grid.run(wrong.kernel, 2, 64, 64, wrong.cooperative, 1); };
    std::printf("%s\n", failure(run).c_str());
    check_kernels();  // a failed launch leaves nothing behind
    return 0;
  }
  return 2;
}
