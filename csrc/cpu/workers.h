// Threads that live for one call and start with its first work that is large enough. None outlives
// the call, so a process may fork between calls (DataLoader workers do), and no more of them run
// than the caller asked for.
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

  // The number of threads, the caller's included.
  int count() const { return context_.threads; }

  // Calls body(i) for each i in [0, size), in any order, on all threads, the caller's included, and
  // returns when all calls are done. `work` estimates their vector operations: a small number is
  // done before another thread has woken, so the caller does it alone. Rethrows what a body throws.
  // Throws Interrupted when interrupted.
  void parallel_for(int64_t size, double work, const std::function<void(int64_t)>& body);

  // Throws Interrupted if the caller was interrupted, or if another thread has noticed it already.
  // Cheap enough for every few microseconds.
  void check();

  // Workers for work inside a body, on its thread alone. They must not outlive this object.
  Workers serial() { return Workers({1, nullptr}, this); }

 private:
  Workers(const Context& context, Workers* outer);
  void start();
  void run_bodies();
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

// Runs body(image, workers) for each image, which takes about `work` vector operations. Images run
// side by side if there are enough for all threads, else one after the other on all threads.
void for_each_image(int64_t batch, double work, const Context& context,
                    const std::function<void(int64_t, Workers&)>& body);

// Returns the first bad row, counted over all images of n rows each, or -1. `rows` has each image's
// first bad row, or -1.
int64_t first_row(const std::vector<int64_t>& rows, int64_t n);

}  // namespace selfment::cpu
