#include "workers.h"

#include <algorithm>

namespace selfment::cpu {

namespace {

constexpr auto kAskEvery = std::chrono::milliseconds(100);

// An idle thread looks for work this often before it sleeps: for about 20 microseconds on x86, the
// time between two rounds of a Lanczos step.
constexpr int kSpins = 500;

// One thread does so many vector operations before another wakes. Builds for the thread sanitizer
// set it to 0, so that small work is shared too.
#ifndef SELFMENT_SERIAL_WORK
#define SELFMENT_SERIAL_WORK 0x1p17
#endif
constexpr double kSerialWork = SELFMENT_SERIAL_WORK;

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  // `yield` is a no-op on many cores; this waits until the pipeline is empty.
  asm volatile("isb");
#endif
}

template <class Condition>
bool spin_until(const Condition& holds) {
  for (int i = 0; i < kSpins; ++i) {
    if (holds()) return true;
    pause();
  }
  return holds();
}

}  // namespace

Workers::Workers(const Context& context, Workers* outer)
    : context_(context),
      outer_(outer),
      owner_(std::this_thread::get_id()),
      asked_(std::chrono::steady_clock::now()) {}

void Workers::start() {
  started_ = true;
  try {
    threads_.reserve(std::max(0, count() - 1));
    while (static_cast<int>(threads_.size()) + 1 < count())
      threads_.emplace_back([this] { loop(); });
  } catch (const std::exception&) {
    // The system has no more threads, or no memory for them: those that started are enough. They
    // have to be joined, so no exception may leave.
  }
}

Workers::~Workers() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    quit_ = true;
    ++round_;
  }
  wake_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void Workers::check() {
  if (stopped()) throw Interrupted();
}

bool Workers::stopped() {
  if (outer_ != nullptr) return outer_->stopped();
  if (stop_.load(std::memory_order_relaxed)) return true;
  if (std::this_thread::get_id() != owner_) return false;
  const auto now = std::chrono::steady_clock::now();
  if (now - asked_ < kAskEvery) return false;
  asked_ = now;
  if (context_.interrupted()) stop_ = true;
  return stop_;
}

void Workers::parallel_for(int64_t size, double work, const std::function<void(int64_t)>& body) {
  const bool shared = size > 1 && work >= kSerialWork;
  if (shared && !started_) start();
  size_ = size;
  body_ = &body;
  next_ = 0;
  error_ = nullptr;
  if (shared && !threads_.empty()) {
    busy_ = static_cast<int>(threads_.size());
    {
      std::lock_guard<std::mutex> lock(mutex_);
      ++round_;
    }
    wake_.notify_all();
    run_bodies();
    const auto idle = [this] { return busy_.load(std::memory_order_acquire) == 0; };
    if (!spin_until(idle)) {
      std::unique_lock<std::mutex> lock(mutex_);
      while (!done_.wait_for(lock, kAskEvery, idle)) {
        // The interpreter may be asked for its lock here, so the workers must be free to go on.
        lock.unlock();
        stopped();
        lock.lock();
      }
    }
  } else {
    run_bodies();
  }
  if (error_) std::rethrow_exception(error_);
  check();
}

void Workers::run_bodies() {
  try {
    for (int64_t i = next_++; i < size_; i = next_++) {
      if (stopped()) return;
      (*body_)(i);
    }
  } catch (...) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!error_) error_ = std::current_exception();
    next_ = size_;
  }
}

void Workers::loop() {
  uint64_t seen = 0;
  while (true) {
    const auto called = [&] { return round_.load(std::memory_order_acquire) != seen; };
    if (!spin_until(called)) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, called);
    }
    if (quit_) return;
    ++seen;
    run_bodies();
    if (--busy_ == 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      done_.notify_one();
    }
  }
}

void for_each_image(int64_t batch, double work, const Context& context,
                    const std::function<void(int64_t, Workers&)>& body) {
  Workers workers(context);
  if (batch < workers.count()) {
    for (int64_t image = 0; image < batch; ++image) body(image, workers);
    return;
  }
  workers.parallel_for(batch, static_cast<double>(batch) * work, [&](int64_t image) {
    Workers serial = workers.serial();
    body(image, serial);
  });
}

int64_t first_row(const std::vector<int64_t>& rows, int64_t n) {
  for (size_t image = 0; image < rows.size(); ++image)
    if (rows[image] >= 0) return static_cast<int64_t>(image) * n + rows[image];
  return -1;
}

}  // namespace selfment::cpu
