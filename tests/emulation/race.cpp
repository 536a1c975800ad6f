// A happens-before race detector for the emulated grids: see README.md. Vector clocks as in
// FastTrack (Flanagan and Freund, 2009), of every thread and of every cell of memory. It stands in
// the place of the thread sanitizer's runtime, whose hooks the compiler calls at every access.
#include "race.h"

#if defined(SELFMENT_RACES)

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

extern "C" {
extern char __bss_start[] __attribute__((visibility("hidden")));
extern char _end[] __attribute__((visibility("hidden")));
}

namespace selfment::cuda::race {

namespace {

using Clock = std::vector<uint32_t>;
using Base = std::shared_ptr<const Clock>;

// What a thread knows of the others: it knows all accesses of thread u up to epoch base[u], and
// those of the lanes of its own warp up to warp[lane], if that is later.
struct State {
  uint32_t epoch = 1;  // the thread's own; each synchronisation begins a new one
  Base base;           // shared by threads that know the same
  uint32_t warp[32] = {};
  Base released;  // what a fence has published
  Base acquired;  // what strong reads have seen since the last fence
};

// All accesses of one kind to a cell that are not known to be ordered: a single one, or the last
// one of each thread. A round is the set of blocks that run at once; threads of different rounds
// are never ordered.
struct Access {
  uint32_t round = 0, thread = 0, epoch = 0;
  bool many = false, other_round = false;
  void* pc = nullptr;
  std::unique_ptr<Clock> all;  // where there are many: the epochs, by thread
  bool empty() const { return round == 0; }
};
// The accesses to a piece of memory in a launch.
struct Cell {
  bool nc = false;       // read by a non-coherent load
  bool pending = false;  // the target of a copy under way
  uint32_t pending_thread = 0;
  void* nc_pc = nullptr;
  void* pending_pc = nullptr;
  Access write, read, strong_read, strong_write;
};
// 4096 bytes, in cells as small as the smallest access so far.
struct Page {
  int unit = 0;  // log2 bytes
  std::vector<Cell> cells;
};

std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
uintptr_t last_number = ~uintptr_t{0};
Page* last_page;
std::vector<State> threads;
uint32_t round_number, first_round;
std::unordered_map<uintptr_t, Base> published;
// A block's shared memory, and which bytes of it have been written.
struct Shared {
  unsigned char* at;
  size_t size;
  std::vector<bool> written;
};
std::vector<Shared> shared_;
int threads_each;
std::set<std::tuple<void*, void*, std::string>> reported;
uint64_t accesses;
char* launch_stack;

Page* page_of(uintptr_t number) {
  if (number == last_number) return last_page;
  auto& found = pages[number];
  if (!found) found = std::make_unique<Page>();
  last_number = number;
  return last_page = found.get();
}

// MODULE+OFFSET of a call, for addr2line.
std::string where(void* pc) {
  Dl_info info;
  if (pc == nullptr || dladdr(pc, &info) == 0) return "-";
  char text[32];
  const auto offset = static_cast<char*>(pc) - static_cast<char*>(info.dli_fbase) - 1;
  std::snprintf(text, sizeof text, "+0x%zx", static_cast<size_t>(offset));
  return std::string(info.dli_fname) + text;
}

FILE* out() {
  static FILE* file = [] {
    const char* name = std::getenv("SELFMENT_RACE_LOG");
    return name != nullptr ? std::fopen(name, "a") : stderr;
  }();
  return file;
}

const char* memory_kind(uintptr_t at) {
  for (const Shared& s : shared_)
    if (at - reinterpret_cast<uintptr_t>(s.at) < s.size) return "shared";
  return "global";
}

void report(const char* what, void* before, void* now, uintptr_t at, int t, int u) {
  if (!reported.insert({before, now, what}).second) return;
  std::fprintf(out(), "race\t%s\t%s\t%s\t%s\t%d\t%d\n", memory_kind(at), what, where(now).c_str(),
               where(before).c_str(), t, u);
  std::fflush(out());
}

// The epoch of thread u up to which thread t knows u's accesses.
uint32_t known(int t, uint32_t u) {
  const State& s = threads[static_cast<size_t>(t)];
  const uint32_t base = (*s.base)[u];
  if (static_cast<int>(u) / 32 == t / 32) return std::max(base, s.warp[u % 32]);
  return base;
}

// True if all accesses of the set happen before thread t's next one.
bool ordered(const Access& a, int t) {
  if (a.empty() || a.round < first_round) return true;
  if (a.other_round) return false;
  if (a.round != round_number) return false;
  if (!a.many) return static_cast<int>(a.thread) == t || known(t, a.thread) >= a.epoch;
  for (size_t u = 0; u < a.all->size(); ++u)
    if ((*a.all)[u] != 0 && static_cast<int>(u) != t &&
        known(t, static_cast<uint32_t>(u)) < (*a.all)[u])
      return false;
  return true;
}

// Adds an access of thread t; it replaces those that are ordered before it.
void add(Access& a, int t, void* pc) {
  const uint32_t epoch = threads[static_cast<size_t>(t)].epoch;
  if (!a.empty() && a.round >= first_round && a.round != round_number) {
    a.other_round = true;
    a.many = false;
    a.all.reset();
  } else if (a.round == round_number && !a.other_round) {
    if (!a.many) {
      if (static_cast<int>(a.thread) == t || known(t, a.thread) >= a.epoch) {
        a.thread = static_cast<uint32_t>(t);
        a.epoch = epoch;
        a.pc = pc;
        return;
      }
      a.many = true;
      a.all = std::make_unique<Clock>(threads.size(), 0);
      (*a.all)[a.thread] = a.epoch;
    }
    (*a.all)[static_cast<size_t>(t)] = epoch;
    a.pc = pc;
    return;
  } else if (a.round < first_round) {
    a.other_round = a.many = false;
    a.all.reset();
  }
  a.round = round_number;
  a.thread = static_cast<uint32_t>(t);
  a.epoch = epoch;
  a.pc = pc;
}

void reset(Access& a) { a = Access{}; }

enum Kind { kRead, kWrite, kStrongRead, kStrongWrite, kNcRead, kAsyncIssue, kAsyncDone };

// Records an access to a cell: reports an earlier one that it is not ordered with, and becomes part
// of the cell's past.
void touch(Cell& c, int t, Kind kind, void* pc, uintptr_t at) {
  const auto tell = [&](const Access& a, const char* what) {
    if (!ordered(a, t)) report(what, a.pc, pc, at, t, static_cast<int>(a.thread));
  };
  if (c.pending && kind != kAsyncDone)
    report(kind == kRead ? "read of cp.async under way" : "access to cp.async under way",
           c.pending_pc, pc, at, t, static_cast<int>(c.pending_thread));
  switch (kind) {
    case kNcRead:
      c.nc = true;
      c.nc_pc = pc;
      if (!c.write.empty() && c.write.round >= first_round)
        report("ld.nc of what this kernel wrote", c.write.pc, pc, at, t,
               static_cast<int>(c.write.thread));
      [[fallthrough]];
    case kRead:
      if (c.read.round == round_number && !c.read.many && !c.read.other_round &&
          static_cast<int>(c.read.thread) == t &&
          c.read.epoch == threads[static_cast<size_t>(t)].epoch)
        break;
      tell(c.write, "read-after-write");
      tell(c.strong_write, "read-after-atomic");
      add(c.read, t, pc);
      break;
    case kWrite:
    case kAsyncDone:
    case kAsyncIssue:
      if (c.nc) report("write of what ld.nc has read", c.nc_pc, pc, at, t, -1);
      if (kind != kAsyncDone) {
        tell(c.write, "write-after-write");
        tell(c.read, "write-after-read");
        tell(c.strong_read, "write-after-volatile-read");
        tell(c.strong_write, "write-after-atomic");
      }
      if (kind == kAsyncIssue) {
        c.pending = true;
        c.pending_thread = static_cast<uint32_t>(t);
        c.pending_pc = pc;
        break;
      }
      c.pending = false;
      reset(c.read), reset(c.strong_read), reset(c.strong_write), reset(c.write);
      add(c.write, t, pc);
      break;
    case kStrongRead:
      tell(c.write, "volatile-read-after-write");
      add(c.strong_read, t, pc);
      break;
    case kStrongWrite:
      if (c.nc) report("atomic on what ld.nc has read", c.nc_pc, pc, at, t, -1);
      tell(c.write, "atomic-after-write");
      tell(c.read, "atomic-after-read");
      add(c.strong_write, t, pc);
      break;
  }
}

// The scheduler's own memory, and stacks; the launch's stack has the kernel's arguments.
bool ignored(const void* address) {
  const char* p = static_cast<const char*>(address);
  if (p >= __bss_start && p < _end) return true;
  if (is_stack(address)) return true;
  if (p > launch_stack - (256 << 10) && p < launch_stack + (8 << 20)) return true;
  return false;
}

int log2_of(int size) { return size >= 8 ? 3 : size >= 4 ? 2 : size >= 2 ? 1 : 0; }

// Records an access of the running thread, cell by cell.
void access(const void* address, int size, Kind kind, void* pc) {
  const int t = current_thread();
  if (t < 0 || threads.empty() || ignored(address)) return;
  ++accesses;
  uintptr_t at = reinterpret_cast<uintptr_t>(address), end = at + static_cast<uintptr_t>(size);
  for (size_t b = 0; b < shared_.size(); ++b) {
    Shared& s = shared_[b];
    const uintptr_t from = at - reinterpret_cast<uintptr_t>(s.at);
    if (from >= s.size) continue;
    if (static_cast<int>(b) != t / threads_each)
      report("access to another block's shared memory", nullptr, pc, at, t, -1);
    if (from + static_cast<uintptr_t>(size) > s.size)
      report("beyond the shared memory", nullptr, pc, at, t, -1);
    const bool writes = kind == kWrite || kind == kStrongWrite || kind == kAsyncDone;
    for (int i = 0; i < size && from + static_cast<size_t>(i) < s.size; ++i) {
      if (writes) s.written[from + static_cast<size_t>(i)] = true;
      else if (kind != kAsyncIssue && !s.written[from + static_cast<size_t>(i)]) {
        report("read of uninitialised shared memory", nullptr, pc, at, t, -1);
        break;
      }
    }
  }
  while (at < end) {
    Page* page = page_of(at >> 12);
    int unit = std::min(log2_of(static_cast<int>(end - at)), at % 2   ? 0
                                                             : at % 4 ? 1
                                                             : at % 8 ? 2
                                                                      : 3);
    if (page->cells.empty()) {
      page->unit = unit;
      page->cells.resize(4096u >> unit);
    }
    if (unit < page->unit) {
      // Accesses are smaller than before: forgets all but this launch's writes.
      std::vector<Cell> finer(4096u >> unit);
      for (size_t i = 0; i < finer.size(); ++i) {
        Cell& old = page->cells[i >> (page->unit - unit)];
        Cell& c = finer[i];
        c.nc = old.nc, c.nc_pc = old.nc_pc;
        c.pending = old.pending, c.pending_thread = old.pending_thread,
        c.pending_pc = old.pending_pc;
        const auto copy = [](const Access& a, Access& to) {
          to.round = a.round, to.thread = a.thread, to.epoch = a.epoch, to.many = a.many;
          to.other_round = a.other_round, to.pc = a.pc;
          if (a.all) to.all = std::make_unique<Clock>(*a.all);
        };
        copy(old.write, c.write), copy(old.read, c.read);
        copy(old.strong_read, c.strong_read), copy(old.strong_write, c.strong_write);
      }
      page->cells = std::move(finer);
      page->unit = unit;
    }
    const uintptr_t next = ((at >> page->unit) + 1) << page->unit;
    touch(page->cells[(at & 4095) >> page->unit], t, kind, pc, at);
    at = next;
  }
}

// Merges the knowledge of both.
Base join(const Base& a, const Base& b) {
  if (a == b || !b) return a;
  if (!a) return b;
  auto c = std::make_shared<Clock>(*a);
  for (size_t i = 0; i < c->size(); ++i) (*c)[i] = std::max((*c)[i], (*b)[i]);
  return c;
}

}  // namespace

void begin_launch() {
  // Earlier launches are ordered. All the past of a module would take gigabytes.
  pages.clear();
  last_number = ~uintptr_t{0};
  first_round = round_number + 1;
  published.clear();
  launch_stack = static_cast<char*>(__builtin_frame_address(0));
}

void begin_round(int blocks, int each) {
  ++round_number;
  threads_each = each;
  threads.assign(static_cast<size_t>(blocks * each), State{});
  const Base none = std::make_shared<Clock>(threads.size(), 0);
  for (State& s : threads) s.base = none;
  shared_.assign(static_cast<size_t>(blocks), {});
}

void shared_memory(int block, void* address, size_t size) {
  shared_[static_cast<size_t>(block)] = {static_cast<unsigned char*>(address), size,
                                         std::vector<bool>(size, false)};
  // The memory may have been that of another block.
  const uintptr_t at = reinterpret_cast<uintptr_t>(address);
  for (uintptr_t number = at >> 12; number <= (at + size) >> 12; ++number) {
    pages.erase(number);
    if (number == last_number) last_number = ~uintptr_t{0};
  }
}

void end_round() {
  threads.clear();
  shared_.clear();
}

void barrier(int first, int count) {
  Base all = threads[static_cast<size_t>(first)].base;
  std::set<const Clock*> seen{all.get()};
  auto joined = std::make_shared<Clock>(*all);
  for (int i = 0; i < count; ++i) {
    const State& s = threads[static_cast<size_t>(first + i)];
    if (seen.insert(s.base.get()).second)
      for (size_t u = 0; u < joined->size(); ++u)
        (*joined)[u] = std::max((*joined)[u], (*s.base)[u]);
  }
  for (int i = 0; i < count; ++i) {
    State& s = threads[static_cast<size_t>(first + i)];
    (*joined)[static_cast<size_t>(first + i)] = s.epoch;
  }
  for (int i = 0; i < count; ++i) {
    State& s = threads[static_cast<size_t>(first + i)];
    s.base = joined;
    ++s.epoch;
    std::fill_n(s.warp, 32, 0);
  }
}

void syncwarp(int first, unsigned mask) {
  uint32_t warp[32] = {};
  Base base;
  for (int l = 0; l < 32; ++l) {
    if ((mask >> l & 1) == 0) continue;
    const State& s = threads[static_cast<size_t>(first + l)];
    for (int m = 0; m < 32; ++m) warp[m] = std::max(warp[m], s.warp[m]);
    warp[l] = std::max(warp[l], s.epoch);
    base = join(base, s.base);
  }
  for (int l = 0; l < 32; ++l) {
    if ((mask >> l & 1) == 0) continue;
    State& s = threads[static_cast<size_t>(first + l)];
    std::copy_n(warp, 32, s.warp);
    s.base = base;
    ++s.epoch;
  }
}

void fence() {
  const int t = current_thread();
  if (t < 0 || threads.empty()) return;
  State& s = threads[static_cast<size_t>(t)];
  if (s.acquired) s.base = join(s.base, s.acquired);
  s.acquired.reset();
  auto clock = std::make_shared<Clock>(*s.base);
  const size_t first = static_cast<size_t>(t / 32 * 32);
  for (size_t l = 0; l < 32; ++l) (*clock)[first + l] = std::max((*clock)[first + l], s.warp[l]);
  (*clock)[static_cast<size_t>(t)] = s.epoch;
  s.released = clock;
  ++s.epoch;
}

namespace {
// A strong access receives what was published at the address; it is known after the next fence.
void see(int t, uintptr_t at) {
  const auto found = published.find(at);
  if (found == published.end()) return;
  State& s = threads[static_cast<size_t>(t)];
  if (s.acquired != found->second) s.acquired = join(s.acquired, found->second);
}
}  // namespace

void atomic_access(const void* address, int size, bool write, void* pc) {
  const int t = current_thread();
  if (t < 0 || threads.empty()) return;
  access(address, size, write ? kStrongWrite : kStrongRead, pc);
  const uintptr_t at = reinterpret_cast<uintptr_t>(address);
  see(t, at);
  if (write && threads[static_cast<size_t>(t)].released) {
    Base& to = published[at];
    to = join(to, threads[static_cast<size_t>(t)].released);
  }
}

void noncoherent_read(const void* address, int size, void* pc) {
  access(address, size, kNcRead, pc);
}
void plain_read(const void* address, int size, void* pc) { access(address, size, kRead, pc); }

void begin_copy(const void* to, const void* from, int size, void* site) {
  if (from != nullptr) access(from, size, kRead, site);
  access(to, size, kAsyncIssue, site);
}
void land_copy(const void* to, int size, void* site) { access(to, size, kAsyncDone, site); }

}  // namespace selfment::cuda::race

namespace race = selfment::cuda::race;
#define PC __builtin_return_address(0)
#define EXPORT extern "C" __attribute__((visibility("hidden")))
#define SIZES(n)                                                                                   \
  EXPORT void __tsan_read##n(void* p) { race::access(p, n, race::kRead, PC); }                     \
  EXPORT void __tsan_write##n(void* p) { race::access(p, n, race::kWrite, PC); }                   \
  EXPORT void __tsan_unaligned_read##n(void* p) { race::access(p, n, race::kRead, PC); }           \
  EXPORT void __tsan_unaligned_write##n(void* p) { race::access(p, n, race::kWrite, PC); }         \
  EXPORT void __tsan_volatile_read##n(void* p) { race::atomic_access(p, n, false, PC); }           \
  EXPORT void __tsan_volatile_write##n(void* p) { race::atomic_access(p, n, true, PC); }           \
  EXPORT void __tsan_unaligned_volatile_read##n(void* p) { race::atomic_access(p, n, false, PC); } \
  EXPORT void __tsan_unaligned_volatile_write##n(void* p) { race::atomic_access(p, n, true, PC); }
SIZES(1)
SIZES(2)
SIZES(4)
SIZES(8)
SIZES(16)
EXPORT void __tsan_read_range(void* p, unsigned long n) {
  race::access(p, static_cast<int>(n), race::kRead, PC);
}
EXPORT void __tsan_write_range(void* p, unsigned long n) {
  race::access(p, static_cast<int>(n), race::kWrite, PC);
}
EXPORT void __tsan_func_entry(void*) {}
EXPORT void __tsan_func_exit(void*) {}
EXPORT void __tsan_init() {}
EXPORT void __tsan_vptr_update(void**, void*) {}
EXPORT void __tsan_vptr_read(void**) {}

// How many accesses were checked; 0 if the sources were not compiled for the detector.
extern "C" __attribute__((visibility("default"))) unsigned long long selfment_race_accesses() {
  return race::accesses;
}

#endif
