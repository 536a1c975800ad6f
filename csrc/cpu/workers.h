// Threads for the length of one call, from the first work that is worth them. None outlives the
// call, so a process may fork between calls (DataLoader workers do), and no more run than the
// caller asked for.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "../params.h"

namespace selfment::cpu {

class Workers {
 public:
  explicit Workers(const Context& context) : Workers(context, nullptr) {}
  ~Workers();
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  // The caller's thread included.
  int count() const { return context_.threads; }

  // Calls body(i) for each i in [0, size), in any order, on all threads, the caller's included, and
  // returns when all are done. `work` is about how many vector operations that takes: few are done
  // before another thread has woken, so the caller does them alone. Rethrows what a body throws.
  // Throws Interrupted when interrupted.
  void parallel_for(int64_t size, double work, const std::function<void(int64_t)>& body);

  // Throws Interrupted if the caller was interrupted, or another thread already found so. Cheap
  // enough for every few microseconds.
  void check();

  // The context for work that runs inside a body, on that thread alone. It must not outlive this.
  Workers serial() { return Workers({1, nullptr}, this); }

 private:
  Workers(const Context& context, Workers* outer);
  void start();
  void take();
  void loop();
  bool stopped();

  Context context_;
  Workers* const outer_;
  const std::thread::id owner_;
  std::chrono::steady_clock::time_point asked_;
  std::vector<std::thread> threads_;
  bool started_ = false;

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::atomic<uint64_t> round_{0};
  std::atomic<int> busy_{0};
  std::atomic<bool> stop_{false}, quit_{false};
  std::atomic<int64_t> next_{0};
  int64_t size_ = 0;
  const std::function<void(int64_t)>* body_ = nullptr;
  std::exception_ptr error_;
};

// Runs body(image, workers) for each image, of `work` vector operations or so: images side by side
// where there are enough of them for all threads, else one after the other with all threads on
// each.
void for_each_image(int64_t batch, double work, const Context& context,
                    const std::function<void(int64_t, Workers&)>& body);

// The first of the rows that the images found, -1 or a row of n for each, as a row of all images.
int64_t first_row(const std::vector<int64_t>& found, int64_t n);

}  // namespace selfment::cpu
