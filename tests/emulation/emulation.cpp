// The scheduler of the emulated grids. A thread of a grid runs on a worker: a stack of its own, on
// which it can be left and entered again. A worker whose thread has ended goes on with the next one
// that has not begun, so that threads that never wait cost no switch.
#include "emulation.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define SELFMENT_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SELFMENT_ASAN
#endif
#endif
#if defined(SELFMENT_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__) && !defined(__aarch64__)
#define SELFMENT_EMULATE_UCONTEXT
#endif
#if defined(SELFMENT_EMULATE_UCONTEXT)
#include <ucontext.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace selfment::cuda::emulation {

namespace {

constexpr int kLanes = 32;
constexpr int kDevices = 2;
constexpr int kMultiprocessors = 3;
constexpr unsigned kMaxThreads = 1024;
constexpr int64_t kSharedBytes = 99 << 10;
constexpr int64_t kSharedUnasked = 48 << 10;  // what a kernel may have without being allowed it
constexpr int64_t kPauses = 50000000;
constexpr int kCopy = 16;  // bytes
#if defined(SELFMENT_ASAN)
constexpr size_t kStack = 256 << 10;
#elif defined(SELFMENT_RACES)
constexpr size_t kStack = 128 << 10;
#else
constexpr size_t kStack = 64 << 10;
#endif
constexpr size_t kArena = size_t{1} << 30;  // all stacks: address space, of which little is used

// A place to return to: in a worker, or in the launch.
struct Context {
#if defined(SELFMENT_EMULATE_UCONTEXT)
  ucontext_t machine;
#else
  void* stack_pointer;
#endif
  // For the address sanitizer.
  void* fake_stack;
  const void* bottom;
  size_t size;
};

#if defined(SELFMENT_EMULATE_UCONTEXT)

void switch_machine(Context& from, Context& to) { swapcontext(&from.machine, &to.machine); }

void prepare_machine(Context& context, unsigned char* stack, void (*entry)()) {
  getcontext(&context.machine);
  context.machine.uc_stack.ss_sp = stack;
  context.machine.uc_stack.ss_size = kStack;
  makecontext(&context.machine, entry, 0);
}

#else

// Saves the registers that a call preserves on the stack, and continues on another stack.
extern "C" void selfment_switch(void** from, void* to) __asm__("selfment_switch")
    __attribute__((visibility("hidden")));

#if defined(__x86_64__)
constexpr int kSaved = 8, kEntry = 6;  // words of a stack that is left; which is the address
__asm__(
    ".text\n"
    ".p2align 4\n"
    "selfment_switch:\n"
    "  pushq %rbp\n"
    "  pushq %rbx\n"
    "  pushq %r12\n"
    "  pushq %r13\n"
    "  pushq %r14\n"
    "  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n"
    "  popq %r14\n"
    "  popq %r13\n"
    "  popq %r12\n"
    "  popq %rbx\n"
    "  popq %rbp\n"
    "  ret\n");
#else
constexpr int kSaved = 20, kEntry = 11;
__asm__(
    ".text\n"
    ".p2align 4\n"
    "selfment_switch:\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp]\n"
    "  stp x21, x22, [sp, #16]\n"
    "  stp x23, x24, [sp, #32]\n"
    "  stp x25, x26, [sp, #48]\n"
    "  stp x27, x28, [sp, #64]\n"
    "  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n"
    "  stp d10, d11, [sp, #112]\n"
    "  stp d12, d13, [sp, #128]\n"
    "  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n"
    "  str x9, [x0]\n"
    "  mov sp, x1\n"
    "  ldp x19, x20, [sp]\n"
    "  ldp x21, x22, [sp, #16]\n"
    "  ldp x23, x24, [sp, #32]\n"
    "  ldp x25, x26, [sp, #48]\n"
    "  ldp x27, x28, [sp, #64]\n"
    "  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n"
    "  ldp d10, d11, [sp, #112]\n"
    "  ldp d12, d13, [sp, #128]\n"
    "  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n"
    "  ret\n");
#endif

void switch_machine(Context& from, Context& to) {
  selfment_switch(&from.stack_pointer, to.stack_pointer);
}

void prepare_machine(Context& context, unsigned char* stack, void (*entry)()) {
  void** saved = reinterpret_cast<void**>(stack + kStack) - kSaved;
  std::fill_n(saved, kSaved, nullptr);
  saved[kEntry] = reinterpret_cast<void*>(entry);
  context.stack_pointer = saved;
}

#endif

Context* came_from;

// Must be called first after a switch to `self`.
void arrive([[maybe_unused]] Context& self) {
#if defined(SELFMENT_ASAN)
  __sanitizer_finish_switch_fiber(self.fake_stack, &came_from->bottom, &came_from->size);
#endif
}

void switch_context(Context& from, Context& to) {
  came_from = &from;
#if defined(SELFMENT_ASAN)
  __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.size);
#endif
  switch_machine(from, to);
  arrive(from);
}

struct Worker {
  unsigned char* stack;
  Context context;
};

struct Block {
  uint3 index;
  std::unique_ptr<unsigned char, void (*)(void*)> shared{nullptr, free};
  int running;  // threads that neither wait for others of the block nor have ended
  int ended;
  int arrived, votes;  // at the barrier
  int result;          // the votes at the last barrier
  Site barrier;
};

// A copy to shared memory that is under way.
struct Copy {
  void* to;
  void* site;
  unsigned char bytes[kCopy];
};

struct Thread {
  Worker* worker;  // nullptr: has not begun
  Block* block;
  uint3 index;
  unsigned lane;
  bool ended;
  Wait wait;
  Site site;               // where it waits, or did last
  unsigned mask;           // and with which lanes
  uint64_t value;          // in: what it brings; out: what it gets
  unsigned source;         // the lane to get it from
  std::vector<Copy> open;  // of the group that has not ended
  std::vector<std::vector<Copy>> groups;
};

enum class Order { kForward, kReverse, kShuffle };

// The launch that runs, of which there is one at a time, and the state that is kept between
// launches.
struct Scheduler {
  std::mutex mutex;
  std::map<const void*, int64_t> allowed_shared;  // by kernel
  unsigned char* stacks;
  size_t stacks_used;
  std::deque<Worker> workers;
  std::vector<Worker*> idle;
  Context launch;
  const std::function<void()>* body;
  Order order;
  uint64_t random;
  int64_t pauses_left, pauses_allowed;
  int multiply_group;
  std::string failure;
  std::vector<Block> blocks;
  std::vector<Thread> threads;
  Thread* current;             // nullptr outside of kernels
  std::vector<Thread*> ready;  // a ring, its size a power of 2
  size_t head, count;
};
Scheduler s;

thread_local int current_device;
thread_local cudaError_t last_error, explained_error;
thread_local std::string explanation;

cudaError_t error(cudaError_t status, std::string why = "") {
  last_error = explained_error = status;
  explanation = std::move(why);
  return status;
}

int64_t setting(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoll(text, nullptr, 10);
}

int64_t shared_limit() { return setting("SELFMENT_EMULATED_SHARED_BYTES", kSharedBytes); }

[[noreturn]] void die(const char* why) {
  std::fprintf(stderr, "CUDA emulation: %s\n", why);
  std::abort();
}

// xorshift64 (Marsaglia, 2003).
size_t random_below(size_t limit) {
  s.random ^= s.random << 13;
  s.random ^= s.random >> 7;
  s.random ^= s.random << 17;
  return s.random % limit;
}

std::string text(const uint3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
         std::to_string(index.z) + ")";
}

std::string text(Wait wait, const Site& site) {
  static const char* const kNames[] = {"",
                                       "__syncthreads",
                                       "__syncwarp",
                                       "__shfl_sync",
                                       "__shfl_up_sync",
                                       "__shfl_down_sync",
                                       "__shfl_xor_sync",
                                       "__ballot_sync",
                                       "__any_sync",
                                       "__all_sync"};
  const char* slash = std::strrchr(site.file, '/');
  return std::string(kNames[static_cast<int>(wait)]) + " (" +
         (slash != nullptr ? slash + 1 : site.file) + ":" + std::to_string(site.line) + ")";
}

// The message of the launch's failure.
void blame(const std::string& why) {
  s.failure = "block " + text(s.current->block->index) + ", " + why;
}
void blame_here(const std::string& why) { blame("thread " + text(s.current->index) + ": " + why); }

// Fails: leaves all threads where they are, with nothing on their stacks that has a destructor.
[[noreturn]] void leave() {
  switch_context(s.current->worker->context, s.launch);
  die("a thread of a failed grid goes on");
}

Thread& here() {
  if (s.current == nullptr) die("a device function is called outside of a kernel");
  return *s.current;
}

int block_size() { return static_cast<int>(s.threads.size() / s.blocks.size()); }

Thread* first_thread(const Block& block) {
  return &s.threads[static_cast<size_t>((&block - s.blocks.data()) * block_size())];
}

// How many threads of the block run, wait or have ended.
std::string report(const Block& block) {
  std::map<std::string, int> threads;
  for (int i = 0; i < block_size(); ++i) {
    const Thread& thread = first_thread(block)[i];
    const bool waits = thread.wait != Wait::kNone;
    ++threads[thread.ended ? "ended" : waits ? "in " + text(thread.wait, thread.site) : "running"];
  }
  std::string all;
  for (const auto& [what, number] : threads)
    all += (all.empty() ? "" : ", ") + std::to_string(number) + " " + what;
  return all;
}

void push(Thread* thread) { s.ready[(s.head + s.count++) & (s.ready.size() - 1)] = thread; }

// The next thread to run; nullptr if all have ended.
Thread* pop() {
  if (s.count == 0) return nullptr;
  Thread*& front = s.ready[s.head];
  if (s.order == Order::kShuffle)
    std::swap(front, s.ready[(s.head + random_below(s.count)) & (s.ready.size() - 1)]);
  s.head = (s.head + 1) & (s.ready.size() - 1);
  --s.count;
  return front;
}

// Makes threads ready to run: those that `which` selects of the `size` threads from the first one
// on.
template <class Which>
void push_all(Thread* first, size_t size, const Which& which) {
  for (size_t i = 0; i < size; ++i) {
    const size_t at = s.order == Order::kReverse ? size - 1 - i : i;
    if (!which(at)) continue;
    first[at].wait = Wait::kNone;
    push(first + at);
  }
}

void work();

void prepare(Worker& worker) {
#if defined(SELFMENT_ASAN)
  __asan_unpoison_memory_region(worker.stack, kStack);
#endif
  worker.context = Context{};
  worker.context.bottom = worker.stack;
  worker.context.size = kStack;
  prepare_machine(worker.context, worker.stack, work);
  s.idle.push_back(&worker);
}

Worker* idle_worker() {
  if (s.idle.empty()) {
    // A page below the stack faults.
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    if (s.stacks == nullptr) {
      void* all = mmap(nullptr, kArena, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
      if (all == MAP_FAILED) die("no memory for stacks");
      s.stacks = static_cast<unsigned char*>(all);
    }
    if (s.stacks_used + page + kStack > kArena) die("too many stacks");
    unsigned char* memory = s.stacks + s.stacks_used;
    s.stacks_used += page + kStack;
    if (mprotect(memory, page, PROT_NONE) != 0) die("no memory for stacks");
    s.workers.push_back({memory + page, {}});
    prepare(s.workers.back());
  }
  Worker* worker = s.idle.back();
  s.idle.pop_back();
  return worker;
}

void become(Thread* thread) {
  s.current = thread;
  threadIdx = thread->index;
  blockIdx = thread->block->index;
}

void enter(Context& from, Thread* thread) {
  if (thread->worker == nullptr) thread->worker = idle_worker();
  become(thread);
  switch_context(from, thread->worker->context);
}

// Runs others until the current thread, which waits or is ready, is popped.
void suspend() {
  Thread* self = s.current;
  Thread* next = pop();
  if (next != self) enter(self->worker->context, next);
}

// Must be called when the current thread has begun to wait for others of its block, or has ended.
void stop_running() {
  const Block& block = *s.current->block;
  if (--s.current->block->running > 0 || block.ended == block_size()) return;
  blame("no thread can go on: " + report(block));
  leave();
}

// The endless loop of a worker.
void work() {
  Worker* self = s.current->worker;
  arrive(self->context);
  while (true) {
    (*s.body)();
    s.current->ended = true;
    ++s.current->block->ended;
    stop_running();
    Thread* next = pop();
    if (next != nullptr && next->worker == nullptr) {
      next->worker = self;
      become(next);
      continue;
    }
    s.idle.push_back(self);
    if (next != nullptr) {
      enter(self->context, next);
    } else {
      switch_context(self->context, s.launch);
    }
  }
}

// Waits for the lanes of `mask`, all in the same call. Returns `value` of the lane `source`, or in
// a vote the lanes whose value is not 0.
uint64_t meet(Wait kind, unsigned mask, uint64_t value, unsigned source, Site site) {
  Thread& self = here();
  self.wait = kind;
  self.site = site;
  self.mask = mask;
  self.value = value;
  self.source = source;
  if ((mask >> self.lane & mask >> source & 1) == 0) {
    blame_here(text(kind, site) + " in a lane, or with one, that is not in the mask");
    leave();
  }
  Thread* warp = &self - self.lane;
  const auto selected = [mask](size_t lane) { return (mask >> lane & 1) != 0; };
  for (size_t lane = kLanes; lane-- > 0;) {
    if (!selected(lane) || (warp[lane].wait == kind && warp[lane].mask == mask)) continue;
    stop_running();
    suspend();
    return self.value;
  }
  if (kind == Wait::kSyncwarp) race::syncwarp(static_cast<int>(warp - s.threads.data()), mask);
  uint64_t values[kLanes] = {}, votes = 0;
  for (size_t lane = 0; lane < kLanes; ++lane) {
    if (!selected(lane)) continue;
    values[lane] = warp[lane].value;
    votes |= uint64_t{values[lane] != 0} << lane;
  }
  const bool shuffles = kind >= Wait::kIndex && kind <= Wait::kXor;
  for (size_t lane = 0; lane < kLanes; ++lane)
    if (selected(lane)) warp[lane].value = shuffles ? values[warp[lane].source] : votes;
  self.block->running += __builtin_popcount(mask) - 1;
  push_all(warp, kLanes, selected);
  suspend();
  return self.value;
}

uint3 unravel(uint64_t i, const dim3& size) {
  return {static_cast<unsigned>(i % size.x), static_cast<unsigned>(i / size.x % size.y),
          static_cast<unsigned>(i / size.x / size.y)};
}

uint64_t volume(const dim3& size) { return uint64_t{size.x} * size.y * size.z; }

// Runs the blocks of these numbers, all at once; returns whether they have ended.
bool run_blocks(const cudaLaunchConfig_t& config, const uint64_t* numbers, size_t size) {
  const size_t threads = volume(config.blockDim);
  s.blocks.clear();
  s.blocks.resize(size);
  s.threads.assign(size * threads, Thread{});
  size_t capacity = 1;
  while (capacity < s.threads.size()) capacity *= 2;
  s.ready.resize(capacity);
  s.head = s.count = 0;
  race::begin_round(static_cast<int>(size), static_cast<int>(threads));
  for (size_t b = 0; b < size; ++b) {
    Block& block = s.blocks[b];
    block.index = unravel(numbers[b], config.gridDim);
    block.running = static_cast<int>(threads);
    if (config.dynamicSmemBytes > 0) {
      void* memory = nullptr;
      if (posix_memalign(&memory, 128, config.dynamicSmemBytes) != 0) die("no shared memory");
      std::memset(memory, 0xAB, config.dynamicSmemBytes);
      block.shared.reset(static_cast<unsigned char*>(memory));
      race::shared_memory(static_cast<int>(b), memory, config.dynamicSmemBytes);
    }
    Thread* first = first_thread(block);
    for (size_t i = 0; i < threads; ++i) {
      first[i].block = &block;
      first[i].index = unravel(i, config.blockDim);
      first[i].lane = static_cast<unsigned>(i % kLanes);
    }
    push_all(first, threads, [](size_t) { return true; });
  }
  enter(s.launch, pop());
  s.current = nullptr;
  race::end_round();
  s.blocks.clear();
  if (s.failure.empty()) return true;
  s.idle.clear();
  for (Worker& worker : s.workers) prepare(worker);
  return false;
}

}  // namespace

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel,
                   const std::function<void()>& body) {
  thread_local bool launches = false;
  if (launches) die("a kernel launches a kernel");
  const std::lock_guard<std::mutex> lock(s.mutex);
  const uint64_t threads = volume(config.blockDim), blocks = volume(config.gridDim);
  if (threads == 0 || threads > kMaxThreads || threads % kLanes != 0)
    return error(cudaErrorInvalidValue, "a block of " + std::to_string(threads) + " threads");
  if (blocks == 0 || blocks > INT32_MAX)
    return error(cudaErrorInvalidValue, "a grid of " + std::to_string(blocks) + " blocks");
  const auto allowed = s.allowed_shared.find(kernel);
  const int64_t most = std::min(
      allowed != s.allowed_shared.end() ? allowed->second : kSharedUnasked, shared_limit());
  if (config.dynamicSmemBytes > static_cast<size_t>(most))
    return error(cudaErrorInvalidValue, std::to_string(config.dynamicSmemBytes) +
                                            " bytes of shared memory, where the kernel may have " +
                                            std::to_string(most));
  bool cooperative = false;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    if (attribute.id == cudaLaunchAttributeCooperative)
      cooperative = attribute.val.cooperative != 0;
  }
  if (cooperative && blocks > kMultiprocessors) return error(cudaErrorCooperativeLaunchTooLarge);

  const char* order = std::getenv("SELFMENT_EMULATED_ORDER");
  const std::string name = order != nullptr ? order : "forward";
  if (name != "forward" && name != "reverse" && name != "shuffle")
    return error(cudaErrorInvalidValue, "SELFMENT_EMULATED_ORDER is " + name);
  s.order = name == "forward"   ? Order::kForward
            : name == "reverse" ? Order::kReverse
                                : Order::kShuffle;
  s.random = 0x9E3779B97F4A7C15ull;
  s.pauses_left = s.pauses_allowed = setting("SELFMENT_EMULATED_PAUSES", kPauses);
  s.multiply_group = static_cast<int>(setting("SELFMENT_EMULATED_MMA_GROUP", 0));
  s.body = &body;
  s.failure.clear();
  ::blockDim = config.blockDim;
  ::gridDim = config.gridDim;

  std::vector<uint64_t> numbers(blocks);
  std::iota(numbers.begin(), numbers.end(), uint64_t{0});
  if (s.order == Order::kReverse) std::reverse(numbers.begin(), numbers.end());
  if (s.order == Order::kShuffle)
    for (size_t i = blocks; i > 1; --i) std::swap(numbers[i - 1], numbers[random_below(i)]);
  const size_t at_once = cooperative ? blocks : 1;
  bool runs = true;
  launches = true;
  race::begin_launch();
  for (size_t i = 0; i < blocks && runs; i += at_once)
    runs = run_blocks(config, &numbers[i], at_once);
  launches = false;
  return runs ? cudaSuccess : error(cudaErrorLaunchFailure, s.failure);
}

int barrier(bool predicate, Site site) {
  Thread& self = here();
  Block& block = *self.block;
  if (block.arrived == 0) block.barrier = site;
  if (block.barrier.line != site.line || std::strcmp(block.barrier.file, site.file) != 0) {
    blame_here(text(Wait::kBarrier, site) + " while others are at another one: " + report(block));
    leave();
  }
  block.votes += predicate;
  self.wait = Wait::kBarrier;
  self.site = site;
  if (++block.arrived < block_size()) {
    stop_running();
  } else {
    block.result = block.votes;
    block.arrived = block.votes = 0;
    block.running = block_size();
    race::barrier(static_cast<int>(first_thread(block) - s.threads.data()), block_size());
    push_all(first_thread(block), s.threads.size() / s.blocks.size(), [](size_t) { return true; });
  }
  suspend();
  return block.result;
}

uint64_t shuffle(Wait kind, unsigned mask, uint64_t value, unsigned operand, int width, Site site) {
  const unsigned lane = here().lane;
  if (width < 1 || width > kLanes || (width & (width - 1)) != 0) {
    blame_here(text(kind, site) + " with a width of " + std::to_string(width));
    leave();
  }
  // As in PTX, a lane outside the segment stands for the thread's own.
  const unsigned last = static_cast<unsigned>(width) - 1, segment = lane & ~last;
  unsigned source = lane;
  operand %= kLanes;
  if (kind == Wait::kIndex) source = segment | (operand & last);
  if (kind == Wait::kXor) source = lane ^ operand;
  if (kind == Wait::kUp) source = lane >= segment + operand ? lane - operand : lane;
  if (kind == Wait::kDown) source = lane + operand;
  return meet(kind, mask, value, source <= (segment | last) ? source : lane, site);
}

unsigned vote(Wait kind, unsigned mask, bool predicate, Site site) {
  return static_cast<unsigned>(meet(kind, mask, predicate ? 1 : 0, here().lane, site));
}

int64_t forced_team() { return setting("SELFMENT_EMULATED_TEAM", 0); }
int multiply_group() { return s.multiply_group; }

void copy_later(void* to, const void* from, bool exists, void* site) {
  race::begin_copy(to, exists ? from : nullptr, kCopy, site);
  Copy copy{to, site, {}};
  if (exists) std::memcpy(copy.bytes, from, kCopy);
  std::memset(to, 0xFF, kCopy);
  here().open.push_back(copy);
}

void end_copies() {
  Thread& self = here();
  self.groups.push_back(std::move(self.open));
  self.open.clear();
}

void land_copies(int pending) {
  Thread& self = here();
  while (self.groups.size() > static_cast<size_t>(pending)) {
    for (const Copy& copy : self.groups.front()) {
      std::memcpy(copy.to, copy.bytes, kCopy);
      race::land_copy(copy.to, kCopy, copy.site);
    }
    self.groups.erase(self.groups.begin());
  }
}

void preempt() {
  if (s.current == nullptr || s.order != Order::kShuffle || random_below(8) != 0) return;
  push(s.current);
  suspend();
}

}  // namespace selfment::cuda::emulation

#if defined(SELFMENT_RACES)
namespace selfment::cuda::race {

int current_thread() {
  using emulation::s;
  return s.current == nullptr ? -1 : static_cast<int>(s.current - s.threads.data());
}

bool is_stack(const void* address) {
  using emulation::s;
  const auto* at = static_cast<const unsigned char*>(address);
  return at >= s.stacks && at < s.stacks + emulation::kArena;
}

}  // namespace selfment::cuda::race
#endif

namespace selfment::cuda {

unsigned char* shared_memory() { return emulation::here().block->shared.get(); }

void pause_thread() {
  using namespace emulation;
  Thread& self = here();
  if (--s.pauses_left < 0) {
    blame_here("the grid has paused " + std::to_string(s.pauses_allowed) +
               " times: " + report(*self.block));
    leave();
  }
  push(&self);
  suspend();
}

}  // namespace selfment::cuda

using namespace selfment::cuda::emulation;

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }

const char* cudaGetErrorString(cudaError_t status) {
  if (status == explained_error && !explanation.empty()) return explanation.c_str();
  switch (status) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
    case cudaErrorCooperativeLaunchTooLarge:
      return "too many blocks in cooperative launch";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= kDevices) return error(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}

int selfment_exchange_device(int device) { return std::exchange(current_device, device); }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device < 0 || device >= kDevices) return error(cudaErrorInvalidDevice);
  if (attribute == cudaDevAttrMultiProcessorCount) {
    *value = kMultiprocessors;
  } else if (attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin) {
    *value = static_cast<int>(shared_limit());
  } else {
    return error(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
      value > shared_limit())
    return error(cudaErrorInvalidValue);
  const std::lock_guard<std::mutex> lock(s.mutex);
  s.allowed_shared[kernel] = value;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int threads,
                                                          size_t shared_bytes) {
  if (threads < 1) return error(cudaErrorInvalidValue);
  const bool fits = threads <= static_cast<int>(kMaxThreads) &&
                    shared_bytes <= static_cast<size_t>(shared_limit());
  *blocks = fits ? 1 : 0;
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  if (bytes > 0) std::memset(to, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  return cudaSuccess;
}
