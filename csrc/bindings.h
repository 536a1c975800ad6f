// What the native modules share: addresses as integers, and the release of the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <cstdint>
#include <thread>
#include <utility>
#include <vector>

#include "params.h"

namespace selfment {

using Address = std::uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

using Grids = std::vector<std::pair<int64_t, int64_t>>;

inline std::vector<Grid> as_grids(const Grids& sides) {
  std::vector<Grid> grids;
  for (const auto& [h, w] : sides) grids.push_back({h, w});
  return grids;
}

inline Sign as_sign(bool lapack) { return lapack ? Sign::kLapack : Sign::kPeak; }

// Without the GIL as long as it lives.
//
// A daemon thread may want the GIL back when the interpreter has ended. Python up to 3.13 then ends
// the thread, by an exception that may not pass through frames that catch all, ours and torch's.
// The thread waits instead for the end of the process, which newer versions make it do themselves.
class Released {
 public:
  Released() : thread_(PyEval_SaveThread()) {}
  ~Released() {
    try {
      PyEval_RestoreThread(thread_);
    } catch (...) {
      while (true) std::this_thread::sleep_for(std::chrono::hours(1));
    }
  }
  Released(const Released&) = delete;
  Released& operator=(const Released&) = delete;

 private:
  PyThreadState* thread_;
};

}  // namespace selfment
